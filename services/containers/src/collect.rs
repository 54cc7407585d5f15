//! Answers to the collector. Records are roots and are never collected; what they refer to stays.
//!
//! Stamps live in memory only: after a restart the generation is not open, and the collector begins again.

use crate::references;
use crate::store::{self, CONTAINERS, Result, Store, StoreError};
use contracts::collect::{Begin, Edge, Edges, References, Resource, Roots, Sweep, Swept};
use contracts::{ContainerId, Namespace};
use ledger::Fault;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Records of one page of roots: an edge has a few hundred bytes.
const PAGE: usize = 500;

/// The open generation and the records that were made or changed in it. Clones share both.
#[derive(Clone, Default)]
pub(crate) struct Stamps(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    generation: u64,
    fresh: BTreeSet<(Namespace, ContainerId)>,
}

impl Stamps {
    /// Opens a generation. Opening the open one again, or an older one, changes nothing.
    pub(crate) fn begin(&self, request: &Begin) {
        let mut open = self.lock();
        if request.generation > open.generation {
            *open = Open {
                generation: request.generation,
                fresh: BTreeSet::new(),
            };
        }
    }

    /// Stamps a record that is about to be written: whoever sees the write then sees the stamp.
    pub(crate) fn stamp(&self, namespace: &Namespace, id: &ContainerId) {
        let mut open = self.lock();
        if open.generation > 0 {
            open.fresh.insert((namespace.clone(), id.clone()));
        }
    }

    /// Checks that `generation` is the open one. Errors: `Generation`.
    pub(crate) fn check(&self, generation: u64) -> Result<()> {
        if generation > 0 && self.lock().generation == generation {
            return Ok(());
        }
        Err(StoreError::Generation(generation))
    }

    fn fresh(&self) -> Vec<(Namespace, ContainerId)> {
        self.lock().fresh.iter().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        // Nothing in the critical sections can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lists all records, a page at a time. Errors: `Generation`, a token that is none.
pub(crate) fn roots(store: &Store, stamps: &Stamps, request: &Roots) -> Result<Edges> {
    stamps.check(request.generation)?;
    let after = after(&request.token)?;
    let mut edges = Edges::default();
    let mut last = String::new();
    store.read(|snapshot| {
        Ok(
            snapshot.scan(&CONTAINERS, "", after.as_deref(), |key, container| {
                if edges.items.len() == PAGE {
                    edges.next = last.replace('\0', "/");
                    return false;
                }
                let namespace = store::namespace_of(key);
                edges
                    .items
                    .extend(namespace.map(|namespace| references::root(&namespace, &container)));
                key.clone_into(&mut last);
                true
            })?,
        )
    })?;
    Ok(edges)
}

/// A token is `namespace/id` of the last record of the page before.
fn after(token: &str) -> Result<Option<String>> {
    if token.is_empty() {
        return Ok(None);
    }
    let key = token.split_once('/').and_then(|(namespace, id)| {
        let (namespace, id) = (Namespace::new(namespace).ok()?, ContainerId::new(id).ok()?);
        Some(format!("{namespace}\0{id}"))
    });
    key.map(Some)
        .ok_or_else(|| Fault::Token(token.to_owned()).into())
}

/// Lists what records refer to. Errors: `Generation`.
pub(crate) fn references(
    store: &Store,
    stamps: &Stamps,
    request: &References,
) -> Result<Vec<Edge>> {
    stamps.check(request.generation)?;
    let ids = request
        .nodes
        .iter()
        .filter_map(|node| match &node.resource {
            Resource::Container(id) => Some((&node.namespace, id)),
            _ => None,
        });
    edges(store, ids)
}

/// Removes nothing; tells what records of this generation refer to. Errors: `Generation`.
pub(crate) fn sweep(store: &Store, stamps: &Stamps, request: &Sweep) -> Result<Swept> {
    stamps.check(request.generation)?;
    let fresh = stamps.fresh();
    Ok(Swept {
        late: edges(store, fresh.iter().map(|(namespace, id)| (namespace, id)))?,
        done: true,
        ..Swept::default()
    })
}

fn edges<'a>(
    store: &Store,
    ids: impl Iterator<Item = (&'a Namespace, &'a ContainerId)>,
) -> Result<Vec<Edge>> {
    store.read(|snapshot| {
        let mut edges = Vec::new();
        for (namespace, id) in ids {
            let container = Store::find(snapshot, namespace, id)?;
            edges.extend(
                container
                    .iter()
                    .flat_map(|one| references::of(namespace, one)),
            );
        }
        Ok(edges)
    })
}
