//! Where output goes, written as a URI or a path.

use std::path::PathBuf;

use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Null,
    /// Appended as is.
    File(PathBuf),
    /// Appended in CRI log lines, within a bound in bytes; 0 for none.
    Log(PathBuf, u64),
    Fifo(PathBuf),
    Binary(Program),
}

/// A logging process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
}

impl Target {
    /// Reads one of the forms of the crate page.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(if text.is_empty() {
                Self::Null
            } else {
                Self::Fifo(text.into())
            });
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(decode(path)?);
        if !path.is_absolute() {
            return Err(Error::invalid(format!(
                "stdio {text}: the path must be absolute"
            )));
        }
        Ok(match scheme {
            "fifo" => Self::Fifo(path),
            "file" => Self::File(path),
            "log" => Self::Log(path, bound(query)?),
            "binary" => Self::Binary(Program {
                path,
                args: arguments(query)?,
            }),
            _ => {
                return Err(Error::invalid(format!(
                    "stdio {text}: use file://, log://, binary:// or the path of a fifo"
                )));
            }
        })
    }
}

/// `bound=BYTES`; what else is there is not for us.
fn bound(query: &str) -> Result<u64> {
    let bound = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("bound="));
    let wrong = || Error::invalid(format!("stdio ?{query}: bound must be a number of bytes"));
    bound.map_or(Ok(0), |text| text.parse().map_err(|_| wrong()))
}

/// `a=b&c` as the words `a b c`, the way containerd hands them to a logging process.
fn arguments(query: &str) -> Result<Vec<String>> {
    let words = query.split('&').flat_map(|pair| pair.splitn(2, '='));
    words.filter(|word| !word.is_empty()).map(decode).collect()
}

fn decode(text: &str) -> Result<String> {
    let bad = || {
        Error::invalid(format!(
            "stdio path {text}: a % must be followed by two hex digits"
        ))
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).ok_or_else(bad);
        let value = digit(rest.next())? * 16 + digit(rest.next())?;
        bytes.push(value as u8);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let parse = |text| Target::parse(text).expect("parses");
        assert_eq!(parse(""), Target::Null);
        assert_eq!(parse("/run/f"), Target::Fifo("/run/f".into()));
        assert_eq!(parse("file:///a%20b"), Target::File("/a b".into()));
        assert_eq!(parse("log:///a?x=1"), Target::Log("/a".into(), 0));
        assert_eq!(parse("log:///a?x=1&bound=9"), Target::Log("/a".into(), 9));
        let program = Program {
            path: "/bin/l".into(),
            args: vec!["k".into(), "v".into()],
        };
        assert_eq!(parse("binary:///bin/l?k=v"), Target::Binary(program));
    }

    #[test]
    fn a_wrong_one_is_refused_with_a_way_out() {
        assert!(Target::parse("http://x/y").is_err());
        assert!(
            Target::parse("file://relative")
                .unwrap_err()
                .message
                .contains("absolute")
        );
        assert!(
            Target::parse("file:///%zz")
                .unwrap_err()
                .message
                .contains("hex")
        );
    }
}
