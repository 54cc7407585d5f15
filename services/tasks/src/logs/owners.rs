//! Logs go when their container does: its deletion is heard of from the event log, and looked for now and then.
//!
//! What is missed while nobody listens (tasks was away, the log was) is found by a look: when tasks starts, whenever
//! listening begins anew, and once an hour.

use crate::engine::{Engine, blocking};
use crate::layout::names_in;
use crate::logs::folder;
use crate::record::Name;
use bus::Ctx;
use contracts::containers::{self, Deleted};
use contracts::events::{Event, Subscribe};
use contracts::{Code, Error, Result};
use futures_util::StreamExt;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// How long to listen before logs are looked at that nobody may own.
const HOURLY: Duration = Duration::from_secs(3600);
/// Pause after a log that will not be listened to: there is a look at all logs in each round.
const REFUSED: Duration = Duration::from_secs(60);
/// Pause before listening again when that broke off.
const AGAIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Removes the logs of deleted containers from now on.
    pub(crate) fn follow_owners(self: &Rc<Self>) {
        let engine = Rc::downgrade(self);
        self.keep(tokio::task::spawn_local(async move {
            while engine.upgrade().is_some() {
                if let Err(error) = listen(&engine).await {
                    tracing::debug!(%error, "deletions of containers are not heard");
                }
                tokio::time::sleep(AGAIN).await;
            }
        }));
    }

    async fn sweep_logs(&self) {
        let all = self.layout.all_logs();
        let found = blocking(move || Ok::<_, Error>(names_in(&all))).await;
        for name in found.unwrap_or_default() {
            if self.find(&name).is_none() {
                let _ = self.owns_logs(&name).await;
            }
        }
    }

    /// Whether the container is still there whose logs are kept under this name; if not, they go.
    pub(crate) async fn owns_logs(&self, name: &Name) -> Result<bool> {
        let ctx = Ctx::new(Some(name.namespace.clone()));
        let id = name.id.clone();
        let made = match self.bus.call(&ctx, containers::Get { id }).await {
            Ok(container) => Some(container.created_at),
            Err(error) if error.is(Code::NotFound) => None,
            Err(error) => return Err(error),
        };
        let folder = self.layout.logs(name);
        blocking(move || {
            let owner = folder::owner(&folder);
            if owner.is_some() && owner == made {
                return Ok::<_, Error>(true);
            }
            folder::remove(&folder).map(|()| false)
        })
        .await
    }
}

/// Listens until the log breaks off or an hour has passed. Begins with a look at what was missed.
async fn listen(engine: &Weak<Engine>) -> Result<()> {
    let Some(bus) = engine.upgrade().map(|engine| engine.bus.clone()) else {
        return Ok(());
    };
    let ctx = Ctx::new(None).with_deadline(HOURLY);
    let subscribe = Subscribe {
        since: None,
        filters: vec!["topic==\"/containers/delete\"".into()],
    };
    // Before the look: what is deleted during it is heard of.
    let opened = bus.open(&ctx, subscribe).await;
    if let Some(engine) = engine.upgrade() {
        engine.sweep_logs().await;
    }
    let mut batches = match opened {
        Ok(batches) => batches,
        Err(error) => {
            tokio::time::sleep(REFUSED).await;
            return Err(error);
        }
    };
    while let Ok(Some(batch)) = tokio::time::timeout(HOURLY, batches.next()).await {
        let batch = batch?;
        let Some(engine) = engine.upgrade() else {
            return Ok(());
        };
        if batch.gap.is_some() {
            return Ok(());
        }
        for name in batch.events.iter().filter_map(deleted) {
            // A task that is there goes first, and keeps them until then.
            if engine.find(&name).is_none() {
                let _ = engine.owns_logs(&name).await;
            }
        }
    }
    Ok(())
}

fn deleted(event: &Event) -> Option<Name> {
    let namespace = event.entry.namespace.clone()?;
    let Deleted { id } = serde_json::from_str(&event.entry.event).ok()?;
    Some(Name { namespace, id })
}
