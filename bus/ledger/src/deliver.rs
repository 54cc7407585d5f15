//! Outbox → log. The log skips what it has, so sending again is always right.

use crate::Ledger;
use bus::{Bus, Ctx};
use contracts::events::Append;
use std::time::Duration;

/// Most events of one delivery.
const MOST: usize = 256;
/// Pause after a refused delivery.
const PAUSE: Duration = Duration::from_millis(200);

/// Hands the ledger's events to the log, in order, as long as this process lives. The plugin must require `events`.
///
/// Call it once, when the plugin starts; it also delivers what a predecessor left behind.
pub fn deliver(ledger: &Ledger, bus: &Bus) {
    let (outbox, ledger, bus) = (ledger.outbox(), ledger.weak(), bus.clone());
    tokio::task::spawn_local(async move {
        while let Some(ledger) = ledger() {
            match some(&ledger, &bus).await {
                Ok(0) => {
                    drop(ledger);
                    outbox.more.notified().await;
                }
                Ok(_) => {}
                Err(error) => {
                    drop(ledger);
                    tracing::warn!(%error, "events wait for the log");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
}

/// Delivers what there is, up to [`MOST`] events; answers how many.
async fn some(ledger: &Ledger, bus: &Bus) -> contracts::Result<u64> {
    let (first, entries) = ledger.undelivered(MOST)?;
    let count = entries.len() as u64;
    if count > 0 {
        let append = Append {
            source: bus.plugin().clone(),
            epoch: ledger.epoch(),
            first,
            entries,
        };
        bus.call(&Ctx::new(None), append).await?;
        ledger.delivered(first + count - 1);
    }
    Ok(count)
}
