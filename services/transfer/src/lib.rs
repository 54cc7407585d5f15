//! transfer brings images in and out: from and to registries, from and to archives.
//!
//! It owns nothing: no file, no database. Connections, tokens and credentials live in its memory and die with it;
//! blobs go through a pipe into the content store, which alone hashes and decides. Everything here touches bytes of
//! strangers, so it runs without any privilege.
//!
//! | file | what it knows |
//! |---|---|
//! | `service.rs` | the actor: message → function |
//! | `platform.rs` `manifest.rs` | platforms, documents: pure; names are read by `contracts/reference` |
//! | `hosts.rs` | `hosts.toml`: whom to ask for a registry, and why |
//! | `transport.rs` `auth.rs` `registry.rs` | one request: connection, credentials, redirects, what an answer means |
//! | `resolve.rs` `fetch.rs` `push.rs` | tag → descriptor, one blob in, one blob or document out |
//! | `store.rs` | the content store, as it is called from here |
//! | `ingest.rs` `send.rs` `image.rs` | one blob into the store, a whole image out, what an image consists of |
//! | `archive.rs` | OCI layouts and docker archives |
//!
//! **Why reqwest, and not a registry client:** `hosts.toml` rewrites paths, adds headers and the `ns` query, orders and
//! falls back between hosts; a cut transfer goes on with `Range` at the byte that the store has; credentials must not
//! follow a redirect. A registry client keeps its requests to itself, so each of these would be a fork of it.
//! **Why own document types:** registries send documents that are wrong in ways a strict type cannot show (both an
//! image and an index at once) and have fields no type knows; only the handful of fields that matter is read.
//!
//! It must not know: other services than content, snapshots and unpacking, HTTP of our own API.

mod archive;
pub mod auth;
pub mod config;
pub mod fetch;
pub mod hosts;
mod image;
mod ingest;
pub mod manifest;
pub mod platform;
mod progress;
pub mod push;
pub mod registry;
pub mod resolve;
mod send;
pub mod service;
mod store;
mod transport;

use bus::{Boot, Registration};
use config::Config;
use contracts::{content::Content, plugin::Privileges, transfer::Transfer};
use service::TransferService;

/// The facts the supervisor needs before any process exists, and the one function that starts it.
pub fn plugin() -> Registration {
    Registration::new::<Transfer>("local")
        .requires::<Content>()
        .privileges(Privileges::NONE)
        .start(service::routes, |boot: Boot<Config>| {
            Ok(TransferService::new(&boot.config, boot.bus))
        })
}
