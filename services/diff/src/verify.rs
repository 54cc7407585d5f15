//! Compares a snapshot's directory with what its layers say.
//!
//! One pass over the layers builds the tree that they give (`expected`) and compares each file's bytes as they pass;
//! then the real tree is walked beside it. Nothing is believed before the layers hashed to their diff ids.

use crate::apply::{Limits, Watch};
use crate::archive::{Entry, reader::Reader, sparse};
use crate::attributes::{self, Xattrs, of_overlay};
use crate::error::{Doing, Error, Result};
use crate::expected::{Body, Content, Expected, Inode, Look, ROOT, join};
use crate::mounts::Layers;
use crate::stream::{self, Compression};
use crate::tree::{MARK, Whiteouts};
use crate::{mounts, name, root, view};
use contracts::Mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes compared at once.
const PIECE: usize = 128 << 10;
/// Entries of a comparison: their tree is held in memory, some 300 bytes each.
const MOST: u64 = 4 << 20;
/// Moments that every file system can hold, seconds since the epoch. Source: ext4, 128-byte inodes.
const MOMENTS: std::ops::Range<i64> = -(1 << 31)..(1 << 31);

/// A layer that is read as often as it is needed.
pub struct Proof {
    /// Opens its compressed bytes from the start.
    pub open: Box<dyn Fn() -> Result<Box<dyn Read + Send>> + Send + Sync>,
    /// What its media type says.
    pub stated: Compression,
    /// What it hashes to when it is uncompressed, `sha256:…`.
    pub diff_id: String,
}

/// The directory that is compared.
pub struct Subject {
    /// The topmost directory of the snapshot.
    pub(crate) root: OwnedFd,
    pub(crate) whiteouts: Whiteouts,
    /// All layers below it, as a container would see them.
    pub(crate) below: Option<OwnedFd>,
}

impl Subject {
    /// The directory that a view of a committed snapshot shows on top. Errors: `Unsupported` mounts; `Io`.
    pub fn of(mounts: &[Mount]) -> Result<Self> {
        let layers = Layers::of(mounts)?;
        let all: Vec<_> = layers.all().cloned().collect();
        let (first, rest) = match all.split_first() {
            Some((first, rest)) if layers.upper.is_none() => (first, rest),
            _ => {
                let what = "only a view of a committed snapshot can be compared with its layers";
                return Err(Error::Unsupported(what.to_owned()));
            }
        };
        let whiteouts = match rest.is_empty() {
            true => Whiteouts::Remove,
            false => Whiteouts::Overlay {
                user_xattr: layers.style.user_xattr,
            },
        };
        let below = match rest.is_empty() {
            true => None,
            false => Some(view::view(&below(mounts, rest))?),
        };
        Ok(Self {
            root: mounts::directory(first)?,
            whiteouts,
            below,
        })
    }
}

/// The same mounts without the topmost directory.
fn below(mounts: &[Mount], rest: &[std::path::PathBuf]) -> Vec<Mount> {
    let like = mounts.first();
    let mut options: Vec<String> = like.map(|mount| mount.options.clone()).unwrap_or_default();
    options.retain(|option| !option.starts_with("lowerdir"));
    let dirs = rest.iter().map(|dir| dir.to_string_lossy().into_owned());
    options.extend(dirs.map(|dir| format!("lowerdir+={dir}")));
    vec![Mount {
        fs_type: "overlay".into(),
        source: "overlay".into(),
        target: String::new(),
        options,
    }]
}

/// What is wrong with one path.
#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    pub(crate) path: Vec<u8>,
    pub(crate) what: String,
    pub(crate) need: Need,
}

/// What would put it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing belongs there.
    Remove,
    /// It must be made anew.
    Make(usize),
    /// Its owner, mode, times or xattrs must be set.
    Describe(usize),
}

/// What a comparison saw.
pub(crate) struct Seen {
    pub(crate) expected: Expected,
    pub(crate) wrong: Vec<Wrong>,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

/// Bounds and watches a comparison.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// What bounds each layer.
    pub limits: Limits,
    /// Who may look, and stop it.
    pub watch: Arc<Watch>,
}

