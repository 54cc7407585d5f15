//! Settings of the containers plugin.

use serde::{Deserialize, Serialize};

/// What can be set under `[plugins.containers]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes of page cache of the records' file. Records have about ten KiB each, their specs included.
    pub cache_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_bytes: 2 << 20,
        }
    }
}
