//! Go string literals: `"a\tb\u00e9"`, and the same between `/ /` and `| |` for expressions.
//!
//! Source: Go language specification, "Rune literals" and "String literals" (interpreted).

/// What is wrong inside a literal, and how many bytes behind its start.
pub(crate) type Fault = (usize, &'static str);

const NOT_TERMINATED: &str =
    "quoted literal not terminated; a key or value with / or | in it stands in double quotes";
const BAD_NUMBER: &str = "illegal numeric escape; write \\123, \\x41, \\u0041 or \\U00000041";

/// Reads the literal that starts `text` with its quote; returns its value and its length in bytes.
pub(crate) fn unquote(text: &str) -> Result<(String, usize), Fault> {
    let mut reader = Reader { text, at: 0 };
    let quote = reader.next().ok_or((0, NOT_TERMINATED))?;
    let mut value = Vec::new();
    loop {
        let start = reader.at;
        match reader.next() {
            None | Some('\n') => return Err((0, NOT_TERMINATED)),
            Some(end) if end == quote => break,
            Some('\\') => reader.escape(start, quote, &mut value)?,
            Some(plain) => push(&mut value, plain),
        }
    }
    let value = String::from_utf8(value).map_err(|_| (0, "quoted literal is not UTF-8"))?;
    Ok((value, reader.at))
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let found = self.text.get(self.at..)?.chars().next()?;
        self.at += found.len_utf8();
        Some(found)
    }

    /// Reads what stands behind a backslash. `\x` and octal escapes are single bytes, which only
    /// together need to be UTF-8.
    fn escape(&mut self, start: usize, quote: char, value: &mut Vec<u8>) -> Result<(), Fault> {
        let kind = self.next().ok_or((0, NOT_TERMINATED))?;
        match kind {
            'a' => value.push(0x07),
            'b' => value.push(0x08),
            'f' => value.push(0x0c),
            'n' => value.push(b'\n'),
            'r' => value.push(b'\r'),
            't' => value.push(b'\t'),
            'v' => value.push(0x0b),
            '\\' => value.push(b'\\'),
            'x' => value.push(self.byte(start, 16, 2)?),
            '0'..='7' => {
                self.at -= 1;
                value.push(self.byte(start, 8, 3)?);
            }
            'u' => push(value, self.code_point(start, 4)?),
            'U' => push(value, self.code_point(start, 8)?),
            same if same == quote => push(value, same),
            _ => return Err((start, "illegal escape sequence; write a backslash as \\\\")),
        }
        Ok(())
    }

    fn byte(&mut self, start: usize, base: u32, digits: usize) -> Result<u8, Fault> {
        let number = self.number(start, base, digits)?;
        u8::try_from(number).map_err(|_| (start, BAD_NUMBER))
    }

    fn code_point(&mut self, start: usize, digits: usize) -> Result<char, Fault> {
        let number = self.number(start, 16, digits)?;
        char::from_u32(number).ok_or((start, "escape names no Unicode character"))
    }

    /// Reads exactly `digits` digits. Eight hexadecimal digits fill a `u32` and cannot pass it.
    fn number(&mut self, start: usize, base: u32, digits: usize) -> Result<u32, Fault> {
        (0..digits).try_fold(0, |sum, _| {
            let digit = self.next().and_then(|found| found.to_digit(base));
            digit
                .map(|digit| sum * base + digit)
                .ok_or((start, BAD_NUMBER))
        })
    }
}

fn push(value: &mut Vec<u8>, found: char) {
    value.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes());
}
