//! The state of its file: all that it has on disk.

use super::EventsService;
use crate::{config::Config, store::Store};
use actix::{Context, Handler};
use bus::{Call, Reply, on_disk};
use contracts::integrity::{Check, Mend};
use contracts::{Error, Result};
use ledger::integrity::{self, Found};
use std::path::Path;

impl Handler<Call<Check>> for EventsService {
    type Result = Reply<Check>;
    fn handle(&mut self, call: Call<Check>, _: &mut Context<Self>) -> Self::Result {
        let ledger = self.store.ledger().clone();
        on_disk(move || integrity::check(&ledger, &call.body.token))
    }
}

impl Handler<Call<Mend>> for EventsService {
    type Result = Reply<Mend>;
    fn handle(&mut self, call: Call<Mend>, _: &mut Context<Self>) -> Self::Result {
        let ledger = self.store.ledger().clone();
        on_disk(move || integrity::mend_only(&ledger, &call.body.finding))
    }
}

/// Looks at the file below `root` while the plugin does not run, and mends it when `repair` says so. The numbers of a log
/// that was rebuilt leap: none is given twice.
pub(crate) fn fsck(root: &Path, repair: bool) -> Result<Found> {
    let path = root.join("log.redb");
    let found = integrity::fsck(&path, repair)?;
    if found.iter().any(|(_, mended)| mended.is_some()) {
        let store = Store::open(&path, &Config::default())?;
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|e| Error::internal(format!("runtime: {e}")))?;
        runtime.block_on(store.mend())?;
    }
    Ok(found)
}