/// Compares once.
pub(crate) fn look(subject: &Subject, proofs: &[Proof], bounds: &Bounds) -> Result<Seen> {
    let mut expected = Expected::new(subject.whiteouts);
    let mut bytes = 0;
    for proof in proofs {
        bytes += each(proof, bounds, bytes, &mut |entry, from| {
            if expected.entries() >= MOST {
                return Err(Error::Limit {
                    what: "entries",
                    most: MOST,
                });
            }
            let Some(file) = expected.entry(entry)? else {
                return Ok(());
            };
            let Some(content) = expected.content(file) else {
                return Ok(());
            };
            content.same = compare(subject.root.as_fd(), content, entry, from)?;
            Ok(())
        })?;
        expected.end_layer();
    }
    again(subject, proofs, bounds, &mut expected)?;
    let mut walk = Walk {
        subject,
        expected: &expected,
        first: HashMap::new(),
        wrong: Vec::new(),
        entries: 0,
        watch: &bounds.watch,
    };
    walk.all()?;
    let (wrong, entries) = (walk.wrong, walk.entries);
    Ok(Seen {
        expected,
        wrong,
        entries,
        bytes,
    })
}

/// Reads one layer to its end and hands its entries out; answers its uncompressed size.
///
/// Errors: `Damaged` when it does not hash to its diff id; whatever was handed out then proves nothing.
pub(crate) fn each(
    proof: &Proof,
    bounds: &Bounds,
    before: u64,
    hand: &mut (dyn FnMut(&Entry, &mut Reader<stream::Tap>) -> Result<()> + Send),
) -> Result<u64> {
    let watch = bounds.watch.clone();
    let seen = move |size| {
        watch.bytes.store(before + size, Ordering::Relaxed);
        !watch.cancelled.load(Ordering::Relaxed)
    };
    let (pump, tap) = stream::channel(bounds.limits.bytes, Box::new(seen));
    let source = (proof.open)()?;
    std::thread::scope(|scope| {
        let work = std::thread::Builder::new().name("compare".to_owned());
        let compared = work.spawn_scoped(scope, || {
            let mut reader = Reader::new(tap);
            let mut entries = 0;
            while let Some(entry) = reader.next()? {
                entries += 1;
                if entries > bounds.limits.entries {
                    let most = bounds.limits.entries;
                    return Err(Error::Limit {
                        what: "entries",
                        most,
                    });
                }
                hand(&entry, &mut reader).map_err(|error| error.entry(&entry.name))?;
            }
            reader.into_inner().finish()
        });
        let compared = compared.doing("start a thread")?;
        match stream::decoder(source, proof.stated) {
            Ok(decoder) => pump.run(decoder),
            Err(error) => pump.fail(error),
        }
        let panicked = |_| Err(Error::Refused("the comparing thread panicked".to_owned()));
        let (hash, size) = compared.join().unwrap_or_else(panicked)?;
        let found = name::digest(&hash);
        match found == proof.diff_id {
            true => Ok(size),
            false => Err(Error::Damaged(format!(
                "its diff id is {found}, expected {}, fetch it again",
                proof.diff_id
            ))),
        }
    })
}

/// Opens exactly this path: what a link leads to is another file.
pub(crate) fn exactly(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
            done => return done,
        }
    }
}

