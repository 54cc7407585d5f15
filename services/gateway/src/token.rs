//! The bearer token of TCP listeners: made on first start, compared in constant time.

use contracts::{Error, Result};
use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

/// Bytes of randomness in a token that we make.
const RANDOM: usize = 32;

/// What a client must show. Has no `Debug`, so that it reaches no log.
pub(crate) struct Token(Vec<u8>);

impl Token {
    /// Reads the token from `file`, or makes one there that only its owner may read.
    ///
    /// Errors: `FailedPrecondition` naming the file when it cannot be read or made, or is empty.
    pub(crate) fn of(file: &Path) -> Result<Self> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                make(file).map_err(|e| named(file, &e))?
            }
            Err(e) => return Err(named(file, &e)),
        };
        match text.trim() {
            "" => Err(Error::precondition(format!(
                "token_file {}: is empty, write a token or delete it for a fresh one",
                file.display()
            ))),
            token => Ok(Self(token.as_bytes().to_vec())),
        }
    }

    /// Whether the value of an `Authorization` header shows this token. Takes as long for every wrong token of one length.
    pub(crate) fn is(&self, header: &[u8]) -> bool {
        let Some((scheme, shown)) = header.split_at_checked(7) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"bearer ") && same(shown.trim_ascii(), &self.0)
    }
}

fn same(left: &[u8], right: &[u8]) -> bool {
    let differing = left
        .iter()
        .zip(right)
        .fold(left.len() ^ right.len(), |sum, (l, r)| {
            std::hint::black_box(sum | usize::from(l ^ r))
        });
    differing == 0
}

fn make(file: &Path) -> std::io::Result<String> {
    let random: [u8; RANDOM] = rand::random();
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut opened = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    writeln!(opened, "{text}")?;
    opened.sync_all()?;
    Ok(text)
}

fn named(file: &Path, error: &std::io::Error) -> Error {
    Error::precondition(format!("token_file {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_and_readable_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let token = Token::of(&file).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(token.is(format!("Bearer {text}").as_bytes()));
        assert!(
            Token::of(&file)
                .unwrap()
                .is(format!("bearer {text}").as_bytes())
        );
    }

    #[test]
    fn a_wrong_token_is_refused_whatever_it_looks_like() {
        let token = Token(b"secret".to_vec());
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer secre",
            "Bearer secrets",
            "Bearer Secret",
            "Basic secret",
            "secret",
        ] {
            assert!(!token.is(wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn an_empty_token_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "\n").unwrap();
        assert!(Token::of(&file).is_err());
    }
}
