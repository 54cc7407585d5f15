//! What the journal keeps about scrubs: when the last one ended, and the events of what they find.

use crate::store::{Begin, Record, Store};
use contracts::integrity::Finding;
use contracts::operations::State;
use contracts::{Result, Timestamp};
use ledger::{Fault, Snapshot, Table, Tx};

/// `scrubbed` → when the last scrub ended, or when the clock first looked.
const CLOCK: Table<Timestamp> = Table::new("clock");
const KEY: &str = "scrubbed";

impl Store {
    /// When the last scrub ended; a node that never had one begins to count when it is first asked.
    pub(crate) async fn last_scrub(&self) -> Result<Timestamp> {
        let read = |snapshot: &Snapshot| snapshot.get(&CLOCK, KEY);
        match self.ledger().read::<_, Fault>(read)? {
            Some(last) => Ok(last),
            None => self.scrubbed().await,
        }
    }

    /// Begins the scrub that is due; `None` when that was begun before. When it did not get through, for somebody cancelled
    /// it, the next one is due as if it had: else none would ever be.
    pub(crate) async fn begin_scrub(&self, begin: Begin) -> Result<Option<Record>> {
        let (record, new) = self.begin(begin).await?;
        if !new && record.operation.state != State::Running {
            self.scrubbed().await?;
        }
        Ok(new.then_some(record))
    }

    /// Notes that a scrub has ended now.
    pub(crate) async fn scrubbed(&self) -> Result<Timestamp> {
        let write = |tx: &mut Tx<'_>| {
            tx.put(&CLOCK, KEY, &tx.now.clone())?;
            Ok::<_, Fault>(tx.now)
        };
        Ok(self.ledger().write(None, write).await?)
    }

    /// Tells everybody who listens.
    pub(crate) async fn tell(&self, topic: &'static str, finding: Finding) -> Result<()> {
        let write = move |tx: &mut Tx<'_>| {
            tx.emit(finding.namespace.as_ref(), topic, &finding)?;
            Ok::<_, Fault>(())
        };
        Ok(self.ledger().write(None, write).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Keep;
    use contracts::OperationId;
    use contracts::operations::Operation;

    fn due() -> Begin {
        Begin {
            id: OperationId::new("scrub-1").unwrap(),
            namespace: None,
            lease: None,
            work: None,
            kind: "scrub",
            subject: "disk".into(),
        }
    }

    #[tokio::test]
    async fn a_scrub_that_was_cancelled_is_not_the_last_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let before = store.last_scrub().await.unwrap();
        let record = store.begin_scrub(due()).await.unwrap().unwrap();
        assert!(store.begin_scrub(due()).await.unwrap().is_none());
        assert_eq!(store.last_scrub().await.unwrap(), before, "it goes on");
        let cancelled = Operation {
            state: State::Cancelled,
            ..record.operation
        };
        let keep = Keep { count: 9, least: 9 };
        store.end(cancelled, keep).await.unwrap();
        assert!(store.begin_scrub(due()).await.unwrap().is_none());
        assert!(store.last_scrub().await.unwrap() > before);
    }
}
