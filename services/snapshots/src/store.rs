//! The rules of snapshots: which changes are allowed, in which order records and directories come and go.

use crate::config::Config;
use crate::driver::{Driver, Shape, wants_rebase};
use crate::error::{Error, Result};
use crate::folders::{Draft, Folders};
use crate::native::Native;
use crate::record::{self, Look, Record, SNAPSHOTS, place};
use crate::references;
use crate::stamps::{Held, Stamps};
use crate::tree;
use contracts::collect::Resource;
use contracts::snapshots::{
    Commit, Committed, Info, Prepared, Removed, SnapshotKind, Update, Updated, Used,
};
use contracts::{Labels, Mount, Namespace, OperationId, Page, Paging, SnapshotKey, check_labels};
use filter::{Fields, Filters};
use ledger::{Ledger, LedgerConfig, Tx};
use std::borrow::Cow;
use std::collections::HashSet;
use std::future::poll_fn;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::task::Poll;

/// All snapshots of one driver.
pub(crate) struct Store {
    pub(crate) ledger: Ledger,
    pub(crate) folders: Arc<Folders>,
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) stamps: Stamps,
    /// What the open generation will remove; see `collection.rs`.
    pub(crate) plan: Mutex<Option<crate::collection::Plan>>,
    /// Commits enter the ledger in the order in which they came.
    commits: tokio::sync::Mutex<()>,
}

/// A snapshot that somebody wants.
#[derive(Clone)]
pub(crate) struct New {
    pub(crate) ns: Namespace,
    pub(crate) key: SnapshotKey,
    pub(crate) parent: Option<SnapshotKey>,
    pub(crate) labels: Labels,
    /// Active or view.
    pub(crate) kind: SnapshotKind,
}

impl Store {
    /// Opens the store, or makes it. Blocks. Removes what a predecessor left, in the background.
    pub(crate) fn open(root: &Path, driver: Box<dyn Driver>, config: &Config) -> Result<Self> {
        let ledger = Ledger::open(root.join("snapshots.redb"), LedgerConfig::FIRST)?;
        let next = ledger.read(record::next)?;
        let folders = Folders::open(root, next, config.sync)?;
        let (cleaning, known) = (Arc::downgrade(&folders), ledger.clone());
        folders.in_background(move || {
            let cleaned = cleaning
                .upgrade()
                .map_or(Ok(()), |folders| folders.clean(|| numbers(&known)));
            if let Err(error) = cleaned {
                tracing::warn!(%error, "leftovers stay until the next start");
            }
        });
        Ok(Self::with(ledger, folders, driver))
    }

    /// Opens the store of a plugin that does not run, and removes nothing. Blocks.
    pub(crate) fn looking(root: &Path) -> Result<Self> {
        let ledger = Ledger::open(root.join("snapshots.redb"), LedgerConfig::FIRST)?;
        let next = ledger.read(record::next)?;
        let folders = Folders::open(root, next, true)?;
        Ok(Self::with(ledger, folders, Box::new(Native)))
    }

    fn with(ledger: Ledger, folders: Arc<Folders>, driver: Box<dyn Driver>) -> Self {
        Self {
            ledger,
            folders,
            driver,
            stamps: Stamps::default(),
            plan: Mutex::default(),
            commits: tokio::sync::Mutex::default(),
        }
    }

    /// Makes an active or view snapshot and answers its mounts.
    pub(crate) async fn make(self: &Arc<Self>, new: New, op: &OperationId) -> Result<Vec<Mount>> {
        check_labels(&new.labels)?;
        let named = [Some(&new.key), new.parent.as_ref()];
        let _held = self.hold(&new.ns, named.into_iter().flatten(), &new.labels);
        loop {
            let draft = self.draft(new.clone()).await?;
            faults::point("snapshots.prepare.made");
            match self.write_down(&new, draft.as_ref(), op).await {
                Err(Error::Overtaken) => {}
                Err(error) => return Err(error),
                Ok(shape) => {
                    faults::point("snapshots.prepare.recorded");
                    // A repetition is answered with the first one's directory; its own goes.
                    draft
                        .filter(|(draft, _)| draft.number == shape.number)
                        .into_iter()
                        .for_each(|(draft, _)| draft.keep());
                    return Ok(self.driver.mounts(&self.folders, &shape));
                }
            }
        }
    }

