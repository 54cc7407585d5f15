//! Whether the log of events has grown: one subscription of this process, for all of its readers.
//!
//! Each reader pulls the next page when its client has taken the last one, so a client that reads nothing costs one page
//! of memory here and nothing at all at the log. A subscription for each would hold sixteen batches for it, and one of
//! the 1024 calls that the link to the log may have under way: readers could keep publishers out.

use bus::{Bus, Ctx};
use contracts::events::Subscribe;
use futures_util::StreamExt;
use std::{cell::Cell, rc::Rc, time::Duration};
use tokio::sync::watch;

/// How long to wait before asking a log again that is not there.
pub(crate) const BREATH: Duration = Duration::from_millis(500);
/// How long to wait for a log that starts: longer than anything lives.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// The newest number that this process has heard of.
pub(crate) struct News {
    newest: Rc<watch::Sender<u64>>,
    listens: Cell<bool>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            newest: Rc::new(watch::Sender::new(0)),
            listens: Cell::new(false),
        }
    }
}

impl News {
    /// Tells from now on when the log has grown. The first reader begins to listen for all.
    pub(crate) fn follow(&self, bus: &Bus) -> watch::Receiver<u64> {
        if !self.listens.replace(true) {
            actix::spawn(listen(bus.clone(), self.newest.clone()));
        }
        self.newest.subscribe()
    }
}

async fn listen(bus: Bus, newest: Rc<watch::Sender<u64>>) {
    let mut since = None;
    loop {
        let subscribe = Subscribe {
            since,
            filters: Vec::new(),
        };
        if let Ok(mut batches) = bus
            .open(&Ctx::new(None).with_deadline(LONG), subscribe)
            .await
        {
            while let Some(Ok(batch)) = batches.next().await {
                since = Some(batch.seen);
                newest
                    .send_if_modified(|newest| std::mem::replace(newest, batch.seen) != batch.seen);
            }
        }
        tokio::time::sleep(BREATH).await;
    }
}
