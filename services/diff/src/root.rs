//! Paths beneath a root that nothing inside it can lead out of.
//!
//! Every resolution is one `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)` from the root's descriptor, or one plain
//! name beneath a descriptor that came from there with links not followed. No path string of the host takes part.

use crate::error::{Doing, Error, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// How often a resolution is tried again when a rename anywhere on the machine disturbed it.
const TRIES: usize = 1000;
/// How deep directories may nest where a tree is walked with one descriptor per level.
const DEEPEST: usize = 400;

/// Opens for looking only: grants no access to contents, runs no driver.
pub(crate) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Opens a directory as a starting point for names beneath it.
pub(crate) const BASE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Opens a directory to list it and change its attributes.
pub(crate) const LIST: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens `path` as if `root` were `/`; the empty path is the root itself.
pub(crate) fn open(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..TRIES {
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            done => return done,
        }
    }
    rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve)
}

/// Opens one name in `dir`, never following it when it is a link.
pub(crate) fn open_name(dir: impl AsFd, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        OsStr::from_bytes(name),
        flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Looks at one name in `dir` without following it; none when it is not there.
pub(crate) fn look(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode as RawMode)
}

/// Whether this is how overlayfs marks a deleted name. Source: kernel documentation, filesystems/overlayfs.rst.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Names of a directory without `.` and `..`, in the file system's order.
pub(crate) fn names(dir: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Removes `name` from `dir`, with everything beneath when it is a directory. Links are removed, never followed.
pub(crate) fn remove(dir: impl AsFd, name: &[u8]) -> Result<()> {
    remove_unless(dir, name, &mut |_, _| false).map(drop)
}

/// Removes `name` from `dir` but for the entries that `keep(inode of their directory, name)` wants; says whether
/// anything was kept.
pub(crate) fn remove_unless(
    dir: impl AsFd,
    name: &[u8],
    keep: &mut dyn FnMut(u64, &[u8]) -> bool,
) -> Result<bool> {
    prune(dir, name, keep, 0)
}

/// Removes what is in `dir` but for the entries that `keep` wants; says whether anything was kept.
pub(crate) fn empty_unless(
    dir: impl AsFd,
    keep: &mut dyn FnMut(u64, &[u8]) -> bool,
) -> Result<bool> {
    prune_inside(dir, keep, 0)
}

fn prune(
    dir: impl AsFd,
    name: &[u8],
    keep: &mut dyn FnMut(u64, &[u8]) -> bool,
    depth: usize,
) -> Result<bool> {
    match rustix::fs::unlinkat(&dir, OsStr::from_bytes(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(false),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error).doing("remove what was there"),
    }
    let inside = open_name(&dir, name, LIST).doing("open the directory that was there")?;
    let kept = prune_inside(&inside, keep, depth + 1)?;
    if !kept {
        let removed = rustix::fs::unlinkat(&dir, OsStr::from_bytes(name), AtFlags::REMOVEDIR);
        removed.doing("remove the directory that was there")?;
    }
    Ok(kept)
}

fn prune_inside(
    dir: impl AsFd,
    keep: &mut dyn FnMut(u64, &[u8]) -> bool,
    depth: usize,
) -> Result<bool> {
    if depth > DEEPEST {
        return Err(Error::Refused(format!(
            "directories to remove nest deeper than {DEEPEST}"
        )));
    }
    let inode = rustix::fs::fstat(&dir).doing("look at a directory")?.st_ino;
    let mut kept = false;
    for name in names(&dir).doing("list a directory")? {
        kept |= match keep(inode, &name) {
            true => keep_entry(&dir, &name, keep, depth)?,
            false => prune(&dir, &name, keep, depth)?,
        };
    }
    Ok(kept)
}

/// A kept directory stays, what is in it is judged one by one.
fn keep_entry(
    dir: impl AsFd,
    name: &[u8],
    keep: &mut dyn FnMut(u64, &[u8]) -> bool,
    depth: usize,
) -> Result<bool> {
    match open_name(&dir, name, LIST) {
        Ok(inside) => prune_inside(&inside, keep, depth + 1).map(|_| true),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(true),
        Err(error) => Err(error).doing("open a directory"),
    }
}

/// A path of an archive as the names it consists of: no `.`, and `..` takes the name before it, never more.
pub(crate) fn normal(path: &[u8]) -> Vec<u8> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join(&b'/')
}

/// Parent path and last name of a [`normal`] path; none for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

/// Opens the same directory again, for listing and `syncfs`, which a descriptor for looking cannot do.
pub(crate) fn reopen(dir: impl AsFd) -> rustix::io::Result<OwnedFd> {
    open_name(dir, b".", LIST)
}

/// Flushes the file system that holds `dir`; extraction itself flushes nothing, so call this once per image.
///
/// Errors: `Io` when the disk failed since the file system was last flushed.
pub fn sync(dir: impl AsFd) -> Result<()> {
    let dir = reopen(dir).doing("open the snapshot to flush it")?;
    rustix::fs::syncfs(dir).doing("flush the file system of the snapshot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_contained_before_the_kernel_sees_them() {
        assert_eq!(normal(b"/../../etc//./passwd/"), b"etc/passwd");
        assert_eq!(normal(b"a/b/../../../c"), b"c");
        assert_eq!(normal(b"./"), b"");
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"c"), Some((&b""[..], &b"c"[..])));
        assert_eq!(split(b""), None);
    }
}
