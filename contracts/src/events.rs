//! Events: one ordered durable log of everything that happened.
//!
//! Owners record a change and its event in one transaction (an outbox row) and hand the rows over with [`Append`];
//! the log remembers how far it has each owner's outbox, so a row that is handed over twice is stored once.

use crate::{Namespace, PluginId, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// The log. Sequence numbers start at 1 and have no holes.
    Events = "events" {
        write append(Append) -> u64;
        write publish(Publish) -> u64;
        read list(List) -> Batch;
        stream subscribe(Subscribe) -> Batch;
        read info(Info) -> LogInfo;
    }
}

/// One event as its owner recorded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it happened.
    pub time: Timestamp,
    /// In which namespace; `None` for the node itself.
    pub namespace: Option<Namespace>,
    /// Slash path, `/tasks/exit`.
    pub topic: String,
    /// The payload struct of that topic as JSON text.
    pub event: String,
}

/// One event of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number.
    pub seq: u64,
    /// What happened.
    pub entry: Entry,
}

/// Appends an owner's outbox rows, the first of which has number `first` in that outbox. Answers the last number stored.
///
/// Rows that the log has are skipped. Errors: `InvalidArgument` for a hole; `ResourceExhausted`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Append {
    /// Whose outbox.
    pub source: PluginId,
    /// Names one life of that outbox: a rebuilt store starts a new one.
    pub epoch: u64,
    /// Outbox number of the first row.
    pub first: u64,
    /// The rows, in order.
    pub entries: Vec<Entry>,
}

/// Appends one event of a user. Answers its number.
///
/// Errors: `InvalidArgument` for a topic that does not begin with `/` or an event that is not a JSON object.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Publish {
    /// Slash path.
    pub topic: String,
    /// JSON text of an object.
    pub event: String,
}

/// Reads a part of the log after `since`, oldest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// The last number the reader has seen; 0 for the beginning.
    pub since: u64,
    /// containerd filters over `topic`, `namespace`, `event.<field>`.
    pub filters: Vec<String>,
    /// At most so many; 0 leaves it to the log.
    pub limit: u32,
}

/// Reads the log after `since` and goes on with what happens. `None` begins with the next event.
///
/// The first batch comes at once, and may be empty.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscribe {
    /// The last number the reader has seen.
    pub since: Option<u64>,
    /// As [`List::filters`].
    pub filters: Vec<String>,
}

/// Some consecutive events that passed the filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// In order; may be empty.
    pub events: Vec<Event>,
    /// Everything up to here was looked at: the next `since`.
    pub seen: u64,
    /// Numbers that retention has passed, first and last, when the reader asked for some of them.
    pub gap: Option<(u64, u64)>,
    /// For [`List`]: whether the end of the log was reached.
    pub end: bool,
}

/// Asks for the bounds of the log.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Info {}

/// Bounds of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogInfo {
    /// Oldest number kept; `last + 1` when empty.
    pub first: u64,
    /// Newest number; 0 when nothing ever happened.
    pub last: u64,
    /// Bytes of payload kept.
    pub bytes: u64,
}
