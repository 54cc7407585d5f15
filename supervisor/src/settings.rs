//! Settings of a user laid over a template of defaults: what the template does not know is refused, with a suggestion.
//!
//! The template is JSON. An object is closed: only its keys may be set; an empty one takes any keys. `null` takes
//! anything. An empty list takes any items, another one only items like its first.

use crate::suggest;
use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What is wrong, and where in the text.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Byte offset.
    pub(crate) at: usize,
    /// In words.
    pub(crate) what: String,
}

/// Lays `table` over `template`; `path` is its name in messages, empty at the top. Errors: every unknown key, every
/// value of another type than the template's.
pub(crate) fn overlay(
    template: &Map<String, Value>,
    table: &DeTable<'_>,
    path: &str,
) -> Result<Map<String, Value>, Vec<Problem>> {
    let mut result = template.clone();
    let mut problems = Vec::new();
    for (key, value) in table {
        let name: &str = key.get_ref();
        let Some(default) = template.get(name) else {
            problems.push(unknown(template, key.span().start, name, path));
            continue;
        };
        match lay(default, value, &join(path, name)) {
            Ok(value) => drop(result.insert(name.to_owned(), value)),
            Err(found) => problems.extend(found),
        }
    }
    problems.sort_by_key(|problem| problem.at);
    match problems.is_empty() {
        true => Ok(result),
        false => Err(problems),
    }
}

fn lay(default: &Value, value: &Spanned<DeValue<'_>>, path: &str) -> Result<Value, Vec<Problem>> {
    match (default, value.get_ref()) {
        // Only plugins are closed although empty: one without settings takes none.
        (Value::Object(map), DeValue::Table(table)) if !map.is_empty() || is_plugin(path) => {
            overlay(map, table, path).map(Value::Object)
        }
        (Value::Array(items), DeValue::Array(values)) => {
            let like = items.first().unwrap_or(&Value::Null);
            let items = values.iter().map(|v| lay(like, v, path));
            items.collect::<Result<_, _>>().map(Value::Array)
        }
        (default, _) => {
            let json = json(value, path).map_err(|problem| vec![problem])?;
            match fits(default, &json) {
                true => Ok(json),
                false => Err(vec![Problem {
                    at: value.span().start,
                    what: format!("{path} must be {}, not {}", kind(default), kind(&json)),
                }]),
            }
        }
    }
}

fn is_plugin(path: &str) -> bool {
    path.starts_with("plugins.") && path.ends_with('"')
}

fn unknown(template: &Map<String, Value>, at: usize, name: &str, path: &str) -> Problem {
    let known = template.keys().map(String::as_str);
    let what = match path {
        "" => format!("unknown key {name:?}{}", suggest::hint(name, known)),
        "plugins" => {
            // Who writes only the service means its plugin.
            let begins = |id: &&str| id.split('/').next() == Some(name);
            let hint = match known.clone().find(begins) {
                Some(id) => format!("; did you mean {id:?}"),
                None => suggest::hint(name, known),
            };
            format!("unknown plugin {name:?}{hint}")
        }
        _ if template.is_empty() => {
            format!("unknown key {name:?} in {path}, which has no settings")
        }
        _ => format!(
            "unknown key {name:?} in {path}{}",
            suggest::hint(name, known)
        ),
    };
    Problem { at, what }
}

fn join(path: &str, name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let name = match name.chars().all(bare) {
        true => name.to_owned(),
        false => format!("{name:?}"),
    };
    match path {
        "" => name,
        path => format!("{path}.{name}"),
    }
}

fn fits(default: &Value, value: &Value) -> bool {
    match (default, value) {
        (Value::Null, _) => true,
        (Value::Number(a), Value::Number(b)) => a.is_f64() || !b.is_f64(),
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "anything",
        Value::Bool(_) => "true or false",
        Value::Number(n) if n.is_f64() => "a number",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

fn json(value: &Spanned<DeValue<'_>>, path: &str) -> Result<Value, Problem> {
    let problem = |why: &str| Problem {
        at: value.span().start,
        what: format!("{path}: {why}"),
    };
    match value.get_ref() {
        DeValue::String(text) => Ok(Value::String(text.to_string())),
        DeValue::Boolean(truth) => Ok(Value::Bool(*truth)),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::from)
            .map_err(|_| problem("the number does not fit 64 bits")),
        DeValue::Float(number) => {
            let number: Option<f64> = number.as_str().parse().ok();
            let number = number.and_then(serde_json::Number::from_f64);
            number
                .map(Value::Number)
                .ok_or_else(|| problem("must be a finite number"))
        }
        DeValue::Datetime(_) => Err(problem("write times as a string, in quotes")),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| json(item, path));
            items.collect::<Result<_, _>>().map(Value::Array)
        }
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, value)| {
                let name: &str = key.get_ref();
                Ok((name.to_owned(), json(value, &join(path, name))?))
            });
            entries.collect::<Result<_, _>>().map(Value::Object)
        }
    }
}
