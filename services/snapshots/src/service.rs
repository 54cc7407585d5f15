//! The actor: contract messages → store.

use crate::config::Config;
use crate::driver::Driver;
use crate::store::{New, Store};
use actix::{Actor, Context, Handler};
use bus::{Boot, Bus, Call, Ctx, Reply, Routes, on_disk};
use contracts::collect::{Begin, Mark, References, Resource, Roots, Sweep, Tally};
use contracts::integrity::{Check, Mend};
use contracts::snapshots::{
    Commit, Driver as AskDriver, DriverInfo, List, Mounts, Prepare, Remove, SnapshotKind, Stat,
    Update, Usage, View,
};
use contracts::{Result, SnapshotKey, leases};
use std::sync::Arc;

/// Answers `snapshots` and `collect` for one driver.
pub(crate) struct SnapshotsService {
    store: Arc<Store>,
    bus: Bus,
}

impl SnapshotsService {
    pub(crate) fn start(driver: Box<dyn Driver>, boot: Boot<Config>) -> Result<Self> {
        let store = Store::open(boot.root(), driver, &boot.config)?;
        ledger::deliver(&store.ledger, &boot.bus);
        Ok(Self {
            store: Arc::new(store),
            bus: boot.bus,
        })
    }

    fn make(&self, ctx: Ctx, prepare: Prepare, kind: SnapshotKind) -> Reply<Prepare> {
        let (store, bus) = (self.store.clone(), self.bus.clone());
        Box::pin(async move {
            hold(&bus, &ctx, store.driver.name(), &prepare.key).await?;
            let new = New {
                ns: ctx.namespace()?.clone(),
                key: prepare.key,
                parent: prepare.parent,
                labels: prepare.labels,
                kind,
            };
            Ok(store.make(new, &ctx.operation).await?)
        })
    }
}

/// Lets the caller's lease hold a snapshot before it exists, so that no collection comes between.
async fn hold(bus: &Bus, ctx: &Ctx, driver: &str, key: &SnapshotKey) -> Result<()> {
    let Some(id) = ctx.lease.clone() else {
        return Ok(());
    };
    let (driver, key) = (driver.to_owned(), key.clone());
    let resources = vec![Resource::Snapshot { driver, key }];
    bus.call(ctx, leases::Add { id, resources }).await
}

impl Actor for SnapshotsService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<SnapshotsService> {
    let made = Routes::default()
        .on::<AskDriver>()
        .on::<Prepare>()
        .on::<View>()
        .on::<Mounts>()
        .on::<Commit>()
        .on::<Remove>();
    let seen = made.on::<Stat>().on::<Update>().on::<List>().on::<Usage>();
    seen.on::<Begin>()
        .on::<Roots>()
        .on::<References>()
        .on::<Mark>()
        .on::<Sweep>()
        .on::<Tally>()
        .on::<Check>()
        .on::<Mend>()
}

impl Handler<Call<Check>> for SnapshotsService {
    type Result = Reply<Check>;
    fn handle(&mut self, call: Call<Check>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.check(&call.body))
    }
}

impl Handler<Call<Mend>> for SnapshotsService {
    type Result = Reply<Mend>;
    fn handle(&mut self, call: Call<Mend>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.mend(&call.body))
    }
}

impl Handler<Call<AskDriver>> for SnapshotsService {
    type Result = Reply<AskDriver>;
    fn handle(&mut self, _: Call<AskDriver>, _: &mut Context<Self>) -> Self::Result {
        let driver = &self.store.driver;
        let info = DriverInfo {
            name: driver.name().into(),
            rebase: driver.rebase(),
        };
        Box::pin(async move { Ok(info) })
    }
}

impl Handler<Call<Prepare>> for SnapshotsService {
    type Result = Reply<Prepare>;
    fn handle(&mut self, call: Call<Prepare>, _: &mut Context<Self>) -> Self::Result {
        self.make(call.ctx, call.body, SnapshotKind::Active)
    }
}

