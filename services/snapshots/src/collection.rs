//! This owner's part of garbage collection. See contracts, `collect`, for the whole.
//!
//! A snapshot stays when it is marked, touched since the generation began, the parent of one that stays, or named by the
//! labels of one that stays. What goes is planned once per generation, children before parents, and removed a few at a
//! time; each is looked at again in the transaction that removes it.

use crate::error::Result;
use crate::record::{self, Look, Record, SNAPSHOTS, named, place};
use crate::references;
use crate::store::{self, Store};
use contracts::collect::{
    Count, Edge, Edges, Mark, Node, References, Removal, Resource, Roots, Sweep, Swept, Tally,
};
use contracts::{Namespace, OperationId, SnapshotKey};
use ledger::{Snapshot, Tx};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Rows that one page of roots looks at, and removals that one page of a dry run lists.
const PAGE: usize = 500;
/// Snapshots that one step removes, in one transaction.
const STEP: usize = 64;

/// What a generation will remove, children first, and how far it is.
pub(crate) struct Plan {
    generation: u64,
    doomed: Arc<Vec<String>>,
    done: usize,
}

/// What one step did, as it is recorded.
#[derive(Clone, Serialize, Deserialize)]
struct Step {
    generation: u64,
    removed: Vec<Removal>,
    /// Their directories.
    numbers: Vec<u64>,
    /// How far the plan is then.
    done: usize,
}

impl Store {
    /// Opens a generation.
    pub(crate) fn begin(&self, generation: u64) {
        *self.plan() = None;
        self.stamps.begin(generation);
    }

    /// Snapshots that a label makes roots. Active ones are not: who uses them refers to them. Blocks.
    pub(crate) fn roots(&self, asked: &Roots) -> Result<Edges> {
        self.stamps.check(asked.generation)?;
        let after = (!asked.token.is_empty()).then_some(asked.token.as_str());
        let (mut edges, mut seen, mut last) = (Edges::default(), 0, String::new());
        self.ledger.read(|look| {
            look.scan(&SNAPSHOTS, "", after, |place, record| {
                if seen == PAGE {
                    edges.next = std::mem::take(&mut last);
                    return false;
                }
                seen += 1;
                place.clone_into(&mut last);
                edges.items.extend(self.root(place, &record));
                true
            })
        })?;
        Ok(edges)
    }

    fn root(&self, place: &str, record: &Record) -> Option<Edge> {
        record.labels.contains_key(references::ROOT).then_some(())?;
        let node = self.node(place)?;
        Some(edge(
            &node,
            node.clone(),
            format!("label {}", references::ROOT),
        ))
    }

    /// What nodes keep: parents, what labels name, and what points back to them. Blocks.
    pub(crate) fn references(&self, asked: &References) -> Result<Vec<Edge>> {
        self.stamps.check(asked.generation)?;
        self.ledger.read(|look| {
            let mut edges = Vec::new();
            for node in &asked.nodes {
                edges.extend(self.forward(look, node)?);
                edges.extend(self.back(look, node)?);
            }
            Ok(edges)
        })
    }

    fn forward(&self, look: &impl Look, node: &Node) -> Result<Vec<Edge>> {
        let Some(place) = self.own(&node.namespace, &node.resource) else {
            return Ok(Vec::new());
        };
        let record = look.get(&SNAPSHOTS, &place)?;
        Ok(record.map_or_else(Vec::new, |record| self.edges(node, &record)))
    }

    fn edges(&self, node: &Node, record: &Record) -> Vec<Edge> {
        let to = |resource| Node {
            namespace: node.namespace.clone(),
            resource,
        };
        let parent = record
            .parent
            .clone()
            .map(|key| (self.resource(key), "parent".to_owned()));
        let labels = references::forward(&record.labels)
            .map(|(label, resource)| (resource, format!("label {label}")));
        parent
            .into_iter()
            .chain(labels)
            .map(|(resource, reason)| edge(node, to(resource), reason))
            .collect()
    }

    fn back(&self, look: &impl Look, node: &Node) -> Result<Vec<Edge>> {
        let keys = look.pointing_back(&node.namespace, &node.resource)?;
        let to = |key| Node {
            namespace: node.namespace.clone(),
            resource: self.resource(key),
        };
        let reason = || "label containerd.io/gc.bref".to_owned();
        Ok(keys
            .into_iter()
            .map(|key| edge(node, to(key), reason()))
            .collect())
    }

    /// Learns what roots reach.
    pub(crate) fn mark(&self, asked: &Mark) -> Result<()> {
        self.stamps.check(asked.generation)?;
        asked
            .nodes
            .iter()
            .filter_map(|node| self.own(&node.namespace, &node.resource))
            .for_each(|place| self.stamps.mark(place));
        Ok(())
    }

