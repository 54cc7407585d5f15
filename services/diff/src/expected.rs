//! The tree that extracting layers gives, as data: what each entry asks for, links followed, nothing touched.
//!
//! It repeats the rules of `extract` and `tree` without a file system. A comparison that walks the real tree beside it
//! sees every difference; see `verify`.

use crate::archive::{Entry, Kind, Time};
use crate::attributes::{Xattrs, of_overlay};
use crate::error::{Error, Result, shown};
use crate::root;
use crate::tree::Whiteouts;
use crate::whiteout::{Asked, asked};
use rustix::fs::FileType;
use std::collections::{BTreeMap, HashSet};

/// Links followed in one path, as where files are extracted.
const MAX_LINKS: usize = 40;
/// The root directory.
pub(crate) const ROOT: usize = 0;

/// How one inode looks.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// None where nothing says so.
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Xattrs,
}

/// What one inode is.
#[derive(Debug)]
pub(crate) enum Body {
    Dir(Dir),
    File(Content),
    Symlink(Vec<u8>),
    Node(FileType, (u32, u32)),
    /// How overlayfs marks a deleted name.
    Whiteout,
}

#[derive(Debug, Default)]
pub(crate) struct Dir {
    pub(crate) children: BTreeMap<Vec<u8>, usize>,
    /// Hides all below it.
    pub(crate) opaque: bool,
}

/// A file's bytes, by where they stand in the layers.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) size: u64,
    /// Which entry of all layers brings them.
    pub(crate) entry: u64,
    /// Where they were compared.
    pub(crate) at: Vec<u8>,
    /// Whether they were there.
    pub(crate) same: bool,
}

#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) body: Body,
    /// None for a directory that nothing describes: it takes after the one below.
    pub(crate) look: Option<Look>,
}

/// The tree so far.
#[derive(Debug)]
pub(crate) struct Expected {
    inodes: Vec<Inode>,
    whiteouts: Whiteouts,
    /// Names that the layer under way brought, by directory; deletions spare them.
    added: HashSet<(usize, Vec<u8>)>,
    /// Directories in which that layer changed names, and those that it described: only these get times of theirs.
    touched: HashSet<usize>,
    described: HashSet<usize>,
    entries: u64,
}

impl Expected {
    pub(crate) fn new(whiteouts: Whiteouts) -> Self {
        let root = Inode {
            body: Body::Dir(Dir::default()),
            look: None,
        };
        Self {
            inodes: vec![root],
            whiteouts,
            added: HashSet::new(),
            touched: HashSet::new(),
            described: HashSet::new(),
            entries: 0,
        }
    }

    /// A layer ends: what comes next is of another one, on top.
    pub(crate) fn end_layer(&mut self) {
        self.added.clear();
        let described = std::mem::take(&mut self.described);
        for dir in std::mem::take(&mut self.touched) {
            if let Some(look) = &mut self.inodes[dir].look
                && !described.contains(&dir)
            {
                look.mtime = None;
            }
        }
    }

