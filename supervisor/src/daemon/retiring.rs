//! Processes that finish what is in flight beside their successors. Only edges do: they own nothing and nobody calls them.

use super::{Daemon, wire};
use crate::{
    child::{News, Running, What},
    standing::Standing,
};
use contracts::{PluginId, plugin::ToPlugin};
use std::{cell::RefCell, collections::BTreeMap, os::unix::net::UnixStream, time::Duration};
use tokio::time::Instant;

/// How long a retired process may take: twice as long as a request waits when nobody says otherwise.
const FAREWELL: Duration = Duration::from_secs(60);

/// A process whose place is taken.
pub(super) struct Retired {
    process: usize,
    running: Running,
    /// Peers are known to it up to this incarnation, or their own.
    since: u64,
    wired: RefCell<BTreeMap<PluginId, u64>>,
    pub(super) until: Instant,
}

impl Daemon {
    /// Takes a process out of its slot and tells it to finish.
    pub(super) fn retire(&mut self, process: usize) {
        let slot = self.slots.get_mut(process);
        let Some(running) = slot.and_then(|slot| slot.running.take()) else {
            return;
        };
        tracing::info!(pid = running.pid, "retires beside its successor");
        running.send(ToPlugin::Retire);
        self.retired.push(Retired {
            process,
            running,
            since: self.incarnations,
            wired: RefCell::default(),
            until: Instant::now() + FAREWELL,
        });
    }

    /// Whether the news are of a retired process: then only its end matters.
    pub(super) fn hear_retired(&mut self, news: &News) -> bool {
        let theirs = |r: &Retired| r.running.incarnation == news.incarnation;
        let known = self.retired.iter().any(theirs);
        if known && let What::Exited(how) = &news.what {
            tracing::info!(how, "has retired");
            self.retired.retain(|r| !theirs(r));
        }
        known
    }

    /// Kills those that take too long; what they still wait for is lost to their clients.
    pub(super) fn end_retired(&mut self) {
        let now = Instant::now();
        for late in self.retired.iter_mut().filter(|r| r.until <= now) {
            tracing::warn!(pid = late.running.pid, "does not finish: killed");
            late.running.kill();
            late.until = now + FAREWELL;
        }
    }

    pub(super) fn kill_retired(&self) {
        self.retired.iter().for_each(|r| r.running.kill());
    }

    /// Makes a fresh pair for a retired caller too, if the peer is another process than the one it knows.
    pub(super) fn wire_retired(&self, caller: &PluginId, peer: &PluginId) {
        let running = self.slot(peer).and_then(|slot| slot.running.as_ref());
        let Some(incarnation) = running.map(|running| running.incarnation) else {
            return;
        };
        for retired in self.retired_of(caller) {
            let known = retired.wired.borrow_mut().insert(peer.clone(), incarnation);
            if incarnation <= known.unwrap_or(retired.since) {
                continue;
            }
            match UnixStream::pair() {
                Ok((ours, theirs)) => {
                    retired.running.send(wire(caller, peer, true, ours));
                    self.serve_end(caller, peer, theirs);
                }
                Err(e) => tracing::error!(%caller, %peer, error = %e, "no socket pair"),
            }
        }
    }

    /// Tells a retired caller how its peer stands.
    pub(super) fn notify_retired(&self, caller: &PluginId, peer: &PluginId, standing: &Standing) {
        for retired in self.retired_of(caller) {
            retired.running.send(super::news(caller, peer, standing));
        }
    }

    fn retired_of(&self, plugin: &PluginId) -> impl Iterator<Item = &Retired> {
        let process = self.lifecycle.process_of(plugin);
        let retired = self.retired.iter();
        retired.filter(move |r| Some(r.process) == process)
    }
}
