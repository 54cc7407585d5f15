//! Records, and the order in which record and bytes come and go.
//!
//! ```text
//! content.redb
//!   blobs      namespace NUL digest → size, labels, times
//!   sharers    digest NUL namespace → size       the same, found by digest
//!   damaged    digest → what was found instead of its bytes; goes when they are written again
//! ```
//!
//! Coming: bytes synced, moved to their place, folder synced, record committed. Going: record removed, and when it was
//! the last of its digest, the bytes. A record therefore never says more than the disk has, whenever power goes.

use crate::{
    blobs::Blobs,
    check::Bookmarks,
    collect::Collection,
    config::{Config, Policy},
    error::Trouble,
    ingest::{Claim, Ingest, Phase, Verified, spoils},
    ingests::Ingests,
    trust::{Stamp, Trust},
    verify::DAMAGED,
};
use contracts::{
    Digest, LabelPatch, Labels, Namespace, OperationId, Page, Paging, Ref, Timestamp, check_labels,
    collect::{Node, Resource},
    content::{self, Blob, Commit, Created, Deleted, Updated, Write},
};
use filter::{Fields, Filters};
use ledger::{Ledger, LedgerConfig, Snapshot, Table, Tx};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fs::File, os::fd::OwnedFd, path::Path, sync::Arc, time::SystemTime};
use tokio::time::Instant;

pub(crate) const BLOBS: Table<Record> = Table::new("blobs");
pub(crate) const SHARERS: Table<u64> = Table::new("sharers");

/// One blob of one namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) size: u64,
    pub(crate) labels: Labels,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl Record {
    fn blob(self, digest: Digest) -> Blob {
        Blob {
            digest,
            size: self.size,
            labels: self.labels,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// Names a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    namespace: Namespace,
    pub(crate) digest: Digest,
}

impl Key {
    pub(crate) fn new(namespace: &Namespace, digest: &Digest) -> Self {
        let (namespace, digest) = (namespace.clone(), digest.clone());
        Self { namespace, digest }
    }

    /// Reads a key of the table `blobs`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (namespace, digest) = text.split_once('\0')?;
        let namespace = Namespace::new(namespace).ok()?;
        let digest = Digest::new(digest).ok()?;
        Some(Self { namespace, digest })
    }

    pub(crate) fn text(&self) -> String {
        format!("{}\0{}", self.namespace, self.digest)
    }

    pub(crate) fn shared(&self) -> String {
        format!("{}\0{}", self.digest, self.namespace)
    }

    pub(crate) fn namespace(&self) -> Namespace {
        self.namespace.clone()
    }

    pub(crate) fn node(&self) -> Node {
        Node {
            namespace: self.namespace.clone(),
            resource: Resource::Content(self.digest.clone()),
        }
    }
}

/// The content store. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    ledger: Ledger,
    blobs: Blobs,
    ingests: Ingests,
    collection: Collection,
    config: Config,
    opened: SystemTime,
    trust: Trust,
    bookmarks: Bookmarks,
}

/// An ingest that has passed its checks and waits for its record.
pub(crate) struct Ready {
    ingest: Arc<Ingest>,
    pub(crate) verified: Verified,
    key: Key,
    _claim: Claim,
}

/// What a commit leads to at first.
pub(crate) enum Readiness {
    /// It was done before; this was the answer.
    Done(Blob),
    /// It may be done.
    Ready(Ready),
}

impl Store {
    pub(crate) fn open(root: &Path, config: &Config) -> Result<Self, Trouble> {
        let ledger = Ledger::open(root.join("content.redb"), LedgerConfig::FIRST)?;
        let inner = Inner {
            ledger,
            blobs: Blobs::open(root.join("blobs"), config.sync)?,
            ingests: Ingests::open(root.join("ingests"), *config)?,
            collection: Collection::default(),
            config: *config,
            opened: SystemTime::now(),
            trust: Trust::default(),
            bookmarks: Bookmarks::default(),
        };
        let store = Self {
            inner: Arc::new(inner),
        };
        store.finish();
        Ok(store)
    }

