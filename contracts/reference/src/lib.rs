//! Image references: text as a user types it, turned into registry, repository, tag and digest.
//!
//! Pure. Source: the `reference` grammar of the distribution project, with Docker Hub's defaults.
//!
//! Names of images are free text, as containerd has them; users type references. The rule for both, everywhere: a name
//! that is there as it was given is meant; otherwise its [`full`] form is, and a new name is made in full.

use contracts::{Digest, Error, ImageName, Result};
use std::fmt;

/// The registry meant when a reference names none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where Docker Hub really answers; `docker.io` itself serves a web site.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// Longest registry plus repository, in bytes. Source: distribution, reference grammar.
const MAX_NAME: usize = 255;
/// Longest tag. Source: OCI distribution-spec, "Pulling manifests".
const MAX_TAG: usize = 128;

/// A checked reference: where an image lives and which one is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses what a user typed. Without a registry Docker Hub is meant, without tag and digest `latest`.
    ///
    /// Errors: `InvalidArgument` naming the text and the part that is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        read(text).map_err(|why| Error::invalid(format!("reference {text:?}: {why}")))
    }

    /// Shows the registry as it was meant: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Shows the host that answers for the registry: `registry-1.docker.io` for `docker.io`.
    pub fn registry_host(&self) -> &str {
        match self.registry.as_str() {
            DEFAULT_REGISTRY => DEFAULT_REGISTRY_HOST,
            other => other,
        }
    }

    /// Shows the repository, `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Shows the tag, if one was given or defaulted.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Shows the digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Shows what is asked of the registry: the digest if there is one, else the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The same repository with another target.
    pub fn at(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            tag: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for Reference {
    /// Writes the full name, `docker.io/library/busybox:1.36`: the name an image is stored under.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// The full form of a name: `busybox` is `docker.io/library/busybox:latest`. What is no reference, and a bare digest,
/// which others use as the name of an image, stay as they are.
pub fn full(given: &ImageName) -> ImageName {
    if Digest::new(given.as_str()).is_ok() {
        return given.clone();
    }
    let full = Reference::parse(given.as_str()).map(|reference| reference.to_string());
    full.and_then(ImageName::new)
        .unwrap_or_else(|_| given.clone())
}

fn read(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("is empty; write it as in docker.io/library/busybox:1.36".into());
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("leave out {scheme}://"));
    }
    let (rest, digest) = split_digest(text)?;
    let (name, tag) = split_tag(rest)?;
    let (registry, repository) = split_registry(name)?;
    check_repository(&repository)?;
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err(format!(
            "registry and repository have more than {MAX_NAME} bytes together"
        ));
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

fn split_digest(text: &str) -> Result<(&str, Option<Digest>), String> {
    match text.split_once('@') {
        None => Ok((text, None)),
        Some((rest, digest)) => {
            let digest = Digest::new(digest).map_err(|error| error.message)?;
            Ok((rest, Some(digest)))
        }
    }
}

/// A colon after the last slash starts a tag; one before it belongs to a port.
fn split_tag(text: &str) -> Result<(&str, Option<&str>), String> {
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    let Some(colon) = text[last..].find(':').map(|at| last + at) else {
        return Ok((text, None));
    };
    let (name, tag) = (&text[..colon], &text[colon + 1..]);
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let valid = tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-');
    if !valid || tag.len() > MAX_TAG {
        return Err(format!(
            "tag {tag:?} must be 1 to {MAX_TAG} letters, digits, '_', '.' or '-', and not start with '.' or '-'"
        ));
    }
    Ok((name, Some(tag)))
}

fn split_registry(name: &str) -> Result<(String, String), String> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if names_a_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    check_registry(registry)?;
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("a name of 64 hex digits would be taken for an image id".into());
    }
    let official = registry == DEFAULT_REGISTRY && !repository.contains('/');
    let prefix = if official { "library/" } else { "" };
    Ok((registry.to_owned(), format!("{prefix}{repository}")))
}

/// A first part with a dot, a colon or a capital, or `localhost`, cannot be a Docker Hub user.
fn names_a_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':', '[']) || part.chars().any(char::is_uppercase)
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = split_port(registry)?;
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err(format!(
            "port {port:?} of registry {registry:?} must be a number up to 65535"
        ));
    }
    let label = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let valid = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    if valid {
        Ok(())
    } else {
        Err(format!(
            "registry {registry:?} is not a host name or address"
        ))
    }
}

/// Splits `host:port`, keeping the brackets of an IPv6 address.
fn split_port(registry: &str) -> Result<(&str, Option<&str>), String> {
    let after = registry.rfind(']').map_or(0, |at| at + 1);
    match registry[after..].find(':') {
        Some(colon) => Ok((
            &registry[..after + colon],
            Some(&registry[after + colon + 1..]),
        )),
        None if after == 0 || after == registry.len() => Ok((registry, None)),
        None => Err(format!(
            "registry {registry:?} is not a host name or address"
        )),
    }
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("repository is missing; write it as in docker.io/library/busybox:1.36".into());
    }
    for part in repository.split('/') {
        check_component(part)?;
    }
    Ok(())
}

