//! Namespaces: the tenants of a node. They separate names; they are no security boundary.
//!
//! Owns the records, which carry labels. What a namespace holds is known to the owners: a list shows every namespace that
//! has a record or holds anything, and a record is deleted only when all owners say that nothing is left.
//!
//! ```text
//! namespaces.redb
//!   namespaces  name → record
//! ```

mod config;
mod service;
mod store;

use bus::{Boot, Registration};
use contracts::containers::Containers;
use contracts::content::Content;
use contracts::events::Events;
use contracts::images::Images;
use contracts::integrity::Integrity;
use contracts::leases::Leases;
use contracts::namespaces::Namespaces;
use contracts::snapshots::Snapshots;

/// Registers `namespaces/local`.
pub fn plugin() -> Registration {
    Registration::new::<Namespaces>("local")
        .also::<Integrity>()
        .requires::<Events>()
        .requires::<Leases>()
        .requires::<Content>()
        .requires::<Snapshots>()
        .requires::<Images>()
        .requires::<Containers>()
        .fsck(service::fsck)
        .start(service::routes, |boot: Boot<config::Config>| {
            let store = store::Store::open(boot.root())?;
            Ok(service::NamespacesService::new(store, boot.bus))
        })
}
