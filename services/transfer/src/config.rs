//! Settings of the transfer plugin.

use crate::registry::Patience;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What may be set in `[plugins."transfer/local"]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder with a folder of rules per registry (`docker.io/hosts.toml`), read anew at each use. Must be readable for
    /// the plugin's own uid.
    pub config_path: String,
    /// Blobs that are fetched at the same time, over all images.
    pub max_concurrent_downloads: usize,
    /// Most bytes that one archive may hold.
    pub max_import_bytes: u64,
    /// Tries of one host without any progress.
    pub tries: u32,
    /// First pause between two tries, milliseconds; every next is twice as long.
    pub retry_pause_ms: u64,
    /// Longest silence within a transfer, seconds.
    pub idle_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            config_path: "/etc/gantry/certs.d".into(),
            // Two images' worth of what containerd fetches at once.
            max_concurrent_downloads: 6,
            // Larger images exist, but none that travels as one archive.
            max_import_bytes: 64 << 30,
            tries: 3,
            retry_pause_ms: 500,
            idle_timeout_s: 60,
        }
    }
}

impl Config {
    /// How long and how often to try.
    pub(crate) fn patience(&self) -> Patience {
        Patience {
            tries: self.tries.max(1),
            pause: Duration::from_millis(self.retry_pause_ms),
            idle: Duration::from_secs(self.idle_timeout_s.max(1)),
            ..Patience::default()
        }
    }
}
