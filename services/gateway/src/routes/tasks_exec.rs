//! Processes that are added to a task; run to their end and collected when the client waits.

use super::logs;
use super::tasks::KillBody;
use crate::convert::task::{ExecView, ExitView, RanView};
use crate::convert::text;
use crate::errors::{Answer, Problem};
use crate::keyed;
use crate::lists;
use crate::param;
use crate::request::{Request, created, nothing, ok};
use crate::router::{Route, delete, get, post};
use crate::work::{WAIT, When};
use bus::{Bus, Ctx};
use contracts::tasks::{
    Delete, Exec, ExecInfo, ExecProcess, Execs, Kill, Logs, Start, Stdio, Wait,
};
use contracts::{Code, ContainerId, Error, ExecId, Result};
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Most bytes of output that are collected; the log has the rest.
const COLLECTED: usize = 1024 * 1024;

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/namespaces/{ns}/tasks/{id}:exec", exec)
            .says("Adds and starts a process; with wait=true answers its exit code and output, and removes it. A repetition with the same Idempotency-Key gets that answer again up to 48 KiB, of a larger one 410: the command has run")
            .query(&[WAIT])
            .takes::<ExecBody>()
            .answers::<RanView>()
            .or::<ExecView>(201),
        get("/v1/namespaces/{ns}/tasks/{id}/execs", list)
            .says("The added processes of a task")
            .lists::<ExecView>(),
        get("/v1/namespaces/{ns}/tasks/{id}/execs/{exec}", show)
            .says("One added process")
            .answers::<ExecView>(),
        post("/v1/namespaces/{ns}/tasks/{id}/execs/{exec}:kill", kill)
            .says("Sends a signal to an added process")
            .takes::<KillBody>()
            .status(204),
        delete("/v1/namespaces/{ns}/tasks/{id}/execs/{exec}", remove)
            .says("Removes a stopped added process and answers how it ended")
            .query(&[param::flag("force", "Kill a running one first")])
            .answers::<ExitView>(),
    ]
}

/// A process to add; what is empty comes from the container's own process.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = NewExec)]
struct ExecBody {
    /// Its id; made up when absent.
    #[schema(pattern = "^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$", max_length = 76)]
    id: Option<String>,
    /// Program and arguments.
    args: Vec<String>,
    /// Added to the container's.
    env: Vec<String>,
    /// Absolute; empty for the container's.
    cwd: String,
    /// `uid`, `uid:gid` or a name; empty for the container's.
    user: String,
    /// Whether it has a terminal.
    tty: bool,
    /// Whether stdin stays open for writers that come later.
    stdin: bool,
    /// A whole OCI `process` object instead of the other fields.
    #[schema(value_type = Option<Object>)]
    spec: Value,
}

async fn exec(mut request: Request) -> Answer {
    let body: ExecBody = request.json().await?;
    let id: ContainerId = request.part("id")?;
    let exec = ExecId::new(body.id.clone().unwrap_or_else(|| generated(&request.ctx)))?;
    let when = request.when(When::Begun)?;
    let wanted = body.typed(&id, &exec)?;
    request.call(wanted).await?;
    match when {
        When::Begun => {
            begin(&request, &id, &exec).await?;
            let place = format!(
                "/v1/namespaces/{}/tasks/{id}/execs/{exec}",
                request.text("ns")
            );
            created(&place, ExecView::from(find(&request, &id, &exec).await?))
        }
        When::Finished => {
            let collected = collect(&request, &id, &exec).await;
            let (ctx, bus) = (request.ctx.clone(), request.bus().clone());
            if collected.is_ok() && request.key().is_some() {
                // After a crash before the answer is kept, a repetition collects it again.
                request.later(async move { drop(delete_exec(&bus, &ctx, &id, &exec, true).await) });
                return ok(collected?);
            }
            // However it went, nothing stays behind; what went wrong first is what is told.
            let removed = delete_exec(&bus, &ctx, &id, &exec, true).await;
            let collected = collected?;
            removed?;
            ok(collected)
        }
    }
}

/// An id that a repetition of the same request gets too.
fn generated(ctx: &Ctx) -> String {
    let operation = ctx.operation.as_str();
    format!("exec-{}", operation.get(..12).unwrap_or(operation))
}