    /// Makes the directory before there is a record, together with the parent's number that it was made from.
    ///
    /// None when there will be no record: the write finds out why, or that it was done before.
    async fn draft(self: &Arc<Self>, new: New) -> Result<Option<(Draft, Vec<u64>)>> {
        let store = self.clone();
        blocking(move || {
            let planned = store.ledger.read(|look| plan(look, &new));
            let Ok(chain) = planned else { return Ok(None) };
            let draft = store.folders.draft()?;
            let parent = chain.first().map(|&number| store.folders.fs(number));
            let folder = store.folders.folder(draft.number);
            match store.driver.fill(&folder, new.kind, parent.as_deref()) {
                Ok(()) => Ok(Some((draft, chain))),
                // The parent went while it was read: that is the answer, not what reading it said.
                Err(_) if store.ledger.read(|look| plan(look, &new)).is_err() => Ok(None),
                Err(error) => Err(match (&new.parent, &parent) {
                    (Some(key), Some(fs)) if !fs.exists() => Error::Gone(key.clone()),
                    _ => error,
                }),
            }
        })
        .await
    }

    async fn write_down(
        &self,
        new: &New,
        draft: Option<&(Draft, Vec<u64>)>,
        op: &OperationId,
    ) -> Result<Shape> {
        let (new, snapshotter) = (new.clone(), self.driver.name());
        let layer = new.parent.is_none() && self.driver.rebase() && wants_rebase(&new.labels);
        let drafted = draft.map(|(draft, chain)| (draft.number, chain.clone()));
        self.ledger
            .write(Some(op), move |tx| {
                let chain = plan(tx, &new)?;
                let Some((number, _)) = drafted.as_ref().filter(|(_, from)| *from == chain) else {
                    return Err(Error::Overtaken);
                };
                let record = Record {
                    number: *number,
                    kind: new.kind,
                    parent: new.parent.clone(),
                    layer,
                    labels: new.labels.clone(),
                    created_at: tx.now,
                    updated_at: tx.now,
                    used: None,
                };
                record::add(tx, &new.ns, &new.key, &record)?;
                record::used_up(tx, *number)?;
                let event = Prepared {
                    key: new.key.clone(),
                    parent: new.parent.clone(),
                    snapshotter: snapshotter.into(),
                    kind: new.kind,
                    labels: new.labels.clone(),
                };
                tx.emit(Some(&new.ns), "/snapshot/prepare", &event)?;
                Ok(shape(&record, chain))
            })
            .await
    }

    /// Answers the mounts of an active or view snapshot. Blocks.
    pub(crate) fn mounts(&self, ns: &Namespace, key: &SnapshotKey) -> Result<Vec<Mount>> {
        self.touch(ns, key)?;
        let shape = self.ledger.read(|look| {
            let record = found(look, ns, key)?;
            if record.kind == SnapshotKind::Committed {
                return Err(Error::Committed(key.clone()));
            }
            let chain = chain(look, ns, record.parent.as_ref())?;
            Ok(shape(&record, chain))
        })?;
        self.restore(&shape)?;
        Ok(self.driver.mounts(&self.folders, &shape))
    }

    /// A record outlives a power cut, a directory made just before may not: what it held was never promised.
    fn restore(&self, shape: &Shape) -> Result<()> {
        let folder = self.folders.folder(shape.number);
        if folder.join("fs").exists() {
            return Ok(());
        }
        tracing::warn!(
            number = shape.number,
            "directory was lost and is made again"
        );
        self.folders.restore(shape.number)?;
        let parent = shape.chain.first().map(|&number| self.folders.fs(number));
        self.driver.fill(&folder, shape.kind, parent.as_deref())
    }