/// Runs of lowercase letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn check_component(part: &str) -> Result<(), String> {
    let fault = |why: &str| Err(format!("repository part {part:?} {why}"));
    if part.is_empty() {
        return fault("is empty; look for a doubled or trailing slash");
    }
    if part.chars().any(|c| c.is_ascii_uppercase()) {
        return fault("must be lowercase");
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(bad) = part
        .chars()
        .find(|&c| !plain(c) && !matches!(c, '.' | '_' | '-'))
    {
        return fault(&format!(
            "contains {bad:?}; use lowercase letters, digits, '.', '_' and '-'"
        ));
    }
    let separators = part.split(plain).filter(|run| !run.is_empty());
    let legal = |run: &str| matches!(run, "." | "_" | "__") || run.chars().all(|c| c == '-');
    if !part.starts_with(plain) || !part.ends_with(plain) || !separators.clone().all(legal) {
        return fault("must have a single '.', '_' or '-' between letters and digits");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        Reference::parse(text).map_or_else(|error| error.message, |reference| reference.to_string())
    }

    #[test]
    fn short_names_mean_docker_hub() {
        assert_eq!(full("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(full("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(full("user/tool"), "docker.io/user/tool:latest");
        assert_eq!(
            full("docker.io/busybox"),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(
            full("index.docker.io/user/tool:v1"),
            "docker.io/user/tool:v1"
        );
        let hub = Reference::parse("busybox");
        assert_eq!(
            hub.as_ref().map(Reference::registry_host),
            Ok("registry-1.docker.io")
        );
    }

    #[test]
    fn a_name_that_is_no_reference_stays_as_it_was_given() -> Result<()> {
        let cases = [
            ("copy", "docker.io/library/copy:latest"),
            ("example.org/a:1", "example.org/a:1"),
            ("An Image", "An Image"),
            (DIGEST, DIGEST),
        ];
        for (given, expected) in cases {
            assert_eq!(super::full(&ImageName::new(given)?).as_str(), expected);
        }
        Ok(())
    }

    #[test]
    fn a_port_is_not_a_tag() {
        assert_eq!(full("localhost:5000/app"), "localhost:5000/app:latest");
        assert_eq!(
            full("127.0.0.1:5000/library/busybox:1.36"),
            "127.0.0.1:5000/library/busybox:1.36"
        );
        assert_eq!(full("[::1]:5000/app:v2"), "[::1]:5000/app:v2");
        assert_eq!(full("localhost/app"), "localhost/app:latest");
        assert_eq!(
            full("registry.example/a/b/c"),
            "registry.example/a/b/c:latest"
        );
    }

    #[test]
    fn a_digest_wins_over_the_tag_and_both_stay_in_the_name() -> Result<()> {
        let text = format!("registry.example/app:v1@{DIGEST}");
        let reference = Reference::parse(&text)?;
        assert_eq!(reference.to_string(), text);
        assert_eq!(reference.target(), DIGEST);
        assert_eq!(reference.tag(), Some("v1"));
        let bare = Reference::parse(&format!("registry.example/app@{DIGEST}"))?;
        assert_eq!((bare.tag(), bare.target()), (None, DIGEST));
        Ok(())
    }

    #[test]
    fn a_wrong_reference_is_refused_with_the_part_that_is_wrong() {
        let cases = [
            ("", "is empty"),
            ("https://registry.example/app", "leave out https://"),
            ("registry.example/App", "lowercase"),
            ("registry.example/app:", "tag \"\""),
            ("registry.example/app:-v", "tag \"-v\""),
            (
                "registry.example/app@sha256:12",
                "needs 64 lowercase hex digits",
            ),
            ("registry.example/app@md5:12", "algorithm must be"),
            ("registry.example:port/app", "port \"port\""),
            ("registry.example:99999/app", "port \"99999\""),
            ("registry..example/app", "not a host name"),
            ("[::g]/app", "not a host name"),
            ("registry.example//app", "is empty; look for a doubled"),
            ("registry.example/", "repository is missing"),
            ("app/../../etc", "must have a single"),
            ("a b", "contains ' '"),
            ("a/b_.c", "must have a single"),
        ];
        for (text, expected) in cases {
            let message = full(text);
            assert!(
                message.contains(expected),
                "{text:?} gave {message:?}, expected {expected:?}"
            );
            assert!(message.starts_with("reference \""), "{message}");
        }
        assert!(full(&"a".repeat(64)).contains("image id"));
        assert!(full(&format!("r.example/{}", "a".repeat(300))).contains("255"));
    }
}
