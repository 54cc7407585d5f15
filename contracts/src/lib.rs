//! The vocabulary of gantry: every message that may cross the bus, and nothing else.
//!
//! This crate does no I/O, knows no runtime and no actor. One module per service; each declares its
//! service once with [`service!`], and the plain structs beside it are the messages. Reading this
//! crate top to bottom is reading what gantry can do.
//!
//! Wire rules, because frames are bincode: no `flatten`, no `untagged`, no `skip_serializing_if`, no
//! free JSON values (JSON travels as a `String`), enums grow only at their end. `tests/wire.rs`
//! round-trips every message and holds golden bytes for one sample of each.

#[macro_use]
mod service;

pub mod collect;
pub mod containers;
pub mod content;
pub mod diff;
mod error;
pub mod events;
pub mod fd;
pub mod gateway;
pub mod gc;
mod ids;
pub mod images;
pub mod integrity;
pub mod leases;
pub mod namespaces;
pub mod oci;
pub mod operations;
pub mod page;
pub mod plugin;
pub mod snapshots;
pub mod tasks;
pub mod transfer;

pub use error::{Code, Error, Result};
pub use fd::Fd;
pub use ids::{
    ContainerId, Digest, ExecId, ImageName, LabelPatch, Labels, LeaseId, Namespace, OperationId,
    PluginId, Ref, SnapshotKey, Timestamp, check_labels,
};
pub use oci::{Descriptor, Mount, Platform};
pub use page::{Page, Paging};
pub use service::{Emits, Kind, Method, Request, Service, Visitor};

/// Calls `$visit!` with every service contract of the house: the one list that golden tests, the JSON
/// bridge and `gantry call` walk.
#[macro_export]
macro_rules! each_service {
    ($visit:ident) => {
        $visit!($crate::content::Content);
        $visit!($crate::snapshots::Snapshots);
        $visit!($crate::diff::Diff);
        $visit!($crate::images::Images);
        $visit!($crate::transfer::Transfer);
        $visit!($crate::containers::Containers);
        $visit!($crate::tasks::Tasks);
        $visit!($crate::events::Events);
        $visit!($crate::operations::Operations);
        $visit!($crate::leases::Leases);
        $visit!($crate::namespaces::Namespaces);
        $visit!($crate::collect::Collect);
        $visit!($crate::gc::Gc);
        $visit!($crate::integrity::Integrity);
        $visit!($crate::plugin::Supervisor);
    };
}
