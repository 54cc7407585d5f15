//! What the collector asks: roots, references, and the removal of what nothing keeps.

use crate::{
    collect::edge,
    error::Trouble,
    ingest::Ingest,
    references,
    store::{BLOBS, Key, Record, Store, remove},
};
use contracts::{
    Namespace, OperationId, Ref, Timestamp,
    collect::{Count, Edge, Edges, Node, Removal, Resource, Roots, Sweep, Swept},
};
use ledger::{Snapshot, Tx};
use std::{collections::BTreeMap, sync::Arc};

/// Most blobs that one step removes: one transaction, and one message.
const STEP: usize = 256;
/// Most records that one step looks at.
const LOOK: usize = 8192;
/// Most roots of one page.
const PAGE: usize = 256;
/// Comes before the tokens of blobs, which begin with a namespace.
const INGESTS_DONE: &str = "\0";

/// Some records in key order, and where to go on.
struct Stretch {
    found: Vec<(Key, Record)>,
    /// The last key that was looked at; empty at the end.
    next: String,
}

impl Store {
    /// The records after `after` that `wanted` takes, a bounded number of them.
    fn stretch(
        &self,
        after: &str,
        most: usize,
        wanted: impl Fn(&Key, &Record) -> bool,
    ) -> Result<Stretch, Trouble> {
        let after = (!after.is_empty()).then_some(after);
        let (mut found, mut next, mut looked) = (Vec::new(), String::new(), 0);
        self.ledger().read(|snapshot: &Snapshot| {
            let mut last = String::new();
            snapshot.scan(&BLOBS, "", after, |text, record: Record| {
                if found.len() >= most || looked >= LOOK {
                    next.clone_from(&last);
                    return false;
                }
                looked += 1;
                text.clone_into(&mut last);
                if let Some(key) = Key::parse(text).filter(|key| wanted(key, &record)) {
                    found.push((key, record));
                }
                true
            })?;
            Ok::<_, Trouble>(())
        })?;
        Ok(Stretch { found, next })
    }

    /// One page of what this store keeps by itself. Blocks.
    pub(crate) fn roots(&self, roots: &Roots) -> Result<Edges, Trouble> {
        drop(self.collection().generation(roots.generation)?);
        let mut edges = Edges::default();
        if roots.token.is_empty() {
            edges.items = self.young();
            edges.next = INGESTS_DONE.into();
            return Ok(edges);
        }
        let after = roots.token.strip_prefix(INGESTS_DONE).unwrap_or_default();
        let labelled = |_: &Key, record: &Record| record.labels.contains_key(references::ROOT);
        let stretch = self.stretch(after, PAGE, labelled)?;
        let rooted = stretch.found.iter().map(|(key, _)| {
            let node = key.node();
            edge(&node, node.clone(), format!("label {}", references::ROOT))
        });
        edges.items.extend(rooted);
        if !stretch.next.is_empty() {
            edges.next = format!("{INGESTS_DONE}{}", stretch.next);
        }
        Ok(edges)
    }

    fn young(&self) -> Vec<Edge> {
        let now = Timestamp::now();
        let all = self.ingests().all(None);
        let young = all
            .iter()
            .filter(|(_, ingest)| !self.ingests().is_expired(ingest, now));
        let young = young.map(|(key, _)| {
            let node = ingest_node(key);
            edge(&node, node.clone(), "unfinished write".into())
        });
        young.collect()
    }

    /// What these nodes keep in this store and elsewhere. Blocks.
    pub(crate) fn references(&self, number: u64, nodes: &[Node]) -> Result<Vec<Edge>, Trouble> {
        self.read_back(number)?;
        let mut edges = Vec::new();
        for node in nodes {
            match &node.resource {
                Resource::Content(digest) => {
                    let key = Key::new(&node.namespace, digest);
                    // Before the record is read: labels that come later stamp the blob.
                    self.collection().generation(number)?.follows(key.clone());
                    if let Some(record) = self.record(&key)? {
                        let open = self.collection().generation(number)?;
                        edges.extend(open.edges(&key, &record));
                    }
                }
                Resource::Ingest(name) => edges.extend(self.awaited(node, name)),
                _ => edges.extend(self.collection().generation(number)?.pointing_back(node)),
            }
        }
        Ok(edges)
    }

    /// An ingest keeps the blob that it would become, which another one may have become already.
    fn awaited(&self, node: &Node, name: &Ref) -> Option<Edge> {
        let ingest = self.ingests().find(&node.namespace, name)?;
        let to = Key::new(&node.namespace, &ingest.about().expected?);
        Some(edge(node, to.node(), "unfinished write".into()))
    }

