//! The state of its file, and what the auditor saw last on the host: a leak that stays is a finding; logs go by themselves.

use super::TasksService;
use actix::{Context, Handler};
use bus::{Call, Reply, on_disk};
use contracts::Result;
use contracts::integrity::{Check, Damage, Mend, Mended};
use contracts::tasks::Audit;
use ledger::integrity::{self, Found};
use std::path::Path;

impl Handler<Call<Check>> for TasksService {
    type Result = Reply<Check>;
    fn handle(&mut self, call: Call<Check>, _: &mut Context<Self>) -> Self::Result {
        let ledger = self.engine.store.ledger().clone();
        let leftovers = self.engine.leftovers();
        on_disk(move || {
            let mut checked = integrity::check(&ledger, &call.body.token)?;
            if checked.next.is_empty() {
                checked.findings.extend(leftovers);
            }
            Ok::<_, ledger::Fault>(checked)
        })
    }
}

impl Handler<Call<Mend>> for TasksService {
    type Result = Reply<Mend>;
    fn handle(&mut self, call: Call<Mend>, _: &mut Context<Self>) -> Self::Result {
        if call.body.finding.damage == Damage::Leftover {
            let engine = self.engine.clone();
            return Box::pin(async move {
                engine.audit(Audit::default()).await?;
                let how = "the auditor looked again; what it finds twice it cleans".into();
                Ok(Mended { how })
            });
        }
        let ledger = self.engine.store.ledger().clone();
        on_disk(move || integrity::mend_only(&ledger, &call.body.finding))
    }
}

/// Looks at the file below `root` while the plugin does not run, and mends it when `repair` says so.
pub(crate) fn fsck(root: &Path, repair: bool) -> Result<Found> {
    Ok(integrity::fsck(&root.join("tasks.redb"), repair)?)
}
