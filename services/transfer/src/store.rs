//! The content store as this plugin uses it on behalf of one caller: small documents as bytes, blobs as descriptors.

use crate::manifest::{self, Document, MAX_DOCUMENT};
use bus::{Bus, Ctx, DEFAULT_DEADLINE};
use bytes::Bytes;
use contracts::{
    Code, Descriptor, Digest, Error, LabelPatch, Labels, Ref, Result,
    content::{Abort, Blob, Commit, Follow, Open, Stat, Update, Verify, Write},
};
use futures_util::StreamExt;
use rustix::pipe::fcntl_setpipe_size;
use std::{fs::File, io, os::fd::OwnedFd, os::unix::fs::FileExt, time::Duration};
use tokio::{io::AsyncWriteExt, net::unix::pipe};

/// How much may wait in a pipe, in bytes: as much as an unprivileged process may ask for.
const PIPE: usize = 1 << 20;
/// Longest wait for a commit, which syncs the whole blob to disk.
const COMMIT: Duration = Duration::from_secs(600);
/// Longest wait for a blob that the store reads as a whole before it trusts it.
const READ: Duration = Duration::from_secs(600);
/// Longest value of a label that keeps room for its key. Source: containerd, labels package.
const MAX_LABEL: usize = 4000;

/// The label that says which repositories of a registry have the blob. Source: containerd, labels package.
pub(crate) fn source_label(registry: &str) -> String {
    format!("containerd.io/distribution.source.{registry}")
}

/// Calls the content store on behalf of one caller.
#[derive(Clone)]
pub(crate) struct Store {
    bus: Bus,
    ctx: Ctx,
}

/// What a wish to write leads to.
pub(crate) enum Writing {
    /// The blob is there.
    Present,
    /// Somebody else writes it.
    Busy,
    /// Bytes go on at the offset.
    Open(u64, OwnedFd),
}

impl Store {
    pub(crate) fn new(bus: Bus, ctx: Ctx) -> Self {
        Self { bus, ctx }
    }

    /// A transfer outlasts any one call, so each call gets a deadline of its own.
    fn ctx(&self, patience: Duration) -> Ctx {
        self.ctx.clone().with_deadline(patience)
    }

    /// The same for another step: writes in it are not taken for repeats of earlier ones.
    pub(crate) fn step(&self, name: &str) -> Self {
        Self {
            bus: self.bus.clone(),
            ctx: self.ctx.step(name),
        }
    }

