//! What the auditor of tasks saw.

use contracts::Timestamp;
use contracts::tasks::{Audited, Leak, LeakKind};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What one look saw.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Audit)]
pub(crate) struct AuditView {
    /// When; 1970 before the first look.
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// Milliseconds it took.
    ms: f64,
    /// Looks since the tasks plugin was started.
    looks: u64,
    /// Tasks on record, in all namespaces.
    tasks: u64,
    /// Tasks whose shim does not answer.
    unknown: u64,
    /// Processes of shims of this node.
    shims: u64,
    /// Bundles.
    bundles: u64,
    /// Sockets of shims.
    sockets: u64,
    /// What belongs to no task, at most 200.
    leaks: Vec<LeakView>,
    /// How many of each kind were cleaned since the tasks plugin was started.
    cleaned: BTreeMap<String, u64>,
}

/// Something of this node's on the host that belongs to no task.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Leak)]
pub(crate) struct LeakView {
    /// `shim`, `bundle`, `socket`, `mount` or `cgroup`.
    #[schema(value_type = String)]
    kind: LeakKind,
    /// Its path, or its process.
    what: String,
    /// Whether it is gone now; otherwise the next look cleans it, or tries again.
    cleaned: bool,
}

impl From<Audited> for AuditView {
    fn from(audited: Audited) -> Self {
        let cleaned = audited.cleaned.iter();
        Self {
            time: audited.time,
            ms: audited.micros as f64 / 1000.0,
            looks: audited.looks,
            tasks: audited.tasks,
            unknown: audited.unknown,
            shims: audited.shims,
            bundles: audited.bundles,
            sockets: audited.sockets,
            cleaned: cleaned
                .map(|(kind, count)| (word(*kind).to_owned(), *count))
                .collect(),
            leaks: audited.leaks.into_iter().map(LeakView::from).collect(),
        }
    }
}

impl From<Leak> for LeakView {
    fn from(leak: Leak) -> Self {
        Self {
            kind: leak.kind,
            what: leak.what,
            cleaned: leak.cleaned,
        }
    }
}

/// The kind as it is written.
pub(crate) fn word(kind: LeakKind) -> &'static str {
    match kind {
        LeakKind::Shim => "shim",
        LeakKind::Bundle => "bundle",
        LeakKind::Socket => "socket",
        LeakKind::Mount => "mount",
        LeakKind::Cgroup => "cgroup",
    }
}
