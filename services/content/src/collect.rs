//! What the collector's generation knows of this store: marks, stamps, and what is about to go.
//!
//! A stamp is made whenever a blob is created, labelled or read for use while a generation is open. A sweep first goes
//! from the stamped blobs along their references, then takes what has neither mark nor stamp. The decision and every
//! stamp are made under one lock, so a blob is either spared or already gone for whoever asks.

use crate::{
    error::Trouble,
    references,
    store::{Key, Record},
};
use contracts::collect::{Edge, Node, Resource};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
pub(crate) struct Collection {
    open: Mutex<Generation>,
}

#[derive(Default)]
pub(crate) struct Generation {
    number: Option<u64>,
    /// Blobs that stay, and those of them whose references were followed.
    marks: HashSet<Key>,
    followed: HashSet<Key>,
    /// Blobs that were touched, and those of them that no sweep has looked at.
    stamps: HashSet<Key>,
    fresh: Vec<Key>,
    /// Ingests that stay.
    ingests: BTreeSet<Node>,
    /// Blobs that are kept by what they point back to; read when first asked for.
    back: Option<HashMap<Node, Vec<(Key, String)>>>,
    /// Blobs that are being removed: for everybody else they are gone.
    doomed: HashSet<Key>,
    /// Where the next sweep goes on.
    pub(crate) cursor: String,
}

impl Collection {
    fn lock(&self) -> MutexGuard<'_, Generation> {
        // Whoever panicked has ended the process already.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a generation and forgets the one before.
    pub(crate) fn begin(&self, number: u64) {
        let mut open = self.lock();
        let doomed = std::mem::take(&mut open.doomed);
        *open = Generation {
            number: Some(number),
            doomed,
            ..Generation::default()
        };
    }

    /// The open generation. Errors: `Generation` when it is another one.
    pub(crate) fn generation(&self, number: u64) -> Result<MutexGuard<'_, Generation>, Trouble> {
        let open = self.lock();
        match open.number == Some(number) {
            true => Ok(open),
            false => Err(Trouble::Generation(number)),
        }
    }

    /// Stamps a blob that is made or used; false when it is about to go.
    pub(crate) fn touch(&self, key: &Key) -> bool {
        let mut open = self.lock();
        if open.doomed.contains(key) {
            return false;
        }
        open.stamp(key);
        true
    }

    /// Stamps a blob that is made anew, though its predecessor may be going.
    pub(crate) fn create(&self, key: &Key) {
        self.lock().stamp(key);
    }

    /// Nothing is about to go any more.
    pub(crate) fn removed(&self) {
        self.lock().doomed.clear();
    }

    /// Of some blobs, dooms those that nothing keeps, and only those.
    pub(crate) fn doom(&self, number: u64, candidates: &[Key]) -> Result<Vec<Key>, Trouble> {
        let mut open = self.generation(number)?;
        let doomed: Vec<Key> = candidates
            .iter()
            .filter(|key| !open.keeps(key))
            .cloned()
            .collect();
        open.doomed = doomed.iter().cloned().collect();
        Ok(doomed)
    }
}

impl Generation {
    fn stamp(&mut self, key: &Key) {
        if self.number.is_some() && self.stamps.insert(key.clone()) {
            self.fresh.push(key.clone());
        }
    }

    pub(crate) fn keeps(&self, key: &Key) -> bool {
        self.marks.contains(key) || self.stamps.contains(key)
    }

    pub(crate) fn keeps_ingest(&self, node: &Node) -> bool {
        self.ingests.contains(node)
    }

    pub(crate) fn mark(&mut self, node: Node) {
        match &node.resource {
            Resource::Content(digest) => {
                self.marks.insert(Key::new(&node.namespace, digest));
            }
            Resource::Ingest(_) => {
                self.ingests.insert(node);
            }
            _ => {}
        }
    }

    /// The collector follows the references of this blob itself.
    pub(crate) fn follows(&mut self, key: Key) {
        self.followed.insert(key);
    }

    pub(crate) fn needs_back(&self) -> bool {
        self.back.is_none()
    }

    pub(crate) fn set_back(&mut self, records: impl Iterator<Item = (Key, Record)>) {
        let mut back: HashMap<Node, Vec<(Key, String)>> = HashMap::new();
        for (key, record) in records {
            let namespace = key.namespace();
            for (node, reason) in references::back(&namespace, &record.labels) {
                back.entry(node).or_default().push((key.clone(), reason));
            }
        }
        self.back = Some(back);
    }

    /// The blobs that are kept because they point back to `node`.
    pub(crate) fn pointing_back(&self, node: &Node) -> Vec<Edge> {
        let kept = self.back.as_ref().and_then(|back| back.get(node));
        let kept = kept.into_iter().flatten();
        kept.map(|(key, reason)| edge(node, key.node(), reason.clone()))
            .collect()
    }

    /// Goes along the references of stamped blobs. What leads out of the store is answered.
    pub(crate) fn spread(
        &mut self,
        mut look: impl FnMut(&Key) -> Result<Option<Record>, Trouble>,
    ) -> Result<Vec<Edge>, Trouble> {
        let (mut late, mut queue) = (Vec::new(), std::mem::take(&mut self.fresh));
        // A stamped blob may have got labels after the collector followed it.
        queue.iter().for_each(|key| {
            self.followed.remove(key);
        });
        while let Some(key) = queue.pop() {
            if !self.followed.insert(key.clone()) {
                continue;
            }
            let Some(record) = look(&key)? else {
                continue;
            };
            for edge in self.edges(&key, &record) {
                match &edge.to.resource {
                    Resource::Content(digest) => {
                        let to = Key::new(&edge.to.namespace, digest);
                        self.marks.insert(to.clone());
                        queue.push(to);
                    }
                    _ => late.push(edge),
                }
            }
        }
        Ok(late)
    }

    /// What a blob keeps: what its labels name, and what points back to it.
    pub(crate) fn edges(&self, key: &Key, record: &Record) -> Vec<Edge> {
        let from = key.node();
        let mut edges = self.pointing_back(&from);
        let namespace = key.namespace();
        let forward = references::forward(&namespace, &record.labels);
        edges.extend(forward.map(|(to, reason)| edge(&from, to, reason)));
        edges
    }
}

pub(crate) fn edge(from: &Node, to: Node, reason: String) -> Edge {
    Edge {
        from: from.clone(),
        to,
        reason,
        flat: false,
    }
}
