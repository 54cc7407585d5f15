//! Small plugins for the tests of the pure parts.

use contracts::{
    PluginId,
    plugin::{PluginSpec, Privileges},
};

pub(crate) fn id(text: &str) -> PluginId {
    PluginId::new(text).unwrap()
}

pub(crate) fn spec(plugin: &str, requires: &[&str]) -> PluginSpec {
    let id = id(plugin);
    PluginSpec {
        serves: vec![id.service().into()],
        id,
        requires: requires.iter().map(|&r| r.into()).collect(),
        privileges: Privileges::NONE,
        sockets: Vec::new(),
        exec: None,
        defaults: "{}".into(),
    }
}

/// Makes a graph of plugins that have a process each.
pub(crate) fn graph(specs: &[PluginSpec]) -> crate::graph::Graph {
    crate::graph::Graph::new(&registry(specs)).unwrap()
}

pub(crate) fn registry(specs: &[PluginSpec]) -> crate::registry::Registry {
    let manifest = crate::manifest::Manifest {
        name: "test".into(),
        processes: specs.iter().map(|s| vec![s.id.clone()]).collect(),
        programs: Vec::new(),
    };
    crate::registry::Registry::new(specs.to_vec(), &manifest).unwrap()
}
