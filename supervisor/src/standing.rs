//! How each plugin stands, as users and dependants see it: its own condition, and what its requirements do to it.

use crate::graph::Graph;
use contracts::{PluginId, plugin::State};
use std::collections::BTreeMap;

/// How a plugin stands, why, and through whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: State,
    /// Why, unless ready; may be empty.
    pub cause: String,
    /// From the plugin down to the one that is the cause, unless ready.
    pub chain: Vec<PluginId>,
}

impl Standing {
    /// Answers calls, and so does all that it requires.
    pub fn ready() -> Self {
        Self {
            state: State::Ready,
            cause: String::new(),
            chain: Vec::new(),
        }
    }
}

/// A plugin's own condition, with its requirements left aside.
pub(crate) struct Own {
    /// The state.
    pub(crate) state: State,
    /// Why, unless ready.
    pub(crate) cause: String,
    /// Another plugin of the same process that is to blame.
    pub(crate) culprit: Option<PluginId>,
    /// The requirement it still waits for before it may start.
    pub(crate) waits_for: Option<PluginId>,
}

/// Derives all standings from every plugin's own condition. Being degraded is passed on to whoever requires it.
pub(crate) fn derive(
    graph: &Graph,
    own: impl Fn(&PluginId) -> Own,
) -> BTreeMap<PluginId, Standing> {
    let mut known = BTreeMap::new();
    for plugin in graph.start_order() {
        let standing = of_one(graph, plugin, own(plugin), &known);
        known.insert(plugin.clone(), standing);
    }
    known
}

fn of_one(
    graph: &Graph,
    plugin: &PluginId,
    own: Own,
    known: &BTreeMap<PluginId, Standing>,
) -> Standing {
    match (own.state, own.waits_for) {
        (State::Ready, _) => match worst(graph, plugin, known) {
            Some(requirement) => because_of(plugin, requirement, known),
            None => Standing::ready(),
        },
        (State::Pending, Some(requirement)) => Standing {
            state: State::Pending,
            cause: format!("waits for {requirement}"),
            chain: chain(plugin, &requirement, known),
        },
        (state, _) => Standing {
            state,
            cause: own.cause,
            chain: [Some(plugin.clone()), own.culprit]
                .into_iter()
                .flatten()
                .collect(),
        },
    }
}

/// The requirement that is to be named when several do not answer: what will not heal by itself comes first.
fn worst<'a>(
    graph: &'a Graph,
    plugin: &PluginId,
    known: &BTreeMap<PluginId, Standing>,
) -> Option<&'a PluginId> {
    let broken = graph.requires(plugin).filter(|requirement| {
        known
            .get(*requirement)
            .is_some_and(|s| s.state != State::Ready)
    });
    // `min_by_key` keeps the first of equals, so the choice is stable.
    broken.min_by_key(|requirement| std::cmp::Reverse(rank(culprit(requirement, known), known)))
}

fn because_of(
    plugin: &PluginId,
    requirement: &PluginId,
    known: &BTreeMap<PluginId, Standing>,
) -> Standing {
    let culprit = culprit(requirement, known);
    let cause = match known.get(culprit) {
        Some(standing) if standing.cause.is_empty() => {
            format!("{culprit} is {}", word(standing.state))
        }
        Some(standing) => format!("{culprit} is {}: {}", word(standing.state), standing.cause),
        None => format!("{culprit} does not answer"),
    };
    Standing {
        state: State::Degraded,
        cause,
        chain: chain(plugin, requirement, known),
    }
}

fn chain(
    plugin: &PluginId,
    requirement: &PluginId,
    known: &BTreeMap<PluginId, Standing>,
) -> Vec<PluginId> {
    let rest = known.get(requirement).map(|s| s.chain.clone());
    let rest = rest
        .filter(|chain| !chain.is_empty())
        .unwrap_or_else(|| vec![requirement.clone()]);
    [vec![plugin.clone()], rest].concat()
}

fn culprit<'a>(requirement: &'a PluginId, known: &'a BTreeMap<PluginId, Standing>) -> &'a PluginId {
    known
        .get(requirement)
        .and_then(|standing| standing.chain.last())
        .unwrap_or(requirement)
}

fn rank(plugin: &PluginId, known: &BTreeMap<PluginId, Standing>) -> u8 {
    match known.get(plugin).map(|standing| standing.state) {
        Some(State::Failed) => 5,
        Some(State::Stopped) => 4,
        // Who is degraded and yet the cause itself is stuck.
        Some(State::Backoff | State::Degraded) => 3,
        Some(State::Starting) => 2,
        Some(State::Pending) => 1,
        Some(State::Ready) | None => 0,
    }
}

/// The word that users see for a state.
pub(crate) fn word(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Starting => "starting",
        State::Ready => "ready",
        State::Degraded => "degraded",
        State::Backoff => "backoff",
        State::Failed => "failed",
        State::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{graph, id, spec};

    fn own(state: State, cause: &str) -> Own {
        Own {
            state,
            cause: cause.into(),
            culprit: None,
            waits_for: None,
        }
    }

    #[test]
    fn degraded_is_transitive_and_names_plugin_cause_and_chain() {
        let graph = graph(&[spec("a/x", &["b"]), spec("b/x", &["c"]), spec("c/x", &[])]);
        let all = derive(&graph, |plugin| match plugin.as_str() {
            "c/x" => own(State::Failed, "it does not start: no space left on device"),
            _ => own(State::Ready, ""),
        });
        let a = &all[&id("a/x")];
        assert_eq!(a.state, State::Degraded);
        assert_eq!(
            a.cause,
            "c/x is failed: it does not start: no space left on device"
        );
        assert_eq!(a.chain, [id("a/x"), id("b/x"), id("c/x")]);
    }

    #[test]
    fn what_will_not_heal_by_itself_is_named_first() {
        let graph = graph(&[
            spec("a/x", &["b", "c", "d"]),
            spec("b/x", &[]),
            spec("c/x", &[]),
            spec("d/x", &[]),
        ]);
        let all = derive(&graph, |plugin| match plugin.as_str() {
            "b/x" => own(State::Backoff, "it ended"),
            "c/x" => own(State::Failed, "broken"),
            "d/x" => own(State::Failed, "broken too"),
            _ => own(State::Ready, ""),
        });
        assert_eq!(all[&id("a/x")].chain, [id("a/x"), id("c/x")]);
    }

    #[test]
    fn a_culprit_of_the_same_process_is_named() {
        let graph = graph(&[spec("a/x", &[])]);
        let all = derive(&graph, |_| Own {
            culprit: Some(id("b/x")),
            ..own(State::Backoff, "")
        });
        assert_eq!(all[&id("a/x")].chain, [id("a/x"), id("b/x")]);
    }
}
