//! The actor's answers to the collector.

use crate::service::ContentService;
use actix::{Context, Handler};
use bus::{Call, Reply, on_disk};
use contracts::collect::{Begin, Mark, References, Roots, Sweep, Tally};

impl Handler<Call<Begin>> for ContentService {
    type Result = Reply<Begin>;
    fn handle(&mut self, call: Call<Begin>, _: &mut Context<Self>) -> Self::Result {
        self.store.collection().begin(call.body.generation);
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Handler<Call<Roots>> for ContentService {
    type Result = Reply<Roots>;
    fn handle(&mut self, call: Call<Roots>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.roots(&call.body))
    }
}

impl Handler<Call<References>> for ContentService {
    type Result = Reply<References>;
    fn handle(&mut self, call: Call<References>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.references(call.body.generation, &call.body.nodes))
    }
}

impl Handler<Call<Mark>> for ContentService {
    type Result = Reply<Mark>;
    fn handle(&mut self, call: Call<Mark>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.mark(call.body.generation, call.body.nodes))
    }
}

impl Handler<Call<Sweep>> for ContentService {
    type Result = Reply<Sweep>;
    fn handle(&mut self, call: Call<Sweep>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move { Ok(store.sweep(&call.ctx.operation, call.body).await?) })
    }
}

impl Handler<Call<Tally>> for ContentService {
    type Result = Reply<Tally>;
    fn handle(&mut self, call: Call<Tally>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.tally(call.body.namespace.as_ref()))
    }
}
