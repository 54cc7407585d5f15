//! What users and signals want: stop, start, restart, and the end of everything, callers first.

use super::{Lifecycle, Output, Phase, Process, Then};
use contracts::PluginId;
use std::time::Duration;

impl Lifecycle {
    pub(super) fn on_user(&mut self, plugin: &PluginId, act: impl FnOnce(&mut Self, usize)) {
        if let (Some(process), false) = (self.process_of(plugin), self.shutdown) {
            act(self, process);
        }
    }

    pub(super) fn stop(&mut self, index: usize, now: Duration) {
        self.gave_chance(index);
        self.wish(index, now, Then::Stay, "stopped by a user");
    }

    pub(super) fn start(&mut self, index: usize, now: Duration) {
        if self.has_phase(index, |phase| !matches!(phase, Phase::Live { .. })) {
            self.wish(index, now, Then::Again, "started by a user");
        }
    }

    pub(super) fn restart(&mut self, index: usize, now: Duration) {
        self.wish(index, now, Then::Again, "restarted by a user");
    }

    /// Brings a process down, and up again if `then` says so.
    pub(super) fn wish(&mut self, index: usize, now: Duration, then: Then, cause: &str) {
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        process.history.clear();
        process.failed = false;
        process.cause = cause.into();
        process.culprit = None;
        match (&mut process.phase, then) {
            (Phase::Ending { then: planned, .. }, _) => *planned = then,
            (Phase::Live { .. }, _) => {
                // Who does not answer will hardly hear this either.
                let stuck = process.pulse.is_some_and(|pulse| pulse.silent);
                let patience = match stuck {
                    true => self.timing.farewell,
                    false => self.timing.stop,
                };
                let deadline = now + patience;
                process.phase = Phase::Ending { deadline, then };
                self.out.push(Output::Stop(index));
            }
            (phase, Then::Again) => {
                *phase = Phase::Down;
                self.spawn(index, now);
            }
            (phase, _) => *phase = Phase::Down,
        }
    }

    pub(super) fn begin_shutdown(&mut self, now: Duration) {
        for process in &mut self.processes {
            match &mut process.phase {
                Phase::Resting { .. } | Phase::Held => process.phase = Phase::Down,
                // Said again: patience has ended.
                Phase::Ending { deadline, .. } if self.shutdown => *deadline = now,
                Phase::Live { .. } if self.shutdown => {
                    let then = Then::Stay;
                    process.phase = Phase::Ending {
                        deadline: now,
                        then,
                    };
                }
                _ => {}
            }
            process.cause = "the supervisor stops".into();
        }
        self.shutdown = true;
    }

    /// While shutting down: asks those to stop that nobody calls any more. Says once when there is none left.
    pub(super) fn stop_next(&mut self, now: Duration) -> bool {
        if !self.shutdown || self.finished {
            return false;
        }
        let live = |phase: &Phase| matches!(phase, Phase::Live { .. });
        let open: Vec<usize> = (0..self.processes.len())
            .filter(|&p| self.has_phase(p, live))
            .collect();
        let mut next: Vec<usize> = open
            .iter()
            .copied()
            .filter(|&p| !self.is_called(p))
            .collect();
        let ending = |p: &Process| matches!(p.phase, Phase::Ending { .. });
        let waiting = self.processes.iter().any(ending);
        if next.is_empty() && !waiting {
            // Shared processes can call each other in a circle: the one that started last goes first.
            next.extend(self.last_started(&open));
        }
        self.finished = next.is_empty() && !waiting;
        for index in next {
            self.wish(index, now, Then::Stay, "the supervisor stops");
        }
        self.finished
    }

    fn is_called(&self, index: usize) -> bool {
        let running = |caller: &PluginId| {
            self.process_of(caller).is_some_and(|p| {
                p != index
                    && self.has_phase(p, |phase| {
                        matches!(phase, Phase::Live { .. } | Phase::Ending { .. })
                    })
            })
        };
        let hosts = self.processes.get(index).map(|p| p.hosts.as_slice());
        let mut callers = hosts
            .unwrap_or_default()
            .iter()
            .flat_map(|h| self.graph.required_by(h));
        callers.any(running)
    }

    fn last_started(&self, open: &[usize]) -> Option<usize> {
        let mut order = self.graph.start_order().rev();
        order.find_map(|plugin| self.process_of(plugin).filter(|p| open.contains(p)))
    }
}
