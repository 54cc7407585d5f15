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
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// How long a shim that was told to end may take.
const ENDING: Duration = Duration::from_secs(3);
/// How long an empty parent cgroup stays, because the next container of the namespace would make it again.
const LINGER: Duration = Duration::from_millis(250);

/// Why a task has ended otherwise than by itself. Its text is what the task says.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Loss {
    #[error("its shim died, and what ran in it was ended ({0})")]
    Died(String),
    #[error("it was killed while its shim did not answer, so that was ended too ({0})")]
    Silent(String),
    #[error("the machine was started anew; nobody saw it end")]
    Rebooted,
}

impl Engine {
    /// Takes the death of a shim, or brings it about: clears what it left, and records the end of what ran in it.
    pub(crate) async fn lost(self: &Rc<Self>, live: &Rc<Live>, why: &Loss) {
        let known = live.init.exit().borrow().is_some();
        if known || live.leaving.replace(true) {
            return;
        }
        let reason = why.to_string();
        tracing::warn!(task = %live.name.id, reason, "a shim is lost");
        let seen = match self.clear(live).await {
            Ok(exit) if exit.exited_at != Timestamp(0) => exit,
            Ok(_) => unseen(),
            Err(error) => {
                tracing::warn!(task = %live.name.id, %error, "what a dead shim left was not cleared");
                unseen()
            }
        };
        faults::point("tasks.lost.cleared");
        if let Err(error) = self.store.lost(&live.name, seen.clone(), reason).await {
            tracing::error!(task = %live.name.id, %error, "the end of a lost task was not recorded");
        }
        live.all()
            .iter()
            .for_each(|process| process.tell(seen.clone()));
        faults::point("tasks.lost.recorded");
        live.leaving.set(false);
        self.retire(live);
    }

    /// Ends a shim, stuck or not, with everything that runs in it, and removes what it made but the bundle.
    pub(crate) async fn clear(&self, live: &Live) -> Result<Exit> {
        let known = live.launch.bundle.clone();
        let there = blocking(move || Ok::<_, Error>(known.exists())).await?;
        if there && !live.launch.program.own {
            let request = api::ShutdownRequest {
                id: live.name.id.to_string(),
                now: true,
                ..Default::default()
            };
            let second = Duration::from_secs(1);
            let _ = live
                .call::<_, api::Empty>("Shutdown", &request, second)
                .await;
        }
        let mut cgroups = self.end_shim(live).await?;
        faults::point("tasks.clear.shim-ended");
        let exit = match there {
            // It dies as easily as a shim does, and may be repeated.
            true => match live.launch.delete().await {
                Err(_) => live.launch.delete().await,
                done => done,
            },
            false => Ok(unseen()),
        };
        live.hang_up();
        faults::point("tasks.clear.container-deleted");
        let (store, name, rebooted) = (self.store.clone(), live.name.clone(), self.rebooted.get());
        blocking(move || {
            // What stood there before the machine was started is gone, and what stands there now is not ours.
            let record = store.get(&name).ok().filter(|_| !rebooted);
            cgroups.extend(record.map(|record| record.cgroup));
            let left: Vec<_> = cgroups.iter().filter(|path| !cgroup::end(path)).collect();
            match left.is_empty() {
                true => Ok(()),
                false => Err(Error::internal(format!(
                    "what runs in {left:?} does not end"
                ))),
            }
        })
        .await?;
        exit
    }

    /// Kills the processes of a shim, stuck or not; answers the cgroups its children were in.
    async fn end_shim(&self, live: &Live) -> Result<BTreeSet<String>> {
        let (host, launch) = (self.host.clone(), live.launch.clone());
        blocking(move || Ok::<_, Error>(host.end(&launch))).await
    }

    /// Frees the bundle's path. A stock shim keeps its folder and its socket's name until it has ended (see [`Engine::bury`]).
    ///
    /// While the name is still taken, so that what stands of the container's cgroup is not the next one's.
    pub(crate) async fn set_aside(&self, live: &Live) {
        let (bundle, cgroup) = (live.launch.bundle.clone(), live.launch.cgroup.clone());
        if let Err(error) = blocking(move || bundle::note_standing(&bundle, &cgroup)).await {
            tracing::warn!(%error, "what is left of a container is not noted");
        }
        if !live.launch.program.own {
            return;
        }
        let (bundle, gone) = (
            live.launch.bundle.clone(),
            self.layout.grave(&live.launch.socket),
        );
        let moved = blocking(move || bundle::set_aside(&bundle, &gone)).await;
        faults::point("tasks.set-aside.moved");
        if let Err(error) = moved {
            tracing::warn!(%error, "a bundle stays until tasks starts again");
        }
    }

    /// Removes the bundle when its shim has let go of it, aside; the next task of the name waits where it must.
    pub(crate) fn bury(self: &Rc<Self>, live: &Rc<Live>) {
        let own = live.launch.program.own;
        let bundle = if own {
            self.layout.grave(&live.launch.socket)
        } else {
            live.launch.bundle.clone()
        };
        let launch = Launch {
            bundle: bundle.clone(),
            ..live.launch.clone()
        };
        let (socket, host) = (launch.socket.clone(), self.host.clone());
        let ending = launch.clone();
        self.ending.borrow_mut().insert(socket.clone(), ending);
        let engine = Rc::downgrade(self);
        let (name, live) = (live.name.clone(), live.clone());
        let burial = tokio::task::spawn_local(async move {
            let ended = gone(&live).await;
            faults::point("tasks.bury.gone");
            drop(live);
            let used = engine.upgrade().map(|engine| engine.cgroups_in_use());
            let finish = move || {
                if !ended {
                    host.end(&launch);
                }
                if launch.program.own {
                    // One that was killed on its way out could not do it.
                    let _ = std::fs::remove_file(&launch.socket);
                }
                bundle::finish(&bundle, &used.unwrap_or_default())
            };
            if let Err(error) = blocking(finish).await {
                tracing::warn!(%error, "a bundle stays for the auditor");
            }
            if let Some(engine) = engine.upgrade() {
                engine.ending.borrow_mut().remove(&socket);
            }
        });
        if !own {
            let mut burials = self.burials.borrow_mut();
            burials.retain(|_, burial| !burial.is_finished());
            burials.insert(name, burial);
        }
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

/// Waits until the shim has closed our connection: it has then removed its own files. Says whether it has.
async fn gone(live: &Live) -> bool {
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
    let ended = tokio::time::timeout(ENDING, closed).await.is_ok();
    for process in live.all() {
        process.pumps.take();
        process.held.take();
    }
    ended
}
