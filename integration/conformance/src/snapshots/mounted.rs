//! Mounts performed for real, seen by nobody else, and gone when they are dropped.

use contracts::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Whether this process may mount.
pub fn can_mount() -> bool {
    std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS).is_ok())
        .join()
        .unwrap_or(false)
}

/// The files of a snapshot, for as long as this value lives.
///
/// They are mounted in a mount namespace that ends at once; only the open root keeps them.
#[derive(Debug)]
pub struct Mounted {
    root: File,
}

impl Mounted {
    /// Mounts what a driver answered, as `mount(2)` would. Needs root.
    pub fn new(mounts: &[Mount]) -> io::Result<Self> {
        let place = tempfile::tempdir()?;
        let (mounts, at) = (mounts.to_vec(), place.path().to_owned());
        let thread = std::thread::spawn(move || mount_apart(&mounts, &at));
        let root = thread
            .join()
            .map_err(|_| io::Error::other("the mounting thread panicked"))??;
        Ok(Self { root })
    }

    /// A path below the root.
    pub fn at(&self, path: &str) -> PathBuf {
        let root = format!("/proc/self/fd/{}", self.root.as_raw_fd());
        Path::new(&root).join(path)
    }
}

fn mount_apart(mounts: &[Mount], at: &Path) -> io::Result<File> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    for one in mounts {
        perform(one, at)?;
    }
    File::open(at)
}

fn perform(one: &Mount, at: &Path) -> io::Result<()> {
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for option in &one.options {
        match option.as_str() {
            "rw" => {}
            "ro" => flags |= MsFlags::MS_RDONLY,
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            other => data.push(other),
        }
    }
    let target = at.join(&one.target);
    let (source, kind) = (Some(one.source.as_str()), Some(one.fs_type.as_str()));
    mount(source, &target, kind, flags, Some(data.join(",").as_str()))?;
    if flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
        // The kernel makes a bind mount read-only only in a second step.
        let again = flags | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &target, None::<&str>, again, None::<&str>)?;
    }
    Ok(())
}
