//! Who runs: the supervisor makes a node out of plugins, and keeps it one.
//!
//! It reads the configuration and the manifest, derives the wiring from what plugins require, gives each process its uid,
//! folders and sockets, spawns all of them at once, and from then on reacts: a process that ends is started again and
//! wired anew, its neighbours are told and never restarted, a signal stops all of it in reverse order. It links no
//! service, holds no data and parses nothing that comes from outside.
//!
//! **The live graph.** Whatever a plugin does, exactly those suffer who require it, directly or through others; they stand
//! as degraded, with the cause and the chain to it, and so do the errors of their calls.
//!
//! - *Dead*: started again after a pause that doubles with every quick death; after too many it is `failed` and tried
//!   rarely. How it ended is kept: exit code, signal, the words of its panic, its memory limit.
//! - *Stuck*: every ready process is asked twice a second whether it answers, from where it answers calls. Silent for
//!   1.5 s it and its dependants are degraded; when it answers it is ready again; silent for 10 s it is killed, and its
//!   successor gets the calls that waited.
//! - *Late*: what requires it starts without it after 10 s. What never gets ready is killed after 10 min.
//! - *Too large*: a limit of memory or CPU is a cgroup of its own (`limits.rs`).
//! - *Broken link*: bytes that are no frame end a link between living processes; it is made anew, and pending calls are
//!   sent again.
//!
//! **Reload.** SIGHUP, `gantry reload` and `POST /v1/reload` read configuration and manifest again. All of it is checked
//! before anything is touched, and every mistake is named. A process is restarted when what it is told at its start has
//! changed: settings, limits, command, whom it may call, with whom it shares the process. So a plugin that comes or goes
//! restarts those that call its contracts, and nobody else; `[restart]` and `[probe]` count at once; `root`, `state` and
//! `uid_base` are refused. When one of those that restart does not come up within `probe.patience_seconds`, the former
//! plan comes back by itself.
//!
//! **Upgrade.** The build that runs is pinned by a descriptor: what becomes of its file changes no running node.
//! `gantry upgrade --binary PATH` moves one process after another to another build, callees first. Before anything is
//! touched the file must say (`gantry facts`) that it speaks the same protocol and has the same plugins, with the same
//! requirements, sockets and privileges. Each process finishes its writes, its successor must become ready within
//! `probe.patience_seconds` and stay so for half a second and an answer; meanwhile its callers wait, and are never told of
//! a failure. When it does not, it and all those before it go back, in reverse order. An edge, which owns nothing,
//! retires beside its successor: it finishes its requests for up to a minute. The supervisor itself is not replaced, and
//! remembers nothing: a restart of the daemon runs whatever build it is started from.
//!
//! | file | what it knows |
//! |---|---|
//! | `options.rs` | configuration + manifest + what is built in → a checked plan |
//! | `config.rs` `settings.rs` `printed.rs` | the TOML file, its mistakes by line, its defaults as a file |
//! | `reload.rs` `reload/turnover.rs` | old plan + new plan → changes; how they are made, all or nothing |
//! | `upgrade.rs` `builds.rs` `program.rs` | one process after another, and back; what a build says; a pinned build |
//! | `manifest.rs` `registry.rs` | which plugins, which share a process, which are programs in other languages |
//! | `graph.rs` | who calls whom, in which order they start |
//! | `lifecycle.rs` `standing.rs` `restart.rs` | what becomes of every process: (input, now) → outputs |
//! | `lifecycle/change.rs` | a process that is held, on trial, trusted |
//! | `lifecycle/probe.rs` `edges.rs` `exits.rs` | who is stuck, which link to make anew, how processes ended |
//! | `daemon.rs` | the loop that feeds the lifecycle and obeys it |
//! | `process.rs` `child.rs` | a process: how it is made, its control link, its end |
//! | `limits.rs` | what it may use, as a cgroup |
//! | `folders.rs` `lock.rs` `sockets.rs` | what a node has in the file system |
//! | `facts.rs` | what a process really is, from `/proc` |
//! | `service.rs` | what plugins may ask the supervisor |
//!
//! All down to `lifecycle.rs` is pure but for reading two files; simulated worlds in its tests go through crashes,
//! refusals, stops, silence and time in any order.

mod builds;
mod child;
pub mod config;
mod daemon;
mod facts;
mod folders;
pub mod graph;
pub mod lifecycle;
mod limits;
mod lock;
pub mod manifest;
mod options;
mod printed;
mod process;
mod program;
pub mod registry;
mod reload;
pub mod restart;
#[cfg(test)]
mod samples;
mod service;
mod settings;
mod sockets;
pub mod standing;
mod suggest;
mod upgrade;

pub use builds::BuildFacts;
pub use daemon::{DaemonError, run};
pub use folders::FolderError;
pub use lock::{Lock, LockError};
pub use options::{Options, Overrides, Plan, PlanError};
pub use printed::default_file;
pub use sockets::SocketError;
