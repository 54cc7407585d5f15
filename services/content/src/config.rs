//! Settings of the content store.

use serde::{Deserialize, Serialize};

/// What may be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What a namespace gets of the bytes of others.
    pub policy: Policy,
    /// Hours after which an ingest that nobody goes on with may be collected. Source: containerd, one day.
    pub ingest_hours: u32,
    /// Most pipes that are read at a time; each has a thread of its own.
    pub writers: u32,
    /// Whether bytes are on disk before their record is. Without, a power cut may leave records without bytes (found by
    /// the next use, and fetched again by the next pull): for nodes that are thrown away with their disk.
    pub sync: bool,
}

/// What a namespace gets of the bytes of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Whoever names a digest that the store has gets a record of it, without sending the bytes.
    #[default]
    Shared,
    /// Whoever wants a blob proves to have it by sending the bytes.
    Isolated,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::Shared,
            ingest_hours: 24,
            writers: 128,
            sync: true,
        }
    }
}
