//! What every owner of collectable resources answers besides its own contract.
//!
//! Collection without a shared database: see ARCHITECTURE.md "Garbage collection". The collector opens generation N at
//! every owner; from then on an owner stamps with N whatever is created, labelled or read for use. The collector marks
//! from the roots by asking owners in pages, then each owner sweeps what is unmarked and not stamped.

use crate::{ContainerId, Digest, ImageName, LeaseId, Namespace, Ref, SnapshotKey};
use serde::{Deserialize, Serialize};

service! {
    /// The collector's questions to an owner.
    Collect = "collect" {
        read begin(Begin) -> ();
        read roots(Roots) -> Edges;
        read references(References) -> Vec<Edge>;
        read mark(Mark) -> ();
        write sweep(Sweep) -> Swept;
        read tally(Tally) -> Vec<Count>;
    }
}

/// A resource, named so that any owner may speak of any other's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Node {
    /// Its namespace.
    pub namespace: Namespace,
    /// What it is, and its name.
    pub resource: Resource,
}

/// What can be collected or can keep others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// A blob.
    Content(Digest),
    /// A snapshot of a driver.
    Snapshot {
        /// `overlayfs`, `native`.
        driver: String,
        /// Key or name.
        key: SnapshotKey,
    },
    /// An unfinished write.
    Ingest(Ref),
    /// An image name.
    Image(ImageName),
    /// A container record.
    Container(ContainerId),
    /// A lease.
    Lease(LeaseId),
}

/// One reason why a node stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// Who refers; a root refers to itself.
    pub from: Node,
    /// Who is kept.
    pub to: Node,
    /// `image`, `container`, `lease`, `label containerd.io/gc.root`, `parent`, …
    pub reason: String,
    /// Whether the references of `to` do not count (`containerd.io/gc.flat` leases).
    pub flat: bool,
}

/// A page of edges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edges {
    /// The edges.
    pub items: Vec<Edge>,
    /// Token of the next page; empty at the end.
    pub next: String,
}

/// Opens generation `generation`: forgets marks and stamps of older ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begin {
    /// Larger than any before.
    pub generation: u64,
}

/// Lists what this owner keeps by itself: records that are roots, labelled roots, young ingests, unexpired leases' resources.
///
/// An expired lease is not listed; it is among what [`Sweep`] removes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Roots {
    /// The open generation. Errors: `FailedPrecondition` when it is not open (the owner restarted): begin again.
    pub generation: u64,
    /// Token of the page; empty for the first.
    pub token: String,
}

/// Lists what each of these nodes of this owner refers to, and (`gc.bref.*`) which of its nodes are kept because they
/// point back to them. Nodes that do not exist have no references.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct References {
    /// The open generation.
    pub generation: u64,
    /// At most 200.
    pub nodes: Vec<Node>,
}

/// Marks nodes of this owner as kept in this generation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// The open generation.
    pub generation: u64,
    /// At most 200.
    pub nodes: Vec<Node>,
}

/// Removes what is neither marked nor stamped, a bounded number at a time: repeat until `done`.
///
/// Bytes go after records. Errors: `FailedPrecondition` when the generation is not open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sweep {
    /// The open generation.
    pub generation: u64,
    /// Whether nothing is removed, only listed.
    pub dry_run: bool,
    /// Token of the page (dry runs); empty for the first.
    pub token: String,
}

/// What one sweep step did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// What went, or would go.
    pub removed: Vec<Removal>,
    /// References of nodes that only a fresh stamp kept: mark them at their owners before those sweep.
    pub late: Vec<Edge>,
    /// Whether nothing is left to remove.
    pub done: bool,
    /// Token of the next page (dry runs).
    pub next: String,
}

/// One collected resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// What went.
    pub node: Node,
    /// Bytes that it held; 0 when unknown.
    pub size: u64,
    /// `unreferenced`, `expired`.
    pub reason: String,
}

/// Counts what this owner holds in each namespace, or in one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Only this one.
    pub namespace: Option<Namespace>,
}

/// How much of one kind a namespace holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The namespace.
    pub namespace: Namespace,
    /// `blobs`, `ingests`, `images`, `containers`, `leases`, `overlayfs snapshots`, …
    pub what: String,
    /// How many; never 0.
    pub count: u64,
}
