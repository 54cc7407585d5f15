//! What a driver decides: how a snapshot's directory is filled, and which mounts show it.

use crate::error::Result;
use crate::folders::Folders;
use contracts::snapshots::{REBASE, SnapshotKind};
use contracts::{Labels, Mount};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Whether the labels ask for a parent at commit.
pub(crate) fn wants_rebase(labels: &Labels) -> bool {
    labels.get(REBASE).is_some_and(|value| value == "true")
}

/// All that mounts depend on. Recorded as the answer of `prepare`, so that a repetition gets the same mounts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Its directory.
    pub(crate) number: u64,
    pub(crate) kind: SnapshotKind,
    /// Whether its parent will be set at commit.
    pub(crate) layer: bool,
    /// Directories of the parents, nearest first.
    pub(crate) chain: Vec<u64>,
}

/// One way to layer file systems.
pub(crate) trait Driver: Send + Sync + 'static {
    /// `overlayfs`, `native`.
    fn name(&self) -> &'static str;
    /// Whether a parent may be set at commit.
    fn rebase(&self) -> bool;
    /// Fills the new directory of a snapshot, which has an empty `fs`; `parent` is the parent's `fs`. Blocks.
    fn fill(&self, folder: &Path, kind: SnapshotKind, parent: Option<&Path>) -> Result<()>;
    /// The mounts of an active or view snapshot.
    fn mounts(&self, folders: &Folders, shape: &Shape) -> Vec<Mount>;
}

/// A bind mount of a whole directory.
pub(crate) fn bind(source: &Path, writable: bool) -> Mount {
    let access = if writable { "rw" } else { "ro" };
    Mount {
        fs_type: "bind".into(),
        source: source.to_string_lossy().into_owned(),
        target: String::new(),
        options: vec![access.into(), "rbind".into()],
    }
}
