//! One 512-byte header block. Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use super::BLOCK;

/// A header block whose checksum was right.
pub(crate) struct Header<'a>(&'a [u8; BLOCK]);

/// Which dialect the magic announces; it decides what the last 167 bytes mean.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Before POSIX: no prefix.
    V7,
    /// POSIX, with a prefix of 155 bytes.
    Ustar,
    /// Jörg Schilling's, with a prefix of 131 bytes.
    Star,
    /// GNU, with sparse maps where the prefix would be.
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the block's checksum, summed as unsigned or, as some old writers did, as signed bytes.
    pub(crate) fn checked(block: &'a [u8; BLOCK]) -> Result<Self, String> {
        let stated = number(&block[148..156]).map_err(|_| "no tar header here".to_owned())?;
        let outside = |index: &usize| !(148..156).contains(index);
        let unsigned: i64 = (0..BLOCK)
            .filter(outside)
            .map(|i| i64::from(block[i]))
            .sum::<i64>()
            + 8 * 32;
        let signed: i64 = (0..BLOCK)
            .filter(outside)
            .map(|i| i64::from(block[i] as i8))
            .sum::<i64>()
            + 8 * 32;
        if stated != unsigned && stated != signed {
            return Err("no tar header here: its checksum is wrong".to_owned());
        }
        Ok(Self(block))
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match (&self.0[257..263], &self.0[263..265], &self.0[508..512]) {
            (b"ustar\0", _, b"tar\0") => Dialect::Star,
            (b"ustar\0", _, _) => Dialect::Ustar,
            (b"ustar ", b" \0", _) => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    pub(crate) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// Name with its prefix, if the dialect has one.
    pub(crate) fn name(&self) -> Vec<u8> {
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        let name = text(&self.0[..100]);
        match prefix.is_empty() {
            true => name.to_vec(),
            false => [prefix, b"/", name].concat(),
        }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<i64, String> {
        self.field("mode", 100..108)
    }

    pub(crate) fn uid(&self) -> Result<i64, String> {
        self.field("uid", 108..116)
    }

    pub(crate) fn gid(&self) -> Result<i64, String> {
        self.field("gid", 116..124)
    }

    pub(crate) fn size(&self) -> Result<i64, String> {
        self.field("size", 124..136)
    }

    pub(crate) fn mtime(&self) -> Result<i64, String> {
        self.field("mtime", 136..148)
    }

    pub(crate) fn device(&self) -> Result<(i64, i64), String> {
        match self.dialect() {
            Dialect::V7 => Ok((0, 0)),
            _ => Ok((
                self.field("device major", 329..337)?,
                self.field("device minor", 337..345)?,
            )),
        }
    }

    /// The four map slots of an old GNU sparse header, its real size, and whether more slots follow in another block.
    pub(crate) fn gnu_sparse(&self) -> Result<(&'a [u8], u64, bool), String> {
        let real = u64::try_from(self.field("real size", 483..495)?)
            .map_err(|_| "negative real size".to_owned())?;
        Ok((&self.0[386..482], real, self.0[482] != 0))
    }

    fn field(&self, what: &str, range: std::ops::Range<usize>) -> Result<i64, String> {
        number(&self.0[range]).map_err(|why| format!("{what} {why}"))
    }
}

/// The bytes up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Reads a numeric field: octal digits, or big-endian two's complement when the first bit is set.
pub(crate) fn number(field: &[u8]) -> Result<i64, String> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn base256(field: &[u8]) -> Result<i64, String> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative {
        i128::from(field[0] as i8)
    } else {
        i128::from(field[0] & 0x7f)
    };
    let value = field[1..].iter().try_fold(first, |value, byte| {
        value
            .checked_mul(256)
            .map(|value| value | i128::from(*byte))
            .ok_or_else(|| "is out of range".to_owned())
    })?;
    i64::try_from(value).map_err(|_| "is out of range".to_owned())
}

fn octal(field: &[u8]) -> Result<i64, String> {
    let digits = text(field).trim_ascii();
    if digits.is_empty() {
        return Ok(0);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| "is not a number".to_owned())?;
    match u64::from_str_radix(digits, 8) {
        Ok(value) if !digits.starts_with('+') => {
            i64::try_from(value).map_err(|_| "is out of range".to_owned())
        }
        _ => Err("is not a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_may_be_padded_with_spaces_or_empty() {
        assert_eq!(number(b"  644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0"), Ok(0));
        assert!(number(b"9\0").is_err());
        assert!(number(b"+7\0").is_err());
    }

    #[test]
    fn binary_fields_hold_big_and_negative_numbers() {
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]),
            Ok(4_294_967_294)
        );
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_block_without_a_checksum_is_refused() {
        assert!(Header::checked(&[b'x'; BLOCK]).is_err());
    }
}
