//! What is asked of a task that stands: start, signals, freezing, limits, numbers.

use crate::engine::{Engine, QUICK, blocking, left};
use crate::lifecycle::{Input, May, Process};
use crate::live::{Live, Tracked};
use crate::lost::Loss;
use crate::make::about;
use crate::metrics;
use crate::record::Name;
use crate::runtime::any;
use crate::shim::ShimError;
use crate::store::StoreError;
use bus::Ctx;
use containerd_shim_protos::api;
use contracts::tasks::{
    Checkpoint, CloseStdin, Kill, Measured, Resize, Start, Stdin, Task, Update,
};
use contracts::{Code, ContainerId, Error, ExecId, Fd, Result, Timestamp};
use protobuf::Message;
use std::rc::Rc;
use std::time::Duration;

const KILL: u32 = 9;
/// How long before and after the start of this process a call may be one that a predecessor was asked.
const AROUND: Duration = Duration::from_secs(10);
/// Most that a runtime may take for a change.
const CHANGE: Duration = Duration::from_secs(60);

fn name(ctx: &Ctx, id: &ContainerId) -> Result<Name> {
    Ok(Name {
        namespace: ctx.namespace()?.clone(),
        id: id.clone(),
    })
}

fn exec_id(exec: Option<&ExecId>) -> String {
    exec.map(ToString::to_string).unwrap_or_default()
}

impl Engine {
    /// Starts the first process, or an added one.
    pub(crate) async fn start(self: &Rc<Self>, ctx: &Ctx, request: Start) -> Result<Task> {
        let name = name(ctx, &request.id)?;
        let exec = request.exec.as_ref();
        if let Some(task) = self.store.replied(&ctx.operation).await? {
            return Ok(task);
        }
        let (live, tracked) = self.tracked(&name, exec)?;
        let turn = match exec {
            None => Some(live.turn.lock().await),
            Some(_) => {
                // Added processes start side by side, but not before it is known what a predecessor has started.
                drop(live.turn.lock().await);
                None
            }
        };
        let wanted = Input::Started { pid: 0 };
        let process = self.process(&live, exec).await?;
        if tracked.starting.get() {
            return Err(Error::precondition(format!(
                "{}: is being started",
                what(&name, exec)
            )));
        }
        let may = process.may(&wanted).map_err(|why| {
            let what = what(&name, exec);
            Error::from(StoreError::Refused { what, why })
        })?;
        let inputs = match may {
            May::IsDone => vec![wanted],
            May::Do => self.start_in_shim(ctx, &live, exec, &tracked).await?,
        };
        let exit = inputs.iter().find_map(|input| match input {
            Input::Exited(exit) => Some(exit.clone()),
            _ => None,
        });
        let operation = Some(&ctx.operation);
        let task = match exec {
            None => self.store.change(&name, operation, inputs).await?,
            Some(exec) => {
                self.store
                    .change_exec(&name, exec, operation, inputs)
                    .await?
            }
        };
        faults::point("tasks.start.recorded");
        drop(turn);
        if let Some(exit) = exit {
            tracked.tell(exit);
            self.retire(&live);
        }
        Ok(task)
    }

    /// Answers what happened: a short process may have ended before its start was answered.
    async fn start_in_shim(
        self: &Rc<Self>,
        ctx: &Ctx,
        live: &Rc<Live>,
        exec: Option<&ExecId>,
        tracked: &Tracked,
    ) -> Result<Vec<Input>> {
        let request = api::StartRequest {
            id: live.name.id.to_string(),
            exec_id: exec_id(exec),
            ..Default::default()
        };
        tracked.starting.set(true);
        let answer = live
            .call::<_, api::StartResponse>("Start", &request, left(ctx, CHANGE))
            .await;
        faults::point("tasks.start.started");
        let answer = match answer {
            Ok(answer) => Ok(answer.pid),
            Err(refused) => self.was_started(live, exec, &refused).await.ok_or(refused),
        };
        tracked.starting.set(false);
        let early = tracked.early.take();
        match answer {
            Ok(pid) => {
                let mut inputs = vec![Input::Started { pid }];
                inputs.extend(early.map(Input::Exited));
                Ok(inputs)
            }
            Err(error) => {
                if let Some(exit) = early {
                    self.ended(live, exec, tracked, exit).await;
                }
                self.retire(live);
                Err(Error::from(error).context(what(&live.name, exec)))
            }
        }
    }

