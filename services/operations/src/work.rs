//! The kinds of work: one file each, with its steps in order and how they are undone.

mod archive;
mod collect;
mod container;
mod fetch;
mod naming;
mod origin;
mod prove;
mod pull;
mod push;
mod remove;
mod scrub;
mod unpack;
mod way;

use crate::run::{Run, undone};
use contracts::content::Abort;
use contracts::operations::{Operation, Outcome, Work};
use contracts::{ContainerId, Ref, Result};

/// Does the work. What a failure leaves behind is undone here; what it cannot undo ends with its lease.
pub(crate) async fn perform(run: &Run, work: Work) -> Result<Outcome> {
    match work {
        Work::Pull(pull) => pull::pull(run, &pull).await.map(Outcome::Image),
        Work::Push(push) => push::push(run, &push).await.map(Outcome::Image),
        Work::Import(import) => archive::import(run, import).await.map(Outcome::Images),
        Work::Export(export) => archive::export(run, export).await.map(Outcome::Images),
        Work::Unpack(unpack) => unpack::unpack_named(run, &unpack).await.map(Outcome::Image),
        Work::Create(create) => container::create(run, &create)
            .await
            .map(Outcome::Container),
        Work::Run(create) => container::run(run, &create).await.map(Outcome::Task),
        Work::Remove(remove) => remove::remove(run, &remove).await,
        Work::Collect(_) => collect::collect(run).await.map(Outcome::Collected),
        Work::Scrub(scrub) => scrub::scrub(run, &scrub).await.map(Outcome::Scrubbed),
    }
}

/// Ends what every kind of work that makes something began: what it did not commit goes, then its lease.
async fn finish(run: &Run) {
    unpack::discard(run, run.attempt > 0).await;
    faults::point("operations.finish.discarded");
    run.release().await;
    faults::point("operations.finish.released");
}

/// Cleans up after work whose steps were dropped in the middle, because it was cancelled or its process died.
pub(crate) async fn abandon(run: &Run, operation: &Operation, cancelled: bool) {
    run.settled().await;
    if matches!(operation.kind.as_str(), "create" | "run")
        && let Ok(id) = ContainerId::new(operation.subject.as_str())
    {
        container::undo(run, &id).await;
    }
    unpack::discard(run, true).await;
    faults::point("operations.abandon.discarded");
    // What a pull has fetched helps the next one; nobody wants it when it was cancelled, and nobody reads an archive twice.
    let unfinished = if cancelled || operation.kind == "import" {
        run.unfinished().await
    } else {
        Vec::new()
    };
    run.release().await;
    faults::point("operations.abandon.released");
    // Last, when those who wrote have heard that nobody waits any more.
    forget(run, unfinished).await;
}

/// Drops unfinished writes.
async fn forget(run: &Run, unfinished: Vec<Ref>) {
    for name in unfinished {
        let abort = Abort { r#ref: name };
        undone("unfinished write", run.call(abort).await);
    }
}
