//! Who runs: the supervisor makes a node out of plugins, and keeps it one.
//!
//! It reads the configuration and the manifest, derives the wiring from what plugins require, gives each process its uid,
//! folders and sockets, spawns all of them at once, and from then on reacts: a process that ends is started again and
//! wired anew, its neighbours are told and never restarted, a signal stops all of it in reverse order. It links no
//! service, holds no data and parses nothing that comes from outside.
//!
//! | file | what it knows |
//! |---|---|
//! | `options.rs` | configuration + manifest + what is built in → a checked plan |
//! | `config.rs` `settings.rs` `printed.rs` | the TOML file, its mistakes by line, its defaults as a file |
//! | `manifest.rs` `registry.rs` | which plugins, which share a process |
//! | `graph.rs` | who calls whom, in which order they start |
//! | `lifecycle.rs` `standing.rs` `restart.rs` | what becomes of every process: (input, now) → outputs |
//! | `daemon.rs` | the loop that feeds the lifecycle and obeys it |
//! | `process.rs` `child.rs` | a process: how it is made, its control link, its end |
//! | `folders.rs` `lock.rs` `sockets.rs` | what a node has in the file system |
//! | `facts.rs` | what a process really is, from `/proc` |
//! | `service.rs` | what plugins may ask the supervisor |
//!
//! All down to `lifecycle.rs` is pure but for reading two files; a simulated world in its tests goes through crashes,
//! refusals and stops in any order.

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
pub use lock::LockError;
pub use options::{Options, Overrides, Plan, PlanError};
pub use printed::default_file;
pub use sockets::SocketError;
