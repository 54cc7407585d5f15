//! Everything that acts on a container that exists, or looks at it.

use std::sync::Arc;

use containerd_shim_protos::api::{ProcessInfo, StateResponse};
use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::well_known_types::any::Any;
use protobuf::{EnumOrUnknown, Message};

use crate::children::Exit;
use crate::error::{About, Error, Result};
use crate::events::timestamp;
use crate::process::{Phase, Process};
use crate::runtime::{Call, Runtime, Target};
use crate::shim::Shim;
use crate::{stats, sys};

impl Shim {
    pub(crate) fn state(&self, id: &str, exec_id: &str) -> Result<StateResponse> {
        self.with(id, |container| {
            let paused = container.paused;
            let process = container.process(exec_id)?;
            let exit = process.exited();
            Ok(StateResponse {
                id: id.to_owned(),
                bundle: self.bundle.display().to_string(),
                pid: process.pid.unsigned_abs(),
                status: EnumOrUnknown::new(process.status(paused)),
                stdin: process.stdio.stdin.clone(),
                stdout: process.stdio.stdout.clone(),
                stderr: process.stdio.stderr.clone(),
                terminal: process.stdio.terminal,
                exit_status: exit.map_or(0, |exit| exit.status),
                exited_at: exit.map(|exit| timestamp(exit.at)).into(),
                exec_id: exec_id.to_owned(),
                ..StateResponse::default()
            })
        })
    }

    /// Waits for the end of a process; answers at once when it was seen already.
    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> Result<Exit> {
        let mut exit = self.with_process(id, exec_id, |process| Ok(process.exit.subscribe()))?;
        let exit = exit.wait_for(Option::is_some).await.map_err(|_| {
            Error::not_found(format!(
                "{id} {exec_id} was deleted while it was waited for"
            ))
        })?;
        exit.ok_or_else(|| Error::internal("exit is unknown"))
    }

    pub(crate) async fn kill(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let signal = i32::try_from(signal)
            .ok()
            .filter(|signal| (1..=64).contains(signal));
        let signal = signal.ok_or_else(|| Error::invalid("a signal is a number from 1 to 64"))?;
        let (runtime, target, exec) = self.with(id, |container| {
            let (runtime, target) = (container.runtime.clone(), container.target());
            let process = container.process(exec_id)?;
            let reachable = process.alive() || (all && process.is_init());
            if !reachable {
                return Err(gone(id, process));
            }
            Ok((runtime, target, (!process.is_init()).then_some(process.pid)))
        })?;
        match exec {
            Some(pid) => sys::kill(pid, signal).about(format_args!("signal exec {exec_id}")),
            None => {
                let act = |runtime: &dyn Runtime| runtime.kill(&target, signal, all);
                self.call(runtime, Some(Call::Kill), act).await?;
                self.wake_if_killed(id, signal, &target)
            }
        }
    }

    /// A frozen process dies of SIGKILL only when it is thawed (cgroup v1).
    fn wake_if_killed(&self, id: &str, signal: i32, target: &Target) -> Result<()> {
        self.with(id, |container| {
            if container.paused && signal == nix::libc::SIGKILL {
                target.cgroup.freeze(false).about("thaw")?;
                container.paused = false;
            }
            Ok(())
        })
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (runtime, target) = self.running(id, false)?;
        self.call(runtime, None, |runtime| runtime.pause(&target))
            .await?;
        self.set_paused(id, true)
    }

    pub(crate) async fn resume(&self, id: &str) -> Result<()> {
        let _turn = self.turn.lock().await;
        let (runtime, target) = self.running(id, true)?;
        self.call(runtime, None, |runtime| runtime.resume(&target))
            .await?;
        self.set_paused(id, false)
    }

    fn running(&self, id: &str, paused: bool) -> Result<(Arc<dyn Runtime>, Target)> {
        self.with(id, |container| {
            if container.init.phase != Phase::Running || container.paused != paused {
                let wanted = if paused { "paused" } else { "running" };
                return Err(Error::precondition(format!(
                    "container {id} is not {wanted}"
                )));
            }
            Ok((container.runtime.clone(), container.target()))
        })
    }

    fn set_paused(&self, id: &str, paused: bool) -> Result<()> {
        self.with(id, |container| {
            container.paused = paused;
            Ok(())
        })?;
        self.events.paused(id, paused);
        Ok(())
    }

    pub(crate) async fn update(&self, id: &str, resources: Option<Any>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let resources = resources
            .ok_or_else(|| Error::invalid("update needs resources"))?
            .value;
        let runtime = self.with(id, |container| Ok(container.runtime.clone()))?;
        self.call(runtime, None, move |runtime| runtime.update(&resources))
            .await
    }

    pub(crate) fn stats(&self, id: &str) -> Result<Any> {
        self.with(id, |container| {
            if container.init.exited().is_some() {
                return Err(Error::precondition(format!("container {id} has ended")));
            }
            stats::read(&container.record.cgroup)
        })
    }

    pub(crate) fn pids(&self, id: &str) -> Result<Vec<ProcessInfo>> {
        self.with(id, |container| {
            let pids = container.record.cgroup.pids();
            let info = |pid: i32| {
                let exec = container.execs.values().find(|process| process.pid == pid);
                ProcessInfo {
                    pid: pid.unsigned_abs(),
                    info: exec.map(details).into(),
                    ..ProcessInfo::default()
                }
            };
            Ok(pids.into_iter().map(info).collect())
        })
    }

    pub(crate) fn resize(&self, id: &str, exec_id: &str, columns: u32, rows: u32) -> Result<()> {
        self.with_process(id, exec_id, |process| match &process.io {
            Some(io) => io.resize(columns, rows),
            None => Err(Error::precondition(format!(
                "{id} {exec_id} was not started"
            ))),
        })
    }

    pub(crate) fn close_stdin(&self, id: &str, exec_id: &str) -> Result<()> {
        self.with_process(id, exec_id, |process| {
            if let Some(io) = &mut process.io {
                io.close_stdin();
            }
            Ok(())
        })
    }
}

fn gone(id: &str, process: &Process) -> Error {
    let name = if process.is_init() {
        id
    } else {
        &process.exec_id
    };
    match process.pid {
        0 => Error::precondition(format!("process {name} was not started")),
        _ => Error::not_found(format!("process {name} has already ended")),
    }
}

fn details(exec: &Process) -> Any {
    let details = ProcessDetails {
        exec_id: exec.exec_id.clone(),
        ..ProcessDetails::default()
    };
    Any {
        type_url: "containerd.runc.v1.ProcessDetails".into(),
        value: details.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}
