//! Puts the entries of an archive into a snapshot.

use crate::archive::{Entry, Kind, reader::Reader};
use crate::attributes;
use crate::error::{Doing, Error, Result, shown};
use crate::room::Room;
use crate::root;
use crate::tree::{Base, Tree, Whiteouts};
use crate::whiteout::{Asked, asked};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// A snapshot that a layer is being extracted into.
pub(crate) struct Extractor {
    tree: Tree,
    room: Room,
    /// Names this layer brought, by directory; kept only where deletions must spare them.
    added: HashMap<u64, HashSet<Vec<u8>>>,
    /// Set when all is extracted, for every new name in a directory changes its times.
    times: Vec<(Vec<u8>, Timestamps)>,
    directory_removed: bool,
    skipped_xattrs: usize,
}

/// What is left to tell when all entries are extracted.
pub(crate) struct Extracted {
    /// Directories that no entry described, parents first.
    pub(crate) implied: Vec<Vec<u8>>,
    /// More of them carry [`crate::tree::MARK`].
    pub(crate) marked: bool,
    /// How many xattrs the file system could not hold.
    pub(crate) skipped_xattrs: usize,
}

impl Extractor {
    pub(crate) fn new(root: BorrowedFd<'_>, whiteouts: Whiteouts) -> Result<Self> {
        Ok(Self {
            tree: Tree::new(root, whiteouts)?,
            room: Room::new(),
            added: HashMap::new(),
            times: Vec::new(),
            directory_removed: false,
            skipped_xattrs: 0,
        })
    }

    /// Extracts one entry; its data comes from `from`.
    pub(crate) fn entry<R: BufRead>(&mut self, entry: &Entry, from: &mut Reader<R>) -> Result<()> {
        let path = root::normal(&entry.name);
        let Some((parent, name)) = root::split(&path) else {
            return self.root(entry);
        };
        match asked(&path) {
            Asked::Nothing => {}
            Asked::Ignore => return Ok(()),
            Asked::Opaque(dir) => return self.opaque(dir),
            Asked::Remove(dir, name) => return self.hide(dir, name),
            Asked::Broken => {
                return Err(Error::Refused(
                    "a whiteout must name what it hides".to_owned(),
                ));
            }
        }
        let parent = self.tree.parent(parent)?;
        match entry.kind {
            Kind::Dir => self.directory(&parent, name, &path, entry)?,
            Kind::File => self.file(&parent, name, entry, from)?,
            Kind::Symlink => self.symlink(&parent, name, entry)?,
            Kind::Hardlink => self.hardlink(&parent, name, entry)?,
            Kind::Char => self.node(&parent, name, entry, FileType::CharacterDevice)?,
            Kind::Block => self.node(&parent, name, entry, FileType::BlockDevice)?,
            Kind::Fifo => self.node(&parent, name, entry, FileType::Fifo)?,
        }
        if !self.tree.overlay() {
            self.added
                .entry(parent.inode)
                .or_default()
                .insert(name.to_vec());
        }
        Ok(())
    }

    /// Sets the times of directories, the last thing to do.
    pub(crate) fn finish(mut self) -> Result<Extracted> {
        for (path, times) in std::mem::take(&mut self.times) {
            self.directory_times(&path, &times)
                .map_err(|error| error.entry(&path))?;
        }
        let (implied, marked) = self.tree.into_implied();
        Ok(Extracted {
            implied,
            marked,
            skipped_xattrs: self.skipped_xattrs,
        })
    }

    fn directory_times(&mut self, path: &[u8], times: &Timestamps) -> Result<()> {
        let (parent, name) = root::split(path).unwrap_or((b"", b"."));
        let Some(parent) = self.tree.existing(parent)? else {
            return Ok(());
        };
        if self.directory_removed {
            let now = root::look(&parent, name).doing("look at a directory")?;
            if now.is_none_or(|stat| root::file_type(&stat) != FileType::Directory) {
                return Ok(());
            }
        }
        rustix::fs::utimensat(
            &parent,
            OsStr::from_bytes(name),
            times,
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .doing("set the times")
    }

    /// The root itself is always there; an entry for it brings its attributes.
    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Dir {
            return Err(Error::Refused(
                "the root can only be a directory".to_owned(),
            ));
        }
        let root = self.tree.parent(b"")?;
        let dir = root::reopen(&root).doing("open the root")?;
        self.describe(dir.as_fd(), b"", entry)
    }

