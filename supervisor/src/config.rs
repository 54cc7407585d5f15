//! The configuration file: TOML, every key known, every error with its line and a way out.
//!
//! ```toml
//! version = 1
//! root = "/var/lib/gantry"
//! [plugins."gateway/http"]     # a plugin goes by its full id
//! listen = "127.0.0.1:7171"
//! ```
//!
//! What a plugin may be told is what its registration gives defaults for. The supervisor reads the file when it starts
//! and when it is told to reload.

use crate::{lifecycle::Timing, limits, restart::Policy, settings};
use contracts::plugin::{Limits, PluginSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};
use toml::de::DeTable;

/// The version of the file format that this build reads.
pub const VERSION: i64 = 1;

/// The settings of a node: the file laid over the defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    version: i64,
    /// Folder of durable state, absolute.
    pub root: PathBuf,
    /// Folder of run-time state, absolute.
    pub state: PathBuf,
    /// `default`, `minimal`, or the path of a manifest.
    pub manifest: String,
    /// The first uid that plugins get; also their common gid.
    pub uid_base: u32,
    restart: Restart,
    probe: Probe,
    limits: BTreeMap<String, Limit>,
    /// Settings of each built-in plugin, by id.
    plugins: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Restart {
    first_ms: u32,
    longest_seconds: u32,
    failures: u32,
    rare_seconds: u32,
    forgive_seconds: u32,
    refused_ms: u32,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Probe {
    every_ms: u32,
    late_ms: u32,
    kill_seconds: u32,
    patience_seconds: u32,
    start_seconds: u32,
}

#[derive(Clone, Debug, Deserialize)]
struct Limit {
    memory: Value,
    cpu: u32,
}

/// What is wrong with the configuration: every mistake as `file:line: what`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    pub(crate) fn new(place: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self(vec![format!("{place}: {what}")])
    }
}

impl Config {
    /// The defaults of this build.
    pub fn new(specs: &[PluginSpec]) -> Result<Self, ConfigError> {
        Self::of(Value::Object(template(specs)?), specs, &|_| {
            "defaults".into()
        })
    }