/// A regular file for reading; none when something else is there, or nothing.
fn file(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<File>> {
    let there = match exactly(root, path, OFlags::PATH) {
        Ok(there) => there,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
        Err(error) => return Err(error).doing("open"),
    };
    view::regular(there).doing("open")
}

/// Whether a file has just the bytes that follow.
fn compare(
    root: BorrowedFd<'_>,
    content: &Content,
    entry: &Entry,
    from: &mut Reader<stream::Tap>,
) -> Result<bool> {
    let Some(file) = file(root, &content.at)? else {
        return Ok(false);
    };
    if file.metadata().doing("look")?.len() != content.size {
        return Ok(false);
    }
    let mut beside = Beside {
        file,
        buffer: vec![0; PIECE.min(usize::try_from(content.size).unwrap_or(PIECE))],
        at: 0,
        same: true,
    };
    let whole = sparse::Map {
        real_size: entry.size,
        runs: vec![(0, entry.size)],
    };
    let map = entry.sparse.as_ref().unwrap_or(&whole);
    for (offset, length) in &map.runs {
        beside.zeros(*offset);
        from.copy(*length, |bytes| {
            beside.bytes(bytes);
            Ok(())
        })?;
    }
    beside.zeros(map.real_size);
    Ok(beside.same)
}

/// A file that is read beside the bytes that it should have.
struct Beside {
    file: File,
    buffer: Vec<u8>,
    at: u64,
    same: bool,
}

impl Beside {
    fn bytes(&mut self, mut wanted: &[u8]) {
        while self.same && !wanted.is_empty() {
            let length = wanted.len().min(self.buffer.len());
            let have = &mut self.buffer[..length];
            // What cannot be read is not right.
            self.same = self.file.read_exact_at(have, self.at).is_ok() && *have == wanted[..length];
            self.at += length as u64;
            wanted = &wanted[length..];
        }
    }

    fn zeros(&mut self, until: u64) {
        while self.same && self.at < until {
            let most = usize::try_from(until - self.at).unwrap_or(usize::MAX);
            let length = most.min(self.buffer.len());
            let have = &mut self.buffer[..length];
            let read = self.file.read_exact_at(have, self.at).is_ok();
            self.same = read && have.iter().all(|byte| *byte == 0);
            self.at += length as u64;
        }
    }
}

/// A file whose first name was taken by another entry since is compared once more under a name that it still has.
fn again(
    subject: &Subject,
    proofs: &[Proof],
    bounds: &Bounds,
    expected: &mut Expected,
) -> Result<()> {
    let mut moved: HashMap<u64, usize> = HashMap::new();
    for (inode, path) in files(expected) {
        if let Some(content) = expected.content(inode)
            && !content.same
            && content.at != path
            && !moved.contains_key(&content.entry)
        {
            content.at = path;
            moved.insert(content.entry, inode);
        }
    }
    if moved.is_empty() {
        return Ok(());
    }
    let mut number = 0;
    for proof in proofs {
        each(proof, bounds, 0, &mut |entry, from| {
            if let Some(content) = moved
                .get(&number)
                .and_then(|inode| expected.content(*inode))
            {
                content.same = compare(subject.root.as_fd(), content, entry, from)?;
            }
            number += 1;
            Ok(())
        })?;
    }
    Ok(())
}

/// Every file with one path, those first under which it was compared.
fn files(expected: &Expected) -> Vec<(usize, Vec<u8>)> {
    let mut found: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    visit(expected, &mut |path, inode| {
        if let Body::File(content) = &expected.inode(inode).body {
            let kept = found.entry(inode).or_insert_with(|| path.to_vec());
            if content.at == path {
                *kept = path.to_vec();
            }
        }
    });
    found.into_iter().collect()
}

/// Shows every path but the root, directories before what is in them.
pub(crate) fn visit(expected: &Expected, each: &mut dyn FnMut(&[u8], usize)) {
    let mut ahead = vec![(Vec::new(), ROOT)];
    while let Some((path, inode)) = ahead.pop() {
        if let Body::Dir(dir) = &expected.inode(inode).body {
            for (name, child) in &dir.children {
                let path = join(&path, name);
                each(&path, *child);
                if matches!(expected.inode(*child).body, Body::Dir(_)) {
                    ahead.push((path, *child));
                }
            }
        }
    }
}

struct Walk<'a> {
    subject: &'a Subject,
    expected: &'a Expected,
    /// The real inode of every expected one that has been met, and its first path.
    first: HashMap<usize, (u64, Vec<u8>)>,
    wrong: Vec<Wrong>,
    entries: u64,
    watch: &'a Watch,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<()> {
        let root = root::reopen(&self.subject.root).doing("open the snapshot")?;
        let stat = rustix::fs::fstat(&root).doing("look at the snapshot")?;
        let inode = self.expected.inode(ROOT);
        if let Some(look) = &inode.look {
            let xattrs = attributes::xattrs(&root).doing("read xattrs")?;
            if let Some(what) = described(look, &stat, &xattrs, opaque(inode), Dirs::Yes) {
                self.note(Vec::new(), what, Need::Describe(ROOT));
            }
        }
        let mut ahead = vec![(Vec::new(), ROOT)];
        while let Some((path, inode)) = ahead.pop() {
            if self.watch.cancelled.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            self.directory(&path, inode, &mut ahead)
                .map_err(|error| error.entry(&path))?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        path: &[u8],
        inode: usize,
        ahead: &mut Vec<(Vec<u8>, usize)>,
    ) -> Result<()> {
        let Body::Dir(wanted) = &self.expected.inode(inode).body else {
            return Ok(());
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = exactly(self.subject.root.as_fd(), path, flags).doing("open a directory")?;
        for name in root::names(&dir).doing("list a directory")? {
            if !wanted.children.contains_key(&name) {
                self.entries += 1;
                let what = "is in no layer".to_owned();
                self.note(join(path, &name), what, Need::Remove);
            }
        }
        for (name, child) in &wanted.children {
            self.entries += 1;
            let at = join(path, name);
            if let Some((what, need)) = self.entry(&dir, name, &at, *child)? {
                self.note(at.clone(), what, need);
            }
            let stands = root::look(&dir, name).doing("look")?;
            let is_dir = stands.is_some_and(|stat| root::file_type(&stat) == FileType::Directory);
            match self.expected.inode(*child).body {
                Body::Dir(_) if is_dir => ahead.push((at, *child)),
                Body::Dir(_) => self.beneath(&at, *child),
                _ => {}
            }
        }
        Ok(())
    }

    /// Everything in a directory that is not there is missing, too.
    fn beneath(&mut self, path: &[u8], inode: usize) {
        let mut ahead = vec![(path.to_vec(), inode)];
        while let Some((path, inode)) = ahead.pop() {
            let expected = self.expected;
            if let Body::Dir(dir) = &expected.inode(inode).body {
                for (name, child) in &dir.children {
                    self.entries += 1;
                    let at = join(&path, name);
                    self.note(at.clone(), "is missing".to_owned(), Need::Make(*child));
                    ahead.push((at, *child));
                }
            }
        }
    }

    fn note(&mut self, path: Vec<u8>, what: String, need: Need) {
        self.wrong.push(Wrong { path, what, need });
    }

    /// What is wrong with one name of a directory.
    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        inode: usize,
    ) -> Result<Option<(String, Need)>> {
        let Some(stat) = root::look(dir, name).doing("look")? else {
            return Ok(Some(("is missing".to_owned(), Need::Make(inode))));
        };
        let wanted = self.expected.inode(inode);
        if let Some(what) = kind(wanted, &stat) {
            return Ok(Some((what, Need::Make(inode))));
        }
        if let Some(what) = self.linked(path, inode, &stat) {
            return Ok(Some((what, Need::Make(inode))));
        }
        match &wanted.body {
            Body::Whiteout => return Ok(None),
            Body::File(content) if !content.same => {
                let what = match u64::try_from(stat.st_size) == Ok(content.size) {
                    true => "its bytes differ".to_owned(),
                    false => format!("has {} bytes, expected {}", stat.st_size, content.size),
                };
                return Ok(Some((what, Need::Make(inode))));
            }
            Body::Symlink(target) => {
                let found = rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new());
                if found.doing("read the link")?.as_bytes() != target.as_slice() {
                    let what = "leads elsewhere".to_owned();
                    return Ok(Some((what, Need::Make(inode))));
                }
            }
            _ => {}
        }
        let xattrs = attributes::xattrs_at(dir, name).doing("read xattrs")?;
        let implied;
        let look = match &wanted.look {
            Some(look) => look,
            None => {
                implied = self.implied(path)?;
                &implied
            }
        };
        let dirs = match wanted.body {
            Body::Dir(_) => Dirs::Yes,
            Body::File(_) => Dirs::File,
            _ => Dirs::No,
        };
        let different = described(look, &stat, &xattrs, opaque(wanted), dirs);
        let different = different.filter(|what| self.is_possible(dir, name, look, what));
        Ok(different.map(|what| (what, Need::Describe(inode))))
    }

    /// The other names of a file lead to the same inode.
    fn linked(&mut self, path: &[u8], inode: usize, stat: &Stat) -> Option<String> {
        if matches!(self.expected.inode(inode).body, Body::Dir(_)) {
            return None;
        }
        match self.first.get(&inode) {
            None => {
                self.first.insert(inode, (stat.st_ino, path.to_vec()));
                None
            }
            Some((same, _)) if *same == stat.st_ino => None,
            Some((_, first)) => {
                let first = crate::error::shown(first);
                Some(format!("is not the same file as {first}"))
            }
        }
    }

    /// How a directory looks that no entry describes: as the one below.
    pub(crate) fn implied(&self, path: &[u8]) -> Result<Look> {
        implied(self.subject, path)
    }

    /// Whether the file system could hold what is missing: what it cannot was left out when it was extracted.
    fn is_possible(&self, dir: &OwnedFd, name: &[u8], look: &Look, what: &str) -> bool {
        let Some(missing) = what.strip_prefix(XATTR) else {
            return true;
        };
        let Some((xattr, _)) = look
            .xattrs
            .iter()
            .find(|(xattr, _)| crate::error::shown(xattr) == missing)
        else {
            return true;
        };
        let path = [attributes::itself(dir).as_bytes(), b"/", name].concat();
        let (path, xattr) = (OsStr::from_bytes(&path), OsStr::from_bytes(xattr));
        let got = rustix::fs::lgetxattr(path, xattr, &mut [0u8; 0]);
        !matches!(got, Err(Errno::OPNOTSUPP))
    }
}

