//! One unfinished write: its folder, how far it is, and who may touch it.
//!
//! Three things guard it. The *claim* is held by a commit or an abort from beginning to end, and briefly by who begins
//! to write. The *state* is locked for moments only. The *progress* is watched by followers and by waiting commits.

use crate::{
    blobs::Blobs,
    error::{Trouble, is_full},
    hasher::Hasher,
    writer::{self, End, Job, Running},
};
use contracts::{Digest, Namespace, Ref, Timestamp, content};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, watch};

/// `about.json`: whose write it is, and what it is meant to become.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) namespace: Namespace,
    pub(crate) r#ref: Ref,
    /// 0 when unknown.
    pub(crate) total: u64,
    pub(crate) expected: Option<Digest>,
    pub(crate) started_at: Timestamp,
    /// Under this name its bytes were, or were about to be, moved to the blobs; the record is not committed yet.
    pub(crate) becoming: Option<Digest>,
}

/// How far an ingest is, for whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes stored.
    pub(crate) offset: u64,
    /// Which file they are in: grows whenever the writer starts over; 0 while there is none.
    pub(crate) run: u32,
    pub(crate) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nobody writes now.
    Idle,
    /// A thread reads its pipe.
    Writing,
    /// It became this blob.
    Committed(Digest),
    /// It is gone.
    Dropped,
}

/// Held by whoever changes an ingest as a whole.
pub(crate) type Claim = OwnedMutexGuard<()>;

pub(crate) struct Ingest {
    folder: PathBuf,
    claim: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
    /// When bytes last arrived.
    touched: AtomicI64,
}

struct State {
    about: About,
    /// The hash of the first so many bytes, kept between two writers.
    hasher: Option<(Hasher, u64)>,
    /// How the last writer ended.
    end: End,
    writer: Option<Running>,
}

/// What a commit found when it looked at the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Whether they are in their place already, since before a crash.
    pub(crate) placed: bool,
}

impl Ingest {
    /// A new one. Nothing is on disk before [`Ingest::begin`].
    pub(crate) fn new(folder: PathBuf, about: About) -> Self {
        let progress = Progress {
            offset: 0,
            run: 0,
            phase: Phase::Idle,
        };
        let now = about.started_at;
        Self::with(folder, about, progress, now)
    }

    fn with(folder: PathBuf, about: About, progress: Progress, touched: Timestamp) -> Self {
        let state = State {
            about,
            hasher: None,
            end: End::Stopped,
            writer: None,
        };
        Self {
            folder,
            claim: Arc::default(),
            state: Mutex::new(state),
            progress: watch::Sender::new(progress),
            touched: AtomicI64::new(touched.0),
        }
    }

