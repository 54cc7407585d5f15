//! Settings of the log.

use serde::{Deserialize, Serialize};

/// How much of the past is kept. Whichever bound is met first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes of payload that are kept: a few hundred thousand events.
    pub retain_bytes: u64,
    /// Hours that an event is kept: a week, so that whoever looks on Monday sees the weekend.
    pub retain_hours: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retain_bytes: 256 << 20,
            retain_hours: 168,
        }
    }
}
