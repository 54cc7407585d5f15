//! Files of committed bytes: `blobs/<algorithm>/<hex>`.

use crate::error::Trouble;
use contracts::Digest;
use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};
use tokio::sync::{Mutex, MutexGuard};

/// Locks over the digests; two digests that share one only wait for each other.
const LOCKS: usize = 64;
/// Source: OCI image-spec, descriptor.md "Registered Algorithms".
pub(crate) const ALGORITHMS: [&str; 3] = ["sha256", "sha384", "sha512"];

pub(crate) struct Blobs {
    root: PathBuf,
    locks: Vec<Mutex<()>>,
    /// Whether folders are synced.
    sync: bool,
}

/// One file as it lies there.
pub(crate) struct Lying {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) changed: SystemTime,
}

impl Blobs {
    pub(crate) fn open(root: PathBuf, sync: bool) -> Result<Self, Trouble> {
        let fresh = !root.exists();
        for algorithm in ALGORITHMS {
            let folder = root.join(algorithm);
            fs::create_dir_all(&folder).map_err(Trouble::io(&folder))?;
        }
        if fresh && sync {
            // A folder that a power cut takes would take its blobs along.
            for folder in [Some(root.as_path()), root.parent()].into_iter().flatten() {
                durable(folder)?;
            }
        }
        let locks = (0..LOCKS).map(|_| Mutex::default()).collect();
        Ok(Self { root, locks, sync })
    }

    /// The folder of an algorithm.
    pub(crate) fn folder(&self, algorithm: &str) -> PathBuf {
        self.root.join(algorithm)
    }

    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.algorithm()).join(digest.hex())
    }

    /// Held while a digest's bytes and its records change together: between placing bytes and committing their record,
    /// and between seeing that no record is left and removing the bytes.
    pub(crate) async fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.locks[Self::slot(digest)].lock().await
    }

    /// As [`Blobs::lock`], outside of the runtime.
    pub(crate) fn lock_blocking(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.locks[Self::slot(digest)].blocking_lock()
    }

    fn slot(digest: &Digest) -> usize {
        let mut hasher = DefaultHasher::new();
        digest.hash(&mut hasher);
        usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or(0)
    }

    /// The size of a blob's file; `None` when there is none.
    pub(crate) fn size(&self, digest: &Digest) -> Result<Option<u64>, Trouble> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Trouble::io(&path)(e)),
        }
    }

    /// Opens the bytes for one reader. Errors: `Gone`, `Damaged`.
    pub(crate) fn read(&self, digest: &Digest, size: u64) -> Result<File, Trouble> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Trouble::Gone(digest.clone()));
            }
            file => file.map_err(Trouble::io(&path))?,
        };
        let found = file.metadata().map_err(Trouble::io(&path))?.len();
        if found != size {
            return Err(Trouble::Damaged {
                digest: digest.clone(),
                found,
                size,
            });
        }
        Ok(file)
    }

    /// Moves a synced file to its place, over whatever is there: the same bytes, or damaged ones. Durable on return.
    pub(crate) fn place(&self, data: &Path, digest: &Digest) -> Result<(), Trouble> {
        let path = self.path(digest);
        fs::rename(data, &path).map_err(Trouble::io(&path))?;
        faults::point("content.commit.renamed");
        self.sync(digest)
    }

    /// Makes the folder of a digest durable.
    pub(crate) fn sync(&self, digest: &Digest) -> Result<(), Trouble> {
        match self.sync {
            true => durable(&self.root.join(digest.algorithm())),
            false => Ok(()),
        }
    }

    /// Removes the bytes; none is fine.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), Trouble> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Trouble::io(&path)(e)),
            _ => Ok(()),
        }
    }

    /// Every blob file. What has no digest for a name is none of ours and is left alone.
    pub(crate) fn walk(&self) -> impl Iterator<Item = Lying> + '_ {
        ALGORITHMS.iter().flat_map(|algorithm| {
            let files = fs::read_dir(self.root.join(algorithm)).ok();
            let files = files.into_iter().flatten().flatten();
            files.filter_map(|file| lying(algorithm, &file))
        })
    }
}

fn durable(folder: &Path) -> Result<(), Trouble> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Trouble::io(folder))
}

fn lying(algorithm: &str, file: &fs::DirEntry) -> Option<Lying> {
    use std::os::unix::fs::MetadataExt;
    let digest = Digest::new(format!("{algorithm}:{}", file.file_name().to_str()?)).ok()?;
    let found = file.metadata().ok()?;
    // The time of the last change of the inode: it moves with the rename that places a blob.
    let since = std::time::Duration::new(
        u64::try_from(found.ctime()).ok()?,
        u32::try_from(found.ctime_nsec()).ok()?,
    );
    Some(Lying {
        digest,
        size: found.len(),
        changed: SystemTime::UNIX_EPOCH + since,
    })
}
