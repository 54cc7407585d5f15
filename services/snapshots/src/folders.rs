//! The directories of all snapshots, by number. See the module page for the tree.

use crate::error::{Error, Result};
use crate::tree;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
    mpsc,
};

type Job = Box<dyn FnOnce() + Send>;

/// Makes, finds and discards directories.
pub(crate) struct Folders {
    root: PathBuf,
    next: AtomicU64,
    /// Numbers whose directories are made and whose records are not: not orphans.
    drafts: Mutex<HashSet<u64>>,
    /// One thread that removes: removing fast hurts nobody, removing much at once does.
    remover: mpsc::Sender<Job>,
    /// Whether new directories can be given to root.
    chown: bool,
    /// Whether directories are flushed.
    durable: bool,
}

/// A directory that goes away unless it is kept.
pub(crate) struct Draft {
    folders: Arc<Folders>,
    pub(crate) number: u64,
    kept: bool,
}

impl Draft {
    /// Says that a record names it now.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            self.folders.discard(self.number);
        }
        self.folders.drafts().remove(&self.number);
    }
}

impl Folders {
    /// Opens the tree below `root`, or makes it. No record has a number from `next` on.
    pub(crate) fn open(root: &Path, next: u64, durable: bool) -> Result<Arc<Self>> {
        for (name, mode) in [("snapshots", 0o700), ("removing", 0o700), ("empty", 0o755)] {
            directory(&root.join(name), mode)?;
        }
        let capable = rustix::thread::capabilities(None).is_ok_and(|sets| {
            sets.effective
                .contains(rustix::thread::CapabilitySet::CHOWN)
        });
        let folders = Self {
            root: root.into(),
            next: AtomicU64::new(next),
            drafts: Mutex::default(),
            remover: start_remover()?,
            chown: capable,
            durable,
        };
        folders.give_to_root(&folders.empty())?;
        Ok(Arc::new(folders))
    }

    /// The directory of a snapshot.
    pub(crate) fn folder(&self, number: u64) -> PathBuf {
        self.root.join(format!("snapshots/{number}"))
    }

    /// Its files.
    pub(crate) fn fs(&self, number: u64) -> PathBuf {
        self.root.join(format!("snapshots/{number}/fs"))
    }

    /// The kernel's working directory beside them.
    pub(crate) fn work(&self, number: u64) -> PathBuf {
        self.root.join(format!("snapshots/{number}/work"))
    }

