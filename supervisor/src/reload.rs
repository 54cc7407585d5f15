//! What another configuration means for a running node: old plan + new plan → changes, and which processes they touch.
//!
//! A process is restarted when what it is told at its start has changed: the settings of its plugins, their limits,
//! their programs, whom they may call, or with whom they share the process. So a plugin that comes or goes restarts
//! those that call its contracts, and nobody else. The figures of `[restart]` and `[probe]` count at once.

use crate::{graph::SUPERVISOR, options::Plan};
use contracts::{
    Error, PluginId, Result,
    plugin::{Change, Limits, PluginSpec},
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

mod turnover;

pub(crate) use turnover::{Output, Turnover, Which};

/// Compares two plans. Answers what becomes of each plugin that is not left alone, by id.
///
/// Errors: `FailedPrecondition` for what only a restart of the daemon can change.
pub(crate) fn changes(old: &Plan, new: &Plan) -> Result<Vec<Change>> {
    fixed(old, new)?;
    let (before, after) = (specs(old), specs(new));
    let mut changes = BTreeMap::new();
    let mut note = |plugin: &PluginId, action: &str, why: String| {
        let (plugin, action) = (plugin.clone(), action.into());
        changes.insert(
            plugin.clone(),
            Change {
                plugin,
                action,
                why,
            },
        );
    };
    for id in before.keys().filter(|id| !after.contains_key(*id)) {
        note(
            id,
            "remove",
            "the manifest does not name it any more".into(),
        );
    }
    for (id, spec) in &after {
        match before.get(id) {
            None => note(id, "add", "the manifest names it".into()),
            Some(former) => {
                let why = reasons(old, new, former, spec);
                if !why.is_empty() {
                    note(id, "restart", why.join("; "));
                }
            }
        }
    }
    share_fate(new, &mut changes);
    let mut rows: Vec<_> = changes.into_values().collect();
    rows.extend(at_once(old, new));
    Ok(rows)
}

fn fixed(old: &Plan, new: &Plan) -> Result<()> {
    let (from, to) = (&old.config, &new.config);
    let fixed = [
        (
            "root",
            from.root.display().to_string(),
            to.root.display().to_string(),
        ),
        (
            "state",
            from.state.display().to_string(),
            to.state.display().to_string(),
        ),
        (
            "uid_base",
            from.uid_base.to_string(),
            to.uid_base.to_string(),
        ),
    ];
    let changed = fixed.iter().filter(|(_, from, to)| from != to);
    let changed: Vec<_> = changed
        .map(|(key, from, to)| format!("{key}: {from} → {to}"))
        .collect();
    match changed.is_empty() {
        true => Ok(()),
        false => Err(Error::precondition(format!(
            "{}: only a restart of the daemon changes this; nothing was changed",
            changed.join("; ")
        ))),
    }
}

fn specs(plan: &Plan) -> BTreeMap<&PluginId, &PluginSpec> {
    let specs = plan.registry.specs();
    specs.map(|spec| (&spec.id, spec)).collect()
}

/// Limits for people: `memory 67108864, cpu 500`.
fn limited(limits: Limits) -> String {
    let named = [("memory", limits.memory), ("cpu", limits.cpu.into())];
    let set = named.iter().filter(|(_, most)| *most > 0);
    let set: Vec<String> = set.map(|(name, most)| format!("{name} {most}")).collect();
    match set.is_empty() {
        true => "none".into(),
        false => set.join(", "),
    }
}

/// Why a plugin must be told anew who it is; empty when it need not.
fn reasons(old: &Plan, new: &Plan, former: &PluginSpec, spec: &PluginSpec) -> Vec<String> {
    let id = &spec.id;
    let settings = |plan: &Plan| -> Map<String, Value> {
        serde_json::from_str(&plan.config.settings(id.as_str())).unwrap_or_default()
    };
    let mut why = differences(&settings(old), &settings(new));
    let limits = |plan: &Plan| plan.config.limits(id.as_str());
    let (from, to) = (limits(old), limits(new));
    if from != to {
        why.push(format!("limits: {} → {}", limited(from), limited(to)));
    }
    if former.exec != spec.exec {
        let command = |spec: &PluginSpec| spec.exec.clone().unwrap_or_default().join(" ");
        why.push(format!("command: {} → {}", command(former), command(spec)));
    } else if former != spec && why.is_empty() {
        why.push("its registration".into());
    }
    why.extend(peers(old, new, id));
    let company = |plan: &Plan| {
        let mut processes = plan.registry.processes().iter();
        let process = processes.find(|hosts| hosts.contains(id));
        let others = process.into_iter().flatten().filter(|other| *other != id);
        others.cloned().collect::<BTreeSet<_>>()
    };
    let (from, to) = (company(old), company(new));
    if from != to {
        why.push(match to.is_empty() {
            true => "has a process of its own".into(),
            false => format!("shares a process with {}", names(&to)),
        });
    }
    why
}

fn differences(from: &Map<String, Value>, to: &Map<String, Value>) -> Vec<String> {
    let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let shown = |value: Option<&Value>| value.map_or_else(|| "not set".into(), Value::to_string);
    let changed = keys
        .into_iter()
        .filter(|key| from.get(*key) != to.get(*key));
    changed
        .map(|key| {
            let (from, to) = (shown(from.get(key)), shown(to.get(key)));
            format!("{key}: {from} → {to}")
        })
        .collect()
}

fn peers(old: &Plan, new: &Plan, id: &PluginId) -> Vec<String> {
    let (from, to) = (old.graph.peers(id), new.graph.peers(id));
    let only = |these: &[(String, PluginId)], those: &[(String, PluginId)]| {
        let only = these.iter().filter(|peer| !those.contains(peer));
        only.map(|(_, id)| id.clone()).collect::<BTreeSet<_>>()
    };
    let mut why = Vec::new();
    for (word, peers) in [
        ("calls", only(to, from)),
        ("no longer calls", only(from, to)),
    ] {
        if !peers.is_empty() {
            why.push(format!("{word} {}", names(&peers)));
        }
    }
    if why.is_empty() && from != to {
        why.push("calls others in another order".into());
    }
    why
}

fn names(ids: &BTreeSet<PluginId>) -> String {
    let names: Vec<_> = ids.iter().map(PluginId::as_str).collect();
    names.join(", ")
}

/// Plugins of one process are restarted together.
fn share_fate(new: &Plan, changes: &mut BTreeMap<PluginId, Change>) {
    for hosts in new.registry.processes() {
        let Some(first) = hosts.iter().find(|id| changes.contains_key(id)).cloned() else {
            continue;
        };
        for id in hosts {
            changes.entry(id.clone()).or_insert_with(|| Change {
                plugin: id.clone(),
                action: "restart".into(),
                why: format!("shares a process with {first}"),
            });
        }
    }
}

/// What counts without a restart of anybody.
fn at_once(old: &Plan, new: &Plan) -> Option<Change> {
    let why = differences(&old.config.figures(), &new.config.figures());
    let plugin = PluginId::new(SUPERVISOR).ok()?;
    (!why.is_empty()).then(|| Change {
        plugin,
        action: "apply".into(),
        why: why.join("; "),
    })
}

/// Which processes a change touches. Numbers of processes stay what they are; those of ended ones are used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    /// What each process hosts from now on; nothing where one is gone.
    pub(crate) processes: Vec<Vec<PluginId>>,
    /// What must end first.
    pub(crate) hold: BTreeSet<usize>,
    /// What starts then.
    pub(crate) release: BTreeSet<usize>,
}

