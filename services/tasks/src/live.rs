//! What is known of a task only while this process lives: its connection, who waits for it, whether its shim answers.

use crate::launch::{Launch, Listening};
use crate::pump::Pumps;
use crate::record::Name;
use crate::shim::{Shim, ShimError};
use containerd_shim_protos::api;
use contracts::tasks::Exit;
use contracts::{ExecId, Fd};
use protobuf::Message;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

/// How often a shim that takes its time is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How many looks there are to one question whether it answers at all.
const LOOKS: u32 = 4;
/// How long the answer to that question may take.
const PROBE: Duration = Duration::from_secs(5);

/// One task.
pub(crate) struct Live {
    pub(crate) name: Name,
    pub(crate) launch: Launch,
    /// Held by what must not overlap: create, start, pause, resume, delete, and finding out after a restart.
    pub(crate) turn: Mutex<()>,
    pub(crate) init: Rc<Tracked>,
    /// Its shim is being ended on purpose.
    pub(crate) leaving: Cell<bool>,
    /// It has ended and its shim is gone, on purpose.
    pub(crate) retired: Cell<bool>,
    execs: RefCell<HashMap<ExecId, Rc<Tracked>>>,
    listening: RefCell<Option<Listening>>,
    shim: RefCell<Option<Shim>>,
    doubt: RefCell<String>,
    /// Held while a question for its state is under way.
    pub(crate) asking: Mutex<()>,
    /// It was there before this process was.
    pub(crate) inherited: Cell<bool>,
    /// It is asked again and again until it answers.
    pub(crate) insisted: Cell<bool>,
    errands: RefCell<Vec<AbortHandle>>,
}

/// One process of a task, first or added.
pub(crate) struct Tracked {
    exit: watch::Sender<Option<Exit>>,
    /// A start is under way: an end that overtakes it waits in `early`.
    pub(crate) starting: Cell<bool>,
    pub(crate) early: RefCell<Option<Exit>>,
    pub(crate) pumps: RefCell<Option<Pumps>>,
    /// A writing end of stdin, so that it does not end with the first writer (shims that do not see to that themselves).
    pub(crate) held: RefCell<Option<Fd>>,
    watcher: RefCell<Option<AbortHandle>>,
}

impl Default for Tracked {
    fn default() -> Self {
        Self::ended(None)
    }
}

impl Tracked {
    /// A process that ended, or has not.
    pub(crate) fn ended(exit: Option<Exit>) -> Self {
        Self {
            exit: watch::Sender::new(exit),
            starting: Cell::new(false),
            early: RefCell::default(),
            pumps: RefCell::default(),
            held: RefCell::default(),
            watcher: RefCell::default(),
        }
    }

