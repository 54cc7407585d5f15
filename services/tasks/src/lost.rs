//! What is left of a shim: cleared when it died, killed when it is stuck, buried when it has ended.

use crate::bundle;
use crate::cgroup;
use crate::end::unseen;
use crate::engine::{Engine, blocking};
use crate::launch::Launch;
use crate::live::Live;
use crate::shim::ShimError;
use containerd_shim_protos::api;
use contracts::tasks::Exit;
use contracts::{Error, Namespace, Result, Timestamp};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// How long a shim that was told to end may take.
const ENDING: Duration = Duration::from_secs(3);
/// How long an empty parent cgroup stays, because the next container of the namespace would make it again.
const LINGER: Duration = Duration::from_millis(250);

impl Engine {
    /// Takes the death of a shim: clears what it left, and records the end of what ran in it.
    pub(crate) async fn lost(self: &Rc<Self>, live: &Rc<Live>, why: &str) {
        if live.leaving.replace(true) {
            return;
        }
        tracing::warn!(task = %live.name.id, why, "a shim is gone");
        let seen = match self.clear(live).await {
            Ok(exit) if exit.exited_at != Timestamp(0) => exit,
            Ok(_) => unseen(),
            Err(error) => {
                tracing::warn!(task = %live.name.id, %error, "what a dead shim left was not cleared");
                unseen()
            }
        };
        let reason = format!("its shim died, and what ran in it was ended ({why})");
        if let Err(error) = self.store.lost(&live.name, seen.clone(), reason).await {
            tracing::error!(task = %live.name.id, %error, "the end of a lost task was not recorded");
        }
        live.all()
            .iter()
            .for_each(|process| process.tell(seen.clone()));
        live.leaving.set(false);
        self.retire(live);
    }

    /// Ends a shim, stuck or not, with everything that runs in it, and removes what it made but the bundle.
    pub(crate) async fn clear(&self, live: &Live) -> Result<Exit> {
        let known = live.launch.bundle.clone();
        if !blocking(move || Ok::<_, Error>(known.exists())).await? {
            return Ok(unseen());
        }
        if !live.launch.program.own {
            let request = api::ShutdownRequest {
                id: live.name.id.to_string(),
                now: true,
                ..Default::default()
            };
            let second = Duration::from_secs(1);
            let _ = live
                .call::<_, api::Empty>("Shutdown", &request, second)
                .await;
            let launch = live.launch.clone();
            blocking(move || {
                kill_server(&launch);
                Ok::<_, Error>(())
            })
            .await?;
        }
        let exit = live.launch.delete().await;
        live.hang_up();
        let (store, name) = (self.store.clone(), live.name.clone());
        blocking(move || {
            if let Ok(record) = store.get(&name) {
                cgroup::end(&record.cgroup);
            }
            Ok::<_, Error>(())
        })
        .await?;
        exit
    }

    /// Frees the bundle's path. A stock shim keeps its folder and its socket's name until it has ended (see [`Engine::bury`]).
    pub(crate) async fn set_aside(&self, live: &Live) {
        if !live.launch.program.own {
            return;
        }
        let (bundle, gone) = (live.launch.bundle.clone(), self.grave(live));
        if let Err(error) = blocking(move || bundle::set_aside(&bundle, &gone)).await {
            tracing::warn!(%error, "a bundle stays until tasks starts again");
        }
    }

    /// Removes the bundle when its shim has let go of it, aside; the next task of the name waits where it must.
    pub(crate) fn bury(self: &Rc<Self>, live: &Rc<Live>) {
        let own = live.launch.program.own;
        let bundle = if own {
            self.grave(live)
        } else {
            live.launch.bundle.clone()
        };
        let launch = Launch {
            bundle: bundle.clone(),
            ..live.launch.clone()
        };
        let socket = launch.socket.clone();
        self.ending.borrow_mut().insert(socket.clone(), launch);
        let engine = Rc::downgrade(self);
        let (name, live) = (live.name.clone(), live.clone());
        let burial = tokio::task::spawn_local(async move {
            gone(&live).await;
            drop(live);
            if let Some(engine) = engine.upgrade() {
                engine.ending.borrow_mut().remove(&socket);
            }
            if let Err(error) = blocking(move || bundle::remove(&bundle)).await {
                tracing::warn!(%error, "a bundle stays until tasks starts again");
            }
        });
        if !own {
            let mut burials = self.burials.borrow_mut();
            burials.retain(|_, burial| !burial.is_finished());
            burials.insert(name, burial);
        }
    }

    fn grave(&self, live: &Live) -> PathBuf {
        let socket = live.launch.socket.file_name().unwrap_or_default();
        self.layout.gone().join(socket)
    }

    /// Removes a namespace's parent cgroup when nobody is left in it, aside and a little later.
    pub(crate) fn sweep_cgroups_of(self: &Rc<Self>, namespace: &Namespace) {
        if !self.unswept.borrow_mut().insert(namespace.clone()) {
            return;
        }
        let (engine, namespace) = (Rc::downgrade(self), namespace.clone());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LINGER).await;
            if let Some(engine) = engine.upgrade() {
                engine.sweep_cgroup(&namespace).await;
            }
        });
    }

    async fn sweep_cgroup(self: &Rc<Self>, namespace: &Namespace) {
        self.unswept.borrow_mut().remove(namespace);
        if self.is_used(namespace) {
            return;
        }
        let cgroups = self.cgroups.clone();
        let Ok(_nobody) = cgroups.try_write() else {
            // Somebody makes a container right now.
            return self.sweep_cgroups_of(namespace);
        };
        let namespace = namespace.clone();
        let _ = blocking(move || {
            cgroup::remove_empty(&format!("/gantry/{namespace}"));
            Ok::<_, Error>(())
        })
        .await;
    }
}

/// Waits until the shim has closed our connection: it has then removed its own files.
async fn gone(live: &Live) {
    let request = api::ConnectRequest::default();
    let step = Duration::from_millis(100);
    let closed = async {
        while !matches!(
            live.call::<_, api::ConnectResponse>("Connect", &request, step)
                .await,
            Err(ShimError::Gone(_))
        ) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(ENDING, closed).await;
    for process in live.all() {
        process.pumps.take();
        process.held.take();
    }
}

/// Kills a stock shim that does not end by itself: the process that runs its program for this very task.
pub(crate) fn kill_server(launch: &Launch) {
    let ours = |pid: i32| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        let has = |flag: &str, value: &str| words.windows(2).any(|pair| pair == [flag, value]);
        program == Path::new(&launch.program.path)
            && has("-id", launch.name.id.as_str())
            && has("-namespace", launch.name.namespace.as_str())
            && has("-address", &launch.events.to_string_lossy())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter(|pid| ours(*pid)) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}