    fn directory(&mut self, parent: &Base, name: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let path_name = OsStr::from_bytes(name);
        let make = || rustix::fs::mkdirat(parent, path_name, Mode::from_raw_mode(0o700));
        let mut hides = false;
        let made = match make() {
            Err(Errno::EXIST) => match root::look(parent, name).doing("look at what was there")? {
                Some(stat) if root::file_type(&stat) == FileType::Directory => Ok(()),
                there => {
                    hides =
                        self.tree.overlay() && there.is_some_and(|stat| root::is_whiteout(&stat));
                    self.clear(parent, name)?;
                    make()
                }
            },
            made => made,
        };
        made.doing("make the directory")?;
        let dir = root::open_name(parent, name, root::LIST).doing("open the directory")?;
        if hides {
            self.tree.make_opaque(dir.as_fd())?;
        }
        self.describe(dir.as_fd(), path, entry)
    }

    fn describe(&mut self, dir: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<()> {
        if !self.tree.overlay() {
            attributes::remove_other_xattrs(dir, entry)?;
        }
        self.tree.described(dir)?;
        self.skipped_xattrs += attributes::set(dir, entry)?;
        self.times.push((path.to_vec(), attributes::times(entry)));
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        parent: &Base,
        name: &[u8],
        entry: &Entry,
        from: &mut Reader<R>,
    ) -> Result<()> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let create = || rustix::fs::openat(parent, OsStr::from_bytes(name), flags, mode);
        let file = File::from(self.make(parent, name, "create the file", create)?);
        let room = &mut self.room;
        match &entry.sparse {
            None => from.copy(entry.size, |bytes| {
                room.take(&file, bytes.len()).doing("write")?;
                (&file).write_all(bytes).doing("write")
            })?,
            Some(map) => {
                for (offset, length) in &map.runs {
                    let mut at = *offset;
                    from.copy(*length, |bytes| {
                        room.take(&file, bytes.len()).doing("write")?;
                        file.write_all_at(bytes, at).doing("write")?;
                        at += bytes.len() as u64;
                        Ok(())
                    })?;
                }
                file.set_len(map.real_size).doing("set the size")?;
            }
        }
        self.skipped_xattrs += attributes::set(file.as_fd(), entry)?;
        rustix::fs::futimens(&file, &attributes::times(entry)).doing("set the times")
    }

    fn symlink(&mut self, parent: &Base, name: &[u8], entry: &Entry) -> Result<()> {
        let target = OsStr::from_bytes(&entry.link);
        let create = || rustix::fs::symlinkat(target, parent, OsStr::from_bytes(name));
        self.make(parent, name, "make the link", create)?;
        self.describe_at(parent, name, entry)
    }

    fn node(&mut self, parent: &Base, name: &[u8], entry: &Entry, kind: FileType) -> Result<()> {
        let (major, minor) = entry.device;
        let mode = Mode::from_raw_mode(entry.mode);
        let device = rustix::fs::makedev(major, minor);
        let create = || rustix::fs::mknodat(parent, OsStr::from_bytes(name), kind, mode, device);
        self.make(parent, name, "make the node", create)?;
        self.describe_at(parent, name, entry)
    }

