//! Settings of the images plugin.

use serde::{Deserialize, Serialize};

/// There is nothing to set.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {}
