//! How processes ended: the last few of each, with the best reason that is known.

use super::{Lifecycle, Process};
use contracts::{PluginId, Timestamp, plugin::Exit};
use std::time::Duration;

/// How many ends of a process are remembered.
const REMEMBERED: usize = 8;

impl Lifecycle {
    /// Sets the clock on the wall: it says `wall` at `now`.
    pub fn set_clock(&mut self, wall: Timestamp, now: Duration) {
        self.epoch = Timestamp(wall.0.saturating_sub(nanos(now)));
    }

    /// How the process of `plugin` ended the last few times, oldest first.
    pub fn exits(&self, plugin: &PluginId) -> Vec<Exit> {
        let process = self.of(plugin);
        process.map_or_else(Vec::new, |p| p.exits.iter().cloned().collect())
    }

    /// How the process of `plugin` ended last time; empty when it never did.
    pub fn last_exit(&self, plugin: &PluginId) -> &str {
        let last = self.of(plugin).and_then(|process| process.exits.back());
        last.map_or("", |exit| &exit.how)
    }

    pub(super) fn last_words(&mut self, index: usize, why: String) {
        if let Some(process) = self.processes.get_mut(index) {
            process.last_words = Some(why);
        }
    }

    /// The time on the wall, to the second: `2026-01-31T12:00:00Z`.
    pub(super) fn wall(&self, at: Duration) -> String {
        let text = moment(self.epoch, at).to_string();
        match text.split_once('.') {
            Some((seconds, _)) => format!("{seconds}Z"),
            None => text,
        }
    }
}

impl Process {
    /// Notes an end and says how it is told.
    pub(super) fn ended(&mut self, epoch: Timestamp, now: Duration, reason: String) -> String {
        let how = self.last_words.take().unwrap_or(reason);
        self.exits.push_back(Exit {
            at: moment(epoch, now),
            how: how.clone(),
        });
        if self.exits.len() > REMEMBERED {
            self.exits.pop_front();
        }
        how
    }
}

fn moment(epoch: Timestamp, now: Duration) -> Timestamp {
    Timestamp(epoch.0.saturating_add(nanos(now)))
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
