//! Finds the call that ends its peer each time it is carried out, so that it is not sent again for ever: pure, it takes
//! what happens and `now`.
//!
//! A peer that was ready and crashed at most [`QUICK`] after a call had been handed to it may have crashed because of
//! that call. After the [`CROWD`]th such crash in a row a call is a suspect: suspects are sent one at a time, and
//! everybody else waits. The innocent ones are answered; the guilty one is alone when its peer crashes. After [`LIMIT`]
//! crashes, [`ALONE`] of them alone, it is convicted: its caller gets an error, nobody else does.
//!
//! What never counts: a death before the peer was ready, one that a user or an upgrade asked for, and SIGKILL, which
//! comes from outside. Callers of other processes cannot be seen here; therefore a suspect waits a pause of its own
//! before it is sent, so that two suspects of two callers seldom die together.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};
use tokio::time::Instant;

/// How soon after the delivery a crash is laid to a call. 250 ms: a request that crashes its reader does so at once,
/// and whoever outlives it is let go together with others.
pub(super) const QUICK: Duration = Duration::from_millis(250);
/// Crashes after which a call is sent alone.
const CROWD: u32 = 2;
/// Crashes after which a call is not sent again. Well below the number that makes a plugin fail for everybody.
const LIMIT: u32 = 4;
/// How many of them it must have been alone at.
const ALONE: u32 = 2;
/// Pauses of suspects: so many, each so much longer than the one before.
const SLOTS: u64 = 10;
const SLOT: Duration = Duration::from_millis(20);

/// What is known about the calls of one link.
#[derive(Default)]
pub(super) struct Suspects {
    /// Since when the peer is ready.
    ready: Option<Instant>,
    /// When its connection ended, and how it did: a crash is judged when both are known.
    closed: Option<Instant>,
    fell: Option<Fall>,
    calls: BTreeMap<u64, Call>,
    suspects: BTreeSet<u64>,
    trial: Option<Trial>,
    /// Whether the pause of the trial is over.
    out: bool,
    trials: u64,
    /// Whether somebody may have been held back.
    held: bool,
    /// Makes the pauses of two callers differ.
    seed: u64,
    /// Whether a suspect was sent to the peer that is there now.
    tried: bool,
}

/// The end of a peer that was ready.
#[derive(Clone, Copy)]
struct Fall {
    crash: bool,
    at: Instant,
    ready: Option<Instant>,
}

#[derive(Default)]
struct Call {
    /// When it was handed to the peer that is there now.
    delivered: Option<Instant>,
    /// Crashes soon after its delivery, in a row.
    crashes: u32,
    /// Those at which it was the only suspect that was out.
    alone: u32,
}

/// A suspect that is out, or about to be, alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// Which call.
    pub(super) id: u64,
    /// Tells trials of one call apart.
    number: u64,
    /// How long to wait before it is sent.
    pub(super) pause: Duration,
}

/// Who may be sent now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nobody besides those who were.
    Wait,
    /// One suspect, alone.
    One(Trial),
    /// All that were held back.
    All,
}

/// A call that is not sent again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Convicted {
    pub(super) id: u64,
    /// How often its peer crashed.
    pub(super) crashes: u32,
}

impl Suspects {
    /// Nothing has happened. `seed` should differ from caller to caller.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// The peer is ready.
    pub(super) fn ready(&mut self, now: Instant) {
        self.ready.get_or_insert(now);
    }

    /// The peer was ready and ended because of `cause`.
    pub(super) fn fell(&mut self, cause: &str, now: Instant) -> Vec<Convicted> {
        let crash = !cause.contains("(SIGKILL)");
        let ready = self.ready.take();
        self.fell = Some(Fall {
            crash,
            at: now,
            ready,
        });
        self.judge()
    }

    /// The peer is on its way down because somebody wants it so.
    pub(super) fn left(&mut self) {
        self.ready = None;
    }

    /// The connection ended.
    pub(super) fn closed(&mut self, now: Instant) -> Vec<Convicted> {
        self.closed.get_or_insert(now);
        self.trial = None;
        self.judge()
    }

    /// A fresh connection is there. Without a fall, the one before it merely broke.
    pub(super) fn opened(&mut self) {
        (self.closed, self.fell, self.trial) = (None, None, None);
        self.tried = false;
        self.let_go();
    }

    /// A call goes to the peer now.
    pub(super) fn delivered(&mut self, id: u64, now: Instant) {
        self.calls.entry(id).or_default().delivered = Some(now);
    }

