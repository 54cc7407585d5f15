//! Links that broke between two living processes, by bytes that are no frame: they are made anew after a pause, which
//! grows with every break, so that who breaks a link again and again costs nothing.

use super::{Lifecycle, Output};
use crate::restart::History;
use contracts::PluginId;
use std::time::Duration;

/// What is remembered about an edge that broke.
#[derive(Default)]
pub(super) struct Edge {
    history: History,
    wired: Duration,
    due: Option<Duration>,
}

impl Lifecycle {
    /// One of both ends cannot use its link any more.
    pub(super) fn broken(&mut self, plugin: PluginId, peer: PluginId, now: Duration) {
        let calls = |from: &PluginId, to: &PluginId| self.graph.requires(from).any(|id| id == to);
        let edge = match (calls(&plugin, &peer), calls(&peer, &plugin)) {
            (true, _) => (plugin, peer),
            (_, true) => (peer, plugin),
            _ => return,
        };
        if !self.is_live(&edge.0) || !self.is_live(&edge.1) {
            // Its successor is wired anyway.
            return;
        }
        let known = self.edges.entry(edge).or_default();
        if known.due.is_none() {
            let worked = now.saturating_sub(known.wired);
            let pause = known.history.ended(&self.policy, worked, (self.jitter)());
            known.due = Some(now + pause.length);
        }
    }

    pub(super) fn edges_due(&self) -> Option<Duration> {
        self.edges.values().filter_map(|edge| edge.due).min()
    }

    /// Makes those links anew whose pause is over, unless an end has gone meanwhile.
    pub(super) fn mend(&mut self, now: Duration) {
        let over = |edge: &Edge| edge.due.is_some_and(|due| due <= now);
        let due: Vec<_> = self.edges.iter().filter(|(_, edge)| over(edge)).collect();
        let due: Vec<_> = due.into_iter().map(|(ends, _)| ends.clone()).collect();
        for (caller, peer) in due {
            let both = self.is_live(&caller) && self.is_live(&peer) && !self.shutdown;
            if let Some(edge) = self.edges.get_mut(&(caller.clone(), peer.clone())) {
                edge.due = None;
                edge.wired = now;
            }
            self.out
                .extend(both.then_some(Output::Wire { caller, peer }));
        }
    }

    /// A fresh process gets fresh links.
    pub(super) fn is_wired(&mut self, caller: &PluginId, peer: &PluginId) {
        if let Some(edge) = self.edges.get_mut(&(caller.clone(), peer.clone())) {
            edge.due = None;
        }
    }
}
