//! Settings of the collector.

use serde::{Deserialize, Serialize};

/// What a user may set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Seconds between collections that nobody asked for; 0 for none. An expired lease is gone after at most so long.
    pub(crate) interval: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { interval: 60 }
    }
}
