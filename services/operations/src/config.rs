//! Settings of the operations plugin.

use contracts::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a user may set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Snapshot driver when neither request nor namespace names one.
    pub(crate) snapshotter: String,
    /// Layers of one image that are fetched and extracted at a time.
    pub(crate) parallel_layers: usize,
    /// Ended operations that are kept when they are older than a day; younger ones are, whatever their number.
    pub(crate) keep: usize,
    /// Hours between two scrubs that find damage by themselves; 0 for never. Source: a week, as file systems do.
    pub(crate) scrub_hours: u32,
    /// Percent of the time in which a scrub uses the disk, 1 to 100; it rests for the others.
    pub(crate) scrub_share: u32,
}

impl Default for Config {
    fn default() -> Self {
        // Three connections keep a registry busy, as containerd found; the fourth layer is extracted meanwhile.
        Self {
            snapshotter: "overlayfs".into(),
            parallel_layers: 4,
            keep: 1000,
            scrub_hours: 168,
            scrub_share: 50,
        }
    }
}

impl Config {
    /// Errors: `InvalidArgument` naming the key.
    pub(crate) fn check(self) -> Result<Self> {
        if self.parallel_layers == 0 {
            return Err(Error::invalid("parallel_layers: must be at least 1"));
        }
        Ok(self)
    }
}
