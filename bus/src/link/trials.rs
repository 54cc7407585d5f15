//! What a link does about suspects: tells them apart by what happens to it, sends one at a time, refuses the guilty.

use super::Link;
use super::suspects::{Convicted, QUICK, Suspects, Trial, Turn};
use contracts::{Error, plugin::State};
use std::{
    hash::{BuildHasher, RandomState},
    rc::Rc,
};
use tokio::time::{Instant, sleep};

/// No suspects, with pauses that no other process has.
pub(super) fn none() -> Suspects {
    Suspects::new(RandomState::new().hash_one(()))
}

impl Link {
    /// The peer stands differently than `before`. Its death may be told before its socket's end is seen, or after.
    pub(super) fn changed(&self, before: State) {
        let answers = |state| matches!(state, State::Ready | State::Degraded);
        let (state, cause) = {
            let standing = self.standing.borrow();
            (standing.state, standing.cause.clone())
        };
        let now = Instant::now();
        match (answers(before), state) {
            (false, state) if answers(state) => {
                self.suspects.borrow_mut().ready(now);
                self.go_on();
            }
            (true, State::Backoff) => {
                let convicted = self.suspects.borrow_mut().fell(&cause, now);
                self.refuse(convicted);
            }
            (true, state) if !answers(state) => self.suspects.borrow_mut().left(),
            _ => {}
        }
    }

    pub(super) fn closed(&self) {
        let convicted = self.suspects.borrow_mut().closed(Instant::now());
        self.refuse(convicted);
    }

    /// Sends who may be sent now, if somebody was held back.
    pub(super) fn go_on(&self) {
        let (Some(number), Some(me)) = (self.number(), self.me.upgrade()) else {
            return;
        };
        match self.suspects.borrow_mut().turn() {
            Turn::Wait => {}
            Turn::One(trial) => drop(actix::spawn(me.try_one(number, trial))),
            Turn::All => {
                let pending = self.pending.borrow().keys().copied().collect();
                actix::spawn(me.resend(number, pending));
            }
        }
    }

    async fn try_one(self: Rc<Self>, number: u64, trial: Trial) {
        sleep(trial.pause).await;
        if !self.suspects.borrow_mut().begin(trial) {
            return;
        }
        self.send_by(number, trial.id).await;
        sleep(QUICK).await;
        self.suspects.borrow_mut().survived(trial);
        self.go_on();
    }

    fn refuse(&self, convicted: Vec<Convicted>) {
        for Convicted { id, crashes } in convicted {
            let pending = self.pending.borrow();
            let Some(method) = pending.get(&id).map(|call| call.call.method.clone()) else {
                continue;
            };
            drop(pending);
            let error = self.poisonous(&method, crashes);
            tracing::error!(%error, "a call is not sent again");
            self.finish(id, Err(error));
        }
    }

    fn poisonous(&self, method: &str, crashes: u32) -> Error {
        let (peer, standing) = (&self.peer, self.standing.borrow());
        let (cause, within) = (&standing.cause, QUICK.as_millis());
        let error = Error::internal(format!(
            "{method}: plugin {peer} crashed {crashes} times in a row within {within} ms of getting this request, which is not sent to it again; last: {cause}; GET /v1/plugins/{peer} shows all its exits"
        ));
        error.caused_by(peer.clone(), vec![peer.clone()])
    }
}