    /// Ends ingests whose blob has its record: the process died, or power went, before their folder was gone.
    fn finish(&self) {
        for ((namespace, _), ingest) in self.ingests().all(None) {
            let moved = ingest.about().becoming.filter(|_| !ingest.data().exists());
            let key = moved.map(|digest| Key::new(&namespace, &digest));
            if let Some(key) = key.filter(|key| matches!(self.record(key), Ok(Some(_)))) {
                self.ingests().end(&ingest, Phase::Committed(key.digest));
            }
        }
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    pub(crate) fn ingests(&self) -> &Ingests {
        &self.inner.ingests
    }

    pub(crate) fn collection(&self) -> &Collection {
        &self.inner.collection
    }

    pub(crate) fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    pub(crate) fn trust(&self) -> &Trust {
        &self.inner.trust
    }

    pub(crate) fn bookmarks(&self) -> &Bookmarks {
        &self.inner.bookmarks
    }

    /// A record that is about to be used.
    fn used(&self, key: &Key) -> Result<Record, Trouble> {
        let missing = || Trouble::Missing(key.digest.clone());
        if !self.inner.collection.touch(key) {
            return Err(missing());
        }
        self.record(key)?.ok_or_else(missing)
    }

    pub(crate) fn record(&self, key: &Key) -> Result<Option<Record>, Trouble> {
        let read = |snapshot: &Snapshot| Ok(snapshot.get(&BLOBS, &key.text())?);
        self.inner.ledger.read(read)
    }

    pub(crate) fn stat(&self, namespace: &Namespace, digest: &Digest) -> Result<Blob, Trouble> {
        let record = self.used(&Key::new(namespace, digest))?;
        Ok(record.blob(digest.clone()))
    }

    pub(crate) fn list(
        &self,
        namespace: &Namespace,
        paging: &Paging,
    ) -> Result<Page<Blob>, Trouble> {
        let filters = Filters::parse(&paging.filters)?;
        let prefix = format!("{namespace}\0");
        self.inner.ledger.read(|snapshot| {
            let page = ledger::page(snapshot, &BLOBS, &prefix, paging, |key, record: Record| {
                let blob = record.blob(Key::parse(key)?.digest);
                filters.matches(&Row(&blob)).then_some(blob)
            });
            Ok(page?)
        })
    }

    /// Opens a blob for one reader, who gets bytes that were seen to be right. Blocks, at first for reading them.
    ///
    /// Errors: `Missing`, `Gone`, `Damaged`, `Rotten`.
    pub(crate) fn open_blob(
        &self,
        namespace: &Namespace,
        digest: &Digest,
    ) -> Result<(Blob, File), Trouble> {
        let key = Key::new(namespace, digest);
        let record = self.used(&key)?;
        match self.proven(digest, record.size, false) {
            Ok(file) => Ok((record.blob(digest.clone()), file)),
            // It may have been deleted since.
            Err(_) if self.record(&key)?.is_none() => Err(Trouble::Missing(digest.clone())),
            Err(damage) => {
                tracing::error!(%damage, "blob");
                Err(damage)
            }
        }
    }

    pub(crate) async fn update(
        &self,
        operation: &OperationId,
        namespace: &Namespace,
        digest: &Digest,
        patch: LabelPatch,
    ) -> Result<Blob, Trouble> {
        let key = Key::new(namespace, digest);
        if !self.inner.collection.touch(&key) {
            return Err(Trouble::Missing(key.digest));
        }
        let update = move |tx: &mut Tx<'_>| {
            let text = key.text();
            let record: Option<Record> = tx.get(&BLOBS, &text)?;
            let mut record = record.ok_or_else(|| Trouble::Missing(key.digest.clone()))?;
            patch.apply(&mut record.labels)?;
            record.updated_at = tx.now;
            tx.put(&BLOBS, &text, &record)?;
            tell_labels(tx, &key, &record)?;
            Ok(record.blob(key.digest.clone()))
        };
        let updated = self.inner.ledger.write(Some(operation), update).await;
        // A generation that began meanwhile has forgotten the stamp.
        self.inner.collection.create(&Key::new(namespace, digest));
        updated
    }

