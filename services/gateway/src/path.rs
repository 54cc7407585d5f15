//! Request paths: cut at raw slashes, decoded part by part, matched against patterns. Pure.
//!
//! A pattern is literal parts, `{name}` for one part, and at most one `{name*}` for one or more: names with slashes may be
//! written raw (`docker.io/library/busybox`) or encoded (`docker.io%2Flibrary%2Fbusybox`), for decoding comes after
//! cutting. An action is `:verb` at the very end, and only in a POST: everywhere else `busybox:tag` is a name. To use a
//! name that ends like an action in a POST, encode its colon (`%3A`).

use contracts::{Error, Result};
use percent_encoding::percent_decode_str;

/// Every action there is.
pub(crate) const VERBS: [&str; 18] = [
    "pull",
    "push",
    "import",
    "export",
    "unpack",
    "tag",
    "prune",
    "run",
    "start",
    "kill",
    "pause",
    "resume",
    "update",
    "checkpoint",
    "exec",
    "commit",
    "restart",
    "stop",
];

/// What the placeholders of a pattern stood for.
pub(crate) type Captures = Vec<(&'static str, String)>;

/// A request path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Path {
    parts: Vec<String>,
    action: Option<Action>,
}

/// The path's last part, if it ends like an action.
#[derive(Debug, PartialEq, Eq)]
struct Action {
    /// The last part without the action.
    rest: String,
    verb: &'static str,
}

impl Path {
    /// Cuts and decodes. Errors: `InvalidArgument` for a part that is not UTF-8 when decoded.
    pub(crate) fn parse(raw: &str) -> Result<Self> {
        let raw = raw.strip_prefix('/').unwrap_or(raw);
        let parts = raw.split('/').map(decode).collect::<Result<Vec<_>>>()?;
        let last = raw.rsplit('/').next().unwrap_or(raw);
        let action = match last.rsplit_once(':') {
            Some((rest, tail)) => verb(tail)
                .map(|verb| decode(rest).map(|rest| Action { rest, verb }))
                .transpose()?,
            None => None,
        };
        Ok(Self { parts, action })
    }

    /// The action at its end, if it ends like one.
    pub(crate) fn verb(&self) -> Option<&'static str> {
        self.action.as_ref().map(|action| action.verb)
    }

    /// Matches the whole path, an action at its end being part of the name.
    pub(crate) fn matches(&self, pattern: &'static str) -> Option<Captures> {
        let parts: Vec<&str> = self.parts.iter().map(String::as_str).collect();
        captures(pattern, &parts)
    }

    /// Matches the path without the action at its end.
    pub(crate) fn matches_without_verb(&self, pattern: &'static str) -> Option<Captures> {
        let action = self.action.as_ref()?;
        let mut parts: Vec<&str> = self.parts.iter().map(String::as_str).collect();
        parts.pop();
        parts.push(&action.rest);
        captures(pattern, &parts)
    }

    /// How many leading parts agree with the pattern: tells which resource a wrong path was near to.
    pub(crate) fn nearness(&self, pattern: &'static str) -> usize {
        split(pattern)
            .zip(&self.parts)
            .take_while(|(wanted, part)| placeholder(wanted).is_some() || wanted == part)
            .count()
    }
}

/// Takes an action off the end of a pattern: `/images/{name*}:tag` → `/images/{name*}`, `tag`.
pub(crate) fn pattern_verb(pattern: &'static str) -> (&'static str, Option<&'static str>) {
    match pattern.rsplit_once(':') {
        Some((rest, tail)) if verb(tail).is_some() => (rest, verb(tail)),
        _ => (pattern, None),
    }
}

fn verb(text: &str) -> Option<&'static str> {
    VERBS.into_iter().find(|verb| *verb == text)
}

fn decode(part: &str) -> Result<String> {
    match percent_decode_str(part).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(Error::invalid(format!(
            "path part {part:?}: is not UTF-8 when decoded"
        ))),
    }
}

