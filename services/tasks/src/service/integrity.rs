//! The state of its file. Bundles and logs are the auditor's.

use super::TasksService;
use actix::{Context, Handler};
use bus::{Call, Reply, on_disk};
use contracts::Result;
use contracts::integrity::{Check, Mend};
use ledger::integrity::{self, Found};
use std::path::Path;

impl Handler<Call<Check>> for TasksService {
    type Result = Reply<Check>;
    fn handle(&mut self, call: Call<Check>, _: &mut Context<Self>) -> Self::Result {
        let ledger = self.engine.store.ledger().clone();
        on_disk(move || integrity::check(&ledger, &call.body.token))
    }
}

impl Handler<Call<Mend>> for TasksService {
    type Result = Reply<Mend>;
    fn handle(&mut self, call: Call<Mend>, _: &mut Context<Self>) -> Self::Result {
        let ledger = self.engine.store.ledger().clone();
        on_disk(move || integrity::mend_only(&ledger, &call.body.finding))
    }
}

/// Looks at the file below `root` while the plugin does not run, and mends it when `repair` says so.
pub(crate) fn fsck(root: &Path, repair: bool) -> Result<Found> {
    Ok(integrity::fsck(&root.join("tasks.redb"), repair)?)
}