    /// Removes some of what nothing keeps, or lists it.
    pub(crate) async fn sweep(self: &Arc<Self>, asked: Sweep, op: &OperationId) -> Result<Swept> {
        if self.stamps.check(asked.generation).is_err() {
            // A step that a predecessor did has its answer; any other fails in the same way.
            return self.step(asked.generation, Vec::new(), 0, 0, op).await;
        }
        let (store, generation) = (self.clone(), asked.generation);
        let (doomed, done) = store::blocking(move || store.planned(generation)).await?;
        if asked.dry_run {
            return self.listed(&doomed, &asked.token);
        }
        let some: Vec<String> = doomed.iter().skip(done).take(STEP).cloned().collect();
        self.step(asked.generation, some, done, doomed.len(), op)
            .await
    }

    /// The plan of the open generation and how far it is. Blocks.
    fn planned(&self, generation: u64) -> Result<(Arc<Vec<String>>, usize)> {
        self.stamps.check(generation)?;
        if let Some(plan) = self
            .plan()
            .as_ref()
            .filter(|plan| plan.generation == generation)
        {
            return Ok((plan.doomed.clone(), plan.done));
        }
        let doomed = Arc::new(self.doomed()?);
        *self.plan() = Some(Plan {
            generation,
            doomed: doomed.clone(),
            done: 0,
        });
        Ok((doomed, 0))
    }

    async fn step(
        &self,
        generation: u64,
        some: Vec<String>,
        from: usize,
        all: usize,
        op: &OperationId,
    ) -> Result<Swept> {
        let (stamps, snapshotter) = (self.stamps.clone(), self.driver.name());
        let step = self
            .ledger
            .write(Some(op), move |tx| {
                let mut step = Step {
                    generation,
                    removed: Vec::new(),
                    numbers: Vec::new(),
                    done: from + some.len(),
                };
                for place in stamps.doom(generation, &some)? {
                    if let Some((ns, key)) = named(&place) {
                        remove(tx, &ns, key, snapshotter, &mut step)?;
                    }
                }
                Ok::<_, crate::error::Error>(step)
            })
            .await;
        self.stamps.removed();
        let step = step?;
        step.numbers
            .iter()
            .for_each(|&number| self.folders.discard(number));
        if let Some(plan) = self
            .plan()
            .as_mut()
            .filter(|plan| plan.generation == step.generation)
        {
            plan.done = plan.done.max(step.done);
        }
        let done = step.done >= all;
        Ok(Swept {
            removed: step.removed,
            late: if done { self.late()? } else { Vec::new() },
            done,
            next: String::new(),
        })
    }

    fn listed(&self, doomed: &[String], token: &str) -> Result<Swept> {
        let from: usize = token.parse().unwrap_or(0);
        let mut removed = Vec::new();
        self.ledger.read(|look| {
            for place in doomed.iter().skip(from).take(PAGE) {
                let record = look.get(&SNAPSHOTS, place)?;
                removed.extend(record.and_then(|record| self.removal(place, &record)));
            }
            Ok::<_, ledger::Fault>(())
        })?;
        let done = from + PAGE >= doomed.len();
        Ok(Swept {
            removed,
            late: if done { self.late()? } else { Vec::new() },
            done,
            next: if done {
                String::new()
            } else {
                (from + PAGE).to_string()
            },
        })
    }

    fn removal(&self, place: &str, record: &Record) -> Option<Removal> {
        let (namespace, key) = named(place)?;
        Some(removal(namespace, self.resource(key), record))
    }

    /// Rows that nothing keeps, children before parents.
    fn doomed(&self) -> Result<Vec<String>> {
        let kept = self.kept_by_fresh()?;
        let mut parents = HashMap::new();
        self.ledger.read(|look| {
            look.scan(&SNAPSHOTS, "", None, |row, record| {
                if !self.stamps.is_marked(row) && !kept.contains(row) {
                    let parent = named(row)
                        .zip(record.parent)
                        .map(|((ns, _), parent)| place(&ns, &parent));
                    parents.insert(row.to_owned(), parent);
                }
                true
            })
        })?;
        Ok(children_first(&parents))
    }

    /// Touched rows and all of this driver that they refer to.
    fn kept_by_fresh(&self) -> Result<HashSet<String>> {
        let (mut kept, mut open) = (HashSet::new(), self.stamps.fresh());
        self.ledger.read(|look| {
            while let Some(place) = open.pop() {
                if let Some(((ns, _), record)) = named(&place).zip(look.get(&SNAPSHOTS, &place)?)
                    && kept.insert(place)
                {
                    open.extend(
                        record
                            .parent
                            .iter()
                            .map(|parent| record::place(&ns, parent)),
                    );
                    open.extend(self.own_references(&ns, &record.labels));
                }
            }
            Ok(kept)
        })
    }

