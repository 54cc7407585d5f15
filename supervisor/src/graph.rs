//! The graph is the wiring: from what plugins require follow the links, the start order, and who suffers with whom.
//!
//! An edge goes from the caller to the plugin it calls. A required contract makes an edge to *every* plugin that answers
//! it. The supervisor is a node too ([`SUPERVISOR`]): always there, first in the order, requiring nothing.

use crate::registry::Registry;
use contracts::{PluginId, Service, plugin::Supervisor};
use std::collections::{BTreeMap, BTreeSet};

/// Id of the supervisor as a plugin that others may require.
pub const SUPERVISOR: &str = "supervisor/local";

/// Who calls whom, acyclic.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: BTreeMap<PluginId, Node>,
    order: Vec<PluginId>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    serves: Vec<String>,
    peers: Vec<(String, PluginId)>,
    requires: BTreeSet<PluginId>,
    /// Those of `requires` that must have had their chance before it starts.
    awaits: BTreeSet<PluginId>,
    required_by: BTreeSet<PluginId>,
}

/// Why plugins cannot be wired.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Nobody answers a required contract.
    #[error("{plugin} requires `{contract}`, which no plugin of this manifest answers{hint}")]
    Missing {
        /// Who requires.
        plugin: PluginId,
        /// What.
        contract: String,
        /// Who could answer, if anybody.
        hint: String,
    },
    /// Plugins require each other.
    #[error("plugins require each other in a circle: {}; remove one of these requirements", path(.0))]
    Cycle(Vec<PluginId>),
}

fn path(plugins: &[PluginId]) -> String {
    let names: Vec<_> = plugins.iter().map(PluginId::as_str).collect();
    names.join(" → ")
}

impl Graph {
    /// Wires the plugins of `registry`. Errors: a missing requirement, a cycle, both by name.
    pub fn new(registry: &Registry) -> Result<Self, GraphError> {
        let mut nodes = nodes(registry);
        let answers = |contract: &str| -> Vec<PluginId> {
            let serves = |node: &Node| node.serves.iter().any(|s| s == contract);
            let found = nodes.iter().filter(|(_, node)| serves(node));
            found.map(|(id, _)| id.clone()).collect()
        };
        let mut edges = Vec::new();
        for spec in registry.specs() {
            let requires = spec.requires.iter().map(|contract| (contract, true));
            let passes_on = registry.passes_on(&spec.id);
            let passes_on = passes_on.map(|contract| (contract, false));
            for (contract, awaits) in requires.chain(passes_on) {
                // Who answers a contract that it also calls means the others.
                let mut peers = answers(contract);
                peers.retain(|peer| *peer != spec.id);
                if peers.is_empty() {
                    return Err(missing(registry, &spec.id, contract));
                }
                edges.extend(
                    peers
                        .into_iter()
                        .map(|p| (spec.id.clone(), contract.clone(), p, awaits)),
                );
            }
        }
        for (from, contract, to, awaits) in edges {
            if let Some(node) = nodes.get_mut(&to) {
                node.required_by.insert(from.clone());
            }
            if let Some(node) = nodes.get_mut(&from) {
                node.requires.insert(to.clone());
                node.awaits.extend(awaits.then(|| to.clone()));
                node.peers.push((contract, to));
            }
        }
        let order = order(&nodes)?;
        Ok(Self { nodes, order })
    }

    /// Every plugin but the supervisor, each after all that it requires.
    pub fn start_order(&self) -> impl DoubleEndedIterator<Item = &PluginId> {
        self.order.iter()
    }

    /// Plugins that `plugin` calls, by id.
    pub fn requires(&self, plugin: &PluginId) -> impl Iterator<Item = &PluginId> {
        self.nodes.get(plugin).into_iter().flat_map(|n| &n.requires)
    }

    /// Plugins that `plugin` calls and that must have had their chance before it starts, by id: all but the programs
    /// that an edge only passes requests on to, for a slow one would keep everybody from the API.
    pub fn awaits(&self, plugin: &PluginId) -> impl Iterator<Item = &PluginId> {
        self.nodes.get(plugin).into_iter().flat_map(|n| &n.awaits)
    }

    /// Plugins that call `plugin`, by id.
    pub fn required_by(&self, plugin: &PluginId) -> impl Iterator<Item = &PluginId> {
        let node = self.nodes.get(plugin);
        node.into_iter().flat_map(|n| &n.required_by)
    }

