//! What differs between two trees.
//!
//! Both are walked by path from their root, without recursion, so no nesting can exhaust stack or descriptors.

use crate::error::{Doing, Error, Result};
use crate::{attributes, root, view, whiteout};
use rustix::fs::{FileType, Stat};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

/// What a layer must say about one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The path is as the upper tree has it.
    Present,
    /// As `Present`, and nothing below shines through this directory.
    Opaque,
    /// The path is no more.
    Deleted,
}

/// Changes in the order of a layer: a directory before what is in it, names by their bytes.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Keyed by path with NUL for `/`, which makes the byte order the tree order.
    map: BTreeMap<Vec<u8>, Change>,
    /// Names of each file that has several.
    linked: HashMap<(u64, u64), Vec<Vec<u8>>>,
}

impl Changes {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Vec<u8>, Change)> {
        self.map
            .iter()
            .map(|(key, change)| (swap(key, 0, b'/'), *change))
    }

    /// Adds a change and the directories it is in, whose times it changes.
    fn add(&mut self, path: &[u8], change: Change) {
        self.map.insert(swap(path, b'/', 0), change);
        let mut inside = path;
        while let Some((parent, _)) = root::split(inside).filter(|(parent, _)| !parent.is_empty()) {
            self.map
                .entry(swap(parent, b'/', 0))
                .or_insert(Change::Present);
            inside = parent;
        }
    }

    fn link(&mut self, path: &[u8], stat: &Stat) {
        if stat.st_nlink > 1 && root::file_type(stat) != FileType::Directory {
            self.linked
                .entry((stat.st_dev, stat.st_ino))
                .or_default()
                .push(path.to_vec());
        }
    }

    /// A link can only name a file of the same layer, so a file with one changed name goes into it with all its names.
    fn complete_links(&mut self) {
        for names in std::mem::take(&mut self.linked).into_values() {
            if names
                .iter()
                .any(|name| self.map.contains_key(&swap(name, b'/', 0)))
            {
                names
                    .iter()
                    .for_each(|name| self.add(name, Change::Present));
            }
        }
    }
}

fn swap(path: &[u8], from: u8, to: u8) -> Vec<u8> {
    path.iter()
        .map(|byte| if *byte == from { to } else { *byte })
        .collect()
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir.is_empty() {
        true => name.to_vec(),
        false => [dir, b"/", name].concat(),
    }
}

/// Lists what an overlay's upper directory changes; none when it holds something only the kernel can merge (a renamed
/// directory, a file of which only the metadata was copied).
pub(crate) fn of_upper(upper: &OwnedFd) -> Result<Option<Changes>> {
    let mut changes = Changes::default();
    let mut ahead = vec![Vec::new()];
    while let Some(path) = ahead.pop() {
        let dir = root::open(upper, &path, root::LIST).doing("open a directory")?;
        for name in root::names(&dir).doing("list a directory")? {
            let Some(stat) = root::look(&dir, &name).doing("look at a file")? else {
                continue;
            };
            let at = join(&path, &name);
            if root::is_whiteout(&stat) {
                changes.add(&at, Change::Deleted);
                continue;
            }
            if skipped(&name, &stat) {
                continue;
            }
            let Some(change) = upper_change(&dir, &name)? else {
                return Ok(None);
            };
            changes.add(&at, change);
            changes.link(&at, &stat);
            if root::file_type(&stat) == FileType::Directory {
                ahead.push(at);
            }
        }
    }
    Ok(Some(changes))
}

fn upper_change(dir: &OwnedFd, name: &[u8]) -> Result<Option<Change>> {
    let xattrs = attributes::xattrs_at(dir, name).doing("read xattrs")?;
    let mut change = Change::Present;
    for (name, value) in xattrs
        .iter()
        .filter(|(name, _)| attributes::of_overlay(name))
    {
        match name.rsplit(|byte| *byte == b'.').next() {
            Some(b"opaque") if value == b"y" => change = Change::Opaque,
            Some(b"redirect" | b"metacopy" | b"whiteout" | b"opaque") => return Ok(None),
            _ => {}
        }
    }
    Ok(Some(change))
}

/// Sockets mean nothing in a layer; a file named like a whiteout would become one.
fn skipped(name: &[u8], stat: &Stat) -> bool {
    root::file_type(stat) == FileType::Socket || whiteout::reserved(name)
}

