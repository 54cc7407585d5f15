//! Operations: work of several steps, journaled, so that it goes on after any crash and anybody may watch it.
//!
//! Owns the journal: which work was begun, for whom, and how it ended. Everything the work does is done by the owners of
//! the facts. Must not know how any step is done: it parses no image, touches no file, speaks to no registry.
//!
//! ```text
//! operations.redb
//!   operations  moment (newest first) NUL id → record: namespace, work without credentials and archives, how it stands
//!   moments     id → moment
//!   running     id of what has not ended
//!   claims, claimed  keys of clients, see `claims.rs`
//!   ended       moment of its end (oldest first) NUL id; counts: how many there are
//! ```
//!
//! | file | what it knows |
//! |---|---|
//! | `service.rs` | the actor: starts, watches and cancels work; picks up what a crash left |
//! | `store.rs` | the journal |
//! | `claims.rs` | which request a client's key is bound to, and what it was answered |
//! | `scrubs.rs` | when the last scrub ended |
//! | `board.rs` | live progress of one operation, and who watches it |
//! | `run.rs` | one operation under way: whom it may call, its lease, how it ends |
//! | `work/*.rs` | one file per kind of work: its steps, and how they are undone |
//!
//! **Power and rot.** An image's name is written after its blobs (each synced before its record) and after its layers (one
//! `diff.sync` before their records). What is here already is not believed: content looks at its bytes, and a layer is
//! compared with its blob (`work/prove.rs`), both once per life of their plugin, so that a second pull costs nothing and a
//! pull after a crash repairs. `work/scrub.rs` does the same for everything there is, on request and once in `scrub_hours`;
//! snapshots tell their layer by the label `gantry.io/layer`, so that those are compared, too, that no image names any more.
//!
//! A crash loses live progress, never work: what was running is begun again from its first step, and finds most of it
//! done (blobs resume at their offset, finished layers exist). Each attempt acts under operation ids of its own, because
//! what an earlier one did may have been undone since; it knows what it made under names that users choose by the label
//! `gantry.io/operation`, and undoes nothing that lacks it. Calls about a task are the exception: they are the same for
//! the same container in every attempt, so that no process is started twice.
//!
//! Work that had credentials or a live archive cannot be begun again, for neither is ever written down: it is undone,
//! fails and says so. Cancelled work is undone, too. What is found or made is held by a lease before it is looked at.

mod board;
mod claims;
mod config;
#[cfg(test)]
mod resumed;
mod run;
mod scrubs;
mod service;
mod store;
mod work;

use bus::{Boot, Registration};
use contracts::{
    containers::Containers, content::Content, diff::Diff, events::Events, gc::Gc, images::Images,
    integrity::Integrity, leases::Leases, namespaces::Namespaces, operations::Operations,
    snapshots::Snapshots, tasks::Tasks, transfer::Transfer,
};

/// Registers `operations/local`.
pub fn plugin() -> Registration {
    Registration::new::<Operations>("local")
        .also::<Integrity>()
        .requires::<Events>()
        .requires::<Leases>()
        .requires::<Namespaces>()
        .requires::<Content>()
        .requires::<Snapshots>()
        .requires::<Diff>()
        .requires::<Images>()
        .requires::<Transfer>()
        .requires::<Containers>()
        .requires::<Tasks>()
        .requires::<Gc>()
        .requires::<Integrity>()
        .fsck(service::fsck)
        .start(service::routes, |boot: Boot<config::Config>| {
            let store = store::Store::open(boot.root())?;
            service::OperationsService::new(store, boot.bus, boot.config)
        })
}