    /// Sends a signal.
    pub(crate) async fn kill(self: &Rc<Self>, ctx: &Ctx, request: Kill) -> Result<()> {
        let name = name(ctx, &request.id)?;
        let exec = request.exec.as_ref();
        if self.store.replied::<()>(&ctx.operation).await?.is_some() {
            return Ok(());
        }
        let (live, tracked) = self.tracked(&name, exec)?;
        let ended = || Error::not_found(format!("{}: has ended", what(&name, exec)));
        let end = tracked.exit().borrow().clone();
        if let Some(exit) = end {
            return match self.may_be_its_doing(&live, exit.exited_at) {
                true => Ok(()),
                false => Err(ended()),
            };
        }
        let message = api::KillRequest {
            id: request.id.to_string(),
            exec_id: exec_id(exec),
            signal: request.signal,
            all: request.all,
            ..Default::default()
        };
        let sent = live
            .call::<_, api::Empty>("Kill", &message, left(ctx, QUICK))
            .await;
        faults::point("tasks.kill.sent");
        match sent {
            // A repetition would send it twice, or find nobody left to send it to.
            Ok(_) => Ok(self.store.answered(&ctx.operation).await?),
            Err(error) if error.is(ttrpc::Code::NOT_FOUND) => {
                match self.may_be_its_doing(&live, Timestamp::now()) {
                    true => Ok(()),
                    false => Err(ended()),
                }
            }
            // Who wants it dead need not wait for a shim that may never answer.
            Err(error) if error.is_silence() && exec.is_none() && request.signal == KILL => {
                self.lost(&live, &Loss::Silent(error.to_string())).await;
                Ok(self.store.answered(&ctx.operation).await?)
            }
            Err(error) => Err(Error::from(error).context(what(&name, exec))),
        }
    }

    /// Whether a signal may have brought an end about that a predecessor of this process sent and could not answer for:
    /// the call comes again then, and finds what it wanted done.
    fn may_be_its_doing(&self, live: &Live, end: Timestamp) -> bool {
        let (now, began) = (Timestamp::now().0, self.began.0);
        let around = i64::try_from(AROUND.as_nanos()).unwrap_or(i64::MAX);
        live.inherited.get() && now - began < around && end.0 > began - around
    }

    /// Freezes, or thaws.
    pub(crate) async fn freeze(&self, ctx: &Ctx, id: &ContainerId, input: Input) -> Result<()> {
        let name = name(ctx, id)?;
        if self.store.replied::<()>(&ctx.operation).await?.is_some() {
            return Ok(());
        }
        let live = self.live(&name)?;
        let _turn = live.turn.lock().await;
        let process = self.process(&live, None).await?;
        let may = process.may(&input).map_err(|why| {
            let what = what(&name, None);
            Error::from(StoreError::Refused { what, why })
        })?;
        if may == May::Do {
            let bound = left(ctx, CHANGE);
            self.freeze_in_shim(&live, &input, bound).await?;
            faults::point("tasks.freeze.done");
        }
        Ok(self
            .store
            .change_quietly(&name, &ctx.operation, input)
            .await?)
    }

    async fn freeze_in_shim(&self, live: &Live, input: &Input, bound: Duration) -> Result<()> {
        let id = live.name.id.to_string();
        let done: Result<api::Empty, ShimError> = if *input == Input::Paused {
            let request = api::PauseRequest {
                id,
                ..Default::default()
            };
            live.call("Pause", &request, bound).await
        } else {
            let request = api::ResumeRequest {
                id,
                ..Default::default()
            };
            live.call("Resume", &request, bound).await
        };
        done.map(drop).map_err(|error| about(&live.name, error))
    }

    /// Lists host process ids.
    pub(crate) async fn pids(&self, ctx: &Ctx, id: &ContainerId) -> Result<Vec<u32>> {
        let live = self.live(&name(ctx, id)?)?;
        let request = api::PidsRequest {
            id: id.to_string(),
            ..Default::default()
        };
        match live
            .call::<_, api::PidsResponse>("Pids", &request, left(ctx, QUICK))
            .await
        {
            Ok(answer) => Ok(answer.processes.iter().map(|process| process.pid).collect()),
            Err(_) if live.init.exit().borrow().is_some() => Ok(Vec::new()),
            Err(error) => Err(about(&live.name, error)),
        }
    }

    /// Measures a container.
    pub(crate) async fn metrics(&self, ctx: &Ctx, id: &ContainerId) -> Result<Measured> {
        let live = self.live(&name(ctx, id)?)?;
        self.attended(&live)?;
        let request = api::StatsRequest {
            id: id.to_string(),
            ..Default::default()
        };
        let answer: api::StatsResponse = live
            .call("Stats", &request, left(ctx, QUICK))
            .await
            .map_err(|error| about(&live.name, error))?;
        let stats = answer.stats.into_option().unwrap_or_default();
        metrics::measured(&stats).map_err(|error| about(&live.name, error))
    }

    /// Tells a terminal its size.
    pub(crate) async fn resize(&self, ctx: &Ctx, request: Resize) -> Result<()> {
        let name = name(ctx, &request.id)?;
        let exec = request.exec.as_ref();
        let (live, _) = self.tracked(&name, exec)?;
        if !self.stdio(&live, exec).await?.tty {
            return Err(Error::precondition(format!(
                "{}: has no terminal",
                what(&name, exec)
            )));
        }
        let message = api::ResizePtyRequest {
            id: request.id.to_string(),
            exec_id: exec_id(exec),
            width: request.width,
            height: request.height,
            ..Default::default()
        };
        self.tell(&live, exec, "ResizePty", &message, left(ctx, QUICK))
            .await
    }