    fn describe_at(&mut self, parent: &Base, name: &[u8], entry: &Entry) -> Result<()> {
        self.skipped_xattrs += attributes::set_at(parent, name, entry)?;
        let times = attributes::times(entry);
        rustix::fs::utimensat(
            parent,
            OsStr::from_bytes(name),
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .doing("set the times")
    }

    /// Links to a file that this layer, or in a whole tree a lower one, brought. A link as target is linked itself.
    fn hardlink(&mut self, parent: &Base, name: &[u8], entry: &Entry) -> Result<()> {
        let target = root::normal(&entry.link);
        let missing = || {
            Error::Refused(format!(
                "its link target {} is not there",
                shown(&entry.link)
            ))
        };
        let (target_dir, target_name) = root::split(&target).ok_or_else(missing)?;
        let target_dir = self.tree.existing(target_dir)?.ok_or_else(missing)?;
        let there = root::look(&target_dir, target_name)
            .doing("look at the link target")?
            .ok_or_else(missing)?;
        if root::file_type(&there) == FileType::Directory {
            return Err(Error::Refused(format!(
                "its link target {} is a directory",
                shown(&entry.link)
            )));
        }
        if self.tree.overlay() && root::is_whiteout(&there) {
            return Err(missing());
        }
        let same =
            |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino) == (there.st_dev, there.st_ino);
        if root::look(parent, name)
            .doing("look at what was there")?
            .is_some_and(same)
        {
            return Ok(());
        }
        let (from, to) = (OsStr::from_bytes(target_name), OsStr::from_bytes(name));
        let create = || rustix::fs::linkat(&target_dir, from, parent, to, AtFlags::empty());
        self.make(parent, name, "link", create)
    }

    /// Creates something, in place of whatever has its name.
    fn make<T>(
        &mut self,
        parent: &Base,
        name: &[u8],
        what: &str,
        create: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        match create() {
            Err(Errno::EXIST) => {
                self.clear(parent, name)?;
                create().doing(what)
            }
            created => created.doing(what),
        }
    }

    fn clear(&mut self, parent: &Base, name: &[u8]) -> Result<()> {
        let kind = root::look(parent, name)
            .doing("look at what was there")?
            .map(|stat| root::file_type(&stat));
        if matches!(kind, Some(FileType::Directory | FileType::Symlink)) {
            self.directory_removed = true;
            self.tree.forget();
        }
        root::remove(parent, name)
    }

    /// Hides one name of the layers below. What this layer brought under that name stays, wherever the whiteout stands.
    fn hide(&mut self, dir: &[u8], name: &[u8]) -> Result<()> {
        match self.tree.overlay() {
            true => self.hide_in_upper(dir, name),
            false => self.hide_in_tree(dir, name),
        }
    }

    fn hide_in_upper(&mut self, dir: &[u8], name: &[u8]) -> Result<()> {
        let parent = self.tree.parent(dir)?;
        let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
        match rustix::fs::mknodat(&parent, OsStr::from_bytes(name), kind, mode, 0) {
            Err(Errno::EXIST) => match root::open_name(&parent, name, root::LIST) {
                Ok(inside) => self.tree.make_opaque(inside.as_fd()),
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                Err(error) => Err(error).doing("open the directory"),
            },
            made => made.doing("make the whiteout"),
        }
    }

    fn hide_in_tree(&mut self, dir: &[u8], name: &[u8]) -> Result<()> {
        let Some(parent) = self.tree.existing(dir)? else {
            return Ok(());
        };
        self.directory_removed = true;
        self.tree.forget();
        let ours = &self.added;
        let mut keep =
            |dir: u64, name: &[u8]| ours.get(&dir).is_some_and(|names| names.contains(name));
        match keep(parent.inode, name) {
            true => match root::open_name(&parent, name, root::LIST) {
                Ok(inside) => root::empty_unless(&inside, &mut keep).map(drop),
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                Err(error) => Err(error).doing("open the directory"),
            },
            false => root::remove_unless(&parent, name, &mut keep).map(drop),
        }
    }

    /// Hides all that the layers below have in a directory.
    fn opaque(&mut self, dir: &[u8]) -> Result<()> {
        if self.tree.overlay() {
            let dir = self.tree.parent(dir)?;
            let dir = root::reopen(&dir).doing("open the directory")?;
            return self.tree.make_opaque(dir.as_fd());
        }
        let Some(dir) = self.tree.existing(dir)? else {
            return Ok(());
        };
        self.directory_removed = true;
        self.tree.forget();
        let dir = root::reopen(&dir).doing("open the directory")?;
        let ours = &self.added;
        let mut keep =
            |dir: u64, name: &[u8]| ours.get(&dir).is_some_and(|names| names.contains(name));
        root::empty_unless(&dir, &mut keep).map(drop)
    }
}
