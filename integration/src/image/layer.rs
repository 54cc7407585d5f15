//! Members put together to a layer, and the layer compressed.

use std::io::Write;

use bytes::Bytes;
use flate2::write::GzEncoder;

use super::{Entry, sha256};
use crate::Outcome;

/// How a layer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// The tar as it is.
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// A layer that is being filled.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    archive: Vec<u8>,
}

impl Layer {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a member behind the others.
    pub fn with(mut self, entry: &Entry) -> Self {
        entry.write(&mut self.archive);
        self
    }

    /// Adds many members in order.
    pub fn with_all(self, entries: impl IntoIterator<Item = Entry>) -> Self {
        entries
            .into_iter()
            .fold(self, |layer, entry| layer.with(&entry))
    }

    /// Ends the archive and compresses it. Errors: none that a story could cause.
    pub fn pack(mut self, compression: Compression) -> Outcome<PackedLayer> {
        self.archive.extend_from_slice(&[0; 1024]);
        let diff_id = sha256(&self.archive);
        let bytes = match compression {
            Compression::Plain => self.archive,
            Compression::Gzip => gzip(&self.archive)?,
            Compression::Zstd => zstd::encode_all(self.archive.as_slice(), 3)?,
        };
        Ok(PackedLayer {
            bytes: bytes.into(),
            diff_id,
            compression,
        })
    }
}

fn gzip(archive: &[u8]) -> Outcome<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(archive)?;
    Ok(encoder.finish()?)
}

/// A finished layer.
#[derive(Clone, Debug)]
pub struct PackedLayer {
    /// What a registry stores.
    pub bytes: Bytes,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
    /// How `bytes` are compressed.
    pub compression: Compression,
}
