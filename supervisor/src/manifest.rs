//! Which plugins a node runs, and which of them share a process: a TOML file of two possible keys.
//!
//! ```toml
//! plugins = ["gateway/http", "images/local"]     # a process each
//!
//! [[process]]                                    # one process for several
//! plugins = ["content/local", "events/local"]
//! ```

use contracts::PluginId;
use serde::Deserialize;

/// The plugins of a node, grouped by process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// `default`, `minimal`, or the path it was read from.
    pub name: String,
    /// One entry per process: what it hosts, never empty.
    pub processes: Vec<Vec<PluginId>>,
}

/// A manifest that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("manifest {name}: {why}")]
pub struct ManifestError {
    name: String,
    why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    plugins: Vec<PluginId>,
    #[serde(default)]
    process: Vec<Process>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Process {
    plugins: Vec<PluginId>,
}

impl Manifest {
    /// Reads the TOML `text` of the manifest called `name`. Errors: not TOML, an unknown key, a malformed id, a process without plugins, no plugin at all.
    pub fn parse(name: &str, text: &str) -> Result<Self, ManifestError> {
        let error = |why: String| ManifestError {
            name: name.into(),
            why,
        };
        let file: File = toml::from_str(text).map_err(|e| error(e.to_string()))?;
        let alone = file.plugins.into_iter().map(|plugin| vec![plugin]);
        let shared = file.process.into_iter().map(|process| process.plugins);
        let processes: Vec<_> = alone.chain(shared).collect();
        if processes.iter().any(Vec::is_empty) {
            return Err(error("a [[process]] hosts no plugin; name some".into()));
        }
        if processes.is_empty() {
            return Err(error(
                "no plugin is named; list some in `plugins = [...]`".into(),
            ));
        }
        Ok(Self {
            name: name.into(),
            processes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_get_a_process_each_and_a_process_table_shares_one() {
        let manifest = Manifest::parse(
            "t",
            "plugins = ['a/x', 'b/x']\n[[process]]\nplugins = ['c/x', 'd/x']",
        )
        .unwrap();
        let shown: Vec<Vec<&str>> = manifest
            .processes
            .iter()
            .map(|p| p.iter().map(PluginId::as_str).collect())
            .collect();
        assert_eq!(shown, [vec!["a/x"], vec!["b/x"], vec!["c/x", "d/x"]]);
    }

    #[test]
    fn a_wrong_manifest_is_refused_with_the_reason() {
        for (text, expected) in [
            ("", "no plugin is named"),
            ("[[process]]\nplugins = []", "hosts no plugin"),
            ("plugin = ['a/x']", "unknown field"),
            ("plugins = ['nonsense']", "service/id"),
            ("plugins = [", "TOML parse error"),
        ] {
            let error = Manifest::parse("small", text).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.starts_with("manifest small: "),
                "{error}"
            );
        }
    }
}
