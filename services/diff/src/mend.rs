//! Puts right what differs from the layers: each file is written anew beside, and takes its place in one step.
//!
//! New bytes take their places only after the layers they came from hashed to their diff ids once more. What is cut off
//! in the middle leaves a file that is in no layer, which the next comparison finds. A container that runs on this
//! directory keeps the files that it has open; what it opens later is right.

use crate::archive::{Entry, Kind, writer::plain};
use crate::attributes;
use crate::error::{Doing, Error, Result};
use crate::expected::{Body, Expected, Look, ROOT};
use crate::room::Room;
use crate::root;
use crate::tree::Whiteouts;
use crate::verify::{
    Bounds, Need, Proof, Seen, Subject, each, exactly, implied, is_ours, look, visit,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// What a comparison found, and what was put right.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Files, directories and all else that was looked at.
    pub entries: u64,
    /// Uncompressed bytes of the layers.
    pub bytes: u64,
    /// What differed, by path.
    pub wrong: Vec<(Vec<u8>, String)>,
    /// How many of them were put right.
    pub mended: u64,
}

/// Compares the directory with its layers, lowest first; with `mend` puts right what differs and compares again.
///
/// Nothing is flushed: call [`crate::sync`]. Errors: as [`crate::apply`]; `Damaged` and `Truncated` when a layer itself
/// is; then nothing was changed.
pub fn verify(
    subject: &Subject,
    proofs: &[Proof],
    bounds: &Bounds,
    mend: bool,
) -> Result<Verified> {
    let seen = look(subject, proofs, bounds)?;
    let mut verified = Verified {
        entries: seen.entries,
        bytes: seen.bytes,
        wrong: seen
            .wrong
            .iter()
            .map(|wrong| (wrong.path.clone(), wrong.what.clone()))
            .collect(),
        mended: 0,
    };
    if !mend || seen.wrong.is_empty() {
        return Ok(verified);
    }
    Mender::new(subject, &seen)?.all(proofs, bounds)?;
    let left = look(subject, proofs, bounds)?.wrong.len();
    verified.mended = verified.wrong.len().saturating_sub(left) as u64;
    Ok(verified)
}

struct Mender<'a> {
    subject: &'a Subject,
    seen: &'a Seen,
    expected: &'a Expected,
    /// All names of what is made anew, directories first.
    names: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Times of directories that are about to change.
    times: BTreeMap<Vec<u8>, Timestamps>,
    room: Room,
}

impl<'a> Mender<'a> {
    fn new(subject: &'a Subject, seen: &'a Seen) -> Result<Self> {
        let anew: BTreeSet<usize> = seen
            .wrong
            .iter()
            .filter_map(|wrong| match wrong.need {
                Need::Make(inode) => Some(inode),
                _ => None,
            })
            .collect();
        let mut names: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        visit(&seen.expected, &mut |path, inode| {
            if anew.contains(&inode) {
                names.entry(inode).or_default().push(path.to_vec());
            }
        });
        let mut mender = Self {
            subject,
            seen,
            expected: &seen.expected,
            names,
            times: BTreeMap::new(),
            room: Room::new(),
        };
        mender.remember()?;
        Ok(mender)
    }

    fn all(&mut self, proofs: &[Proof], bounds: &Bounds) -> Result<()> {
        self.remove()?;
        self.make_directories()?;
        self.make_others()?;
        self.make_files(proofs, bounds)?;
        faults::point("diff.mend.placed");
        for wrong in &self.seen.wrong {
            if let Need::Describe(inode) = wrong.need {
                self.describe(&wrong.path, inode)
                    .map_err(|error| error.entry(&wrong.path))?;
            }
        }
        self.restore_times()
    }

