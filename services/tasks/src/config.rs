//! Settings of the tasks plugin.

use serde::{Deserialize, Serialize};

/// What can be set under `[plugins.tasks]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Program of gantry's own shim; empty for this program with the argument `shim`.
    pub shim: String,
    /// Bytes of page cache of the records' file. A record has about half a KiB.
    pub cache_bytes: usize,
    /// Seconds from one look of the auditor to the next; 0 for none.
    pub audit_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shim: String::new(),
            cache_bytes: 1 << 20,
            audit_seconds: 60,
        }
    }
}
