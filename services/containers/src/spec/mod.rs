//! Makes an OCI runtime spec from an image's config and what the user asked for.
//!
//! [`generate`] is a function of its arguments: the same request for the same machine gives the same bytes. What the
//! image says decides what runs, as whom and where; privileges come from the user's options alone.
//!
//! Source: OCI runtime-spec, config.md and config-linux.md; OCI image-spec, conversion.md; defaults as Docker and
//! containerd have them, but open files: 1024 soft (as containerd) and up to 1048576 hard.

mod caps;
mod devices;
mod env;
mod error;
mod image;
mod linux;
mod mounts;
mod paths;
mod process;
mod resources;
mod seccomp;
mod seccomp_calls;
mod sysctl;
mod user;
mod whole;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use error::{Result, SpecError};
pub use whole::{MAX_SPEC, check};

use crate::host::Host;
use contracts::containers::Generate;
use contracts::{ContainerId, Namespace};
use image::ImageConfig;
use oci_spec::runtime::{Root, Spec};
use std::collections::HashMap;

/// Version that runtimes since 2020 understand; nothing newer is used.
const OCI_VERSION: &str = "1.0.2";

/// Longest host name, bytes. Source: Linux, `__NEW_UTS_LEN`.
const MAX_HOSTNAME: usize = 64;

/// Where the image's wish for a signal is kept. Source: OCI image-spec, conversion.md "Annotation Fields".
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// Makes the spec of a container of `namespace` on `host`, as JSON text.
///
/// Errors: the option that cannot be honoured, with its value and a way out.
pub fn generate(namespace: &Namespace, request: &Generate, host: &impl Host) -> Result<String> {
    let options = &request.options;
    no_nul(request)?;
    let image = ImageConfig::parse(&request.config)?;
    let caps = caps::choose(&options.caps, options.privileged, host.facts().capabilities)?;
    let hostname = hostname(&request.id, &options.hostname)?;
    let process = process::make(request, &image, &hostname, caps, host.facts())?;
    let mut root = Root::default();
    root.set_path("rootfs".into())
        .set_readonly(Some(options.readonly));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_process(Some(process))
        .set_hostname(Some(hostname))
        .set_mounts(Some(mounts::all(options, host)?))
        .set_annotations(annotations(request, &image)?)
        .set_linux(Some(linux::make(namespace, request, caps, host)?));
    print(&spec)
}

/// Prints with sorted keys and sets: the library keeps both in hash tables, whose order changes from run to run.
fn print(spec: &Spec) -> Result<String> {
    let fault = |error: serde_json::Error| SpecError::new("spec", "", error.to_string());
    let mut value = serde_json::to_value(spec).map_err(fault)?;
    let sets = value.pointer_mut("/process/capabilities");
    for set in sets
        .and_then(|sets| sets.as_object_mut())
        .into_iter()
        .flatten()
    {
        if let Some(names) = set.1.as_array_mut() {
            names.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    let text = value.to_string();
    whole::fits(&text)?;
    Ok(text)
}

/// No kernel interface can carry a zero byte, and a C string would silently end there.
fn no_nul(request: &Generate) -> Result<()> {
    let options = &request.options;
    let text = serde_json::to_string(options)
        .map_err(|error| SpecError::new("options", "", error.to_string()))?;
    if text.contains("\\u0000") {
        let problem = "contain a character with the code 0, which no program can receive";
        return Err(SpecError::new("options", "", problem));
    }
    if request.config.contains("\\u0000") {
        let problem = "contains a character with the code 0, which no program can receive";
        return Err(SpecError::new("config", "", problem));
    }
    Ok(())
}

fn hostname(id: &ContainerId, asked: &str) -> Result<String> {
    if asked.is_empty() {
        let short: String = id.as_str().chars().take(MAX_HOSTNAME).collect();
        return Ok(short.trim_end_matches(['.', '-', '_']).to_owned());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if asked.len() > MAX_HOSTNAME || !asked.chars().all(plain) {
        let problem = format!("must be at most {MAX_HOSTNAME} letters, digits, '.', '-' and '_'");
        return Err(SpecError::new("hostname", asked, problem));
    }
    Ok(asked.to_owned())
}

/// The user's, and of the image only how it wants to be stopped: runtimes act on annotations, so labels stay outside.
fn annotations(request: &Generate, image: &ImageConfig) -> Result<Option<HashMap<String, String>>> {
    let mut all = HashMap::new();
    if let Some(signal) = image.stop_signal() {
        all.insert(STOP_SIGNAL.to_owned(), signal.to_owned());
    }
    for (key, value) in &request.options.annotations {
        if key.is_empty() {
            return Err(SpecError::new(
                "annotations",
                value,
                "has an empty key, give it a name",
            ));
        }
        all.insert(key.clone(), value.clone());
    }
    Ok(Some(all).filter(|all| !all.is_empty()))
}