impl ExecBody {
    fn typed(self, id: &ContainerId, exec: &ExecId) -> Result<Exec> {
        if self.args.is_empty() && self.spec.is_null() {
            return Err(Error::invalid("args: name a program to run"));
        }
        Ok(Exec {
            id: id.clone(),
            exec: exec.clone(),
            stdio: Stdio {
                tty: self.tty,
                stdin: self.stdin,
                discard: false,
            },
            process: ExecProcess {
                args: self.args,
                env: self.env,
                cwd: self.cwd,
                user: self.user,
                spec: text("spec", &self.spec)?,
            },
        })
    }
}

async fn begin(request: &Request, id: &ContainerId, exec: &ExecId) -> Result<()> {
    let start = Start {
        id: id.clone(),
        exec: Some(exec.clone()),
    };
    request.call(start).await.map(drop)
}

/// Runs an added process to its end and reads what it wrote.
async fn collect(request: &Request, id: &ContainerId, exec: &ExecId) -> Result<RanView, Problem> {
    let _waiting = request.edge.waits.enter()?;
    begin(request, id, exec).await?;
    let ran = ran(request, id, exec).await;
    ran.map_err(|error| match error.code {
        // It was begun, perhaps by this request's first, and is removed by now.
        Code::NotFound if request.key().is_some() => keyed::done_before(format_args!(
            "{}, and what it wrote is not kept",
            error.message
        )),
        _ => error.into(),
    })
}

/// Waits for the end of what was begun.
async fn ran(request: &Request, id: &ContainerId, exec: &ExecId) -> Result<RanView> {
    let long = request.long()?;
    let wait = Wait {
        id: id.clone(),
        exec: Some(exec.clone()),
    };
    let exit = request.bus().call(&long, wait).await?;
    let wanted = Logs {
        id: id.clone(),
        exec: Some(exec.clone()),
        follow: false,
        since: None,
        until: None,
        tail: None,
    };
    let mut lines = logs::lines(request.bus().clone(), long, wanted);
    let (mut streams, mut truncated) = ([Vec::new(), Vec::new()], false);
    while let Some(line) = lines.next().await {
        let line = line?;
        if streams[0].len() + streams[1].len() + line.bytes.len() > COLLECTED {
            truncated = true;
            break;
        }
        let stream = &mut streams[usize::from(line.stderr)];
        stream.extend_from_slice(&line.bytes);
        if line.newline {
            stream.push(b'\n');
        }
    }
    let [stdout, stderr] = streams.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(RanView {
        exit_code: exit.exit_code,
        stdout,
        stderr,
        truncated,
    })
}

async fn delete_exec(
    bus: &Bus,
    ctx: &Ctx,
    id: &ContainerId,
    exec: &ExecId,
    force: bool,
) -> Result<ExitView> {
    let delete = Delete {
        id: id.clone(),
        exec: Some(exec.clone()),
        force,
    };
    // The time that was allowed may have gone into waiting.
    let ctx = ctx.clone().with_deadline(bus::DEFAULT_DEADLINE);
    Ok(bus.call(&ctx, delete).await?.into())
}

async fn list(request: Request) -> Answer {
    let id = request.part("id")?;
    let execs = request.call(Execs { id }).await?;
    let views: Vec<ExecView> = execs.into_iter().map(Into::into).collect();
    lists::part(&request, views)
}

async fn find(request: &Request, id: &ContainerId, exec: &ExecId) -> Result<ExecInfo, Problem> {
    let execs = request.call(Execs { id: id.clone() }).await?;
    let found = execs.into_iter().find(|info| info.id == *exec);
    found.ok_or_else(|| Error::not_found(format!("task {id}: has no added process {exec}")).into())
}

async fn show(request: Request) -> Answer {
    let (id, exec) = (request.part("id")?, request.part("exec")?);
    ok(ExecView::from(find(&request, &id, &exec).await?))
}

async fn kill(mut request: Request) -> Answer {
    let body: KillBody = request.json().await?;
    let kill = Kill {
        id: request.part("id")?,
        exec: Some(request.part("exec")?),
        signal: body.signal.0,
        all: false,
    };
    request.call(kill).await?;
    nothing()
}

async fn remove(request: Request) -> Answer {
    let (id, exec) = (request.part("id")?, request.part("exec")?);
    let force = request.flag("force")?;
    ok(delete_exec(request.bus(), &request.ctx, &id, &exec, force).await?)
}
