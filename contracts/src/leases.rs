//! Leases: keep named resources from collection until released or expired.

pub use crate::collect::Resource;
use crate::{LabelPatch, Labels, LeaseId, Page, Paging, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// Leases of each namespace and what they hold.
    Leases = "leases" {
        write create(Create) -> Lease;
        read get(Get) -> Lease;
        read list(List) -> Page<Lease>;
        write update(Update) -> Lease;
        write delete(Delete) -> ();
        write add(Add) -> ();
        write remove(Remove) -> ();
        read resources(Resources) -> Page<Resource>;
    } emits {
        "/leases/create" => Changed;
        "/leases/update" => Changed;
        "/leases/delete" => Deleted;
    }
}

/// One lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: LeaseId,
    /// Its labels; `containerd.io/gc.expire` (RFC 3339) and `containerd.io/gc.flat` mean something to gc.
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself; the expire label as a moment.
    pub expires_at: Option<Timestamp>,
}

/// Makes a lease. Errors: `AlreadyExists`; `InvalidArgument` (bad labels, expiry in the past).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Create {
    /// Its id; made up when absent.
    pub id: Option<LeaseId>,
    /// Its labels.
    pub labels: Labels,
    /// Seconds until it ends by itself; `None` for the label's moment or never.
    pub expires_in: Option<u64>,
}

/// Looks up one lease. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// Its id.
    pub id: LeaseId,
}

/// Lists leases of the caller's namespace, by id. Filter fields: `id`, `labels`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Changes labels. Errors: `NotFound`, `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Its id.
    pub id: LeaseId,
    /// The change.
    pub labels: LabelPatch,
}

/// Releases a lease. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delete {
    /// Its id.
    pub id: LeaseId,
}

/// Lets a lease hold more. Adding what is held already changes nothing. Errors: `NotFound` for the lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Add {
    /// The lease.
    pub id: LeaseId,
    /// What it shall hold; need not exist yet.
    pub resources: Vec<Resource>,
}

/// Lets a lease hold less. Errors: `NotFound` for the lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Remove {
    /// The lease.
    pub id: LeaseId,
    /// What it shall no longer hold.
    pub resources: Vec<Resource>,
}

/// Lists what a lease holds. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resources {
    /// The lease.
    pub id: LeaseId,
    /// Which part; filters are ignored.
    #[serde(default)]
    pub paging: Paging,
}

/// A lease was made, or changed. What it holds is not told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// Its id.
    pub id: LeaseId,
    /// Its labels.
    pub labels: Labels,
    /// When it ends by itself; the end itself is told by the collector, later.
    pub expires_at: Option<Timestamp>,
}

/// A lease was released, or has expired and was collected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Its id.
    pub id: LeaseId,
}