    pub(crate) async fn delete(
        &self,
        operation: &OperationId,
        namespace: &Namespace,
        digest: &Digest,
    ) -> Result<(), Trouble> {
        let key = Key::new(namespace, digest);
        let delete = move |tx: &mut Tx<'_>| match remove(tx, &key)? {
            Some(_) => Ok(()),
            None => Err(Trouble::Missing(key.digest.clone())),
        };
        self.settle().await?;
        self.inner.ledger.write(Some(operation), delete).await?;
        faults::point("content.delete.recorded");
        self.release(digest).await
    }

    /// Before records go: see [`Ingests::settle`].
    pub(crate) async fn settle(&self) -> Result<(), Trouble> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.ingests().settle())
            .await
            .map_err(Trouble::worker)?
    }

    /// Removes the bytes of a digest that no record names any more.
    pub(crate) async fn release(&self, digest: &Digest) -> Result<(), Trouble> {
        let (store, digest) = (self.clone(), digest.clone());
        let work = move || {
            let _lock = store.inner.blobs.lock_blocking(&digest);
            match store.shared(&digest)? {
                None => {
                    store.inner.blobs.remove(&digest)?;
                    faults::point("content.release.bytes-removed");
                    store.unmark(&digest)
                }
                Some(_) => Ok(()),
            }
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(Trouble::worker)?
    }

    /// The size of a blob that some namespace has.
    pub(crate) fn shared(&self, digest: &Digest) -> Result<Option<u64>, Trouble> {
        let mut found = None;
        self.inner.ledger.read(|snapshot| {
            snapshot.scan(&SHARERS, &format!("{digest}\0"), None, |_, size| {
                found = Some(size);
                false
            })?;
            Ok(found)
        })
    }

    /// Whether a write under this digest needs no bytes. Errors: `Exists` when it does not.
    ///
    /// Bytes that are here are looked at first, unless that was done before: damaged ones are sent again. Under policy `shared` a blob of another namespace becomes one of this namespace, too.
    pub(crate) async fn known(
        &self,
        namespace: &Namespace,
        digest: &Digest,
    ) -> Result<(), Trouble> {
        let key = Key::new(namespace, digest);
        if self.inner.collection.touch(&key)
            && let Some(record) = self.record(&key)?
        {
            return match self.intact(digest, record.size).await? {
                true => Err(Trouble::Exists(digest.clone())),
                false => Ok(()),
            };
        }
        if self.inner.config.policy == Policy::Isolated {
            return Ok(());
        }
        match self.shared(digest)? {
            Some(size) if self.intact(digest, size).await? => {}
            _ => return Ok(()),
        }
        let _lock = self.inner.blobs.lock(digest).await;
        // Damaged or missing bytes are better sent again.
        let Some(size) = self.shared(digest)? else {
            return Ok(());
        };
        if self.inner.blobs.size(digest)? != Some(size) {
            return Ok(());
        }
        self.add(None, key, size, Labels::new()).await?;
        self.inner.ingests.ring();
        Err(Trouble::Exists(digest.clone()))
    }

    /// Commits a record, or merges the labels of one that is there.
    async fn add(
        &self,
        operation: Option<&OperationId>,
        key: Key,
        size: u64,
        labels: Labels,
    ) -> Result<Blob, Trouble> {
        // Before, for the sweep; and after, for a generation that begins meanwhile.
        self.inner.collection.create(&key);
        let stamped = key.clone();
        let add = move |tx: &mut Tx<'_>| {
            let known: Option<Record> = tx.get(&BLOBS, &key.text())?;
            let fresh = known.is_none();
            let mut record = known.unwrap_or(Record {
                size,
                labels: Labels::new(),
                created_at: tx.now,
                updated_at: tx.now,
            });
            let mut merged = record.labels.clone();
            merged.extend(labels.clone());
            check_labels(&merged)?;
            let relabelled = merged != record.labels;
            if relabelled {
                (record.labels, record.updated_at) = (merged, tx.now);
            }
            tx.put(&BLOBS, &key.text(), &record)?;
            tx.put(&SHARERS, &key.shared(), &size)?;
            tx.remove(&DAMAGED, key.digest.as_str())?;
            if fresh {
                let digest = key.digest.clone();
                tx.emit(
                    Some(&key.namespace),
                    "/content/create",
                    &Created {
                        digest,
                        size,
                        labels: record.labels.clone(),
                    },
                )?;
            } else if relabelled {
                tell_labels(tx, &key, &record)?;
            }
            Ok(record.blob(key.digest.clone()))
        };
        let added = self.inner.ledger.write(operation, add).await;
        self.inner.collection.create(&stamped);
        added
    }

    /// Starts or resumes an ingest. Blocks.
    pub(crate) fn begin(
        &self,
        namespace: &Namespace,
        ask: &Write,
    ) -> Result<(u64, OwnedFd), Trouble> {
        self.inner.ingests.begin(namespace, ask)
    }

    fn ingest(&self, namespace: &Namespace, name: &Ref) -> Result<Arc<Ingest>, Trouble> {
        let found = self.inner.ingests.find(namespace, name);
        found.ok_or_else(|| Trouble::NoIngest(name.clone()))
    }

    pub(crate) fn status(
        &self,
        namespace: &Namespace,
        name: &Ref,
    ) -> Result<content::Ingest, Trouble> {
        Ok(self.ingest(namespace, name)?.status())
    }

    /// Waits for the bytes of an ingest and checks them. Bytes that can never become right are dropped.
    pub(crate) async fn ready(
        &self,
        operation: &OperationId,
        namespace: &Namespace,
        commit: &Commit,
        deadline: Instant,
    ) -> Result<Readiness, Trouble> {
        check_labels(&commit.labels)?;
        let Some((ingest, claim)) = self.settled(namespace, &commit.r#ref, deadline).await? else {
            let done = self.repeated(operation, &commit.r#ref);
            return done.await.map(Readiness::Done);
        };
        let (store, commit, at) = (self.clone(), commit.clone(), ingest.clone());
        let work = move || {
            let verified = at.verify(&commit, &store.inner.blobs);
            if verified.as_ref().is_err_and(spoils) {
                store.inner.ingests.end(&at, Phase::Dropped);
            }
            verified
        };
        let verified = tokio::task::spawn_blocking(work).await;
        let verified = verified.map_err(Trouble::worker)??;
        Ok(Readiness::Ready(Ready {
            key: Key::new(namespace, &verified.digest),
            ingest,
            verified,
            _claim: claim,
        }))
    }

    /// The answer that this operation got when it ended the ingest `name` before. Errors: `NoIngest` when it did not.
    async fn repeated<T>(&self, operation: &OperationId, name: &Ref) -> Result<T, Trouble>
    where
        T: Serialize + for<'de> Deserialize<'de> + Send + 'static,
    {
        let name = name.clone();
        let none = move |_: &mut Tx<'_>| Err(Trouble::NoIngest(name.clone()));
        self.inner.ledger.write(Some(operation), none).await
    }

    /// Claims an ingest that nobody writes; `None` when there is none. Errors: `Open` past the deadline.
    async fn settled(
        &self,
        namespace: &Namespace,
        name: &Ref,
        deadline: Instant,
    ) -> Result<Option<(Arc<Ingest>, Claim)>, Trouble> {
        while let Some(ingest) = self.inner.ingests.find(namespace, name) {
            let mut progress = ingest.watch();
            let quiet = progress.wait_for(|now| now.phase != Phase::Writing);
            let quiet = tokio::time::timeout_at(deadline, quiet).await.map(drop);
            quiet.map_err(|_| Trouble::Open(name.clone()))?;
            let claim = ingest.claim().await;
            if !ingest.is_writing() && !ingest.is_gone() {
                return Ok(Some((ingest, claim)));
            }
        }
        Ok(None)
    }

    /// Makes the bytes durable. May run beside others.
    pub(crate) async fn sync(&self, ready: &Ready) -> Result<(), Trouble> {
        if ready.verified.placed || !self.inner.config.sync {
            return Ok(());
        }
        let ingest = ready.ingest.clone();
        let synced = tokio::task::spawn_blocking(move || ingest.sync());
        synced.await.map_err(Trouble::worker)??;
        faults::point("content.commit.synced");
        Ok(())
    }

    /// Moves synced bytes to their place and commits their record.
    pub(crate) async fn publish(
        &self,
        operation: &OperationId,
        ready: Ready,
        labels: Labels,
    ) -> Result<Blob, Trouble> {
        let Verified {
            digest,
            size,
            placed,
        } = ready.verified.clone();
        let lock = self.inner.blobs.lock(&digest).await;
        let (store, ingest) = (self.clone(), ready.ingest.clone());
        let work = move || match placed {
            // Moved before a crash, which may have come before the folder was on disk. Somebody may have deleted it since.
            true => {
                store.inner.blobs.read(&digest, size)?;
                store.inner.blobs.sync(&digest)
            }
            false => store.place(&ingest, &digest),
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(Trouble::worker)??;
        faults::point("content.commit.placed");
        let blob = self
            .add(Some(operation), ready.key.clone(), size, labels)
            .await?;
        drop(lock);
        faults::point("content.commit.recorded");
        let phase = Phase::Committed(blob.digest.clone());
        self.end(&ready.ingest, phase).await?;
        Ok(blob)
    }

    /// Moves bytes that were hashed to their place. Blocks.
    fn place(&self, ingest: &Ingest, digest: &Digest) -> Result<(), Trouble> {
        ingest.becomes(digest)?;
        faults::point("content.commit.announced");
        self.inner.blobs.place(&ingest.data(), digest)?;
        let path = self.inner.blobs.path(digest);
        let placed = std::fs::metadata(&path).map_err(Trouble::io(&path))?;
        self.inner.trust.learn(digest, Stamp::of(&placed));
        Ok(())
    }

    async fn end(&self, ingest: &Arc<Ingest>, phase: Phase) -> Result<(), Trouble> {
        let (store, ingest) = (self.clone(), ingest.clone());
        let work = move || {
            store.inner.ingests.end(&ingest, phase);
            store.inner.ingests.ring();
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(Trouble::worker)
    }

    /// Drops an ingest; its writer gets a broken pipe.
    pub(crate) async fn abort(
        &self,
        operation: &OperationId,
        namespace: &Namespace,
        name: &Ref,
    ) -> Result<(), Trouble> {
        loop {
            let Some(ingest) = self.inner.ingests.find(namespace, name) else {
                return self.repeated(operation, name).await;
            };
            // First, for nothing on disk will tell a repetition that it was there.
            let done = |_: &mut Tx<'_>| Ok::<_, Trouble>(());
            self.inner.ledger.write(Some(operation), done).await?;
            faults::point("content.abort.recorded");
            if self.drop_ingest(&ingest).await? {
                faults::point("content.abort.dropped");
                return Ok(());
            }
        }
    }

    /// Stops and drops an ingest; false when somebody was in between.
    async fn drop_ingest(&self, ingest: &Arc<Ingest>) -> Result<bool, Trouble> {
        let at = ingest.clone();
        let stopped = tokio::task::spawn_blocking(move || at.stop()).await;
        stopped.map_err(Trouble::worker)?;
        let _claim = ingest.claim().await;
        if ingest.is_gone() || ingest.is_writing() {
            return Ok(false);
        }
        self.end(ingest, Phase::Dropped).await?;
        Ok(true)
    }

    /// Looks at every blob file once: removes those that a crash left without a record, and reports damaged ones.
    ///
    /// Blocks. Safe beside everything else, because a digest is looked at under its lock.
    pub(crate) fn tidy(&self) -> Result<(), Trouble> {
        let awaited: Vec<Digest> = self
            .inner
            .ingests
            .all(None)
            .iter()
            .filter_map(|(_, ingest)| ingest.about().becoming)
            .collect();
        for file in self.inner.blobs.walk() {
            let _lock = self.inner.blobs.lock_blocking(&file.digest);
            match self.shared(&file.digest)? {
                Some(size) if size != file.size => {
                    let (digest, found) = (file.digest, file.size);
                    tracing::error!(
                        "{}",
                        Trouble::Damaged {
                            digest,
                            found,
                            size
                        }
                    );
                }
                None if file.changed < self.inner.opened && !awaited.contains(&file.digest) => {
                    tracing::warn!(digest = %file.digest, "bytes without a record go");
                    self.inner.blobs.remove(&file.digest)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes a record; answers its size when it was there.
pub(crate) fn remove(tx: &mut Tx<'_>, key: &Key) -> Result<Option<u64>, Trouble> {
    let Some(record): Option<Record> = tx.get(&BLOBS, &key.text())? else {
        return Ok(None);
    };
    tx.remove(&BLOBS, &key.text())?;
    tx.remove(&SHARERS, &key.shared())?;
    let digest = key.digest.clone();
    tx.emit(Some(&key.namespace), "/content/delete", &Deleted { digest })?;
    Ok(Some(record.size))
}

fn tell_labels(tx: &mut Tx<'_>, key: &Key, record: &Record) -> Result<(), Trouble> {
    let event = Updated {
        digest: key.digest.clone(),
        labels: record.labels.clone(),
    };
    Ok(tx.emit(Some(&key.namespace), "/content/update", &event)?)
}

struct Row<'a>(&'a Blob);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["digest"] => Some(Cow::Borrowed(self.0.digest.as_str())),
            ["size"] => Some(Cow::Owned(self.0.size.to_string())),
            ["labels", key @ ..] => filter::label(&self.0.labels, key),
            _ => None,
        }
    }
}
