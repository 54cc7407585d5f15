//! Delete.

use crate::engine::{Engine, QUICK, STATE, blocking, left};
use crate::launch::time;
use crate::lifecycle::Phase;
use crate::live::Live;
use crate::make::about;
use crate::record::{Name, Record};
use crate::shim::ShimError;
use bus::Ctx;
use containerd_shim_protos::api;
use contracts::tasks::{Delete, Exit};
use contracts::{Error, ExecId, Result, Timestamp};
use std::rc::Rc;
use std::time::Duration;

/// How long a killed process may take to end before delete gives up.
const DYING: Duration = Duration::from_secs(10);
/// How long a shim may take to remove a container.
const REMOVAL: Duration = Duration::from_secs(20);
/// How long a shim may take to end. Source: containerd, `io.containerd.timeout.shim.shutdown`.
const SHUTDOWN: Duration = Duration::from_secs(3);
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
        faults::point("tasks.delete.stopped");
        live.leaving.set(true);
        let deleted = self.delete_task(ctx, &live, answers).await;
        live.leaving.set(deleted.is_ok() || live.retired.get());
        deleted
    }

    async fn delete_task(
        self: &Rc<Self>,
        ctx: &Ctx,
        live: &Rc<Live>,
        answers: bool,
    ) -> Result<Exit> {
        if live.retired.get() {
            let exit = self
                .store
                .deleted(&live.name, &ctx.operation, unseen())
                .await?;
            self.remove(&live.name);
            return Ok(exit);
        }
        let exit = self.end_container(live, answers).await?;
        faults::point("tasks.delete.container-ended");
        // What is still there of the shim when tasks dies now has no row any more, and goes when tasks starts.
        let (_, _, deleted) = tokio::join!(
            self.shut_down(live),
            self.set_aside(live),
            self.store.deleted(&live.name, &ctx.operation, exit)
        );
        let exit = deleted?;
        faults::point("tasks.delete.recorded");
        live.all()
            .iter()
            .for_each(|process| process.tell(exit.clone()));
        self.remove(&live.name);
        self.bury(live);
        self.sweep_cgroups_of(&live.name.namespace);
        Ok(exit)
    }

    /// Has the container removed, by its shim or in its stead; answers how it ended, as far as that can be seen now.
    pub(crate) async fn end_container(&self, live: &Live, answers: bool) -> Result<Exit> {
        let asked = match answers {
            true => self.delete_in_shim(live).await,
            false => Err(ShimError::Silent(QUICK)),
        };
        match asked {
            Ok(exit) => Ok(exit),
            Err(error) if error.is(ttrpc::Code::NOT_FOUND) => Ok(unseen()),
            Err(error @ ShimError::Refused { .. }) => Err(about(&live.name, error)),
            Err(ShimError::Silent(_) | ShimError::Stopped(_) | ShimError::Gone(_)) => {
                Ok(self.clear(live).await.unwrap_or_else(|_| unseen()))
            }
        }
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
        faults::point("tasks.delete-exec.deleted");
        let exit = match answer {
            Ok(answer) => Exit {
                exit_code: answer.exit_status,
                exited_at: crate::watch::moment(answer.exited_at.as_ref()),
            },
            Err(error) if error.is(ttrpc::Code::NOT_FOUND) => unseen(),
            Err(ShimError::Gone(_)) if live.retired.get() || !record.process.alive() => unseen(),
            Err(error) => return Err(Error::from(error).context(what())),
        };
        let exit = self
            .store
            .exec_deleted(&live.name, exec, &ctx.operation, exit)
            .await?;
        faults::point("tasks.delete-exec.recorded");
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
            Err(ShimError::Silent(_) | ShimError::Stopped(_) | ShimError::Gone(_)) => {
                return Ok(false);
            }
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

    pub(crate) async fn shut_down(&self, live: &Live) {
        let request = api::ShutdownRequest {
            id: live.name.id.to_string(),
            ..Default::default()
        };
        let _ = live
            .call::<_, api::Empty>("Shutdown", &request, SHUTDOWN)
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
