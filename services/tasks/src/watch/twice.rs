//! Starts that a dead predecessor asked for and the shim was still at: neither the journal nor the first look tells of them.

use crate::engine::{Engine, STATE};
use crate::lifecycle::{Input, Phase};
use crate::live::Live;
use crate::shim::ShimError;
use containerd_shim_protos::api::{self, Status};
use contracts::{ExecId, Timestamp};
use std::time::Duration;
use tokio::time::Instant;

/// How long a shim may be at a start that nobody waits for any more.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(10);

impl Engine {
    /// The process id, when `refused` means that the process was started before this plugin was.
    pub(crate) async fn was_started(
        &self,
        live: &Live,
        exec: Option<&ExecId>,
        refused: &ShimError,
    ) -> Option<u32> {
        let young = Timestamp::now().0 - self.began.0 < PATIENCE.as_nanos() as i64;
        if !young || !live.inherited.get() || !refused.is(ttrpc::Code::FAILED_PRECONDITION) {
            return None;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(pid) = self.pid_in_shim(live, exec).await? {
                return Some(pid);
            }
            if Instant::now() > until {
                return None;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What must be recorded before the end of an added process: its start, when a predecessor asked for that.
    pub(crate) async fn start_before_end(&self, live: &Live, exec: &ExecId) -> Option<Input> {
        if !live.inherited.get() {
            return None;
        }
        let (store, name, id) = (self.store.clone(), live.name.clone(), exec.clone());
        let record = tokio::task::spawn_blocking(move || store.get_exec(&name, &id)).await;
        if record.ok()?.ok()?.process.phase != Phase::Created {
            return None;
        }
        let pid = self.pid_in_shim(live, Some(exec)).await.flatten()?;
        Some(Input::Found(Box::new(Input::Started { pid })))
    }

    /// The process id as the shim knows it: nothing inside when it was not started, nothing at all when it does not say.
    async fn pid_in_shim(&self, live: &Live, exec: Option<&ExecId>) -> Option<Option<u32>> {
        let request = api::StateRequest {
            id: live.name.id.to_string(),
            exec_id: exec.map(ToString::to_string).unwrap_or_default(),
            ..Default::default()
        };
        let state = live
            .call::<_, api::StateResponse>("State", &request, STATE)
            .await
            .ok()?;
        let started = state.pid != 0 && state.status != Status::CREATED.into();
        Some(started.then_some(state.pid))
    }
}
