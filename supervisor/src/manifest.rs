//! Which plugins a node runs, which of them share a process, and which are foreign programs: a TOML file.
//!
//! ```toml
//! plugins = ["gateway/http", "images/local"]     # a process each
//!
//! [[process]]                                    # one process for several
//! plugins = ["content/local", "events/local"]
//!
//! [[exec]]                                       # a program in any language; `bus/src/foreign.rs` says what it speaks
//! id = "greeter/python"                          # service/id: a service of its own, or one of ours
//! command = ["/usr/lib/gantry/greeter.py"]       # absolute path, arguments
//! requires = ["images", "events"]                # contracts that it calls; none by default
//! also = ["collect"]                             # contracts that it answers besides its own; none by default
//! expose = true                                  # whether a service of its own is reached over HTTP; true by default
//! [exec.settings]                                # the settings it knows, with their defaults
//! greeting = "hello"
//! ```
//!
//! A program never shares a process, and has no privileges.

use crate::config::line;
use contracts::{
    PluginId,
    plugin::{PluginSpec, Privileges},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};
use toml::Spanned;

/// The plugins of a node, grouped by process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// `default`, `minimal`, or the path it was read from.
    pub name: String,
    /// One entry per process: what it hosts, never empty.
    pub processes: Vec<Vec<PluginId>>,
    /// The foreign programs among them.
    pub programs: Vec<Program>,
}

