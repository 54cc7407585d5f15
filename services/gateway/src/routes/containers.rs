//! Containers: records, and from an image to a running process in one request.

use crate::convert::container::{ContainerBody, ContainerView};
use crate::convert::task::{ExitView, TaskView};
use crate::convert::{DryView, text};
use crate::errors::{Answer, Problem};
use crate::lists;
use crate::param::{self, Kind, Param};
use crate::request::{Accept, Request, created, nothing, ok, versioned};
use crate::router::{Route, delete, get, patch, post};
use crate::work::{self, WAIT, When};
use contracts::containers::{Get, List, Update};
use contracts::operations::{CreateContainer, Outcome, Remove, Work};
use contracts::tasks::{Get as GetTask, Task, Wait};
use contracts::{Code, ContainerId, Error, ImageName, LabelPatch, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Digits of a generated id, as many as Docker shows.
const GENERATED: usize = 12;
const RUN_WAIT: Param = param::of(
    "wait",
    Kind::Choice(&["true", "exit", "started", "false"]),
    "true or exit: answer when the process has ended; started: when it runs; false: 202 at once",
);

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/namespaces/{ns}/containers:run", run)
            .says("Pulls if missing, makes a container, creates and starts its task")
            .works(RUN_WAIT)
            .takes::<ContainerBody>()
            .dry()
            .answers::<TaskView>()
            .status(201),
        get("/v1/namespaces/{ns}/containers", list)
            .says("Containers, by id, without their specs")
            .lists::<ContainerView>(),
        post("/v1/namespaces/{ns}/containers", create)
            .says("Makes a container; answers when it is made unless wait=false")
            .works(WAIT)
            .takes::<ContainerBody>()
            .dry()
            .answers::<ContainerView>()
            .status(201),
        get("/v1/namespaces/{ns}/containers/{id}", show)
            .says("One container with its spec")
            .answers::<ContainerView>(),
        patch("/v1/namespaces/{ns}/containers/{id}", change)
            .says("Changes labels, and spec or image when given")
            .takes::<ChangeBody>()
            .conditional()
            .answers::<ContainerView>(),
        delete("/v1/namespaces/{ns}/containers/{id}", remove)
            .says("Deletes a container with its stopped task and its snapshot; answers when it is gone unless wait=false")
            .works(WAIT)
            .query(&[
                param::flag("force", "Kill a running task first"),
                param::flag("keep_snapshot", "Leave the snapshot"),
            ])
            .dry()
            .answers::<ExitView>(),
    ]
}

async fn wanted(request: &mut Request) -> Result<CreateContainer, Problem> {
    let body: ContainerBody = request.json().await?;
    let operation = request.ctx.operation.as_str();
    let generated = operation.get(..GENERATED).unwrap_or(operation);
    Ok(body.typed(generated)?)
}

async fn dry(request: &Request, container: &CreateContainer) -> Answer {
    let id = container.id.clone();
    match request.call(Get { id: id.clone() }).await {
        Err(error) if error.is(Code::NotFound) => {
            let from = match container.image.as_str() {
                "" => "a spec",
                image => image,
            };
            ok(DryView::would(
                format!("make container {id} from {from}"),
                Value::Null,
            ))
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err(Error::exists(format!("container {id}: is there already")).into()),
    }
}

async fn create(mut request: Request) -> Answer {
    let container = wanted(&mut request).await?;
    if request.dry_run()? {
        return dry(&request, &container).await;
    }
    let place = place(&request, "containers", &container.id);
    let finished = |outcome| match outcome {
        Outcome::Container(container) => created(&place, ContainerView::from(container)),
        other => Err(work::unexpected(&other)),
    };
    work::answer(&request, Work::Create(container), When::Finished, finished).await
}

fn place(request: &Request, kind: &str, id: &ContainerId) -> String {
    format!("/v1/namespaces/{}/{kind}/{id}", request.text("ns"))
}

/// When a run is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Begun,
    Started,
    Ended,
}

fn run_until(request: &Request) -> Result<Run> {
    match request.query("wait") {
        None | Some("false" | "0") => Ok(Run::Begun),
        Some("started") => Ok(Run::Started),
        Some("" | "true" | "1" | "exit") => Ok(Run::Ended),
        Some(other) => Err(Error::invalid(format!(
            "parameter wait={other}: must be true, exit, started or false"
        ))),
    }
}

async fn run(mut request: Request) -> Answer {
    let (container, until) = (wanted(&mut request).await?, run_until(&request)?);
    if request.dry_run()? {
        return dry(&request, &container).await;
    }
    let id = container.id.clone();
    let begun = work::begin(&request, Work::Run(container)).await?;
    if matches!(request.accept(), Accept::Sse | Accept::Ndjson) {
        return work::progress(&request, begun.id);
    }
    if until == Run::Begun {
        return Ok(work::marked(work::accepted(&begun), &begun.id));
    }
    let task = match work::end(&request, &begun.id).await? {
        Outcome::Task(task) if until == Run::Started => task,
        Outcome::Task(_) => ended(&request, &id).await?,
        other => return Err(work::unexpected(&other)),
    };
    let response = created(&place(&request, "tasks", &id), TaskView::from(task))?;
    Ok(work::marked(response, &begun.id))
}

/// Waits for the end of a task's first process.
async fn ended(request: &Request, id: &ContainerId) -> Result<Task> {
    let _waiting = request.edge.waits.enter()?;
    let long = request.long()?;
    let wait = Wait {
        id: id.clone(),
        exec: None,
    };
    request.bus().call(&long, wait).await?;
    request.bus().call(&long, GetTask { id: id.clone() }).await
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    lists::listed::<ContainerView, _, _>(&request, List { paging }).await
}

async fn show(request: Request) -> Answer {
    let id = request.part("id")?;
    let container = request.call(Get { id }).await?;
    versioned(container.version, ContainerView::from(container))
}

/// What to change.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = ContainerPatch)]
struct ChangeBody {
    /// Label by label: its new value, or null to remove it.
    labels: BTreeMap<String, Option<String>>,
    /// Whether labels that are not named go away.
    replace: bool,
    /// New OCI runtime spec; the task must be made anew to see it.
    #[schema(value_type = Option<Object>)]
    spec: Value,
    /// New image name.
    image: Option<String>,
}

async fn change(mut request: Request) -> Answer {
    let body: ChangeBody = request.json().await?;
    let update = Update {
        id: request.part("id")?,
        labels: LabelPatch {
            replace: body.replace,
            set: body.labels,
        },
        spec: Some(text("spec", &body.spec)?).filter(|spec| !spec.is_empty()),
        image: body.image.map(ImageName::new).transpose()?,
        version: request.version()?,
    };
    let container = request.call(update).await.map_err(|e| request.refused(e))?;
    versioned(container.version, ContainerView::from(container))
}

async fn remove(request: Request) -> Answer {
    let id: ContainerId = request.part("id")?;
    if request.dry_run()? {
        let container = ContainerView::from(request.call(Get { id }).await?);
        return ok(DryView::would(
            format!("delete container {}", container.id),
            container,
        ));
    }
    let remove = Remove {
        id,
        force: request.flag("force")?,
        keep_snapshot: request.flag("keep_snapshot")?,
    };
    let finished = |outcome| match outcome {
        Outcome::Exit(exit) => ok(ExitView::from(exit)),
        Outcome::None => nothing(),
        other => Err(work::unexpected(&other)),
    };
    work::answer(&request, Work::Remove(remove), When::Finished, finished).await
}
