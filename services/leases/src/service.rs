//! The actor: contract messages → store.

mod integrity;

pub(crate) use integrity::fsck;

use crate::store::Store;
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Reply, Routes, on_disk};
use contracts::collect::{Begin, Edge, Mark, Node, References, Resource, Roots, Sweep, Tally};
use contracts::integrity::{Check, Mend};
use contracts::leases::{Add, Create, Delete, Get, List, Remove, Resources, Update};
use contracts::{Result, Timestamp};
use ledger::Late;

/// Answers `leases` and `collect`.
pub(crate) struct LeasesService {
    store: Store,
    late: Late,
}

impl LeasesService {
    pub(crate) fn new(store: Store, bus: &Bus) -> Self {
        ledger::deliver(store.ledger(), bus);
        Self {
            store,
            late: Late::default(),
        }
    }
}

impl Actor for LeasesService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<LeasesService> {
    let own = Routes::default()
        .on::<Check>()
        .on::<Mend>()
        .on::<Create>()
        .on::<Get>()
        .on::<List>()
        .on::<Update>()
        .on::<Delete>();
    let held = own.on::<Add>().on::<Remove>().on::<Resources>();
    held.on::<Begin>()
        .on::<Roots>()
        .on::<References>()
        .on::<Mark>()
        .on::<Sweep>()
        .on::<Tally>()
}

impl Handler<Call<Create>> for LeasesService {
    type Result = Reply<Create>;
    fn handle(&mut self, call: Call<Create>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            store
                .create(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await
        })
    }
}

impl Handler<Call<Get>> for LeasesService {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.get(call.ctx.namespace()?, &call.body, Timestamp::now()))
    }
}

impl Handler<Call<List>> for LeasesService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.list(call.ctx.namespace()?, &call.body, Timestamp::now()))
    }
}

impl Handler<Call<Update>> for LeasesService {
    type Result = Reply<Update>;
    fn handle(&mut self, call: Call<Update>, _: &mut Context<Self>) -> Self::Result {
        let (store, late) = (self.store.clone(), self.late.clone());
        Box::pin(async move {
            let (ctx, id) = (call.ctx, call.body.id.clone());
            let namespace = ctx.namespace()?;
            let lease = store.update(namespace, &ctx.operation, call.body).await?;
            // It may end later than before, or hold what its resources refer to.
            late.record(store.held(namespace, &id, Timestamp::now())?);
            Ok(lease)
        })
    }
}

impl Handler<Call<Delete>> for LeasesService {
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

impl Handler<Call<Add>> for LeasesService {
    type Result = Reply<Add>;
    fn handle(&mut self, call: Call<Add>, _: &mut Context<Self>) -> Self::Result {
        let (store, late) = (self.store.clone(), self.late.clone());
        Box::pin(async move {
            let edges = edges(&call)?;
            store
                .add(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await?;
            late.record(edges);
            Ok(())
        })
    }
}

impl Handler<Call<Remove>> for LeasesService {
    type Result = Reply<Remove>;
    fn handle(&mut self, call: Call<Remove>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            store
                .remove(call.ctx.namespace()?, &call.ctx.operation, call.body)
                .await
        })
    }
}

impl Handler<Call<Resources>> for LeasesService {
    type Result = Reply<Resources>;
    fn handle(&mut self, call: Call<Resources>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.resources(call.ctx.namespace()?, &call.body, Timestamp::now()))
    }
}

impl Handler<Call<Begin>> for LeasesService {
    type Result = Reply<Begin>;
    fn handle(&mut self, call: Call<Begin>, _: &mut Context<Self>) -> Self::Result {
        self.late.begin(call.body.generation);
        Box::pin(async { Ok(()) })
    }
}

impl Handler<Call<Roots>> for LeasesService {
    type Result = Reply<Roots>;
    fn handle(&mut self, call: Call<Roots>, _: &mut Context<Self>) -> Self::Result {
        let (store, open) = (self.store.clone(), self.late.check(call.body.generation));
        on_disk(move || open.and_then(|()| store.roots(&call.body.token, Timestamp::now())))
    }
}

impl Handler<Call<References>> for LeasesService {
    type Result = Reply<References>;
    /// What a lease holds is among the roots already.
    fn handle(&mut self, call: Call<References>, _: &mut Context<Self>) -> Self::Result {
        let open = self.late.check(call.body.generation);
        Box::pin(async move { open.map(|()| Vec::new()) })
    }
}

impl Handler<Call<Mark>> for LeasesService {
    type Result = Reply<Mark>;
    /// A lease stays by itself until it is over: marks change nothing.
    fn handle(&mut self, call: Call<Mark>, _: &mut Context<Self>) -> Self::Result {
        let open = self.late.check(call.body.generation);
        Box::pin(async move { open })
    }
}

impl Handler<Call<Sweep>> for LeasesService {
    type Result = Reply<Sweep>;
    /// Removes what is over; leases that hold more meanwhile say what they keep.
    fn handle(&mut self, call: Call<Sweep>, _: &mut Context<Self>) -> Self::Result {
        let (store, open) = (self.store.clone(), self.late.check(call.body.generation));
        let late = self.late.clone();
        Box::pin(async move {
            open?;
            let mut swept = store.sweep(call.body.dry_run).await?;
            swept.late = late.told(swept.done && !call.body.dry_run);
            Ok(swept)
        })
    }
}

impl Handler<Call<Tally>> for LeasesService {
    type Result = Reply<Tally>;
    fn handle(&mut self, call: Call<Tally>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.tally(call.body.namespace.as_ref(), Timestamp::now()))
    }
}

/// What a lease is about to hold: with all that it refers to, for whether the lease is flat may change.
fn edges(call: &Call<Add>) -> Result<Vec<Edge>> {
    let node = |resource| -> Result<Node> {
        Ok(Node {
            namespace: call.ctx.namespace()?.clone(),
            resource,
        })
    };
    let edge = |resource: &Resource| -> Result<Edge> {
        Ok(Edge {
            from: node(Resource::Lease(call.body.id.clone()))?,
            to: node(resource.clone())?,
            reason: "lease".into(),
            flat: false,
        })
    };
    call.body.resources.iter().map(edge).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_of_the_contracts_has_a_route() {
        let routes = super::routes();
        assert!(routes.missing::<contracts::leases::Leases>().is_empty());
        assert!(routes.missing::<contracts::collect::Collect>().is_empty());
    }
}
