//! The few things of `config.json` the shim itself must know.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// The part of an OCI spec that matters outside of the runtime; everything else is skipped.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Facts {
    process: Process,
    linux: Linux,
    hooks: Hooks,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    user: User,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    uid: u32,
    gid: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    cgroups_path: String,
    namespaces: Vec<Namespace>,
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    r#type: String,
    path: PathBuf,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mapping {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
    size: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Hooks {
    poststart: Vec<serde::de::IgnoredAny>,
    poststop: Vec<serde::de::IgnoredAny>,
}

impl Facts {
    /// Reads `config.json` of a bundle.
    ///
    /// Errors: `NOT_FOUND` without the file, `INVALID_ARGUMENT` when it is not a spec.
    pub(crate) fn read(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let bytes = fs::read(&path).map_err(|error| {
            Error::not_found(format!(
                "{}: {error}: write the OCI spec there first",
                path.display()
            ))
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
    }

    /// The host ids of the process's user.
    pub(crate) fn owner(&self) -> (u32, u32) {
        let User { uid, gid } = self.process.user;
        (
            mapped(&self.linux.uid_mappings, uid),
            mapped(&self.linux.gid_mappings, gid),
        )
    }

    /// Host ids of another user of the same container, as a `Process` names it.
    pub(crate) fn owner_of(&self, process: &[u8]) -> Result<(u32, u32)> {
        let process: Process = serde_json::from_slice(process)
            .map_err(|error| Error::invalid(format!("exec spec is not an OCI process: {error}")))?;
        Ok(Self {
            process,
            ..self.clone()
        }
        .owner())
    }

    /// Empty when the spec leaves it to the runtime.
    pub(crate) fn cgroup_path(&self) -> &str {
        &self.linux.cgroups_path
    }

    /// Whether the kernel ends all processes together with init.
    pub(crate) fn dies_with_init(&self) -> bool {
        self.linux
            .namespaces
            .iter()
            .any(|ns| ns.r#type == "pid" && ns.path.as_os_str().is_empty())
    }

    pub(crate) fn has_user_namespace(&self) -> bool {
        self.linux.namespaces.iter().any(|ns| ns.r#type == "user")
    }

    pub(crate) fn has_poststart(&self) -> bool {
        !self.hooks.poststart.is_empty()
    }

    pub(crate) fn has_poststop(&self) -> bool {
        !self.hooks.poststop.is_empty()
    }
}

fn mapped(mappings: &[Mapping], id: u32) -> u32 {
    let inside = |m: &&Mapping| id >= m.container_id && id - m.container_id < m.size;
    mappings
        .iter()
        .find(inside)
        .map_or(id, |m| m.host_id + (id - m.container_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_inside_a_user_namespace_is_mapped_to_the_host() {
        let spec = r#"{"process":{"user":{"uid":5,"gid":0}},"hooks":{"poststop":[{"path":"/x"}]},
            "linux":{"namespaces":[{"type":"user"},{"type":"pid","path":"/proc/1/ns/pid"}],
            "uidMappings":[{"containerID":0,"hostID":1000,"size":10}]}}"#;
        let facts: Facts = serde_json::from_str(spec).expect("parses");
        assert_eq!(facts.owner(), (1005, 0));
        assert!(facts.has_user_namespace() && facts.has_poststop() && !facts.has_poststart());
        assert!(!facts.dies_with_init());
    }
}
