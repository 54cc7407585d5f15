//! What the collector must leave alone: marked, touched since its generation began, or being worked on.

use contracts::Result;
use ledger::Generation;
use std::collections::{HashMap, HashSet};
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
    /// Rows that are being removed: for whoever asks they are gone.
    doomed: HashSet<String>,
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

    /// Keeps a row from the open collection, because somebody uses it; false when it is about to go.
    pub(crate) fn touch(&self, place: &str) -> bool {
        let mut inner = self.lock();
        if inner.doomed.contains(place) {
            return false;
        }
        inner.generation.stamp(place);
        true
    }

    /// Of some rows, dooms those that nothing keeps. Decided under the same lock as every touch, so that a row is either
    /// spared or gone for whoever asks. Errors: `FailedPrecondition` when the generation is not open.
    pub(crate) fn doom(&self, generation: u64, places: &[String]) -> Result<Vec<String>> {
        let mut inner = self.lock();
        inner.generation.check(generation)?;
        let kept = |place: &String| {
            let touched = inner.generation.is_stamped(place) || inner.held.contains_key(place);
            touched || inner.generation.is_marked(place)
        };
        let doomed: Vec<String> = places
            .iter()
            .filter(|place| !kept(place))
            .cloned()
            .collect();
        inner.doomed = doomed.iter().cloned().collect();
        Ok(doomed)
    }

    /// Nothing is about to go any more.
    pub(crate) fn removed(&self) {
        self.lock().doomed.clear();
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
        let spared = |number| {
            let doomed = stamps.doom(number, &["a".into()]).unwrap();
            stamps.removed();
            doomed.is_empty()
        };
        stamps.begin(1);
        let held = stamps.hold(vec!["a".into()]);
        stamps.begin(2);
        assert!(spared(2), "while it is under way");
        drop(held);
        assert!(spared(2), "and after");
        stamps.begin(3);
        assert!(!spared(3));
    }

    #[test]
    fn a_row_that_is_being_removed_is_gone_for_whoever_asks() {
        let stamps = Stamps::default();
        stamps.begin(1);
        assert_eq!(stamps.doom(1, &["a".into()]).unwrap(), ["a"]);
        assert!(!stamps.touch("a") && stamps.touch("b"));
        stamps.removed();
        assert!(stamps.touch("a"), "it may be made again");
        assert_eq!(
            stamps
                .doom(1, &["a".into(), "b".into(), "c".into()])
                .unwrap(),
            ["c"]
        );
        assert!(stamps.doom(2, &[]).is_err());
    }
}
