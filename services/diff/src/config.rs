//! Settings of the plugin.

use crate::apply::Limits;
use serde::{Deserialize, Serialize};

/// What bounds the work of this plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Layers worked on at the same time; each takes two threads. A layer that waits for its download counts from its
    /// first byte on.
    pub parallel: usize,
    /// Most bytes of one uncompressed layer.
    pub max_layer_bytes: u64,
    /// Most entries of one layer.
    pub max_layer_entries: u64,
    /// Whether an image's layers are on disk before its record is. Without, a power cut may leave layers with empty
    /// files, which the next scrub or pull finds: for nodes that are thrown away with their disk.
    pub sync: bool,
}

impl Default for Config {
    /// Twice as many layers as processors, so that one that waits for bytes leaves none idle.
    fn default() -> Self {
        let limits = Limits::default();
        let processors = std::thread::available_parallelism().map_or(2, Into::into);
        Self {
            parallel: processors * 2,
            max_layer_bytes: limits.bytes,
            max_layer_entries: limits.entries,
            sync: true,
        }
    }
}
