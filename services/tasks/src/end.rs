//! Delete, and what is done about a shim that is gone or stuck.

use crate::bundle;
use crate::cgroup;
use crate::engine::{Engine, QUICK, STATE, blocking, left};
use crate::launch::{Launch, time};
use crate::lifecycle::Phase;
use crate::live::Live;
use crate::make::about;
use crate::shim::ShimError;
use crate::store::{Name, Record};
use bus::Ctx;
use containerd_shim_protos::api;
use contracts::tasks::{Delete, Exit};
use contracts::{Error, ExecId, Namespace, Result, Timestamp};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// How long a killed process may take to end before delete gives up.
const DYING: Duration = Duration::from_secs(10);
/// How long a shim may take to remove a container.
const REMOVAL: Duration = Duration::from_secs(20);
/// How long a shim may take to end. Source: containerd, `io.containerd.timeout.shim.shutdown`.
const SHUTDOWN: Duration = Duration::from_secs(3);
/// How long an empty parent cgroup stays, because the next container of the namespace would make it again.
const LINGER: Duration = Duration::from_millis(250);
const KILL: u32 = 9;
/// What a process ended with that nobody saw end. Source: contracts, `tasks::Exit`.
pub(crate) const UNSEEN: u32 = 255;

impl Engine {
    /// Removes a stopped task, or an added process.
    pub(crate) async fn delete(self: &Rc<Self>, ctx: &Ctx, request: Delete) -> Result<Exit> {
        let name = Name {
            namespace: ctx.namespace()?.clone(),
            id: request.id,
        };
        if let Some(exit) = self.store.replied(&ctx.operation).await? {
            return Ok(exit);
        }
        let live = self.live(&name)?;
        if let Some(exec) = &request.exec {
            return self.delete_exec(ctx, &live, exec, request.force).await;
        }
        let _turn = tokio::time::timeout(left(ctx, REMOVAL), live.turn.lock())
            .await
            .map_err(|_| Error::deadline(format!("task {}: is busy", name.id)))?;
        let wanted = name.clone();
        let store = self.store.clone();
        let record = blocking(move || store.get(&wanted)).await?;
        let answers = self.stop(ctx, &live, &record, request.force).await?;
        live.leaving.set(true);
        let deleted = self.delete_task(ctx, &live, &record, answers).await;
        live.leaving.set(deleted.is_err());
        deleted
    }

    async fn delete_task(
        self: &Rc<Self>,
        ctx: &Ctx,
        live: &Rc<Live>,
        record: &Record,
        answers: bool,
    ) -> Result<Exit> {
        let asked = match answers {
            true => self.delete_in_shim(live).await,
            false => Err(ShimError::Silent(QUICK)),
        };
        let exit = match asked {
            Ok(exit) => exit,
            Err(error) if error.is(ttrpc::Code::NOT_FOUND) => {
                record.process.exit.clone().unwrap_or_else(unseen)
            }
            Err(error @ ShimError::Refused { .. }) => return Err(about(&live.name, error)),
            Err(ShimError::Silent(_) | ShimError::Gone(_)) => {
                let seen = self.clear(live).await.unwrap_or_else(|_| unseen());
                record.process.exit.clone().unwrap_or(seen)
            }
        };
        // What is still there of the shim when tasks dies now has no row any more, and goes when tasks starts.
        let (_, _, deleted) = tokio::join!(
            self.shut_down(live),
            self.set_aside(live),
            self.store.deleted(&live.name, &ctx.operation, exit)
        );
        let exit = deleted?;
        live.all()
            .iter()
            .for_each(|process| process.tell(exit.clone()));
        self.remove(&live.name);
        self.bury(live);
        self.sweep_cgroups_of(&live.name.namespace);
        Ok(exit)
    }

    async fn delete_in_shim(&self, live: &Live) -> Result<Exit, ShimError> {
        let request = api::DeleteRequest {
            id: live.name.id.to_string(),
            ..Default::default()
        };
        let answer: api::DeleteResponse = live.call("Delete", &request, REMOVAL).await?;
        Ok(Exit {
            exit_code: answer.exit_status,
            exited_at: time(answer.exited_at.as_ref()),
        })
    }

