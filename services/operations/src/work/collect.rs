//! Collect: one run of the collector.

use crate::run::Run;
use contracts::Result;
use contracts::gc::{Collect, Collected};
use std::time::Duration;

/// How long a collection may take: a large store is swept in small steps.
const LONG: Duration = Duration::from_secs(3600);

/// Collects garbage.
pub(super) async fn collect(run: &Run) -> Result<Collected> {
    let collected = run
        .bus
        .call(&run.ctx().with_deadline(LONG), Collect {})
        .await;
    faults::point("operations.collect.done");
    collected
}
