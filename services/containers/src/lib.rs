//! Container records, and the OCI specs that are made for them.
//!
//! Owns the records: what a container was made from, which shim runs it, its spec. A record is a root of collection:
//! its image, its snapshot and what its labels name stay. Runs nothing: a record without a task is a container at rest.
//!
//! | file | what it knows |
//! |---|---|
//! | `spec/` | image config + options → OCI runtime spec, a pure function |
//! | `host.rs` | what the generator asks of the machine |
//! | `store.rs` | records in redb, and their events |
//! | `record.rs` | what a record must look like |
//! | `references.rs`, `collect.rs` | what records keep, and the collector's questions |
//! | `service.rs` | messages → the above |
//!
//! Must not know: whether a task runs, what an image holds (its config and files come with the request), any path but
//! its own folder and, for reading, `/proc`, `/sys/fs/cgroup` and `/dev`.

mod collect;
mod config;
pub mod host;
mod record;
mod references;
mod service;
pub mod spec;
mod store;

pub use config::Config;
pub use store::{Store, StoreError};

use bus::{Boot, Registration};
use contracts::collect::Collect;
use contracts::containers::Containers;
use contracts::events::Events;
use contracts::integrity::Integrity;
use contracts::plugin::Privileges;
use service::ContainersService;

/// The facts the supervisor needs before any process exists, then the one function that starts it.
pub fn plugin() -> Registration {
    Registration::new::<Containers>("local")
        .also::<Integrity>()
        .also::<Collect>()
        .requires::<Events>()
        .privileges(Privileges::NONE)
        .fsck(service::fsck)
        .start(service::routes, |boot: Boot<Config>| {
            let store = Store::open(boot.root(), boot.config.cache_bytes)?;
            Ok(ContainersService::new(store, &boot.bus))
        })
}