/// A plugin that is a foreign program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// What it is to the others.
    pub spec: PluginSpec,
    /// Whether its service is reached over HTTP.
    pub expose: bool,
    /// Line of its command in the manifest.
    line: usize,
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
    #[serde(default)]
    exec: Vec<Exec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Process {
    plugins: Vec<PluginId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exec {
    id: PluginId,
    command: Spanned<Vec<String>>,
    #[serde(default)]
    requires: Vec<String>,
    #[serde(default)]
    also: Vec<String>,
    #[serde(default = "yes")]
    expose: bool,
    #[serde(default)]
    settings: toml::Table,
}

fn yes() -> bool {
    true
}

impl Manifest {
    /// Reads the TOML `text` of the manifest called `name`. Errors: not TOML, an unknown key, a malformed id, a process without plugins, no plugin at all,
    /// a program without a path, settings that JSON does not know.
    pub fn parse(name: &str, text: &str) -> Result<Self, ManifestError> {
        let error = |why: String| ManifestError {
            name: name.into(),
            why,
        };
        let file: File = toml::from_str(text).map_err(|e| error(e.to_string()))?;
        let alone = file.plugins.into_iter().map(|plugin| vec![plugin]);
        let shared = file.process.into_iter().map(|process| process.plugins);
        let foreign = file.exec.iter().map(|exec| vec![exec.id.clone()]);
        let processes: Vec<_> = alone.chain(shared).chain(foreign).collect();
        if processes.iter().any(Vec::is_empty) {
            return Err(error("a [[process]] hosts no plugin; name some".into()));
        }
        if processes.is_empty() {
            return Err(error(
                "no plugin is named; list some in `plugins = [...]`".into(),
            ));
        }
        let at = |exec: &Exec| line(text, exec.command.span().start);
        let programs = file.exec.into_iter().map(|exec| {
            let at = at(&exec);
            program(exec, at).map_err(|why| ManifestError {
                name: format!("{name}:{at}"),
                why,
            })
        });
        Ok(Self {
            name: name.into(),
            processes,
            programs: programs.collect::<Result<_, _>>()?,
        })
    }

    /// Looks whether every program is an executable file. Errors: the first that is not, with its line and the way out.
    pub fn find_programs(&self) -> Result<(), ManifestError> {
        for program in &self.programs {
            let path = program.path();
            executable(path).map_err(|why| ManifestError {
                name: format!("{}:{}", self.name, program.line),
                why: format!("exec {}: program {path}: {why}", program.spec.id),
            })?;
        }
        Ok(())
    }
}

impl Program {
    fn path(&self) -> &str {
        let command = self.spec.exec.iter().flatten();
        command.map(String::as_str).next().unwrap_or_default()
    }
}

fn program(exec: Exec, line: usize) -> Result<Program, String> {
    let id = exec.id;
    let command = exec.command.into_inner();
    if !command.first().is_some_and(|path| path.starts_with('/')) {
        return Err(format!(
            "exec {id}: `command` must begin with the absolute path of a program"
        ));
    }
    let settings = table(&exec.settings).map_err(|why| format!("exec {id}: settings: {why}"))?;
    let serves = std::iter::once(id.service().to_owned()).chain(exec.also);
    let spec = PluginSpec {
        serves: serves.collect(),
        requires: exec.requires,
        privileges: Privileges::NONE,
        sockets: Vec::new(),
        defaults: Value::Object(settings).to_string(),
        exec: Some(command),
        id,
    };
    Ok(Program {
        spec,
        expose: exec.expose,
        line,
    })
}

fn executable(path: &str) -> Result<(), String> {
    let facts = fs::metadata(Path::new(path))
        .map_err(|e| format!("{e}; install it, or correct `command`"))?;
    match (facts.is_file(), facts.permissions().mode() & 0o111) {
        (false, _) => Err("is no file; give `command` the path of a program".into()),
        (true, 0) => Err(format!("is not executable; try `chmod +x {path}`")),
        (true, _) => Ok(()),
    }
}

fn table(table: &toml::Table) -> Result<Map<String, Value>, String> {
    let entries = table.iter().map(|(key, value)| {
        let value = json(value).map_err(|why| format!("{key}: {why}"))?;
        Ok((key.clone(), value))
    });
    entries.collect()
}

fn json(value: &toml::Value) -> Result<Value, String> {
    match value {
        toml::Value::String(text) => Ok(Value::String(text.clone())),
        toml::Value::Integer(number) => Ok((*number).into()),
        toml::Value::Boolean(truth) => Ok((*truth).into()),
        toml::Value::Float(number) => serde_json::Number::from_f64(*number)
            .map(Value::Number)
            .ok_or_else(|| "must be a finite number".into()),
        toml::Value::Datetime(_) => Err("write times as a string, in quotes".into()),
        toml::Value::Array(items) => {
            let items = items.iter().map(json);
            items.collect::<Result<_, _>>().map(Value::Array)
        }
        toml::Value::Table(inner) => table(inner).map(Value::Object),
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
    fn a_program_becomes_a_plugin_with_a_process_and_settings_of_its_own() {
        let text = "plugins = ['a/x']\n[[exec]]\nid = 'b/x'\ncommand = ['/bin/true', '-v']\nrequires = ['a']\nalso = ['collect']\n[exec.settings]\nn = 1\nlist = ['x']\nmap = { f = 0.5 }";
        let manifest = Manifest::parse("t", text).unwrap();
        assert_eq!(manifest.processes.len(), 2);
        let Program { spec, expose, line } = &manifest.programs[0];
        assert!(*expose && *line == 4 && spec.privileges == Privileges::NONE);
        assert_eq!(spec.serves, ["b", "collect"]);
        assert_eq!(spec.requires, ["a"]);
        assert_eq!(
            spec.exec.as_deref(),
            Some(&["/bin/true".into(), "-v".into()][..])
        );
        assert_eq!(spec.defaults, r#"{"list":["x"],"map":{"f":0.5},"n":1}"#);
        manifest.find_programs().unwrap();
    }

    #[test]
    fn a_program_that_cannot_run_is_refused_with_file_line_and_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = |command: &str| {
            let text = format!("[[exec]]\nid = 'b/x'\ncommand = {command}");
            let manifest = Manifest::parse("m.toml", &text);
            let found = manifest.and_then(|manifest| manifest.find_programs());
            found.unwrap_err().to_string()
        };
        for (command, why) in [
            ("['true']", "`command` must begin with the absolute path"),
            ("[]", "`command` must begin with the absolute path"),
            (
                "['/no/where', '-x']",
                "program /no/where: No such file or directory (os error 2); install it, or correct `command`",
            ),
            ("['/']", "program /: is no file"),
            (
                &format!("[{plain:?}]"),
                "is not executable; try `chmod +x /",
            ),
        ] {
            let error = refused(command);
            assert!(
                error.starts_with("manifest m.toml:3: exec b/x: "),
                "{error}"
            );
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_wrong_manifest_is_refused_with_the_reason() {
        let when = "[[exec]]\nid = 'a/x'\ncommand = ['/x']\nsettings.when = 1979-05-27";
        for (text, expected) in [
            (when, "settings: when: write times as a string"),
            ("", "no plugin is named"),
            ("[[process]]\nplugins = []", "hosts no plugin"),
            ("plugin = ['a/x']", "unknown field"),
            ("plugins = ['nonsense']", "service/id"),
            ("plugins = [", "TOML parse error"),
            ("[[exec]]\nid = 'a/x'", "missing field `command`"),
            (
                "[[exec]]\nid = 'a/x'\ncomand = []",
                "unknown field `comand`",
            ),
        ] {
            let error = Manifest::parse("small", text).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.starts_with("manifest small"),
                "{error}"
            );
        }
    }
}
