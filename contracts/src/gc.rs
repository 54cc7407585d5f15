//! The collector.

use crate::collect::Removal;
use serde::{Deserialize, Serialize};

service! {
    /// Marks and sweeps over all owners. One collection runs at a time; a second request joins or follows it.
    Gc = "gc" {
        write collect(Collect) -> Collected;
        read plan(Plan) -> Collected;
        read why(Why) -> Vec<crate::collect::Edge>;
        read last(Last) -> Option<Collected>;
    }
}

/// Collects now and answers when everything that was garbage before the call is gone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Collect {}

/// Says what a collection would remove now, and why. Changes nothing. Possibly long: the rows are cut at 200, `total` counts all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {}

/// Explains why a node stays: the chain of references from a root to it. Errors: `NotFound` when nothing keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// Which node.
    pub node: crate::collect::Node,
}

/// Answers the last finished collection since the collector started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Last {}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Its generation.
    pub generation: u64,
    /// At most 200 rows.
    pub removed: Vec<Removal>,
    /// How many went in all.
    pub total: u64,
    /// Bytes of blobs and snapshots that went, as far as known.
    pub bytes: u64,
    /// How many nodes stayed.
    pub kept: u64,
    /// Microseconds it took.
    pub micros: u64,
}
