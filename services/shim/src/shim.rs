//! What the shim holds: its names, its one container, and the ways to reach the rest.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::children::{Children, Exit};
use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::helper;
use crate::process::{Phase, Process};
use crate::record::Record;
use crate::runtime::{Call, Facts, Runtime, Target};

pub(crate) struct Shim {
    pub(crate) namespace: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) children: Children,
    pub(crate) events: Publisher,
    pub(crate) stop: Notify,
    /// Held by calls that change the container as a whole: create, delete, pause, resume, update.
    pub(crate) turn: tokio::sync::Mutex<()>,
    container: Mutex<Option<Container>>,
}

pub(crate) struct Container {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) facts: Facts,
    pub(crate) record: Record,
    /// How many mounts are stacked on the rootfs.
    pub(crate) mounts: usize,
    pub(crate) paused: bool,
    pub(crate) init: Process,
    pub(crate) execs: HashMap<String, Process>,
}

impl Shim {
    pub(crate) fn new(namespace: &str, id: &str, bundle: PathBuf, events: Publisher) -> Self {
        Self {
            namespace: namespace.to_owned(),
            id: id.to_owned(),
            bundle,
            children: Children::default(),
            events,
            stop: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            container: Mutex::new(None),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<Container>> {
        self.container
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the container; `NOT_FOUND` when there is none of that name.
    pub(crate) fn with<T>(
        &self,
        id: &str,
        act: impl FnOnce(&mut Container) -> Result<T>,
    ) -> Result<T> {
        match self.lock().as_mut() {
            Some(container) if id == self.id => act(container),
            _ => Err(Error::not_found(format!(
                "container {id} is not here: create it first"
            ))),
        }
    }

    /// Does something with init (empty exec id) or an exec.
    pub(crate) fn with_process<T>(
        &self,
        id: &str,
        exec_id: &str,
        act: impl FnOnce(&mut Process) -> Result<T>,
    ) -> Result<T> {
        self.with(id, |container| act(container.process(exec_id)?))
    }

    /// Calls the runtime, in a helper when the call needs one.
    pub(crate) async fn call(
        &self,
        runtime: Arc<dyn Runtime>,
        call: Option<Call>,
        act: impl FnOnce(&dyn Runtime) -> Result<()>,
    ) -> Result<()> {
        if call.is_some_and(|call| runtime.is_light(call)) {
            return act(&*runtime);
        }
        let work = move || act(&*runtime).map(|()| 0);
        helper::run(&self.children, &[], work).await.map(drop)
    }

    /// Takes note of processes that have ended.
    pub(crate) fn reap(&self) {
        for (pid, exit) in self.children.reap() {
            let mut container = self.lock();
            match container
                .as_mut()
                .and_then(|container| container.by_pid(pid))
            {
                Some(name) => {
                    let Some(container) = container.as_mut() else {
                        continue;
                    };
                    self.ended(container, &name, exit);
                }
                None => self.children.keep_early(pid, exit),
            }
        }
    }

    /// A process has ended: tells it, unless its start is still to be told.
    pub(crate) fn ended(&self, container: &mut Container, exec_id: &str, exit: Exit) {
        let Ok(process) = container.process(exec_id) else {
            return;
        };
        if process.phase == Phase::Starting {
            process.held = Some(exit);
            return;
        }
        if process.exited().is_some() {
            return;
        }
        process.end(exit);
        let (pid, init) = (process.pid, process.is_init());
        if init {
            container.record.set_exit(exit);
            let _ = container.record.save(&self.bundle);
            if !container.facts.dies_with_init() {
                container.record.cgroup.kill();
            }
        }
        self.events
            .exit(&self.id, if init { &self.id } else { exec_id }, pid, exit);
    }
}

impl Container {
    pub(crate) fn process(&mut self, exec_id: &str) -> Result<&mut Process> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        self.execs
            .get_mut(exec_id)
            .ok_or_else(|| Error::not_found(format!("exec {exec_id} is not here")))
    }

    /// What the runtime must know of a container that was made.
    pub(crate) fn target(&self) -> Target {
        Target {
            pid: self.init.pid,
            cgroup: self.record.cgroup.clone(),
        }
    }

    fn by_pid(&self, pid: i32) -> Option<String> {
        let mut all = std::iter::once(&self.init).chain(self.execs.values());
        all.find(|process| process.pid == pid && process.exited().is_none())
            .map(|process| process.exec_id.clone())
    }
}
