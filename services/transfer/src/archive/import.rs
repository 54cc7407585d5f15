//! An archive into the content store, and the images that it names.

use super::{
    Blocking,
    compression::{self, Compression},
    contents::{self, Contents, Intake, Stored},
    tape::Limits,
};
use crate::{
    image,
    manifest::{
        self, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD, DOCKER_MANIFEST,
        Document, ImageConfig, OCI_INDEX,
    },
    resolve::descriptor,
    store::{self, Store, Writing},
};
use contracts::{Code, Descriptor, Digest, Error, Labels, Ref, Result, content::Commit};
use reference::Reference;
use rustix::fs::OFlags;
use serde::Deserialize;
use std::{
    cell::Cell,
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// Names an image within an index. Source: OCI image-spec, annotations.md.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Names an image in full. Source: containerd, images package.
const FULL_NAME: &str = "io.containerd.image.name";
/// Shortest time between two reports of progress.
const EVERY: Duration = Duration::from_millis(100);

/// What the thread that reads asks the asynchronous side.
enum Step {
    Begin {
        r#ref: Ref,
        size: u64,
        expected: Option<Digest>,
        answer: oneshot::Sender<Result<Option<OwnedFd>>>,
    },
    Commit {
        r#ref: Ref,
        size: u64,
        expected: Option<Digest>,
        answer: oneshot::Sender<Result<Digest>>,
    },
    Abort(Ref),
    Read(u64),
}

/// Reads the archive `file` and gives the images it names; `progress` is told how many bytes of it were read.
///
/// Errors: `InvalidArgument` naming the entry; `DataLoss`; `ResourceExhausted`; those of the content store.
pub(crate) async fn import(
    store: &Store,
    file: File,
    prefix: &str,
    limits: Limits,
    progress: &dyn Fn(u64),
) -> Result<Vec<(String, Descriptor)>> {
    let (sender, mut steps) = mpsc::channel(4);
    let reading = tokio::task::spawn_blocking(move || read(file, limits, sender));
    while let Some(step) = steps.recv().await {
        serve(store, step, progress).await;
    }
    let contents = reading
        .await
        .map_err(|error| Error::internal(format!("archive: {error}")))??;
    match (&contents.index, &contents.manifest) {
        (Some(index), _) => from_layout(store, index, prefix).await,
        (None, Some(manifest)) => from_docker(store, &contents, manifest).await,
        (None, None) => Err(Error::invalid(
            "archive: has neither index.json nor manifest.json; is it an image archive?",
        )),
    }
}

/// The thread's part.
fn read(file: File, limits: Limits, steps: mpsc::Sender<Step>) -> Result<Contents> {
    let seen = Rc::new(Cell::new(0));
    let archive = compression::open(Blocking(file), Rc::clone(&seen))?;
    let batch = rand::random::<u64>();
    let mut channel = Channel {
        steps,
        seen,
        batch,
        number: 0,
        told: Instant::now(),
    };
    let contents = contents::read(archive, limits, &mut channel);
    channel.tell();
    if contents.is_err() {
        // Nobody could finish what was begun, for its ref is known to this import alone.
        let _ = channel
            .r#ref()
            .map(|last| channel.steps.blocking_send(Step::Abort(last)));
    }
    contents
}

/// The content store as the thread sees it.
struct Channel {
    steps: mpsc::Sender<Step>,
    seen: Rc<Cell<u64>>,
    batch: u64,
    number: u64,
    told: Instant,
}

impl Channel {
    fn r#ref(&self) -> Result<Ref> {
        Ref::new(format!("import-{:016x}-{}", self.batch, self.number))
    }

    fn ask<T>(&self, step: impl FnOnce(oneshot::Sender<Result<T>>) -> Step) -> Result<T> {
        let gone = || Error::cancelled("archive: whoever asked for the import has gone");
        let (answer, waiting) = oneshot::channel();
        self.steps.blocking_send(step(answer)).map_err(|_| gone())?;
        waiting.blocking_recv().map_err(|_| gone())?
    }

    fn tell(&mut self) {
        self.told = Instant::now();
        // Progress that nobody waits for may be lost.
        let _ = self.steps.try_send(Step::Read(self.seen.get()));
    }
}

