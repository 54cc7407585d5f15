//! Settings. Both drivers find out by themselves what the kernel offers.

use serde::{Deserialize, Serialize};

/// `[plugins."snapshots/<driver>"]`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Whether a snapshot's directory is on disk before its record is. Without, a power cut may leave committed snapshots
    /// without files, which the next scrub or pull finds: for nodes that are thrown away with their disk.
    pub(crate) sync: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { sync: true }
    }
}