    /// Turns an active snapshot into a committed one.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        ns: Namespace,
        commit: Commit,
        op: &OperationId,
    ) -> Result<()> {
        check_labels(&commit.labels)?;
        let named = [
            Some(&commit.key),
            Some(&commit.name),
            commit.parent.as_ref(),
        ];
        let _held = self.hold(&ns, named.into_iter().flatten(), &commit.labels);
        // Directories are synced side by side; the records follow in order, for each may name the one before as parent.
        let synced = self.sync(ns.clone(), commit.key.clone());
        let (turn, synced) = tokio::join!(self.commits.lock(), synced);
        synced?;
        faults::point("snapshots.commit.synced");
        let (snapshotter, rebases) = (self.driver.name(), self.driver.rebase());
        let write = self.ledger.write(Some(op), move |tx| {
            let before = found(tx, &ns, &commit.key)?;
            let after = committed(tx, &ns, &commit, &before, rebases)?;
            record::forget(tx, &ns, &commit.key, &before)?;
            record::add(tx, &ns, &commit.name, &after)?;
            let event = Committed {
                key: commit.key.clone(),
                name: commit.name.clone(),
                snapshotter: snapshotter.into(),
                parent: after.parent.clone(),
                labels: after.labels.clone(),
            };
            Ok(tx.emit(Some(&ns), "/snapshot/commit", &event)?)
        });
        let mut write = std::pin::pin!(write);
        // Once looked at it is queued, and the next may follow.
        let looked = poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx))).await;
        drop(turn);
        let done = match looked {
            Poll::Ready(done) => done,
            Poll::Pending => write.await,
        };
        faults::point("snapshots.commit.recorded");
        done
    }

    /// Brings the directory itself to disk; the files in it are the business of who wrote them.
    async fn sync(self: &Arc<Self>, ns: Namespace, key: SnapshotKey) -> Result<()> {
        let store = self.clone();
        blocking(move || {
            let record = store.ledger.read(|look| look.record(&ns, &key))?;
            match record.filter(|record| record.kind == SnapshotKind::Active) {
                Some(record) => store.folders.sync(record.number),
                None => Ok(()),
            }
        })
        .await
    }

    /// Removes a snapshot: the record now, the files soon.
    pub(crate) async fn remove(
        &self,
        ns: Namespace,
        key: SnapshotKey,
        op: &OperationId,
    ) -> Result<()> {
        let snapshotter = self.driver.name();
        let number = self
            .ledger
            .write(Some(op), move |tx| {
                remove(tx, &ns, &key, snapshotter).map(|gone| gone.number)
            })
            .await?;
        faults::point("snapshots.remove.recorded");
        self.folders.discard(number);
        faults::point("snapshots.remove.moved");
        Ok(())
    }

    /// Looks up one snapshot. Blocks.
    pub(crate) fn stat(&self, ns: &Namespace, key: &SnapshotKey) -> Result<Info> {
        self.touch(ns, key)?;
        let record = self.ledger.read(|look| found(look, ns, key))?;
        self.touch_references(ns, &record.labels);
        Ok(record.info(key.clone()))
    }

    /// Changes labels.
    pub(crate) async fn update(
        &self,
        ns: Namespace,
        update: Update,
        op: &OperationId,
    ) -> Result<Info> {
        let set = update.labels.set.iter();
        let labels = set.filter_map(|(label, value)| Some((label.clone(), value.clone()?)));
        let _held = self.hold(&ns, [&update.key], &labels.collect());
        let snapshotter = self.driver.name();
        self.ledger
            .write(Some(op), move |tx| {
                let before = found(tx, &ns, &update.key)?;
                let mut after = before.clone();
                update.labels.apply(&mut after.labels)?;
                after.updated_at = tx.now;
                record::forget(tx, &ns, &update.key, &before)?;
                record::add(tx, &ns, &update.key, &after)?;
                let event = Updated {
                    key: update.key.clone(),
                    snapshotter: snapshotter.into(),
                    labels: after.labels.clone(),
                };
                tx.emit(Some(&ns), "/snapshot/update", &event)?;
                Ok(after.info(update.key.clone()))
            })
            .await
    }

    /// Lists snapshots of one namespace, by key. Blocks.
    pub(crate) fn list(&self, ns: &Namespace, paging: &Paging) -> Result<Page<Info>> {
        let filters = Filters::parse(&paging.filters)
            .map_err(|e| contracts::Error::invalid(e.to_string()))?;
        let prefix = format!("{ns}\0");
        let keep = |place: &str, record: Record| {
            let (_, key) = record::named(place)?;
            let row = Row(record.info(key));
            filters.matches(&row).then_some(row.0)
        };
        self.ledger
            .read(|look| Ok(ledger::page(look, &SNAPSHOTS, &prefix, paging, keep)?))
    }

    /// Measures what a snapshot itself holds; once only when it is committed.
    pub(crate) async fn usage(self: &Arc<Self>, ns: Namespace, key: SnapshotKey) -> Result<Used> {
        let record = self.ledger.read(|look| found(look, &ns, &key))?;
        if let Some(used) = record.used {
            return Ok(used);
        }
        let fs = self.folders.fs(record.number);
        let used = blocking(move || tree::usage(&fs)).await?;
        if record.kind == SnapshotKind::Committed {
            self.remember(ns, key, record.number, used).await?;
        }
        Ok(used)
    }

    async fn remember(
        &self,
        ns: Namespace,
        key: SnapshotKey,
        number: u64,
        used: Used,
    ) -> Result<()> {
        self.ledger
            .write(None, move |tx| {
                let now = tx.record(&ns, &key)?.filter(|now| now.number == number);
                if let Some(mut record) = now {
                    record.used = Some(used);
                    tx.put(&SNAPSHOTS, &place(&ns, &key), &record)?;
                }
                Ok(())
            })
            .await
    }

    /// Keeps what a write is about, and what its labels refer to, from collection.
    fn hold<'a>(
        &self,
        ns: &Namespace,
        keys: impl IntoIterator<Item = &'a SnapshotKey>,
        labels: &Labels,
    ) -> Held {
        let own = keys.into_iter().map(|key| place(ns, key));
        self.stamps
            .hold(own.chain(self.own_references(ns, labels)).collect())
    }

    /// Keeps a snapshot that is about to be used from collection. Errors: `Missing` when one removes it already.
    fn touch(&self, ns: &Namespace, key: &SnapshotKey) -> Result<()> {
        let spared = self.stamps.touch(&place(ns, key));
        spared
            .then_some(())
            .ok_or_else(|| Error::Missing(key.clone()))
    }

    fn touch_references(&self, ns: &Namespace, labels: &Labels) {
        self.own_references(ns, labels).for_each(|place| {
            self.stamps.touch(&place);
        });
    }

    /// Rows of this driver that labels refer to.
    pub(crate) fn own_references<'a>(
        &'a self,
        ns: &'a Namespace,
        labels: &'a Labels,
    ) -> impl Iterator<Item = String> + 'a {
        references::forward(labels).filter_map(|(_, resource)| self.own(ns, &resource))
    }

    /// The row of a resource of this driver.
    pub(crate) fn own(&self, ns: &Namespace, resource: &Resource) -> Option<String> {
        match resource {
            Resource::Snapshot { driver, key } if driver == self.driver.name() => {
                Some(place(ns, key))
            }
            _ => None,
        }
    }
}

