//! What `Create` may choose: the runtime, its state folder, its habits.

use std::path::PathBuf;

use containerd_shim_protos::shim::oci;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `gantry.shim.v1.Options`, as JSON; every field has a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Empty or `libcontainer`: the embedded one; else a binary, by name or absolute path.
    pub(crate) runtime: String,
    /// Folder of the runtime's state; empty: the shim's default.
    pub(crate) root: PathBuf,
    pub(crate) systemd_cgroup: bool,
    pub(crate) no_pivot_root: bool,
    /// Owner of the stdio pipes; 0 means the user of the process.
    pub(crate) io_uid: u32,
    pub(crate) io_gid: u32,
}

impl Options {
    /// Decodes the `options` of a `CreateTaskRequest`.
    ///
    /// Errors: `INVALID_ARGUMENT` for another type or for bytes that do not decode.
    pub(crate) fn decode(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
            return Ok(Self::default());
        };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match name {
            "containerd.runc.v1.Options" => Self::from_runc(&any.value),
            "gantry.shim.v1.Options" => {
                serde_json::from_slice(&any.value).map_err(|error| bad(name, error))
            }
            _ => Err(Error::invalid(format!(
                "options of type {name} are not understood: use containerd.runc.v1.Options or \
                 gantry.shim.v1.Options"
            ))),
        }
    }

    /// Whether the runtime inside the shim is meant.
    pub(crate) fn embedded(&self) -> bool {
        matches!(self.runtime.as_str(), "" | "libcontainer")
    }

    fn from_runc(bytes: &[u8]) -> Result<Self> {
        let runc = oci::Options::parse_from_bytes(bytes)
            .map_err(|error| bad("containerd.runc.v1.Options", error))?;
        Ok(Self {
            runtime: runc.binary_name,
            root: runc.root.into(),
            systemd_cgroup: runc.systemd_cgroup,
            no_pivot_root: runc.no_pivot_root,
            io_uid: runc.io_uid,
            io_gid: runc.io_gid,
        })
    }
}

fn bad(name: &str, error: impl std::fmt::Display) -> Error {
    Error::invalid(format!("options {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.into(),
            ..Any::default()
        }
    }

    #[test]
    fn no_options_mean_the_embedded_runtime() {
        assert!(Options::decode(None).expect("decodes").embedded());
        assert!(
            Options::decode(Some(&Any::default()))
                .expect("decodes")
                .embedded()
        );
    }

    #[test]
    fn both_spellings_name_a_binary() {
        let json = any("gantry.shim.v1.Options", br#"{"runtime":"runc"}"#);
        let runc = oci::Options {
            binary_name: "runc".into(),
            ..oci::Options::default()
        };
        let runc = any(
            "containerd.runc.v1.Options",
            &runc.write_to_bytes().expect("encodes"),
        );
        let (json, runc) = (Options::decode(Some(&json)), Options::decode(Some(&runc)));
        assert_eq!(json.expect("decodes"), runc.expect("decodes"));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = Options::decode(Some(&any("gantry.shim.v1.Options", br#"{"runtim":"x"}"#)));
        assert!(error.unwrap_err().message.contains("runtim"));
    }
}
