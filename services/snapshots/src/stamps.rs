//! What the collector must leave alone: marked, touched since its generation began, or being worked on.

use contracts::Result;
use ledger::Generation;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Marks and stamps by row. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Stamps {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    generation: Generation,
    /// Rows that a write is about, and how many writes. A generation that begins meanwhile must not forget them.
    held: HashMap<String, usize>,
}

/// Rows of a write that is under way; stamped when it ends.
pub(crate) struct Held {
    stamps: Stamps,
    places: Vec<String>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.stamps.lock();
        for place in &self.places {
            inner.generation.stamp(place);
            if let Some(count) = inner.held.get_mut(place) {
                *count -= 1;
                if *count == 0 {
                    inner.held.remove(place);
                }
            }
        }
    }
}

impl Stamps {
    /// Keeps rows from any collection, also from one that begins meanwhile.
    pub(crate) fn hold(&self, places: Vec<String>) -> Held {
        let mut inner = self.lock();
        for place in &places {
            *inner.held.entry(place.clone()).or_default() += 1;
        }
        Held {
            stamps: self.clone(),
            places,
        }
    }

    /// Keeps a row from the open collection, because somebody uses it.
    pub(crate) fn touch(&self, place: &str) {
        self.lock().generation.stamp(place);
    }

    pub(crate) fn begin(&self, generation: u64) {
        self.lock().generation.begin(generation);
    }

    pub(crate) fn check(&self, generation: u64) -> Result<()> {
        self.lock().generation.check(generation)
    }

    pub(crate) fn mark(&self, place: String) {
        self.lock().generation.mark(place);
    }

    /// Whether a root reaches the row.
    pub(crate) fn is_marked(&self, place: &str) -> bool {
        self.lock().generation.is_marked(place)
    }

    /// Whether the row was touched since the generation began, or is being worked on.
    pub(crate) fn is_fresh(&self, place: &str) -> bool {
        let inner = self.lock();
        inner.generation.is_stamped(place) || inner.held.contains_key(place)
    }

    /// Touched rows.
    pub(crate) fn fresh(&self) -> Vec<String> {
        let inner = self.lock();
        let held = inner.held.keys().cloned();
        inner
            .generation
            .stamped()
            .map(str::to_owned)
            .chain(held)
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Sets of rows are whole whenever their lock is free.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_a_generation_overtakes_stays_fresh() {
        let stamps = Stamps::default();
        stamps.begin(1);
        let held = stamps.hold(vec!["a".into()]);
        stamps.begin(2);
        assert!(stamps.is_fresh("a"), "while it is under way");
        drop(held);
        assert!(stamps.is_fresh("a"), "and after");
        stamps.begin(3);
        assert!(!stamps.is_fresh("a"));
    }
}
