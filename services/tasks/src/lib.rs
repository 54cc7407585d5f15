//! Tasks: the running instances of containers, behind shims that outlive this process.
//!
//! Owns the records of tasks and their added processes, the bundles that shims start from, and the logs. Talks to shims by
//! containerd's runtime-v2 protocol, so gantry's own shim and stock ones look the same from here. Whatever is done to the
//! host is journaled before it is done; after a crash it is finished or undone (`recover.rs`).
//!
//! | file | what it knows |
//! |---|---|
//! | `lifecycle.rs` | what may follow what in the life of a process; pure |
//! | `store.rs`, `record.rs` | records in redb, and the events that are committed with them |
//! | `engine.rs`, `live.rs` | who is alive, what is remembered of a shim, look-ups |
//! | `make.rs`, `run.rs`, `exec.rs`, `end.rs` | what callers ask for: create; start, signals, limits; added processes; delete |
//! | `watch.rs`, `events.rs`, `recover.rs` | how ends become known: an open `Wait`, forwarded events, a look after a restart |
//! | `lost.rs`, `retire.rs` | what is done about shims that died, are stuck, or whose task has ended |
//! | `audit.rs`, `host.rs`, `boot.rs` | what the host has of ours: compared with the records, and cleaned |
//! | `launch.rs`, `shim.rs`, `runtime.rs` | a shim's program, its connection, which one it is |
//! | `bundle.rs`, `stdio.rs`, `pump.rs`, `layout.rs`, `cgroup.rs` | folders, fifos, cgroups |
//! | `logs/` | log files and their readers |
//! | `metrics.rs`, `passwd.rs` | decoding |
//!
//! ```text
//! <root>/tasks.redb                      records, see `store.rs`
//! <root>/boot                            see `boot.rs`
//! <root>/logs/<namespace>/<container>/   see `logs/mod.rs`
//! <state>/bundles/<namespace>/<id>/      see `bundle.rs`
//! <state>/gone/<hash>                    bundles on their way out
//! <state>/sockets/<hash>                 where gantry's own shims listen
//! <state>/events.sock                    where shims forward their events to
//! ```
//!
//! Each shim has its own connection and each call its own bound: a stuck one makes its own task `unknown` and delays no
//! call about another. An end is recorded once, in one transaction with its event, however it became known.
//!
//! Effects on a shim cannot be committed with a record. When this process dies between the two, the successor finds the
//! effect on the shim and lets it answer the call that comes again (`lifecycle.rs`, *unanswered*). A signal may be sent
//! twice then; sizes and limits may be set twice, which changes nothing.
//!
//! Must not know: what an image or a snapshot is (mounts come as data), how a spec is made, any path but its own two
//! folders, `/proc` and the cgroup hierarchies.

mod audit;
mod boot;
mod bundle;
mod cgroup;
mod config;
mod end;
mod engine;
mod events;
mod exec;
mod host;
mod launch;
mod layout;
mod lifecycle;
mod live;
mod logs;
mod lost;
mod make;
mod metrics;
mod passwd;
mod pump;
mod record;
mod recover;
mod retire;
mod run;
mod runtime;
mod service;
mod shim;
mod stdio;
mod store;
mod watch;

#[cfg(test)]
extern crate self as tasks;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

pub use config::Config;

use bus::{Boot, Registration};
use contracts::containers::Containers;
use contracts::events::Events;
use contracts::integrity::Integrity;
use contracts::plugin::Privileges;
use contracts::snapshots::Snapshots;
use contracts::tasks::Tasks;
use engine::Engine;
use layout::Layout;
use service::TasksService;
use std::time::Duration;
use store::Store;

/// The facts the supervisor needs before any process exists, then the one function that starts it.
pub fn plugin() -> Registration {
    Registration::new::<Tasks>("local")
        .also::<Integrity>()
        .requires::<Events>()
        .requires::<Containers>()
        .requires::<Snapshots>()
        .privileges(Privileges::root(
            "starts shims, which make namespaces, cgroups and mounts",
        ))
        .fsck(service::fsck)
        .start(service::routes, |boot: Boot<Config>| {
            let store = Store::open(boot.root(), boot.config.cache_bytes)?;
            let mut layout = Layout::new(boot.root(), boot.state());
            layout.log_bytes = boot.config.log_bytes;
            let socket = events::listen(&layout.events())?;
            ledger::deliver(store.ledger(), &boot.bus);
            let engine = Engine::new(store, boot.bus, layout, &boot.config);
            events::serve(socket, &engine);
            engine.take_up()?;
            if let 1.. = boot.config.audit_seconds {
                engine.audit_every(Duration::from_secs(boot.config.audit_seconds));
            }
            Ok(TasksService::new(engine))
        })
}
