//! The contract `integrity`: short looks at this store's own disk, records first; and the same while nobody runs.

use crate::{config::Config, service::ContentService, store::Store};
use actix::{Context, Handler};
use bus::{Call, Reply, on_disk};
use contracts::{
    Error, Result,
    integrity::{Check, Checked, Cure, Damage, Finding, Mend, Mended},
};
use ledger::integrity::{self, Found};
use std::path::Path;

impl Handler<Call<Check>> for ContentService {
    type Result = Reply<Check>;
    fn handle(&mut self, call: Call<Check>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || check(&store, &call.body))
    }
}

impl Handler<Call<Mend>> for ContentService {
    type Result = Reply<Mend>;
    fn handle(&mut self, call: Call<Mend>, _: &mut Context<Self>) -> Self::Result {
        let store = self.store.clone();
        on_disk(move || mend(&store, &call.body))
    }
}

/// The ledger looks at its records, then the store at everything else.
fn check(store: &Store, ask: &Check) -> Result<Checked> {
    if !integrity::is_mine(&ask.token) {
        return Ok(store.check(ask)?);
    }
    let mut step = integrity::check(store.ledger(), &ask.token)?;
    if step.next.is_empty() {
        step.next = "records:".to_owned();
    }
    Ok(step)
}

fn mend(store: &Store, mend: &Mend) -> Result<Mended> {
    let finding = &mend.finding;
    let of_ledger = matches!(finding.damage, Damage::Store | Damage::Record);
    if of_ledger && finding.namespace.is_none() {
        return integrity::mend_only(store.ledger(), finding);
    }
    Ok(store.mend(mend)?)
}

/// Looks at the folder below `root` while the plugin does not run, every byte of it, and mends it when `repair` says so.
///
/// Leftovers stay when records were lost: they may be what those records named.
pub(crate) fn fsck(root: &Path, repair: bool) -> Result<Found> {
    let mut found = integrity::fsck(&root.join("content.redb"), repair)?;
    let lost = !found.is_empty();
    if lost && !repair {
        return Ok(found);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Error::internal(format!("fsck: {error}")))?;
    let _entered = runtime.enter();
    let store = Store::open(root, &Config::default())?;
    let mut token = "records:".to_owned();
    while !token.is_empty() {
        let step = store.check(&Check { deep: true, token })?;
        for finding in step.findings {
            let mended = mended(&store, &finding, repair, lost)?;
            found.push((finding, mended));
        }
        token = step.next;
    }
    Ok(found)
}

fn mended(store: &Store, finding: &Finding, repair: bool, lost: bool) -> Result<Option<Mended>> {
    let keeps = lost && finding.cure == Cure::Remove;
    if !repair || keeps {
        return Ok(None);
    }
    let mend = Mend {
        finding: finding.clone(),
    };
    match store.mend(&mend).map_err(Error::from) {
        Ok(mended) => Ok(Some(mended)),
        Err(error) if error.is(contracts::Code::FailedPrecondition) => Ok(None),
        Err(error) => Err(error),
    }
}
