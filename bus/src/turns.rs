//! Writes that came twice: a repetition waits for its first.
//!
//! A caller that dies with a write in flight leaves it running here, and its successor sends it again. An owner that
//! records its reply answers the second from that record; one that is still at work has none yet, and would begin the
//! same work once more beside the first. So of the writes with one operation id, one is carried out at a time.

use contracts::OperationId;
use std::{cell::RefCell, collections::HashMap, sync::Arc};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Whose turn it is, by operation.
#[derive(Default)]
pub(crate) struct Turns(RefCell<HashMap<OperationId, Arc<Mutex<()>>>>);

/// One turn, until it is dropped.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    operation: OperationId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits until nobody carries out `operation`.
    pub(crate) async fn take(&self, operation: OperationId) -> Turn<'_> {
        let turn = self
            .0
            .borrow_mut()
            .entry(operation.clone())
            .or_default()
            .clone();
        Turn {
            turns: self,
            operation,
            guard: Some(turn.lock_owned().await),
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard.take();
        let mut turns = self.turns.0.borrow_mut();
        // Who waits holds a clone.
        if turns
            .get(&self.operation)
            .is_some_and(|turn| Arc::strong_count(turn) == 1)
        {
            turns.remove(&self.operation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn operation(name: &str) -> OperationId {
        OperationId::new(name).unwrap()
    }

    #[tokio::test]
    async fn a_repetition_waits_and_others_do_not() {
        let turns = Turns::default();
        let first = turns.take(operation("a")).await;
        let mut second = Box::pin(turns.take(operation("a")));
        assert!(second.as_mut().now_or_never().is_none());
        drop(turns.take(operation("b")).await);
        drop(first);
        drop(second.await);
        assert!(turns.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing() {
        let turns = Turns::default();
        let first = turns.take(operation("a")).await;
        drop(Box::pin(turns.take(operation("a"))).now_or_never());
        drop(first);
        assert!(turns.is_empty());
    }
}
