//! Bytes are handed out when they were seen to be those of their digest; damaged ones are marked until they are replaced.
//!
//! The mark is a row of the ledger, so that a restart does not have to find the damage again, and goes in the very
//! transaction that makes new bytes visible. Bytes that are missing or cut need no mark: their file says so.

use crate::{
    error::Trouble,
    hasher::Hasher,
    store::{Key, Store},
    trust::Stamp,
};
use contracts::{Digest, Namespace, content::Blob};
use ledger::{Snapshot, Table, Tx};
use std::{fs::File, future::Future, io};
use tokio::runtime::Handle;

/// Digest → what was found instead of its bytes.
pub(crate) const DAMAGED: Table<String> = Table::new("damaged");

/// `EIO`: the device could not read what it had been given to keep.
const UNREADABLE: i32 = 5;

impl Store {
    /// Why the bytes of a digest are marked as damaged, if they are.
    pub(crate) fn marked(&self, digest: &Digest) -> Result<Option<String>, Trouble> {
        let read = |snapshot: &Snapshot| Ok(snapshot.get(&DAMAGED, digest.as_str())?);
        self.ledger().read(read)
    }

    /// Opens bytes that were seen to be right, reading them first when that is not known or there is `doubt`. Blocks.
    ///
    /// Errors: `Gone`, `Damaged`, `Rotten`; `Io`.
    pub(crate) fn proven(&self, digest: &Digest, size: u64, doubt: bool) -> Result<File, Trouble> {
        if let Some(what) = self.marked(digest)? {
            return Err(rotten(digest, what));
        }
        let mut turn = None;
        loop {
            let file = self.blobs().read(digest, size)?;
            let stamp = Stamp::of_file(&file, &self.blobs().path(digest))?;
            if self.trust().knows(digest, stamp) && !doubt {
                return Ok(file);
            }
            if turn.is_none() {
                // Somebody else may be reading it right now: then the next look knows.
                turn = Some(self.trust().turn(digest));
                continue;
            }
            let Some(what) = self.difference(&file, digest, size)? else {
                self.trust().learn(digest, stamp);
                return Ok(file);
            };
            if self.condemn(digest, stamp, &what)? {
                return Err(rotten(digest, what));
            }
        }
    }

    /// What stands where the digest's bytes should be; `None` when they are right.
    fn difference(
        &self,
        file: &File,
        digest: &Digest,
        size: u64,
    ) -> Result<Option<String>, Trouble> {
        let mut hasher = Hasher::of(Some(digest));
        match hasher.read(file, 0, size) {
            Ok(()) => {}
            Err(error) => {
                return unreadable(error).map_err(Trouble::io(&self.blobs().path(digest)));
            }
        }
        self.compared(&hasher, digest)
    }

    /// Whether everything that was hashed is the digest.
    pub(crate) fn compared(
        &self,
        hasher: &Hasher,
        digest: &Digest,
    ) -> Result<Option<String>, Trouble> {
        let found = hasher.digest()?;
        Ok((found != *digest).then(|| format!("its bytes hash to {found}")))
    }

    /// Marks bytes as damaged, unless they are other ones than those that were read. Blocks.
    pub(crate) fn condemn(
        &self,
        digest: &Digest,
        read: Stamp,
        what: &str,
    ) -> Result<bool, Trouble> {
        let _lock = self.blobs().lock_blocking(digest);
        let now = match std::fs::metadata(self.blobs().path(digest)) {
            Ok(metadata) => Stamp::of(&metadata),
            // Deleted meanwhile: the next look says so.
            Err(_) => return Ok(false),
        };
        if now != read {
            return Ok(false);
        }
        tracing::error!(%digest, what, "a blob is damaged; pull an image that has it");
        self.trust().forget(digest);
        let (key, what) = (digest.clone(), what.to_owned());
        wait(self.ledger().write(None, move |tx: &mut Tx<'_>| {
            Ok::<_, Trouble>(tx.put(&DAMAGED, key.as_str(), &what)?)
        }))?;
        Ok(true)
    }

    /// Takes the mark from a digest whose bytes are gone for good. Blocks.
    pub(crate) fn unmark(&self, digest: &Digest) -> Result<(), Trouble> {
        self.trust().forget(digest);
        if self.marked(digest)?.is_none() {
            return Ok(());
        }
        let key = digest.clone();
        wait(self.ledger().write(None, move |tx: &mut Tx<'_>| {
            tx.remove(&DAMAGED, key.as_str())?;
            Ok::<_, Trouble>(())
        }))
    }

    /// Whether the bytes of a digest may be trusted; when not they are better sent again.
    pub(crate) async fn intact(&self, digest: &Digest, size: u64) -> Result<bool, Trouble> {
        let (store, digest) = (self.clone(), digest.clone());
        let proven = tokio::task::spawn_blocking(move || store.proven(&digest, size, false));
        match proven.await.map_err(Trouble::worker)? {
            Ok(_) => Ok(true),
            Err(trouble) if trouble.is_damage() => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// Answers `content.verify`. Blocks.
    pub(crate) fn verify(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        doubt: bool,
    ) -> Result<Blob, Trouble> {
        let blob = self.stat(namespace, digest)?;
        match self.proven(digest, blob.size, doubt) {
            Ok(_) => Ok(blob),
            Err(_) if self.record(&Key::new(namespace, digest))?.is_none() => {
                Err(Trouble::Missing(digest.clone()))
            }
            Err(trouble) => Err(trouble),
        }
    }
}

/// What a failed reading says about the bytes. Errors: those that say nothing about them.
pub(crate) fn unreadable(error: io::Error) -> io::Result<Option<String>> {
    match error.raw_os_error() == Some(UNREADABLE) || error.kind() == io::ErrorKind::UnexpectedEof {
        true => Ok(Some(format!("its bytes cannot be read: {error}"))),
        false => Err(error),
    }
}

fn rotten(digest: &Digest, what: String) -> Trouble {
    let digest = digest.clone();
    Trouble::Rotten { digest, what }
}

/// Waits for a write of the ledger where blocking is allowed.
pub(crate) fn wait<T>(write: impl Future<Output = T>) -> T {
    Handle::current().block_on(write)
}
