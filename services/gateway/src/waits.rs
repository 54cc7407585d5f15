//! A bound for calls to one plugin that may last for ever.
//!
//! The bus works on 1024 calls of one caller at a time. If waits and followed logs took them all, no signal could reach a
//! task any more, and many of those waits would never end.

use contracts::{Error, Result};
use std::{cell::Cell, rc::Rc};

/// Most waits and followed logs at a time: leaves a quarter of the link to everything else.
const MOST: usize = 768;

/// Counts what waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(Rc<Cell<usize>>);

/// One that waits, until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting(Rc<Cell<usize>>);

impl Waits {
    /// Lets one more wait. Errors: `ResourceExhausted`.
    pub(crate) fn enter(&self) -> Result<Waiting> {
        if self.0.get() >= MOST {
            return Err(Error::exhausted(format!(
                "waits: {MOST} requests wait for tasks or follow logs already, watch /v1/events for /tasks/exit instead"
            )));
        }
        self.0.set(self.0.get() + 1);
        Ok(Waiting(self.0.clone()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded_and_leave_when_dropped() {
        let waits = Waits::default();
        let mut all: Vec<Waiting> = (0..MOST).map(|_| waits.enter().unwrap()).collect();
        let refused = waits.enter().unwrap_err();
        assert!(refused.is(contracts::Code::ResourceExhausted));
        all.pop();
        assert!(waits.enter().is_ok());
    }
}
