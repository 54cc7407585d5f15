//! Checked names. A value of one of these types has passed its rule, so no code below the edge checks again.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Labels of a resource: small key/value pairs that users filter by and that carry gc references.
pub type Labels = BTreeMap<String, String>;

/// Longest identifier. Source: containerd, identifiers package.
const MAX_IDENTIFIER: usize = 76;
/// Longest key plus value of one label, in bytes. Source: containerd, labels package.
const MAX_LABEL: usize = 4096;
/// Longest free-form name (image name, snapshot key, ingest ref), in bytes: the longest that containerd clients produce fits ten times.
const MAX_NAME: usize = 1024;

macro_rules! name {
    ($( $(#[$doc:meta])* $Name:ident($what:literal, $rule:path); )*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $Name(String);
        impl $Name {
            /// Checks `text`. Errors: `InvalidArgument` naming the text and the rule.
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                match $rule(&text) {
                    Ok(()) => Ok(Self(text)),
                    Err(why) => Err(Error::invalid(format!("{} {text:?}: {why}", $what))),
                }
            }
            /// Shows the text.
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl fmt::Display for $Name { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) } }
        impl AsRef<str> for $Name { fn as_ref(&self) -> &str { &self.0 } }
        impl From<$Name> for String { fn from(name: $Name) -> Self { name.0 } }
        impl TryFrom<String> for $Name { type Error = Error; fn try_from(text: String) -> Result<Self> { Self::new(text) } }
        impl FromStr for $Name { type Err = Error; fn from_str(text: &str) -> Result<Self> { Self::new(text) } }
    )* };
}

name! {
    /// A tenant of the node. Identifier rule; may not be `version`, which containerd's API reserves.
    Namespace("namespace", namespace_rule);
    /// A container's id within its namespace. Identifier rule.
    ContainerId("container id", identifier);
    /// An added process's id within its task. Identifier rule.
    ExecId("exec id", identifier);
    /// A lease's id within its namespace. Identifier rule.
    LeaseId("lease id", free_name);
    /// `algorithm:hex`, algorithm `sha256`, `sha384` or `sha512`. Source: OCI image-spec, descriptor.md "Digests".
    Digest("digest", digest_rule);
    /// The caller's name for an unfinished write. Any text up to 1024 bytes without control characters.
    Ref("ref", free_name);
    /// Names an active, view or committed snapshot. Any text up to 1024 bytes without control characters.
    SnapshotKey("snapshot key", free_name);
    /// An image's full name, for example `docker.io/library/busybox:1.36`.
    ImageName("image name", free_name);
    /// `service/id`, for example `content/local`.
    PluginId("plugin id", plugin_rule);
    /// Identifies one request through all of its retries: 32 hex digits, or what `Idempotency-Key` said.
    OperationId("operation id", free_name);
}

impl Digest {
    /// The part before the colon.
    pub fn algorithm(&self) -> &str {
        self.0
            .split_once(':')
            .map_or("", |(algorithm, _)| algorithm)
    }
    /// The part after the colon.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }
    /// Names the SHA-256 whose raw bytes are `bytes`.
    pub fn sha256(bytes: &[u8; 32]) -> Self {
        use fmt::Write;
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }
}

impl PluginId {
    /// The contract it answers.
    pub fn service(&self) -> &str {
        self.0.split_once('/').map_or("", |(service, _)| service)
    }
    /// Its own name among those that answer the same contract.
    pub fn id(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, id)| id)
    }
}

fn identifier(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MAX_IDENTIFIER {
        return Err(format!("must have 1 to {MAX_IDENTIFIER} characters"));
    }
    let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let separated = text
        .split(['.', '_', '-'])
        .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric()));
    // containerd allows a single separator between runs, and `--` in none of its identifiers.
    if separated && alphanumeric(text.chars().next()) {
        return Ok(());
    }
    Err("use letters and digits with single '.', '_' or '-' between them".into())
}

fn namespace_rule(text: &str) -> Result<(), String> {
    if text == "version" {
        return Err("is reserved; choose another".into());
    }
    identifier(text)
}

fn free_name(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(format!("must have 1 to {MAX_NAME} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("must not contain control characters".into());
    }
    Ok(())
}

fn plugin_rule(text: &str) -> Result<(), String> {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    match text.split_once('/') {
        Some((service, id)) if part(service) && part(id) => Ok(()),
        _ => Err("must be service/id in lowercase, as in content/local".into()),
    }
}

fn digest_rule(text: &str) -> Result<(), String> {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return Err("must be algorithm:hex, as in sha256:9f86…".into());
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("algorithm must be sha256, sha384 or sha512".into()),
    };
    if hex.len() != length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("{algorithm} needs {length} lowercase hex digits"));
    }
    Ok(())
}

