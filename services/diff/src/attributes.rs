//! Owner, mode, times and extended attributes of one file.

use crate::archive::{Entry, Time};
use crate::error::{Doing, Result, shown};
use rustix::fs::{AtFlags, Mode, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// Extended attributes as name and value.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Largest value and largest list of names that Linux allows. Source: xattr(7).
const XATTR_MAX: usize = 64 << 10;

/// Sets owner, mode and xattrs through a descriptor, in the one order that keeps them all: changing the owner clears
/// setuid bits and capabilities. Answers how many xattrs the file system cannot hold.
pub(crate) fn set(fd: BorrowedFd<'_>, entry: &Entry) -> Result<usize> {
    let (uid, gid) = owner(entry);
    rustix::fs::fchown(fd, Some(uid), Some(gid)).doing("set the owner")?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).doing("set the mode")?;
    set_xattrs(&entry.xattrs, |name, value| {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
    })
}

/// As [`set`] for what cannot be opened: links, devices, pipes. Their mode was given when they were made.
pub(crate) fn set_at(dir: impl AsFd, name: &[u8], entry: &Entry) -> Result<usize> {
    let (uid, gid) = owner(entry);
    let name = OsStr::from_bytes(name);
    let owned = rustix::fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
    owned.doing("set the owner")?;
    if entry.xattrs.is_empty() {
        return Ok(0);
    }
    let fd = crate::root::open_name(&dir, name.as_bytes(), crate::root::LOOK)
        .doing("open to set xattrs")?;
    let path = itself(&fd);
    set_xattrs(&entry.xattrs, |name, value| {
        rustix::fs::setxattr(&path, name, value, XattrFlags::empty())
    })
}

fn owner(entry: &Entry) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (
        rustix::fs::Uid::from_raw(entry.uid),
        rustix::fs::Gid::from_raw(entry.gid),
    )
}

/// The path that means exactly what an `O_PATH` descriptor refers to, links included.
pub(crate) fn itself(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Sets all that the file system can hold. Skips what it cannot, as containerd does, and what belongs to overlayfs:
/// an archive may not say how layers are put together.
fn set_xattrs(
    xattrs: &Xattrs,
    set: impl Fn(&OsStr, &[u8]) -> rustix::io::Result<()>,
) -> Result<usize> {
    let mut skipped = 0;
    for (name, value) in xattrs.iter().filter(|(name, _)| !of_overlay(name)) {
        match set(OsStr::from_bytes(name), value) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => skipped += 1,
            // user.* is for files and directories only
            Err(Errno::PERM) if name.starts_with(b"user.") => skipped += 1,
            Err(error) => return Err(error).doing(&format!("set xattr {}", shown(name))),
        }
    }
    Ok(skipped)
}

/// Whether an xattr is overlayfs' own bookkeeping.
pub(crate) fn of_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Reads all xattrs of what `fd` refers to, sorted by name; empty where the file system has none.
pub(crate) fn xattrs(fd: impl AsFd) -> rustix::io::Result<Xattrs> {
    let path = itself(fd);
    let list = |buffer: &mut [u8]| rustix::fs::listxattr(&path, buffer);
    collect(list, |name, buffer| {
        rustix::fs::getxattr(&path, name, buffer)
    })
}

/// As [`xattrs`] for one name in a directory, without opening it and without following it.
pub(crate) fn xattrs_at(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Xattrs> {
    let path = [itself(dir).as_bytes(), b"/", name].concat();
    let path = OsStr::from_bytes(&path);
    let list = |buffer: &mut [u8]| rustix::fs::llistxattr(path, buffer);
    collect(list, |name, buffer| {
        rustix::fs::lgetxattr(path, name, buffer)
    })
}

fn collect(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Xattrs> {
    let names = match sized(list) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        match sized(|buffer| get(OsStr::from_bytes(name), buffer)) {
            Ok(value) => found.push((name.to_vec(), value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort();
    Ok(found)
}

/// Nearly all lists and values fit a few hundred bytes; only the others pay for a large buffer.
fn sized(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 512];
    match read(&mut small) {
        Ok(length) => Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; XATTR_MAX];
            let length = read(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(error) => Err(error),
    }
}

/// Removes the xattrs that an entry for an existing directory does not have, as a fresh directory would not have them.
pub(crate) fn remove_other_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    for (name, _) in xattrs(fd).doing("read xattrs")? {
        let ours = [&b"user."[..], b"trusted.", b"system.posix_acl_"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if ours && !of_overlay(&name) && entry.xattrs.iter().all(|(wanted, _)| *wanted != name) {
            rustix::fs::fremovexattr(fd, OsStr::from_bytes(&name)).doing("remove an xattr")?;
        }
    }
    Ok(())
}

/// Times as the kernel takes them; where the archive knows no last access it is the last modification.
pub(crate) fn times(entry: &Entry) -> Timestamps {
    let spec = |time: Time| Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    };
    Timestamps {
        last_access: spec(entry.atime.unwrap_or(entry.mtime)),
        last_modification: spec(entry.mtime),
    }
}

/// Copies owner, mode, xattrs and times from one directory to another.
pub(crate) fn copy(from: BorrowedFd<'_>, stat: &Stat, to: BorrowedFd<'_>) -> Result<()> {
    let (uid, gid) = (
        rustix::fs::Uid::from_raw(stat.st_uid),
        rustix::fs::Gid::from_raw(stat.st_gid),
    );
    rustix::fs::fchown(to, Some(uid), Some(gid)).doing("set the owner")?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode)).doing("set the mode")?;
    let xattrs = xattrs(from).doing("read xattrs")?;
    set_xattrs(&xattrs, |name, value| {
        rustix::fs::fsetxattr(to, name, value, XattrFlags::empty())
    })?;
    let spec = |seconds, nanos| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos as _,
    };
    let times = Timestamps {
        last_access: spec(stat.st_atime, stat.st_atime_nsec),
        last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(to, &times).doing("set the times")
}
