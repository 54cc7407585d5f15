//! PAX extended header records: `length key=value\n`, cut by length. Source: POSIX.1-2017 pax, "pax Extended Header".

use super::{Time, sparse};

/// What the records of one extended header say; absent or empty records leave the header's own field in force.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) atime: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: sparse::Records,
}

/// Prefix under which every writer of layers stores extended attributes.
pub(crate) const XATTR: &[u8] = b"SCHILY.xattr.";

impl Records {
    /// Parses a whole extended header; a later record of the same key wins.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let mut records = Self::default();
        while !bytes.is_empty() {
            let Cut { key, value, rest } = cut(bytes)?;
            records.take(key, value)?;
            bytes = rest;
        }
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(XATTR) {
            return self.xattr(name, value);
        }
        if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.take(name, value);
        }
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(clean(value)?),
            b"linkpath" => self.linkpath = Some(clean(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"atime" => self.atime = Some(time(value)?),
            _ => {}
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        let name = clean(name)?;
        self.xattrs.retain(|(known, _)| *known != name);
        self.xattrs.push((name, value.to_vec()));
        Ok(())
    }
}

/// One record and what follows it.
struct Cut<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

fn cut(bytes: &[u8]) -> Result<Cut<'_>, String> {
    let broken = || "malformed PAX record".to_owned();
    let space = bytes
        .iter()
        .take(20)
        .position(|byte| *byte == b' ')
        .ok_or_else(broken)?;
    let length: usize = decimal(&bytes[..space])?;
    if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
        return Err(broken());
    }
    let record = &bytes[space + 1..length - 1];
    let equals = record
        .iter()
        .position(|byte| *byte == b'=')
        .filter(|at| *at > 0)
        .ok_or_else(broken)?;
    Ok(Cut {
        key: &record[..equals],
        value: &record[equals + 1..],
        rest: &bytes[length..],
    })
}

/// Parses a decimal number of ASCII digits with an optional minus sign.
pub(crate) fn decimal<N: std::str::FromStr>(value: &[u8]) -> Result<N, String> {
    let text = std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.starts_with('+'));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        format!(
            "malformed number {:?} in a PAX record",
            String::from_utf8_lossy(&value[..value.len().min(32)])
        )
    })
}

/// `[-]seconds[.fraction]`; digits past the ninth are cut off.
fn time(value: &[u8]) -> Result<Time, String> {
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &b""[..]),
    };
    let seconds: i64 = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("malformed time in a PAX record".to_owned());
    }
    let digit = |index: usize| {
        fraction
            .get(index)
            .map_or(0, |digit| u32::from(digit - b'0'))
    };
    let nanos = (0..9).fold(0, |nanos, index| nanos * 10 + digit(index));
    match whole.starts_with(b"-") && nanos > 0 {
        true => Ok(Time {
            seconds: seconds.saturating_sub(1),
            nanos: 1_000_000_000 - nanos,
        }),
        false => Ok(Time { seconds, nanos }),
    }
}

fn clean(value: &[u8]) -> Result<Vec<u8>, String> {
    match value.contains(&0) || value.is_empty() {
        true => Err("a name in a PAX record is empty or holds a NUL byte".to_owned()),
        false => Ok(value.to_vec()),
    }
}

/// Appends one record; its length counts its own digits.
pub(crate) fn append(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    into.extend_from_slice(length.to_string().as_bytes());
    into.push(b' ');
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newline_inside_a_value_forges_no_record() {
        let mut bytes = Vec::new();
        append(&mut bytes, b"SCHILY.xattr.user.a", b"1\n12 path=evil\n");
        append(&mut bytes, b"path", b"good");
        let records = Records::parse(&bytes).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"good"[..]));
        assert_eq!(
            records.xattrs,
            [(b"user.a".to_vec(), b"1\n12 path=evil\n".to_vec())]
        );
    }

    #[test]
    fn lengths_count_their_own_digits() {
        for size in 0..2000 {
            let mut bytes = Vec::new();
            append(&mut bytes, b"path", &vec![b'x'; size + 1]);
            assert_eq!(
                Records::parse(&bytes).unwrap().path.unwrap().len(),
                size + 1
            );
        }
    }

    #[test]
    fn times_keep_their_fraction_on_both_sides_of_the_epoch() {
        assert_eq!(
            time(b"12.000000003").unwrap(),
            Time {
                seconds: 12,
                nanos: 3
            }
        );
        assert_eq!(
            time(b"-1.5").unwrap(),
            Time {
                seconds: -2,
                nanos: 500_000_000
            }
        );
        assert_eq!(
            time(b"-0.25").unwrap(),
            Time {
                seconds: -1,
                nanos: 750_000_000
            }
        );
        assert!(time(b"1.x").is_err());
    }

    #[test]
    fn a_record_that_lies_about_its_length_is_refused() {
        for bytes in [
            &b"9999 path=a\n"[..],
            b"3 a",
            b"12 path=abc",
            b"0 =\n",
            b"-5 a=b\n",
            b"6 path",
        ] {
            assert!(Records::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