/// Runs `work` where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(contracts::Error::internal(format!("disk work: {e}")).into()),
    }
}

/// The directories of the parents of a snapshot that may be made.
fn plan(look: &impl Look, new: &New) -> Result<Vec<u64>> {
    if look.record(&new.ns, &new.key)?.is_some() {
        return Err(Error::Exists(new.key.clone()));
    }
    if let Some(parent) = &new.parent {
        check_parent(look, &new.ns, parent)?;
    }
    chain(look, &new.ns, new.parent.as_ref())
}

fn check_parent(look: &impl Look, ns: &Namespace, parent: &SnapshotKey) -> Result<()> {
    match look.record(ns, parent)? {
        None => Err(Error::MissingParent(parent.clone())),
        Some(record) if record.kind == SnapshotKind::Committed => Ok(()),
        Some(_) => Err(Error::OpenParent(parent.clone())),
    }
}

/// Directories from `parent` down, nearest first.
fn chain(look: &impl Look, ns: &Namespace, parent: Option<&SnapshotKey>) -> Result<Vec<u64>> {
    let (mut numbers, mut next) = (Vec::new(), parent.cloned());
    while let Some(key) = next {
        let record = look.record(ns, &key)?.ok_or(Error::MissingParent(key))?;
        numbers.push(record.number);
        next = record.parent;
    }
    Ok(numbers)
}

