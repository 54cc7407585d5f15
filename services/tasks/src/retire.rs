//! Shims of tasks that have ended: they go at once, for the record and the logs say all there is to say.
//!
//! The bundle is the journal: while a stopped task has one, its shim may be there still, and a successor of this process
//! ends it. A task whose shim was retired has only its record, its added processes' records and its logs.

use crate::bundle;
use crate::cgroup;
use crate::end::unseen;
use crate::engine::{Engine, blocking};
use crate::host::Host;
use crate::launch::Launch;
use crate::lifecycle::{Input, Phase};
use crate::live::Live;
use crate::record::ExecRecord;
use contracts::{Error, Result};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long this process may take, when it stops, for shims that it was about to retire.
const LAST: Duration = Duration::from_secs(2);

impl Engine {
    /// Retires the shim of a task that has ended, aside; the last added process that still runs brings it back here.
    pub(crate) fn retire(self: &Rc<Self>, live: &Rc<Live>) {
        if live.init.exit().borrow().is_none() || live.retired.get() {
            return;
        }
        let (engine, live) = (Rc::downgrade(self), live.clone());
        self.keep(tokio::task::spawn_local(async move {
            let _turn = live.turn.lock().await;
            if let Some(engine) = engine.upgrade() {
                engine.retire_now(&live).await;
            }
        }));
    }

    /// As [`Engine::retire`], by who has the turn.
    pub(crate) async fn retire_now(self: &Rc<Self>, live: &Rc<Live>) {
        let current = self
            .find(&live.name)
            .is_some_and(|it| Rc::ptr_eq(&it, live));
        if live.retired.get() || !current {
            return;
        }
        let execs = match self.execs_of(live).await {
            Ok(execs) if !execs.iter().any(|exec| runs(live, exec)) => execs,
            _ => return,
        };
        live.leaving.set(true);
        if let Err(error) = self.end_container(live, true).await {
            tracing::warn!(task = %live.name.id, %error, "the shim of an ended task stays until it is deleted");
            live.leaving.set(false);
            return;
        }
        faults::point("tasks.retire.container-ended");
        self.shut_down(live).await;
        faults::point("tasks.retire.shut-down");
        self.set_aside(live).await;
        live.retired.set(true);
        self.bury(live);
        self.end_execs(live, &execs).await;
        faults::point("tasks.retire.execs-ended");
        self.sweep_cgroups_of(&live.name.namespace);
    }

    /// Refuses what needs a shim that was retired. Errors: `FailedPrecondition`.
    pub(crate) fn attended(&self, live: &Live) -> Result<()> {
        match live.retired.get() {
            true => Err(Error::precondition(format!(
                "task {}: has ended: delete it and create it anew",
                live.name.id
            ))),
            false => Ok(()),
        }
    }

    async fn execs_of(&self, live: &Live) -> Result<Vec<ExecRecord>> {
        if live.all().len() == 1 {
            return Ok(Vec::new());
        }
        let (store, name) = (self.store.clone(), live.name.clone());
        blocking(move || store.execs(&name)).await
    }

    /// What was added and never started, or ended while nobody watched, will not run any more.
    async fn end_execs(&self, live: &Live, execs: &[ExecRecord]) {
        for exec in execs.iter().filter(|exec| exec.process.alive()) {
            let (id, exit) = (&exec.id, unseen());
            let inputs = vec![Input::Exited(exit.clone())];
            if let Err(error) = self.store.change_exec(&live.name, id, None, inputs).await {
                tracing::warn!(task = %live.name.id, exec = %id, %error, "an end was not recorded");
            }
            if let Some(process) = live.process(Some(id)) {
                process.tell(exit);
            }
        }
    }

    /// Ends the shims that were about to be retired when this process stops. Blocks for [`LAST`] at most.
    pub(crate) fn retire_last(&self, ended: &[Rc<Live>]) {
        let (done, wait) = mpsc::channel();
        // One that was told to end may still wait to be heard by this process, which listens no more.
        let mut left: Vec<_> = self
            .ending
            .take()
            .into_values()
            // The next task of that name may run in the same cgroup by now.
            .filter(|launch| self.find(&launch.name).is_none_or(|it| it.retired.get()))
            .map(|launch| (launch, String::new()))
            .collect();
        for live in ended {
            let record = self.store.get(&live.name);
            let cgroup = record.map(|record| record.cgroup).unwrap_or_default();
            left.push((live.launch.clone(), cgroup));
            live.retired.set(true);
            self.unswept
                .borrow_mut()
                .insert(live.name.namespace.clone());
        }
        let count = left.len();
        for (launch, cgroup) in left {
            let (done, host) = (done.clone(), self.host.clone());
            std::thread::spawn(move || {
                retire_blocking(&host, &launch, &cgroup);
                let _ = done.send(());
            });
        }
        let end = Instant::now() + LAST;
        for _ in 0..count {
            let _ = wait.recv_timeout(end.saturating_duration_since(Instant::now()));
        }
    }
}

fn runs(live: &Live, exec: &ExecRecord) -> bool {
    live.process(Some(&exec.id)).is_some_and(|process| {
        let started = exec.process.phase != Phase::Created || process.starting.get();
        started && process.exit().borrow().is_none()
    })
}

fn retire_blocking(host: &Host, launch: &Launch, cgroup: &str) {
    if !launch.bundle.exists() {
        return;
    }
    if !launch.program.own {
        host.end(launch);
    }
    // What is left then has its bundle, and goes when tasks starts.
    if launch.delete_blocking().is_ok() {
        cgroup::end(cgroup);
        let _ = bundle::remove(&launch.bundle);
    }
}