    /// Looks a blob up; `None` when it is not there.
    pub(crate) async fn stat(&self, digest: &Digest) -> Result<Option<Blob>> {
        let found = self
            .bus
            .call(
                &self.ctx(DEFAULT_DEADLINE),
                Stat {
                    digest: digest.clone(),
                },
            )
            .await;
        match found {
            Ok(blob) => Ok(Some(blob)),
            Err(error) if error.is(Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks a blob up whose bytes are right; `None` when they must be fetched, for the first time or again.
    pub(crate) async fn intact(&self, digest: &Digest) -> Result<Option<Blob>> {
        let verify = Verify {
            digest: digest.clone(),
            doubt: false,
        };
        match self.bus.call(&self.ctx(READ), verify).await {
            Ok(blob) => Ok(Some(blob)),
            Err(error) if matches!(error.code, Code::NotFound | Code::DataLoss) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells the content store of bytes that did not fit: it looks itself, and hands them out no more when they are
    /// damaged. Answers what it found.
    pub(crate) async fn doubt(&self, digest: &Digest) -> Result<Blob> {
        let verify = Verify {
            digest: digest.clone(),
            doubt: true,
        };
        self.bus.call(&self.ctx(READ), verify).await
    }

    /// Opens a blob. Errors: `NotFound` naming it; `DataLoss` when it is damaged.
    pub(crate) async fn open(&self, digest: &Digest) -> Result<(Blob, File)> {
        let opened = self
            .bus
            .call(
                &self.ctx(READ),
                Open {
                    digest: digest.clone(),
                },
            )
            .await?;
        let fd = opened
            .fd
            .into_owned()
            .map_err(|error| Error::exhausted(format!("content {digest}: {error}")))?;
        Ok((opened.blob, File::from(fd)))
    }

    /// Reads a small blob whole. Errors: `NotFound`; `InvalidArgument` when it is too large for a document.
    pub(crate) async fn read(&self, digest: &Digest) -> Result<Bytes> {
        let (blob, file) = self.open(digest).await?;
        if blob.size > MAX_DOCUMENT {
            return Err(Error::invalid(format!(
                "content {digest}: {} bytes are too many for a document",
                blob.size
            )));
        }
        let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| Error::data_loss(format!("content {digest}: {error}")))?;
        Ok(bytes.into())
    }

    /// Reads a manifest or index. Errors: as [`Store::read`]; `InvalidArgument` when it is malformed.
    pub(crate) async fn document(&self, target: &Descriptor) -> Result<(Document, Bytes)> {
        let bytes = self.read(&target.digest).await?;
        let document = Document::parse(&target.media_type, &bytes).map_err(|mut error| {
            if error.is(Code::DataLoss) {
                error.code = Code::InvalidArgument;
            }
            error.context(format!("content {}", target.digest))
        })?;
        Ok((document, bytes))
    }

    /// Opens or resumes the write of a blob. Errors: `ResourceExhausted`, `Unavailable`.
    pub(crate) async fn write(
        &self,
        r#ref: &Ref,
        expected: Option<&Digest>,
        total: u64,
    ) -> Result<Writing> {
        let request = Write {
            r#ref: r#ref.clone(),
            expected: expected.cloned(),
            total,
            restart: expected.is_none(),
        };
        match self.bus.call(&self.ctx(READ), request).await {
            Ok(writer) => {
                let pipe = writer.pipe.into_owned();
                let pipe =
                    pipe.map_err(|error| Error::exhausted(format!("ingest {ref}: {error}")))?;
                // A smaller pipe only costs more system calls.
                let _ = fcntl_setpipe_size(&pipe, PIPE);
                Ok(Writing::Open(writer.offset, pipe))
            }
            Err(error) if error.is(Code::AlreadyExists) => Ok(Writing::Present),
            Err(error) if error.is(Code::Aborted) => Ok(Writing::Busy),
            Err(error) => Err(error),
        }
    }

    /// Turns what was written into a blob. Errors: as the contract's.
    pub(crate) async fn commit(&self, commit: Commit) -> Result<Blob> {
        self.bus.call(&self.ctx(COMMIT), commit).await
    }

    /// Drops an unfinished write; none is fine.
    pub(crate) async fn abort(&self, r#ref: &Ref) {
        // What cannot be dropped now is collected when it is old.
        let _ = self
            .bus
            .call(
                &self.ctx(DEFAULT_DEADLINE),
                Abort {
                    r#ref: r#ref.clone(),
                },
            )
            .await;
    }

    /// Adds labels to a blob, unless it has them.
    pub(crate) async fn label(&self, blob: &Blob, labels: &Labels) -> Result<()> {
        let mut set = labels.clone();
        for (key, value) in &mut set {
            if let Some(old) = blob
                .labels
                .get(key)
                .filter(|_| key.starts_with("containerd.io/distribution.source."))
            {
                *value = joined(old, value);
            }
        }
        set.retain(|key, value| blob.labels.get(key) != Some(value));
        if set.is_empty() {
            return Ok(());
        }
        let set = set
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .collect();
        let labels = LabelPatch {
            replace: false,
            set,
        };
        let request = Update {
            digest: blob.digest.clone(),
            labels,
        };
        self.bus
            .call(&self.ctx(DEFAULT_DEADLINE), request)
            .await
            .map(drop)
    }

    /// Stores bytes that are here as a blob. Errors: as the contract's.
    pub(crate) async fn put(
        &self,
        r#ref: &Ref,
        digest: &Digest,
        bytes: &[u8],
        labels: Labels,
    ) -> Result<()> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // A writer that was cut off left a part, and another one may be just before its end.
        for _ in 0..3 {
            match self.write(r#ref, Some(digest), size).await? {
                Writing::Present => return self.label_present(digest, &labels).await,
                Writing::Busy => match self.follow(r#ref, digest, &mut |_| ()).await {
                    Ok(()) => return self.label_present(digest, &labels).await,
                    Err(error) if error.is(Code::Aborted) => continue,
                    Err(error) => return Err(error),
                },
                Writing::Open(offset, pipe) => {
                    let rest = bytes
                        .get(usize::try_from(offset).unwrap_or(usize::MAX)..)
                        .unwrap_or_default();
                    if PipeSink::new(pipe)?.0.write_all(rest).await.is_err() {
                        continue;
                    }
                    let expected = Some(digest.clone());
                    let commit = Commit {
                        r#ref: r#ref.clone(),
                        size: Some(size),
                        expected,
                        labels: labels.clone(),
                    };
                    match self.commit(commit).await {
                        // Another writer of the same bytes was faster, or the store restarted before it had them all.
                        Err(error)
                            if matches!(error.code, Code::NotFound | Code::FailedPrecondition) => {}
                        done => return done.map(drop),
                    }
                }
            }
        }
        Err(Error::unavailable(format!(
            "ingest {ref}: the content store does not take its bytes; try again"
        )))
    }

    async fn label_present(&self, digest: &Digest, labels: &Labels) -> Result<()> {
        match self.stat(digest).await? {
            Some(blob) => self.label(&blob, labels).await,
            None => Err(Error::aborted(format!(
                "content {digest}: was deleted meanwhile; try again"
            ))),
        }
    }

    /// Waits until the writer of `ref` has made the blob. Errors: `Aborted` when the ingest was dropped.
    pub(crate) async fn follow(
        &self,
        r#ref: &Ref,
        digest: &Digest,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let request = Follow {
            r#ref: r#ref.clone(),
            digest: digest.clone(),
        };
        let mut growth = self
            .bus
            .open(&self.ctx(Duration::from_secs(24 * 3600)), request)
            .await?;
        while let Some(grown) = growth.next().await {
            let grown = grown?;
            progress(grown.offset);
            if grown.complete {
                return Ok(());
            }
        }
        Err(Error::aborted(format!("ingest {ref}: its writer ended")))
    }
}

/// Joins two lists of repositories; what does not fit into a label is left out.
fn joined(old: &str, new: &str) -> String {
    let mut names: Vec<&str> = old
        .split(',')
        .chain(new.split(','))
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut text = String::new();
    for name in names {
        if text.len() + 1 + name.len() > MAX_LABEL {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
    }
    text
}

/// The writing end of an ingest's pipe.
pub(crate) struct PipeSink(pipe::Sender);

impl PipeSink {
    pub(crate) fn new(pipe: OwnedFd) -> Result<Self> {
        let sender = pipe::Sender::from_owned_fd(pipe);
        sender
            .map(Self)
            .map_err(|error| Error::internal(format!("pipe of the content store: {error}")))
    }
}

impl crate::fetch::Sink for PipeSink {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }
}

/// Labels under which a document holds its children.
pub(crate) fn references(document: &Document) -> Labels {
    manifest::gc_labels(&document.children())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_joined_sorted_and_never_longer_than_a_label() {
        assert_eq!(joined("b,a", "c"), "a,b,c");
        assert_eq!(joined("a", "a"), "a");
        assert_eq!(joined("", "a"), "a");
        let many: Vec<String> = (0..2000).map(|n| format!("r/{n}")).collect();
        let text = joined(&many.join(","), "zz");
        assert!(
            text.len() <= MAX_LABEL && !text.ends_with(','),
            "{}",
            text.len()
        );
    }
}
