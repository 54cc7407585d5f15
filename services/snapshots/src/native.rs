//! The native driver: every active snapshot is a full copy of its parent, so any file system will do.

use crate::driver::{Driver, Shape, bind};
use crate::error::Result;
use crate::folders::Folders;
use crate::tree;
use contracts::Mount;
use contracts::snapshots::SnapshotKind;
use std::path::Path;

/// Copies.
#[derive(Debug)]
pub(crate) struct Native;

impl Driver for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn rebase(&self) -> bool {
        false
    }

    fn fill(&self, folder: &Path, kind: SnapshotKind, parent: Option<&Path>) -> Result<()> {
        match (kind, parent) {
            (SnapshotKind::Active, Some(parent)) => tree::copy(parent, &folder.join("fs")),
            _ => Ok(()),
        }
    }

    /// A view needs no copy: nobody can write to a committed snapshot.
    fn mounts(&self, folders: &Folders, shape: &Shape) -> Vec<Mount> {
        let writable = shape.kind == SnapshotKind::Active;
        let shown = match shape.chain.first() {
            Some(&parent) if !writable => parent,
            _ => shape.number,
        };
        vec![bind(&folders.fs(shown), writable)]
    }
}
