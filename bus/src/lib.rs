//! How messages travel: one private socket pair per `requires` edge, and nothing else.
//!
//! This crate knows the traits of `contracts` and not one service by name. A [`Bus`] is what a plugin calls others
//! with; [`Routes`] say which messages its actor answers; a [`Registration`] ties both together with the facts that the
//! supervisor needs. The delivery promise: a call stays pending when its peer dies and is sent again, with the same
//! operation id, to the peer's successor until the deadline; the owner of the state takes effect once (see `ledger`).
//!
//! From the outside in:
//!
//! | file | what it knows |
//! |---|---|
//! | `plugin.rs` | registration, and the process that hosts plugins |
//! | `client.rs` | the handle: `bus.call(&ctx, Stat { digest })` |
//! | `actor.rs` | `Call`, `Reply`, `Routes`: messages ↔ an actix actor |
//! | `link.rs` | one edge seen by its caller: what is pending, what must be sent again |
//! | `link/suspects.rs` | which call ends its peer each time, and is not sent again |
//! | `server.rs` | one edge seen by who answers: bounded work in flight, cancellation, stream credit |
//! | `envelope.rs` | what a frame says |
//! | `framing.rs` | frames ↔ socket, file descriptors included |
//! | `control.rs` | the same frames between supervisor and process |
//! | `privileges.rs` | giving up what a plugin was not granted |
//! | `foreign.rs` | a program in any language as a plugin: the page for its author |
//! | `json.rs` | JSON ↔ wire for every contract, for `gantry call` and foreign programs |
//! | `testing.rs` | the in-process bus and fakes |

mod actor;
mod client;
pub mod control;
mod envelope;
mod foreign;
mod framing;
pub mod json;
mod link;
mod plugin;
mod privileges;
pub mod server;
pub mod testing;
mod turns;

pub use actor::{
    Answered, Answering, Call, Dispatch, Items, Open, Reply, Routes, Streaming, items, on_disk,
};
pub use client::{Bus, Ctx, DEFAULT_DEADLINE};
pub use envelope::PROTOCOL;
pub use plugin::{Boot, Fsck, Registration, host};
