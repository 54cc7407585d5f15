//! How a change of plan is made, all of it or nothing: (what is seen, now) → outputs.
//!
//! What changes is drained and held; when all of it has ended the new plan counts, and what changed or is new may try.
//! When one of those that must come up does not, all of them end and the old plan comes back.

use crate::{
    lifecycle::{Condition, Halt},
    upgrade::{SETTLE, View},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Which plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    New,
    Old,
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Hold a process.
    Hold(usize, Halt, String),
    /// Let a plan count. When that fails, what follows is void: see [`Turnover::not_applied`].
    Apply(Which),
    /// Let a held process try.
    Release(usize),
    /// It is watched as any other from now on.
    Trust(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Begin,
    Holding,
    Trying { since: Duration },
    Settling { since: Duration },
    Leaving,
    Returning { since: Duration },
    Over,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Turnover {
    hold: BTreeMap<usize, Halt>,
    release: BTreeSet<usize>,
    must: BTreeSet<usize>,
    /// How long they may take.
    ready: Duration,
    phase: Phase,
    cause: Option<String>,
}

impl Turnover {
    /// `hold`: what ends first, and how. `release`: what starts then. `must`: those of them that must come up.
    pub(crate) fn new(
        hold: BTreeMap<usize, Halt>,
        release: BTreeSet<usize>,
        must: BTreeSet<usize>,
        ready: Duration,
    ) -> Self {
        Self {
            hold,
            release,
            must,
            ready,
            phase: Phase::Begin,
            cause: None,
        }
    }

    /// Why the old plan is back; nothing when the new one counts.
    pub(crate) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether it may still do something to `process`.
    pub(crate) fn touches(&self, process: usize) -> bool {
        self.hold.contains_key(&process) || self.release.contains(&process)
    }

    /// When to look again at the latest.
    pub(crate) fn due(&self) -> Option<Duration> {
        match self.phase {
            Phase::Trying { since } | Phase::Returning { since } => Some(since + self.ready),
            Phase::Settling { since } => Some(since + SETTLE),
            Phase::Begin | Phase::Holding | Phase::Leaving | Phase::Over => None,
        }
    }

    /// Tells steps apart, for who asks until nothing changes.
    pub(crate) fn place(&self) -> impl PartialEq + use<> {
        self.phase
    }

    /// Looks at the processes and says what to do; nothing when they are to be waited for.
    pub(crate) fn advance(&mut self, view: &dyn View, now: Duration) -> Vec<Output> {
        match self.phase {
            Phase::Begin => self.begin(view),
            Phase::Holding if ended(view, self.hold.keys()) => self.apply(now),
            Phase::Trying { .. } | Phase::Settling { .. } => self.watch(view, now),
            Phase::Leaving if ended(view, &self.release) => {
                let mut outputs = vec![Output::Apply(Which::Old)];
                outputs.extend(self.come_back(now));
                outputs
            }
            Phase::Returning { since } => {
                if up(view, self.hold.keys()) || now >= since + self.ready {
                    self.phase = Phase::Over;
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// The new plan could not be applied, and nothing of it counts. Says what to do instead.
    pub(crate) fn not_applied(&mut self, why: String, now: Duration) -> Vec<Output> {
        self.cause = Some(why);
        self.come_back(now)
    }

    fn begin(&mut self, view: &dyn View) -> Vec<Output> {
        self.phase = Phase::Holding;
        let holds = self.hold.iter().map(|(&process, &halt)| {
            let why = "its configuration changes".to_owned();
            (process, Output::Hold(process, halt, why))
        });
        // Who was stopped by a user is told when he starts it.
        let there = holds.filter(|(process, _)| view.condition(*process) != Condition::Down);
        there.map(|(_, output)| output).collect()
    }

    fn apply(&mut self, now: Duration) -> Vec<Output> {
        self.phase = Phase::Trying { since: now };
        let mut outputs = vec![Output::Apply(Which::New)];
        for &process in &self.release {
            outputs.push(Output::Release(process));
            if !self.must.contains(&process) {
                outputs.push(Output::Trust(process));
            }
        }
        outputs
    }

    fn watch(&mut self, view: &dyn View, now: Duration) -> Vec<Output> {
        let fallen = |&&process: &&usize| view.condition(process) == Condition::Held;
        if let Some(process) = self.must.iter().find(fallen) {
            let why = format!("plugin {}: {}", view.name(*process), view.cause(*process));
            return self.fail(why);
        }
        let is_up = up(view, &self.must);
        match self.phase {
            Phase::Trying { .. } if is_up => {
                self.phase = Phase::Settling { since: now };
                Vec::new()
            }
            Phase::Trying { since } if now >= since + self.ready => {
                let late = |&&process: &&usize| view.condition(process) != Condition::Up;
                let name = self.must.iter().find(late).map(|p| view.name(*p));
                let (name, bound) = (name.unwrap_or_default(), self.ready.as_secs());
                self.fail(format!(
                    "plugin {name}: it did not become ready within {bound} s"
                ))
            }
            Phase::Settling { since } if is_up && now >= since + SETTLE => {
                let mut must = self.must.iter();
                if !must.all(|&process| view.has_answered(process, since)) {
                    return Vec::new();
                }
                self.phase = Phase::Over;
                self.must.iter().copied().map(Output::Trust).collect()
            }
            _ => Vec::new(),
        }
    }

    fn fail(&mut self, why: String) -> Vec<Output> {
        self.phase = Phase::Leaving;
        self.cause = Some(why);
        let held = "the former configuration comes back";
        let holds = self.release.iter();
        holds
            .map(|&process| Output::Hold(process, Halt::Kill, held.into()))
            .collect()
    }

    fn come_back(&mut self, now: Duration) -> Vec<Output> {
        self.phase = Phase::Returning { since: now };
        let processes = self.hold.keys();
        processes
            .flat_map(|&process| [Output::Release(process), Output::Trust(process)])
            .collect()
    }
}

fn ended<'a>(view: &dyn View, processes: impl IntoIterator<Item = &'a usize>) -> bool {
    let mut processes = processes.into_iter();
    processes.all(|&p| matches!(view.condition(p), Condition::Held | Condition::Down))
}

fn up<'a>(view: &dyn View, processes: impl IntoIterator<Item = &'a usize>) -> bool {
    let mut processes = processes.into_iter();
    processes.all(|&p| matches!(view.condition(p), Condition::Up | Condition::Down))
}
