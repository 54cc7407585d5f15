//! Layered file systems: one service, one plugin per driver.
//!
//! A driver never mounts anything. It answers with mounts as data, and whoever needs the files performs them.

use crate::{LabelPatch, Labels, Mount, Page, Paging, SnapshotKey, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// Snapshots of one driver. Only a committed snapshot may be a parent.
    Snapshots = "snapshots" {
        read driver(Driver) -> DriverInfo;
        write prepare(Prepare) -> Vec<Mount>;
        write view(View) -> Vec<Mount>;
        read mounts(Mounts) -> Vec<Mount>;
        write commit(Commit) -> ();
        write remove(Remove) -> ();
        read stat(Stat) -> Info;
        write update(Update) -> Info;
        read list(List) -> Page<Info>;
        read usage(Usage) -> Used;
    } emits {
        "/snapshot/prepare" => Prepared;
        "/snapshot/commit" => Committed;
        "/snapshot/remove" => Removed;
        "/snapshot/update" => Updated;
    }
}

/// Label of a snapshot that is prepared without a parent and gets one at commit: `true`. Read by [`Prepare`] alone.
///
/// Drivers with [`DriverInfo::rebase`] answer such a snapshot with a writable overlay mount even though nothing is below
/// it yet, so that deletions are written into its upper directory as overlay wants them. Others ignore it. The bottom
/// layer does without it: deletions there have nothing to hide.
pub const REBASE: &str = "gantry.io/rebase";

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// Writable, named by a key.
    Active,
    /// Read-only, named by a key.
    View,
    /// Finished, named by a name; may be a parent.
    Committed,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Key or name.
    pub key: SnapshotKey,
    /// Name of the committed snapshot below, if any.
    pub parent: Option<SnapshotKey>,
    /// Active, view or committed.
    pub kind: SnapshotKind,
    /// Carry gc references among others.
    pub labels: Labels,
    /// When it was prepared.
    pub created_at: Timestamp,
    /// When it was committed or its labels last changed.
    pub updated_at: Timestamp,
}

/// Asks the driver what it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Driver {}

/// What a driver is and can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverInfo {
    /// `overlayfs`, `native`.
    pub name: String,
    /// Whether [`Commit::parent`] may set the parent afterwards, so layers can be extracted in any order.
    pub rebase: bool,
}

/// Makes a writable snapshot on top of `parent`.
///
/// Errors: `AlreadyExists` for the key; `NotFound` for the parent; `FailedPrecondition` when the parent is not committed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// Its key.
    pub key: SnapshotKey,
    /// A committed snapshot, or none for an empty one.
    #[serde(default)]
    pub parent: Option<SnapshotKey>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
}

/// Makes a read-only view of `parent`. Errors: as [`Prepare`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// Its key.
    pub key: SnapshotKey,
    /// A committed snapshot, or none for an empty one.
    #[serde(default)]
    pub parent: Option<SnapshotKey>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
}

/// Answers the mounts of an active or view snapshot.
///
/// Errors: `NotFound`; `FailedPrecondition` for a committed one: take a view of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mounts {
    /// Its key.
    pub key: SnapshotKey,
}

/// Turns the active snapshot `key` into the committed snapshot `name`; the key is then free.
///
/// Commits that one caller sends without a lease take effect in the order in which they were sent, so it may name the one
/// before as `parent` without waiting for its answer. Its record and directory are on disk when this returns; so are its files when whoever wrote them brought them there
/// before, see `diff.sync`. Errors: `AlreadyExists` for the name; `NotFound` for key or parent;
/// `FailedPrecondition` when `key` is not active; `InvalidArgument` for `parent` when the driver cannot rebase or the
/// snapshot has another parent already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Commit {
    /// Becomes visible under this name.
    pub name: SnapshotKey,
    /// The active snapshot.
    pub key: SnapshotKey,
    /// Sets the parent of a snapshot that was prepared without one (drivers with `rebase`).
    #[serde(default)]
    pub parent: Option<SnapshotKey>,
    /// Its labels; those of the active snapshot are not inherited.
    #[serde(default)]
    pub labels: Labels,
}

/// Removes a snapshot and its files. Errors: `NotFound`; `FailedPrecondition` while another has it as parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Remove {
    /// Key or name.
    pub key: SnapshotKey,
}

/// Looks up one snapshot. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stat {
    /// Key or name.
    pub key: SnapshotKey,
}

/// Changes the labels of a snapshot. Errors: `NotFound`, `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Key or name.
    pub key: SnapshotKey,
    /// The change.
    pub labels: LabelPatch,
}

/// Lists snapshots of the caller's namespace, by key. Filter fields: `name`, `parent`, `kind`, `labels`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Measures what a snapshot itself holds, without its parents. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Usage {
    /// Key or name.
    pub key: SnapshotKey,
}

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Bytes on disk, each hard-linked file once.
    pub size: u64,
    /// Inodes, each hard-linked file once.
    pub inodes: u64,
}

/// A snapshot was prepared or viewed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Its key.
    pub key: SnapshotKey,
    /// Its parent.
    pub parent: Option<SnapshotKey>,
    /// `overlayfs`, `native`.
    pub snapshotter: String,
    /// Active or view.
    pub kind: SnapshotKind,
    /// Its labels.
    pub labels: Labels,
}

/// A snapshot was committed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Committed {
    /// The key it had.
    pub key: SnapshotKey,
    /// The name it has.
    pub name: SnapshotKey,
    /// `overlayfs`, `native`.
    pub snapshotter: String,
    /// Its parent.
    pub parent: Option<SnapshotKey>,
    /// Its labels.
    pub labels: Labels,
}

/// A snapshot was removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// Key or name.
    pub key: SnapshotKey,
    /// `overlayfs`, `native`.
    pub snapshotter: String,
}

/// Labels changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Updated {
    /// Key or name.
    pub key: SnapshotKey,
    /// `overlayfs`, `native`.
    pub snapshotter: String,
    /// Its labels.
    pub labels: Labels,
}
