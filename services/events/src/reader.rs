//! A subscription: a cursor in the log that pulls. Nothing is kept for it between two reads, so a slow one costs nobody.

use crate::store::{BATCH, Store, Trouble};
use contracts::events::Batch;
use filter::Filters;
use futures_util::{Stream, stream};
use std::sync::Arc;
use tokio::sync::watch;

struct Reader {
    store: Store,
    filters: Arc<Filters>,
    news: watch::Receiver<u64>,
    seen: u64,
    begun: bool,
}

/// Streams the log after `since`, without end. The first batch comes at once.
///
/// A later batch is empty only when a filter passed nothing of a long stretch, so that the reader's `seen` moves on.
pub(crate) fn subscribe(
    store: Store,
    since: Option<u64>,
    filters: Filters,
) -> impl Stream<Item = Result<Batch, Trouble>> + Send + 'static {
    let news = store.news();
    let reader = Reader {
        seen: since.unwrap_or_else(|| *news.borrow()),
        filters: Arc::new(filters),
        store,
        news,
        begun: false,
    };
    stream::try_unfold(reader, |mut reader| async move {
        let batch = reader.next().await?;
        Ok(Some((batch, reader)))
    })
}

impl Reader {
    async fn next(&mut self) -> Result<Batch, Trouble> {
        loop {
            let newest = *self.news.borrow_and_update();
            if self.begun && self.seen >= newest {
                let closed = |_| Trouble::Worker("is closing".into());
                self.news.changed().await.map_err(closed)?;
                continue;
            }
            let batch = self.read().await?;
            self.seen = batch.seen;
            if !self.begun || !batch.events.is_empty() || batch.gap.is_some() || !batch.end {
                self.begun = true;
                return Ok(batch);
            }
        }
    }

    async fn read(&self) -> Result<Batch, Trouble> {
        let (store, filters, since) = (self.store.clone(), self.filters.clone(), self.seen);
        tokio::task::spawn_blocking(move || store.read(since, &filters, BATCH))
            .await
            .map_err(|e| Trouble::Worker(e.to_string()))?
    }
}
