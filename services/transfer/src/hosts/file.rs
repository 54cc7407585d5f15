//! One `hosts.toml`: text to hosts, with the line of everything that is wrong.

use super::{Capabilities, Header, Host, Rule, Scheme, Tls};
use contracts::{Error, Result};
use std::{ops::Range, path::Path, time::Duration};
use toml_edit::{Item, TableLike, Value};

/// The keys of a host; `server` and `host` may stand beside them at the top.
const HOST_KEYS: [&str; 7] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
];

/// Reads `text` of `path`: mirrors in their order, then the registry itself, which starts from `built_in`.
pub(super) fn parse(path: &Path, text: &str, built_in: &Host) -> Result<Vec<Host>> {
    let source = Source { path, text };
    let document = toml_edit::Document::parse(text).map_err(|error| {
        source.fault(
            error.span(),
            error.message().replace('\n', " ").trim_end().to_owned(),
        )
    })?;
    let top = document.as_table();
    source.known_keys(top, &["server", "host"])?;
    let mut hosts = Vec::new();
    if let Some((key, item)) = top.get_key_value("host") {
        let list = item.as_table_like().ok_or_else(|| {
            source.fault(
                key.span(),
                "host: write it as [host.\"https://mirror.example\"]",
            )
        })?;
        for (address, item) in list.iter() {
            let span = list.key(address).and_then(toml_edit::Key::span);
            hosts.push(source.mirror(address, span, item)?);
        }
    }
    hosts.push(source.upstream(top, built_in)?);
    Ok(hosts)
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn line(&self, span: Option<Range<usize>>) -> usize {
        let until = span.map_or(0, |span| span.start).min(self.text.len());
        self.text.as_bytes()[..until]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            + 1
    }

    fn fault(&self, span: Option<Range<usize>>, what: impl std::fmt::Display) -> Error {
        Error::precondition(format!(
            "{}:{}: {what}",
            self.path.display(),
            self.line(span)
        ))
    }

    fn rule(&self, span: Option<Range<usize>>) -> Rule {
        Rule {
            file: Some(self.path.to_owned()),
            line: self.line(span),
        }
    }

    /// A misspelt key silently ignored would give a host more trust than was meant.
    fn known_keys(&self, table: &dyn TableLike, more: &[&str]) -> Result<()> {
        let known = || HOST_KEYS.iter().chain(more);
        for (key, _) in table.iter() {
            if known().any(|known| *known == key) {
                continue;
            }
            let near = known().find(|known| super::hints::close(known, key));
            let hint = near
                .map(|near| format!("; did you mean {near:?}?"))
                .unwrap_or_default();
            let span = table.key(key).and_then(toml_edit::Key::span);
            return Err(self.fault(span, format!("key {key:?} is unknown{hint}")));
        }
        Ok(())
    }

    fn mirror(&self, address: &str, span: Option<Range<usize>>, item: &Item) -> Result<Host> {
        let table = item.as_table_like().ok_or_else(|| {
            self.fault(span.clone(), format!("host {address:?}: must be a table"))
        })?;
        self.known_keys(table, &[])?;
        let override_path = self.boolean(table, "override_path")?.unwrap_or(false);
        let Some((scheme, authority, path)) = address_of(address, override_path) else {
            let what = format!(
                "host {address:?}: must be an http or https address, as in https://mirror.example"
            );
            return Err(self.fault(span, what));
        };
        let host = Host {
            scheme,
            authority,
            path,
            capabilities: Capabilities::ALL,
            tls: Tls::default(),
            headers: Vec::new(),
            dial_timeout: super::DIAL_TIMEOUT,
            upstream: false,
            rule: self.rule(span),
        };
        self.settings(table, host)
    }

    /// The registry itself: what stands above all `[host]` tables. Without `server` it stays where it was.
    fn upstream(&self, top: &toml_edit::Table, built_in: &Host) -> Result<Host> {
        let mut host = built_in.clone();
        if let Some((key, item)) = top.get_key_value("server") {
            let override_path = self.boolean(top, "override_path")?.unwrap_or(false);
            let text = item
                .as_str()
                .ok_or_else(|| self.fault(key.span(), "server: must be a string"))?;
            let Some((scheme, authority, path)) = address_of(text, override_path) else {
                return Err(self.fault(
                    key.span(),
                    format!("server: {text:?} must be an http or https address"),
                ));
            };
            host = Host {
                scheme,
                authority,
                path,
                rule: self.rule(key.span()),
                tls: Tls::default(),
                ..host
            };
        }
        self.settings(top, host)
    }

    fn settings(&self, table: &dyn TableLike, mut host: Host) -> Result<Host> {
        if let Some(capabilities) = self.capabilities(table)? {
            host.capabilities = capabilities;
        }
        if let Some(skip) = self.boolean(table, "skip_verify")? {
            host.tls.skip_verify = skip;
        }
        if let Some(timeout) = self.dial_timeout(table)? {
            host.dial_timeout = timeout;
        }
        host.tls.ca = self.certificates(table)?;
        host.tls.client = self.client(table)?;
        host.headers = self.headers(table)?;
        Ok(host)
    }

    fn boolean(&self, table: &dyn TableLike, key: &str) -> Result<Option<bool>> {
        let Some((name, item)) = table.get_key_value(key) else {
            return Ok(None);
        };
        match item.as_bool() {
            Some(value) => Ok(Some(value)),
            None => Err(self.fault(name.span(), format!("{key}: must be true or false"))),
        }
    }

    fn capabilities(&self, table: &dyn TableLike) -> Result<Option<Capabilities>> {
        let Some(words) = self.strings(table, "capabilities")? else {
            return Ok(None);
        };
        let mut held = Capabilities {
            pull: false,
            resolve: false,
            push: false,
        };
        for (word, span) in words {
            match word {
                "pull" => held.pull = true,
                "resolve" => held.resolve = true,
                "push" => held.push = true,
                "referrers" => {}
                other => {
                    let what =
                        format!("capabilities: {other:?} must be pull, resolve, push or referrers");
                    return Err(self.fault(span, what));
                }
            }
        }
        Ok(Some(held))
    }

    /// A string, or a list of strings, each with where it stands.
    #[allow(clippy::type_complexity)] // one use, and a name for it would say less
    fn strings<'t>(
        &self,
        table: &'t dyn TableLike,
        key: &str,
    ) -> Result<Option<Vec<(&'t str, Option<Range<usize>>)>>> {
        let Some((name, item)) = table.get_key_value(key) else {
            return Ok(None);
        };
        let fault = || {
            self.fault(
                name.span(),
                format!("{key}: must be a string or a list of strings"),
            )
        };
        match item.as_value().ok_or_else(fault)? {
            Value::String(text) => Ok(Some(vec![(text.value().as_str(), text.span())])),
            Value::Array(list) => list
                .iter()
                .map(|value| {
                    value
                        .as_str()
                        .map(|text| (text, value.span()))
                        .ok_or_else(fault)
                })
                .collect::<Result<_>>()
                .map(Some),
            _ => Err(fault()),
        }
    }

    fn certificates(&self, table: &dyn TableLike) -> Result<Vec<std::path::PathBuf>> {
        let files = self.strings(table, "ca")?.unwrap_or_default();
        Ok(files
            .into_iter()
            .map(|(file, _)| self.beside(file))
            .collect())
    }

    /// Files are relative to the folder of the rule.
    fn beside(&self, file: &str) -> std::path::PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(file)
    }

    /// A string, a list of strings (certificate and key in one file), or a list of pairs.
    fn client(
        &self,
        table: &dyn TableLike,
    ) -> Result<Vec<(std::path::PathBuf, Option<std::path::PathBuf>)>> {
        let Some((name, item)) = table.get_key_value("client") else {
            return Ok(Vec::new());
        };
        let fault = || {
            self.fault(
                name.span(),
                "client: must be a file, or a list of files or of [certificate, key] pairs",
            )
        };
        let single = |file: &str| (self.beside(file), None);
        let entry = |value: &Value| match value {
            Value::String(file) => Ok(single(file.value())),
            Value::Array(pair) => {
                let files: Option<Vec<&str>> = pair.iter().map(Value::as_str).collect();
                match files.as_deref() {
                    Some([both] | [both, ""]) => Ok(single(both)),
                    Some([certificate, key]) => {
                        Ok((self.beside(certificate), Some(self.beside(key))))
                    }
                    _ => Err(fault()),
                }
            }
            _ => Err(fault()),
        };
        match item.as_value().ok_or_else(fault)? {
            Value::String(file) => Ok(vec![single(file.value())]),
            Value::Array(list) => list.iter().map(entry).collect(),
            _ => Err(fault()),
        }
    }

    fn headers(&self, table: &dyn TableLike) -> Result<Vec<Header>> {
        let Some((name, item)) = table.get_key_value("header") else {
            return Ok(Vec::new());
        };
        let list = item
            .as_table_like()
            .ok_or_else(|| self.fault(name.span(), "header: must be a table"))?;
        let mut headers = Vec::new();
        for (header, _) in list.iter() {
            let values = self.strings(list, header)?.unwrap_or_default();
            headers.extend(values.into_iter().map(|(value, _)| Header {
                name: header.to_owned(),
                value: value.to_owned(),
            }));
        }
        Ok(headers)
    }

    fn dial_timeout(&self, table: &dyn TableLike) -> Result<Option<Duration>> {
        let Some((name, item)) = table.get_key_value("dial_timeout") else {
            return Ok(None);
        };
        let text = item.as_str().ok_or_else(|| {
            self.fault(name.span(), "dial_timeout: must be a string, as in \"30s\"")
        })?;
        match duration(text) {
            Some(duration) => Ok(Some(duration)),
            None => Err(self.fault(
                name.span(),
                format!("dial_timeout: {text:?} must be a length of time, as in \"30s\""),
            )),
        }
    }
}

/// Splits an address into scheme, host and path; `/v2` is added unless the path is given whole.
fn address_of(text: &str, override_path: bool) -> Option<(Scheme, String, String)> {
    let (scheme, rest) = match text.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(_) => return None,
        None => (Scheme::Https, text),
    };
    let url = url::Url::parse(&format!("{scheme}://{rest}")).ok()?;
    if !url.username().is_empty() || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    let host = url.host_str()?;
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let path = url.path().trim_end_matches('/');
    let suffix = if override_path || path.ends_with("/v2") {
        ""
    } else {
        "/v2"
    };
    Some((scheme, authority, format!("{path}{suffix}")))
}

/// Reads lengths of time as Go writes them: `1m30s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let units = &rest[digits..];
        let unit = units
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(units.len());
        let millis = match &units[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &units[unit..];
    }
    (!total.is_zero()).then_some(total)
}
