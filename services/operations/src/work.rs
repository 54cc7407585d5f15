//! The kinds of work: one file each, with its steps in order and how they are undone.

mod archive;
mod collect;
mod container;
mod fetch;
mod naming;
mod pull;
mod push;
mod remove;
mod unpack;

use crate::run::Run;
use contracts::Result;
use contracts::operations::{Outcome, Work};

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
    }
}

/// Cleans up after work whose steps were dropped in the middle.
pub(crate) async fn abandon(run: &Run) {
    unpack::discard(run).await;
    if let Ok(lease) = run.lease() {
        run.release(lease).await;
    }
}
