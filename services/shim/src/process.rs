//! One process of the container, init or an exec, and the states it goes through.

use tokio::sync::watch;

use containerd_shim_protos::api::Status;

use crate::children::Exit;
use crate::stdio::{Io, Stdio};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Made (init) or announced (exec), but not started.
    Created,
    /// A start is under way: an exit is held back until the start has been told.
    Starting,
    Running,
    Stopped,
}

pub(crate) struct Process {
    /// Empty for init.
    pub(crate) exec_id: String,
    /// 0 until it is known.
    pub(crate) pid: i32,
    pub(crate) phase: Phase,
    pub(crate) stdio: Stdio,
    pub(crate) io: Option<Io>,
    pub(crate) exit: watch::Sender<Option<Exit>>,
    /// An exit that was seen before the start was told.
    pub(crate) held: Option<Exit>,
    /// The JSON of an exec's OCI `Process`.
    pub(crate) spec: Vec<u8>,
}

impl Process {
    pub(crate) fn new(exec_id: &str, stdio: Stdio) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            pid: 0,
            phase: Phase::Created,
            stdio,
            io: None,
            exit: watch::Sender::new(None),
            held: None,
            spec: Vec::new(),
        }
    }

    pub(crate) fn is_init(&self) -> bool {
        self.exec_id.is_empty()
    }

    pub(crate) fn exited(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Whether a signal can reach it.
    pub(crate) fn alive(&self) -> bool {
        self.pid > 0 && self.exited().is_none() && self.held.is_none()
    }

    pub(crate) fn status(&self, paused: bool) -> Status {
        match self.phase {
            Phase::Created | Phase::Starting => Status::CREATED,
            Phase::Running if paused => Status::PAUSED,
            Phase::Running => Status::RUNNING,
            Phase::Stopped => Status::STOPPED,
        }
    }

    /// Moves what it wrote to its log, then tells everybody who waits.
    pub(crate) fn end(&mut self, exit: Exit) {
        if let Some(io) = &self.io {
            io.drain();
        }
        self.phase = Phase::Stopped;
        self.exit.send_replace(Some(exit));
    }
}
