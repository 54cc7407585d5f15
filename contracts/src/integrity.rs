//! What every owner of durable state answers about the state of its own disk.
//!
//! A check reads and never changes; mending changes only what a finding names. Both are cut into short steps, so that
//! they run beside everything else: whoever drives them decides how fast (`operations`, `Work::Scrub`). A store that is
//! too damaged to open has no plugin that could answer; `gantry fsck` looks at it while its owner is stopped.

use crate::Namespace;
use serde::{Deserialize, Serialize};

service! {
    /// Questions to an owner about its own disk.
    Integrity = "integrity" {
        read check(Check) -> Checked;
        write mend(Mend) -> Mended;
    } emits {
        "/integrity/found" => Finding;
        "/integrity/mended" => Finding;
    }
}

/// Looks at some of what this owner has on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// Whether bytes are read and hashed, not only records and names.
    pub deep: bool,
    /// Token of the step; empty for the first.
    pub token: String,
}

/// What one step of a check saw: at most about 64 MiB of bytes, or 500 records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Bytes read in this step.
    pub bytes: u64,
    /// Things looked at in this step: records, blobs, folders.
    pub things: u64,
    /// Token of the next step; empty at the end.
    pub next: String,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What sort of damage.
    pub damage: Damage,
    /// Whose; `None` for what belongs to the node.
    pub namespace: Option<Namespace>,
    /// What is damaged: a store's file name, a record's key, a digest, a snapshot key, a path below the owner's folder.
    pub subject: String,
    /// A sentence for people: what was expected, what is there.
    pub what: String,
    /// What would mend it.
    pub cure: Cure,
}

/// Sorts of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// A store's file cannot be opened, is cut, or has lost its last commits.
    Store,
    /// A record does not pass its checksum.
    Record,
    /// A blob does not have the bytes of its digest.
    Blob,
    /// A layer's files are not those of its blob.
    Layer,
    /// Something that a record names is not there.
    Missing,
    /// Something is there that no record names.
    Leftover,
}

/// What would mend a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cure {
    /// Rebuilding it from what else is on disk.
    Rebuild,
    /// Removing it: nothing can need it.
    Remove,
    /// Fetching it again: the next pull of an image that has it does so.
    Fetch,
    /// Nothing that this node could do by itself.
    None,
}

/// Mends one finding of this owner. A finding that is not true any more is mended already.
///
/// Errors: `FailedPrecondition` for a finding whose cure is not in this owner's hands; it says whose it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mend {
    /// As [`Check`] reported it.
    pub finding: Finding,
}

/// How a finding was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mended {
    /// What was done, for people: `removed`, `3 records rebuilt from the blobs on disk`, `set aside as …`.
    pub how: String,
}
