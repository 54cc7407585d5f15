//! The digest algorithms of the OCI image specification, descriptor.md "Registered Algorithms".

use contracts::{Digest, Result};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use std::{fmt::Write, fs::File, io, os::unix::fs::FileExt};

/// Bytes that are hashed at a time: stays in the second-level cache.
const PIECE: usize = 256 << 10;

/// A digest in the making.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    /// Begins with the algorithm of a digest; SHA-256 when none is expected.
    pub(crate) fn of(expected: Option<&Digest>) -> Self {
        match expected.map(Digest::algorithm) {
            Some("sha384") => Self::Sha384(Sha384::new()),
            Some("sha512") => Self::Sha512(Sha512::new()),
            _ => Self::Sha256(Sha256::new()),
        }
    }

    /// Whether it makes digests like `expected`.
    pub(crate) fn fits(&self, expected: Option<&Digest>) -> bool {
        self.algorithm() == expected.map_or("sha256", Digest::algorithm)
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha384(_) => "sha384",
            Self::Sha512(_) => "sha512",
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha384(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Takes in what `file` holds between `from` and `to`.
    pub(crate) fn read(&mut self, file: &File, mut from: u64, to: u64) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        while from < to {
            let most = usize::try_from(to - from).map_or(PIECE, |left| left.min(PIECE));
            let got = file.read_at(&mut piece[..most], from)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.update(&piece[..got]);
            from += got as u64;
        }
        Ok(())
    }

    /// The digest of everything so far.
    pub(crate) fn digest(&self) -> Result<Digest> {
        let mut text = format!("{}:", self.algorithm());
        let bytes = match self.clone() {
            Self::Sha256(hash) => hash.finalize().to_vec(),
            Self::Sha384(hash) => hash.finalize().to_vec(),
            Self::Sha512(hash) => hash.finalize().to_vec(),
        };
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_digests_of_abc() {
        for (expected, begins) in [
            (None, "sha256:ba7816bf8f01cfea"),
            (
                Some(format!("sha384:{}", "0".repeat(96))),
                "sha384:cb00753f45a35e8b",
            ),
            (
                Some(format!("sha512:{}", "0".repeat(128))),
                "sha512:ddaf35a193617aba",
            ),
        ] {
            let expected = expected.map(|text| Digest::new(text).unwrap());
            let mut hasher = Hasher::of(expected.as_ref());
            hasher.update(b"abc");
            assert!(hasher.digest().unwrap().as_str().starts_with(begins));
            assert!(hasher.fits(expected.as_ref()));
        }
    }
}
