//! What becomes of plugins when a configuration or a build changes.

use contracts::plugin::{Change, Reloaded, Upgrade, UpgradeInfo, UpgradeState, UpgradeStep};
use contracts::{PluginId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a reload did, or would do.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Reloaded)]
pub(crate) struct ReloadedView {
    /// Whether nothing was changed, because only this was asked for.
    dry_run: bool,
    /// What becomes of each plugin that is not left alone; empty when nothing has changed.
    changes: Vec<ChangeView>,
}

impl ReloadedView {
    /// Shows the answer to a reload.
    pub(crate) fn of(dry_run: bool, reloaded: Reloaded) -> Self {
        Self {
            dry_run,
            changes: reloaded.changes.into_iter().map(Into::into).collect(),
        }
    }
}

/// What becomes of one plugin.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Change)]
pub(crate) struct ChangeView {
    /// Which; `supervisor/local` for what counts for all.
    #[schema(value_type = String)]
    plugin: PluginId,
    /// `add`, `remove`, `restart`, or `apply`: at once, without a restart.
    action: String,
    /// Which settings, for people.
    why: String,
}

impl From<Change> for ChangeView {
    fn from(change: Change) -> Self {
        Self {
            plugin: change.plugin,
            action: change.action,
            why: change.why,
        }
    }
}

/// Which build to move to.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = UpgradeRequest)]
pub(crate) struct UpgradeBody {
    /// Absolute path of the build, on the node.
    binary: String,
    /// Which plugins; all when there are none. Plugins of one process move together.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    plugins: Vec<PluginId>,
}

impl From<UpgradeBody> for Upgrade {
    fn from(body: UpgradeBody) -> Self {
        Self {
            binary: body.binary,
            plugins: body.plugins,
        }
    }
}

/// How an upgrade goes.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Upgrade)]
pub(crate) struct UpgradeView {
    /// Path of the build.
    binary: String,
    /// `running`, `done`, `rolling_back` or `rolled_back`.
    #[schema(value_type = String)]
    state: UpgradeState,
    /// Every plugin of it, in order.
    steps: Vec<StepView>,
    /// Why it was rolled back; empty otherwise.
    cause: String,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When it ended; null until then.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
}

impl From<UpgradeInfo> for UpgradeView {
    fn from(upgrade: UpgradeInfo) -> Self {
        Self {
            binary: upgrade.binary,
            state: upgrade.state,
            steps: upgrade.steps.into_iter().map(Into::into).collect(),
            cause: upgrade.cause,
            started_at: upgrade.started_at,
            ended_at: upgrade.ended_at,
        }
    }
}

/// One plugin of an upgrade.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = UpgradeStep)]
pub(crate) struct StepView {
    /// Which.
    #[schema(value_type = String)]
    plugin: PluginId,
    /// `waiting`, `draining`, `starting`, `ready`, `rolled_back`; `prepared` when it did not run: it starts from the new
    /// build whenever it starts.
    phase: String,
    /// From the end of the old process to the readiness of the new one, microseconds; 0 until then.
    away_us: u64,
}

impl From<UpgradeStep> for StepView {
    fn from(step: UpgradeStep) -> Self {
        Self {
            plugin: step.plugin,
            phase: step.phase,
            away_us: step.away,
        }
    }
}