    /// Which entry of all layers comes next.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    pub(crate) fn inode(&self, inode: usize) -> &Inode {
        &self.inodes[inode]
    }

    pub(crate) fn content(&mut self, inode: usize) -> Option<&mut Content> {
        match &mut self.inodes[inode].body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    pub(crate) fn overlay(&self) -> bool {
        matches!(self.whiteouts, Whiteouts::Overlay { .. })
    }

    /// Takes in one entry. Answers the inode of a file, whose bytes follow.
    ///
    /// Errors: `Refused` for what extraction refuses, too.
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<Option<usize>> {
        let number = self.entries;
        self.entries += 1;
        let path = root::normal(&entry.name);
        let Some((parent, name)) = root::split(&path) else {
            self.describe(ROOT, entry);
            return Ok(None);
        };
        match asked(&path) {
            Asked::Nothing => {}
            Asked::Ignore => return Ok(None),
            Asked::Opaque(dir) => return self.opaque(dir).map(|()| None),
            Asked::Remove(dir, name) => return self.hide(dir, name).map(|()| None),
            Asked::Broken => return refused("a whiteout must name what it hides"),
        }
        let (parent, place) = self.parent(parent)?;
        let made = match entry.kind {
            Kind::Dir => self.directory(parent, name, entry)?,
            Kind::Hardlink => self.hardlink(parent, name, entry)?,
            _ => {
                let body = body(entry, number, join(&place, name));
                self.put(parent, name, body, Some(look(entry)))?
            }
        };
        if !self.overlay() {
            self.added.insert((parent, name.to_vec()));
        }
        Ok((entry.kind == Kind::File).then_some(made))
    }

    fn add(&mut self, body: Body, look: Option<Look>) -> usize {
        self.inodes.push(Inode { body, look });
        self.inodes.len() - 1
    }

    fn dir(&self, inode: usize) -> Option<&Dir> {
        match &self.inodes[inode].body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, inode: usize) -> Result<&mut Dir> {
        match &mut self.inodes[inode].body {
            Body::Dir(dir) => Ok(dir),
            _ => refused("is beneath something that is no directory"),
        }
    }

    fn child(&self, dir: usize, name: &[u8]) -> Option<usize> {
        self.dir(dir)?.children.get(name).copied()
    }

    fn link(&mut self, dir: usize, name: &[u8], inode: usize) -> Result<()> {
        self.dir_mut(dir)?.children.insert(name.to_vec(), inode);
        self.touched.insert(dir);
        Ok(())
    }

    fn put(&mut self, dir: usize, name: &[u8], body: Body, look: Option<Look>) -> Result<usize> {
        let made = self.add(body, look);
        self.link(dir, name, made)?;
        Ok(made)
    }

    fn directory(&mut self, parent: usize, name: &[u8], entry: &Entry) -> Result<usize> {
        let there = self.child(parent, name);
        if let Some(dir) = there.filter(|inode| self.dir(*inode).is_some()) {
            self.describe(dir, entry);
            return Ok(dir);
        }
        let hides = there.is_some_and(|inode| matches!(self.inodes[inode].body, Body::Whiteout));
        let body = Body::Dir(Dir {
            opaque: hides,
            ..Dir::default()
        });
        let made = self.put(parent, name, body, Some(look(entry)))?;
        self.described.insert(made);
        Ok(made)
    }

    /// An entry for a directory that is there: what it does not say about xattrs stays where deletions are marked, and
    /// goes where layers are merged, as a fresh directory would not have it.
    fn describe(&mut self, dir: usize, entry: &Entry) {
        let mut new = look(entry);
        if let Some(old) = &self.inodes[dir].look {
            for (name, value) in &old.xattrs {
                let stays = self.overlay() || name.starts_with(b"security.");
                if stays && new.xattrs.iter().all(|(known, _)| known != name) {
                    new.xattrs.push((name.clone(), value.clone()));
                }
            }
        }
        self.inodes[dir].look = Some(new);
        self.described.insert(dir);
    }

    fn hardlink(&mut self, parent: usize, name: &[u8], entry: &Entry) -> Result<usize> {
        let target = root::normal(&entry.link);
        let found = match root::split(&target) {
            Some((dir, name)) => match self.walk(dir, false)? {
                Some((dir, _)) => self.child(dir, name),
                None => None,
            },
            None => None,
        };
        let Some(found) = found.filter(|inode| self.dir(*inode).is_none()) else {
            let target = shown(&entry.link);
            return refused(&format!("its link target {target} is not there"));
        };
        self.link(parent, name, found)?;
        Ok(found)
    }

    /// Hides one name of the layers below.
    fn hide(&mut self, dir: &[u8], name: &[u8]) -> Result<()> {
        if self.overlay() {
            let (dir, _) = self.parent(dir)?;
            return match self.child(dir, name) {
                Some(inside) => {
                    if let Body::Dir(inside) = &mut self.inodes[inside].body {
                        inside.opaque = true;
                    }
                    Ok(())
                }
                None => self.put(dir, name, Body::Whiteout, None).map(drop),
            };
        }
        let Some((dir, _)) = self.walk(dir, false)? else {
            return Ok(());
        };
        let Some(inside) = self.child(dir, name) else {
            return Ok(());
        };
        if self.added.contains(&(dir, name.to_vec())) {
            self.prune(inside);
        } else if !self.prune(inside) {
            self.dir_mut(dir)?.children.remove(name);
            self.touched.insert(dir);
        }
        Ok(())
    }

    /// Hides all that the layers below have in a directory.
    fn opaque(&mut self, dir: &[u8]) -> Result<()> {
        if self.overlay() {
            let (dir, _) = self.parent(dir)?;
            self.dir_mut(dir)?.opaque = true;
        } else if let Some((dir, _)) = self.walk(dir, false)? {
            self.prune(dir);
        }
        Ok(())
    }

    /// Removes what is in a directory but for what this layer brought; says whether anything stayed.
    fn prune(&mut self, dir: usize) -> bool {
        let Some(children) = self.dir(dir).map(|dir| dir.children.clone()) else {
            return false;
        };
        let mut kept = BTreeMap::new();
        for (name, child) in children {
            let ours = self.added.contains(&(dir, name.clone()));
            if self.prune(child) || ours {
                kept.insert(name, child);
            }
        }
        let any = !kept.is_empty();
        let at = dir;
        if let Body::Dir(dir) = &mut self.inodes[dir].body {
            if dir.children.len() != kept.len() {
                self.touched.insert(at);
            }
            dir.children = kept;
        }
        any
    }

    /// The directory at `path`, made when it is missing, and where it really is.
    fn parent(&mut self, path: &[u8]) -> Result<(usize, Vec<u8>)> {
        match self.walk(path, true)? {
            Some(found) => Ok(found),
            None => refused("is beneath something that is no directory"),
        }
    }

    /// Walks `path` as a container would see it; with `make` what is missing is implied.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<(usize, Vec<u8>)>> {
        let mut ahead: Vec<Vec<u8>> = pieces(path).collect();
        let mut here: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            let at = here.last().map_or(ROOT, |(inode, _)| *inode);
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here.pop();
                    continue;
                }
                _ => {}
            }
            let next = match self.child(at, &name) {
                Some(inode) => inode,
                None if make => {
                    let look = (!self.overlay()).then(plain);
                    self.put(at, &name, Body::Dir(Dir::default()), look)?
                }
                None => return Ok(None),
            };
            match &self.inodes[next].body {
                Body::Dir(_) => here.push((next, name)),
                Body::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    let target = target.clone();
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    ahead.extend(pieces(&target));
                }
                Body::Whiteout if make => {
                    let body = Body::Dir(Dir {
                        opaque: true,
                        ..Dir::default()
                    });
                    let made = self.put(at, &name, body, Some(plain()))?;
                    here.push((made, name));
                }
                _ => return Ok(None),
            }
        }
        let at = here.last().map_or(ROOT, |(inode, _)| *inode);
        let names: Vec<&[u8]> = here.iter().map(|(_, name)| name.as_slice()).collect();
        Ok(Some((at, names.join(&b'/'))))
    }
}

