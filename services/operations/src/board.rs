//! Live progress of one operation. It is kept in memory: a crash loses it, never the work.

use contracts::operations::{Operation, Part, State};
use contracts::{Result, Timestamp};
use futures_util::{Stream, stream};
use std::time::Duration;
use tokio::sync::watch;

/// Shortest pause between two looks of a watcher: ten a second are live for a person.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the steps of an operation say how far they are. Clones share it.
#[derive(Clone)]
pub(crate) struct Board(watch::Sender<Operation>);

impl Board {
    pub(crate) fn new(operation: Operation) -> Self {
        Self(watch::Sender::new(operation))
    }

    /// How the operation stands.
    pub(crate) fn now(&self) -> Operation {
        self.0.borrow().clone()
    }

    /// Says how far the part `name` is, which appears when it is met first.
    pub(crate) fn part(&self, name: &str, phase: &str, offset: u64, total: u64) {
        self.0.send_modify(|operation| {
            operation.updated_at = Timestamp::now();
            let part = Part {
                name: name.into(),
                phase: phase.into(),
                offset,
                total,
            };
            match operation.progress.iter_mut().find(|part| part.name == name) {
                Some(there) => *there = part,
                None => operation.progress.push(part),
            }
        });
    }

    /// Says how the operation ended.
    pub(crate) fn end(&self, ended: Operation) {
        self.0.send_replace(ended);
    }

    /// Shows the operation now, at changes but not more often than every [`PAUSE`], and at once when it ends.
    pub(crate) fn watch(&self) -> impl Stream<Item = Result<Operation>> + Send + use<> {
        stream::unfold(Some((self.0.subscribe(), true)), |looking| async move {
            let (mut changes, first) = looking?;
            if !first {
                changes.changed().await.ok()?;
                // What happens within the pause is shown together; the end ends it.
                let _ = tokio::time::timeout(PAUSE, changes.wait_for(over)).await;
            }
            let operation = changes.borrow_and_update().clone();
            let next = (!over(&operation)).then_some((changes, false));
            Some((Ok(operation), next))
        })
    }
}

fn over(operation: &Operation) -> bool {
    operation.state != State::Running
}
