//! Whether those who are ready still answer. All are asked in one round; who has not answered the last question is not
//! asked again. Silent for [`Timing::late`](super::Timing::late) a process is degraded, and ready again with its answer;
//! silent for [`Timing::kill`](super::Timing::kill) it is killed, and started again as after any failure.

use super::{Lifecycle, Output, Phase, Progress, Then};
use std::time::Duration;

/// What is known about a process all of whose plugins have become ready.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pulse {
    /// The question that it has not answered yet.
    asked: Option<u64>,
    /// When it answered last, or became ready.
    pub(super) heard: Duration,
    /// Whether it counts as stuck.
    pub(super) silent: bool,
}

/// The rounds of questions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rounds {
    last: Duration,
    number: u64,
}

impl Lifecycle {
    /// A process has become ready as a whole: from now on it is asked.
    pub(super) fn feel(&mut self, index: usize, now: Duration) {
        if self.probed().next().is_none() {
            self.rounds.last = now;
        }
        if let Some(process) = self.processes.get_mut(index) {
            process.pulse = Some(Pulse {
                asked: None,
                heard: now,
                silent: false,
            });
        }
    }

    /// Whether a process is not known to be stuck.
    pub(super) fn is_well(&self, index: usize) -> bool {
        let pulse = self.processes.get(index).and_then(|p| p.pulse);
        pulse.is_none_or(|pulse| !pulse.silent)
    }

    pub(super) fn pong(&mut self, index: usize, number: u64, now: Duration) {
        let process = self.processes.get_mut(index);
        let pulse = process.and_then(|process| process.pulse.as_mut());
        if let Some(pulse) = pulse.filter(|pulse| pulse.asked == Some(number)) {
            *pulse = Pulse {
                asked: None,
                heard: now,
                silent: false,
            };
        }
    }

    /// When something is to be done here.
    pub(super) fn probe_due(&self) -> Option<Duration> {
        let Timing { probe, late, kill } = self.probing()?;
        let silences = self.probed().filter_map(|(_, pulse)| match pulse {
            Pulse { asked: None, .. } => None,
            Pulse { silent: false, .. } => Some(pulse.heard + late.min(kill)),
            Pulse { silent: true, .. } => Some(pulse.heard + kill),
        });
        let round = self.probed().next().map(|_| self.rounds.last + probe);
        silences.chain(round).min()
    }

    /// Asks, and judges those who do not answer.
    pub(super) fn probe(&mut self, now: Duration) {
        let Some(timing) = self.probing() else {
            return;
        };
        if self.probed().next().is_none() {
            return;
        }
        let round = self.rounds.last + timing.probe;
        if round <= now {
            self.forgive_own_absence(now - round, now);
            self.rounds.last = now;
            self.ask();
        }
        let silent: Vec<(usize, Duration)> = self
            .probed()
            .filter(|(_, pulse)| pulse.asked.is_some())
            .map(|(index, pulse)| (index, now.saturating_sub(pulse.heard)))
            .collect();
        for (index, silence) in silent {
            if silence >= timing.kill {
                self.give_up(index, now);
            } else if let (true, Some(process)) =
                (silence >= timing.late, self.processes.get_mut(index))
            {
                process
                    .pulse
                    .iter_mut()
                    .for_each(|pulse| pulse.silent = true);
            }
        }
    }

    /// Who was not there could not hear: a supervisor that was stopped for a while blames nobody for it.
    fn forgive_own_absence(&mut self, absence: Duration, now: Duration) {
        for process in &mut self.processes {
            if let Some(pulse) = &mut process.pulse {
                pulse.heard = (pulse.heard + absence).min(now);
            }
        }
    }

    fn ask(&mut self) {
        self.rounds.number += 1;
        let number = self.rounds.number;
        let free = self.probed().filter(|(_, pulse)| pulse.asked.is_none());
        let free: Vec<usize> = free.map(|(index, _)| index).collect();
        for index in free {
            if let Some(pulse) = self.processes.get_mut(index).and_then(|p| p.pulse.as_mut()) {
                pulse.asked = Some(number);
                self.out.push(Output::Ping(index, number));
            }
        }
    }

    fn give_up(&mut self, index: usize, now: Duration) {
        let seconds = self.timing.kill.as_secs_f64();
        let why = format!("it did not answer for {seconds} s and was killed");
        self.kill(index, now, why);
    }

    /// Kills a process for a reason that users shall see when it has ended.
    pub(super) fn kill(&mut self, index: usize, now: Duration, why: String) {
        self.last_words(index, why.clone());
        self.end(index, now, why, None, Then::Rest { refused: false });
        self.out.push(Output::Kill(index));
    }

    /// The processes that are asked.
    fn probed(&self) -> impl Iterator<Item = (usize, Pulse)> {
        let processes = self.processes.iter().enumerate();
        processes.filter_map(|(index, process)| match (&process.phase, process.pulse) {
            (Phase::Live { .. }, Some(pulse)) => Some((index, pulse)),
            _ => None,
        })
    }

    /// How long the plugins of a process have been starting that were told to and are not ready.
    pub(super) fn too_long_in_start(&self, now: Duration) -> Option<usize> {
        let over = self.plugins.values().find(|plugin| {
            let live = self.has_phase(plugin.process, |p| matches!(p, Phase::Live { .. }));
            matches!(plugin.progress, Progress::Starting(since) if live && since + self.timing.start <= now)
        });
        over.map(|plugin| plugin.process)
    }

    fn probing(&self) -> Option<Timing> {
        let super::Timing {
            probe, late, kill, ..
        } = self.timing;
        let on = !probe.is_zero() && !self.shutdown;
        on.then_some(Timing { probe, late, kill })
    }
}

#[derive(Clone, Copy)]
struct Timing {
    probe: Duration,
    late: Duration,
    kill: Duration,
}
