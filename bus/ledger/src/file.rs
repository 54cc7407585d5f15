//! The open file. After any failure of the device redb refuses all further use of what it has open, also when the disk
//! has room again; so the file is closed then, and opened anew by whoever comes next.

use crate::Fault;
use crate::table::{Snapshot, fault};
use redb::Database;
use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

/// How long an owner waits for its predecessor, or for its own readers, to let go of the file.
const PATIENCE: Duration = Duration::from_secs(10);

/// A database file that opens itself.
pub(crate) struct File {
    pub(crate) path: Arc<Path>,
    cache: usize,
    open: RwLock<Option<Arc<Database>>>,
}

impl File {
    /// Opens or makes it. Errors: `InUse`, `Damaged`, `Full`, `Io`.
    pub(crate) fn open(path: Arc<Path>, cache: usize) -> Result<Self, Fault> {
        let file = Self {
            path,
            cache,
            open: RwLock::default(),
        };
        file.database().map(|_| file)
    }

    /// What is open now. It is not to be kept: the file closes when the last one is dropped.
    pub(crate) fn database(&self) -> Result<Arc<Database>, Fault> {
        let opened = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*opened {
            return Ok(database.clone());
        }
        drop(opened);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*open {
            return Ok(database.clone());
        }
        let database = Arc::new(create(&self.path, self.cache)?);
        *open = Some(database.clone());
        Ok(database)
    }

    /// Everything as it is now.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, Fault> {
        let database = self.database()?;
        match Snapshot::of(&database, &self.path) {
            Err(Fault::Reopened(_)) => {
                self.let_go(database);
                Snapshot::of(&*self.database()?, &self.path)
            }
            result => result,
        }
    }

    /// Lets go of `failed`, unless somebody has done so already and what is open now is another.
    pub(crate) fn let_go(&self, failed: Arc<Database>) {
        let name = Arc::downgrade(&failed);
        // Before the lock: who has it may be waiting for the last one to let go.
        drop(failed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open
            .as_ref()
            .is_some_and(|now| Arc::downgrade(now).ptr_eq(&name))
        {
            *open = None;
        }
    }
}

fn create(path: &Path, cache: usize) -> Result<Database, Fault> {
    let until = Instant::now() + PATIENCE;
    loop {
        // A damaged file that is opened without a check makes redb panic on the way; the check costs 10 ms and 0.3 ms
        // for each MiB of records.
        let mut builder = Database::builder();
        let builder = builder
            .set_cache_size(cache)
            .set_check_integrity_on_open(true);
        match builder.create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.map_err(|e| fault(path, e)),
        }
    }
}
