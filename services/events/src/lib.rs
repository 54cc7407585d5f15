//! The log: one ordered, durable sequence of everything that happened on this node.
//!
//! Owns `events/log/log.redb` and nothing else. Owners hand over their outboxes with `append`, users add with
//! `publish`; every event gets the next number, and a reader goes on from any number it has seen. How far the log has
//! each outbox is committed together with the rows, so a row that is handed over twice is stored once. Only a log that
//! was rebuilt and lost that note may take again what it has: an owner notes what the log has with its own next commit, and
//! hands over everything since then when both begin anew. Such a row stands in the log twice, with the same time, topic and
//! payload, under two numbers; nothing in it would tell it for sure from two equal events.
//!
//! Nobody waits for a reader: there are no queues per subscriber, only a cursor that pulls from the file. What
//! retention has passed is told as a gap.
//!
//! Must not know: who emits what, or what a payload means; it is JSON text, looked into only for a filter.

mod config;
mod filters;
mod reader;
mod service;
mod store;

pub use config::Config;

use bus::{Boot, Registration};
use contracts::{events::Events, integrity::Integrity, plugin::Privileges};

/// Registers `events/log`.
pub fn plugin() -> Registration {
    Registration::new::<Events>("log")
        .also::<Integrity>()
        .privileges(Privileges::NONE)
        .fsck(service::fsck)
        .start(service::routes, |boot: Boot<Config>| {
            let store = store::Store::open(&boot.root().join("log.redb"), &boot.config)?;
            Ok(service::EventsService::new(store))
        })
}
