//! Live progress of one operation. It is kept in memory: a crash loses it, never the work.

use contracts::operations::{Operation, Part, State};
use contracts::{Result, Timestamp};
use futures_util::{Stream, stream};
use std::time::Duration;
use tokio::sync::watch;

/// Shortest pause between two looks of a watcher: ten a second are live for a person.
const PAUSE: Duration = Duration::from_millis(100);

/// Phase of a blob that is on its way.
pub(crate) const FETCHING: &str = "fetching";
/// Phase of a layer that is being extracted.
pub(crate) const UNPACKING: &str = "unpacking";

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

    /// Says how far the part `name` is, which appears when it is met first. What is unpacked while it arrives is arriving.
    pub(crate) fn part(&self, name: &str, phase: &str, offset: u64, total: u64) {
        let part = Part {
            name: name.into(),
            phase: phase.into(),
            offset,
            total,
        };
        self.0.send_if_modified(|operation| {
            let there = operation.progress.iter_mut().find(|part| part.name == name);
            match there {
                Some(there) if *there == part => return false,
                Some(there) if there.phase == FETCHING && phase == UNPACKING => return false,
                Some(there) => *there = part,
                None => operation.progress.push(part),
            }
            operation.updated_at = Timestamp::now();
            true
        });
    }

    /// Says how the operation ended.
    pub(crate) fn end(&self, ended: Operation) {
        self.0.send_replace(ended);
    }

    /// Shows the operation now, at changes but not more often than every [`PAUSE`], and at once when it ends.
    pub(crate) fn watch(&self) -> impl Stream<Item = Result<Operation>> + Send + use<> {
        self.watch_every(PAUSE)
    }

    fn watch_every(&self, pause: Duration) -> impl Stream<Item = Result<Operation>> + Send + use<> {
        let looking = Some((self.0.subscribe(), true));
        stream::unfold(looking, move |looking| async move {
            let (mut changes, first) = looking?;
            if !first {
                changes.changed().await.ok()?;
                // What happens within the pause is shown together; the end ends it.
                let _ = tokio::time::timeout(pause, changes.wait_for(over)).await;
            }
            let operation = changes.borrow_and_update().clone();
            let next = (!over(&operation)).then_some((changes, false));
            Some((Ok(operation), next))
        })
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Operation {
        let mut changes = self.0.subscribe();
        // The board itself keeps the other half.
        let _ = changes.wait_for(over).await;
        self.now()
    }
}

fn over(operation: &Operation) -> bool {
    operation.state != State::Running
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::OperationId;
    use futures_util::StreamExt;

    fn running() -> Operation {
        Operation {
            id: OperationId::new("x").unwrap(),
            kind: "pull".into(),
            subject: "x".into(),
            state: State::Running,
            progress: Vec::new(),
            result: None,
            error: None,
            started_at: Timestamp(1),
            updated_at: Timestamp(1),
            resumed: 0,
        }
    }

    fn done() -> Operation {
        Operation {
            state: State::Done,
            ..running()
        }
    }

    #[tokio::test]
    async fn progress_is_shown_together_and_an_end_at_once() {
        let board = Board::new(running());
        let mut watching = std::pin::pin!(board.watch_every(Duration::ZERO));
        assert_eq!(watching.next().await.unwrap().unwrap(), running());
        board.part("layer", "fetching", 1, 9);
        board.part("layer", "fetching", 2, 9);
        let shown = watching.next().await.unwrap().unwrap();
        assert_eq!((shown.progress.len(), shown.progress[0].offset), (1, 2));
        // Nobody waits for an hour.
        let mut watching = std::pin::pin!(board.watch_every(Duration::from_secs(3600)));
        watching.next().await.unwrap().unwrap();
        board.part("layer", "fetching", 3, 9);
        board.end(done());
        assert_eq!(watching.next().await.unwrap().unwrap(), done());
        assert!(watching.next().await.is_none());
        assert_eq!(board.ended().await, done());
    }

    #[test]
    fn a_layer_that_is_unpacked_while_it_arrives_is_arriving() {
        let board = Board::new(running());
        let phase = || board.now().progress[0].phase.clone();
        board.part("layer", FETCHING, 5, 9);
        board.part("layer", UNPACKING, 1, 9);
        assert_eq!(
            (phase().as_str(), board.now().progress[0].offset),
            (FETCHING, 5)
        );
        board.part("layer", "fetched", 9, 9);
        board.part("layer", UNPACKING, 2, 9);
        assert_eq!(phase(), UNPACKING);
        let moved = board.now().updated_at;
        board.part("layer", UNPACKING, 2, 9);
        assert_eq!(board.now().updated_at, moved, "the same again is no news");
    }

    #[tokio::test]
    async fn who_looks_after_the_end_sees_it_and_nothing_more() {
        let board = Board::new(running());
        board.end(done());
        let seen: Vec<_> = board.watch().map(Result::unwrap).collect().await;
        assert_eq!(seen, [done()]);
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_board() {
        let board = Board::new(running());
        let watching = board.watch();
        drop(board);
        let seen: Vec<_> = watching.map(Result::unwrap).collect().await;
        assert_eq!(seen, [running()]);
    }
}