    /// What only a touch kept refers to resources of others that no mark may have reached.
    fn late(&self) -> Result<Vec<Edge>> {
        let kept = self.kept_by_fresh()?;
        self.ledger.read(|look| {
            let mut late = Vec::new();
            for place in kept.iter().filter(|place| !self.stamps.is_marked(place)) {
                if let Some(node) = self.node(place) {
                    late.extend(self.forward(look, &node)?);
                }
            }
            late.retain(|edge| self.own(&edge.to.namespace, &edge.to.resource).is_none());
            Ok(late)
        })
    }

    /// Counts snapshots by namespace. Blocks.
    pub(crate) fn tally(&self, asked: &Tally) -> Result<Vec<Count>> {
        let prefix = asked
            .namespace
            .as_ref()
            .map_or_else(String::new, |ns| format!("{ns}\0"));
        let mut counts: BTreeMap<Namespace, u64> = BTreeMap::new();
        self.ledger.read(|look: &Snapshot| {
            look.scan(&SNAPSHOTS, &prefix, None, |place, _| {
                if let Some((ns, _)) = named(place) {
                    *counts.entry(ns).or_default() += 1;
                }
                true
            })
        })?;
        let what = format!("{} snapshots", self.driver.name());
        Ok(counts
            .into_iter()
            .map(|(namespace, count)| Count {
                namespace,
                what: what.clone(),
                count,
            })
            .collect())
    }

    fn resource(&self, key: SnapshotKey) -> Resource {
        resource(self.driver.name(), key)
    }

    fn node(&self, place: &str) -> Option<Node> {
        let (namespace, key) = named(place)?;
        Some(Node {
            namespace,
            resource: self.resource(key),
        })
    }

    fn plan(&self) -> MutexGuard<'_, Option<Plan>> {
        // A plan is replaced as a whole.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes one of the plan, unless it went or got a child meanwhile.
fn remove(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    key: SnapshotKey,
    snapshotter: &str,
    step: &mut Step,
) -> Result<()> {
    let row = place(ns, &key);
    if tx.record(ns, &key)?.is_none() || tx.child(&row)?.is_some() {
        return Ok(());
    }
    let record = store::remove(tx, ns, &key, snapshotter)?;
    step.numbers.push(record.number);
    step.removed
        .push(removal(ns.clone(), resource(snapshotter, key), &record));
    Ok(())
}

fn removal(namespace: Namespace, resource: Resource, record: &Record) -> Removal {
    Removal {
        node: Node {
            namespace,
            resource,
        },
        size: record.used.map_or(0, |used| used.size),
        reason: "unreferenced".into(),
    }
}

fn resource(driver: &str, key: SnapshotKey) -> Resource {
    let driver = driver.to_owned();
    Resource::Snapshot { driver, key }
}

fn edge(from: &Node, to: Node, reason: String) -> Edge {
    Edge {
        from: from.clone(),
        to,
        reason,
        flat: false,
    }
}

/// Orders rows so that no parent comes before its child: the deepest first.
fn children_first(parents: &HashMap<String, Option<String>>) -> Vec<String> {
    let mut depths: HashMap<&str, usize> = HashMap::new();
    for row in parents.keys() {
        let mut path = Vec::new();
        let mut here = Some(row.as_str());
        while let Some(row) = here.filter(|row| !depths.contains_key(row)) {
            path.push(row);
            here = parents.get(row).and_then(Option::as_deref);
        }
        let mut depth = here.and_then(|row| depths.get(row).copied()).unwrap_or(0);
        for row in path.into_iter().rev() {
            depth += 1;
            depths.insert(row, depth);
        }
    }
    let mut rows: Vec<&String> = parents.keys().collect();
    let depth = |row: &str| depths.get(row).copied().unwrap_or(0);
    rows.sort_by(|a, b| depth(b).cmp(&depth(a)).then_with(|| a.cmp(b)));
    rows.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_go_before_their_parents() {
        let parents = [
            ("a", None),
            ("b", Some("a")),
            ("c", Some("b")),
            ("d", Some("a")),
            ("e", Some("kept")),
        ]
        .map(|(row, parent)| (row.to_owned(), parent.map(str::to_owned)))
        .into();
        assert_eq!(children_first(&parents), ["c", "b", "d", "e", "a"]);
    }
}
