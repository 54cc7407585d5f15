//! Reading an archive: every file into the content store as it comes, the few that name things into memory.

use super::{
    compression::Compression,
    tape::{Entry, Limits, Tape, unreadable},
};
use crate::manifest::MAX_DOCUMENT;
use contracts::{Digest, Error, Result};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read, Write},
};

/// How much is passed on at once, in bytes.
const PIECE: usize = 256 << 10;
/// Most links from one to the next.
const MAX_LINKS: usize = 16;

/// Where the files of an archive go: the content store, or memory in a test.
pub(crate) trait Intake {
    /// Begins a blob of `size` bytes; `None` when `expected` is there already.
    fn begin(&mut self, size: u64, expected: Option<&Digest>) -> Result<Option<Box<dyn Write>>>;
    /// Ends it, after the writer was dropped, and tells its digest.
    fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest>;
    /// Ends it when writing failed, and tells why.
    fn broken(&mut self, error: io::Error) -> Error;
}

/// One file that is now in the content store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) compression: Compression,
}

/// What an archive was found to hold.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// `index.json`.
    pub(crate) index: Option<Vec<u8>>,
    /// `manifest.json`.
    pub(crate) manifest: Option<Vec<u8>>,
    files: HashMap<String, Stored>,
    links: BTreeMap<String, String>,
}

impl Contents {
    /// Finds a file by the path that a document of the archive gives.
    ///
    /// Errors: `InvalidArgument` naming the path that is missing.
    pub(crate) fn file(&self, path: &str) -> Result<&Stored> {
        let mut at = path.trim_start_matches("./");
        for _ in 0..MAX_LINKS {
            match (self.files.get(at), self.links.get(at)) {
                (Some(stored), _) => return Ok(stored),
                (None, Some(next)) => at = next,
                (None, None) => break,
            }
        }
        Err(Error::invalid(format!(
            "archive: its manifest names {path:?}, which is not in it"
        )))
    }
}

/// Reads a whole archive. Errors: `InvalidArgument` naming the entry; `DataLoss`; `ResourceExhausted`; the store's.
pub(crate) fn read(
    archive: impl Read,
    limits: Limits,
    intake: &mut impl Intake,
) -> Result<Contents> {
    let mut tape = Tape::new(archive, limits);
    let mut contents = Contents::default();
    while let Some(entry) = tape.next()? {
        if let Some(target) = entry.link {
            contents.links.insert(entry.path, target);
            continue;
        }
        match entry.path.as_str() {
            "index.json" => contents.index = Some(document(&mut tape, &entry)?),
            "manifest.json" => contents.manifest = Some(document(&mut tape, &entry)?),
            "oci-layout" => layout(&document(&mut tape, &entry)?)?,
            path if is_leftover(path) => {}
            _ => {
                let stored = store(&mut tape, &entry, intake)?;
                contents.files.insert(entry.path, stored);
            }
        }
    }
    Ok(contents)
}

/// Files of old docker archives that say nothing that `manifest.json` does not say.
fn is_leftover(path: &str) -> bool {
    path == "repositories" || path.ends_with("/VERSION") || path.ends_with("/json")
}

fn document(tape: &mut Tape<impl Read>, entry: &Entry) -> Result<Vec<u8>> {
    if entry.size > MAX_DOCUMENT {
        return Err(Error::invalid(format!(
            "archive: {} has more than {MAX_DOCUMENT} bytes",
            entry.path
        )));
    }
    let mut bytes = Vec::new();
    tape.read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    Ok(bytes)
}

/// Source: OCI image-spec, image-layout.md "oci-layout file".
fn layout(bytes: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    let layout: Layout = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(format!("archive: oci-layout: {error}")))?;
    if layout.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    Err(Error::unimplemented(format!(
        "archive: image layout version {:?} is not known",
        layout.image_layout_version
    )))
}

fn store(tape: &mut Tape<impl Read>, entry: &Entry, intake: &mut impl Intake) -> Result<Stored> {
    let expected = blob_name(&entry.path)?;
    let Some(writer) = intake.begin(entry.size, expected.as_ref())? else {
        let digest = expected
            .ok_or_else(|| Error::internal("archive: a file without a digest was known"))?;
        return Ok(Stored {
            digest,
            size: entry.size,
            compression: Compression::None,
        });
    };
    let compression = match copy(tape, writer) {
        Ok(compression) => compression,
        Err(Copy::Archive(error)) => {
            return Err(unreadable(&error).context(format!("entry {:?}", entry.path)));
        }
        Err(Copy::Store(error)) => return Err(intake.broken(error)),
    };
    let digest = intake
        .commit(entry.size, expected.as_ref())
        .map_err(|error| error.context(format!("archive: entry {:?}", entry.path)))?;
    Ok(Stored {
        digest,
        size: entry.size,
        compression,
    })
}

/// Reads `blobs/sha256/<hex>` as the digest that the bytes must have.
fn blob_name(path: &str) -> Result<Option<Digest>> {
    let Some((algorithm, hex)) = path
        .strip_prefix("blobs/")
        .and_then(|rest| rest.split_once('/'))
    else {
        return Ok(None);
    };
    Digest::new(format!("{algorithm}:{hex}"))
        .map(Some)
        .map_err(|error| error.context(format!("archive: entry {path:?}")))
}

enum Copy {
    Archive(io::Error),
    Store(io::Error),
}

fn copy(tape: &mut Tape<impl Read>, mut writer: Box<dyn Write>) -> Result<Compression, Copy> {
    let mut piece = vec![0; PIECE];
    let mut compression = None;
    loop {
        let count = tape.read(&mut piece).map_err(Copy::Archive)?;
        if count == 0 {
            return Ok(compression.unwrap_or(Compression::None));
        }
        compression.get_or_insert_with(|| Compression::of(&piece[..count]));
        writer.write_all(&piece[..count]).map_err(Copy::Store)?;
    }
}