fn found(look: &impl Look, ns: &Namespace, key: &SnapshotKey) -> Result<Record> {
    look.record(ns, key)?
        .ok_or_else(|| Error::Missing(key.clone()))
}

fn shape(record: &Record, chain: Vec<u64>) -> Shape {
    Shape {
        number: record.number,
        kind: record.kind,
        layer: record.layer,
        chain,
    }
}

/// The record that an active one becomes.
fn committed(
    tx: &Tx<'_>,
    ns: &Namespace,
    commit: &Commit,
    before: &Record,
    rebases: bool,
) -> Result<Record> {
    if before.kind != SnapshotKind::Active {
        return Err(Error::NotActive(commit.key.clone(), kind(before.kind)));
    }
    if tx.record(ns, &commit.name)?.is_some() {
        return Err(Error::Exists(commit.name.clone()));
    }
    let mut after = before.clone();
    match (&before.parent, &commit.parent) {
        (_, None) => {}
        (Some(has), Some(wanted)) if has == wanted => {}
        (Some(has), Some(_)) => {
            let (key, has) = (commit.key.clone(), has.clone());
            return Err(Error::OtherParent { key, has });
        }
        (None, Some(_)) if !rebases => return Err(Error::CannotRebase(commit.key.clone())),
        (None, Some(wanted)) => {
            check_parent(tx, ns, wanted)?;
            after.parent = Some(wanted.clone());
        }
    }
    after.kind = SnapshotKind::Committed;
    after.labels = commit.labels.clone();
    after.updated_at = tx.now;
    Ok(after)
}

/// Removes a record that nothing stands on, and says so. Answers what it was.
pub(crate) fn remove(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    key: &SnapshotKey,
    snapshotter: &str,
) -> Result<Record> {
    let record = found(tx, ns, key)?;
    if let Some(child) = tx.child(&place(ns, key))? {
        let key = key.clone();
        return Err(Error::HasChild { key, child });
    }
    record::forget(tx, ns, key, &record)?;
    let event = Removed {
        key: key.clone(),
        snapshotter: snapshotter.into(),
    };
    tx.emit(Some(ns), "/snapshot/remove", &event)?;
    Ok(record)
}

/// The directories that have a record.
pub(crate) fn numbers(ledger: &Ledger) -> Result<HashSet<u64>> {
    let mut numbers = HashSet::new();
    ledger.read(|look| {
        look.scan(&SNAPSHOTS, "", None, |_, record| {
            numbers.insert(record.number);
            true
        })
    })?;
    Ok(numbers)
}

struct Row(Info);

impl Fields for Row {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => Some(self.0.key.as_str().into()),
            ["parent"] => self.0.parent.as_ref().map(|parent| parent.as_str().into()),
            ["kind"] => Some(kind(self.0.kind).into()),
            ["labels", rest @ ..] => filter::label(&self.0.labels, rest),
            _ => None,
        }
    }
}

fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Active => "active",
        SnapshotKind::View => "view",
        SnapshotKind::Committed => "committed",
    }
}
