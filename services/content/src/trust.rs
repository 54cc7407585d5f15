//! Which blobs' bytes were seen to be right, in this life of the store.
//!
//! What is remembered is the state of the inode then: a file that was written to, cut or replaced since is read again.
//! Nothing of this is durable, so after a restart, and thus after every power cut, each blob is read once before anybody
//! gets it.

use crate::error::Trouble;
use contracts::Digest;
use std::{
    collections::HashMap,
    fs::{File, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Readings that may go on side by side; two digests that share a turn only wait for each other.
const TURNS: usize = 8;

/// The state of an inode. Its change time moves with every write, rename and change of mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Of an open file. Errors: `Io`.
    pub(crate) fn of_file(file: &File, path: &Path) -> Result<Self, Trouble> {
        let metadata = file.metadata().map_err(Trouble::io(path))?;
        Ok(Self::of(&metadata))
    }
}

pub(crate) struct Trust {
    seen: Mutex<HashMap<Digest, Stamp>>,
    turns: Vec<Mutex<()>>,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            turns: (0..TURNS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Trust {
    fn seen(&self) -> MutexGuard<'_, HashMap<Digest, Stamp>> {
        // Every change of the map is one call.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these very bytes were seen to be right.
    pub(crate) fn knows(&self, digest: &Digest, stamp: Stamp) -> bool {
        self.seen().get(digest) == Some(&stamp)
    }

    pub(crate) fn learn(&self, digest: &Digest, stamp: Stamp) {
        self.seen().insert(digest.clone(), stamp);
    }

    pub(crate) fn forget(&self, digest: &Digest) {
        self.seen().remove(digest);
    }

    /// Held while a blob is read: whoever asks for the same one meanwhile waits and then knows.
    pub(crate) fn turn(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        digest.hash(&mut hasher);
        let slot = usize::try_from(hasher.finish() % TURNS as u64).unwrap_or(0);
        self.turns[slot]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