    /// A call is not pending any more.
    pub(super) fn forget(&mut self, id: u64) {
        self.calls.remove(&id);
        self.suspects.remove(&id);
        self.trial = self.trial.filter(|trial| trial.id != id);
    }

    /// Whether a call must wait, because a suspect has to be alone.
    pub(super) fn holds(&mut self, id: u64) -> bool {
        let out = self.out && self.trial.is_some_and(|trial| trial.id == id);
        let holds = !self.suspects.is_empty() && !out;
        self.held |= holds;
        holds
    }

    /// Who may be sent now.
    pub(super) fn turn(&mut self) -> Turn {
        if self.suspects.is_empty() {
            return match std::mem::take(&mut self.held) {
                true => Turn::All,
                false => Turn::Wait,
            };
        }
        if self.ready.is_none() || self.trial.is_some() {
            return Turn::Wait;
        }
        // Who was never alone goes first: the innocent are answered before the guilty comes again.
        let rank = |id: &u64| (self.calls.get(id).map_or(0, |call| call.alone), *id);
        let Some(id) = self.suspects.iter().copied().min_by_key(rank) else {
            return Turn::Wait;
        };
        self.trials += 1;
        let trial = Trial {
            id,
            number: self.trials,
            pause: self.pause(),
        };
        self.tried = true;
        (self.trial, self.out) = (Some(trial), false);
        Turn::One(trial)
    }

    /// Only the first suspect of each life of the peer waits: the others come at times of their own anyway.
    fn pause(&self) -> Duration {
        if self.tried {
            return Duration::ZERO;
        }
        let mut hasher = DefaultHasher::new();
        (self.seed, self.trials).hash(&mut hasher);
        SLOT * (hasher.finish() % SLOTS) as u32
    }

    /// The pause of a trial is over. Says whether it still is its turn.
    pub(super) fn begin(&mut self, trial: Trial) -> bool {
        self.out = self.out || self.trial == Some(trial);
        self.trial == Some(trial)
    }

    /// The peer lives though the suspect of `trial` was with it for [`QUICK`].
    pub(super) fn survived(&mut self, trial: Trial) {
        if self.trial == Some(trial) {
            self.trial = None;
            self.acquit(trial.id);
        }
    }

    fn acquit(&mut self, id: u64) {
        self.suspects.remove(&id);
        if let Some(call) = self.calls.get_mut(&id) {
            (call.crashes, call.alone) = (0, 0);
        }
    }

    /// Counts a crash once it is known when the connection ended and why; says who is convicted by it.
    fn judge(&mut self) -> Vec<Convicted> {
        let (Some(closed), Some(fall)) = (self.closed, self.fell) else {
            return Vec::new();
        };
        self.fell = None;
        if let Some(ready) = fall.ready {
            let (at, alone) = (closed.min(fall.at), !self.suspects.is_empty());
            for call in self.calls.values_mut() {
                call.outlived(ready, at, fall.crash, alone);
            }
        }
        self.let_go();
        self.accuse()
    }

    /// Nobody has the calls any more.
    fn let_go(&mut self) {
        self.calls
            .values_mut()
            .for_each(|call| call.delivered = None);
        self.calls.retain(|_, call| call.crashes > 0);
    }

    fn accuse(&mut self) -> Vec<Convicted> {
        let of = |(&id, call): (&u64, &Call)| (id, call.crashes, call.alone);
        let counted: Vec<_> = self.calls.iter().map(of).collect();
        let suspects = counted.iter().filter(|(_, crashes, _)| *crashes >= CROWD);
        self.suspects = suspects.map(|(id, ..)| *id).collect();
        let is_guilty = |&(_, crashes, alone): &(u64, u32, u32)| crashes >= LIMIT && alone >= ALONE;
        let guilty = counted.into_iter().filter(is_guilty);
        let convicted = |(id, crashes, _)| Convicted { id, crashes };
        guilty.map(convicted).collect()
    }
}

impl Call {
    /// Its peer was ready since `ready` and ended at `at`.
    fn outlived(&mut self, ready: Instant, at: Instant, crash: bool, alone: bool) {
        let Some(delivered) = self.delivered else {
            return;
        };
        if at.saturating_duration_since(delivered.max(ready)) > QUICK {
            (self.crashes, self.alone) = (0, 0);
        } else if crash {
            self.crashes += 1;
            self.alone += u32::from(alone);
        }
    }
}
