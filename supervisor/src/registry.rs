//! The plugins of this node: those that the manifest names, checked against those that are built in, and the foreign
//! programs that it brings.

use crate::{manifest::Manifest, suggest};
use contracts::{
    PluginId, Service, collect::Collect, gateway::Gateway, plugin::PluginSpec, plugin::Supervisor,
};
use std::collections::{BTreeMap, BTreeSet};

/// A checked set of plugins, grouped by process.
#[derive(Clone, Debug)]
pub struct Registry {
    specs: BTreeMap<PluginId, PluginSpec>,
    processes: Vec<Vec<PluginId>>,
    unused: Vec<PluginSpec>,
    /// Services that an edge calls only because a program wants to be reached.
    exposed: BTreeSet<(PluginId, String)>,
}

/// Why a set of plugins makes no node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Two registrations of the build have one id.
    #[error("plugin {0} is built in twice: give one of the registrations another id")]
    BuiltInTwice(PluginId),
    /// A registration does not answer the contract its id claims.
    #[error("plugin {0}: the first contract it serves must be `{contract}`, as its id says", contract = .0.service())]
    WrongContract(PluginId),
    /// The reserved id or contract of the supervisor.
    #[error("plugin {0}: this id belongs to the supervisor itself; choose another")]
    Reserved(PluginId),
    /// A program would hide a built-in plugin.
    #[error(
        "manifest {manifest}: exec {plugin}: a plugin of this id is built in; give the program another id"
    )]
    Hidden {
        /// Which manifest.
        manifest: String,
        /// The id of both.
        plugin: PluginId,
    },
    /// A program answers for an owner of resources and not to the collector.
    #[error(
        "manifest {manifest}: exec {plugin}: a plugin that answers `{contract}` answers `collect` too; add `also = [\"collect\"]` and its methods"
    )]
    NoCollect {
        /// Which manifest.
        manifest: String,
        /// The program.
        plugin: PluginId,
        /// Its own contract.
        contract: String,
    },
    /// The manifest names what the build does not have.
    #[error("manifest {manifest}: plugin {plugin} is not built in{hint}")]
    NotBuiltIn {
        /// Which manifest.
        manifest: String,
        /// What it named.
        plugin: PluginId,
        /// A suggestion, or what there is.
        hint: String,
    },
    /// The manifest names a plugin twice.
    #[error("manifest {manifest}: plugin {plugin} is named twice; remove one")]
    NamedTwice {
        /// Which manifest.
        manifest: String,
        /// Which plugin.
        plugin: PluginId,
    },
    /// A shared process would give one plugin the privileges of another.
    #[error(
        "manifest {manifest}: {first} and {second} cannot share a process, for their privileges differ; give {second} a process of its own"
    )]
    UnequalPrivileges {
        /// Which manifest.
        manifest: String,
        /// One plugin of the process.
        first: PluginId,
        /// The other.
        second: PluginId,
    },
}

impl Registry {
    /// Picks from `specs` what `manifest` names. Errors: see [`RegistryError`].
    pub fn new(specs: Vec<PluginSpec>, manifest: &Manifest) -> Result<Self, RegistryError> {
        let mut built_in = by_id(specs)?;
        for program in &manifest.programs {
            foreign(manifest, &program.spec, &mut built_in)?;
        }
        let mut chosen = BTreeMap::new();
        for plugin in manifest.processes.iter().flatten() {
            if chosen.contains_key(plugin) {
                return Err(RegistryError::NamedTwice {
                    manifest: manifest.name.clone(),
                    plugin: plugin.clone(),
                });
            }
            let spec = built_in
                .remove(plugin)
                .ok_or_else(|| RegistryError::NotBuiltIn {
                    manifest: manifest.name.clone(),
                    plugin: plugin.clone(),
                    hint: suggest::hint(plugin.as_str(), built_in.keys().map(PluginId::as_str)),
                })?;
            chosen.insert(plugin.clone(), spec);
        }
        equal_privileges(manifest, &chosen)?;
        let exposed = expose(manifest, &chosen);
        Ok(Self {
            specs: chosen,
            processes: manifest.processes.clone(),
            unused: built_in.into_values().collect(),
            exposed,
        })
    }

    /// Contracts that `plugin` calls only to pass requests on to programs: it does not wait for them to start.
    pub fn passes_on(&self, plugin: &PluginId) -> impl Iterator<Item = &String> {
        let of_it = self.exposed.iter().filter(move |(edge, _)| edge == plugin);
        of_it.map(|(_, service)| service)
    }

