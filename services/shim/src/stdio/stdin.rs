//! The container's stdin, fed from a fifo whose writers may come and go.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::libc::O_NONBLOCK;
use rustix::fs::{Gid, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, write};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::error::{About, Error, Result};
use crate::sys;

/// A running feed.
pub(super) struct Input {
    closing: Arc<Notify>,
    feed: JoinHandle<()>,
}

impl Input {
    /// Lets the feed deliver what is there, and end.
    pub(super) fn close(&self) {
        self.closing.notify_one();
    }

    pub(super) fn abort(&self) {
        self.feed.abort();
    }

    fn start(source: AsyncFd<File>, target: AsyncFd<OwnedFd>) -> Self {
        let closing = Arc::new(Notify::new());
        let feed = tokio::spawn(feed(source, target, closing.clone()));
        Self { closing, feed }
    }
}

/// Opens stdin; returns the container's end, and the feed if there is one.
pub(super) fn open(path: &str, (uid, gid): (u32, u32)) -> Result<(OwnedFd, Option<Input>)> {
    if path.is_empty() {
        return Ok((super::null()?, None));
    }
    let path = Path::new(path);
    if !is_fifo(path)? {
        return Ok((File::open(path).about(path.display())?.into(), None));
    }
    let source = fifo(path)?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).about("stdin pipe")?;
    fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).about("stdin pipe")?;
    Ok((read, Some(Input::start(source, writable(write)?))))
}

/// Feeds a terminal; nothing to do without a fifo.
pub(super) fn into_terminal(path: &str, master: &OwnedFd) -> Result<Option<Input>> {
    if path.is_empty() || !is_fifo(Path::new(path))? {
        return Ok(None);
    }
    let master = master.try_clone().about("terminal")?;
    Ok(Some(Input::start(
        fifo(Path::new(path))?,
        writable(master)?,
    )))
}

fn is_fifo(path: &Path) -> Result<bool> {
    let kind = path.metadata().map_err(|error| {
        Error::not_found(format!(
            "stdin {}: {error}: make the fifo first",
            path.display()
        ))
    })?;
    Ok(kind.file_type().is_fifo())
}

/// Opened for writing too, so that it does not end when the last writer leaves.
fn fifo(path: &Path) -> Result<AsyncFd<File>> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .custom_flags(O_NONBLOCK)
        .open(path);
    let file = file.about(path.display())?;
    sys::watched(file, Interest::READABLE).about(path.display())
}

fn writable(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    let flags = fcntl_getfl(&fd).about("stdin")?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).about("stdin")?;
    sys::watched(fd, Interest::WRITABLE).about("stdin")
}

/// Copies until told to close or until the container has closed its end.
async fn feed(source: AsyncFd<File>, target: AsyncFd<OwnedFd>, closing: Arc<Notify>) {
    let mut last = false;
    while let Ok(moved) = turn(&source, &target, &closing, &mut last).await {
        if last && !moved {
            return;
        }
    }
}

/// Waits for bytes (or the order to close, which sets `last`) and moves a chunk; false when the fifo
/// was empty.
async fn turn(
    source: &AsyncFd<File>,
    target: &AsyncFd<OwnedFd>,
    closing: &Notify,
    last: &mut bool,
) -> io::Result<bool> {
    let mut ready = None;
    if !*last {
        tokio::select! {
            biased;
            guard = source.readable() => ready = Some(guard?),
            () = closing.notified() => *last = true,
        }
    }
    let mut chunk = [0; 4096];
    match source.get_ref().read(&mut chunk) {
        Ok(count) => deliver(target, &chunk[..count]).await.map(|()| count > 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            if let Some(mut ready) = ready {
                ready.clear_ready();
            }
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

async fn deliver(target: &AsyncFd<OwnedFd>, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        let mut ready = target.writable().await?;
        match write(target.get_ref(), rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