    /// Opens the writing end of stdin.
    pub(crate) async fn stdin(&self, ctx: &Ctx, request: Stdin) -> Result<Fd> {
        let name = name(ctx, &request.id)?;
        let exec = request.exec.as_ref();
        let (live, _) = self.tracked(&name, exec)?;
        if !self.stdio(&live, exec).await?.stdin {
            return Err(Error::precondition(format!(
                "{}: has no stdin: ask for it in create or exec",
                what(&name, exec)
            )));
        }
        self.attended(&live)?;
        let path = crate::bundle::fifo_path(&live.launch.bundle, "stdin", exec);
        let end = blocking(move || crate::stdio::writer(&path, false)).await;
        end.map_err(|error| error.context(what(&name, exec)))
    }

    /// Ends stdin.
    pub(crate) async fn close_stdin(&self, ctx: &Ctx, request: CloseStdin) -> Result<()> {
        let name = name(ctx, &request.id)?;
        let exec = request.exec.as_ref();
        let (live, tracked) = self.tracked(&name, exec)?;
        if live.retired.get() {
            return Ok(());
        }
        let message = api::CloseIORequest {
            id: request.id.to_string(),
            exec_id: exec_id(exec),
            stdin: true,
            ..Default::default()
        };
        let closed = self
            .tell(&live, exec, "CloseIO", &message, left(ctx, QUICK))
            .await;
        tracked.held.take();
        closed
    }

    /// Changes limits.
    pub(crate) async fn update(&self, ctx: &Ctx, request: Update) -> Result<()> {
        let live = self.live(&name(ctx, &request.id)?)?;
        self.attended(&live)?;
        let checked = match request.resources.trim_start().starts_with('{') {
            true => serde_json::from_str::<oci_spec::runtime::LinuxResources>(&request.resources)
                .map(drop)
                .map_err(|e| e.to_string()),
            false => Err("must be a JSON object".to_owned()),
        };
        checked.map_err(|why| Error::invalid(format!("resources: {why}")))?;
        let resources = any(
            "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            request.resources.into_bytes(),
        );
        let message = api::UpdateTaskRequest {
            id: request.id.to_string(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        let done: Result<api::Empty, ShimError> =
            live.call("Update", &message, left(ctx, CHANGE)).await;
        done.map(drop).map_err(|error| {
            let error = error.otherwise(Code::InvalidArgument);
            error.context(format!("task {}", request.id))
        })
    }

    /// Saves a container's state, where its shim can.
    pub(crate) async fn checkpoint(&self, ctx: &Ctx, request: Checkpoint) -> Result<()> {
        let live = self.live(&name(ctx, &request.id)?)?;
        let options = containerd_shim_protos::shim::oci::CheckpointOptions {
            exit: request.exit,
            ..Default::default()
        };
        let bytes = options.write_to_bytes().unwrap_or_default();
        let message = api::CheckpointTaskRequest {
            id: request.id.to_string(),
            path: request.path,
            options: Some(any("containerd.runc.v1.CheckpointOptions", bytes)).into(),
            ..Default::default()
        };
        self.tell(&live, None, "Checkpoint", &message, left(ctx, CHANGE))
            .await
    }

    async fn tell<Q: Message>(
        &self,
        live: &Live,
        exec: Option<&ExecId>,
        method: &str,
        request: &Q,
        bound: Duration,
    ) -> Result<()> {
        self.attended(live)?;
        let done: Result<api::Empty, ShimError> = live.call(method, request, bound).await;
        done.map(drop)
            .map_err(|error| Error::from(error).context(what(&live.name, exec)))
    }

    async fn process(&self, live: &Live, exec: Option<&ExecId>) -> Result<Process> {
        let (store, name, exec) = (self.store.clone(), live.name.clone(), exec.cloned());
        blocking(move || match exec {
            None => Ok::<_, StoreError>(store.get(&name)?.process),
            Some(exec) => Ok(store.get_exec(&name, &exec)?.process),
        })
        .await
    }

    async fn stdio(&self, live: &Live, exec: Option<&ExecId>) -> Result<crate::record::Io> {
        let (store, name, exec) = (self.store.clone(), live.name.clone(), exec.cloned());
        blocking(move || match exec {
            None => Ok::<_, StoreError>(store.get(&name)?.stdio),
            Some(exec) => Ok(store.get_exec(&name, &exec)?.stdio),
        })
        .await
    }
}

fn what(name: &Name, exec: Option<&ExecId>) -> String {
    match exec {
        None => format!("task {}", name.id),
        Some(exec) => format!("exec {exec} of task {}", name.id),
    }
}