    /// Opens the directory of a path, and its name there.
    fn place<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = root::split(path).unwrap_or((b"", b"."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = exactly(self.subject.root.as_fd(), parent, flags).doing("open its directory")?;
        Ok((dir, name))
    }

    fn remember(&mut self) -> Result<()> {
        let all = self.names.values().flatten();
        let removed = self.seen.wrong.iter().map(|wrong| &wrong.path);
        let parents: BTreeSet<Vec<u8>> = all
            .chain(removed)
            .filter_map(|path| root::split(path).map(|(parent, _)| parent.to_vec()))
            .collect();
        for path in parents {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            if let Ok(dir) = exactly(self.subject.root.as_fd(), &path, flags) {
                let stat = rustix::fs::fstat(&dir).doing("look at a directory")?;
                let spec = |tv_sec, nanos| Timespec {
                    tv_sec,
                    tv_nsec: nanos as _,
                };
                let times = Timestamps {
                    last_access: spec(stat.st_atime, stat.st_atime_nsec),
                    last_modification: spec(stat.st_mtime, stat.st_mtime_nsec),
                };
                self.times.insert(path, times);
            }
        }
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        for wrong in &self.seen.wrong {
            if wrong.need == Need::Remove {
                let (dir, name) = self.place(&wrong.path)?;
                root::remove(&dir, name).map_err(|error| error.entry(&wrong.path))?;
            }
        }
        Ok(())
    }

    fn make_directories(&self) -> Result<()> {
        // Parents have been met before their children, but under numbers that say nothing.
        let mut paths: Vec<(&[u8], usize)> = self
            .names
            .iter()
            .filter(|(inode, _)| matches!(self.expected.inode(**inode).body, Body::Dir(_)))
            .flat_map(|(inode, paths)| paths.iter().map(|path| (path.as_slice(), *inode)))
            .collect();
        paths.sort();
        for (path, inode) in paths {
            self.make_directory(path, inode)
                .map_err(|error| error.entry(path))?;
        }
        Ok(())
    }

    fn make_directory(&self, path: &[u8], inode: usize) -> Result<()> {
        let (dir, name) = self.place(path)?;
        let there = root::look(&dir, name).doing("look")?;
        if there.is_none_or(|stat| root::file_type(&stat) != FileType::Directory) {
            root::remove(&dir, name)?;
            let made = rustix::fs::mkdirat(&dir, OsStr::from_bytes(name), Mode::RWXU);
            made.doing("make the directory")?;
        }
        self.describe(path, inode)
    }

    /// Makes links, devices, pipes and deletions.
    fn make_others(&self) -> Result<()> {
        for (inode, paths) in &self.names {
            let (Some(first), body) = (paths.first(), &self.expected.inode(*inode).body) else {
                continue;
            };
            if matches!(body, Body::Dir(_) | Body::File(_)) {
                continue;
            }
            self.make_other(first, *inode)
                .and_then(|()| self.put(*inode, paths))
                .map_err(|error| error.entry(first))?;
        }
        Ok(())
    }

    fn make_other(&self, path: &[u8], inode: usize) -> Result<()> {
        let (dir, _) = self.place(path)?;
        let beside = beside(inode);
        root::remove(&dir, &beside)?;
        let name = OsStr::from_bytes(&beside);
        let wanted = self.expected.inode(inode);
        let mode = Mode::from_raw_mode(wanted.look.as_ref().map_or(0, |look| look.mode));
        let made = match &wanted.body {
            Body::Symlink(target) => rustix::fs::symlinkat(OsStr::from_bytes(target), &dir, name),
            Body::Node(kind, (major, minor)) => {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(&dir, name, *kind, mode, device)
            }
            _ => rustix::fs::mknodat(&dir, name, FileType::CharacterDevice, Mode::empty(), 0),
        };
        made.doing("make it")?;
        match &wanted.look {
            Some(look) => describe_at(&dir, &beside, look),
            None => Ok(()),
        }
    }

    /// Writes files beside their places while the layers pass, then puts all of them in their places.
    fn make_files(&mut self, proofs: &[Proof], bounds: &Bounds) -> Result<()> {
        let mut wanted: HashMap<u64, usize> = HashMap::new();
        for inode in self.names.keys() {
            if let Body::File(content) = &self.expected.inode(*inode).body {
                wanted.insert(content.entry, *inode);
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let mut number = 0;
        for proof in proofs {
            each(proof, bounds, 0, &mut |entry, from| {
                let inode = wanted.get(&number).copied();
                number += 1;
                match inode {
                    Some(inode) => self.write(inode, entry, from),
                    None => Ok(()),
                }
            })?;
        }
        faults::point("diff.mend.written");
        for inode in wanted.into_values() {
            let paths = self.names.get(&inode).map(Vec::as_slice);
            let paths = paths.unwrap_or_default();
            self.put(inode, paths)
                .map_err(|error| error.entry(paths.first().map_or(b"", Vec::as_slice)))?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        inode: usize,
        entry: &Entry,
        from: &mut crate::archive::reader::Reader<crate::stream::Tap>,
    ) -> Result<()> {
        let Some(first) = self.names.get(&inode).and_then(|paths| paths.first()) else {
            return Ok(());
        };
        let (dir, _) = self.place(first)?;
        let beside = beside(inode);
        root::remove(&dir, &beside)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        let made = rustix::fs::openat(
            &dir,
            OsStr::from_bytes(&beside),
            flags | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        );
        let file = File::from(made.doing("create the file")?);
        let whole = vec![(0, entry.size)];
        let (runs, size) = match &entry.sparse {
            None => (&whole, entry.size),
            Some(map) => (&map.runs, map.real_size),
        };
        for (offset, length) in runs {
            let mut at = *offset;
            from.copy(*length, |bytes| {
                self.room.take(&file, bytes.len()).doing("write")?;
                file.write_all_at(bytes, at).doing("write")?;
                at += bytes.len() as u64;
                Ok(())
            })?;
        }
        file.set_len(size).doing("set the size")?;
        let Some(look) = &self.expected.inode(inode).look else {
            return Ok(());
        };
        let look = entry_of(look);
        attributes::set(file.as_fd(), &look)?;
        rustix::fs::futimens(&file, &attributes::times(&look)).doing("set the times")
    }

    /// Renames what was made beside to the first of its names, and links the others to it.
    fn put(&self, inode: usize, paths: &[Vec<u8>]) -> Result<()> {
        let Some((first, others)) = paths.split_first() else {
            return Ok(());
        };
        let beside = beside(inode);
        let (dir, name) = self.place(first)?;
        swap(&dir, &beside, name)?;
        for path in others {
            let (other, other_name) = self.place(path)?;
            root::remove(&other, &beside)?;
            let (from, to) = (OsStr::from_bytes(name), OsStr::from_bytes(&beside));
            rustix::fs::linkat(&dir, from, &other, to, AtFlags::empty()).doing("link")?;
            swap(&other, &beside, other_name)?;
        }
        Ok(())
    }

    /// Sets owner, mode, xattrs and times of what stands there otherwise right.
    fn describe(&self, path: &[u8], inode: usize) -> Result<()> {
        let wanted = self.expected.inode(inode);
        let below;
        let look = match &wanted.look {
            Some(look) => look,
            None if inode == ROOT => return Ok(()),
            None => {
                below = implied(self.subject, path)?;
                &below
            }
        };
        let (dir, name) = self.place(path)?;
        for (xattr, _) in attributes::xattrs_at(&dir, name).doing("read xattrs")? {
            let wanted = look.xattrs.iter().any(|(known, _)| *known == xattr);
            if !wanted && is_ours(&xattr) {
                let at = [attributes::itself(&dir).as_bytes(), b"/", name].concat();
                let at = OsStr::from_bytes(&at);
                rustix::fs::lremovexattr(at, OsStr::from_bytes(&xattr)).doing("remove an xattr")?;
            }
        }
        match &wanted.body {
            Body::Dir(wanted) => {
                let dir = root::open_name(&dir, name, root::LIST).doing("open the directory")?;
                self.hide_below(&dir, wanted.opaque)?;
                let like = entry_of(look);
                attributes::set(dir.as_fd(), &like)?;
                self.time(&dir, look)
            }
            Body::File(_) => {
                let file = view_file(&dir, name)?;
                let like = entry_of(look);
                attributes::set(file.as_fd(), &like)?;
                self.time(&file, look)
            }
            _ => describe_at(&dir, name, look),
        }
    }

    fn time(&self, file: impl AsFd, look: &Look) -> Result<()> {
        match look.mtime {
            Some(_) => {
                let times = attributes::times(&entry_of(look));
                rustix::fs::futimens(file, &times).doing("set the times")
            }
            None => Ok(()),
        }
    }

    fn hide_below(&self, dir: &OwnedFd, opaque: bool) -> Result<()> {
        let xattr = match self.subject.whiteouts {
            Whiteouts::Overlay { user_xattr: true } => "user.overlay.opaque",
            _ => "trusted.overlay.opaque",
        };
        if opaque {
            return rustix::fs::fsetxattr(dir, xattr, b"y", XattrFlags::empty())
                .doing("mark the directory opaque");
        }
        match rustix::fs::fremovexattr(dir, xattr) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error).doing("take the mark from the directory"),
        }
    }

    /// Directories in which names came and went get their times back, those of the layers where these say so.
    fn restore_times(&self) -> Result<()> {
        let mut looks: HashMap<Vec<u8>, Timestamps> = HashMap::new();
        let mut note = |path: &[u8], look: &Option<Look>| {
            if let Some(look) = look.as_ref().filter(|look| look.mtime.is_some()) {
                looks.insert(path.to_vec(), attributes::times(&entry_of(look)));
            }
        };
        note(b"", &self.expected.inode(ROOT).look);
        visit(self.expected, &mut |path, inode| {
            if matches!(self.expected.inode(inode).body, Body::Dir(_)) {
                note(path, &self.expected.inode(inode).look);
            }
        });
        let made = self.names.values().flatten();
        let parents = made.filter_map(|path| root::split(path).map(|(parent, _)| parent.to_vec()));
        let touched: BTreeSet<Vec<u8>> = parents.chain(self.times.keys().cloned()).collect();
        for path in touched {
            let Some(times) = looks.get(&path).or_else(|| self.times.get(&path)) else {
                continue;
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            if let Ok(dir) = exactly(self.subject.root.as_fd(), &path, flags) {
                rustix::fs::futimens(&dir, times).doing("set the times")?;
            }
        }
        Ok(())
    }
}

/// The name under which something is made before it takes its place.
fn beside(inode: usize) -> Vec<u8> {
    format!(".gantry-mend.{inode}").into_bytes()
}

/// Puts what was made beside in its place. A directory that stands there goes first: nothing replaces one.
fn swap(dir: &OwnedFd, beside: &[u8], name: &[u8]) -> Result<()> {
    let there = root::look(dir, name).doing("look")?;
    if there.is_some_and(|stat| root::file_type(&stat) == FileType::Directory) {
        root::remove(dir, name)?;
    }
    let (from, to) = (OsStr::from_bytes(beside), OsStr::from_bytes(name));
    rustix::fs::renameat(dir, from, dir, to).doing("put it in its place")
}

fn view_file(dir: &OwnedFd, name: &[u8]) -> Result<File> {
    let there = root::open_name(dir, name, root::LOOK).doing("open")?;
    crate::view::regular(there)
        .doing("open")?
        .ok_or_else(|| Error::Refused("is no file any more".to_owned()))
}

fn describe_at(dir: &OwnedFd, name: &[u8], look: &Look) -> Result<()> {
    let like = entry_of(look);
    attributes::set_at(dir, name, &like)?;
    let there = root::look(dir, name).doing("look")?;
    let at = OsStr::from_bytes(name);
    if there.is_some_and(|stat| root::file_type(&stat) != FileType::Symlink) {
        let mode = Mode::from_raw_mode(look.mode);
        rustix::fs::chmodat(dir, at, mode, AtFlags::empty()).doing("set the mode")?;
    }
    let times = attributes::times(&like);
    rustix::fs::utimensat(dir, at, &times, AtFlags::SYMLINK_NOFOLLOW).doing("set the times")
}

/// The entry that would look like this.
fn entry_of(look: &Look) -> Entry {
    Entry {
        kind: Kind::File,
        mode: look.mode,
        uid: look.uid,
        gid: look.gid,
        mtime: look.mtime.unwrap_or_default(),
        xattrs: look.xattrs.clone(),
        ..plain(Vec::new())
    }
}