/// Places `wanted` processes over `current` ones. `changed`: plugins that must be told anew who they are.
pub(crate) fn place(
    current: &[Vec<PluginId>],
    wanted: &[Vec<PluginId>],
    changed: &BTreeSet<PluginId>,
) -> Placement {
    let same = |a: &[PluginId], b: &[PluginId]| {
        let set = |hosts: &[PluginId]| hosts.iter().cloned().collect::<BTreeSet<_>>();
        set(a) == set(b)
    };
    let mut placement = Placement::default();
    for (index, hosts) in current.iter().enumerate() {
        let stays = wanted.iter().any(|group| same(group, hosts));
        if !stays && !hosts.is_empty() {
            placement.hold.insert(index);
        }
        placement.processes.push(match stays {
            true => hosts.clone(),
            false => Vec::new(),
        });
    }
    for group in wanted {
        let known = current.iter().position(|hosts| same(hosts, group));
        let index = known.unwrap_or_else(|| free(current, &mut placement.processes));
        if known.is_none() {
            placement.processes[index] = group.clone();
            placement.release.insert(index);
        } else if group.iter().any(|id| changed.contains(id)) {
            placement.hold.insert(index);
            placement.release.insert(index);
        }
    }
    placement
}

fn free(current: &[Vec<PluginId>], processes: &mut Vec<Vec<PluginId>>) -> usize {
    let unused = |index: &usize| {
        processes[*index].is_empty() && current.get(*index).is_none_or(Vec::is_empty)
    };
    (0..processes.len()).find(unused).unwrap_or_else(|| {
        processes.push(Vec::new());
        processes.len() - 1
    })
}

#[cfg(test)]
mod tests;
