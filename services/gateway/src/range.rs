//! `Range` and `Content-Range`. Pure. Source: RFC 9110, 14.

use contracts::{Error, Result};
use std::ops::Range;

/// What to send of a blob of `size` bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything: nothing was asked for, or something that need not be understood.
    All,
    /// One part.
    Part(Range<u64>),
    /// A part that does not exist.
    Nowhere,
}

/// Reads a `Range` header. Several ranges at once are answered with everything, as is allowed.
pub(crate) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let spec = header.and_then(|header| header.strip_prefix("bytes="));
    let Some((first, last)) = spec.and_then(|spec| spec.trim().split_once('-')) else {
        return Wanted::All;
    };
    match (number(first), number(last)) {
        (None, Some(count)) if first.is_empty() => match count.min(size) {
            0 => Wanted::Nowhere,
            count => Wanted::Part(size - count..size),
        },
        (Some(first), _) if first >= size && (last.is_empty() || number(last).is_some()) => {
            Wanted::Nowhere
        }
        (Some(first), None) if last.is_empty() => Wanted::Part(first..size),
        (Some(first), Some(last)) if first <= last => {
            Wanted::Part(first..last.saturating_add(1).min(size))
        }
        _ => Wanted::All,
    }
}

/// Where the bytes of a body belong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Offset of the first.
    pub(crate) start: u64,
    /// How many there are.
    pub(crate) length: u64,
    /// Bytes in all; 0 when unknown.
    pub(crate) total: u64,
}

/// Reads a `Content-Range` header. Errors: `InvalidArgument`.
pub(crate) fn placed(header: &str) -> Result<Placed> {
    parse_placed(header).ok_or_else(|| {
        Error::invalid(format!(
            "Content-Range {header:?}: must be as in `bytes 0-99/200` or `bytes 0-99/*`"
        ))
    })
}

fn parse_placed(header: &str) -> Option<Placed> {
    let (range, total) = header.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (start, last) = (number(first)?, number(last)?);
    let total = match total {
        "*" => 0,
        total => number(total).filter(|total| *total > last)?,
    };
    let length = last.checked_sub(start)?.checked_add(1)?;
    Some(Placed {
        start,
        length,
        total,
    })
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_the_end_of_the_blob() {
        for (header, expected) in [
            ("bytes=0-3", Wanted::Part(0..4)),
            ("bytes=4-", Wanted::Part(4..10)),
            ("bytes=8-99", Wanted::Part(8..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Nowhere),
            ("bytes=10-12", Wanted::Nowhere),
            ("bytes=-0", Wanted::Nowhere),
            ("bytes=3-1", Wanted::All),
            ("bytes=0-1,4-5", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("lines=0-3", Wanted::All),
        ] {
            assert_eq!(wanted(Some(header), 10), expected, "{header}");
        }
        assert_eq!(wanted(None, 10), Wanted::All);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Nowhere);
    }

    #[test]
    fn a_body_says_where_it_belongs() {
        let placed_at = |start, length, total| Placed {
            start,
            length,
            total,
        };
        assert_eq!(placed("bytes 0-99/200").unwrap(), placed_at(0, 100, 200));
        assert_eq!(placed("bytes 100-199/*").unwrap(), placed_at(100, 100, 0));
        for bad in [
            "bytes 0-99",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "0-9/10",
            "bytes a-b/c",
            "bytes 0-18446744073709551615/*",
        ] {
            assert!(placed(bad).is_err(), "{bad}");
        }
    }
}
