//! The directories of a snapshot while a layer is extracted into it: opened once, made when an entry implies them.

use crate::error::{Doing, Result};
use crate::root::{self, BASE, LOOK};
use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

/// Directories kept open: archives finish one directory before the next, so few are enough.
const OPEN: usize = 64;
/// Links followed in one path. Source: path_resolution(7).
const MAX_LINKS: usize = 40;
/// Bytes of implied paths that are listed: they travel in one 64 KiB frame with the rest of an answer.
const MAX_IMPLIED: usize = 48 << 10;
/// Marks the implied directories that found no room in the list.
pub(crate) const MARK: &str = "trusted.gantry.implied";

/// How deletions of the layer are put into effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// As overlayfs reads them from an upper directory: a 0:0 character device for a name, an xattr on a directory.
    Overlay {
        /// The mount has `userxattr`: the xattr is `user.overlay.opaque`, not `trusted.overlay.opaque`.
        user_xattr: bool,
    },
    /// By deleting, in a tree that holds the layers below.
    Remove,
}

/// An open directory.
pub(crate) struct Base {
    pub(crate) fd: OwnedFd,
    /// Tells directories apart, whatever path led to them.
    pub(crate) inode: u64,
}

impl Base {
    fn new(fd: OwnedFd) -> Result<Self> {
        let inode = rustix::fs::fstat(&fd).doing("look at a directory")?.st_ino;
        Ok(Self { fd, inode })
    }
}

impl AsFd for Base {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The snapshot's directories.
pub(crate) struct Tree {
    root: Rc<Base>,
    whiteouts: Whiteouts,
    open: HashMap<Vec<u8>, Rc<Base>>,
    implied: HashMap<u64, Vec<u8>>,
    implied_bytes: usize,
    marked: bool,
}

impl Tree {
    pub(crate) fn new(root: BorrowedFd<'_>, whiteouts: Whiteouts) -> Result<Self> {
        let root = Rc::new(Base::new(
            root::open_name(root, b".", BASE).doing("open the snapshot")?,
        )?);
        Ok(Self {
            root,
            whiteouts,
            open: HashMap::new(),
            implied: HashMap::new(),
            implied_bytes: 0,
            marked: false,
        })
    }

    /// The directory at `path`, links resolved within the root; none when it is not there.
    pub(crate) fn existing(&mut self, path: &[u8]) -> Result<Option<Rc<Base>>> {
        if path.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        if let Some(open) = self.open.get(path) {
            return Ok(Some(open.clone()));
        }
        match root::open(&self.root, path, BASE) {
            Ok(fd) => self.remember(path, Base::new(fd)?).map(Some),
            Err(Errno::NOENT) => Ok(None),
            // a whiteout is a device, and below it nothing is
            Err(Errno::NOTDIR) if self.overlay() => Ok(None),
            Err(error) => Err(error).doing("open its directory"),
        }
    }

    /// As [`Tree::existing`], but makes what is missing.
    pub(crate) fn parent(&mut self, path: &[u8]) -> Result<Rc<Base>> {
        match self.existing(path)? {
            Some(base) => Ok(base),
            None => {
                let made = self.build(path)?;
                self.remember(path, made)
            }
        }
    }

    /// Must be called when a directory or a link goes away: paths that led through it lead elsewhere now.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
    }

    /// An entry of the archive describes this directory after all.
    pub(crate) fn described(&mut self, dir: impl AsFd) -> Result<()> {
        if !self.implied.is_empty() {
            let inode = rustix::fs::fstat(&dir).doing("look at a directory")?.st_ino;
            self.implied.remove(&inode);
        }
        match self.marked.then(|| rustix::fs::fremovexattr(&dir, MARK)) {
            None | Some(Ok(()) | Err(Errno::NODATA)) => Ok(()),
            Some(error) => error.doing("unmark a directory"),
        }
    }

    /// Paths of the directories that no entry described, parents first, and whether more of them carry [`MARK`].
    pub(crate) fn into_implied(self) -> (Vec<Vec<u8>>, bool) {
        let mut implied: Vec<_> = self.implied.into_values().collect();
        implied.sort();
        (implied, self.marked)
    }

