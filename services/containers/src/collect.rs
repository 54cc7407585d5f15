//! Answers to the collector. Records are roots and are never collected; what they refer to stays.
//!
//! What is recorded lives in memory only: after a restart the generation is not open, and the collector begins again.

use crate::references;
use crate::store::{self, CONTAINERS, Result, Store, StoreError};
use contracts::collect::{Edge, Edges, References, Resource, Roots, Sweep, Swept};
use contracts::{ContainerId, Namespace};
use ledger::{Fault, Late};

/// Records of one page of roots: an edge has a few hundred bytes.
const PAGE: usize = 500;

/// Lists all records, a page at a time. Errors: `Generation`, a token that is none.
pub(crate) fn roots(store: &Store, late: &Late, request: &Roots) -> Result<Edges> {
    late.check(request.generation)
        .map_err(StoreError::Generation)?;
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
pub(crate) fn references(store: &Store, late: &Late, request: &References) -> Result<Vec<Edge>> {
    late.check(request.generation)
        .map_err(StoreError::Generation)?;
    let ids = request
        .nodes
        .iter()
        .filter_map(|node| match &node.resource {
            Resource::Container(id) => Some((&node.namespace, id)),
            _ => None,
        });
    edges(store, ids)
}

/// Removes nothing; tells what records that were written in this generation refer to. Errors: `Generation`.
pub(crate) fn sweep(late: &Late, request: &Sweep) -> Result<Swept> {
    late.check(request.generation)
        .map_err(StoreError::Generation)?;
    Ok(Swept {
        late: late.told(!request.dry_run),
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
