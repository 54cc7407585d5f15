//! Which hosts serve a registry, in which order and how: containerd's `hosts.toml`, read anew at each use.
//!
//! ```text
//! <config>/certs.d/
//!   docker.io/hosts.toml               rules for one registry
//!   registry.example_5000_/hosts.toml  … with a port; `registry.example:5000` is found too
//!   _default/hosts.toml                rules for all others
//! ```
//! A folder without `hosts.toml` may hold `*.crt`, `*.cert` and `*.key` files as Docker lays them out.
//! Every rule remembers its file and line, so that [`explain`] can show why a host was asked.
//! Source: containerd, docs/hosts.md.

mod file;
mod hints;

use contracts::{Error, Result};
use reference::Reference;
use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// The name of the file with the rules.
const FILE: &str = "hosts.toml";

/// One host to ask, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// Name with port, as it stands in the URL.
    pub authority: String,
    /// What stands before `/<repository>`: `/v2`, or what an `override_path` rule says.
    pub path: String,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// How its identity is checked and ours is shown.
    pub tls: Tls,
    /// Added to every request to this host, and to no other.
    pub headers: Vec<Header>,
    /// Longest wait for a connection.
    pub dial_timeout: Duration,
    /// Whether this is the registry itself, not a mirror: only it is shown the caller's credentials.
    pub upstream: bool,
    /// Where this was said.
    pub rule: Rule,
}

/// How a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// TLS.
    Https,
}

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Fetching by digest.
    pub pull: bool,
    /// Turning a tag into a digest: trust it to say what a tag means.
    pub resolve: bool,
    /// Accepting images.
    pub push: bool,
}

/// Everything that makes two TLS set-ups different.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// PEM files with authorities to trust beside the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files with our certificate and, if apart, its key.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether any certificate is accepted.
    pub skip_verify: bool,
}

/// A header that a rule adds. Its value may be a secret and is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// As written.
    pub name: String,
    /// As written.
    pub value: String,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: …", self.name)
    }
}

/// Where a rule was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None` for what is built in.
    pub file: Option<PathBuf>,
    /// Counted from 1; 0 without a line.
    pub line: usize,
}

impl Rule {
    /// What applies where no file says anything.
    pub const BUILT_IN: Self = Self {
        file: None,
        line: 0,
    };
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            None => f.write_str("built in"),
            Some(file) if self.line == 0 => write!(f, "{}", file.display()),
            Some(file) => write!(f, "{}:{}", file.display(), self.line),
        }
    }
}

impl Host {
    /// Shows `https://registry.example/v2`.
    pub fn url(&self) -> String {
        format!("{}://{}{}", self.scheme, self.authority, self.path)
    }

    /// Shows what messages call it: name and port.
    pub fn name(&self) -> &str {
        &self.authority
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

impl Capabilities {
    /// May be asked for everything.
    pub const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.pull, "pull"),
            (self.resolve, "resolve"),
            (self.push, "push"),
        ];
        let held: Vec<&str> = names
            .iter()
            .filter(|(held, _)| *held)
            .map(|(_, name)| *name)
            .collect();
        f.write_str(&held.join(", "))
    }
}

