//! The actor: contract messages → store, and the question to all owners what a namespace holds.

mod integrity;

pub(crate) use integrity::fsck;

use crate::store::{Store, missing};
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Ctx, Reply, Routes};
use contracts::collect::{Count, Tally};
use contracts::integrity::{Check, Mend};
use contracts::namespaces::{Delete, Get, Info, List, Put, Update};
use contracts::{Error, Labels, Namespace, Page, PluginId, Result};
use contracts::{
    containers::Containers, content::Content, images::Images, leases::Leases, snapshots::Snapshots,
};
use filter::{Fields, Filters};
use std::borrow::Cow;

/// Namespaces of one page.
const MOST: usize = 500;

/// Answers `namespaces`.
pub(crate) struct NamespacesService {
    store: Store,
    bus: Bus,
}

impl NamespacesService {
    pub(crate) fn new(store: Store, bus: Bus) -> Self {
        ledger::deliver(store.ledger(), &bus);
        Self { store, bus }
    }
}

impl Actor for NamespacesService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<NamespacesService> {
    Routes::default()
        .on::<Check>()
        .on::<Mend>()
        .on::<Get>()
        .on::<List>()
        .on::<Put>()
        .on::<Update>()
        .on::<Delete>()
}

impl Handler<Call<Get>> for NamespacesService {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Self::Result {
        let (store, bus) = (self.store.clone(), self.bus.clone());
        Box::pin(async move {
            let name = call.body.name;
            if let Some(info) = store.get(&name)? {
                return Ok(info);
            }
            if is_used(&bus, &call.ctx, &name).await? {
                Ok(bare(name))
            } else {
                Err(missing(&name))
            }
        })
    }
}

impl Handler<Call<List>> for NamespacesService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Self::Result {
        let (store, bus) = (self.store.clone(), self.bus.clone());
        Box::pin(async move {
            let filters = Filters::parse(&call.body.paging.filters)
                .map_err(|e| Error::invalid(e.to_string()))?;
            let (mut all, version) = store.all()?;
            for count in held(&bus, &call.ctx, None).await? {
                all.entry(count.namespace.clone())
                    .or_insert_with(|| bare(count.namespace));
            }
            let paging = call.body.paging;
            let limit = if paging.limit == 0 {
                MOST
            } else {
                (paging.limit as usize).min(MOST)
            };
            let wanted = all
                .into_values()
                .filter(|info| info.name.as_str() > paging.token.as_str());
            let mut items: Vec<Info> = wanted
                .filter(|info| filters.matches(&Row(info)))
                .take(limit + 1)
                .collect();
            let more = items.len() > limit;
            items.truncate(limit);
            let next = items
                .last()
                .filter(|_| more)
                .map(|info| info.name.to_string())
                .unwrap_or_default();
            Ok(Page {
                items,
                next,
                version,
            })
        })
    }
}

impl Handler<Call<Put>> for NamespacesService {
    type Result = Reply<Put>;
    fn handle(&mut self, call: Call<Put>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move { store.put(&call.ctx.operation, call.body).await })
    }
}

impl Handler<Call<Update>> for NamespacesService {
    type Result = Reply<Update>;
    fn handle(&mut self, call: Call<Update>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        Box::pin(async move { store.update(&call.ctx.operation, call.body).await })
    }
}

impl Handler<Call<Delete>> for NamespacesService {
    type Result = Reply<Delete>;
    fn handle(&mut self, call: Call<Delete>, _: &mut Context<Self>) -> Self::Result {
        let (store, bus) = (self.store.clone(), self.bus.clone());
        Box::pin(async move {
            let name = call.body.name;
            let held = held(&bus, &call.ctx, Some(&name)).await?;
            if held.is_empty() {
                store.delete(&call.ctx.operation, name).await
            } else {
                Err(not_empty(&name, &held))
            }
        })
    }
}

/// Asks every owner what it holds. Errors: `Unavailable` when one cannot say: nobody may guess that it holds nothing.
async fn held(bus: &Bus, ctx: &Ctx, only: Option<&Namespace>) -> Result<Vec<Count>> {
    let owners: Vec<&PluginId> = bus
        .all_peers()
        .filter(|peer| peer.service() != "events")
        .collect();
    let asked = owners.into_iter().map(|owner| {
        bus.call_at(
            owner,
            ctx,
            Tally {
                namespace: only.cloned(),
            },
        )
    });
    Ok(futures_util::future::try_join_all(asked)
        .await?
        .into_iter()
        .flatten()
        .collect())
}

/// Whether any owner holds something of a namespace. Those that hold least are asked first, and the others only when they
/// hold nothing: this is asked for whenever work is begun, and counting takes the longer the more there is.
async fn is_used(bus: &Bus, ctx: &Ctx, name: &Namespace) -> Result<bool> {
    let small = [
        bus.peers::<Leases>(),
        bus.peers::<Images>(),
        bus.peers::<Containers>(),
    ];
    let large = [bus.peers::<Snapshots>(), bus.peers::<Content>()];
    for owner in small.into_iter().chain(large).flatten() {
        let tally = Tally {
            namespace: Some(name.clone()),
        };
        if !bus.call_at(owner, ctx, tally).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn not_empty(name: &Namespace, held: &[Count]) -> Error {
    let counts: Vec<String> = held
        .iter()
        .map(|count| format!("{} {}", count.count, count.what))
        .collect();
    Error::precondition(format!(
        "namespace {name}: still holds {}; delete them first",
        counts.join(", ")
    ))
}

fn bare(name: Namespace) -> Info {
    Info {
        name,
        labels: Labels::new(),
        created_at: None,
    }
}

struct Row<'a>(&'a Info);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["name"] => Some(self.0.name.as_str().into()),
            ["labels", rest @ ..] => filter::label(&self.0.labels, rest),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_of_the_contract_has_a_route() {
        assert!(
            super::routes()
                .missing::<contracts::namespaces::Namespaces>()
                .is_empty()
        );
    }
}
