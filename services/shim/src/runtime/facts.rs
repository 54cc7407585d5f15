//! The few things of `config.json` the shim itself must know.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Result};

/// The part of an OCI spec that matters outside of the runtime; everything else is skipped.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Facts {
    #[serde(deserialize_with = "lenient")]
    process: Process,
    #[serde(deserialize_with = "lenient")]
    linux: Linux,
    #[serde(deserialize_with = "lenient")]
    hooks: Hooks,
}

/// Go writes `null` for what is empty.
fn lenient<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    #[serde(deserialize_with = "lenient")]
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
    #[serde(deserialize_with = "lenient")]
    cgroups_path: String,
    #[serde(deserialize_with = "lenient")]
    namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "lenient")]
    uid_mappings: Vec<Mapping>,
    #[serde(deserialize_with = "lenient")]
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
#[serde(default, rename_all = "camelCase")]
struct Hooks {
    #[serde(deserialize_with = "lenient")]
    prestart: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "lenient")]
    create_runtime: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "lenient")]
    poststart: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "lenient")]
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

    /// The spec's `cgroupsPath`, or `/namespace/id` when it leaves that to the runtime.
    pub(crate) fn cgroup_path_or(&self, namespace: &str, id: &str) -> String {
        match self.linux.cgroups_path.as_str() {
            "" => format!("/{namespace}/{id}"),
            path => path.to_owned(),
        }
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

    /// Hooks that the runtime itself runs while it makes the container.
    pub(crate) fn has_create_hooks(&self) -> bool {
        !self.hooks.prestart.is_empty() || !self.hooks.create_runtime.is_empty()
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
    fn nothing_and_null_are_the_same() {
        let text = r#"{"process":{"user":null},"linux":{"namespaces":null},"hooks":null}"#;
        let facts: Facts = serde_json::from_str(text).expect("parses");
        assert_eq!(
            (facts.owner(), facts.cgroup_path_or("n", "i")),
            ((0, 0), "/n/i".into())
        );
        assert!(!facts.has_poststart() && !facts.dies_with_init());
    }

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
