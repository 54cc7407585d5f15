//! Moving processes to another build, one after another, and back when one of them fails: (what is seen, now) → outputs.
//!
//! A process is drained, its successor of the new build must become ready in time and stay so for [`SETTLE`].
//! When it does not, it and all those before it go back to the build they came from, in reverse order. A process that
//! somebody kills while it settles gets another chance: that is no fault of its build. A process that was not up when
//! its turn came is only told which build to start from next; it can prove nothing.

use crate::lifecycle::{Condition, Halt, Lifecycle};
use contracts::{
    PluginId,
    plugin::{UpgradeState, UpgradeStep},
};
use std::time::Duration;

/// How long it must stay ready. What is wrong with a build shows with the first calls, and those wait already.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);
/// How long to wait for a process that is not up when its turn comes: longer than most restarts.
const TURN: Duration = Duration::from_secs(5);
/// How often a successor that was killed from outside is started again.
const CHANCES: u32 = 2;

/// What the machine sees of the processes.
pub(crate) trait View {
    /// How a process stands.
    fn condition(&self, process: usize) -> Condition;
    /// Which plugin it is about.
    fn name(&self, process: usize) -> String;
    /// Why it is not up.
    fn cause(&self, process: usize) -> String;
    /// Whether it has answered a question since then.
    fn has_answered(&self, process: usize, since: Duration) -> bool;
    /// Whether it was ended by SIGKILL from outside.
    fn was_killed(&self, process: usize) -> bool;
}

/// Which build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// The one to move to.
    New,
    /// The one that the process came from.
    Old,
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Hold a process.
    Hold(usize, Halt, String),
    /// Let a process start from a build from now on.
    Assign(usize, Build),
    /// Let a held process try.
    Release(usize),
    /// It has passed.
    Trust(usize),
}

/// One process of an upgrade.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) process: usize,
    pub(crate) plugins: Vec<PluginId>,
    pub(crate) halt: Halt,
    word: &'static str,
    away: Duration,
}