/// Names of a path, the last one first.
fn pieces(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec)
}

/// A name in a directory.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir.is_empty() {
        true => name.to_vec(),
        false => [dir, b"/", name].concat(),
    }
}

fn body(entry: &Entry, number: u64, at: Vec<u8>) -> Body {
    match entry.kind {
        Kind::Symlink => Body::Symlink(entry.link.clone()),
        Kind::Char => Body::Node(FileType::CharacterDevice, entry.device),
        Kind::Block => Body::Node(FileType::BlockDevice, entry.device),
        Kind::Fifo => Body::Node(FileType::Fifo, (0, 0)),
        Kind::File | Kind::Dir | Kind::Hardlink => Body::File(Content {
            size: entry
                .sparse
                .as_ref()
                .map_or(entry.size, |map| map.real_size),
            entry: number,
            at,
            same: false,
        }),
    }
}

fn look(entry: &Entry) -> Look {
    let mut xattrs = entry.xattrs.clone();
    xattrs.retain(|(name, _)| !of_overlay(name));
    Look {
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        mtime: Some(entry.mtime),
        xattrs,
    }
}

/// How a directory looks that nothing describes and that has none below it.
pub(crate) fn plain() -> Look {
    Look {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: None,
        xattrs: Vec::new(),
    }
}

fn refused<T>(what: &str) -> Result<T> {
    Err(Error::Refused(what.to_owned()))
}