    /// The plugins of this node, by id.
    pub fn specs(&self) -> impl Iterator<Item = &PluginSpec> {
        self.specs.values()
    }

    /// Finds one plugin of this node.
    pub fn get(&self, plugin: &PluginId) -> Option<&PluginSpec> {
        self.specs.get(plugin)
    }

    /// What shares a process, in the order of the manifest.
    pub fn processes(&self) -> &[Vec<PluginId>] {
        &self.processes
    }

    /// What is built in and not of this node, for hints.
    pub fn unused(&self) -> &[PluginSpec] {
        &self.unused
    }
}

/// Lays a program beside what is built in. Errors: its id is taken, or the supervisor's.
fn foreign(
    manifest: &Manifest,
    spec: &PluginSpec,
    known: &mut BTreeMap<PluginId, PluginSpec>,
) -> Result<(), RegistryError> {
    let plugin = spec.id.clone();
    if spec
        .serves
        .iter()
        .any(|contract| contract == Supervisor::NAME)
    {
        return Err(RegistryError::Reserved(plugin));
    }
    let manifest = manifest.name.clone();
    let collects = |spec: &PluginSpec| spec.serves.iter().any(|contract| contract == Collect::NAME);
    let mut same = known
        .values()
        .filter(|s| s.id.service() == plugin.service());
    let must_collect = same.any(collects);
    match known.insert(plugin.clone(), spec.clone()) {
        Some(other) if other.exec.is_some() => Err(RegistryError::NamedTwice { manifest, plugin }),
        Some(_) => Err(RegistryError::Hidden { manifest, plugin }),
        // The collector asks all who own resources, and gives up when one does not know the question.
        None if must_collect && !collects(spec) => {
            let contract = plugin.service().into();
            Err(RegistryError::NoCollect {
                manifest,
                plugin,
                contract,
            })
        }
        None => Ok(()),
    }
}

/// Every edge with the programs that want to be reached and that it does not know by their contract.
fn expose(
    manifest: &Manifest,
    specs: &BTreeMap<PluginId, PluginSpec>,
) -> BTreeSet<(PluginId, String)> {
    let edges = specs
        .values()
        .filter(|spec| spec.id.service() == Gateway::NAME);
    let wants = manifest.programs.iter().filter(|program| program.expose);
    let services: BTreeSet<&str> = wants.map(|program| program.spec.id.service()).collect();
    let pairs = edges.flat_map(|edge| services.iter().map(move |service| (edge, *service)));
    pairs
        .filter(|(edge, service)| !edge.requires.iter().any(|known| known == service))
        .map(|(edge, service)| (edge.id.clone(), service.to_owned()))
        .collect()
}

fn by_id(specs: Vec<PluginSpec>) -> Result<BTreeMap<PluginId, PluginSpec>, RegistryError> {
    let mut known = BTreeMap::new();
    for spec in specs {
        let id = spec.id.clone();
        if id.as_str() == crate::graph::SUPERVISOR {
            return Err(RegistryError::Reserved(id));
        }
        if spec.serves.first().map(String::as_str) != Some(id.service()) {
            return Err(RegistryError::WrongContract(id));
        }
        if known.insert(id.clone(), spec).is_some() {
            return Err(RegistryError::BuiltInTwice(id));
        }
    }
    Ok(known)
}

/// A process has one set of privileges, so a manifest must not widen those of any plugin by choosing its company.
fn equal_privileges(
    manifest: &Manifest,
    specs: &BTreeMap<PluginId, PluginSpec>,
) -> Result<(), RegistryError> {
    for pair in manifest.processes.iter().flat_map(|p| p.windows(2)) {
        let [first, second] = pair else { continue };
        let of = |plugin| specs.get(plugin).map(|s| (s.privileges.root, sorted(s)));
        if of(first) != of(second) {
            return Err(RegistryError::UnequalPrivileges {
                manifest: manifest.name.clone(),
                first: first.clone(),
                second: second.clone(),
            });
        }
    }
    Ok(())
}

