//! Added processes: from what a caller asks for to the OCI `process` that the shim runs.

use crate::bundle::about;
use crate::engine::{Engine, blocking, left};
use crate::launch::Launch;
use crate::lifecycle::{Phase, Process};
use crate::passwd;
use crate::record::{ExecRecord, Io, Name};
use crate::runtime::any;
use crate::shim::ShimError;
use crate::stdio::Streams;
use crate::store::StoreError;
use bus::Ctx;
use containerd_shim_protos::api;
use contracts::tasks::{Exec, ExecInfo, ExecProcess};
use contracts::{ContainerId, Error, Result};
use serde_json::{Value, json};
use std::rc::Rc;
use std::time::Duration;

/// How long a shim may take to note an added process.
const NOTE: Duration = Duration::from_secs(10);
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

impl Engine {
    /// Adds a process, which waits for its start.
    pub(crate) async fn exec(self: &Rc<Self>, ctx: &Ctx, request: Exec) -> Result<()> {
        let name = Name {
            namespace: ctx.namespace()?.clone(),
            id: request.id.clone(),
        };
        if self.store.replied::<()>(&ctx.operation).await?.is_some() {
            return Ok(());
        }
        let live = self.live(&name)?;
        let exec = request.exec.clone();
        if live.process(Some(&exec)).is_some() {
            return Err(StoreError::ExecExists(name, exec).into());
        }
        // Taken now: another call with this id must not come in between.
        let tracked = live.add_exec(exec.clone(), None);
        let (message, streams, stdio) = match self.prepare(&live.launch, request).await {
            Ok(prepared) => prepared,
            Err(error) => {
                live.drop_exec(&exec);
                return Err(error);
            }
        };
        let record = ExecRecord {
            id: exec.clone(),
            process: Process::created(),
            stdio,
        };
        let added = async {
            streams.attend(&tracked)?;
            faults::point("tasks.exec.streams-made");
            self.add_in_shim(ctx, &live, &message).await?;
            faults::point("tasks.exec.added");
            let stored = self.store.exec_added(&name, &ctx.operation, record).await;
            faults::point("tasks.exec.recorded");
            stored.map_err(Error::from)
        };
        match added.await {
            Ok(()) => self.watch(&live, Some(exec)),
            Err(error) => {
                live.drop_exec(&exec);
                return Err(error.context(format!("exec {exec} of task {}", name.id)));
            }
        }
        Ok(())
    }

    async fn add_in_shim(
        &self,
        ctx: &Ctx,
        live: &crate::live::Live,
        message: &api::ExecProcessRequest,
    ) -> Result<(), ShimError> {
        let bound = left(ctx, NOTE);
        let added = live.call::<_, api::Empty>("Exec", message, bound).await;
        let Err(error) = added else { return Ok(()) };
        if !error.is(ttrpc::Code::ALREADY_EXISTS) {
            return Err(error);
        }
        // No record has it: it was added just before a crash, and nobody was answered.
        let delete = api::DeleteRequest {
            id: message.id.clone(),
            exec_id: message.exec_id.clone(),
            ..Default::default()
        };
        live.call::<_, api::DeleteResponse>("Delete", &delete, bound)
            .await?;
        live.call::<_, api::Empty>("Exec", message, bound)
            .await
            .map(drop)
    }

    async fn prepare(
        &self,
        launch: &Launch,
        request: Exec,
    ) -> Result<(api::ExecProcessRequest, Streams, Io)> {
        let (store, layout, launch) = (self.store.clone(), self.layout.clone(), launch.clone());
        blocking(move || {
            let task = store.get(&launch.name).map_err(Error::from)?;
            if task.process.phase != Phase::Running {
                let why = "is not running: start it first";
                return Err(Error::precondition(format!("task {}: {why}", task.id)));
            }
            let spec = process(&launch, task.process.pid, &request)?;
            let stdio = Io {
                tty: spec["terminal"].as_bool().unwrap_or(false),
                stdin: request.stdio.stdin,
                discard: request.stdio.discard,
            };
            let log = layout.log(&launch.name, Some(&request.exec));
            crate::logs::folder::fresh(&log)?;
            let streams = Streams::make(&launch, &log, Some(&request.exec), stdio)?;
            let message = api::ExecProcessRequest {
                id: request.id.to_string(),
                exec_id: request.exec.to_string(),
                terminal: stdio.tty,
                stdin: streams.stdin.clone(),
                stdout: streams.stdout.clone(),
                stderr: streams.stderr.clone(),
                spec: Some(any(PROCESS, spec.to_string().into_bytes())).into(),
                ..Default::default()
            };
            Ok((message, streams, stdio))
        })
        .await
    }

    /// Lists the added processes of a task.
    pub(crate) async fn execs(&self, ctx: &Ctx, id: &ContainerId) -> Result<Vec<ExecInfo>> {
        let name = Name {
            namespace: ctx.namespace()?.clone(),
            id: id.clone(),
        };
        let store = self.store.clone();
        let execs = blocking(move || store.execs(&name)).await?;
        Ok(execs.iter().map(ExecRecord::info).collect())
    }
}

/// The OCI `process`: taken whole, or the container's own with what the caller says instead. Blocks.
fn process(launch: &Launch, pid: u32, request: &Exec) -> Result<Value> {
    let asked = &request.process;
    if !asked.spec.is_empty() {
        let spec: Value = serde_json::from_str(&asked.spec)
            .map_err(|e| Error::invalid(format!("process.spec: not an OCI process: {e}")))?;
        return match spec.is_object() {
            true => Ok(spec),
            false => Err(Error::invalid("process.spec: must be a JSON object")),
        };
    }
    let path = launch.bundle.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| about(&path, &e))?;
    let spec: Value = serde_json::from_str(&text)
        .map_err(|e| Error::data_loss(format!("{}: {e}", path.display())))?;
    let mut process = changed(spec["process"].clone(), asked, request.stdio.tty);
    if !asked.user.is_empty() {
        process["user"] = passwd::user(pid, &asked.user)?;
    }
    Ok(process)
}

fn changed(mut process: Value, asked: &ExecProcess, tty: bool) -> Value {
    if !asked.args.is_empty() {
        process["args"] = json!(asked.args);
    }
    if !asked.cwd.is_empty() {
        process["cwd"] = json!(asked.cwd);
    }
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = process["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.as_str().map(str::to_owned))
        .filter(|entry| !asked.env.iter().any(|new| key(new) == key(entry)))
        .collect();
    env.extend(asked.env.iter().cloned());
    process["env"] = json!(env);
    process["terminal"] = json!(tty);
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_comes_from_the_container() {
        let own = json!({ "args": ["sh"], "cwd": "/srv", "env": ["A=1", "B=2"], "terminal": true, "x": 1 });
        let asked = ExecProcess {
            env: vec!["B=3".into(), "C=".into()],
            ..ExecProcess::default()
        };
        let process = changed(own, &asked, false);
        assert_eq!(
            process,
            json!({ "args": ["sh"], "cwd": "/srv", "env": ["A=1", "B=3", "C="], "terminal": false, "x": 1 })
        );
    }
}
