//! The collector: marks from the roots and sweeps, over owners that share no database.
//!
//! Owns nothing durable. It opens a generation at every owner; from then on they stamp whatever is created, labelled or
//! read for use. It asks owners in pages what their roots are and what nodes refer to, tells each owner which of its
//! nodes are reached, and then lets each sweep what is neither reached nor stamped. What only a stamp kept may refer to
//! others: owners say so (`late`), and that is marked before the next owner sweeps. An owner that restarts in between has
//! forgotten the generation; its refusal ends this collection, and nothing wrong was removed.
//!
//! Must not know what a node is: only who owns it.
//!
//! | file | what it knows |
//! |---|---|
//! | `service.rs` | the actor: one collection at a time; by request and by the clock |
//! | `collector.rs` | one collection, step by step |
//! | `marks.rs` | what is reached, and why: pure |

mod collector;
mod config;
mod marks;
mod service;

use bus::{Boot, Registration};
use contracts::{
    collect::Collect, containers::Containers, content::Content, gc::Gc, images::Images,
    leases::Leases, snapshots::Snapshots,
};

/// Registers `gc/local`.
pub fn plugin() -> Registration {
    Registration::new::<Gc>("local")
        .requires::<Leases>()
        .requires::<Images>()
        .requires::<Containers>()
        .requires::<Content>()
        .requires::<Snapshots>()
        // Whoever else keeps something: a foreign program, for one.
        .requires::<Collect>()
        .start(service::routes, |boot: Boot<config::Config>| {
            Ok(service::GcService::new(boot.bus, &boot.config))
        })
}