    async fn delete_exec(
        self: &Rc<Self>,
        ctx: &Ctx,
        live: &Rc<Live>,
        exec: &ExecId,
        force: bool,
    ) -> Result<Exit> {
        let (store, name, wanted) = (self.store.clone(), live.name.clone(), exec.clone());
        let record = blocking(move || store.get_exec(&name, &wanted)).await?;
        let what = || format!("exec {exec} of task {}", live.name.id);
        if record.process.phase == Phase::Running {
            if !force {
                return Err(still_running(&what()));
            }
            self.end(ctx, live, Some(exec), &what()).await?;
        }
        let request = api::DeleteRequest {
            id: live.name.id.to_string(),
            exec_id: exec.to_string(),
            ..Default::default()
        };
        let answer = live
            .call::<_, api::DeleteResponse>("Delete", &request, left(ctx, REMOVAL))
            .await;
        let exit = match answer {
            Ok(answer) => Exit {
                exit_code: answer.exit_status,
                exited_at: crate::watch::moment(answer.exited_at.as_ref()),
            },
            Err(error) if error.is(ttrpc::Code::NOT_FOUND) => unseen(),
            Err(ShimError::Gone(_)) if !record.process.alive() => unseen(),
            Err(error) => return Err(Error::from(error).context(what())),
        };
        let exit = self
            .store
            .exec_deleted(&live.name, exec, &ctx.operation, exit)
            .await?;
        if let Some(process) = live.process(Some(exec)) {
            process.tell(exit.clone());
        }
        live.drop_exec(exec);
        Ok(exit)
    }

    /// Sees to it that the first process has ended; one that was never started is ended without being asked to.
    /// Says whether the shim answers.
    async fn stop(&self, ctx: &Ctx, live: &Rc<Live>, record: &Record, force: bool) -> Result<bool> {
        let what = format!("task {}", live.name.id);
        match record.process.phase {
            Phase::Stopped => Ok(true),
            Phase::Running | Phase::Paused if !force => Err(still_running(&what)),
            Phase::Paused if !live.launch.program.own => {
                self.thaw(live);
                self.end(ctx, live, None, &what).await
            }
            _ => self.end(ctx, live, None, &what).await,
        }
    }

    /// Kills a process and waits until its end is recorded; says whether the shim answers.
    async fn end(&self, ctx: &Ctx, live: &Live, exec: Option<&ExecId>, what: &str) -> Result<bool> {
        let request = api::KillRequest {
            id: live.name.id.to_string(),
            exec_id: exec.map(ToString::to_string).unwrap_or_default(),
            signal: KILL,
            all: exec.is_none(),
            ..Default::default()
        };
        let bound = if live.doubt().is_empty() {
            QUICK
        } else {
            STATE
        };
        match live.call::<_, api::Empty>("Kill", &request, bound).await {
            Err(ShimError::Silent(_) | ShimError::Gone(_)) => return Ok(false),
            Err(error) if !error.is(ttrpc::Code::NOT_FOUND) => {
                return Err(Error::from(error).context(what));
            }
            _ => {}
        }
        let Some(process) = live.process(exec) else {
            return Ok(true);
        };
        let mut exit = process.exit();
        let ended = exit.wait_for(Option::is_some);
        match tokio::time::timeout(left(ctx, DYING), ended).await {
            Ok(_) => Ok(true),
            Err(_) => Err(Error::deadline(format!(
                "{what}: was killed and does not end: try again"
            ))),
        }
    }

    /// A frozen process dies only when it is thawed; our own shim sees to that itself. Aside, to come after the signal.
    fn thaw(&self, live: &Rc<Live>) {
        let live = live.clone();
        tokio::task::spawn_local(async move {
            let request = api::ResumeRequest {
                id: live.name.id.to_string(),
                ..Default::default()
            };
            let _ = live.call::<_, api::Empty>("Resume", &request, QUICK).await;
        });
    }

    async fn shut_down(&self, live: &Live) {
        let request = api::ShutdownRequest {
            id: live.name.id.to_string(),
            ..Default::default()
        };
        let _ = live
            .call::<_, api::Empty>("Shutdown", &request, SHUTDOWN)
            .await;
    }

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
        let (name, live) = (live.name.clone(), live.clone());
        let burial = tokio::task::spawn_local(async move {
            gone(&live).await;
            drop(live);
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

fn still_running(what: &str) -> Error {
    Error::precondition(format!(
        "{what}: is running: kill it first, or delete with force"
    ))
}

/// The end of what nobody saw end.
pub(crate) fn unseen() -> Exit {
    Exit {
        exit_code: UNSEEN,
        exited_at: Timestamp::now(),
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
    let _ = tokio::time::timeout(SHUTDOWN, closed).await;
    for process in live.all() {
        process.pumps.take();
        process.held.take();
    }
}

/// Kills a stock shim that does not end by itself: the process that runs its program for this very task.
fn kill_server(launch: &Launch) {
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