    /// Reads the TOML `text` of `file`. Errors: with the line, for bad TOML, an unknown key or plugin, a wrong type or value.
    pub fn parse(file: &str, text: &str, specs: &[PluginSpec]) -> Result<Self, ConfigError> {
        let place = |at: usize| format!("{file}:{}", line(text, at));
        let table = DeTable::parse(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start);
            ConfigError::new(place(at), e.message())
        })?;
        let table = table.get_ref();
        if !table.contains_key("version") {
            let what = format!("version is missing; write `version = {VERSION}` on top");
            return Err(ConfigError::new(place(0), what));
        }
        let laid = settings::overlay(&template(specs)?, table, "").map_err(|problems| {
            let mistakes = problems.into_iter();
            ConfigError(
                mistakes
                    .map(|p| format!("{}: {}", place(p.at), p.what))
                    .collect(),
            )
        })?;
        Self::of(Value::Object(laid), specs, &|key| {
            place(table.get(key).map_or(0, |value| value.span().start))
        })
    }

    fn of(
        json: Value,
        specs: &[PluginSpec],
        place: &dyn Fn(&str) -> String,
    ) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_value(json)
            .map_err(|e| ConfigError::new(place("version"), e.to_string()))?;
        config.check(place)?;
        config.check_roots(specs, place)?;
        Ok(config)
    }

    fn check(&self, place: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        let refuse = |key, what: String| Err(ConfigError::new(place(key), what));
        if self.version != VERSION {
            let version = self.version;
            return refuse(
                "version",
                format!("version {version} is not known; this build reads version {VERSION}"),
            );
        }
        for (key, path) in [("root", &self.root), ("state", &self.state)] {
            if !path.is_absolute() {
                let shown = path.display();
                return refuse(key, format!("{key} {shown}: must be an absolute path"));
            }
        }
        if self.root == self.state {
            return refuse("state", "state must be another folder than root".into());
        }
        if self.uid_base == 0 {
            return refuse("uid_base", "uid_base 0 is root; use 700000 or so".into());
        }
        let Probe {
            every_ms, late_ms, ..
        } = self.probe;
        if every_ms >= late_ms {
            let what = format!(
                "probe.late_ms {late_ms}: must be more than every_ms {every_ms}, or every answer is late"
            );
            return refuse("probe", what);
        }
        for (plugin, limit) in &self.limits {
            let read = limits::memory(&limit.memory).and(limits::cpu(limit.cpu).map(u64::from));
            if let Err(what) = read {
                return refuse("limits", format!("limits.{plugin:?}.{what}"));
            }
        }
        Ok(())
    }

    /// What a plugin that outlives its own process' end must not have: its programs would share it.
    fn check_roots(
        &self,
        specs: &[PluginSpec],
        place: &dyn Fn(&str) -> String,
    ) -> Result<(), ConfigError> {
        let root = specs.iter().filter(|spec| spec.privileges.root);
        let mut limited = root.filter(|spec| self.limits(spec.id.as_str()) != Limits::default());
        match limited.next() {
            Some(spec) => {
                let what = format!(
                    "limits.{:?}: it starts programs that outlive it and would share its limits; limit the containers instead",
                    spec.id.as_str()
                );
                Err(ConfigError::new(place("limits"), what))
            }
            None => Ok(()),
        }
    }

    /// The figures of the backoff.
    pub fn policy(&self) -> Policy {
        let seconds = |number: u32| Duration::from_secs(number.into());
        Policy {
            first: Duration::from_millis(self.restart.first_ms.into()),
            longest: seconds(self.restart.longest_seconds),
            failures: self.restart.failures,
            rare: seconds(self.restart.rare_seconds),
            forgive: seconds(self.restart.forgive_seconds),
            refused: Duration::from_millis(self.restart.refused_ms.into()),
        }
    }

    /// How long the supervisor waits for processes.
    pub fn timing(&self) -> Timing {
        // Zero is never: longer than any node runs.
        let seconds = |number: u32| {
            Duration::from_secs(match number {
                0 => u32::MAX.into(),
                number => number.into(),
            })
        };
        Timing {
            patience: Duration::from_secs(self.probe.patience_seconds.into()),
            start: seconds(self.probe.start_seconds),
            probe: Duration::from_millis(self.probe.every_ms.into()),
            late: Duration::from_millis(self.probe.late_ms.into()),
            kill: seconds(self.probe.kill_seconds),
            ..Timing::default()
        }
    }

    /// What counts for the node as a whole and can change while it runs, by key.
    pub(crate) fn figures(&self) -> Map<String, Value> {
        let mut figures = Map::new();
        figures.insert("manifest".into(), self.manifest.clone().into());
        let groups = [
            ("restart", serde_json::to_value(&self.restart)),
            ("probe", serde_json::to_value(&self.probe)),
        ];
        for (group, value) in groups {
            if let Ok(Value::Object(map)) = value {
                let named = |(key, value)| (format!("{group}.{key}"), value);
                figures.extend(map.into_iter().map(named));
            }
        }
        figures
    }

    /// What a plugin may use at most.
    pub fn limits(&self, plugin: &str) -> Limits {
        let limit = self.limits.get(plugin);
        limit.map_or_else(Limits::default, |limit| Limits {
            memory: limits::memory(&limit.memory).unwrap_or_default(),
            cpu: limit.cpu,
        })
    }

    /// The settings of a plugin as JSON text: its defaults overlaid by the file.
    pub fn settings(&self, plugin: &str) -> String {
        let settings = self.plugins.get(plugin);
        settings.map_or_else(|| "{}".into(), Value::to_string)
    }

    /// Lays one key over the settings of a plugin, as a command line option does. Errors: no such plugin or key.
    pub fn set(&mut self, plugin: &str, key: &str, value: Value) -> Result<(), ConfigError> {
        let known = self.plugins.get_mut(plugin).and_then(Value::as_object_mut);
        match known.and_then(|settings| settings.get_mut(key)) {
            Some(slot) => *slot = value,
            None => {
                let what = format!("plugin {plugin} is not built in, or has no such setting");
                return Err(ConfigError::new(format!("option {key}"), what));
            }
        }
        Ok(())
    }

    /// Checks the paths again after options have changed them. Errors: as [`Config::parse`].
    pub fn recheck(&self) -> Result<(), ConfigError> {
        self.check(&|key| format!("option {key}"))
    }
}

