//! What a reload or an upgrade does to a process: holds it, changes what it is, lets it try, and trusts it or not.
//!
//! While a process is held or on trial its plugins count as starting, whatever happens: their callers wait, and are
//! answered by whoever passes. A trial that fails does not begin again by itself; it ends in being held again.

use super::{Lifecycle, Output, Phase, Plugin, Process, Progress, Then, Timing};
use crate::{graph::Graph, restart::Policy};
use contracts::PluginId;
use std::time::Duration;

/// How a process is brought to a halt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// It finishes what is in flight.
    Drain,
    /// It goes on finishing what is in flight beside its successor. Only for those that nobody calls.
    Retire,
    /// At once.
    Kill,
}

/// How a process stands in a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no process until it is released.
    Held,
    /// There is no process, because a user stopped it.
    Down,
    /// All its plugins answer.
    Up,
    /// Anything else.
    Other,
}

impl Lifecycle {
    /// How `process` stands in a change.
    pub fn condition(&self, process: usize) -> Condition {
        let up = |p: &Plugin| matches!(p.progress, Progress::Answering(_));
        match self.processes.get(process).map(|p| &p.phase) {
            Some(Phase::Held) => Condition::Held,
            Some(Phase::Down) => Condition::Down,
            Some(Phase::Live { .. }) => {
                let mut hosted = self.plugins.values().filter(|p| p.process == process);
                match hosted.all(up) {
                    true => Condition::Up,
                    false => Condition::Other,
                }
            }
            _ => Condition::Other,
        }
    }

    /// Whether `process` has answered a question since then; yes when nobody is ever asked.
    pub fn has_answered(&self, process: usize, since: Duration) -> bool {
        let pulse = self.processes.get(process).and_then(|p| p.pulse);
        self.timing.probe.is_zero() || pulse.is_some_and(|pulse| pulse.heard > since)
    }

    /// Which plugin of `process` it is about: the one that is to blame, or the first.
    pub fn name(&self, process: usize) -> &str {
        let process = self.processes.get(process);
        let name = process.and_then(|p| p.culprit.as_ref().or(p.hosts.first()));
        name.map_or("", PluginId::as_str)
    }

    /// Why `process` is not up: what its callers are told.
    pub fn cause(&self, process: usize) -> &str {
        self.processes.get(process).map_or("", |p| &p.cause)
    }

    pub(super) fn hold(&mut self, index: usize, now: Duration, why: String, halt: Halt) {
        let Some(process) = self.processes.get_mut(index).filter(|_| !self.shutdown) else {
            return;
        };
        if process.phase == Phase::Down {
            return;
        }
        process.trial = false;
        process.cause = why;
        process.culprit = None;
        let live = matches!(process.phase, Phase::Live { .. } | Phase::Ending { .. });
        process.phase = match (live, halt) {
            (false, _) | (true, Halt::Retire) => Phase::Held,
            (true, _) => Phase::Ending {
                deadline: now + self.timing.stop,
                then: Then::Hold,
            },
        };
        self.out.extend(live.then_some(match halt {
            Halt::Drain => Output::Stop(index),
            Halt::Retire => Output::Retire(index),
            Halt::Kill => Output::Kill(index),
        }));
    }

    /// Starts what is held, on trial.
    pub(super) fn release(&mut self, index: usize, now: Duration) {
        if self.shutdown || !self.has_phase(index, |phase| *phase == Phase::Held) {
            return;
        }
        if let Some(process) = self.processes.get_mut(index) {
            process.trial = true;
            process.failed = false;
            process.history.clear();
        }
        self.spawn(index, now);
    }

    /// Ends a trial well: from now on the process is watched as any other.
    pub(super) fn trust(&mut self, index: usize) {
        if let Some(process) = self.processes.get_mut(index) {
            process.trial = false;
        }
    }

    /// Takes another plan: `processes` by number, those that are gone without plugins.
    ///
    /// What hosts the same as before goes on untouched. What hosts something else must be held, and stays so.
    pub fn replan(
        &mut self,
        graph: Graph,
        processes: &[Vec<PluginId>],
        policy: Policy,
        timing: Timing,
    ) {
        self.graph = graph;
        self.policy = policy;
        self.timing = timing;
        for (index, hosts) in processes.iter().enumerate() {
            match self.processes.get_mut(index) {
                Some(same) if same.hosts == *hosts => {}
                Some(other) => *other = Process::planned(hosts.clone()),
                None => self.processes.push(Process::planned(hosts.clone())),
            }
        }
        let mut plugins = std::mem::take(&mut self.plugins);
        for (process, hosts) in processes.iter().enumerate() {
            for id in hosts {
                let same = plugins.remove(id).filter(|p| p.process == process);
                let plugin = same.unwrap_or_else(|| Plugin::new(process));
                self.plugins.insert(id.clone(), plugin);
            }
        }
        let known: Vec<_> = self.graph.edges().collect();
        self.told
            .retain(|(caller, peer), _| known.contains(&(caller, peer)));
    }
}

impl Process {
    fn planned(hosts: Vec<PluginId>) -> Self {
        let phase = match hosts.is_empty() {
            true => Phase::Down,
            false => Phase::Held,
        };
        Self {
            phase,
            ..Self::new(hosts)
        }
    }
}

#[cfg(test)]
mod tests;
