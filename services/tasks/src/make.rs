//! Create: from a record to a container that waits for its start; and the way back when that fails.
//!
//! The journal row and the shim's start run side by side: until the row is on disk there is only a bundle and a shim in
//! it, and a bundle without a row is undone when tasks starts. Mounts, cgroups and processes come with `Create`, after it.

use crate::bundle::{self, Spec};
use crate::engine::{Engine, blocking, left};
use crate::launch::{Launch, Listening};
use crate::lifecycle::Process;
use crate::live::Live;
use crate::record::{Io, Name, Record};
use crate::runtime::{self, Choice};
use crate::stdio::Streams;
use bus::Ctx;
use containerd_shim_protos::api;
use contracts::containers::{self, Container};
use contracts::tasks::{Create, Task};
use contracts::{Code, Error, Mount, Result, Timestamp, snapshots};
use std::rc::Rc;
use std::time::Duration;

/// Most that a shim may take for one step, whatever the caller would wait.
const STEP: Duration = Duration::from_secs(120);
/// How long the removal of a predecessor's bundle may hold up a new task.
const BURIAL: Duration = Duration::from_secs(5);

/// All that is decided before anything is done.
#[derive(Clone)]
struct Plan {
    spec: Spec,
    choice: Choice,
    rootfs: Vec<Mount>,
    stdio: Io,
    made: Timestamp,
    /// When the container's record was made: another one of the same name has other logs.
    container: Timestamp,
}

impl Engine {
    /// Sets up a task.
    pub(crate) async fn create(self: &Rc<Self>, ctx: &Ctx, request: Create) -> Result<Task> {
        let name = Name {
            namespace: ctx.namespace()?.clone(),
            id: request.id.clone(),
        };
        let get = containers::Get {
            id: request.id.clone(),
        };
        let (replied, container) =
            tokio::join!(self.store.replied(&ctx.operation), self.bus.call(ctx, get));
        if let Some(task) = replied? {
            return Ok(task);
        }
        let plan = self.plan(ctx, container?, request).await?;
        match self.attempt(ctx, &name, plan.clone()).await {
            // Its shim died on the way, and nothing is left of that: the next one need not.
            Err(error) if error.is(Code::Unavailable) => {
                // Another moment, for its socket and its grave are named after that.
                let made = Timestamp::now();
                self.attempt(ctx, &name, Plan { made, ..plan }).await
            }
            made => made,
        }
    }

    /// Makes a task, or leaves nothing of it. Errors: `Unavailable` when its shim died meanwhile.
    async fn attempt(self: &Rc<Self>, ctx: &Ctx, name: &Name, plan: Plan) -> Result<Task> {
        let live = self.enter(ctx, name, &plan).await?;
        let _turn = live.turn.lock().await;
        let made = self.make(ctx, &live, plan).await;
        if made.is_err() {
            self.undo(&live).await;
        }
        made
    }

    async fn plan(&self, ctx: &Ctx, container: Container, request: Create) -> Result<Plan> {
        let choice = runtime::choose(&container.runtime, &self.own)?;
        let driver = container.snapshotter.as_str();
        let rootfs = match (request.rootfs, container.snapshot_key) {
            (Some(mounts), _) => mounts,
            (None, Some(key)) if !driver.is_empty() => {
                self.bus
                    .call_named(driver, ctx, snapshots::Mounts { key })
                    .await?
            }
            _ => Vec::new(),
        };
        let spec = Spec::read(&container.spec, !rootfs.is_empty())?;
        let stdio = Io {
            tty: spec.tty,
            stdin: request.stdio.stdin,
            discard: request.stdio.discard,
        };
        Ok(Plan {
            spec,
            choice,
            rootfs,
            stdio,
            made: Timestamp::now(),
            container: container.created_at,
        })
    }

    /// Takes the name. One that is still being given up, or found out about, is waited for.
    async fn enter(&self, ctx: &Ctx, name: &Name, plan: &Plan) -> Result<Rc<Live>> {
        if let Some(other) = self.find(name) {
            let _ = tokio::time::timeout(left(ctx, STEP), other.turn.lock()).await;
        }
        let burial = self.burials.borrow_mut().remove(name);
        if let Some(burial) = burial {
            let _ = tokio::time::timeout(BURIAL, burial).await;
        }
        if self.find(name).is_some() {
            return Err(crate::store::StoreError::Exists(name.clone()).into());
        }
        let launch = Launch::new(plan.choice.program.clone(), name, plan.made, &self.layout);
        let cgroup = plan.spec.cgroup.clone();
        let launch = Launch { cgroup, ..launch };
        let live = Rc::new(Live::new(launch, None, None));
        self.insert(live.clone());
        Ok(live)
    }

