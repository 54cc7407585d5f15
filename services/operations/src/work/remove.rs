//! Remove: task, snapshot, record.

use crate::run::{Run, maybe};
use contracts::containers::{Delete, Get};
use contracts::operations::{Outcome, Remove};
use contracts::tasks::{self, Status};
use contracts::{Error, Result, snapshots};

/// Deletes a container with all that belongs to it. Work that goes on after a crash finds parts gone already.
///
/// Errors: `NotFound`; `FailedPrecondition` while its task runs, unless forced.
pub(super) async fn remove(run: &Run, asked: &Remove) -> Result<Outcome> {
    let container = match maybe(
        run.call(Get {
            id: asked.id.clone(),
        })
        .await,
    )? {
        Some(container) => Some(container),
        None if run.attempt > 0 => None,
        None => {
            return Err(Error::not_found(format!(
                "container {}: not in this namespace",
                asked.id
            )));
        }
    };
    let exit = task(run, asked).await?;
    faults::point("operations.remove.task-deleted");
    if let Some(container) = container {
        // The record goes last: it says what else there is, also to who goes on after a crash.
        if let (Some(key), false) = (container.snapshot_key, asked.keep_snapshot) {
            let remove = snapshots::Remove { key };
            maybe(run.call_at_driver(&container.snapshotter, remove).await)?;
            faults::point("operations.remove.snapshot-removed");
        }
        let id = asked.id.clone();
        maybe(run.call(Delete { id }).await)?;
        faults::point("operations.remove.record-deleted");
    }
    Ok(exit.map_or(Outcome::None, Outcome::Exit))
}

async fn task(run: &Run, asked: &Remove) -> Result<Option<tasks::Exit>> {
    let Some(task) = maybe(
        run.call(tasks::Get {
            id: asked.id.clone(),
        })
        .await,
    )?
    else {
        return Ok(None);
    };
    if !asked.force && matches!(task.status, Status::Running | Status::Paused) {
        return Err(Error::precondition(format!(
            "container {}: its task is running; kill it first, or delete with force",
            asked.id
        )));
    }
    let delete = tasks::Delete {
        id: asked.id.clone(),
        exec: None,
        force: asked.force || task.status == Status::Created,
    };
    maybe(run.call(delete).await)
}