    /// Contract by contract, whom `plugin` may call.
    pub fn peers(&self, plugin: &PluginId) -> &[(String, PluginId)] {
        self.nodes.get(plugin).map_or(&[], |n| &n.peers)
    }

    /// Every edge, caller first, by id.
    pub fn edges(&self) -> impl Iterator<Item = (&PluginId, &PluginId)> {
        self.nodes
            .iter()
            .flat_map(|(from, node)| node.requires.iter().map(move |to| (from, to)))
    }

    /// Every plugin that calls `plugin`, directly or through others.
    pub fn dependants(&self, plugin: &PluginId) -> BTreeSet<&PluginId> {
        let mut found = BTreeSet::new();
        let mut open: Vec<_> = self.required_by(plugin).collect();
        while let Some(next) = open.pop() {
            if found.insert(next) {
                open.extend(self.required_by(next));
            }
        }
        found
    }
}

fn nodes(registry: &Registry) -> BTreeMap<PluginId, Node> {
    let node = |serves: Vec<String>| Node {
        serves,
        ..Node::default()
    };
    let mut nodes: BTreeMap<_, _> = registry
        .specs()
        .map(|spec| (spec.id.clone(), node(spec.serves.clone())))
        .collect();
    if let Ok(supervisor) = PluginId::new(SUPERVISOR) {
        nodes.insert(supervisor, node(vec![Supervisor::NAME.into()]));
    }
    nodes
}

fn missing(registry: &Registry, plugin: &PluginId, contract: &str) -> GraphError {
    let could = registry.unused().iter();
    let could: Vec<_> = could
        .filter(|spec| spec.serves.iter().any(|s| s == contract))
        .map(|spec| spec.id.as_str())
        .collect();
    let hint = match could.is_empty() {
        true => ", and none is built in".into(),
        false => format!("; known plugins that do: {}", could.join(", ")),
    };
    GraphError::Missing {
        plugin: plugin.clone(),
        contract: contract.into(),
        hint,
    }
}

/// Orders depth first, so that a cycle is met as the path that closes it.
fn order(nodes: &BTreeMap<PluginId, Node>) -> Result<Vec<PluginId>, GraphError> {
    let mut order = Vec::new();
    let mut done = BTreeSet::new();
    for start in nodes.keys() {
        visit(nodes, start, &mut Vec::new(), &mut done, &mut order)?;
    }
    order.retain(|id: &PluginId| id.as_str() != SUPERVISOR);
    Ok(order)
}