    async fn make(self: &Rc<Self>, ctx: &Ctx, live: &Rc<Live>, plan: Plan) -> Result<Task> {
        let record = record(live, &plan);
        let journal = async {
            let journaled = self.store.intend(&live.name, record).await;
            faults::point("tasks.create.journaled");
            journaled
        };
        let (journaled, started) = tokio::join!(journal, self.launch(live, &plan));
        journaled?;
        let (listening, streams) = started?;
        live.listens(listening.clone());
        // A shim may open its ends only after we have opened ours.
        streams.attend(&live.init)?;
        let bound = left(ctx, STEP);
        let request = request(live, plan, &streams);
        let _cgroups = self.cgroups.read().await;
        let made: api::CreateTaskResponse = live.call("Create", &request, bound).await?;
        faults::point("tasks.create.made");
        self.watch(live, None);
        let Listening { address, api } = listening;
        let stands = (made.pid, address, api);
        let task = self.store.created(&live.name, &ctx.operation, stands).await;
        faults::point("tasks.create.recorded");
        Ok(task?)
    }

    /// Makes bundle and log folder, and starts the shim on it.
    async fn launch(&self, live: &Live, plan: &Plan) -> Result<(Listening, Streams)> {
        let (layout, name, launch) = (self.layout.clone(), live.name.clone(), live.launch.clone());
        let (spec, stdio, container) = (plan.spec.clone(), plan.stdio, plan.container);
        let streams = blocking(move || -> Result<Streams> {
            // What a crash left behind: nobody knows of it any more.
            bundle::remove(&launch.bundle)?;
            bundle::make(&launch, &spec)?;
            faults::point("tasks.create.bundle-made");
            crate::logs::folder::open(&layout.logs(&name), container)?;
            let log = layout.log(&name, None);
            Streams::make(&launch, &log, None, stdio)
        })
        .await?;
        faults::point("tasks.create.streams-made");
        let shim_log = streams.shim_log()?;
        if let Some(shim_log) = shim_log {
            live.keep(shim_log);
        }
        let listening = live.launch.start(plan.choice.options.as_ref()).await?;
        faults::point("tasks.create.shim-started");
        Ok((listening, streams))
    }

    /// Takes back all that a failed create did to the host.
    pub(crate) async fn undo(self: &Rc<Self>, live: &Rc<Live>) {
        live.leaving.set(true);
        let _ = self.clear(live).await;
        faults::point("tasks.undo.cleared");
        if let Err(error) = self.store.forget(&live.name).await {
            // It is undone again when tasks starts.
            tracing::warn!(task = %live.name.id, %error, "a failed create was not forgotten");
        }
        faults::point("tasks.undo.forgotten");
        self.set_aside(live).await;
        self.remove(&live.name);
        self.bury(live);
        self.sweep_cgroups_of(&live.name.namespace);
    }
}

fn record(live: &Live, plan: &Plan) -> Record {
    Record {
        id: live.name.id.clone(),
        process: Process::creating(),
        created_at: plan.made,
        reason: String::new(),
        stdio: plan.stdio,
        bundle: live.launch.bundle.to_string_lossy().into_owned(),
        shim: live.launch.program.clone(),
        address: String::new(),
        api: 0,
        cgroup: plan.spec.cgroup.clone(),
        oom_at: Timestamp(0),
    }
}

fn request(live: &Live, plan: Plan, streams: &Streams) -> api::CreateTaskRequest {
    api::CreateTaskRequest {
        id: live.name.id.to_string(),
        bundle: live.launch.bundle.to_string_lossy().into_owned(),
        rootfs: plan.rootfs.into_iter().map(mount).collect(),
        terminal: plan.stdio.tty,
        stdin: streams.stdin.clone(),
        stdout: streams.stdout.clone(),
        stderr: streams.stderr.clone(),
        options: plan.choice.options.into(),
        ..Default::default()
    }
}

fn mount(mount: Mount) -> api::Mount {
    api::Mount {
        type_: mount.fs_type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
        ..Default::default()
    }
}

/// Puts the runtime's own words behind the task's name.
pub(crate) fn about(name: &Name, error: impl Into<Error>) -> Error {
    error.into().context(format!("task {}", name.id))
}
