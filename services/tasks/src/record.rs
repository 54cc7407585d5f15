//! What is recorded of a task and of an added process, and how callers and filters see it.

use crate::lifecycle::Process;
use contracts::tasks::{ExecInfo, Status, Task};
use contracts::{ContainerId, ExecId, Namespace, Timestamp};
use filter::Fields;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Names a task: its namespace and its container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) namespace: Namespace,
    pub(crate) id: ContainerId,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: ContainerId,
    pub(crate) process: Process,
    pub(crate) created_at: Timestamp,
    pub(crate) reason: String,
    pub(crate) stdio: Io,
    /// Its bundle folder.
    pub(crate) bundle: String,
    /// The shim's program and whether it is gantry's own.
    pub(crate) shim: Program,
    /// Where the shim listens; empty until it was started.
    pub(crate) address: String,
    /// Version of the task API that the shim speaks.
    pub(crate) api: u32,
    /// Path of its cgroup below each hierarchy; empty when the spec names none.
    pub(crate) cgroup: String,
    /// When the kernel last killed for lack of memory.
    pub(crate) oom_at: Timestamp,
}

/// A shim's program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) path: String,
    /// Stands before the shim's own flags.
    pub(crate) first: Option<String>,
    /// Whether it knows `log://` and keeps its fifos open by itself.
    pub(crate) own: bool,
}

/// Which streams a process has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Io {
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) discard: bool,
}

/// One added process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExecRecord {
    pub(crate) id: ExecId,
    pub(crate) process: Process,
    pub(crate) stdio: Io,
}

impl Name {
    /// The key of the task's row.
    pub(crate) fn key(&self) -> String {
        format!("{}\0{}", self.namespace, self.id)
    }

    /// The key of an added process's row.
    pub(crate) fn exec_key(&self, exec: &ExecId) -> String {
        format!("{}\0{}\0{exec}", self.namespace, self.id)
    }

    /// What the keys of all its added processes begin with.
    pub(crate) fn execs(&self) -> String {
        format!("{}\0{}\0", self.namespace, self.id)
    }
}

impl Record {
    /// The task as callers see it.
    pub(crate) fn task(&self) -> Task {
        let exit = self.process.exit.as_ref();
        Task {
            id: self.id.clone(),
            container: self.id.clone(),
            pid: self.process.pid,
            status: self.process.status(),
            exit_code: exit.map(|exit| exit.exit_code),
            exited_at: exit.map(|exit| exit.exited_at),
            reason: self.reason.clone(),
            created_at: self.created_at,
            tty: self.stdio.tty,
        }
    }
}

impl ExecRecord {
    /// The process as callers see it.
    pub(crate) fn info(&self) -> ExecInfo {
        let exit = self.process.exit.as_ref();
        ExecInfo {
            id: self.id.clone(),
            pid: self.process.pid,
            status: self.process.status(),
            exit_code: exit.map(|exit| exit.exit_code),
            exited_at: exit.map(|exit| exit.exited_at),
            tty: self.stdio.tty,
        }
    }
}

/// Says that nobody knows how a living task stands.
pub(crate) fn doubt(task: &mut Task, reason: &str) {
    if task.status != Status::Stopped {
        task.status = Status::Unknown;
        reason.clone_into(&mut task.reason);
    }
}

/// A task as filters see it.
pub(crate) struct Row<'a>(pub(crate) &'a Task);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        let task = self.0;
        match path {
            ["id"] | ["container"] => Some(Cow::Borrowed(task.id.as_str())),
            ["status"] => Some(Cow::Borrowed(match task.status {
                Status::Created => "created",
                Status::Running => "running",
                Status::Paused => "paused",
                Status::Stopped => "stopped",
                Status::Unknown => "unknown",
            })),
            _ => None,
        }
    }
}
