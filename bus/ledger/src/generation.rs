//! An owner's part of one collection: what is marked, and what was touched since it began.
//!
//! Kept in memory only: when the owner restarts, the open generation is gone, its calls fail and the collector begins
//! again. Source: contracts, `collect`.

use contracts::collect::{Edge, Node};
use contracts::{Error, Result};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Marks and stamps of the open generation, by store key.
#[derive(Debug, Default)]
pub struct Generation {
    number: u64,
    marked: HashSet<String>,
    stamped: HashSet<String>,
}

impl Generation {
    /// Opens generation `number` and forgets the one before.
    pub fn begin(&mut self, number: u64) {
        *self = Self {
            number,
            ..Self::default()
        };
    }

    /// Errors: `FailedPrecondition` when `number` is not the open generation.
    pub fn check(&self, number: u64) -> Result<()> {
        is_open(self.number, number)
    }

    /// Records that the resource was created, changed or used while a generation is open.
    pub fn stamp(&mut self, key: &str) {
        if self.number > 0 && !self.stamped.contains(key) {
            self.stamped.insert(key.to_owned());
        }
    }

    /// Records that a root reaches the resource.
    pub fn mark(&mut self, key: String) {
        self.marked.insert(key);
    }

    /// Whether a root reaches the resource.
    pub fn is_marked(&self, key: &str) -> bool {
        self.marked.contains(key)
    }

    /// Whether the resource was touched since the generation began.
    pub fn is_stamped(&self, key: &str) -> bool {
        self.stamped.contains(key)
    }

    /// The resources that were touched, in no order.
    pub fn stamped(&self) -> impl Iterator<Item = &str> {
        self.stamped.iter().map(String::as_str)
    }
}

/// References that an owner's roots got while a generation was open: told late, because a page of roots may have been
/// read before. Clones share them.
///
/// A reference is recorded after its write and before the answer: until then whoever asked still holds what it refers
/// to in another way. It stays recorded when the root goes again, for its holder may have moved on to an owner that was
/// asked already.
#[derive(Clone, Default)]
pub struct Late(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    number: u64,
    /// Whether more is recorded: not after the owner's sweep.
    open: bool,
    known: HashSet<(Node, Node)>,
    edges: Vec<Edge>,
}

impl Late {
    /// Opens generation `number` and forgets what was recorded before.
    pub fn begin(&self, number: u64) {
        *self.lock() = Recorded {
            number,
            open: true,
            ..Recorded::default()
        };
    }

    /// Errors: `FailedPrecondition` when `number` is not the open generation.
    pub fn check(&self, number: u64) -> Result<()> {
        is_open(self.lock().number, number)
    }

    /// Records references that a write has just made.
    pub fn record(&self, edges: impl IntoIterator<Item = Edge>) {
        let mut recorded = self.lock();
        if !recorded.open {
            return;
        }
        for edge in edges {
            if recorded.known.insert((edge.from.clone(), edge.to.clone())) {
                recorded.edges.push(edge);
            }
        }
    }

    /// What was recorded. After a sweep that removes nobody asks again, but for a repetition.
    pub fn told(&self, last: bool) -> Vec<Edge> {
        let mut recorded = self.lock();
        recorded.open &= !last;
        recorded.edges.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        // Nothing in the critical sections can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_open(open: u64, asked: u64) -> Result<()> {
    if asked == open && asked > 0 {
        return Ok(());
    }
    Err(Error::precondition(format!(
        "generation {asked}: is not open here, begin again"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::collect::Resource;
    use contracts::{Digest, Namespace};

    fn edge(from: u8, to: u8) -> Edge {
        let node = |byte: u8| Node {
            namespace: Namespace::new("test").unwrap(),
            resource: Resource::Content(Digest::sha256(&[byte; 32])),
        };
        Edge {
            from: node(from),
            to: node(to),
            reason: "image".into(),
            flat: false,
        }
    }

    #[test]
    fn references_are_recorded_from_the_beginning_of_a_generation_to_its_sweep() {
        let late = Late::default();
        late.record([edge(1, 2)]);
        late.begin(7);
        assert!(late.check(7).is_ok() && late.check(6).is_err());
        late.record([edge(1, 3), edge(1, 3)]);
        assert_eq!(late.told(false), [edge(1, 3)]);
        late.record([edge(1, 4)]);
        assert_eq!(late.told(true), [edge(1, 3), edge(1, 4)]);
        late.record([edge(1, 5)]);
        assert_eq!(
            late.told(true).len(),
            2,
            "a repetition gets the same answer"
        );
        late.begin(8);
        assert!(late.told(false).is_empty());
    }

    #[test]
    fn no_generation_is_open_at_first() {
        assert!(Late::default().check(0).is_err());
        assert!(Generation::default().check(0).is_err());
    }
}
