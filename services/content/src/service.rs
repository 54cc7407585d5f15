//! The actor in front of the store.

use crate::{
    follow::follow,
    store::{Readiness, Store},
};
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Ctx, Open as Opening, Reply, Routes, Streaming, items, on_disk};
use contracts::{
    Fd, Result,
    collect::{Begin, Mark, References, Resource, Roots, Sweep, Tally},
    content::{
        Abort, Blob, Commit, Delete, Follow, Ingests, List, Open, Opened, Stat, Status, Update,
        Verify, Write, Writer,
    },
    integrity::{Check, Mend},
    leases,
};
use std::{os::fd::OwnedFd, time::Duration};
use tokio::time::Instant;

/// What is left of a deadline for the answer to travel back.
const TRAVEL: Duration = Duration::from_millis(500);

pub(crate) struct ContentService {
    pub(crate) store: Store,
    bus: Bus,
}

impl ContentService {
    pub(crate) fn new(store: Store, bus: Bus) -> Self {
        ledger::deliver(store.ledger(), &bus);
        let tidying = store.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = tidying.tidy() {
                tracing::warn!(%error, "what a crash left stays until the next start");
            }
        });
        Self { store, bus }
    }
}

impl Actor for ContentService {
    type Context = Context<Self>;
}

pub(crate) fn routes() -> Routes<ContentService> {
    Routes::default()
        .on::<Stat>()
        .on::<List>()
        .on::<Open>()
        .on::<Update>()
        .on::<Delete>()
        .on::<Write>()
        .on::<Commit>()
        .on::<Status>()
        .on::<Ingests>()
        .on::<Abort>()
        .stream::<Follow>()
        .on::<Verify>()
        .on::<Check>()
        .on::<Mend>()
        .on::<Begin>()
        .on::<Roots>()
        .on::<References>()
        .on::<Mark>()
        .on::<Sweep>()
        .on::<Tally>()
}

/// Lets the caller's lease hold resources before they exist.
async fn hold(bus: &Bus, ctx: &Ctx, resources: Vec<Resource>) -> Result<()> {
    let Some(id) = ctx.lease.clone() else {
        return Ok(());
    };
    bus.call(ctx, leases::Add { id, resources }).await
}

impl Handler<Call<Stat>> for ContentService {
    type Result = Reply<Stat>;
    fn handle(&mut self, call: Call<Stat>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || {
            Ok::<_, contracts::Error>(store.stat(call.ctx.namespace()?, &call.body.digest)?)
        })
    }
}

impl Handler<Call<List>> for ContentService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.list(call.ctx.namespace()?, &call.body.paging))
    }
}

impl Handler<Call<Open>> for ContentService {
    type Result = Reply<Open>;
    fn handle(&mut self, call: Call<Open>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || {
            let (blob, file) = store.open_blob(call.ctx.namespace()?, &call.body.digest)?;
            let fd = Fd::from(OwnedFd::from(file));
            Ok::<_, crate::error::Trouble>(Opened { blob, fd })
        })
    }
}

impl Handler<Call<Verify>> for ContentService {
    type Result = Reply<Verify>;
    fn handle(&mut self, call: Call<Verify>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || {
            let Verify { digest, doubt } = call.body;
            store.verify(call.ctx.namespace()?, &digest, doubt)
        })
    }
}

impl Handler<Call<Update>> for ContentService {
    type Result = Reply<Update>;
    fn handle(&mut self, call: Call<Update>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let (ctx, Update { digest, labels }) = (call.ctx, call.body);
            let updated = store.update(&ctx.operation, ctx.namespace()?, &digest, labels);
            Ok(updated.await?)
        })
    }
}

impl Handler<Call<Delete>> for ContentService {
    type Result = Reply<Delete>;
    fn handle(&mut self, call: Call<Delete>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let (ctx, digest) = (call.ctx, call.body.digest);
            Ok(store
                .delete(&ctx.operation, ctx.namespace()?, &digest)
                .await?)
        })
    }
}

impl Handler<Call<Write>> for ContentService {
    type Result = Reply<Write>;
    fn handle(&mut self, call: Call<Write>, _: &mut Context<Self>) -> Self::Result {
        let (store, bus) = (self.store.clone(), self.bus.clone());
        Box::pin(async move { write(store, bus, call.ctx, call.body).await })
    }
}

async fn write(store: Store, bus: Bus, ctx: Ctx, ask: Write) -> Result<Writer> {
    let namespace = ctx.namespace()?.clone();
    let content = ask.expected.clone().map(Resource::Content);
    let ingest = Resource::Ingest(ask.r#ref.clone());
    hold(&bus, &ctx, content.into_iter().chain([ingest]).collect()).await?;
    if let Some(digest) = &ask.expected {
        store.known(&namespace, digest).await?;
    }
    let begin = on_disk(move || store.begin(&namespace, &ask));
    let (offset, pipe) = begin.await?;
    let pipe = Fd::from(pipe);
    Ok(Writer { offset, pipe })
}

impl Handler<Call<Commit>> for ContentService {
    type Result = Reply<Commit>;
    fn handle(&mut self, call: Call<Commit>, _: &mut Context<Self>) -> Self::Result {
        let (store, bus) = (self.store.clone(), self.bus.clone());
        Box::pin(async move { commit(store, bus, call.ctx, call.body).await })
    }
}

async fn commit(store: Store, bus: Bus, ctx: Ctx, commit: Commit) -> Result<Blob> {
    let namespace = ctx.namespace()?;
    let deadline = ctx
        .deadline
        .checked_sub(TRAVEL)
        .unwrap_or_else(Instant::now);
    let ready = store.ready(&ctx.operation, namespace, &commit, deadline);
    let ready = match ready.await? {
        Readiness::Done(blob) => return Ok(blob),
        Readiness::Ready(ready) => ready,
    };
    let digest = ready.verified.digest.clone();
    let held = hold(&bus, &ctx, vec![Resource::Content(digest)]);
    let synced = async { Ok(store.sync(&ready).await?) };
    futures_util::try_join!(held, synced)?;
    let published = store.publish(&ctx.operation, ready, commit.labels);
    Ok(published.await?)
}

impl Handler<Call<Status>> for ContentService {
    type Result = Reply<Status>;
    fn handle(&mut self, call: Call<Status>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.status(call.ctx.namespace()?, &call.body.r#ref))
    }
}

impl Handler<Call<Ingests>> for ContentService {
    type Result = Reply<Ingests>;
    fn handle(&mut self, call: Call<Ingests>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || {
            store
                .ingests()
                .page(call.ctx.namespace()?, &call.body.paging)
        })
    }
}

impl Handler<Call<Abort>> for ContentService {
    type Result = Reply<Abort>;
    fn handle(&mut self, call: Call<Abort>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let (ctx, name) = (call.ctx, call.body.r#ref);
            Ok(store.abort(&ctx.operation, ctx.namespace()?, &name).await?)
        })
    }
}

impl Handler<Opening<Follow>> for ContentService {
    type Result = Streaming<Follow>;
    fn handle(&mut self, call: Opening<Follow>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let namespace = call.ctx.namespace()?.clone();
            Ok(items(follow(store, namespace, call.body)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::{collect::Collect, content::Content, integrity::Integrity};

    #[test]
    fn every_method_has_a_route() {
        assert!(routes().missing::<Content>().is_empty());
        assert!(routes().missing::<Collect>().is_empty());
        assert!(routes().missing::<Integrity>().is_empty());
    }
}
