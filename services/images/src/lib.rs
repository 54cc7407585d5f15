//! Images: a name, and the descriptor it stands for.
//!
//! Owns the names of each namespace. A name is a gc root: its target stays, what that refers to, and what
//! the name's own `containerd.io/gc.ref.*` labels name. Must not know what is behind
//! a descriptor, nor whether it is here: whoever names an image holds its content by a lease until the name is there.
//!
//! ```text
//! images.redb
//!   images  namespace NUL name → record
//! ```

mod config;
mod references;
mod service;
mod store;

use bus::{Boot, Registration};
use contracts::{collect::Collect, events::Events, images::Images, integrity::Integrity};

/// Registers `images/local`.
pub fn plugin() -> Registration {
    Registration::new::<Images>("local")
        .also::<Integrity>()
        .also::<Collect>()
        .requires::<Events>()
        .fsck(service::fsck)
        .start(service::routes, |boot: Boot<config::Config>| {
            let store = store::Store::open(boot.root())?;
            Ok(service::ImagesService::new(store, &boot.bus))
        })
}