fn visit<'a>(
    nodes: &'a BTreeMap<PluginId, Node>,
    plugin: &'a PluginId,
    path: &mut Vec<&'a PluginId>,
    done: &mut BTreeSet<&'a PluginId>,
    order: &mut Vec<PluginId>,
) -> Result<(), GraphError> {
    if done.contains(plugin) {
        return Ok(());
    }
    if let Some(at) = path.iter().position(|&seen| seen == plugin) {
        let circle = path.iter().skip(at).copied().chain([plugin]);
        return Err(GraphError::Cycle(circle.cloned().collect()));
    }
    path.push(plugin);
    for next in nodes.get(plugin).into_iter().flat_map(|n| &n.requires) {
        visit(nodes, next, path, done, order)?;
    }
    path.pop();
    done.insert(plugin);
    order.push(plugin.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{graph, id, registry, spec};
    use proptest::prelude::*;

    fn names<'a>(plugins: impl IntoIterator<Item = &'a PluginId>) -> Vec<&'a str> {
        plugins.into_iter().map(PluginId::as_str).collect()
    }

    #[test]
    fn a_required_contract_reaches_every_plugin_that_answers_it() {
        let mut content = spec("content/local", &[]);
        let mut leases = spec("leases/local", &[]);
        content.serves.push("collect".into());
        leases.serves.push("collect".into());
        let graph = graph(&[content, leases, spec("gc/local", &["collect"])]);
        assert_eq!(
            names(graph.requires(&id("gc/local"))),
            ["content/local", "leases/local"]
        );
        assert_eq!(names(graph.required_by(&id("content/local"))), ["gc/local"]);
        assert_eq!(graph.peers(&id("gc/local")).len(), 2);
        assert_eq!(graph.edges().count(), 2);
    }

    #[test]
    fn the_supervisor_can_be_required_and_is_not_in_the_order() {
        let graph = graph(&[spec("gateway/http", &["supervisor"])]);
        assert_eq!(names(graph.requires(&id("gateway/http"))), [SUPERVISOR]);
        assert_eq!(names(graph.start_order()), ["gateway/http"]);
    }

    #[test]
    fn an_edge_calls_a_program_and_does_not_wait_for_it() {
        let text = "plugins = ['gateway/http', 'images/local']\n[[exec]]\nid = 'greeter/x'\ncommand = ['/bin/true']\nrequires = ['images']";
        let manifest = crate::manifest::Manifest::parse("m", text).unwrap();
        let specs = vec![spec("gateway/http", &["images"]), spec("images/local", &[])];
        let registry = crate::registry::Registry::new(specs, &manifest).unwrap();
        let graph = Graph::new(&registry).unwrap();
        let edge = id("gateway/http");
        assert_eq!(names(graph.requires(&edge)), ["greeter/x", "images/local"]);
        assert_eq!(names(graph.awaits(&edge)), ["images/local"]);
        assert_eq!(names(graph.awaits(&id("greeter/x"))), ["images/local"]);
    }

    #[test]
    fn a_missing_requirement_is_refused_naming_who_could_answer() {
        let manifest = crate::manifest::Manifest::parse("m", "plugins = ['gateway/http']").unwrap();
        let specs = vec![spec("gateway/http", &["images"]), spec("images/local", &[])];
        let registry = crate::registry::Registry::new(specs, &manifest).unwrap();
        assert_eq!(
            Graph::new(&registry).unwrap_err().to_string(),
            "gateway/http requires `images`, which no plugin of this manifest answers; known plugins that do: images/local"
        );
        let nobody = registry_of_one_that_requires_nothing_known();
        assert!(nobody.to_string().ends_with("and none is built in"));
    }

    fn registry_of_one_that_requires_nothing_known() -> GraphError {
        Graph::new(&registry(&[spec("a/x", &["nothing"])])).unwrap_err()
    }

    #[test]
    fn a_cycle_is_refused_as_the_path_that_closes_it() {
        let specs = [
            spec("a/x", &["b"]),
            spec("b/x", &["c"]),
            spec("c/x", &["a"]),
        ];
        let error = Graph::new(&registry(&specs)).unwrap_err().to_string();
        assert!(error.contains("a/x → b/x → c/x → a/x"), "{error}");
    }

    #[test]
    fn who_answers_a_contract_that_it_calls_means_the_others() {
        let mut first = spec("a/x", &["collect"]);
        let mut second = spec("b/x", &[]);
        first.serves.push("collect".into());
        let alone = Graph::new(&registry(&[first.clone(), second.clone()])).unwrap_err();
        assert!(matches!(alone, GraphError::Missing { .. }), "{alone}");
        second.serves.push("collect".into());
        let both = graph(&[first, second]);
        assert_eq!(names(both.requires(&id("a/x"))), ["b/x"]);
    }

    #[test]
    fn dependants_are_found_through_others() {
        let graph = graph(&[spec("a/x", &[]), spec("b/x", &["a"]), spec("c/x", &["b"])]);
        assert_eq!(names(graph.dependants(&id("a/x"))), ["b/x", "c/x"]);
        assert!(graph.dependants(&id("c/x")).is_empty());
    }

    proptest! {
        #[test]
        fn every_plugin_comes_after_all_that_it_requires(rows in proptest::collection::vec(proptest::collection::vec(any::<bool>(), 12), 1..12)) {
            // Edges only from later to earlier names, then renamed backwards, so that name order is no help.
            let name = |i: usize| format!("s{:02}/x", 99 - i);
            let specs: Vec<_> = rows
                .iter()
                .enumerate()
                .map(|(i, row)| {
                    let requires: Vec<_> = (0..i).filter(|&j| row[j]).map(|j| format!("s{:02}", 99 - j)).collect();
                    spec(&name(i), &requires.iter().map(String::as_str).collect::<Vec<_>>())
                })
                .collect();
            let graph = graph(&specs);
            let order: Vec<_> = graph.start_order().cloned().collect();
            prop_assert_eq!(order.len(), specs.len());
            for (from, to) in graph.edges() {
                let at = |id: &PluginId| order.iter().position(|o| o == id);
                prop_assert!(at(to) < at(from));
            }
        }
    }
}
