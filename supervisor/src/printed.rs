//! `gantry config default`: the whole configuration as a commented file, made from what the plugins register.

use contracts::plugin::PluginSpec;
use serde_json::{Map, Value};
use std::fmt::Write;

const TOP: &str = r#"# The configuration of a gantry node. Every line that begins with a single # is the default.
## The daemon reads it when it starts, on SIGHUP and by `gantry reload`.
version = 1

## Folder of durable state, and folder of run-time state (sockets); both absolute.
# root = "/var/lib/gantry"
# state = "/run/gantry"

## Which plugins run and which share a process: "default" (one process each), "minimal", or the path of a manifest.
# manifest = "default"

## Started by root, every plugin gets a uid of its own from here on; this number is also their common gid.
# uid_base = 700000

## A process that ended is started again after a pause: at most `first_ms`, doubled for each further end up to
## `longest_seconds`; one that refused to start, after `refused_ms`. After `failures` ends in quick succession it is tried
## again only every `rare_seconds`. Answering for `forgive_seconds` makes up for all of them. Up to half of each pause is
## left out at random. `…_ms` are milliseconds, `…_seconds` seconds.
# [restart]
# first_ms = 50
# longest_seconds = 30
# failures = 10
# rare_seconds = 60
# forgive_seconds = 60
# refused_ms = 1000

## Every process is asked `every_ms` whether it answers (0: never). Silent for `late_ms` it is degraded, and so are those
## who need it; silent for `kill_seconds` (0: for ever) it is killed and started again. What does not become ready for
## `patience_seconds` is no longer waited for, and for `start_seconds` is killed; in an upgrade or a reload, what was
## before comes back after `patience_seconds`.
# [probe]
# every_ms = 500
# late_ms = 1500
# kill_seconds = 10
# patience_seconds = 10
# start_seconds = 600

## What a plugin's process may use at most, where the kernel has cgroups: bytes of memory (a number, or "64MiB"),
## thousandths of one CPU. By default there is no limit.
## [limits."content/local"]
## memory = "256MiB"
## cpu = 500
"#;

/// Prints the defaults of this build as a file in which they are commented out. `explain` says what a plugin's setting
/// means, in one line.
pub fn default_file(
    specs: &[PluginSpec],
    explain: fn(plugin: &str, setting: &str) -> Option<&'static str>,
) -> String {
    let mut text = TOP.to_owned();
    let mut specs: Vec<_> = specs.iter().collect();
    specs.sort_by(|a, b| a.id.cmp(&b.id));
    for spec in specs {
        let defaults: Map<String, Value> = serde_json::from_str(&spec.defaults).unwrap_or_default();
        if defaults.is_empty() {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n# [plugins.{}]", quoted(spec.id.as_str()));
        for (key, value) in &defaults {
            if let Some(meaning) = explain(spec.id.as_str(), key) {
                let _ = writeln!(text, "## {meaning}");
            }
            let key = bare_or_quoted(key);
            let _ = match value {
                Value::Null => writeln!(text, "## {key} is not set"),
                value => writeln!(text, "# {key} = {}", inline(value)),
            };
        }
    }
    text
}

/// Writes a value on one line. TOML has no null: inside of lists and tables it is left out.
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().filter(|i| !i.is_null()).map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => {
            let entries = map.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<_> = entries
                .map(|(key, value)| format!("{} = {}", bare_or_quoted(key), inline(value)))
                .collect();
            match entries.is_empty() {
                true => "{}".into(),
                false => format!("{{ {} }}", entries.join(", ")),
            }
        }
        other => other.to_string(),
    }
}

fn bare_or_quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => quoted(key),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, samples::spec};

    fn specs() -> Vec<PluginSpec> {
        let mut gateway = spec("gateway/http", &[]);
        gateway.defaults = r#"{"listen":"a\"b","none":null,"n":-3,"f":1.5,"list":["x"],"map":{"k.k":{"deep":true}},"empty":{}}"#.into();
        vec![gateway, spec("content/local", &[])]
    }

    fn meaning(_: &str, setting: &str) -> Option<&'static str> {
        (setting == "n").then_some("A number.")
    }

    #[test]
    fn the_printed_file_is_read_as_the_defaults_with_and_without_its_comments() {
        let (specs, text) = (specs(), default_file(&specs(), meaning));
        let bare = |line: &str| line.strip_prefix("# ").unwrap_or(line).to_owned();
        let uncommented: Vec<_> = text.lines().skip(1).map(bare).collect();
        let defaults = Config::new(&specs).unwrap().settings("gateway/http");
        for text in [text.clone(), uncommented.join("\n")] {
            let config = Config::parse("default", &text, &specs).unwrap();
            assert_eq!(config.settings("gateway/http"), defaults, "{text}");
        }
    }

    #[test]
    fn every_setting_is_shown_and_plugins_without_any_are_not() {
        let text = default_file(&specs(), meaning);
        assert!(
            text.contains("# [plugins.\"gateway/http\"]") && text.contains("## none is not set")
        );
        assert!(text.contains("\n## A number.\n# n = -3\n"), "{text}");
        assert!(!text.contains("plugins.\"content/local\""));
    }
}