    /// Lets those who wait know: the end is recorded.
    pub(crate) fn tell(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let news = known.is_none();
            if news {
                *known = Some(exit);
            }
            news
        });
    }

    /// A view of how it ended, for those who wait.
    pub(crate) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Has `watcher` stop with this record.
    pub(crate) fn watched_by(&self, watcher: AbortHandle) {
        if let Some(before) = self.watcher.replace(Some(watcher)) {
            before.abort();
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.get_mut() {
            watcher.abort();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.errands.get_mut().iter().for_each(AbortHandle::abort);
    }
}

impl Live {
    pub(crate) fn new(launch: Launch, listening: Option<Listening>, exit: Option<Exit>) -> Self {
        Self {
            name: launch.name.clone(),
            launch,
            turn: Mutex::default(),
            init: Rc::new(Tracked::ended(exit)),
            leaving: Cell::new(false),
            retired: Cell::new(false),
            execs: RefCell::default(),
            listening: RefCell::new(listening),
            shim: RefCell::default(),
            doubt: RefCell::default(),
            asking: Mutex::default(),
            inherited: Cell::new(false),
            insisted: Cell::new(false),
            errands: RefCell::default(),
        }
    }

    /// Its first process, or an added one.
    pub(crate) fn process(&self, exec: Option<&ExecId>) -> Option<Rc<Tracked>> {
        match exec {
            None => Some(self.init.clone()),
            Some(exec) => self.execs.borrow().get(exec).cloned(),
        }
    }

    pub(crate) fn add_exec(&self, exec: ExecId, exit: Option<Exit>) -> Rc<Tracked> {
        let tracked = Rc::new(Tracked::ended(exit));
        self.execs.borrow_mut().insert(exec, tracked.clone());
        tracked
    }

    pub(crate) fn drop_exec(&self, exec: &ExecId) {
        self.execs.borrow_mut().remove(exec);
    }

    /// All processes, the first one first.
    pub(crate) fn all(&self) -> Vec<Rc<Tracked>> {
        let execs = self.execs.borrow();
        std::iter::once(self.init.clone())
            .chain(execs.values().cloned())
            .collect()
    }

    /// Whether all its processes have ended and its shim is still to be retired.
    pub(crate) fn ended(&self) -> bool {
        let over = |process: &Rc<Tracked>| process.exit.borrow().is_some();
        !self.retired.get() && self.all().iter().all(over)
    }

    /// Has `errand` stop with this record.
    pub(crate) fn keep(&self, errand: AbortHandle) {
        let mut errands = self.errands.borrow_mut();
        errands.retain(|errand| !errand.is_finished());
        errands.push(errand);
    }

    /// Learns where the shim listens.
    pub(crate) fn listens(&self, listening: Listening) {
        self.listening.replace(Some(listening));
    }

    /// The connection, made when there is none. Errors: `Gone`, `Silent`.
    pub(crate) async fn shim(&self) -> Result<Shim, ShimError> {
        if let Some(shim) = self.shim.borrow().as_ref() {
            return Ok(shim.clone());
        }
        let known = self.listening.borrow().clone();
        let Listening { address, api } =
            known.ok_or_else(|| ShimError::Gone("it was not started".into()))?;
        let shim = Shim::connect(&address, api, self.name.namespace.as_str()).await?;
        self.shim.replace(Some(shim.clone()));
        Ok(shim)
    }

    /// Lets go of a broken connection, so that the next call makes another.
    pub(crate) fn hang_up(&self) {
        self.shim.replace(None);
    }

    /// Calls the shim, and remembers whether it answers.
    pub(crate) async fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
        bound: Duration,
    ) -> Result<A, ShimError> {
        let answer = match self.shim().await {
            Ok(shim) => {
                let call = shim.call(method, request, Some(bound));
                tokio::select! {
                    biased;
                    answer = call => answer,
                    why = self.gives_up(&shim) => Err(why),
                }
            }
            Err(error) => Err(error),
        };
        self.note(answer.as_ref().err());
        answer
    }

    /// Ends when a shim that takes its time will not answer at all: it is stopped, or does not answer the simplest question.
    async fn gives_up(&self, shim: &Shim) -> ShimError {
        let request = api::ConnectRequest {
            id: self.name.id.to_string(),
            ..Default::default()
        };
        for look in 1_u32.. {
            tokio::time::sleep(LOOK).await;
            if let Some(pid) = self.stopped().await {
                return ShimError::Stopped(pid);
            }
            if look % LOOKS == 0 {
                let probe = shim.call::<_, api::ConnectResponse>("Connect", &request, Some(PROBE));
                if let Err(error @ ShimError::Silent(_)) = probe.await {
                    return error;
                }
            }
        }
        ShimError::Silent(PROBE)
    }

    /// The process of its shim, when that is stopped by a signal.
    pub(crate) async fn stopped(&self) -> Option<i32> {
        let bundle = self.launch.bundle.clone();
        let look = move || Ok::<_, contracts::Error>(crate::host::stopped_shim(&bundle));
        crate::engine::blocking(look).await.ok().flatten()
    }

    /// Takes what a call says about the shim's health.
    pub(crate) fn note(&self, error: Option<&ShimError>) {
        match error {
            None | Some(ShimError::Refused { .. }) => self.doubt.borrow_mut().clear(),
            Some(ShimError::Silent(_) | ShimError::Stopped(_)) => {
                self.suspect(&error.map_or(String::new(), |e| e.to_string()))
            }
            Some(ShimError::Gone(_)) => self.hang_up(),
        }
    }

    /// Says why nobody knows how it stands.
    pub(crate) fn suspect(&self, why: &str) {
        self.doubt.replace(why.to_owned());
    }

    /// Why nobody knows how it stands; empty when somebody does.
    pub(crate) fn doubt(&self) -> String {
        self.doubt.borrow().clone()
    }
}
