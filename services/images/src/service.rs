//! The actor: contract messages → store.

mod integrity;

pub(crate) use integrity::fsck;

use crate::store::{self, Store};
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Reply, Routes, on_disk};
use contracts::Result;
use contracts::collect::{Begin, Mark, References, Roots, Sweep, Swept, Tally};
use contracts::images::{Create, Delete, Get, Image, List, Put, Tag, Update};
use contracts::integrity::{Check, Mend};
use ledger::Late;

/// Answers `images` and `collect`.
pub(crate) struct ImagesService {
    store: Store,
    late: Late,
}

impl ImagesService {
    pub(crate) fn new(store: Store, bus: &Bus) -> Self {
        ledger::deliver(store.ledger(), bus);
        Self {
            store,
            late: Late::default(),
        }
    }

    /// Writes a name, and records what it keeps before anybody hears of it.
    fn write<R: contracts::Request<Reply = Image>, W>(
        &self,
        call: Call<R>,
        write: impl FnOnce(Store, Call<R>) -> W + 'static,
    ) -> Reply<R>
    where
        W: Future<Output = Result<Image>> + 'static,
    {
        let (store, late) = (self.store.clone(), self.late.clone());
        Box::pin(async move {
            let namespace = call.ctx.namespace()?.clone();
            let image = write(store, call).await?;
            late.record(store::edges(&namespace, &image));
            Ok(image)
        })
    }
}

impl Actor for ImagesService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<ImagesService> {
    let own = Routes::default()
        .on::<Check>()
        .on::<Mend>()
        .on::<Get>()
        .on::<List>()
        .on::<Create>()
        .on::<Put>();
    let own = own.on::<Update>().on::<Tag>().on::<Delete>();
    own.on::<Begin>()
        .on::<Roots>()
        .on::<References>()
        .on::<Mark>()
        .on::<Sweep>()
        .on::<Tally>()
}

impl Handler<Call<Get>> for ImagesService {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.get(call.ctx.namespace()?, &call.body))
    }
}

impl Handler<Call<List>> for ImagesService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.list(call.ctx.namespace()?, &call.body))
    }
}

impl Handler<Call<Create>> for ImagesService {
    type Result = Reply<Create>;
    fn handle(&mut self, call: Call<Create>, _: &mut Context<Self>) -> Self::Result {
        self.write(call, |store, call| async move {
            store
                .create(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await
        })
    }
}

impl Handler<Call<Put>> for ImagesService {
    type Result = Reply<Put>;
    fn handle(&mut self, call: Call<Put>, _: &mut Context<Self>) -> Self::Result {
        self.write(call, |store, call| async move {
            store
                .put(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await
        })
    }
}

impl Handler<Call<Update>> for ImagesService {
    type Result = Reply<Update>;
    fn handle(&mut self, call: Call<Update>, _: &mut Context<Self>) -> Self::Result {
        self.write(call, |store, call| async move {
            store
                .update(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await
        })
    }
}

impl Handler<Call<Tag>> for ImagesService {
    type Result = Reply<Tag>;
    fn handle(&mut self, call: Call<Tag>, _: &mut Context<Self>) -> Self::Result {
        self.write(call, |store, call| async move {
            store
                .tag(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await
        })
    }
}

impl Handler<Call<Delete>> for ImagesService {
    type Result = Reply<Delete>;
    fn handle(&mut self, call: Call<Delete>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            store
                .delete(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await
        })
    }
}

impl Handler<Call<Begin>> for ImagesService {
    type Result = Reply<Begin>;
    fn handle(&mut self, call: Call<Begin>, _: &mut Context<Self>) -> Self::Result {
        self.late.begin(call.body.generation);
        Box::pin(async { Ok(()) })
    }
}

impl Handler<Call<Roots>> for ImagesService {
    type Result = Reply<Roots>;
    fn handle(&mut self, call: Call<Roots>, _: &mut Context<Self>) -> Self::Result {
        let (store, open) = (self.store.clone(), self.late.check(call.body.generation));
        on_disk(move || open.and_then(|()| store.roots(&call.body.token)))
    }
}

impl Handler<Call<References>> for ImagesService {
    type Result = Reply<References>;
    fn handle(&mut self, call: Call<References>, _: &mut Context<Self>) -> Self::Result {
        let (store, open) = (self.store.clone(), self.late.check(call.body.generation));
        on_disk(move || open.and_then(|()| store.references(&call.body.nodes)))
    }
}

impl Handler<Call<Mark>> for ImagesService {
    type Result = Reply<Mark>;
    /// A name stays until a user deletes it: marks change nothing.
    fn handle(&mut self, call: Call<Mark>, _: &mut Context<Self>) -> Self::Result {
        let open = self.late.check(call.body.generation);
        Box::pin(async move { open })
    }
}

impl Handler<Call<Sweep>> for ImagesService {
    type Result = Reply<Sweep>;
    /// Names are never collected; those written meanwhile say what they keep.
    fn handle(&mut self, call: Call<Sweep>, _: &mut Context<Self>) -> Self::Result {
        let swept = self.late.check(call.body.generation).map(|()| Swept {
            late: self.late.told(!call.body.dry_run),
            done: true,
            ..Swept::default()
        });
        Box::pin(async move { swept })
    }
}

impl Handler<Call<Tally>> for ImagesService {
    type Result = Reply<Tally>;
    fn handle(&mut self, call: Call<Tally>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.tally(call.body.namespace.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_of_the_contracts_has_a_route() {
        let routes = super::routes();
        assert!(routes.missing::<contracts::images::Images>().is_empty());
        assert!(routes.missing::<contracts::collect::Collect>().is_empty());
    }
}