impl Handler<Call<View>> for SnapshotsService {
    type Result = Reply<View>;
    fn handle(&mut self, call: Call<View>, _: &mut Context<Self>) -> Self::Result {
        let View {
            key,
            parent,
            labels,
        } = call.body;
        let like = Prepare {
            key,
            parent,
            labels,
        };
        self.make(call.ctx, like, SnapshotKind::View)
    }
}

impl Handler<Call<Mounts>> for SnapshotsService {
    type Result = Reply<Mounts>;
    fn handle(&mut self, call: Call<Mounts>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.mounts(call.ctx.namespace()?, &call.body.key))
    }
}

impl Handler<Call<Commit>> for SnapshotsService {
    type Result = Reply<Commit>;
    fn handle(&mut self, call: Call<Commit>, _: &mut Context<Self>) -> Self::Result {
        let (store, bus) = (self.store.clone(), self.bus.clone());
        Box::pin(async move {
            let ns = call.ctx.namespace()?.clone();
            hold(&bus, &call.ctx, store.driver.name(), &call.body.name).await?;
            Ok(store.commit(ns, call.body, &call.ctx.operation).await?)
        })
    }
}

impl Handler<Call<Remove>> for SnapshotsService {
    type Result = Reply<Remove>;
    fn handle(&mut self, call: Call<Remove>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let ns = call.ctx.namespace()?.clone();
            Ok(store.remove(ns, call.body.key, &call.ctx.operation).await?)
        })
    }
}

impl Handler<Call<Stat>> for SnapshotsService {
    type Result = Reply<Stat>;
    fn handle(&mut self, call: Call<Stat>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.stat(call.ctx.namespace()?, &call.body.key))
    }
}

impl Handler<Call<Update>> for SnapshotsService {
    type Result = Reply<Update>;
    fn handle(&mut self, call: Call<Update>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let ns = call.ctx.namespace()?.clone();
            Ok(store.update(ns, call.body, &call.ctx.operation).await?)
        })
    }
}

impl Handler<Call<List>> for SnapshotsService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.list(call.ctx.namespace()?, &call.body.paging))
    }
}

impl Handler<Call<Usage>> for SnapshotsService {
    type Result = Reply<Usage>;
    fn handle(&mut self, call: Call<Usage>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move {
            let ns = call.ctx.namespace()?.clone();
            Ok(store.usage(ns, call.body.key).await?)
        })
    }
}

impl Handler<Call<Begin>> for SnapshotsService {
    type Result = Reply<Begin>;
    fn handle(&mut self, call: Call<Begin>, _: &mut Context<Self>) -> Self::Result {
        self.store.begin(call.body.generation);
        Box::pin(async { Ok(()) })
    }
}

impl Handler<Call<Roots>> for SnapshotsService {
    type Result = Reply<Roots>;
    fn handle(&mut self, call: Call<Roots>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.roots(&call.body))
    }
}

impl Handler<Call<References>> for SnapshotsService {
    type Result = Reply<References>;
    fn handle(&mut self, call: Call<References>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.references(&call.body))
    }
}

impl Handler<Call<Mark>> for SnapshotsService {
    type Result = Reply<Mark>;
    fn handle(&mut self, call: Call<Mark>, _: &mut Context<Self>) -> Self::Result {
        let marked = self.store.mark(&call.body);
        Box::pin(async move { Ok(marked?) })
    }
}

impl Handler<Call<Sweep>> for SnapshotsService {
    type Result = Reply<Sweep>;
    fn handle(&mut self, call: Call<Sweep>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move { Ok(store.sweep(call.body, &call.ctx.operation).await?) })
    }
}

impl Handler<Call<Tally>> for SnapshotsService {
    type Result = Reply<Tally>;
    fn handle(&mut self, call: Call<Tally>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || store.tally(&call.body))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_of_the_contracts_has_a_route() {
        let routes = super::routes();
        assert!(
            routes
                .missing::<contracts::snapshots::Snapshots>()
                .is_empty()
        );
        assert!(routes.missing::<contracts::collect::Collect>().is_empty());
        assert!(
            routes
                .missing::<contracts::integrity::Integrity>()
                .is_empty()
        );
    }
}