/// Longest wait for a connection where no rule says otherwise. Source: containerd, docs/hosts.md.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Lists the hosts to ask for `reference`, best first; the registry itself is the last.
///
/// Errors: `FailedPrecondition` naming file, line and key of a faulty rule.
pub fn plan(folder: &Path, reference: &Reference, plain_http: bool) -> Result<Vec<Host>> {
    let built_in = built_in(reference, plain_http);
    for folder in folders(folder, reference.registry()) {
        let path = folder.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => return file::parse(&path, &text, &built_in),
            Err(error) if absent(&error) => {}
            Err(error) => {
                return Err(Error::new(
                    contracts::Code::FailedPrecondition,
                    format!(
                        "{}: {error}; make it readable for the transfer plugin",
                        path.display()
                    ),
                ));
            }
        }
        if folder.is_dir() {
            return docker_layout(&folder, built_in).map(|host| vec![host]);
        }
    }
    Ok(vec![built_in])
}

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Lists the folders that may speak for a registry, the most particular first. Source: containerd, docs/hosts.md.
fn folders(folder: &Path, registry: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && !port.ends_with(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// The registry itself, as asked when no rule says otherwise.
fn built_in(reference: &Reference, plain_http: bool) -> Host {
    let authority = reference.registry_host();
    let loopback = is_loopback(authority);
    let plain = plain_http || (loopback && !authority.ends_with(":443"));
    Host {
        scheme: if plain { Scheme::Http } else { Scheme::Https },
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
        capabilities: Capabilities::ALL,
        tls: Tls {
            skip_verify: loopback,
            ..Tls::default()
        },
        headers: Vec::new(),
        dial_timeout: DIAL_TIMEOUT,
        upstream: true,
        rule: Rule::BUILT_IN,
    }
}

/// Tells whether `host[:port]` is this machine by name or address.
pub fn is_loopback(authority: &str) -> bool {
    let host = host_name(authority);
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Strips port and brackets.
pub(crate) fn host_name(authority: &str) -> &str {
    if authority.parse::<IpAddr>().is_ok() {
        return authority;
    }
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host)
}

/// Reads the certificate files of a Docker folder. Source: Docker, "Verify repository client with certificates".
fn docker_layout(folder: &Path, mut host: Host) -> Result<Host> {
    let broken = |error: io::Error| Error::precondition(format!("{}: {error}", folder.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(broken)? {
        names.push(entry.map_err(broken)?.path());
    }
    names.sort();
    let ending =
        |path: &Path, wanted: &str| path.extension().is_some_and(|ending| ending == wanted);
    host.tls.ca = names
        .iter()
        .filter(|path| ending(path, "crt"))
        .cloned()
        .collect();
    for certificate in names.iter().filter(|path| ending(path, "cert")) {
        let key = certificate.with_extension("key");
        if !names.contains(&key) {
            return Err(Error::precondition(format!(
                "{}: has no {} beside it; add the key or remove the certificate",
                certificate.display(),
                key.display()
            )));
        }
        host.tls.client.push((certificate.clone(), Some(key)));
    }
    if !(host.tls.ca.is_empty() && host.tls.client.is_empty()) {
        host.rule = Rule {
            file: Some(folder.to_owned()),
            line: 0,
        };
    }
    Ok(host)
}

/// Why a pull asks whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The full name of what would be pulled.
    pub reference: String,
    /// In the order in which they are asked.
    pub steps: Vec<Step>,
    /// What looks like a rule but is none, and what to do about it.
    pub hints: Vec<String>,
}

/// One host of an explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `https://mirror.example/v2`.
    pub url: String,
    /// `pull, resolve`.
    pub capabilities: String,
    /// `FILE:LINE`, or `built in`.
    pub rule: String,
}

/// Tells which hosts a pull would ask, by which rules, and which files nearby are not used.
///
/// A faulty rule, for which a pull would fail, is the first hint: who asks for a name or a reason still gets it.
pub fn explain(folder: &Path, reference: &Reference, plain_http: bool) -> Explanation {
    let mut hints = hints::nearby(folder, reference.registry());
    let hosts = plan(folder, reference, plain_http).unwrap_or_else(|error| {
        hints.insert(0, error.message);
        Vec::new()
    });
    let steps = hosts.iter().map(|host| Step {
        url: host.url(),
        capabilities: host.capabilities.to_string(),
        rule: host.rule.to_string(),
    });
    Explanation {
        reference: reference.to_string(),
        steps: steps.collect(),
        hints,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;

    fn write(folder: &Path, name: &str, text: &str) -> io::Result<()> {
        fs::create_dir_all(folder.join(name))?;
        fs::write(folder.join(name).join(FILE), text)
    }

    fn urls(folder: &Path, reference: &str) -> Result<Vec<String>> {
        Ok(plan(folder, &Reference::parse(reference)?, false)?
            .iter()
            .map(Host::url)
            .collect())
    }

    #[test]
    fn without_rules_the_registry_is_asked_and_loopback_is_plain() -> Outcome {
        let folder = Path::new("/nonexistent");
        assert_eq!(
            urls(folder, "busybox")?,
            ["https://registry-1.docker.io/v2"]
        );
        assert_eq!(
            urls(folder, "registry.example:5000/a")?,
            ["https://registry.example:5000/v2"]
        );
        for local in [
            "localhost:5000",
            "127.0.0.1:5000",
            "127.8.9.1",
            "[::1]:5000",
        ] {
            assert_eq!(
                urls(folder, &format!("{local}/a"))?,
                [format!("http://{local}/v2")]
            );
        }
        assert_eq!(
            urls(folder, "localhost:443/a")?,
            ["https://localhost:443/v2"]
        );
        let plain = plan(folder, &Reference::parse("registry.example/a")?, true)?;
        assert_eq!(plain[0].url(), "http://registry.example/v2");
        Ok(())
    }

    #[test]
    fn mirrors_come_first_in_their_order_and_the_registry_last() -> Outcome {
        let folder = tempfile::tempdir()?;
        let text = "server = \"https://registry-1.docker.io\"\n\n[host.\"https://z.example\"]\n  capabilities = [\"pull\", \"resolve\"]\n[host.\"http://a.example:5000\"]\n  capabilities = [\"pull\"]\n";
        write(folder.path(), "docker.io", text)?;
        let hosts = plan(folder.path(), &Reference::parse("busybox")?, false)?;
        let shown: Vec<String> = hosts.iter().map(Host::url).collect();
        assert_eq!(
            shown,
            [
                "https://z.example/v2",
                "http://a.example:5000/v2",
                "https://registry-1.docker.io/v2"
            ]
        );
        assert!(!hosts[0].capabilities.push && !hosts[1].capabilities.resolve);
        assert_eq!(
            hosts.iter().map(|host| host.upstream).collect::<Vec<_>>(),
            [false, false, true]
        );
        assert_eq!(
            hosts.iter().map(|host| host.rule.line).collect::<Vec<_>>(),
            [3, 5, 1]
        );
        Ok(())
    }

    #[test]
    fn a_registry_with_a_port_is_found_under_both_spellings_and_default_is_last() -> Outcome {
        let folder = tempfile::tempdir()?;
        let rule = |mirror: &str| format!("[host.\"https://{mirror}\"]\n");
        write(folder.path(), "_default", &rule("default.example"))?;
        assert_eq!(
            urls(folder.path(), "r.example:5000/a")?[0],
            "https://default.example/v2"
        );
        write(folder.path(), "r.example:5000", &rule("colon.example"))?;
        assert_eq!(
            urls(folder.path(), "r.example:5000/a")?[0],
            "https://colon.example/v2"
        );
        write(
            folder.path(),
            "r.example_5000_",
            &rule("underscore.example"),
        )?;
        assert_eq!(
            urls(folder.path(), "r.example:5000/a")?,
            ["https://underscore.example/v2", "https://r.example:5000/v2"]
        );
        Ok(())
    }

    #[test]
    fn a_changed_file_counts_at_the_next_use() -> Outcome {
        let folder = tempfile::tempdir()?;
        write(
            folder.path(),
            "r.example",
            "[host.\"https://one.example\"]\n",
        )?;
        assert_eq!(
            urls(folder.path(), "r.example/a")?[0],
            "https://one.example/v2"
        );
        write(
            folder.path(),
            "r.example",
            "[host.\"https://two.example\"]\n",
        )?;
        assert_eq!(
            urls(folder.path(), "r.example/a")?[0],
            "https://two.example/v2"
        );
        Ok(())
    }

    #[test]
    fn every_key_of_a_host_is_read() -> Outcome {
        let folder = tempfile::tempdir()?;
        let text = r#"
server = "registry.example"
[host."https://m.example/prefix"]
  ca = ["ca.pem", "/abs/ca.pem"]
  client = [["c.cert", "c.key"], ["both.pem", ""]]
  skip_verify = true
  dial_timeout = "1m30s"
  override_path = true
  [host."https://m.example/prefix".header]
    x-one = "1"
    x-two = ["2", "3"]
[host."n.example/sub/"]
  ca = "one.pem"
  client = "both.pem"
"#;
        write(folder.path(), "registry.example", text)?;
        let hosts = plan(
            folder.path(),
            &Reference::parse("registry.example/a")?,
            false,
        )?;
        let base = folder.path().join("registry.example");
        let first = &hosts[0];
        assert_eq!(first.url(), "https://m.example/prefix");
        assert_eq!(
            first.tls.ca,
            [base.join("ca.pem"), PathBuf::from("/abs/ca.pem")]
        );
        assert_eq!(
            first.tls.client[0],
            (base.join("c.cert"), Some(base.join("c.key")))
        );
        assert_eq!(first.tls.client[1], (base.join("both.pem"), None));
        assert!(first.tls.skip_verify);
        assert_eq!(first.dial_timeout, Duration::from_secs(90));
        let headers: Vec<_> = first
            .headers
            .iter()
            .map(|h| (h.name.as_str(), h.value.as_str()))
            .collect();
        assert_eq!(headers, [("x-one", "1"), ("x-two", "2"), ("x-two", "3")]);
        assert!(
            !format!("{first:?}").contains("\"1\""),
            "a header's value is not shown"
        );
        assert_eq!(hosts[1].url(), "https://n.example/sub/v2");
        assert_eq!(hosts[1].tls.ca, [base.join("one.pem")]);
        assert_eq!(hosts[2].url(), "https://registry.example/v2");
        Ok(())
    }

    #[test]
    fn a_faulty_rule_is_named_by_file_line_and_key() -> Outcome {
        let folder = tempfile::tempdir()?;
        let cases = [
            (
                "\n[host.\"https://m.example\"]\n  capabilites = [\"pull\"]\n",
                ":3: key \"capabilites\" is unknown; did you mean \"capabilities\"?",
            ),
            (
                "[host.\"https://m.example\"]\n  capabilities = [\"pul\"]\n",
                ":2: capabilities: \"pul\" must be pull, resolve, push or referrers",
            ),
            (
                "[host.\"https://m.example\"]\n  skip_verify = \"yes\"\n",
                ":2: skip_verify: must be true or false",
            ),
            (
                "[host.\"https://m.example\"]\n  dial_timeout = \"soon\"\n",
                ":2: dial_timeout: \"soon\"",
            ),
            (
                "[host.\"ftp://m.example\"]\n",
                ":1: host \"ftp://m.example\": must be an http or https address",
            ),
            ("server = 5\n", ":1: server: must be a string"),
            ("server = \"https://x\n", ":1: "),
            (
                "[hosts.\"https://m.example\"]\n",
                ":1: key \"hosts\" is unknown; did you mean \"host\"?",
            ),
        ];
        for (text, expected) in cases {
            write(folder.path(), "r.example", text)?;
            let message =
                urls(folder.path(), "r.example/a").map_or_else(|e| e.message, |_| String::new());
            assert!(
                message.contains(expected),
                "{text:?} gave {message:?}, expected {expected:?}"
            );
            assert!(message.contains("r.example/hosts.toml"), "{message}");
        }
        Ok(())
    }

    #[test]
    fn a_docker_folder_gives_certificates() -> Outcome {
        let folder = tempfile::tempdir()?;
        let base = folder.path().join("r.example");
        fs::create_dir_all(&base)?;
        for name in ["ca.crt", "client.cert", "client.key"] {
            fs::write(base.join(name), "")?;
        }
        let hosts = plan(folder.path(), &Reference::parse("r.example/a")?, false)?;
        assert_eq!(hosts[0].tls.ca, [base.join("ca.crt")]);
        assert_eq!(
            hosts[0].tls.client,
            [(base.join("client.cert"), Some(base.join("client.key")))]
        );
        fs::remove_file(base.join("client.key"))?;
        assert!(plan(folder.path(), &Reference::parse("r.example/a")?, false).is_err());
        Ok(())
    }

    #[test]
    fn an_explanation_names_rules_and_what_is_misnamed_nearby() -> Outcome {
        let folder = tempfile::tempdir()?;
        fs::create_dir_all(folder.path().join("docker.io"))?;
        fs::write(folder.path().join("docker.io/host.toml"), "")?;
        fs::create_dir_all(folder.path().join("registry-1.docker.io"))?;
        let shown = explain(folder.path(), &Reference::parse("busybox")?, false);
        assert_eq!(shown.reference, "docker.io/library/busybox:latest");
        assert_eq!(
            (shown.steps[0].url.as_str(), shown.steps[0].rule.as_str()),
            ("https://registry-1.docker.io/v2", "built in")
        );
        let has = |wanted: &str| shown.hints.iter().any(|hint| hint.contains(wanted));
        assert!(
            has("docker.io/host.toml: is not read; did you mean hosts.toml?"),
            "{:?}",
            shown.hints
        );
        assert!(
            has("registry-1.docker.io: is not read; Docker Hub is called docker.io"),
            "{:?}",
            shown.hints
        );

        write(folder.path(), "r.example", "[host.\"https://m.example\"]\n")?;
        let shown = explain(folder.path(), &Reference::parse("r.example/a")?, false);
        assert!(
            shown.steps[0].rule.ends_with("r.example/hosts.toml:1"),
            "{:?}",
            shown.steps
        );
        assert_eq!(shown.steps[0].capabilities, "pull, resolve, push");
        Ok(())
    }
}