    /// A directory without files.
    pub(crate) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    /// Makes the directory of a new snapshot, with an empty `fs`. Blocks.
    pub(crate) fn draft(self: &Arc<Self>) -> Result<Draft> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            self.drafts().insert(number);
            let draft = Draft {
                folders: self.clone(),
                number,
                kept: false,
            };
            match rustix::fs::mkdir(self.folder(number), Mode::RWXU) {
                Ok(()) => {
                    self.add_fs(number)?;
                    return Ok(draft);
                }
                // A predecessor died before its record: the clean-up has it.
                Err(Errno::EXIST) => draft.keep(),
                Err(e) => {
                    draft.keep();
                    return Err(Error::io(self.folder(number).display())(e));
                }
            }
        }
    }

    /// Makes the directory of a known snapshot again, which a power cut took.
    pub(crate) fn restore(&self, number: u64) -> Result<()> {
        directory(&self.folder(number), 0o700)?;
        self.add_fs(number)
    }

    fn add_fs(&self, number: u64) -> Result<()> {
        let fs = self.fs(number);
        directory(&fs, 0o755)?;
        self.give_to_root(&fs)
    }

    /// A node that nobody privileged started keeps what it makes.
    fn give_to_root(&self, path: &Path) -> Result<()> {
        if !self.chown {
            return Ok(());
        }
        rustix::fs::chown(path, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(Error::io(path.display()))
    }

    /// Returns when the directory's entries are on disk. Blocks.
    pub(crate) fn sync(&self, number: u64) -> Result<()> {
        if !self.durable {
            return Ok(());
        }
        let fs = self.fs(number);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&fs, flags, Mode::empty())
            .and_then(rustix::fs::fsync)
            .map_err(Error::io(fs.display()))
    }

    /// Moves a directory out of the way and removes it in the background. One that is gone already is fine.
    pub(crate) fn discard(&self, number: u64) {
        let away = self.root.join(format!("removing/{number}"));
        match rustix::fs::rename(self.folder(number), &away) {
            Ok(()) => self.remove(away),
            Err(Errno::NOENT) => {}
            // The next start finds it without a record.
            Err(e) => tracing::warn!(number, error = %e, "a removed snapshot's files stay for now"),
        }
    }

    fn remove(&self, path: PathBuf) {
        self.in_background(move || {
            if let Err(e) = tree::remove(&path) {
                tracing::warn!(path = %path.display(), error = %e, "leftovers stay until the next start");
            }
        });
    }

    /// Queues work behind all that is being removed.
    pub(crate) fn in_background(&self, job: impl FnOnce() + Send + 'static) {
        // The thread ends only with this process, or with the last owner of the queue.
        let _ = self.remover.send(Box::new(job));
    }

    /// Removes what a predecessor left: half-removed trees, and directories that `known` does not have. Blocks.
    ///
    /// `known` is asked after the directories and the drafts were listed, so nothing young is taken for an orphan.
    pub(crate) fn clean(&self, known: impl FnOnce() -> Result<HashSet<u64>>) -> Result<()> {
        for name in names(&self.root.join("removing"))? {
            self.remove(self.root.join("removing").join(name));
        }
        let there: Vec<u64> = names(&self.root.join("snapshots"))?
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect();
        let drafts = self.drafts().clone();
        let known = known()?;
        for number in there {
            if !drafts.contains(&number) && !known.contains(&number) {
                tracing::info!(number, "removing a directory without a record");
                self.discard(number);
            }
        }
        Ok(())
    }

    /// How many directories there are, and the names of those that nobody knows. Blocks. As for [`Folders::clean`].
    pub(crate) fn strays(
        &self,
        known: impl FnOnce() -> Result<HashSet<u64>>,
    ) -> Result<(u64, Vec<String>)> {
        let there: Vec<String> = names(&self.root.join("snapshots"))?
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        let drafts = self.drafts().clone();
        let known = known()?;
        let is_stray = |name: &&String| match name.parse() {
            Ok(number) => {
                !drafts.contains(&number)
                    && !known.contains(&number)
                    && self.folder(number).exists()
            }
            Err(_) => true,
        };
        let strays = there.iter().filter(is_stray).cloned().collect();
        Ok((there.len() as u64, strays))
    }

    /// As [`Folders::discard`], for what has no number of ours for a name.
    pub(crate) fn discard_named(&self, name: &str) {
        if let Ok(number) = name.parse() {
            return self.discard(number);
        }
        let from = self.root.join("snapshots").join(name);
        let away = self.root.join("removing").join(name);
        match rustix::fs::rename(&from, &away) {
            Ok(()) => self.remove(away),
            Err(error) => tracing::warn!(name, %error, "a leftover stays for now"),
        }
    }

    fn drafts(&self) -> MutexGuard<'_, HashSet<u64>> {
        // A set of numbers is whole whenever its lock is free.
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start_remover() -> Result<mpsc::Sender<Job>> {
    let (sender, queue) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("remover".into())
        .spawn(move || queue.into_iter().for_each(|job| job()))
        .map_err(|source| Error::Io {
            what: "remover thread".into(),
            source,
        })?;
    Ok(sender)
}

fn names(folder: &Path) -> Result<impl Iterator<Item = std::ffi::OsString>> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::Io {
        what: folder.display().to_string(),
        source,
    })?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.file_name())))
}

/// Makes a directory with exactly this mode, whatever the umask is.
fn directory(path: &Path, mode: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::mkdir(path, mode) {
        Ok(()) => rustix::fs::chmod(path, mode),
        Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
    .map_err(Error::io(path.display()))
}
