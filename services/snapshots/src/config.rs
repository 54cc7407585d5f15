//! Settings. There are none yet: both drivers find out by themselves what the kernel offers.

use serde::{Deserialize, Serialize};

/// `[plugins."snapshots/<driver>"]`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {}
