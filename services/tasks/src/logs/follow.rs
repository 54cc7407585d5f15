//! Reading a log as a stream: what is there, then what comes, until its process has ended and all is read.
//!
//! Every batch is read when the reader asks for it, so a slow reader costs one open file. Files are read where blocking
//! is allowed; waiting costs an inotify instance, or a look now and then where the kernel gives no more of those.

use super::lines::{Lines, Span, count, tail};
use crate::bundle::about;
use crate::engine::blocking;
use contracts::tasks::{Exit, LogBatch, LogLine};
use contracts::{Result, Timestamp};
use futures_util::Stream;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// Bytes of a log that one batch is made of; with the rest of a line from before, less than 32 KiB.
const CHUNK: usize = 15 * 1024;
/// Pause between looks without inotify.
const LOOK: Duration = Duration::from_millis(250);

/// What a reader wants of a log.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) path: PathBuf,
    pub(crate) span: Span,
    pub(crate) tail: Option<u64>,
    /// Tells when its process has ended; `None` reads what is there.
    pub(crate) follow: Option<watch::Receiver<Option<Exit>>>,
}

/// Reads a log. A file that is not there is empty.
pub(crate) fn batches(wanted: Wanted) -> impl Stream<Item = Result<LogBatch>> + Send {
    let follower = Follower {
        watching: wanted.follow.as_ref().and_then(|_| watching(&wanted.path)),
        until: wanted.span.until,
        follow: wanted.follow,
        reader: Reader {
            path: wanted.path,
            span: wanted.span,
            tail: wanted.tail,
            file: None,
            inode: 0,
            lines: Lines::default(),
        },
    };
    futures_util::stream::try_unfold(follower, |mut follower| async move {
        let lines = follower.next().await?;
        Ok((!lines.is_empty()).then_some((LogBatch { lines }, follower)))
    })
}

struct Follower {
    reader: Reader,
    follow: Option<watch::Receiver<Option<Exit>>>,
    until: Option<Timestamp>,
    watching: Option<pipe::Receiver>,
}

impl Follower {
    /// Some lines, or none at the end.
    async fn next(&mut self) -> Result<Vec<LogLine>> {
        loop {
            // Asked before reading: what an ended process wrote is all there.
            let over = self.is_over();
            let reader = std::mem::take(&mut self.reader);
            let (reader, read) = blocking(move || {
                let mut reader = reader;
                let read = reader.some()?;
                Ok::<_, contracts::Error>((reader, read))
            })
            .await?;
            self.reader = reader;
            match read {
                Some(lines) if !lines.is_empty() => return Ok(lines),
                Some(_) => {}
                None if over || self.reader.lines.past => return Ok(Vec::new()),
                None => self.more().await,
            }
        }
    }

    fn is_over(&self) -> bool {
        let late = self.until.is_some_and(|until| Timestamp::now() >= until);
        match &self.follow {
            None => true,
            // A record that is gone without an end was deleted.
            Some(exit) => late || exit.has_changed().is_err() || exit.borrow().is_some(),
        }
    }

    /// Waits until there may be more to read.
    async fn more(&mut self) {
        let until = self.until.map(|until| until.0 - Timestamp::now().0);
        let until = until.map(|nanos| Duration::from_nanos(nanos.max(0).unsigned_abs()));
        let watching = self.watching.as_ref();
        let Some(exit) = &mut self.follow else { return };
        tokio::select! {
            _ = exit.changed() => {}
            () = changed(watching) => {}
            () = tokio::time::sleep(until.unwrap_or(Duration::MAX)), if until.is_some() => {}
        }
    }
}

#[derive(Default)]
struct Reader {
    path: PathBuf,
    span: Span,
    tail: Option<u64>,
    file: Option<File>,
    /// The file's inode: its name may be another one's by now.
    inode: u64,
    lines: Lines,
}

impl Reader {
    /// Reads on; `None` when there is no more now.
    fn some(&mut self) -> Result<Option<Vec<LogLine>>> {
        if self.file.is_none() {
            self.open()?;
        }
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        // Asked before reading: what was written before the file was put aside is all there.
        let newest = inode(&self.path) == Some(self.inode);
        let mut chunk = [0; CHUNK];
        let count = file.read(&mut chunk).map_err(|e| about(&self.path, &e))?;
        if self.lines.past || (count == 0 && newest) {
            return Ok(None);
        }
        if count == 0 {
            return self.next();
        }
        Ok(Some(self.lines.take(&chunk[..count], self.span)))
    }

    /// Goes on with the next file, when there is one.
    fn next(&mut self) -> Result<Option<Vec<LogLine>>> {
        let older = logfile::older(&self.path);
        // When the one that was put aside is not ours, ours is gone: the oldest that is left follows, behind a gap.
        let next = match inode(&older) {
            Some(other) if other != self.inode => existing(&older)?,
            _ => existing(&self.path)?,
        };
        let Some(next) = next else { return Ok(None) };
        self.lines.next_file();
        self.read_on(next)?;
        Ok(Some(Vec::new()))
    }

    fn open(&mut self) -> Result<()> {
        let older = existing(&logfile::older(&self.path))?;
        let Some(mut newest) = existing(&self.path)? else {
            // Just now one was put aside, and the next is not there yet.
            self.lines.begin_at_the_oldest();
            return older.map_or(Ok(()), |older| self.read_on(older));
        };
        let Some(wanted) = self.tail else {
            self.lines.begin_at_the_oldest();
            return self.read_on(older.unwrap_or(newest));
        };
        let failed = |e: std::io::Error| about(&self.path, &e);
        let at = tail(&mut newest, wanted).map_err(failed)?;
        if let (0, Some(mut older)) = (at, older) {
            let there = count(&mut newest).map_err(failed)?;
            let at = tail(&mut older, wanted.saturating_sub(there)).map_err(failed)?;
            older.seek(SeekFrom::Start(at)).map_err(failed)?;
            return self.read_on(older);
        }
        newest.seek(SeekFrom::Start(at)).map_err(failed)?;
        self.read_on(newest)
    }

    fn read_on(&mut self, file: File) -> Result<()> {
        let meta = file.metadata().map_err(|e| about(&self.path, &e))?;
        self.inode = meta.ino();
        self.file = Some(file);
        Ok(())
    }
}

fn existing(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(about(path, &e)),
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|file| file.ino())
}

/// Watches the folder, because the file may not be there yet.
fn watching(log: &Path) -> Option<pipe::Receiver> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_FROM;
    inotify::add_watch(&fd, log.parent()?, what).ok()?;
    // Not a pipe, but as good as one: readable, and never waited for in a read.
    pipe::Receiver::from_owned_fd_unchecked(fd).ok()
}

async fn changed(watching: Option<&pipe::Receiver>) {
    let Some(watching) = watching else {
        return tokio::time::sleep(LOOK).await;
    };
    let _ = watching.readable().await;
    let mut seen = vec![0; 4096];
    while watching.try_read(&mut seen).is_ok_and(|count| count > 0) {}
}
