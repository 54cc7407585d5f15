//! A stream that grows with an ingest until it is a blob: the extractor of a layer reads along with the download.

use crate::{
    error::Trouble,
    ingest::{Ingest, Phase, Progress},
    store::Store,
};
use contracts::{
    Fd, Namespace,
    content::{Follow, Growth},
};
use futures_util::{Stream, stream};
use std::{fs::File, io, os::fd::OwnedFd, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Growth by at least so many bytes is told soon …
const MUCH: u64 = 256 << 10;
const SOON: Duration = Duration::from_millis(2);
/// … and any growth after so long.
const LATER: Duration = Duration::from_millis(20);

/// Streams the growth of the blob that `follow` names.
pub(crate) fn follow(
    store: Store,
    namespace: Namespace,
    follow: Follow,
) -> impl Stream<Item = Result<Growth, Trouble>> + Send + 'static {
    let mut news = store.ingests().news();
    news.mark_changed();
    let follower = Follower {
        news,
        store,
        namespace,
        follow,
        ingest: None,
        run: 0,
        told: 0,
        last: None,
        complete: false,
    };
    stream::try_unfold(follower, |mut follower| async move {
        let growth = follower.next().await?;
        Ok(growth.map(|growth| (growth, follower)))
    })
}

struct Follower {
    store: Store,
    namespace: Namespace,
    follow: Follow,
    news: watch::Receiver<()>,
    ingest: Option<(Arc<Ingest>, watch::Receiver<Progress>)>,
    /// Which file of the ingest the reader has; 0 for none.
    run: u32,
    /// How much of it the reader knows of, and since when.
    told: u64,
    last: Option<Instant>,
    complete: bool,
}

impl Follower {
    async fn next(&mut self) -> Result<Option<Growth>, Trouble> {
        if self.complete {
            return Ok(None);
        }
        loop {
            if self.news.has_changed().unwrap_or(false) {
                self.news.mark_unchanged();
                if let Some(growth) = self.committed().await? {
                    return Ok(Some(growth));
                }
            }
            if let Some(growth) = self.step().await? {
                return Ok(Some(growth));
            }
        }
    }

    /// Looks at the ingest, or waits for something to look at.
    async fn step(&mut self) -> Result<Option<Growth>, Trouble> {
        let Some((ingest, progress)) = &mut self.ingest else {
            let found = self
                .store
                .ingests()
                .find(&self.namespace, &self.follow.r#ref);
            match found {
                Some(ingest) => {
                    let progress = ingest.watch();
                    self.ingest = Some((ingest, progress));
                }
                None => drop(self.news.changed().await.map(|()| self.news.mark_changed())),
            }
            return Ok(None);
        };
        let now = progress.borrow_and_update().clone();
        match now.phase {
            Phase::Committed(_) | Phase::Dropped => return self.ended().await,
            Phase::Idle | Phase::Writing => {}
        }
        if now.run > self.run {
            let ingest = ingest.clone();
            return self.begin(&ingest, now.run).await;
        }
        if now.offset > self.told {
            return self.grew(now.offset).await;
        }
        tokio::select! {
            changed = progress.changed() => drop(changed),
            changed = self.news.changed() => drop(changed.map(|()| self.news.mark_changed())),
        }
        Ok(None)
    }

    /// The writer began, or began over: the reader gets its file.
    async fn begin(&mut self, ingest: &Arc<Ingest>, run: u32) -> Result<Option<Growth>, Trouble> {
        let path = ingest.data();
        let opened = tokio::task::spawn_blocking(move || File::open(path));
        let file = match opened.await.map_err(Trouble::worker)? {
            // It is being committed, or begins over.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                tokio::time::sleep(SOON).await;
                return Ok(None);
            }
            file => file.map_err(Trouble::io(&ingest.data()))?,
        };
        // Read after the file was opened: a later run has a later number, and is met in the next step.
        let offset = ingest.watch().borrow().offset;
        self.run = run;
        self.tell(offset);
        Ok(Some(Growth {
            fd: Some(Fd::from(OwnedFd::from(file))),
            offset,
            complete: false,
        }))
    }

    /// Tells growth, but not each byte: what arrives meanwhile is told in one. An end is met at once.
    async fn grew(&mut self, offset: u64) -> Result<Option<Growth>, Trouble> {
        let since = self.last.map_or(LATER, |last| last.elapsed());
        if since < SOON {
            tokio::time::sleep(SOON - since).await;
            return Ok(None);
        }
        if since < LATER && offset - self.told < MUCH {
            self.more(LATER - since).await;
            return Ok(None);
        }
        self.tell(offset);
        Ok(Some(Growth {
            fd: None,
            offset,
            complete: false,
        }))
    }

    /// Waits for much more, for an end or for a new beginning, but not longer than `patience`.
    async fn more(&mut self, patience: Duration) {
        let (told, run) = (self.told, self.run);
        let Some((_, progress)) = &mut self.ingest else {
            return;
        };
        let urgent = progress.wait_for(|now| {
            let over = matches!(now.phase, Phase::Committed(_) | Phase::Dropped);
            over || now.run != run || now.offset.saturating_sub(told) >= MUCH
        });
        // Too long is as good as enough.
        drop(tokio::time::timeout(patience, urgent).await);
    }

    fn tell(&mut self, offset: u64) {
        self.told = offset;
        self.last = Some(Instant::now());
    }

    /// The ingest is over: either the blob is there, or it never will be by this ingest.
    async fn ended(&mut self) -> Result<Option<Growth>, Trouble> {
        match self.committed().await? {
            Some(growth) => Ok(Some(growth)),
            None => Err(Trouble::Dropped(self.follow.r#ref.clone())),
        }
    }

    /// The last item, when the blob is there.
    async fn committed(&mut self) -> Result<Option<Growth>, Trouble> {
        let (store, namespace) = (self.store.clone(), self.namespace.clone());
        let digest = self.follow.digest.clone();
        let opened = tokio::task::spawn_blocking(move || store.open_blob(&namespace, &digest));
        let (blob, file) = match opened.await.map_err(Trouble::worker)? {
            Err(Trouble::Missing(_)) => return Ok(None),
            // What is damaged is about to be written again, or the follower waits as for what is not there.
            Err(trouble) if trouble.is_damage() => return Ok(None),
            opened => opened?,
        };
        self.complete = true;
        let fd = (!self.has_file_of(&blob.digest)).then(|| Fd::from(OwnedFd::from(file)));
        Ok(Some(Growth {
            fd,
            offset: blob.size,
            complete: true,
        }))
    }

    /// Whether the reader's file is the one that became the blob.
    fn has_file_of(&self, digest: &contracts::Digest) -> bool {
        let Some((_, progress)) = &self.ingest else {
            return false;
        };
        let now = progress.borrow();
        now.run == self.run && self.run > 0 && now.phase == Phase::Committed(digest.clone())
    }
}
