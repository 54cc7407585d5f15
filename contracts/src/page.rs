//! Lists come in pages, because a frame is small and a node may hold a hundred thousand things.

use serde::{Deserialize, Serialize};

/// Which part of a list is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Paging {
    /// containerd filter expressions; an item passes when any of them matches, or when there are none.
    pub filters: Vec<String>,
    /// At most so many items; 0 leaves it to the owner. The owner may return fewer.
    pub limit: u32,
    /// The `next` of the page before; empty for the first.
    pub token: String,
}

/// One part of a list, in key order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items; may be empty even when `next` is not.
    pub items: Vec<T>,
    /// Token of the next page; empty when this was the last.
    pub next: String,
    /// Version of the collection when the page was read: it grows with every change.
    pub version: u64,
}