/// How a directory looks that no entry describes: as the one below, else as it is made.
pub(crate) fn implied(subject: &Subject, path: &[u8]) -> Result<Look> {
    let Some(below) = &subject.below else {
        return Ok(crate::expected::plain());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let dir = match exactly(below.as_fd(), path, flags) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(crate::expected::plain()),
        Err(error) => return Err(error).doing("open the directory below"),
    };
    let stat = rustix::fs::fstat(&dir).doing("look at the directory below")?;
    let mut xattrs = attributes::xattrs(&dir).doing("read xattrs")?;
    xattrs.retain(|(name, _)| !of_overlay(name) && name != b"security.selinux");
    Ok(Look {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        // The one below may be implied itself: its times are its own.
        mtime: None,
        xattrs,
    })
}

fn opaque(inode: &Inode) -> bool {
    matches!(&inode.body, Body::Dir(dir) if dir.opaque)
}

fn kind(wanted: &Inode, stat: &Stat) -> Option<String> {
    let found = root::file_type(stat);
    let (kind, device) = match &wanted.body {
        Body::Dir(_) => (FileType::Directory, None),
        Body::File(_) => (FileType::RegularFile, None),
        Body::Symlink(_) => (FileType::Symlink, None),
        Body::Node(FileType::Fifo, _) => (FileType::Fifo, None),
        Body::Node(kind, device) => (*kind, Some(*device)),
        Body::Whiteout => (FileType::CharacterDevice, Some((0, 0))),
    };
    if found != kind {
        return Some(format!("is a {}, expected a {}", noun(found), noun(kind)));
    }
    let (major, minor) = device?;
    let there = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    (there != (major, minor)).then(|| {
        let (had, has) = there;
        format!("is device {had}:{has}, expected {major}:{minor}")
    })
}

