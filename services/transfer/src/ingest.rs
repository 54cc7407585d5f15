//! One blob of a registry into the content store: the whole way, with everything that may get in between.
//!
//! Documents are read whole, checked and stored with the labels that hold their children. Other blobs go through the
//! store's pipe. A blob that is here is trusted when the store says that its bytes are right; damaged ones are fetched like
//! missing ones, and replace what is there. The pipe breaks when the store restarts: the store then says at which byte to go on. A commit that
//! finds wrong bytes drops them; the next host is asked from the beginning.

use crate::{
    fetch::{Download, Stop},
    manifest,
    progress::{Meter, Report},
    registry::Repository,
    store::{self, PipeSink, Store, Writing},
};
use contracts::{Code, Descriptor, Error, Labels, Ref, Result, content::Commit};
use std::os::fd::OwnedFd;

/// How often a write that makes no progress is begun again.
const MAX_ROUNDS: u32 = 4;

/// Brings `blob` in through the ingest `ref`.
///
/// Errors: as [`Repository::resolve`]; those of the content store.
pub(crate) async fn fetch(
    store: &Store,
    repository: &Repository,
    blob: &Descriptor,
    r#ref: &Ref,
    mut labels: Labels,
    report: Report<'_>,
) -> Result<()> {
    let source = store::source_label(repository.reference.registry());
    labels.insert(source, repository.reference.repository().to_owned());
    let meter = Meter::new(blob.digest.as_str(), blob.size, report);
    if let Some(present) = store.intact(&blob.digest).await? {
        store.label(&present, &labels).await?;
    } else if manifest::is_document(&blob.media_type) {
        document(store, repository, blob, r#ref, labels).await?;
    } else {
        let mut way = Way {
            store,
            repository,
            blob,
            r#ref,
            labels,
            meter,
            commits: 0,
        };
        return way.walk().await;
    }
    Ok(())
}

async fn document(
    store: &Store,
    repository: &Repository,
    blob: &Descriptor,
    r#ref: &Ref,
    mut labels: Labels,
) -> Result<()> {
    let (document, bytes) = repository.fetch_document(blob).await?;
    faults::point("transfer.fetch.document-read");
    labels.extend(store::references(&document));
    store.put(r#ref, &blob.digest, &bytes, labels).await
}

struct Way<'a> {
    store: &'a Store,
    repository: &'a Repository,
    blob: &'a Descriptor,
    r#ref: &'a Ref,
    labels: Labels,
    meter: Meter<'a>,
    commits: u32,
}

/// What one round of writing led to.
enum Round {
    /// The blob is there.
    Done,
    /// The store took bytes, then stopped: ask it again where to go on.
    Again,
    /// The bytes were wrong, this is why.
    Wrong(Error),
}

impl Way<'_> {
    async fn walk(&mut self) -> Result<()> {
        let mut download = Download::new(self.repository, self.blob, 0);
        let (mut rounds, mut furthest) = (0, 0);
        loop {
            let writing = self
                .store
                .write(self.r#ref, Some(&self.blob.digest), self.blob.size)
                .await?;
            let round = match writing {
                Writing::Present => Round::Done,
                Writing::Busy => self.wait().await?,
                Writing::Open(offset, pipe) => self.round(&mut download, offset, pipe).await?,
            };
            match round {
                Round::Done => return self.label().await,
                Round::Wrong(error) => {
                    (rounds, furthest) = (0, 0);
                    if !download.distrust(error) {
                        return Err(download.failure());
                    }
                }
                Round::Again => {
                    rounds = if download.position() > furthest {
                        0
                    } else {
                        rounds + 1
                    };
                    furthest = furthest.max(download.position());
                    if rounds >= MAX_ROUNDS || !self.repository.rest(rounds.max(1), None).await {
                        return Err(self.stuck().await);
                    }
                }
            }
        }
    }

    /// A pipe breaks without a word; the commit that must fail says why.
    async fn stuck(&mut self) -> Error {
        match self.commit().await {
            Err(error) if error.is(Code::ResourceExhausted) => error,
            _ => Error::unavailable(format!(
                "ingest {}: the content store does not take its bytes; try again",
                self.r#ref
            )),
        }
    }

    /// Somebody else fetches the same blob: watch.
    async fn wait(&mut self) -> Result<Round> {
        let meter = &mut self.meter;
        match self
            .store
            .follow(self.r#ref, &self.blob.digest, &mut |at| meter.at(at))
            .await
        {
            Ok(()) => Ok(Round::Done),
            Err(error) if matches!(error.code, Code::Aborted | Code::Unavailable) => {
                Ok(Round::Again)
            }
            Err(error) => Err(error),
        }
    }

    async fn round(
        &mut self,
        download: &mut Download<'_>,
        offset: u64,
        pipe: OwnedFd,
    ) -> Result<Round> {
        // Bytes from before this process are nobody's fault here: if they are wrong, the same host gets a chance.
        let inherited = offset > 0 && download.position() == 0;
        download.seek(offset);
        let mut sink = PipeSink::new(pipe)?;
        let meter = &mut self.meter;
        match download.run(&mut sink, &mut |at| meter.at(at)).await {
            Ok(()) => {}
            Err(Stop::Sink(_)) => return Ok(Round::Again),
            Err(Stop::Source(error)) => return Err(error),
        }
        faults::point("transfer.fetch.sent");
        drop(sink);
        faults::point("transfer.fetch.closed");
        match self.commit().await {
            Ok(()) => Ok(Round::Done),
            Err(error) if error.is(Code::DataLoss) && inherited => {
                download.seek(0);
                Ok(Round::Again)
            }
            Err(error) if error.is(Code::DataLoss) => Ok(Round::Wrong(error)),
            // The store restarted between our last byte and the commit, and does not have them all.
            Err(error) if matches!(error.code, Code::FailedPrecondition | Code::NotFound) => {
                tracing::debug!(blob = %self.blob.digest, %error, "commit came too early");
                Ok(Round::Again)
            }
            Err(error) => Err(error),
        }
    }

    async fn commit(&mut self) -> Result<()> {
        self.commits += 1;
        // Each commit is a new one, not a repeat of the one that found wrong bytes.
        let store = self.store.step(&format!("commit {}", self.commits));
        let commit = Commit {
            r#ref: self.r#ref.clone(),
            size: Some(self.blob.size),
            expected: Some(self.blob.digest.clone()),
            labels: self.labels.clone(),
        };
        store.commit(commit).await?;
        faults::point("transfer.fetch.committed");
        Ok(())
    }

    /// A blob that somebody else committed may lack our labels.
    async fn label(&self) -> Result<()> {
        match self.store.stat(&self.blob.digest).await? {
            Some(blob) => self.store.label(&blob, &self.labels).await,
            None => Err(Error::aborted(format!(
                "content {}: was deleted meanwhile; try again",
                self.blob.digest
            ))),
        }
    }
}
