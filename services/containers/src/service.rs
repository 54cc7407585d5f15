//! The actor: contract messages → store, generator and collector's answers.

mod integrity;

pub(crate) use integrity::fsck;

use crate::collect;
use crate::host::ThisHost;
use crate::references;
use crate::spec;
use crate::store::Store;
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Reply, Routes, on_disk};
use contracts::Result;
use contracts::collect::{Begin, Mark, References, Roots, Sweep, Tally};
use contracts::containers::{Create, Delete, Generate, Get, List, Update};
use contracts::integrity::{Check, Mend};
use ledger::Late;
use std::sync::Arc;

/// Answers `containers` and `collect`.
pub(crate) struct ContainersService {
    store: Store,
    late: Late,
    host: Arc<ThisHost>,
}

impl ContainersService {
    pub(crate) fn new(store: Store, bus: &Bus) -> Self {
        ledger::deliver(store.ledger(), bus);
        Self {
            store,
            late: Late::default(),
            host: Arc::new(ThisHost::look()),
        }
    }
}

impl Actor for ContainersService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<ContainersService> {
    Routes::default()
        .on::<Check>()
        .on::<Mend>()
        .on::<Create>()
        .on::<Get>()
        .on::<List>()
        .on::<Update>()
        .on::<Delete>()
        .on::<Generate>()
        .on::<Begin>()
        .on::<Roots>()
        .on::<References>()
        .on::<Mark>()
        .on::<Sweep>()
        .on::<Tally>()
}

impl Handler<Call<Create>> for ContainersService {
    type Result = Reply<Create>;
    fn handle(&mut self, call: Call<Create>, _: &mut Context<Self>) -> Reply<Create> {
        let (store, late) = (self.store.clone(), self.late.clone());
        Box::pin(async move {
            let namespace = call.ctx.namespace()?;
            let container = store.create(namespace, &call.ctx.operation, call.body);
            let container = container.await?;
            late.record(references::of(namespace, &container));
            Ok(container)
        })
    }
}

impl Handler<Call<Update>> for ContainersService {
    type Result = Reply<Update>;
    fn handle(&mut self, call: Call<Update>, _: &mut Context<Self>) -> Reply<Update> {
        let (store, late) = (self.store.clone(), self.late.clone());
        Box::pin(async move {
            let namespace = call.ctx.namespace()?;
            let container = store.update(namespace, &call.ctx.operation, call.body);
            let container = container.await?;
            late.record(references::of(namespace, &container));
            Ok(container)
        })
    }
}

impl Handler<Call<Delete>> for ContainersService {
    type Result = Reply<Delete>;
    fn handle(&mut self, call: Call<Delete>, _: &mut Context<Self>) -> Reply<Delete> {
        let store = self.store.clone();
        Box::pin(async move {
            let namespace = call.ctx.namespace()?;
            Ok(store
                .delete(namespace, &call.ctx.operation, call.body)
                .await?)
        })
    }
}

impl Handler<Call<Get>> for ContainersService {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Reply<Get> {
        let store = self.store.clone();
        on_disk(move || -> Result<_> { Ok(store.get(call.ctx.namespace()?, &call.body)?) })
    }
}

impl Handler<Call<List>> for ContainersService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Reply<List> {
        let store = self.store.clone();
        on_disk(move || -> Result<_> { Ok(store.list(call.ctx.namespace()?, &call.body)?) })
    }
}

impl Handler<Call<Generate>> for ContainersService {
    type Result = Reply<Generate>;
    fn handle(&mut self, call: Call<Generate>, _: &mut Context<Self>) -> Reply<Generate> {
        let host = self.host.clone();
        on_disk(move || -> Result<_> {
            Ok(spec::generate(call.ctx.namespace()?, &call.body, &*host)?)
        })
    }
}

impl Handler<Call<Begin>> for ContainersService {
    type Result = Reply<Begin>;
    fn handle(&mut self, call: Call<Begin>, _: &mut Context<Self>) -> Reply<Begin> {
        self.late.begin(call.body.generation);
        Box::pin(async { Ok(()) })
    }
}

impl Handler<Call<Roots>> for ContainersService {
    type Result = Reply<Roots>;
    fn handle(&mut self, call: Call<Roots>, _: &mut Context<Self>) -> Reply<Roots> {
        let (store, late) = (self.store.clone(), self.late.clone());
        on_disk(move || collect::roots(&store, &late, &call.body))
    }
}

impl Handler<Call<References>> for ContainersService {
    type Result = Reply<References>;
    fn handle(&mut self, call: Call<References>, _: &mut Context<Self>) -> Reply<References> {
        let (store, late) = (self.store.clone(), self.late.clone());
        on_disk(move || collect::references(&store, &late, &call.body))
    }
}

/// Every record is a root: a mark tells nothing new.
impl Handler<Call<Mark>> for ContainersService {
    type Result = Reply<Mark>;
    fn handle(&mut self, call: Call<Mark>, _: &mut Context<Self>) -> Reply<Mark> {
        let open = self.late.check(call.body.generation);
        Box::pin(async { open })
    }
}

impl Handler<Call<Sweep>> for ContainersService {
    type Result = Reply<Sweep>;
    fn handle(&mut self, call: Call<Sweep>, _: &mut Context<Self>) -> Reply<Sweep> {
        let swept = collect::sweep(&self.late, &call.body);
        Box::pin(async move { Ok(swept?) })
    }
}

impl Handler<Call<Tally>> for ContainersService {
    type Result = Reply<Tally>;
    fn handle(&mut self, call: Call<Tally>, _: &mut Context<Self>) -> Reply<Tally> {
        let store = self.store.clone();
        on_disk(move || store.tally(call.body.namespace.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::collect::Collect;
    use contracts::containers::Containers;

    #[test]
    fn every_method_of_both_contracts_is_routed() {
        assert!(routes().missing::<Containers>().is_empty());
        assert!(routes().missing::<Collect>().is_empty());
    }
}