/// Lists what must change to make `lower` into `upper`; without a lower tree that is all there is.
pub(crate) fn between(lower: Option<&OwnedFd>, upper: &OwnedFd) -> Result<Changes> {
    let mut changes = Changes::default();
    let mut ahead = vec![(Vec::new(), lower.is_some())];
    while let Some((path, both)) = ahead.pop() {
        let above = root::open(upper, &path, root::LIST).doing("open a directory")?;
        let below = lower
            .filter(|_| both)
            .map(|lower| root::open(lower, &path, root::LIST));
        let below = below.transpose().doing("open a directory below")?;
        let names = root::names(&above).doing("list a directory")?;
        deleted(below.as_ref(), &names, &path, &mut changes)?;
        for name in names {
            let Some(stat) = root::look(&above, &name).doing("look at a file")? else {
                continue;
            };
            if skipped(&name, &stat) {
                continue;
            }
            let at = join(&path, &name);
            let was = below
                .as_ref()
                .map(|below| root::look(below, &name))
                .transpose()
                .doing("look at a file below")?;
            let was = was.flatten();
            let same = match (&below, &was) {
                (Some(below), Some(was)) => {
                    same(below, was, &above, &stat, &name).map_err(|error| error.entry(&at))?
                }
                _ => false,
            };
            if !same {
                changes.add(&at, Change::Present);
            }
            changes.link(&at, &stat);
            if root::file_type(&stat) == FileType::Directory {
                let both = was.is_some_and(|was| root::file_type(&was) == FileType::Directory);
                ahead.push((at, both));
            }
        }
    }
    changes.complete_links();
    Ok(changes)
}

fn deleted(
    below: Option<&OwnedFd>,
    above: &[Vec<u8>],
    path: &[u8],
    changes: &mut Changes,
) -> Result<()> {
    let Some(below) = below else { return Ok(()) };
    let above: HashSet<&[u8]> = above.iter().map(Vec::as_slice).collect();
    for name in root::names(below).doing("list a directory below")? {
        if !above.contains(name.as_slice()) && !whiteout::reserved(&name) {
            changes.add(&join(path, &name), Change::Deleted);
        }
    }
    Ok(())
}

fn same(below: &OwnedFd, was: &Stat, above: &OwnedFd, is: &Stat, name: &[u8]) -> Result<bool> {
    let kind = root::file_type(is);
    if (was.st_dev, was.st_ino) == (is.st_dev, is.st_ino) && kind != FileType::Directory {
        return Ok(true);
    }
    let look = |stat: &Stat| {
        (
            stat.st_mode,
            stat.st_uid,
            stat.st_gid,
            stat.st_mtime,
            stat.st_mtime_nsec,
            device(stat),
            links(stat),
        )
    };
    let size = |stat: &Stat| {
        if kind == FileType::Directory {
            0
        } else {
            stat.st_size
        }
    };
    if look(was) != look(is) || size(was) != size(is) {
        return Ok(false);
    }
    if xattrs(below, name)? != xattrs(above, name)? {
        return Ok(false);
    }
    match kind {
        FileType::Symlink => Ok(link(below, name)? == link(above, name)?),
        // equal times prove little: those of archives are whole seconds
        FileType::RegularFile => same_bytes(&file(below, name)?, &file(above, name)?),
        _ => Ok(true),
    }
}

fn device(stat: &Stat) -> u64 {
    match root::file_type(stat) {
        FileType::CharacterDevice | FileType::BlockDevice => stat.st_rdev,
        _ => 0,
    }
}

fn links(stat: &Stat) -> u64 {
    if root::file_type(stat) == FileType::Directory {
        0
    } else {
        stat.st_nlink
    }
}

fn xattrs(dir: &OwnedFd, name: &[u8]) -> Result<attributes::Xattrs> {
    let mut xattrs = attributes::xattrs_at(dir, name).doing("read xattrs")?;
    xattrs.retain(|(name, _)| !attributes::of_overlay(name));
    Ok(xattrs)
}

fn link(dir: &OwnedFd, name: &[u8]) -> Result<std::ffi::CString> {
    let link = root::open_name(dir, name, root::LOOK).doing("open a link")?;
    rustix::fs::readlinkat(link, c"", Vec::new()).doing("read a link")
}

fn file(dir: &OwnedFd, name: &[u8]) -> Result<File> {
    let file = root::open_name(dir, name, root::LOOK).doing("open a file")?;
    view::regular(file)
        .doing("open a file")?
        .ok_or_else(|| Error::Refused("changed while it was read".to_owned()))
}

fn same_bytes(mut one: &File, mut other: &File) -> Result<bool> {
    let (mut first, mut second) = ([0; 16 << 10], [0; 16 << 10]);
    loop {
        let length = one.read(&mut first).doing("read a file")?;
        if length == 0 {
            return Ok(other.read(&mut second[..1]).doing("read a file")? == 0);
        }
        match other.read_exact(&mut second[..length]) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            done => done.doing("read a file")?,
        }
        if first[..length] != second[..length] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_after_nothing_else() {
        let mut changes = Changes::default();
        for path in [&b"a.b"[..], b"a/z", b"a-b/c", b"a/b/c"] {
            changes.add(path, Change::Deleted);
        }
        let paths: Vec<_> = changes
            .iter()
            .map(|(path, _)| String::from_utf8(path).unwrap())
            .collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/z", "a-b", "a-b/c", "a.b"]);
    }
}
