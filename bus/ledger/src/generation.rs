//! An owner's part of one collection: what is marked, and what was touched since it began.
//!
//! Kept in memory only: when the owner restarts, the open generation is gone, its calls fail and the collector begins
//! again. Source: contracts, `collect`.

use contracts::{Error, Result};
use std::collections::HashSet;

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
        if number == self.number {
            return Ok(());
        }
        Err(Error::precondition(format!(
            "generation {number}: is not open here, begin again"
        )))
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
