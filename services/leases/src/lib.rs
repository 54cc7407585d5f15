//! Leases: keep named resources from collection until released or expired.
//!
//! Owns which leases there are in each namespace and what each holds. Must not know what a held resource is: it may not
//! exist yet, and its owner may be any plugin.
//!
//! ```text
//! leases.redb
//!   leases     namespace NUL id → record
//!   resources  namespace NUL id NUL kind NUL name → resource
//! ```
//!
//! A lease is over at its moment of expiry whether or not the collector has been there: it is then neither listed nor
//! found, and adding to it is refused. Its record goes with the next sweep.

mod config;
mod service;
mod store;

use bus::{Boot, Registration};
use contracts::{collect::Collect, events::Events, integrity::Integrity, leases::Leases};

/// Registers `leases/local`.
pub fn plugin() -> Registration {
    Registration::new::<Leases>("local")
        .also::<Integrity>()
        .also::<Collect>()
        .requires::<Events>()
        .fsck(service::fsck)
        .start(service::routes, |boot: Boot<config::Config>| {
            let store = store::Store::open(boot.root())?;
            Ok(service::LeasesService::new(store, &boot.bus))
        })
}