fn sorted(spec: &PluginSpec) -> Vec<&String> {
    let mut capabilities: Vec<_> = spec.privileges.capabilities.iter().collect();
    capabilities.sort();
    capabilities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{id, spec};
    use contracts::plugin::Privileges;

    fn manifest(text: &str) -> Manifest {
        Manifest::parse("small", text).unwrap()
    }

    #[test]
    fn what_the_manifest_names_is_chosen_and_the_rest_is_kept_for_hints() {
        let specs = vec![spec("a/x", &[]), spec("b/x", &[])];
        let registry = Registry::new(specs, &manifest("plugins = ['b/x']")).unwrap();
        assert!(registry.get(&id("b/x")).is_some() && registry.get(&id("a/x")).is_none());
        assert_eq!(registry.unused().len(), 1);
    }

    #[test]
    fn a_wrong_set_is_refused_by_name() {
        let specs = || vec![spec("content/local", &[]), spec("gc/local", &[])];
        let refused = |specs, text| {
            Registry::new(specs, &manifest(text))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(specs(), "plugins = ['content/locall']"),
            "manifest small: plugin content/locall is not built in; did you mean \"content/local\""
        );
        assert_eq!(
            refused(specs(), "plugins = ['zzzzzz/y']"),
            "manifest small: plugin zzzzzz/y is not built in; known: content/local, gc/local"
        );
        assert_eq!(
            refused(specs(), "plugins = ['gc/local', 'gc/local']"),
            "manifest small: plugin gc/local is named twice; remove one"
        );
        let twice = vec![spec("gc/local", &[]), spec("gc/local", &[])];
        assert!(refused(twice, "plugins = ['gc/local']").contains("built in twice"));
        let reserved = vec![spec("supervisor/local", &[])];
        assert!(
            refused(reserved, "plugins = ['supervisor/local']")
                .contains("belongs to the supervisor")
        );
        let mut wrong = spec("gc/local", &[]);
        wrong.serves = vec!["collect".into()];
        assert!(refused(vec![wrong], "plugins = ['gc/local']").contains("must be `gc`"));
    }

    fn with_program(id: &str, more: &str) -> Manifest {
        manifest(&format!(
            "plugins = ['gateway/http', 'content/local']\n[[exec]]\nid = '{id}'\ncommand = ['/bin/true']\n{more}"
        ))
    }

    fn edge_and_content() -> Vec<PluginSpec> {
        vec![
            spec("gateway/http", &["content"]),
            spec("content/local", &[]),
        ]
    }

    #[test]
    fn the_edge_may_call_a_program_whose_contract_it_does_not_know_unless_it_hides() {
        let passes_on = |manifest: &Manifest| {
            let registry = Registry::new(edge_and_content(), manifest).unwrap();
            let edge = registry.get(&id("gateway/http")).unwrap();
            // What the build registers stays what it is, lest another build seems to differ.
            assert_eq!(edge.requires, ["content"]);
            registry.passes_on(&edge.id).cloned().collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(passes_on(&with_program("greeter/x", "")), ["greeter"]);
        assert_eq!(
            passes_on(&with_program("greeter/x", "expose = false")),
            none
        );
        assert_eq!(passes_on(&with_program("content/x", "")), none);
    }

    #[test]
    fn a_program_takes_nobodys_id() {
        let refused = |manifest: &Manifest| {
            let refused = Registry::new(edge_and_content(), manifest);
            refused.unwrap_err().to_string()
        };
        assert_eq!(
            refused(&with_program("content/local", "")),
            "manifest small: exec content/local: a plugin of this id is built in; give the program another id"
        );
        let twice = "[[exec]]\nid = 'b/x'\ncommand = ['/bin/false']";
        assert!(refused(&with_program("b/x", twice)).contains("b/x is named twice"));
        for id in ["supervisor/local", "supervisor/x"] {
            assert!(refused(&with_program(id, "")).contains("belongs to the supervisor"));
        }
        let mut owners = edge_and_content();
        owners[1].serves.push("collect".into());
        let error = Registry::new(owners, &with_program("content/x", "")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("add `also = [\"collect\"]`"), "{error}");
        assert!(
            refused(&with_program("b/x", "also = ['supervisor']")).contains("supervisor itself")
        );
        let shared = manifest(
            "[[process]]\nplugins = ['content/local', 'b/x']\n[[exec]]\nid = 'b/x'\ncommand = ['/bin/true']",
        );
        assert!(refused(&shared).contains("b/x is named twice"));
    }

    #[test]
    fn a_shared_process_never_widens_privileges() {
        let mut mighty = spec("tasks/local", &[]);
        mighty.privileges = Privileges::root("mounts");
        let error = Registry::new(
            vec![spec("content/local", &[]), mighty],
            &manifest("[[process]]\nplugins = ['content/local', 'tasks/local']"),
        )
        .unwrap_err();
        assert!(
            matches!(error, RegistryError::UnequalPrivileges { .. }),
            "{error}"
        );
    }
}
