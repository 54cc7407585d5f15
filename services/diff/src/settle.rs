//! Gives implied directories the look they have in the layers below, once those are known.

use crate::error::{Doing, Result};
use crate::{attributes, name, root, tree};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Stands in [`crate::Applied::implied`] for the directories that found no room there; no escaped path looks like it.
pub(crate) const MORE: &str = "%";

/// Copies owner, mode, xattrs and times of each implied directory from the same directory in `parent`.
///
/// `upper` is where the layer was extracted, `parent` a view of all that is below. What is not there, or not a directory
/// there, leaves its directory as it is. Doing it twice does no harm. Errors: `Io`.
pub fn settle(upper: BorrowedFd<'_>, parent: BorrowedFd<'_>, implied: &[String]) -> Result<()> {
    // children first: copying times onto a directory is undone by nothing that comes after
    for path in implied.iter().rev().filter(|path| *path != MORE) {
        let path = name::unescape(path);
        one(upper, parent, &path).map_err(|error| error.entry(&path))?;
    }
    match implied.iter().any(|path| path == MORE) {
        true => marked(upper, parent),
        false => Ok(()),
    }
}

fn one(upper: BorrowedFd<'_>, parent: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
    let Some(to) = open(upper, path).doing("open the directory")? else {
        return Ok(());
    };
    let Some(from) = open(parent, path).doing("open the directory below")? else {
        return Ok(());
    };
    let stat = rustix::fs::fstat(&from).doing("look at the directory below")?;
    attributes::copy(from.as_fd(), &stat, to.as_fd())
}

/// A directory at exactly this path: where a link leads is another directory's look.
fn open(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Walks all of the layer for directories with a mark, settles them and takes the mark away.
fn marked(upper: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> Result<()> {
    let mut ahead = vec![Vec::new()];
    while let Some(path) = ahead.pop() {
        let at = if path.is_empty() {
            root::reopen(upper).map(Some)
        } else {
            open(upper, &path)
        };
        let Some(dir) = at.doing("open a directory")? else {
            continue;
        };
        for name in root::names(&dir).doing("list a directory")? {
            let there = root::look(&dir, &name).doing("look at a directory")?;
            if there.is_some_and(|stat| root::file_type(&stat) == FileType::Directory) {
                ahead.push(if path.is_empty() {
                    name
                } else {
                    [&path, &b"/"[..], &name].concat()
                });
            }
        }
        if rustix::fs::fgetxattr(&dir, tree::MARK, &mut [0; 1]).is_ok() {
            one(upper, parent, &path).map_err(|error| error.entry(&path))?;
            rustix::fs::fremovexattr(&dir, tree::MARK).doing("unmark a directory")?;
        }
    }
    Ok(())
}
