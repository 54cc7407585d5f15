//! Notices that the kernel killed something in the container for want of memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify;
use rustix::io::{Errno, read};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup::{Cgroup, UNIFIED};
use crate::shim::Shim;
use crate::sys;

/// Publishes `TaskOOM` for each kill that is seen; without a memory cgroup nothing happens.
pub(crate) fn watch(shim: &Arc<Shim>, cgroup: &Cgroup) {
    let counted = cgroup.dir("memory").is_none();
    let Ok((signal, counter)) = (match cgroup.dir("memory") {
        Some(dir) => version_1(dir),
        None => cgroup
            .dir(UNIFIED)
            .map_or(Err(io::ErrorKind::NotFound.into()), version_2),
    }) else {
        return;
    };
    if let Ok(signal) = sys::watched(signal, Interest::READABLE) {
        tokio::spawn(follow(Arc::downgrade(shim), signal, counter, counted));
    }
}

/// An eventfd the kernel writes to; source: kernel `cgroup-v1/memory.rst`, "OOM Control".
fn version_1(dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let counter = dir.join("memory.oom_control");
    let control = File::open(&counter)?;
    let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let order = format!("{} {}", signal.as_raw_fd(), control.as_raw_fd());
    fs::write(dir.join("cgroup.event_control"), order)?;
    Ok((signal, counter))
}

/// `memory.events` is announced as modified; source: kernel `cgroup-v2.rst`.
fn version_2(dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let counter = dir.join("memory.events");
    let signal = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&signal, &counter, inotify::WatchFlags::MODIFY)?;
    Ok((signal, counter))
}

/// `counted`: the signal has other causes as well, only the counter tells. (Version 1 signals nothing
/// else, and before it counts.)
async fn follow(shim: Weak<Shim>, signal: AsyncFd<OwnedFd>, counter: PathBuf, counted: bool) {
    let mut seen = 0;
    while let Ok(mut ready) = signal.readable().await {
        match read(signal.get_ref(), &mut [0; 512]) {
            Err(Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Ok(1..) => {}
            _ => return,
        }
        // The removal of the cgroup wakes us as well: then there is no counter any more.
        let (Some(now), Some(shim)) = (kills(&counter), shim.upgrade()) else {
            return;
        };
        if now > seen || !counted {
            shim.events.oom(&shim.id);
        }
        seen = now;
    }
}

/// The `oom_kill` line both versions have.
fn kills(counter: &Path) -> Option<u64> {
    let text = fs::read_to_string(counter).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}