impl Intake for Channel {
    fn begin(&mut self, size: u64, expected: Option<&Digest>) -> Result<Option<Box<dyn Write>>> {
        self.number += 1;
        let (r#ref, expected) = (self.r#ref()?, expected.cloned());
        let pipe = self.ask(|answer| Step::Begin {
            r#ref,
            size,
            expected,
            answer,
        })?;
        if self.told.elapsed() >= EVERY {
            self.tell();
        }
        let steps = self.steps.clone();
        let seen = Rc::clone(&self.seen);
        Ok(pipe.map(|pipe| {
            Box::new(Piped {
                pipe: pipe.into(),
                steps,
                seen,
                told: self.told,
            }) as Box<dyn Write>
        }))
    }

    fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let (r#ref, expected) = (self.r#ref()?, expected.cloned());
        self.ask(|answer| Step::Commit {
            r#ref,
            size,
            expected,
            answer,
        })
    }

    /// A broken pipe says nothing; the commit that must fail now says why.
    fn broken(&mut self, error: io::Error) -> Error {
        match self.commit(u64::MAX, None) {
            Err(why) if why.is(Code::ResourceExhausted) => why,
            _ => Error::unavailable(format!(
                "archive: the content store stopped taking its bytes ({error}); import it again"
            )),
        }
    }
}

/// A pipe into the content store that reports how far the archive is.
struct Piped {
    pipe: File,
    steps: mpsc::Sender<Step>,
    seen: Rc<Cell<u64>>,
    told: Instant,
}

impl Write for Piped {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.told.elapsed() >= EVERY {
            self.told = Instant::now();
            let _ = self.steps.try_send(Step::Read(self.seen.get()));
        }
        self.pipe.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn serve(store: &Store, step: Step, progress: &dyn Fn(u64)) {
    match step {
        Step::Begin {
            r#ref,
            size,
            expected,
            answer,
        } => drop(answer.send(begin(store, &r#ref, size, expected).await)),
        Step::Commit {
            r#ref,
            size,
            expected,
            answer,
        } => {
            let commit = Commit {
                r#ref,
                size: Some(size),
                expected,
                labels: Labels::new(),
            };
            drop(answer.send(store.commit(commit).await.map(|blob| blob.digest)));
        }
        Step::Abort(r#ref) => store.abort(&r#ref).await,
        Step::Read(offset) => progress(offset),
    }
}

async fn begin(
    store: &Store,
    r#ref: &Ref,
    size: u64,
    expected: Option<Digest>,
) -> Result<Option<OwnedFd>> {
    match store.write(r#ref, expected.as_ref(), size).await? {
        Writing::Present => Ok(None),
        Writing::Busy => Err(Error::aborted(format!(
            "ingest {ref}: somebody else writes it"
        ))),
        Writing::Open(_, pipe) => {
            let flags = rustix::fs::fcntl_getfl(&pipe)
                .and_then(|flags| rustix::fs::fcntl_setfl(&pipe, flags - OFlags::NONBLOCK));
            flags
                .map_err(|error| Error::internal(format!("pipe of the content store: {error}")))?;
            Ok(Some(pipe))
        }
    }
}

async fn from_layout(
    store: &Store,
    index: &[u8],
    prefix: &str,
) -> Result<Vec<(String, Descriptor)>> {
    let Document::Index(index) =
        Document::parse(OCI_INDEX, index).map_err(|error| invalid(error, "index.json"))?
    else {
        return Err(Error::invalid("archive: index.json is not an index"));
    };
    let mut images = Vec::new();
    for target in index.manifests {
        let name = name_of(&target, prefix)?;
        let target = descriptor(target.media_type, target.digest, target.size);
        hold(store, &target).await?;
        images.push((name, target));
    }
    Ok(images)
}

/// A full name stands as it is; a bare tag needs the prefix to be one.
fn name_of(target: &Descriptor, prefix: &str) -> Result<String> {
    let full = target.annotations.get(FULL_NAME);
    let short = target.annotations.get(REF_NAME);
    let text = match (full, short) {
        (Some(full), _) => full.clone(),
        (None, Some(short)) if short.contains(['/', ':']) => short.clone(),
        (None, Some(tag)) if !prefix.is_empty() => format!("{prefix}:{tag}"),
        _ => return Ok(String::new()),
    };
    let reference =
        Reference::parse(&text).map_err(|error| error.context("archive: index.json"))?;
    Ok(reference.to_string())
}

/// Gives every document of an image the labels that hold its children, after checking that it is whole.
async fn hold(store: &Store, target: &Descriptor) -> Result<()> {
    let tree = image::tree(store, target)
        .await
        .map_err(|error| error.context("archive"))?;
    for (document, bytes) in &tree.documents {
        let parsed = Document::parse(&document.media_type, bytes)?;
        if let (Document::Manifest(_), true) = (&parsed, document.digest == target.digest) {
            whole(store, &tree.blobs).await?;
        }
        if let Some(blob) = store.stat(&document.digest).await? {
            store.label(&blob, &store::references(&parsed)).await?;
        }
    }
    Ok(())
}

async fn whole(store: &Store, blobs: &[Descriptor]) -> Result<()> {
    for blob in blobs
        .iter()
        .filter(|blob| !manifest::is_foreign(&blob.media_type))
    {
        match store.stat(&blob.digest).await? {
            Some(found) if found.size == blob.size => {}
            Some(found) => {
                return Err(Error::data_loss(format!(
                    "archive: blob {} has {} bytes, its manifest says {}",
                    blob.digest, found.size, blob.size
                )));
            }
            None => {
                return Err(Error::not_found(format!(
                    "archive: blob {} is named but not in it",
                    blob.digest
                )));
            }
        }
    }
    Ok(())
}

/// One image of `manifest.json`. Source: Docker, image tarball format v1.2.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

async fn from_docker(
    store: &Store,
    contents: &Contents,
    manifest: &[u8],
) -> Result<Vec<(String, Descriptor)>> {
    let saved: Vec<Saved> = serde_json::from_slice(manifest)
        .map_err(|error| Error::invalid(format!("archive: manifest.json: {error}")))?;
    let mut images = Vec::new();
    for image in saved {
        let target = rebuild(store, contents, &image).await?;
        let names = image.repo_tags.unwrap_or_default();
        if names.is_empty() {
            images.push((String::new(), target.clone()));
        }
        for name in names {
            let reference =
                Reference::parse(&name).map_err(|error| error.context("archive: manifest.json"))?;
            images.push((reference.to_string(), target.clone()));
        }
    }
    Ok(images)
}

/// Writes the manifest that a docker archive does not have.
async fn rebuild(store: &Store, contents: &Contents, image: &Saved) -> Result<Descriptor> {
    let config = contents.file(&image.config)?;
    let bytes = store.read(&config.digest).await?;
    let diff_ids = ImageConfig::parse(&bytes)
        .map_err(|error| invalid(error, &image.config))?
        .diff_ids;
    let paths = image.layers.clone().unwrap_or_default();
    if paths.len() != diff_ids.len() {
        let (has, names) = (paths.len(), diff_ids.len());
        return Err(Error::data_loss(format!(
            "archive: {}: names {names} layers, manifest.json has {has}",
            image.config
        )));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in paths.iter().zip(&diff_ids) {
        layers.push(layer(store, path, contents.file(path)?, diff_id).await?);
    }
    let config = descriptor(DOCKER_CONFIG.into(), config.digest.clone(), config.size);
    let bytes = manifest::write_manifest(DOCKER_MANIFEST, &config, &layers);
    let digest = manifest::digest_of(&bytes);
    let labels = store::references(&Document::parse(DOCKER_MANIFEST, &bytes)?);
    store
        .put(
            &Ref::new(format!("manifest-{digest}"))?,
            &digest,
            &bytes,
            labels,
        )
        .await?;
    Ok(descriptor(
        DOCKER_MANIFEST.into(),
        digest,
        u64::try_from(bytes.len()).unwrap_or(0),
    ))
}

async fn layer(store: &Store, path: &str, stored: &Stored, diff_id: &Digest) -> Result<Descriptor> {
    // What was in the store before was not read on its way.
    let compression = match stored.compression {
        Compression::None if stored.digest != *diff_id => sniff(store, &stored.digest).await?,
        known => known,
    };
    let media_type = match compression {
        Compression::None if stored.digest != *diff_id => {
            return Err(Error::data_loss(format!(
                "archive: layer {path:?} is {}, its config says {diff_id}",
                stored.digest
            )));
        }
        Compression::None => DOCKER_LAYER,
        Compression::Gzip => DOCKER_LAYER_GZIP,
        Compression::Zstd => DOCKER_LAYER_ZSTD,
    };
    Ok(descriptor(
        media_type.into(),
        stored.digest.clone(),
        stored.size,
    ))
}

async fn sniff(store: &Store, digest: &Digest) -> Result<Compression> {
    use std::os::unix::fs::FileExt;
    let (_, file) = store.open(digest).await?;
    let mut start = [0; 4];
    match file.read_at(&mut start, 0) {
        Ok(count) => Ok(Compression::of(&start[..count])),
        Err(error) => Err(Error::data_loss(format!("content {digest}: {error}"))),
    }
}

/// A malformed document is the fault of who gave the archive.
fn invalid(mut error: Error, name: &str) -> Error {
    if error.is(Code::DataLoss) {
        error.code = Code::InvalidArgument;
    }
    error.context(format!("archive: {name}"))
}
