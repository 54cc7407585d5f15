//! The actor in front of the log.

mod integrity;

pub(crate) use integrity::fsck;

use crate::reader::subscribe;
use crate::store::{BATCH, Store};
use actix::{Actor, Context, Handler};
use bus::{Call, Open, Reply, Routes, Streaming, items, on_disk};
use contracts::Error;
use contracts::events::{Append, Info, List, Publish, Subscribe};
use contracts::integrity::{Check, Mend};
use filter::Filters;
use std::time::Duration;

/// How often the clock moves retention on when nothing is appended.
const TICK: Duration = Duration::from_secs(60);

pub(crate) struct EventsService {
    store: Store,
    clock: tokio::task::JoinHandle<()>,
}

impl EventsService {
    pub(crate) fn new(store: Store) -> Self {
        // A task and not an actix interval, which would keep the actor alive after its last caller.
        let clock = tokio::task::spawn_local(tick(store.clone()));
        Self { store, clock }
    }
}

impl Drop for EventsService {
    fn drop(&mut self) {
        self.clock.abort();
    }
}

impl Actor for EventsService {
    type Context = Context<Self>;
}

async fn tick(store: Store) {
    loop {
        retain(&store).await;
        tokio::time::sleep(TICK).await;
    }
}

/// Removes what retention has passed, in steps that let appends in between.
async fn retain(store: &Store) {
    loop {
        match store.prune().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return tracing::warn!(%error, "retention waits for the next minute"),
        }
    }
}

pub(crate) fn routes() -> Routes<EventsService> {
    Routes::default()
        .on::<Check>()
        .on::<Mend>()
        .on::<Append>()
        .on::<Publish>()
        .on::<List>()
        .on::<Info>()
        .stream::<Subscribe>()
}

impl Handler<Call<Append>> for EventsService {
    type Result = Reply<Append>;
    fn handle(&mut self, call: Call<Append>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move { Ok(store.append(call.body).await?) })
    }
}

impl Handler<Call<Publish>> for EventsService {
    type Result = Reply<Publish>;
    fn handle(&mut self, call: Call<Publish>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let number = store.publish(&call.ctx.operation, call.ctx.namespace, call.body);
            Ok(number.await?)
        })
    }
}

impl Handler<Call<List>> for EventsService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Self::Result {
        let (
            store,
            List {
                since,
                filters,
                limit,
            },
        ) = (self.store.clone(), call.body);
        on_disk(move || {
            let most = if limit == 0 {
                BATCH
            } else {
                BATCH.min(limit as usize)
            };
            store.read(since, &Filters::parse(&filters)?, most)
        })
    }
}

impl Handler<Call<Info>> for EventsService {
    type Result = Reply<Info>;
    fn handle(&mut self, _: Call<Info>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.info())
    }
}

impl Handler<Open<Subscribe>> for EventsService {
    type Result = Streaming<Subscribe>;
    fn handle(&mut self, call: Open<Subscribe>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let filters =
                Filters::parse(&call.body.filters).map_err(|e| Error::invalid(e.to_string()))?;
            Ok(items(subscribe(store, call.body.since, filters)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_route() {
        assert!(routes().missing::<contracts::events::Events>().is_empty());
    }
}