fn split(pattern: &'static str) -> impl Iterator<Item = &'static str> + Clone {
    pattern.strip_prefix('/').unwrap_or(pattern).split('/')
}

/// The name in `{name}` or `{name*}`, and whether it has the star.
fn placeholder(part: &'static str) -> Option<(&'static str, bool)> {
    let name = part.strip_prefix('{')?.strip_suffix('}')?;
    Some(match name.strip_suffix('*') {
        Some(name) => (name, true),
        None => (name, false),
    })
}

fn captures(pattern: &'static str, parts: &[&str]) -> Option<Captures> {
    let wanted: Vec<&'static str> = split(pattern).collect();
    let star = wanted
        .iter()
        .position(|part| placeholder(part).is_some_and(|(_, star)| star));
    let Some(star) = star else {
        return (wanted.len() == parts.len())
            .then(|| each(&wanted, parts))
            .flatten();
    };
    let after = wanted.len() - star - 1;
    if parts.len() < wanted.len() {
        return None;
    }
    let (before, rest) = parts.split_at(star);
    let (middle, end) = rest.split_at(rest.len() - after);
    let mut found = each(&wanted[..star], before)?;
    let name = middle.join("/");
    if name.is_empty() {
        return None;
    }
    found.push((placeholder(wanted[star])?.0, name));
    found.extend(each(&wanted[star + 1..], end)?);
    Some(found)
}

fn each(wanted: &[&'static str], parts: &[&str]) -> Option<Captures> {
    let mut found = Captures::new();
    for (wanted, part) in wanted.iter().zip(parts) {
        match placeholder(wanted) {
            Some(_) if part.is_empty() => return None,
            Some((name, _)) => found.push((name, (*part).to_owned())),
            None if wanted == part => {}
            None => return None,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "/v1/namespaces/{ns}/images/{name*}";
    const CONFIG: &str = "/v1/namespaces/{ns}/images/{name*}/config";
    const KEY: &str = "/v1/namespaces/{ns}/snapshots/{driver}/{key*}";

    fn name(pattern: &'static str, path: &str) -> Option<String> {
        let found = Path::parse(path).unwrap().matches(pattern)?;
        found.last().map(|(_, name)| name.clone())
    }

    fn acted(pattern: &'static str, path: &str) -> Option<(String, &'static str)> {
        let path = Path::parse(path).unwrap();
        let found = path.matches_without_verb(pattern)?;
        Some((found.last()?.1.clone(), path.verb()?))
    }

    #[test]
    fn names_with_slashes_are_found_raw_and_encoded() {
        for (path, wanted) in [
            (
                "/v1/namespaces/d/images/docker.io/library/busybox:1.36",
                "docker.io/library/busybox:1.36",
            ),
            (
                "/v1/namespaces/d/images/docker.io%2Flibrary%2Fbusybox%3A1.36",
                "docker.io/library/busybox:1.36",
            ),
            (
                "/v1/namespaces/d/images/127.0.0.1:5000/a/b:tag",
                "127.0.0.1:5000/a/b:tag",
            ),
            ("/v1/namespaces/d/images/a@sha256:00", "a@sha256:00"),
            ("/v1/namespaces/d/images/a:pull", "a:pull"),
        ] {
            assert_eq!(name(NAME, path).as_deref(), Some(wanted), "{path}");
        }
        assert_eq!(
            name(KEY, "/v1/namespaces/d/snapshots/native/a/b//c").as_deref(),
            Some("a/b//c")
        );
    }

    #[test]
    fn a_sub_resource_is_the_last_part_unless_its_slash_is_encoded() {
        let path = "/v1/namespaces/d/images/docker.io/library/busybox:1.36/config";
        assert_eq!(
            name(CONFIG, path).as_deref(),
            Some("docker.io/library/busybox:1.36")
        );
        assert_eq!(
            name(CONFIG, "/v1/namespaces/d/images/docker.io%2Fconfig"),
            None
        );
        assert_eq!(name(CONFIG, "/v1/namespaces/d/images/config"), None);
    }

    #[test]
    fn an_action_is_known_and_at_the_very_end() {
        let images = "/v1/namespaces/d/images";
        for (path, wanted) in [
            (
                "docker.io/library/busybox:1.36:unpack",
                Some(("docker.io/library/busybox:1.36", "unpack")),
            ),
            ("a:tag:tag", Some(("a:tag", "tag"))),
            ("a:tag", Some(("a", "tag"))),
            ("a%3Atag", None),
            ("a:tag/b", None),
            ("a:latest", None),
            ("a:unpack:1", None),
        ] {
            let found = acted(NAME, &format!("{images}/{path}"));
            assert_eq!(
                found,
                wanted.map(|(name, verb)| (name.to_owned(), verb)),
                "{path}"
            );
        }
        assert_eq!(
            acted("/v1/namespaces/{ns}/images", "/v1/namespaces/d/images:pull"),
            Some(("d".into(), "pull"))
        );
    }

    #[test]
    fn nothing_matches_where_a_name_is_missing_or_a_part_is_left_over() {
        for path in [
            "/v1/namespaces/d/images",
            "/v1/namespaces/d/images/",
            "/v1/namespaces//images/a",
            "/v1/x/d/images/a",
        ] {
            assert_eq!(name(NAME, path), None, "{path}");
        }
        assert_eq!(name("/v1/version", "/v1/version/x"), None);
        assert_eq!(Path::parse("/").unwrap().matches("/"), Some(vec![]));
    }

    #[test]
    fn a_part_must_be_utf8() {
        assert!(Path::parse("/v1/%ff").is_err());
    }

    #[test]
    fn a_pattern_gives_its_action_away() {
        assert_eq!(pattern_verb("/a/{b*}:tag"), ("/a/{b*}", Some("tag")));
        assert_eq!(pattern_verb("/a/{b*}"), ("/a/{b*}", None));
    }
}