    /// Reads once per generation which blobs point back.
    fn read_back(&self, number: u64) -> Result<(), Trouble> {
        if !self.collection().generation(number)?.needs_back() {
            return Ok(());
        }
        let points_back = |key: &Key, record: &Record| {
            references::back(&key.namespace(), &record.labels)
                .next()
                .is_some()
        };
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let stretch = self.stretch(&after, usize::MAX, points_back)?;
            found.extend(stretch.found);
            after = stretch.next;
            if after.is_empty() {
                break;
            }
        }
        self.collection()
            .generation(number)?
            .set_back(found.into_iter());
        Ok(())
    }

    pub(crate) fn mark(&self, number: u64, nodes: Vec<Node>) -> Result<(), Trouble> {
        let mut open = self.collection().generation(number)?;
        nodes.into_iter().for_each(|node| open.mark(node));
        Ok(())
    }

    /// Removes some of what nothing keeps, or lists it.
    pub(crate) async fn sweep(
        &self,
        operation: &OperationId,
        sweep: Sweep,
    ) -> Result<Swept, Trouble> {
        let (store, at) = (self.clone(), sweep.clone());
        let looked = tokio::task::spawn_blocking(move || store.look(&at));
        let (mut swept, candidates) = looked.await.map_err(Trouble::worker)??;
        if sweep.dry_run {
            swept.removed.extend(
                candidates
                    .iter()
                    .map(|(key, record)| removal(key.node(), record.size, "unreferenced")),
            );
            return Ok(swept);
        }
        let keys: Vec<Key> = candidates.into_iter().map(|(key, _)| key).collect();
        if !keys.is_empty() {
            self.settle().await?;
        }
        self.take(operation, sweep.generation, swept, keys).await
    }

    /// Finds what may go, first along the stamps, then in the next stretch of records. Blocks.
    fn look(&self, sweep: &Sweep) -> Result<(Swept, Vec<(Key, Record)>), Trouble> {
        let number = sweep.generation;
        self.read_back(number)?;
        let mut swept = Swept::default();
        let after = {
            let mut open = self.collection().generation(number)?;
            swept.late = open.spread(|key| self.record(key))?;
            match sweep.dry_run {
                true => sweep.token.clone(),
                false => open.cursor.clone(),
            }
        };
        if after.is_empty() {
            swept.removed = self.expired(number, sweep.dry_run)?;
        }
        let open = self.collection().generation(number)?;
        let stretch = self.stretch(&after, STEP, |key, _| !open.keeps(key))?;
        drop(open);
        swept.done = stretch.next.is_empty();
        swept.next = stretch.next;
        Ok((swept, stretch.found))
    }

    fn expired(&self, number: u64, dry_run: bool) -> Result<Vec<Removal>, Trouble> {
        let (now, mut removed) = (Timestamp::now(), Vec::new());
        for (key, ingest) in self.ingests().all(None) {
            let node = ingest_node(&key);
            if self.collection().generation(number)?.keeps_ingest(&node) {
                continue;
            }
            if self.expire(&ingest, now, dry_run) {
                removed.push(removal(node, ingest.status().offset, "expired"));
            }
            if removed.len() >= STEP {
                break;
            }
        }
        Ok(removed)
    }

    fn expire(&self, ingest: &Arc<Ingest>, now: Timestamp, dry_run: bool) -> bool {
        match dry_run {
            true => self.ingests().is_expired(ingest, now),
            false => self.ingests().expire(ingest, now),
        }
    }

    /// Removes records that are still kept by nothing, then bytes that no record names.
    async fn take(
        &self,
        operation: &OperationId,
        number: u64,
        mut swept: Swept,
        candidates: Vec<Key>,
    ) -> Result<Swept, Trouble> {
        let cursor = std::mem::take(&mut swept.next);
        let store = self.clone();
        let take = move |tx: &mut Tx<'_>| {
            let mut swept = swept.clone();
            for key in store.collection().doom(number, &candidates)? {
                if let Some(size) = remove(tx, &key)? {
                    swept
                        .removed
                        .push(removal(key.node(), size, "unreferenced"));
                }
            }
            Ok::<_, Trouble>(swept)
        };
        let swept = self.ledger().write(Some(operation), take).await;
        self.collection().removed();
        let swept = swept?;
        if let Ok(mut open) = self.collection().generation(number) {
            open.cursor = cursor;
        }
        for removed in &swept.removed {
            if let Resource::Content(digest) = &removed.node.resource {
                self.release(digest).await?;
            }
        }
        Ok(swept)
    }

    /// How many blobs and ingests each namespace has. Blocks.
    pub(crate) fn tally(&self, namespace: Option<&Namespace>) -> Result<Vec<Count>, Trouble> {
        let mut counts: BTreeMap<(Namespace, &str), u64> = BTreeMap::new();
        let prefix = namespace.map(|namespace| format!("{namespace}\0"));
        self.ledger().read(|snapshot: &Snapshot| {
            let prefix = prefix.as_deref().unwrap_or_default();
            snapshot.scan(&BLOBS, prefix, None, |text, _: Record| {
                if let Some(key) = Key::parse(text) {
                    *counts.entry((key.namespace(), "blobs")).or_default() += 1;
                }
                true
            })?;
            Ok::<_, Trouble>(())
        })?;
        for ((namespace, _), _) in self.ingests().all(namespace) {
            *counts.entry((namespace, "ingests")).or_default() += 1;
        }
        let counts = counts.into_iter().map(|((namespace, what), count)| Count {
            namespace,
            what: what.into(),
            count,
        });
        Ok(counts.collect())
    }
}

fn ingest_node((namespace, name): &(Namespace, Ref)) -> Node {
    Node {
        namespace: namespace.clone(),
        resource: Resource::Ingest(name.clone()),
    }
}

fn removal(node: Node, size: u64, reason: &str) -> Removal {
    Removal {
        node,
        size,
        reason: reason.into(),
    }
}
