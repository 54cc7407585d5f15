//! Bytes as text.

use std::fmt::Write;

/// A SHA-256 as `sha256:…`.
pub(crate) fn digest(hash: &[u8; 32]) -> String {
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        // writing to a string cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A path as text that [`unescape`] turns back into the same bytes.
pub(crate) fn escape(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for part in path.utf8_chunks() {
        text.push_str(&part.valid().replace('%', "%25"));
        for byte in part.invalid() {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// The bytes that [`escape`] was given; a `%` that stands for nothing is itself.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                path.push(byte);
                at += 3;
            }
            None => {
                path.push(bytes[at]);
                at += 1;
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_as_text() {
        for path in [
            &b"usr/lib"[..],
            b"100%",
            b"%41",
            b"caf\xc3\xa9",
            b"\xff\xfe/x",
            b"%\xff%",
        ] {
            assert_eq!(unescape(&escape(path)), path);
        }
        assert_eq!(escape(b"usr/lib"), "usr/lib");
    }
}
