//! A container's `runtime` → which program is its shim, and what `Create` is told as options. Pure but for one look-up on PATH.
//!
//! | name | shim | options |
//! |---|---|---|
//! | empty, `io.gantry.v1` | gantry's own | as given |
//! | a plain word: `runc`, `crun` | gantry's own | as given, `runtime` is the word |
//! | `io.containerd.runc.v2` | `containerd-shim-runc-v2` on PATH | `containerd.runc.v1.Options` |
//! | absolute path | that program | `containerd.runc.v1.Options` |
//!
//! Options are JSON text: the fields of the type that the table names, or `{"type_url": …, "value": <hex>}` for a
//! message that is passed on as it is. Source: containerd, `core/runtime/v2`, names of shims.

use crate::record::Program;
use containerd_shim_protos::shim::oci;
use contracts::containers::Runtime;
use contracts::{Error, Result};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The shim of a container, and its options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) program: Program,
    pub(crate) options: Option<Any>,
}

/// Chooses the shim. `own` is gantry's. Errors: `InvalidArgument` naming what is wrong or missing.
pub(crate) fn choose(runtime: &Runtime, own: &Program) -> Result<Choice> {
    let name = runtime.name.as_str();
    match name {
        "" | "io.gantry.v1" => ours(own, &runtime.options, None),
        _ if name.starts_with('/') => theirs(name.into(), &runtime.options),
        _ if name.contains('.') => theirs(on_path(name)?, &runtime.options),
        _ => ours(own, &runtime.options, Some(name)),
    }
}

fn ours(own: &Program, options: &str, runtime: Option<&str>) -> Result<Choice> {
    let mut fields = object(options)?;
    let options = match typed(&fields)? {
        Some(any) => Some(any),
        None => {
            if let Some(runtime) = runtime {
                fields.insert("runtime".into(), runtime.into());
            }
            let text = Value::Object(fields).to_string();
            (text != "{}").then(|| any("gantry.shim.v1.Options", text.into_bytes()))
        }
    };
    Ok(Choice {
        program: own.clone(),
        options,
    })
}

fn theirs(path: String, options: &str) -> Result<Choice> {
    let fields = object(options)?;
    let options = match typed(&fields)? {
        Some(any) => Some(any),
        None if fields.is_empty() => None,
        None => Some(runc(fields)?),
    };
    Ok(Choice {
        program: Program {
            path,
            first: None,
            own: false,
        },
        options,
    })
}

/// `io.containerd.runc.v2` → `containerd-shim-runc-v2`, where PATH has it.
fn on_path(name: &str) -> Result<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let program = match parts[..] {
        [.., kind, version] if !kind.is_empty() && !version.is_empty() => {
            format!("containerd-shim-{kind}-{version}")
        }
        _ => return Err(Error::invalid(format!("runtime {name:?}: names no shim"))),
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .map(|folder| Path::new(folder).join(&program))
        .find(|candidate| candidate.is_file());
    found
        .map(|found| found.to_string_lossy().into_owned())
        .ok_or_else(|| {
            Error::invalid(format!(
                "runtime {name:?}: exec: {program:?}: executable file not found in $PATH"
            ))
        })
}

fn object(options: &str) -> Result<Map<String, Value>> {
    if options.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(options)
        .map_err(|e| Error::invalid(format!("runtime.options: must be a JSON object: {e}")))
}

/// A message that is passed on as it is.
fn typed(fields: &Map<String, Value>) -> Result<Option<Any>> {
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let (Some(type_url), Some(value)) = (text("type_url"), text("value")) else {
        return Ok(None);
    };
    let bytes =
        hex(value).ok_or_else(|| Error::invalid("runtime.options.value: must be hex digits"))?;
    Ok(Some(any(type_url, bytes)))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

/// The options of runc's shims, spelled as in protobuf or as in containerd's configuration.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Runc {
    #[serde(alias = "NoPivotRoot")]
    no_pivot_root: bool,
    #[serde(alias = "NoNewKeyring")]
    no_new_keyring: bool,
    #[serde(alias = "ShimCgroup")]
    shim_cgroup: String,
    #[serde(alias = "IoUid")]
    io_uid: u32,
    #[serde(alias = "IoGid")]
    io_gid: u32,
    #[serde(alias = "BinaryName", alias = "runtime")]
    binary_name: String,
    #[serde(alias = "Root")]
    root: String,
    #[serde(alias = "SystemdCgroup")]
    systemd_cgroup: bool,
    #[serde(alias = "CriuImagePath")]
    criu_image_path: String,
    #[serde(alias = "CriuWorkPath")]
    criu_work_path: String,
}

fn runc(fields: Map<String, Value>) -> Result<Any> {
    let runc: Runc = serde_json::from_value(Value::Object(fields))
        .map_err(|e| Error::invalid(format!("runtime.options: {e}")))?;
    let message = oci::Options {
        no_pivot_root: runc.no_pivot_root,
        no_new_keyring: runc.no_new_keyring,
        shim_cgroup: runc.shim_cgroup,
        io_uid: runc.io_uid,
        io_gid: runc.io_gid,
        binary_name: runc.binary_name,
        root: runc.root,
        systemd_cgroup: runc.systemd_cgroup,
        criu_image_path: runc.criu_image_path,
        criu_work_path: runc.criu_work_path,
        ..oci::Options::default()
    };
    let bytes = message
        .write_to_bytes()
        .map_err(|e| Error::invalid(format!("runtime.options: {e}")))?;
    Ok(any("containerd.runc.v1.Options", bytes))
}

/// Wraps a message's bytes with the name of its type.
pub(crate) fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: type_url.into(),
        value,
        ..Any::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Program {
        Program {
            path: "/gantry".into(),
            first: Some("shim".into()),
            own: true,
        }
    }

    fn chosen(name: &str, options: &str) -> Result<Choice> {
        let (name, options) = (name.into(), options.into());
        choose(&Runtime { name, options }, &own())
    }

    #[test]
    fn a_word_is_a_runtime_inside_our_own_shim() {
        assert_eq!(chosen("", "").unwrap().options, None);
        let runc = chosen("runc", r#"{"systemd_cgroup":true}"#).unwrap();
        assert_eq!(runc.program, own());
        let options: Value = serde_json::from_slice(&runc.options.unwrap().value).unwrap();
        assert_eq!(options["runtime"], "runc");
        assert_eq!(options["systemd_cgroup"], true);
    }

    #[test]
    fn a_path_is_a_stock_shim_with_runc_options() {
        let stock = chosen("/usr/bin/x", r#"{"BinaryName":"crun"}"#).unwrap();
        assert!(!stock.program.own);
        let options = oci::Options::parse_from_bytes(&stock.options.unwrap().value).unwrap();
        assert_eq!(options.binary_name, "crun");
        assert!(chosen("/usr/bin/x", r#"{"nope":1}"#).is_err());
    }

    #[test]
    fn a_shim_that_is_not_there_is_named() {
        let error = chosen("io.containerd.nowhere.v2", "").unwrap_err();
        assert!(error.message.contains("containerd-shim-nowhere-v2"));
    }

    #[test]
    fn a_message_of_another_type_is_passed_on() {
        let any = chosen("/x", r#"{"type_url":"a.B","value":"0aff"}"#)
            .unwrap()
            .options
            .unwrap();
        assert_eq!(
            (any.type_url.as_str(), &any.value[..]),
            ("a.B", &[10, 255][..])
        );
    }
}
