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
    /// Most bytes of the log of one process; 0 for no bound. What is not kept any more is said where it was.
    pub log_bytes: u64,
    /// Seconds from one look of the auditor to the next; 0 for none.
    pub audit_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            shim: String::new(),
            cache_bytes: 1 << 20,
            log_bytes: 64 << 20,
            audit_seconds: 60,
        }
    }
}
