//! How the end of a process becomes known: a `Wait` that is kept open at its shim, for as long as it takes.
//!
//! Forwarded events only help out, and `State` tells what was missed while nobody watched. All of them end in the same
//! store transaction, which tells of an end once.

mod twice;

use crate::engine::{Engine, STATE};
use crate::launch::time;
use crate::lifecycle::Input;
use crate::live::{Live, Tracked};
use crate::lost::Loss;
use crate::shim::ShimError;
use crate::store::StoreError;
use containerd_shim_protos::api::{self, Status};
use contracts::tasks::Exit;
use contracts::{ExecId, Timestamp};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Pause before a shim that did not answer is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// Pause before a broken connection is used anew: a shim that closes every one must not keep us busy.
const RECONNECT: Duration = Duration::from_millis(20);
/// Pause before an end is recorded again that the store could not take.
const FULL: Duration = Duration::from_secs(1);
/// How long the output of an ended process may still be on its way (a background process may hold it open).
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Engine {
    /// Watches a process until it ends.
    pub(crate) fn watch(self: &Rc<Self>, live: &Rc<Live>, exec: Option<ExecId>) {
        let Some(tracked) = live.process(exec.as_ref()) else {
            return;
        };
        if tracked.exit().borrow().is_some() {
            return;
        }
        let (engine, live) = (Rc::downgrade(self), Rc::downgrade(live));
        let watcher = tokio::task::spawn_local(watch(engine, live, exec));
        tracked.watched_by(watcher.abort_handle());
    }

    /// Takes the end of a process that was seen.
    pub(crate) async fn ended(
        self: &Rc<Self>,
        live: &Rc<Live>,
        exec: Option<&ExecId>,
        tracked: &Tracked,
        exit: Exit,
    ) {
        let pumps = tracked.pumps.take();
        if let Some(pumps) = pumps {
            pumps.finish(LAST_WORDS).await;
        }
        if tracked.starting.get() {
            tracked.early.replace(Some(exit));
            return;
        }
        faults::point("tasks.exit.seen");
        while let Err(error) = self.record_exit(live, exec, exit.clone()).await {
            if !matches!(error, StoreError::Fault(_)) {
                return;
            }
            tracing::error!(task = %live.name.id, %error, "the end of a process waits to be recorded");
            tokio::time::sleep(FULL).await;
        }
        faults::point("tasks.exit.recorded");
        tracked.tell(exit);
        self.retire(live);
    }

    async fn record_exit(
        &self,
        live: &Live,
        exec: Option<&ExecId>,
        exit: Exit,
    ) -> Result<(), StoreError> {
        let mut inputs = vec![Input::Exited(exit)];
        if let Some(exec) = exec
            && let Some(started) = self.start_before_end(live, exec).await
        {
            inputs.insert(0, started);
        }
        match exec {
            None => self.store.change(&live.name, None, inputs).await,
            Some(exec) => self.store.change_exec(&live.name, exec, None, inputs).await,
        }
        .map(drop)
    }

    /// Asks a shim how its container stands, and records what was missed; not while somebody changes it, who will record that.
    pub(crate) async fn ask(self: &Rc<Self>, live: &Rc<Live>) {
        let Ok(_asking) = live.asking.try_lock() else {
            // Somebody asks already: that answer is as good.
            return drop(live.asking.lock().await);
        };
        let request = api::StateRequest {
            id: live.name.id.to_string(),
            ..Default::default()
        };
        let answer = live
            .call::<_, api::StateResponse>("State", &request, STATE)
            .await;
        if let (Ok(state), Ok(_turn)) = (answer, live.turn.try_lock()) {
            self.found(live, &state).await;
        }
    }

    /// As [`Engine::ask`], without waiting.
    pub(crate) fn ask_aside(self: &Rc<Self>, live: &Rc<Live>) {
        if live.asking.try_lock().is_err() {
            return;
        }
        let (engine, asked) = (Rc::downgrade(self), Rc::downgrade(live));
        let errand = tokio::task::spawn_local(async move {
            if let (Some(engine), Some(live)) = (engine.upgrade(), asked.upgrade()) {
                engine.ask(&live).await;
            }
        });
        live.keep(errand.abort_handle());
    }

    /// Records what a shim says and nobody was answered for. Ends are left to the watcher, who waits for the output.
    pub(crate) async fn found(&self, live: &Live, state: &api::StateResponse) {
        let Ok(record) = self.store.get(&live.name) else {
            return;
        };
        let started = Input::Started { pid: state.pid };
        let wanted = match state.status.enum_value_or_default() {
            Status::RUNNING | Status::STOPPED => vec![started, Input::Resumed],
            Status::PAUSED => vec![started, Input::Paused],
            _ => Vec::new(),
        };
        let mut process = record.process;
        for input in wanted {
            let found = Input::Found(Box::new(input.clone()));
            let is_stopped = state.status == Status::STOPPED.into();
            let fits = !(is_stopped && input == Input::Resumed) && process.step(&found).is_ok();
            if fits && let Err(error) = self.store.change(&live.name, None, vec![found]).await {
                tracing::warn!(task = %live.name.id, %error, "what its shim said was not recorded");
            }
        }
    }
}

async fn watch(engine: Weak<Engine>, live: Weak<Live>, exec: Option<ExecId>) {
    let Some((id, tracked)) = live.upgrade().and_then(|live| {
        let tracked = live.process(exec.as_ref())?;
        Some((live.name.id.to_string(), Rc::downgrade(&tracked)))
    }) else {
        return;
    };
    let request = api::WaitRequest {
        id,
        exec_id: exec.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    };
    let Some(answer) = answer(&engine, &live, &request).await else {
        return;
    };
    let exit = Exit {
        exit_code: answer.exit_status,
        exited_at: moment(answer.exited_at.as_ref()),
    };
    if let (Some(engine), Some(live), Some(tracked)) =
        (engine.upgrade(), live.upgrade(), tracked.upgrade())
    {
        engine.ended(&live, exec.as_ref(), &tracked, exit).await;
    }
}

/// Waits through broken connections and stuck shims; `None` when there is nothing to wait for any more.
async fn answer(
    engine: &Weak<Engine>,
    live: &Weak<Live>,
    request: &api::WaitRequest,
) -> Option<api::WaitResponse> {
    loop {
        let shim = live.upgrade()?.shim().await;
        let answer = match shim {
            Ok(shim) => shim.call("Wait", request, None).await,
            Err(error) => Err(error),
        };
        let live = live.upgrade()?;
        match answer {
            Ok(answer) => return Some(answer),
            Err(_) if live.leaving.get() => return None,
            Err(error) if error.is(ttrpc::Code::NOT_FOUND) => return None,
            Err(ShimError::Gone(_)) => {
                live.hang_up();
                // Only a shim that cannot be reached again is dead.
                if let Err(ShimError::Gone(why)) = live.shim().await {
                    engine.upgrade()?.lost(&live, &Loss::Died(why)).await;
                    return None;
                }
                drop(live);
                tokio::time::sleep(RECONNECT).await;
            }
            Err(error) => {
                live.note(Some(&error));
                drop(live);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The moment of a message, or now.
pub(crate) fn moment(
    message: Option<&protobuf::well_known_types::timestamp::Timestamp>,
) -> Timestamp {
    match time(message) {
        Timestamp(0) => Timestamp::now(),
        time => time,
    }
}
