//! Tasks: the running instances of containers.

use super::logs::EXEC;
use crate::convert::task::{ExitView, MetricsView, TaskView};
use crate::convert::{DryView, text};
use crate::errors::Answer;
use crate::lists;
use crate::param::{self, Kind};
use crate::request::{Request, created, nothing, ok};
use crate::router::{Route, delete, get, post};
use crate::signal::Signal;
use contracts::tasks::{
    Checkpoint, Create, Delete, Get, Kill, List, Metrics, Pause, Pids, Resume, Start, Stdio,
    Update, Wait,
};
use contracts::{ContainerId, Error, ExecId, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces/{ns}/tasks", list)
            .says("Tasks, by id")
            .lists::<TaskView>(),
        post("/v1/namespaces/{ns}/tasks", create)
            .says("Sets up the task of a container; its first process waits for :start")
            .takes::<CreateBody>()
            .answers::<TaskView>()
            .status(201),
        get("/v1/namespaces/{ns}/tasks/{id}", show)
            .says("One task")
            .answers::<TaskView>(),
        delete("/v1/namespaces/{ns}/tasks/{id}", remove)
            .says("Removes a stopped task and answers how it ended")
            .query(&[param::flag("force", "Kill a running one first")])
            .dry()
            .answers::<ExitView>(),
        post("/v1/namespaces/{ns}/tasks/{id}:start", start)
            .says("Starts the first process")
            .answers::<TaskView>(),
        post("/v1/namespaces/{ns}/tasks/{id}:kill", kill)
            .says("Sends a signal, SIGTERM when none is named")
            .takes::<KillBody>()
            .status(204),
        post("/v1/namespaces/{ns}/tasks/{id}:pause", pause)
            .says("Freezes all processes")
            .answers::<TaskView>(),
        post("/v1/namespaces/{ns}/tasks/{id}:resume", resume)
            .says("Thaws all processes")
            .answers::<TaskView>(),
        post("/v1/namespaces/{ns}/tasks/{id}:update", update)
            .says("Changes the limits of a running container")
            .takes::<UpdateBody>()
            .status(204),
        post("/v1/namespaces/{ns}/tasks/{id}:checkpoint", checkpoint)
            .says("Saves a running container's state for a later restore")
            .takes::<CheckpointBody>()
            .status(204),
        get("/v1/namespaces/{ns}/tasks/{id}/wait", wait)
            .says("Answers when the process has ended; everything it wrote is in the log by then")
            .query(&[
                EXEC,
                param::of(
                    "for",
                    Kind::Choice(&["exited"]),
                    "exited, the only state that can be waited for",
                ),
            ])
            .answers::<ExitView>(),
        get("/v1/namespaces/{ns}/tasks/{id}/pids", pids)
            .says("Host process ids of the container")
            .answers::<PidsView>(),
        get("/v1/namespaces/{ns}/tasks/{id}/metrics", metrics)
            .says("What the container uses now")
            .answers::<MetricsView>(),
    ]
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    lists::listed::<TaskView, _, _>(&request, List { paging }).await
}

/// A task to set up.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTask)]
struct CreateBody {
    /// The container.
    #[schema(value_type = String, pattern = "^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$", max_length = 76)]
    id: ContainerId,
    /// Whether the process has a terminal, as its spec says.
    #[serde(default)]
    tty: bool,
    /// Whether stdin stays open for writers that come later.
    #[serde(default)]
    stdin: bool,
    /// Keep no log: output is dropped.
    #[serde(default)]
    discard: bool,
}

async fn create(mut request: Request) -> Answer {
    let body: CreateBody = request.json().await?;
    let create = Create {
        id: body.id,
        rootfs: None,
        stdio: Stdio {
            tty: body.tty,
            stdin: body.stdin,
            discard: body.discard,
        },
    };
    let place = format!("/v1/namespaces/{}/tasks/{}", request.text("ns"), create.id);
    created(&place, TaskView::from(request.call(create).await?))
}

async fn now(request: &Request) -> Result<TaskView> {
    let id = request.part("id")?;
    Ok(request.call(Get { id }).await?.into())
}

async fn show(request: Request) -> Answer {
    ok(now(&request).await?)
}

async fn remove(request: Request) -> Answer {
    if request.dry_run()? {
        return ok(DryView::would("remove the task", now(&request).await?));
    }
    let delete = Delete {
        id: request.part("id")?,
        exec: None,
        force: request.flag("force")?,
    };
    ok(ExitView::from(request.call(delete).await?))
}

async fn start(request: Request) -> Answer {
    let start = Start {
        id: request.part("id")?,
        exec: None,
    };
    ok(TaskView::from(request.call(start).await?))
}

/// A signal to send.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Kill)]
pub(super) struct KillBody {
    /// `SIGTERM`, `TERM` or `15`.
    #[schema(value_type = String)]
    pub(super) signal: Signal,
    /// Whether every process of the container gets it.
    all: bool,
    /// The added process instead of the first.
    exec: Option<String>,
}

async fn kill(mut request: Request) -> Answer {
    let body: KillBody = request.json().await?;
    let kill = Kill {
        id: request.part("id")?,
        exec: body.exec.map(ExecId::new).transpose()?,
        signal: body.signal.0,
        all: body.all,
    };
    request.call(kill).await?;
    nothing()
}

async fn pause(request: Request) -> Answer {
    let id = request.part("id")?;
    request.call(Pause { id }).await?;
    ok(now(&request).await?)
}

async fn resume(request: Request) -> Answer {
    let id = request.part("id")?;
    request.call(Resume { id }).await?;
    ok(now(&request).await?)
}

/// New limits.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TaskUpdate)]
struct UpdateBody {
    /// OCI runtime-spec `linux.resources`.
    #[schema(value_type = Object)]
    resources: Value,
}

async fn update(mut request: Request) -> Answer {
    let body: UpdateBody = request.json().await?;
    let update = Update {
        id: request.part("id")?,
        resources: text("resources", &body.resources)?,
    };
    request.call(update).await?;
    nothing()
}

/// Where to save a container's state.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Checkpoint)]
struct CheckpointBody {
    /// Absolute host folder that receives the image.
    path: String,
    /// Whether the task ends.
    #[serde(default)]
    exit: bool,
}

async fn checkpoint(mut request: Request) -> Answer {
    let body: CheckpointBody = request.json().await?;
    let checkpoint = Checkpoint {
        id: request.part("id")?,
        path: body.path,
        exit: body.exit,
    };
    request.call(checkpoint).await?;
    nothing()
}

async fn wait(request: Request) -> Answer {
    if let Some(state) = request.query("for").filter(|state| *state != "exited") {
        return Err(Error::invalid(format!("parameter for={state}: must be exited")).into());
    }
    let wait = Wait {
        id: request.part("id")?,
        exec: request.query("exec").map(ExecId::new).transpose()?,
    };
    let _waiting = request.edge.waits.enter()?;
    let exit = request.bus().call(&request.long()?, wait).await?;
    ok(ExitView::from(exit))
}

/// Host process ids.
#[derive(Serialize, ToSchema)]
#[schema(as = Pids)]
struct PidsView {
    /// In no particular order.
    pids: Vec<u32>,
}

async fn pids(request: Request) -> Answer {
    let id = request.part("id")?;
    let pids = request.call(Pids { id }).await?;
    ok(PidsView { pids })
}

async fn metrics(request: Request) -> Answer {
    let id = request.part("id")?;
    ok(MetricsView::from(request.call(Metrics { id }).await?))
}