    /// Marks a directory of an upper layer as hiding all below it.
    pub(crate) fn make_opaque(&self, dir: BorrowedFd<'_>) -> Result<()> {
        let name = match self.whiteouts {
            Whiteouts::Overlay { user_xattr: true } => "user.overlay.opaque",
            _ => "trusted.overlay.opaque",
        };
        rustix::fs::fsetxattr(dir, name, b"y", XattrFlags::empty())
            .doing("mark the directory opaque")
    }

    pub(crate) fn overlay(&self) -> bool {
        matches!(self.whiteouts, Whiteouts::Overlay { .. })
    }

    fn remember(&mut self, path: &[u8], base: Base) -> Result<Rc<Base>> {
        if self.open.len() >= OPEN {
            self.open.clear();
        }
        let base = Rc::new(base);
        self.open.insert(path.to_vec(), base.clone());
        Ok(base)
    }

    /// Walks `path` name by name, making what is missing. Links are expanded by hand, since their target may be missing too.
    fn build(&mut self, path: &[u8]) -> Result<Base> {
        let mut ahead: Vec<Vec<u8>> = path
            .split(|byte| *byte == b'/')
            .rev()
            .map(<[u8]>::to_vec)
            .collect();
        let mut here: Vec<Vec<u8>> = Vec::new();
        let mut at = root::open_name(&self.root, b".", BASE).doing("open the snapshot")?;
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here.pop();
                    at = root::open(&self.root, &here.join(&b'/'), BASE)
                        .doing("open its directory")?;
                    continue;
                }
                _ => {}
            }
            match root::open_name(&at, &name, BASE) {
                Ok(next) => at = next,
                Err(Errno::NOENT) => at = self.make(&at, &here, &name)?,
                Err(Errno::NOTDIR | Errno::LOOP) => match self.obstacle(&at, &name)? {
                    Some(target) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP).doing("open its directory");
                        }
                        if target.starts_with(b"/") {
                            here.clear();
                            at = root::open_name(&self.root, b".", BASE)
                                .doing("open the snapshot")?;
                        }
                        ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                        continue;
                    }
                    None => at = root::open_name(&at, &name, BASE).doing("open its directory")?,
                },
                Err(error) => return Err(error).doing("open its directory"),
            }
            here.push(name);
        }
        Base::new(at)
    }

    /// Makes one directory that nothing describes: 0755, owned by root, until it is settled. A whole tree knows its
    /// parents already, so there is nothing to settle in it.
    fn make(&mut self, at: &OwnedFd, here: &[Vec<u8>], name: &[u8]) -> Result<OwnedFd> {
        let made = make_plain(at, name)?;
        if self.overlay() {
            let path = [here, &[name.to_vec()]].concat().join(&b'/');
            self.implied_bytes += path.len() + 8;
            match self.implied_bytes > MAX_IMPLIED {
                true => {
                    self.marked = true;
                    rustix::fs::fsetxattr(&made, MARK, b"y", XattrFlags::empty())
                        .doing("mark a directory")?;
                }
                false => {
                    let inode = rustix::fs::fstat(&made)
                        .doing("look at its directory")?
                        .st_ino;
                    self.implied.insert(inode, path);
                }
            }
        }
        Ok(made)
    }

    /// What stands where a directory should be: a link's target; a whiteout is turned into an opaque directory.
    fn obstacle(&self, at: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let stat = root::look(at, name)
            .doing("look at its directory")?
            .ok_or(Errno::NOENT)
            .doing("open its directory")?;
        if root::file_type(&stat) == FileType::Symlink {
            let link = root::open_name(at, name, LOOK).doing("open a link")?;
            return Ok(Some(
                rustix::fs::readlinkat(&link, c"", Vec::new())
                    .doing("read a link")?
                    .into_bytes(),
            ));
        }
        if !(self.overlay() && root::is_whiteout(&stat)) {
            return Err(Errno::NOTDIR).doing("open its directory");
        }
        root::remove(at, name)?;
        self.make_opaque(make_plain(at, name)?.as_fd())?;
        Ok(None)
    }
}

fn make_plain(at: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    rustix::fs::mkdirat(at, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))
        .doing("make its directory")?;
    let made = root::open_name(at, name, root::LIST).doing("open its directory")?;
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    rustix::fs::fchown(&made, Some(uid), Some(gid)).doing("set the owner of its directory")?;
    rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755)).doing("set the mode of its directory")?;
    Ok(made)
}