fn noun(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "link",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::Unknown => "thing of an unknown kind",
    }
}

/// Begins what is said about an xattr that is missing.
const XATTR: &str = "lacks xattr ";

/// Which xattrs an inode can have at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dirs {
    Yes,
    File,
    No,
}

fn described(
    look: &Look,
    stat: &Stat,
    xattrs: &Xattrs,
    opaque: bool,
    dirs: Dirs,
) -> Option<String> {
    let link = root::file_type(stat) == FileType::Symlink;
    let mode = stat.st_mode & 0o7777;
    if mode != look.mode && !link {
        return Some(format!("mode {mode:04o}, expected {:04o}", look.mode));
    }
    if (stat.st_uid, stat.st_gid) != (look.uid, look.gid) {
        return Some(format!(
            "owner {}:{}, expected {}:{}",
            stat.st_uid, stat.st_gid, look.uid, look.gid
        ));
    }
    if let Some(mtime) = look.mtime.filter(|time| MOMENTS.contains(&time.seconds))
        && (stat.st_mtime, stat.st_mtime_nsec) != (mtime.seconds, mtime.nanos.into())
    {
        return Some(format!(
            "modified at {}.{:09}, expected {}.{:09}",
            stat.st_mtime, stat.st_mtime_nsec, mtime.seconds, mtime.nanos
        ));
    }
    attributed(look, xattrs, opaque, dirs)
}

fn attributed(look: &Look, xattrs: &Xattrs, opaque: bool, dirs: Dirs) -> Option<String> {
    let is_opaque = xattrs.iter().any(|(name, value)| {
        value == b"y" && (name == b"trusted.overlay.opaque" || name == b"user.overlay.opaque")
    });
    if is_opaque != opaque {
        return Some(match opaque {
            true => "shows what is below, expected to hide it".to_owned(),
            false => "hides what is below, expected to show it".to_owned(),
        });
    }
    // Of several values the last one counts.
    let wanted: BTreeMap<&[u8], &[u8]> = look
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .collect();
    let found: BTreeMap<&[u8], &[u8]> = xattrs
        .iter()
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
        .collect();
    for (name, value) in &wanted {
        let impossible = dirs == Dirs::No && name.starts_with(b"user.");
        match found.get(name) {
            Some(there) if there == value => {}
            _ if impossible || *name == b"security.selinux" => {}
            Some(_) => return Some(format!("has another xattr {}", crate::error::shown(name))),
            None => return Some(format!("{XATTR}{}", crate::error::shown(name))),
        }
    }
    let extra = found
        .keys()
        .find(|name| !wanted.contains_key(*name) && is_ours(name))?;
    let extra = crate::error::shown(extra);
    Some(format!("has xattr {extra}, which no layer gives it"))
}

/// Whether an xattr comes from layers alone: not from the machine, a security module, a parent's ACL or overlayfs.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    if of_overlay(name) {
        // These would change what the directory means.
        let meaning = [&b"redirect"[..], b"metacopy", b"whiteout", b"whiteouts"];
        return meaning.iter().any(|end| name.ends_with(end));
    }
    name != MARK.as_bytes()
        && (name.starts_with(b"user.")
            || name.starts_with(b"trusted.")
            || name == b"security.capability")
}
