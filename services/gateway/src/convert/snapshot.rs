//! Snapshots and mounts.

use contracts::snapshots::{Info, SnapshotKind, Used};
use contracts::{Mount, SnapshotKey, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One snapshot.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Snapshot)]
pub(crate) struct SnapshotView {
    /// Key or name.
    #[schema(value_type = String)]
    key: SnapshotKey,
    /// The committed snapshot below, if any.
    #[schema(value_type = Option<String>)]
    parent: Option<SnapshotKey>,
    /// `active`, `view` or `committed`.
    #[schema(value_type = String)]
    kind: SnapshotKind,
    /// Carry gc references among others.
    labels: BTreeMap<String, String>,
    /// When it was prepared.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it was committed or its labels last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Info> for SnapshotView {
    fn from(info: Info) -> Self {
        Self {
            key: info.key,
            parent: info.parent,
            kind: info.kind,
            labels: info.labels,
            created_at: info.created_at,
            updated_at: info.updated_at,
        }
    }
}

/// A mount as data: what `mount(2)` would be told.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Mount)]
pub(crate) struct MountView {
    /// `overlay`, `bind`, …
    fs_type: String,
    /// Path or device.
    source: String,
    /// Sub-path below the root file system; usually empty.
    target: String,
    /// fstab-style.
    options: Vec<String>,
}

impl From<Mount> for MountView {
    fn from(mount: Mount) -> Self {
        Self {
            fs_type: mount.fs_type,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        }
    }
}

/// How a new snapshot is mounted.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Mounts)]
pub(crate) struct MountsView {
    /// In order.
    pub(crate) mounts: Vec<MountView>,
}

impl From<Vec<Mount>> for MountsView {
    fn from(mounts: Vec<Mount>) -> Self {
        Self {
            mounts: mounts.into_iter().map(Into::into).collect(),
        }
    }
}

/// What a snapshot itself holds, without its parents.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(crate) struct UsageView {
    /// Bytes on disk, each hard-linked file once.
    pub(crate) size: u64,
    /// Inodes, each hard-linked file once.
    pub(crate) inodes: u64,
}

impl From<Used> for UsageView {
    fn from(used: Used) -> Self {
        Self {
            size: used.size,
            inodes: used.inodes,
        }
    }
}
