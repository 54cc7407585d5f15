//! What the journal keeps about scrubs: when the last one ended, and the events of what they find.

use crate::store::Store;
use contracts::integrity::Finding;
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
