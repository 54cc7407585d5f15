//! Images out of the content store as an archive that OCI tools and `docker load` both read.
//!
//! Equal images give equal bytes: entries are sorted by path and carry no time, owner or host.

use super::Blocking;
use crate::{
    image,
    manifest::{Document, write_index},
    platform,
    progress::{Meter, Report},
    store::Store,
};
use bytes::Bytes;
use contracts::{Code, Descriptor, Error, ImageName, Result};
use reference::Reference;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
};
use tokio::sync::mpsc;

/// One entry on its way to the thread that writes.
struct Piece {
    path: String,
    size: u64,
    source: Source,
}

enum Source {
    Bytes(Bytes),
    File(File),
}

/// Writes `images` to `file` and tells how many bytes of content that were.
///
/// Errors: `NotFound` for content that is not here; `Cancelled` when the reader went away.
pub(crate) async fn export(
    store: &Store,
    images: &[(ImageName, Descriptor)],
    wanted: &str,
    file: File,
    report: Report<'_>,
) -> Result<u64> {
    let plan = plan(store, images, wanted).await?;
    let total = plan.entries.values().map(Planned::size).sum();
    let mut meter = Meter::new("archive", total, report);
    let (sender, pieces) = mpsc::channel(4);
    let writing = tokio::task::spawn_blocking(move || write(file, pieces));
    let mut offset = 0;
    for (path, entry) in plan.entries {
        let size = entry.size();
        let source = match entry {
            Planned::Bytes(bytes) => Source::Bytes(bytes),
            Planned::Blob(blob) => Source::File(store.open(&blob.digest).await?.1),
        };
        if sender.send(Piece { path, size, source }).await.is_err() {
            break;
        }
        offset += size;
        meter.at(offset);
    }
    drop(sender);
    writing
        .await
        .map_err(|error| Error::internal(format!("archive: {error}")))??;
    Ok(total)
}

enum Planned {
    Bytes(Bytes),
    Blob(Descriptor),
}

impl Planned {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::Blob(blob) => blob.size,
        }
    }
}

#[derive(Default)]
struct Plan {
    entries: BTreeMap<String, Planned>,
    manifests: Vec<Descriptor>,
    saved: Vec<Saved>,
}

/// One image as `docker load` wants it. Source: Docker, image tarball format v1.2.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

async fn plan(store: &Store, images: &[(ImageName, Descriptor)], wanted: &str) -> Result<Plan> {
    let mut plan = Plan::default();
    for (name, target) in images {
        let target = match wanted {
            "" => target.clone(),
            wanted => {
                image::choose(store, target, &platform::parse(wanted)?)
                    .await?
                    .0
            }
        };
        plan.add(store, name, target).await?;
    }
    let layout = Bytes::from_static(b"{\"imageLayoutVersion\":\"1.0.0\"}");
    let saved = serde_json::to_vec(&plan.saved)
        .map_err(|error| Error::internal(format!("archive: {error}")))?;
    plan.entries
        .insert("oci-layout".into(), Planned::Bytes(layout));
    plan.entries.insert(
        "index.json".into(),
        Planned::Bytes(write_index(&plan.manifests).into()),
    );
    if !plan.saved.is_empty() {
        plan.entries
            .insert("manifest.json".into(), Planned::Bytes(saved.into()));
    }
    Ok(plan)
}

impl Plan {
    async fn add(&mut self, store: &Store, name: &ImageName, mut target: Descriptor) -> Result<()> {
        let tree = image::tree(store, &target).await?;
        for blob in tree.blobs {
            match store.stat(&blob.digest).await? {
                Some(_) => drop(self.entries.insert(path_of(&blob), Planned::Blob(blob))),
                // Only what strangers may not have, and parts of platforms that were never fetched, may be missing.
                None if crate::manifest::is_foreign(&blob.media_type)
                    || tree.documents.len() > 1 => {}
                None => {
                    return Err(Error::not_found(format!(
                        "content {}: is not here, and image {name} needs it",
                        blob.digest
                    )));
                }
            }
        }
        for (document, bytes) in tree.documents {
            self.entries
                .insert(path_of(&document), Planned::Bytes(bytes));
        }
        self.save(store, name, &target).await?;
        target
            .annotations
            .insert("io.containerd.image.name".into(), name.to_string());
        if let Some(tag) = Reference::parse(name.as_str())
            .ok()
            .and_then(|r| r.tag().map(str::to_owned))
        {
            target
                .annotations
                .insert("org.opencontainers.image.ref.name".into(), tag);
        }
        self.manifests.push(target);
        Ok(())
    }

    /// Docker reads one platform; this machine's, or the only one that is here.
    async fn save(&mut self, store: &Store, name: &ImageName, target: &Descriptor) -> Result<()> {
        let manifest = match image::choose(store, target, &platform::host()).await {
            Ok((_, manifest)) => manifest,
            Err(error) if error.is(Code::NotFound) => match self.only(store, target).await? {
                Some(manifest) => manifest,
                None => return Ok(()),
            },
            Err(error) => return Err(error),
        };
        let complete = manifest
            .layers
            .iter()
            .chain([&manifest.config])
            .all(|part| self.entries.contains_key(&path_of(part)));
        if complete && crate::manifest::is_config(&manifest.config.media_type) {
            self.saved.push(Saved {
                config: path_of(&manifest.config),
                repo_tags: vec![name.to_string()],
                layers: manifest.layers.iter().map(path_of).collect(),
            });
        }
        Ok(())
    }

    async fn only(
        &self,
        store: &Store,
        target: &Descriptor,
    ) -> Result<Option<crate::manifest::Manifest>> {
        let mut found = Vec::new();
        for (document, bytes) in image::tree(store, target).await?.documents {
            if let Document::Manifest(manifest) = Document::parse(&document.media_type, &bytes)? {
                found.push(manifest);
            }
        }
        Ok(if found.len() == 1 { found.pop() } else { None })
    }
}

fn path_of(blob: &Descriptor) -> String {
    format!("blobs/{}/{}", blob.digest.algorithm(), blob.digest.hex())
}

/// The thread's part.
fn write(file: File, mut pieces: mpsc::Receiver<Piece>) -> Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, Blocking(file)));
    while let Some(piece) = pieces.blocking_recv() {
        append(&mut builder, piece).map_err(|error| gone(&error))?;
    }
    let finished = builder
        .into_inner()
        .and_then(|buffer| buffer.into_inner().map_err(io::IntoInnerError::into_error));
    finished.map(drop).map_err(|error| gone(&error))
}

fn append(builder: &mut tar::Builder<impl io::Write>, piece: Piece) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(piece.size);
    header.set_mode(0o444);
    header.set_mtime(0);
    match piece.source {
        Source::Bytes(bytes) => builder.append_data(&mut header, &piece.path, &bytes[..]),
        Source::File(file) => {
            let mut exact = Exact {
                file,
                left: piece.size,
            };
            builder.append_data(&mut header, &piece.path, &mut exact)
        }
    }
}

/// Gives exactly as many bytes as the header promised, or fails.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "a blob is shorter than its record says",
            ));
        }
        self.left -= u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}

fn gone(error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Code::Cancelled,
        io::ErrorKind::StorageFull => Code::ResourceExhausted,
        io::ErrorKind::UnexpectedEof => Code::DataLoss,
        _ => Code::Unavailable,
    };
    Error::new(code, format!("archive: writing it: {error}"))
}
