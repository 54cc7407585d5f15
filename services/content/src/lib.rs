//! The content store: immutable blobs found by digest, and the ingests that become blobs.
//!
//! ```text
//! content/
//!   blobs/<algorithm>/<hex>        the bytes, mode 0444; shared by all namespaces that have a record of them
//!   ingests/<sha256 of namespace and ref>/
//!     about.json                   whose write it is and what it is meant to become
//!     data                         what arrived so far; its length is the offset
//!   content.redb                   who may see which blob, with which labels
//! ```
//!
//! A blob is visible when its record is committed, and its bytes are on disk before that. Bytes go after the last
//! record went. Names of callers never become paths: refs are hashed, digests are checked hex.
//!
//! From the outside in:
//!
//! | file | what it knows |
//! |---|---|
//! | `service.rs`, `collecting.rs` | the actor: the contracts `content` and `collect` |
//! | `store.rs` | records, and the order in which record and bytes come and go |
//! | `follow.rs` | a stream that grows with an ingest |
//! | `sweep.rs`, `collect.rs`, `references.rs` | roots and removal · generations, marks, stamps · labels that refer |
//! | `ingests.rs`, `ingest.rs`, `writer.rs` | all unfinished writes · one of them · the thread that reads its pipe |
//! | `verify.rs`, `trust.rs` | damaged bytes are marked, never handed out, and written again · what was seen to be right |
//! | `check.rs`, `checking.rs` | the contract `integrity`: this store's own disk, looked at in short steps |
//! | `writeback.rs` | bytes on their way to the device before anybody waits for it |
//! | `blobs.rs`, `hasher.rs`, `room.rs` | files of committed bytes · the three digest algorithms · what stays free |
//!
//! **What is promised to readers.** A descriptor is handed out only for bytes that hashed to their digest in this life of
//! the store (at most once per blob and life: at commit, by a check, or at the first open), whose file nobody touched
//! since, and that are not marked as damaged; ranges and whole reads alike. Who reads through a descriptor reads what the
//! kernel has: a device that rots *after* that look is found by the next scrub, not by the read.
//!
//! **Power.** Bytes are synced before the rename, the folder after it, the record after both; `sync = false` leaves that
//! out, for nodes that are thrown away.
//!
//! Must not know: what a blob means (manifest, layer, …), and who wants it.

mod blobs;
mod check;
mod checking;
mod collect;
mod collecting;
mod config;
mod error;
mod follow;
mod hasher;
mod ingest;
mod ingests;
mod references;
mod room;
mod service;
mod store;
mod sweep;
mod trust;
mod verify;
mod writeback;
mod writer;

pub use config::{Config, Policy};

use bus::{Boot, Registration};
use contracts::{
    collect::Collect, content::Content, events::Events, integrity::Integrity, leases::Leases,
    plugin::Privileges,
};

/// Registers `content/local`.
pub fn plugin() -> Registration {
    Registration::new::<Content>("local")
        .also::<Collect>()
        .also::<Integrity>()
        .requires::<Events>()
        .requires::<Leases>()
        .privileges(Privileges::NONE)
        .fsck(checking::fsck)
        .start(service::routes, |boot: Boot<Config>| {
            let store = store::Store::open(boot.root(), &boot.config)?;
            Ok(service::ContentService::new(store, boot.bus))
        })
}