impl Step {
    pub(crate) fn new(process: usize, plugins: Vec<PluginId>, halt: Halt) -> Self {
        Self {
            process,
            plugins,
            halt,
            word: "waiting",
            away: Duration::ZERO,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The turn of the present step begins.
    Turn { since: Duration },
    /// The old process finishes what is in flight.
    Draining,
    /// The new one starts.
    Trying { since: Duration },
    /// The new one is ready since then.
    Settling { since: Duration },
    /// What failed, or is to go back, ends.
    Leaving,
    /// The old build starts again.
    Returning { since: Duration },
    /// The turn of a step that goes back begins.
    Back,
    /// Over.
    Over,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Upgrade {
    steps: Vec<Step>,
    /// How long a successor may take to become ready. Short of what callers wait, the old build still answers them.
    ready: Duration,
    at: usize,
    phase: Phase,
    state: UpgradeState,
    cause: String,
    killed: u32,
}

impl Upgrade {
    pub(crate) fn new(steps: Vec<Step>, ready: Duration, now: Duration) -> Self {
        Self {
            steps,
            ready,
            at: 0,
            phase: Phase::Turn { since: now },
            state: UpgradeState::Running,
            cause: String::new(),
            killed: 0,
        }
    }

    /// How it goes as a whole.
    pub(crate) fn state(&self) -> UpgradeState {
        self.state
    }

    /// Why it goes back; empty otherwise.
    pub(crate) fn cause(&self) -> &str {
        &self.cause
    }

    /// Whether nothing is left to do.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whose turn it is.
    pub(crate) fn present(&self) -> Option<usize> {
        let step = self.steps.get(self.at).filter(|_| !self.is_over());
        step.map(|step| step.process)
    }

    /// Every plugin, in order.
    pub(crate) fn steps(&self) -> Vec<UpgradeStep> {
        let rows = |step: &Step| {
            let (phase, away) = (step.word.to_owned(), step.away.as_micros() as u64);
            let row = move |plugin: PluginId| UpgradeStep {
                plugin,
                phase: phase.clone(),
                away,
            };
            step.plugins.clone().into_iter().map(row)
        };
        self.steps.iter().flat_map(rows).collect()
    }

    /// Tells steps apart, for who asks until nothing changes.
    pub(crate) fn place(&self) -> impl PartialEq + use<> {
        (self.at, self.phase)
    }

    /// When to look again at the latest.
    pub(crate) fn due(&self) -> Option<Duration> {
        match self.phase {
            Phase::Turn { since } => Some(since + TURN),
            Phase::Trying { since } | Phase::Returning { since } => Some(since + self.ready),
            Phase::Settling { since } => Some(since + SETTLE),
            Phase::Draining | Phase::Leaving | Phase::Back | Phase::Over => None,
        }
    }

    /// Looks at the present process and says what to do; nothing when it is to be waited for.
    pub(crate) fn advance(&mut self, view: &dyn View, now: Duration) -> Vec<Output> {
        let Some(process) = self.present() else {
            self.finish();
            return Vec::new();
        };
        let seen = view.condition(process);
        match (self.phase, seen) {
            (Phase::Turn { .. }, Condition::Up) => self.drain(process),
            (Phase::Turn { since }, Condition::Other) if now < since + TURN => Vec::new(),
            (Phase::Turn { .. }, _) => {
                self.word("prepared");
                self.next(now);
                vec![Output::Assign(process, Build::New)]
            }
            (Phase::Draining, Condition::Held) => self.start(process, now),
            (Phase::Trying { since }, Condition::Up) => {
                self.note_away(now.saturating_sub(since));
                self.phase = Phase::Settling { since: now };
                Vec::new()
            }
            (Phase::Settling { since }, Condition::Up)
                if now >= since + SETTLE && view.has_answered(process, since) =>
            {
                self.word("ready");
                self.next(now);
                vec![Output::Trust(process)]
            }
            (Phase::Trying { .. } | Phase::Settling { .. }, Condition::Held) => {
                self.fallen(process, view, now)
            }
            (Phase::Trying { since }, _) if now >= since + self.ready => {
                self.too_late(process, view)
            }
            (Phase::Leaving, Condition::Held) => {
                self.phase = Phase::Returning { since: now };
                // From here on it is watched as any other: there is no other build to try.
                vec![
                    Output::Assign(process, Build::Old),
                    Output::Release(process),
                    Output::Trust(process),
                ]
            }
            (Phase::Returning { since }, seen)
                if seen == Condition::Up || now >= since + self.ready =>
            {
                self.word("rolled_back");
                self.previous();
                Vec::new()
            }
            (Phase::Back, seen) => self.go_back(process, &seen),
            _ => Vec::new(),
        }
    }

    fn drain(&mut self, process: usize) -> Vec<Output> {
        self.word("draining");
        self.phase = Phase::Draining;
        let halt = self.steps.get(self.at).map_or(Halt::Drain, |s| s.halt);
        let why = "it is moved to another build".into();
        vec![Output::Hold(process, halt, why)]
    }

    fn start(&mut self, process: usize, now: Duration) -> Vec<Output> {
        self.word("starting");
        self.phase = Phase::Trying { since: now };
        vec![
            Output::Assign(process, Build::New),
            Output::Release(process),
        ]
    }

    fn fallen(&mut self, process: usize, view: &dyn View, now: Duration) -> Vec<Output> {
        if view.was_killed(process) && self.killed < CHANCES {
            self.killed += 1;
            self.phase = Phase::Trying { since: now };
            return vec![Output::Release(process)];
        }
        self.fail(&view.name(process), &view.cause(process));
        Vec::new()
    }

    fn too_late(&mut self, process: usize, view: &dyn View) -> Vec<Output> {
        let why = format!("it did not become ready within {} s", self.ready.as_secs());
        self.fail(&view.name(process), &why);
        vec![Output::Hold(process, Halt::Kill, why)]
    }

    fn fail(&mut self, who: &str, why: &str) {
        self.cause = format!("plugin {who}: the new build does not run: {why}");
        self.state = UpgradeState::RollingBack;
        self.phase = Phase::Leaving;
    }

    /// Begins to take back a step that had succeeded.
    fn go_back(&mut self, process: usize, seen: &Condition) -> Vec<Output> {
        let Some(step) = self.steps.get(self.at) else {
            return Vec::new();
        };
        let prepared = step.word == "prepared" || *seen == Condition::Down;
        let halt = step.halt;
        match prepared {
            true => {
                self.word("rolled_back");
                self.previous();
                vec![Output::Assign(process, Build::Old)]
            }
            false => {
                self.phase = Phase::Leaving;
                let why = "it is moved back to the former build".into();
                vec![Output::Hold(process, halt, why)]
            }
        }
    }

    fn next(&mut self, now: Duration) {
        self.at += 1;
        self.killed = 0;
        self.phase = Phase::Turn { since: now };
    }

    fn previous(&mut self) {
        self.phase = Phase::Back;
        match self.at.checked_sub(1) {
            Some(before) => self.at = before,
            None => {
                self.phase = Phase::Over;
                self.state = UpgradeState::RolledBack;
            }
        }
    }

    /// Ends well, once every step is done.
    fn finish(&mut self) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            self.state = UpgradeState::Done;
        }
    }

    fn word(&mut self, word: &'static str) {
        if let Some(step) = self.steps.get_mut(self.at) {
            step.word = word;
        }
    }

    fn note_away(&mut self, away: Duration) {
        if let Some(step) = self.steps.get_mut(self.at) {
            step.away = away;
        }
    }
}

impl View for Lifecycle {
    fn condition(&self, process: usize) -> Condition {
        self.condition(process)
    }
    fn name(&self, process: usize) -> String {
        self.name(process).to_owned()
    }
    fn cause(&self, process: usize) -> String {
        self.cause(process).to_owned()
    }
    fn has_answered(&self, process: usize, since: Duration) -> bool {
        self.has_answered(process, since)
    }
    fn was_killed(&self, process: usize) -> bool {
        self.cause(process) == "it ended: signal 9 (SIGKILL)"
    }
}

#[cfg(test)]
mod tests;
