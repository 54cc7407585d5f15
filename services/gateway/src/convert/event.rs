//! Events, with their payload as a JSON object.

use super::json;
use contracts::events::Event;
use contracts::{Namespace, Timestamp};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// One event.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub(crate) struct EventView {
    /// Its number: `id` in the SSE form, and what `since` takes.
    pub(crate) seq: u64,
    /// When it happened.
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// In which namespace; null for the node itself.
    #[schema(value_type = Option<String>)]
    namespace: Option<Namespace>,
    /// Slash path, `/tasks/exit`.
    pub(crate) topic: String,
    /// What the topic carries.
    #[schema(value_type = Object)]
    event: Value,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            seq: event.seq,
            time: event.entry.time,
            namespace: event.entry.namespace,
            topic: event.entry.topic,
            event: json(&event.entry.event),
        }
    }
}

/// Numbers that retention has passed before the reader came.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Gap)]
pub(crate) struct GapView {
    /// The numbers.
    pub(crate) gap: GapBounds,
}

/// First and last number.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = GapBounds)]
pub(crate) struct GapBounds {
    /// First missing number.
    pub(crate) first: u64,
    /// Last missing number.
    pub(crate) last: u64,
}

/// A part of the log.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = EventPage)]
pub(crate) struct EventPage {
    /// Oldest first.
    pub(crate) items: Vec<EventView>,
    /// `since` of the next page, also understood as `page_token`; empty at the end of the log.
    pub(crate) next_page_token: String,
    /// Everything up to this number was looked at.
    pub(crate) version: u64,
    /// Numbers that were asked for and are no longer kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gap: Option<GapBounds>,
}