    /// Finds what a predecessor left: the file's length is the truth.
    pub(crate) fn load(folder: PathBuf) -> io::Result<Self> {
        let about: About = serde_json::from_slice(&fs::read(folder.join("about.json"))?)?;
        let (offset, run, touched) = match fs::metadata(folder.join("data")) {
            Ok(data) => (data.len(), 1, modified(&data)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (0, 0, about.started_at),
            Err(e) => return Err(e),
        };
        let phase = Phase::Idle;
        let progress = Progress { offset, run, phase };
        Ok(Self::with(folder, about, progress, touched))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has ended the process already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn about(&self) -> About {
        self.state().about.clone()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.progress.borrow().phase == Phase::Writing
    }

    pub(crate) fn is_gone(&self) -> bool {
        let phase = &self.progress.borrow().phase;
        matches!(phase, Phase::Committed(_) | Phase::Dropped)
    }

    pub(crate) fn touched(&self) -> Timestamp {
        Timestamp(self.touched.load(Ordering::Relaxed))
    }

    pub(crate) fn status(&self) -> content::Ingest {
        let (about, offset) = (self.about(), self.progress.borrow().offset);
        content::Ingest {
            r#ref: about.r#ref,
            offset,
            total: about.total,
            expected: about.expected,
            started_at: about.started_at,
            updated_at: self.touched(),
        }
    }

    /// Takes the ingest for a moment. Errors: `Busy` while a commit or an abort has it.
    pub(crate) fn try_claim(&self) -> Result<Claim, Trouble> {
        let claim = self.claim.clone().try_lock_owned();
        claim.map_err(|_| Trouble::Busy(self.about().r#ref))
    }

    /// Takes the ingest, after whoever has it.
    pub(crate) async fn claim(&self) -> Claim {
        self.claim.clone().lock_owned().await
    }

    /// Starts or resumes the write that `ask` describes. The caller has claimed it. Blocks.
    pub(crate) fn begin(
        self: &Arc<Self>,
        ask: &content::Write,
        permit: OwnedSemaphorePermit,
    ) -> Result<(u64, OwnedFd), Trouble> {
        self.take_over()?;
        let mut state = self.state();
        let about = self.agree(&state.about, ask)?;
        // A commit that failed at its record has moved the bytes away.
        let fresh = ask.restart || self.progress.borrow().run == 0 || !self.data().exists();
        let offset = match fresh {
            true => 0,
            false => self.progress.borrow().offset,
        };
        room(&self.folder, &about, offset)?;
        self.write_about(&about)?;
        let file = self.open_data(fresh)?;
        let kept = state.hasher.take().filter(|_| !fresh);
        let kept = kept.filter(|(hasher, _)| hasher.fits(about.expected.as_ref()));
        let (hasher, hashed) = kept.unwrap_or_else(|| (Hasher::of(about.expected.as_ref()), 0));
        let job = Job {
            ingest: self.clone(),
            file,
            offset,
            hasher,
            hashed,
            total: about.total,
            permit,
        };
        state.about = about;
        state.end = End::Closed;
        self.starts(fresh);
        let (running, pipe) = writer::start(job).map_err(|error| {
            self.idles();
            Trouble::io(&self.folder)(error)
        })?;
        state.writer = Some(running);
        Ok((offset, pipe))
    }

    fn starts(&self, fresh: bool) {
        self.progress.send_modify(|progress| {
            if fresh {
                progress.offset = 0;
                progress.run += 1;
            }
            progress.phase = Phase::Writing;
        });
    }

    fn idles(&self) {
        self.progress.send_modify(|progress| {
            if progress.phase == Phase::Writing {
                progress.phase = Phase::Idle;
            }
        });
    }

    /// Waits for a writer that has closed its pipe; refuses when it has not.
    fn take_over(&self) -> Result<(), Trouble> {
        let mut state = self.state();
        let Some(writer) = state.writer.take() else {
            return Ok(());
        };
        if !writer.is_draining() {
            state.writer = Some(writer);
            return Err(Trouble::Busy(state.about.r#ref.clone()));
        }
        drop(state);
        writer.join();
        Ok(())
    }

    /// What the ingest is about after `ask`. Errors: `Differs`.
    fn agree(&self, known: &About, ask: &content::Write) -> Result<About, Trouble> {
        let mut about = known.clone();
        about.becoming = None;
        if ask.restart {
            about.total = ask.total;
            about.expected = ask.expected.clone();
            return Ok(about);
        }
        let differs = |what, known: String, given: String| Trouble::Differs {
            name: about.r#ref.clone(),
            what,
            known,
            given,
        };
        let stored = self.progress.borrow().offset;
        match (about.total, ask.total) {
            (_, 0) => {}
            (0, total) if total >= stored => about.total = total,
            (known, total) if known == total => {}
            (0, total) => return Err(differs("at least", stored.to_string(), total.to_string())),
            (known, total) => return Err(differs("total", known.to_string(), total.to_string())),
        }
        match (&about.expected, &ask.expected) {
            (_, None) => {}
            (Some(known), Some(asked)) if known != asked => {
                return Err(differs("digest", known.to_string(), asked.to_string()));
            }
            (_, Some(asked)) => about.expected = Some(asked.clone()),
        }
        Ok(about)
    }

    fn write_about(&self, about: &About) -> Result<(), Trouble> {
        let (path, new) = (
            self.folder.join("about.json"),
            self.folder.join("about.new"),
        );
        let write = || {
            fs::create_dir_all(&self.folder)?;
            fs::write(&new, serde_json::to_vec(about)?)?;
            fs::rename(&new, &path)
        };
        match write() {
            Err(e) if is_full(&e) => Err(Trouble::Full(about.r#ref.clone())),
            written => written.map_err(Trouble::io(&path)),
        }
    }

    /// Opens the bytes for writing; `fresh` begins a new file, for followers may still read the old one.
    fn open_data(&self, fresh: bool) -> Result<File, Trouble> {
        let path = self.data();
        if fresh {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Trouble::io(&path)(e));
                }
                _ => {}
            }
        }
        if !fresh {
            // A commit that failed late has made it read-only.
            mode(&path, 0o600)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(fresh).mode(0o600);
        options.open(&path).map_err(Trouble::io(&path))
    }

    /// The writer's thread stored bytes.
    pub(crate) fn grew(&self, offset: u64) {
        self.touched.store(Timestamp::now().0, Ordering::Relaxed);
        self.progress
            .send_modify(|progress| progress.offset = offset);
    }

    /// The writer's thread is done; its end of the pipe is closed.
    pub(crate) fn ended(&self, hasher: Hasher, hashed: u64, end: End) {
        let mut state = self.state();
        if let End::Failed(error) = &end {
            tracing::error!(ingest = %state.about.r#ref, %error, "stored bytes");
        }
        state.hasher = Some((hasher, hashed));
        state.end = end;
        state.writer = None;
        self.idles();
    }

    /// Ends a writer and waits until it has let go. Blocks.
    pub(crate) fn stop(&self) {
        let writer = self.state().writer.take();
        if let Some(writer) = writer {
            writer.stop();
            writer.join();
        }
    }

    /// Counts and hashes what arrived. The caller has claimed it, and nobody writes. Blocks.
    ///
    /// Errors: `Full`, `TooLong`, `Size`, `Wrong`; see [`spoils`] for those that make the bytes worthless.
    pub(crate) fn verify(
        &self,
        commit: &content::Commit,
        blobs: &Blobs,
    ) -> Result<Verified, Trouble> {
        let (about, kept) = {
            let mut state = self.state();
            (state.about.clone(), state.hasher.take())
        };
        let expected = agree_on_digest(&about, commit)?;
        let total = (about.total > 0).then_some(about.total);
        let size = commit.size.or(total);
        let name = about.r#ref.clone();
        if let Some(found) = placed(&about, &self.data(), blobs)? {
            return check(name, found, size, expected);
        }
        self.arrived(size.is_some() || expected.is_some())?;
        let path = self.data();
        let file = File::open(&path).map_err(Trouble::io(&path))?;
        let found = file.metadata().map_err(Trouble::io(&path))?.len();
        if let Some(size) = size.filter(|size| *size != found) {
            self.state().hasher = kept;
            return Err(Trouble::Size { name, found, size });
        }
        let fits =
            |(hasher, hashed): &(Hasher, u64)| hasher.fits(expected.as_ref()) && *hashed <= found;
        let fresh = || (Hasher::of(expected.as_ref()), 0);
        let (mut hasher, hashed) = kept.filter(fits).unwrap_or_else(fresh);
        hasher
            .read(&file, hashed, found)
            .map_err(Trouble::io(&path))?;
        let digest = hasher.digest()?;
        self.state().hasher = Some((hasher, found));
        let verified = Verified {
            digest,
            size: found,
            placed: false,
        };
        check(name, verified, size, expected)
    }

    /// Whether everything that was sent has arrived, as far as the last writer's end tells; `checked` says that size or
    /// digest will tell the rest.
    fn arrived(&self, checked: bool) -> Result<(), Trouble> {
        let state = self.state();
        let name = state.about.r#ref.clone();
        match &state.end {
            End::Closed => Ok(()),
            End::Full => Err(Trouble::Full(name)),
            End::TooLong => {
                let size = state.about.total;
                Err(Trouble::TooLong { name, size })
            }
            End::Stopped | End::Failed(_) if checked => Ok(()),
            End::Stopped | End::Failed(_) => Err(Trouble::Interrupted(name)),
        }
    }

    /// Makes the bytes durable. Blocks for as long as the disk takes.
    pub(crate) fn sync(&self) -> Result<(), Trouble> {
        let path = self.data();
        match File::open(&path).and_then(|file| file.sync_data()) {
            Err(e) if is_full(&e) => Err(Trouble::Full(self.about().r#ref)),
            synced => synced.map_err(Trouble::io(&path)),
        }
    }

    /// Makes the bytes read-only and notes under which name they go to the blobs, so that a repeated commit finds them
    /// there after a crash.
    pub(crate) fn becomes(&self, digest: &Digest) -> Result<(), Trouble> {
        let mut state = self.state();
        let mut about = state.about.clone();
        about.becoming = Some(digest.clone());
        self.write_about(&about)?;
        state.about = about;
        mode(&self.data(), 0o444)
    }

    /// Removes the folder and tells everybody how it ended. Nobody writes. Blocks.
    pub(crate) fn end(&self, phase: Phase) {
        let state = self.state();
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(ingest = %state.about.r#ref, %error, "folder of a finished ingest");
            }
            _ => {}
        }
        self.progress.send_modify(|progress| progress.phase = phase);
    }
}

/// Says whether bytes that failed a commit like this can never become right.
pub(crate) fn spoils(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Wrong { .. } | Trouble::TooLong { .. } => true,
        Trouble::Size { found, size, .. } => found > size,
        _ => false,
    }
}

fn mode(path: &Path, mode: u32) -> Result<(), Trouble> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Trouble::io(path))
}

fn modified(data: &fs::Metadata) -> Timestamp {
    use std::os::unix::fs::MetadataExt;
    Timestamp(
        data.mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(data.mtime_nsec()),
    )
}

/// Refuses a write that cannot end well.
fn room(folder: &Path, about: &About, offset: u64) -> Result<(), Trouble> {
    let parent = folder.parent().unwrap_or(folder);
    let disk = rustix::fs::statvfs(parent).map_err(|e| Trouble::io(parent)(e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    match free < about.total.saturating_sub(offset).max(crate::room::LEFT) {
        true => Err(Trouble::Full(about.r#ref.clone())),
        false => Ok(()),
    }
}

fn agree_on_digest(about: &About, commit: &content::Commit) -> Result<Option<Digest>, Trouble> {
    match (&about.expected, &commit.expected) {
        (Some(known), Some(given)) if known != given => Err(Trouble::Differs {
            name: about.r#ref.clone(),
            what: "digest",
            known: known.to_string(),
            given: given.to_string(),
        }),
        (known, given) => Ok(given.clone().or_else(|| known.clone())),
    }
}

/// Bytes that a commit before a crash moved to their place.
fn placed(about: &About, data: &Path, blobs: &Blobs) -> Result<Option<Verified>, Trouble> {
    let Some(digest) = about.becoming.clone().filter(|_| !data.exists()) else {
        return Ok(None);
    };
    Ok(blobs.size(&digest)?.map(|size| Verified {
        digest,
        size,
        placed: true,
    }))
}

fn check(
    name: Ref,
    found: Verified,
    size: Option<u64>,
    expected: Option<Digest>,
) -> Result<Verified, Trouble> {
    match (size, expected) {
        (Some(size), _) if size != found.size => Err(Trouble::Size {
            name,
            found: found.size,
            size,
        }),
        (_, Some(expected)) if expected != found.digest => Err(Trouble::Wrong {
            name,
            found: found.digest,
            expected,
        }),
        _ => Ok(found),
    }
}