/// Checks every label: a key is not empty, key plus value have at most 4096 bytes.
///
/// Errors: `InvalidArgument` naming the key. Source: containerd, labels package.
pub fn check_labels(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        if key.is_empty() {
            return Err(Error::invalid("label with an empty key: give it a name"));
        }
        if key.len() + value.len() > MAX_LABEL {
            let shown: String = key.chars().take(40).collect();
            return Err(Error::invalid(format!(
                "label {shown:?}: key and value have more than {MAX_LABEL} bytes together"
            )));
        }
    }
    Ok(())
}

/// A change of labels: `set` adds or overwrites, `None` removes; `replace` drops all others first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelPatch {
    /// Whether labels that `set` does not name go away.
    pub replace: bool,
    /// Label by label: its new value, or `None` to remove it.
    pub set: BTreeMap<String, Option<String>>,
}

impl LabelPatch {
    /// Applies the change to `labels`. Errors: `InvalidArgument` as [`check_labels`]; `labels` is then unchanged.
    pub fn apply(&self, labels: &mut Labels) -> Result<()> {
        let mut next = if self.replace {
            Labels::new()
        } else {
            labels.clone()
        };
        for (key, value) in &self.set {
            match value {
                Some(value) => drop(next.insert(key.clone(), value.clone())),
                None => drop(next.remove(key)),
            }
        }
        check_labels(&next)?;
        *labels = next;
        Ok(())
    }
}

/// A moment: nanoseconds since the epoch, UTC. In JSON it is RFC 3339 text, on the wire the number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Reads the system clock. Stores and pure cores take a `Timestamp` instead of calling this.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
    /// The moment `seconds` later.
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000_000)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = (
            self.0.div_euclid(1_000_000_000),
            self.0.rem_euclid(1_000_000_000),
        );
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

/// Turns days since 1970-01-01 into year, month, day of the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Turns a civil date into days since 1970-01-01.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

impl FromStr for Timestamp {
    type Err = Error;
    /// Reads RFC 3339 with `Z` or a numeric offset. Errors: `InvalidArgument`.
    fn from_str(text: &str) -> Result<Self> {
        parse_rfc3339(text).ok_or_else(|| {
            Error::invalid(format!(
                "time {text:?}: must be RFC 3339, as in 2026-01-31T12:00:00Z"
            ))
        })
    }
}

fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| {
        text.get(range)
            .filter(|part| part.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|part| part.parse::<i64>().ok())
    };
    let marks = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    if marks
        .iter()
        .any(|&(at, mark)| text.get(at..at + 1) != Some(mark))
        || !matches!(text.get(10..11), Some("T" | "t" | " "))
    {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
        None => ("", rest),
    };
    let nanos = format!("{fraction:0<9}").get(..9)?.parse::<i64>().ok()?;
    let seconds =
        days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset(zone)?;
    valid.then(|| {
        seconds
            .checked_mul(1_000_000_000)?
            .checked_add(nanos)
            .map(Timestamp)
    })?
}

fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = match zone.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    Some(sign * (hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60))
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_i64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            i64::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_containerds_rule() {
        for good in ["a", "default", "a.b-c_d", "0", "k8s.io"] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a..b", "a/b", "ä", "a b", &"x".repeat(77)] {
            assert!(ContainerId::new(bad).is_err(), "{bad}");
        }
        assert!(Namespace::new("version").is_err());
    }

    #[test]
    fn a_digest_needs_a_known_algorithm_and_its_exact_length() {
        assert!(Digest::new(format!("sha256:{}", "a".repeat(64))).is_ok());
        for bad in [
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "abc",
            &format!("sha256:{}", "A".repeat(64)),
        ] {
            assert!(
                Digest::new(bad)
                    .unwrap_err()
                    .is(crate::Code::InvalidArgument)
            );
        }
    }

    #[test]
    fn timestamps_print_and_read_rfc3339() {
        let moment = Timestamp(1_767_225_599_123_456_789);
        assert_eq!(moment.to_string(), "2025-12-31T23:59:59.123456789Z");
        assert_eq!(
            "2025-12-31T23:59:59.123456789Z"
                .parse::<Timestamp>()
                .unwrap(),
            moment
        );
        assert_eq!(
            "2024-02-29T01:00:00+01:00"
                .parse::<Timestamp>()
                .unwrap()
                .to_string(),
            "2024-02-29T00:00:00.000000000Z"
        );
        assert_eq!(Timestamp(-1).to_string(), "1969-12-31T23:59:59.999999999Z");
        for bad in [
            "",
            "yesterday",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.Z1",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_label_patch_sets_removes_and_replaces() {
        let mut labels = Labels::from([("a".into(), "1".into()), ("b".into(), "2".into())]);
        let set = BTreeMap::from([
            ("a".to_owned(), None),
            ("c".to_owned(), Some("3".to_owned())),
        ]);
        LabelPatch {
            replace: false,
            set: set.clone(),
        }
        .apply(&mut labels)
        .unwrap();
        assert_eq!(labels.keys().collect::<Vec<_>>(), ["b", "c"]);
        LabelPatch { replace: true, set }
            .apply(&mut labels)
            .unwrap();
        assert_eq!(labels.keys().collect::<Vec<_>>(), ["c"]);
    }
}