/// Every key there is, with its default.
fn template(specs: &[PluginSpec]) -> Result<Map<String, Value>, ConfigError> {
    let (mut plugins, mut limits) = (Map::new(), Map::new());
    for spec in specs {
        limits.insert(spec.id.to_string(), json!({ "memory": null, "cpu": 0 }));
        let defaults: Map<String, Value> = serde_json::from_str(&spec.defaults)
            .map_err(|e| ConfigError::new(spec.id.as_str(), format!("its defaults: {e}")))?;
        plugins.insert(spec.id.to_string(), Value::Object(defaults));
    }
    let (policy, timing) = (Policy::default(), Timing::default());
    let top = json!({
        "version": VERSION,
        "root": "/var/lib/gantry",
        "state": "/run/gantry",
        "manifest": "default",
        "uid_base": 700_000,
        "restart": {
            "first_ms": policy.first.as_millis() as u64,
            "longest_seconds": policy.longest.as_secs(),
            "failures": policy.failures,
            "rare_seconds": policy.rare.as_secs(),
            "forgive_seconds": policy.forgive.as_secs(),
            "refused_ms": policy.refused.as_millis() as u64,
        },
        "probe": {
            "every_ms": timing.probe.as_millis() as u64,
            "late_ms": timing.late.as_millis() as u64,
            "kill_seconds": timing.kill.as_secs(),
            "patience_seconds": timing.patience.as_secs(),
            "start_seconds": timing.start.as_secs(),
        },
        "limits": limits,
        "plugins": plugins,
    });
    match top {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// The line of byte `at` of `text`, counted from 1.
pub(crate) fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    before.filter(|&&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::spec;

    fn specs() -> Vec<PluginSpec> {
        let mut gateway = spec("gateway/http", &[]);
        gateway.defaults = r#"{"listen":"","workers":2,"ratio":0.5,"token":null,"hosts":["a"],"labels":{},"tls":{"cert":"","key":""}}"#.into();
        vec![gateway, spec("content/local", &[])]
    }

    fn refused(text: &str) -> String {
        Config::parse("g.toml", &format!("version = 1\n{text}"), &specs())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_file_is_laid_over_the_defaults() {
        let text = "version = 1\nroot = '/r'\n[plugins.'gateway/http']\nlisten = ':1'\nratio = 2\ntoken = 7\nlabels = { any = true }\ntls.key = 'k'\nhosts = ['x', 'y']\n[restart]\nfailures = 3";
        let config = Config::parse("g.toml", text, &specs()).unwrap();
        assert_eq!(config.root, PathBuf::from("/r"));
        assert_eq!(config.state, PathBuf::from("/run/gantry"));
        assert_eq!(config.policy().failures, 3);
        let settings: Value = serde_json::from_str(&config.settings("gateway/http")).unwrap();
        let expected = json!({"listen": ":1", "workers": 2, "ratio": 2, "token": 7, "hosts": ["x", "y"], "labels": {"any": true}, "tls": {"cert": "", "key": "k"}});
        assert_eq!(settings, expected);
        assert_eq!(config.settings("content/local"), "{}");
    }

    #[test]
    fn every_mistake_is_named_with_file_line_and_way_out() {
        let gateway = |line: &str| refused(&format!("\n[plugins.'gateway/http']\n{line}"));
        for (error, expected) in [
            (
                refused("rot = '/x'"),
                r#"g.toml:2: unknown key "rot"; did you mean "root""#,
            ),
            (
                gateway("lissten = ''"),
                r#"g.toml:4: unknown key "lissten" in plugins."gateway/http"; did you mean "listen""#,
            ),
            (
                gateway("tls.kei = ''"),
                r#"g.toml:4: unknown key "kei" in plugins."gateway/http".tls; did you mean "key""#,
            ),
            (
                gateway("listen = 7"),
                r#"g.toml:4: plugins."gateway/http".listen must be a string, not a whole number"#,
            ),
            (
                gateway("workers = 1.5"),
                r#"g.toml:4: plugins."gateway/http".workers must be a whole number, not a number"#,
            ),
            (
                gateway("hosts = ['a',\n 3]"),
                r#"g.toml:5: plugins."gateway/http".hosts must be a string, not a whole number"#,
            ),
            (
                gateway("tls = 'x'"),
                r#"g.toml:4: plugins."gateway/http".tls must be a table, not a string"#,
            ),
            (
                gateway("token = 1979-05-27"),
                r#"g.toml:4: plugins."gateway/http".token: write times as a string, in quotes"#,
            ),
            (
                refused("[plugins.gateway]"),
                r#"g.toml:2: unknown plugin "gateway"; did you mean "gateway/http""#,
            ),
            (
                refused("[plugins.'content/locl']"),
                r#"g.toml:2: unknown plugin "content/locl"; did you mean "content/local""#,
            ),
            (
                refused("[plugins.'content/local']\nx = 1"),
                r#"g.toml:3: unknown key "x" in plugins."content/local", which has no settings"#,
            ),
            (
                refused("root = 'relative'"),
                "g.toml:2: root relative: must be an absolute path",
            ),
            (
                refused("root = '/run/gantry'"),
                "g.toml:1: state must be another folder than root",
            ),
            (
                refused("uid_base = 0"),
                "g.toml:2: uid_base 0 is root; use 700000 or so",
            ),
            (
                refused("[probe]\nlate_ms = 100"),
                "g.toml:2: probe.late_ms 100: must be more than every_ms 500, or every answer is late",
            ),
            (
                refused("[limits.'content/locl']"),
                r#"g.toml:2: unknown key "content/locl" in limits; did you mean "content/local""#,
            ),
            (
                refused("[limits.'content/local']\nmemory = 64"),
                r#"g.toml:2: limits."content/local".memory 64: is less than 1 MiB, in which no plugin runs; write for example "64MiB""#,
            ),
            (
                refused("[limits.'content/local']\ncpu = 1"),
                r#"g.toml:2: limits."content/local".cpu 1: is in thousandths of one CPU, at least 10; write 500 for half a CPU"#,
            ),
        ] {
            assert_eq!(error, expected);
        }
        assert!(refused("root = ").starts_with("g.toml:2: "));
        assert!(refused("uid_base = -1").starts_with("g.toml:"));
    }

    #[test]
    fn the_version_is_asked_for_and_checked() {
        let read = |text| {
            Config::parse("g.toml", text, &specs())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            read(""),
            "g.toml:1: version is missing; write `version = 1` on top"
        );
        assert_eq!(
            read("\nversion = 2"),
            "g.toml:2: version 2 is not known; this build reads version 1"
        );
    }

    #[test]
    fn limits_probes_and_restarts_are_read() {
        let text = "version = 1\n[limits.'content/local']\nmemory = '64MiB'\ncpu = 500\n[probe]\nkill_seconds = 2\n[restart]\nfirst_ms = 7";
        let config = Config::parse("g.toml", text, &specs()).unwrap();
        let limits = config.limits("content/local");
        assert_eq!((limits.memory, limits.cpu), (64 << 20, 500));
        assert_eq!(config.limits("gateway/http"), Limits::default());
        assert_eq!(config.timing().kill, Duration::from_secs(2));
        assert_eq!(config.timing().late, Timing::default().late);
        assert_eq!(config.policy().first, Duration::from_millis(7));
    }

    #[test]
    fn what_starts_programs_that_outlive_it_takes_no_limits() {
        let mut specs = specs();
        specs[1].privileges = contracts::plugin::Privileges::root("shims");
        let text = "version = 1\n[limits.'content/local']\ncpu = 500";
        let error = Config::parse("g.toml", text, &specs).unwrap_err();
        assert!(
            error.to_string().contains("limit the containers"),
            "{error}"
        );
    }

    #[test]
    fn an_option_overrides_a_known_setting_only() {
        let mut config = Config::new(&specs()).unwrap();
        config.set("gateway/http", "listen", json!(":2")).unwrap();
        assert!(config.settings("gateway/http").contains("\":2\""));
        assert!(config.set("gateway/http", "nothing", json!(1)).is_err());
        assert!(config.set("nobody/x", "listen", json!(1)).is_err());
    }
}
