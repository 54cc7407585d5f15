//! The open file. After any failure of the device redb refuses all further use of what it has open, also when the disk
//! has room again; so the file is closed then, and opened anew by whoever comes next.
//!
//! A file is held against its [mark](crate::mark) whenever it is opened. One that is refused stays as it was found.

use crate::device::Device;
use crate::format::{self, Born};
use crate::mark::{self, Life, Mark, Marker, Progress};
use crate::table::{Snapshot, fault};
use crate::{Fault, LedgerConfig};
use redb::{Database, DatabaseError};
use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

/// How long an owner waits for its predecessor, or for its own readers, to let go of the file.
const PATIENCE: Duration = Duration::from_secs(10);

/// A database and the device below it.
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) device: Device,
}

/// A database file that opens itself.
pub(crate) struct File {
    pub(crate) path: Arc<Path>,
    pub(crate) life: Life,
    cache: usize,
    open: RwLock<Option<Arc<Opened>>>,
    /// Missing where the disk had no room for it: what is lost then is noticed less well.
    marker: Option<Marker>,
    /// How far the log had the events before this process.
    pub(crate) before: Progress,
}

impl File {
    /// Opens or makes it, brings it up, and marks it. Errors: `InUse`, `Damaged`, `Newer`, `Full`, `Short`, `Io`.
    pub(crate) fn open(path: Arc<Path>, config: &LedgerConfig) -> Result<Self, Fault> {
        let (opened, born, mark) = patiently(&path, config.cache)?;
        let born = format::prepare(&opened.database, &path, config, born)?;
        let mark = mark.filter(|mark| mark.life == born.life);
        let marker = mark_it(&path, mark, &born)?;
        Ok(Self {
            path,
            life: born.life,
            cache: config.cache,
            open: RwLock::new(Some(Arc::new(opened))),
            marker,
            before: mark.map(|mark| mark.progress).unwrap_or_default(),
        })
    }

    /// What is open now. It is not to be kept: the file closes when the last one is dropped.
    pub(crate) fn opened(&self) -> Result<Arc<Opened>, Fault> {
        let opened = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*opened {
            return Ok(opened.clone());
        }
        drop(opened);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*open {
            return Ok(opened.clone());
        }
        let (opened, _, _) = patiently(&self.path, self.cache)?;
        let opened = Arc::new(opened);
        *open = Some(opened.clone());
        Ok(opened)
    }

    /// Everything as it is now.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, Fault> {
        let opened = self.opened()?;
        match Snapshot::of(&opened.database, &self.path, self.life.seed) {
            Err(Fault::Reopened(_)) => {
                self.let_go(opened);
                Snapshot::of(&self.opened()?.database, &self.path, self.life.seed)
            }
            result => result,
        }
    }

    /// Lets go of `failed`, unless somebody has done so already and what is open now is another.
    pub(crate) fn let_go(&self, failed: Arc<Opened>) {
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

    /// Notes what is on disk now.
    pub(crate) fn note(&self, progress: Progress) {
        if let Some(marker) = &self.marker {
            marker.note(progress);
        }
    }
}

/// Opens the mark, or makes it.
fn mark_it(path: &Path, mark: Option<Mark>, born: &Born) -> Result<Option<Marker>, Fault> {
    let made = match mark {
        Some(mark) => Marker::open(path, &mark),
        None => {
            let progress = Progress {
                commit: born.version,
                delivered: 0,
            };
            let life = born.life;
            Marker::create(path, &Mark { life, progress })
        }
    };
    match made {
        Ok(marker) => Ok(Some(marker)),
        // A store must open on a full disk, so that things can be removed.
        Err(Fault::Full(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Opens the file and holds it against its mark, when whoever has it lets go.
fn patiently(path: &Path, cache: usize) -> Result<(Opened, Option<Born>, Option<Mark>), Fault> {
    let until = Instant::now() + PATIENCE;
    loop {
        match checked(path, cache) {
            Err(Fault::InUse(_)) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Opens the file and holds it against its mark.
fn checked(path: &Path, cache: usize) -> Result<(Opened, Option<Born>, Option<Mark>), Fault> {
    if !path.exists()
        && let Some(mark) = mark::read(path)?
    {
        return Err(lost(path, &mark, None));
    }
    let opened = match create(path, cache, false) {
        Err(Fault::Damaged(..)) if format::is_unborn(path)? => create(path, cache, true)?,
        result => result?,
    };
    let born = format::look(&opened.database, path)?;
    // Behind the lock, for a predecessor may have noted more until it ended.
    let mark = mark::read(path)?;
    if let Some(mark) = &mark
        && !keeps_to(born.as_ref(), mark)
    {
        return Err(lost(path, mark, born.as_ref()));
    }
    let released = opened.device.release();
    released.map_err(|e| Fault::io(path, &e))?;
    Ok((opened, born, mark))
}

/// Whether a file has all that its mark knows of it.
pub(crate) fn keeps_to(born: Option<&Born>, mark: &Mark) -> bool {
    born.is_some_and(|born| {
        born.life.epoch == mark.life.epoch && born.version >= mark.progress.commit
    })
}

/// What a file that does not keep to its mark has lost.
pub(crate) fn lost(path: &Path, mark: &Mark, born: Option<&Born>) -> Fault {
    let last = mark.progress.commit;
    let what = match born {
        None if path.exists() => format!("is empty, but had {last} commits"),
        None => format!("is missing, but had {last} commits"),
        Some(born) if born.life.epoch == mark.life.epoch => {
            format!("lost commits {}..{last}", born.version + 1)
        }
        Some(_) => "is another file than the one that its mark describes".into(),
    };
    Fault::Damaged(path.to_owned(), what)
}

/// Opens the file, or makes it, and writes nothing until the device is released.
pub(crate) fn create(path: &Path, cache: usize, anew: bool) -> Result<Opened, Fault> {
    let device = Device::open(path, anew).map_err(|e| Fault::io(path, &e))?;
    // A damaged file that is opened without a check makes redb panic on the way; the check costs 10 ms and 0.3 ms
    // for each MiB of records.
    let mut builder = Database::builder();
    let builder = builder
        .set_cache_size(cache)
        .set_check_integrity_on_open(true);
    let database = match builder.create_with_backend(device.clone()) {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(Fault::InUse(path.to_owned())),
        Err(error) => return Err(fault(path, error)),
    };
    Ok(Opened { database, device })
}
