//! Fast removal: unlink first, ask later; any depth with few descriptors and no recursion.

use super::{is_dots, open_directory};
use crate::error::{Error, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode};
use rustix::io::{self, Errno};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Levels that are open at once; deeper directories are first moved up beside the top.
const DEPTH: usize = 64;
/// How often a directory that does not become empty is read again.
const ROUNDS: u32 = 8;

/// Removes a directory and all that is in it. What is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match remove_tree(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::io(path.display())(e)),
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let top = rustix::fs::open(parent, super::DIRECTORY, Mode::empty())?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let mut removal = Removal {
        top,
        base: name.clone(),
        moved: 0,
        waiting: vec![name],
    };
    while let Some(next) = removal.waiting.pop() {
        removal.one(next)?;
    }
    Ok(())
}

struct Removal {
    /// Holds the tree, and what was moved up out of it.
    top: OwnedFd,
    base: CString,
    moved: u64,
    /// Trees in `top` that have to go.
    waiting: Vec<CString>,
}

struct Level {
    dir: Dir,
    name: CString,
    rounds: u32,
}

impl Level {
    fn open(at: impl AsFd, name: &CStr) -> io::Result<Self> {
        let opened = match open_directory(&at, name) {
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(&at, name, Mode::RWXU, AtFlags::empty())?;
                open_directory(&at, name)
            }
            opened => opened,
        };
        Ok(Self {
            dir: Dir::new(opened?)?,
            name: name.to_owned(),
            rounds: 0,
        })
    }
}

impl Removal {
    /// Removes one tree of `top`.
    fn one(&mut self, name: CString) -> io::Result<()> {
        let mut levels = vec![Level::open(&self.top, &name)?];
        while let Some(level) = levels.last_mut() {
            match level.dir.read() {
                Some(entry) => {
                    let entry = entry?;
                    if let Some(deeper) =
                        self.entry(&levels, entry.file_name(), entry.file_type())?
                    {
                        levels.push(deeper);
                    }
                }
                None => self.leave(&mut levels)?,
            }
        }
        Ok(())
    }

    /// Removes one entry, or answers the directory that has to be emptied before.
    fn entry(
        &mut self,
        levels: &[Level],
        name: &CStr,
        kind: FileType,
    ) -> io::Result<Option<Level>> {
        let Some(level) = levels.last().filter(|_| !is_dots(name)) else {
            return Ok(None);
        };
        let at = level.dir.fd()?;
        if kind != FileType::Directory {
            match unlink(at, name, AtFlags::empty()) {
                // Some file systems do not say what an entry is.
                Err(Errno::ISDIR | Errno::PERM) if kind == FileType::Unknown => {}
                done => return done.map(|()| None),
            }
        }
        match unlink(at, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            done => return done.map(|()| None),
        }
        if levels.len() < DEPTH {
            return Level::open(at, name).map(Some);
        }
        self.move_up(at, name).map(|()| None)
    }

    fn move_up(&mut self, at: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        loop {
            self.moved += 1;
            let beside = format!("{}~{}", self.base.to_string_lossy(), self.moved);
            let beside = CString::new(beside).map_err(|_| Errno::INVAL)?;
            match rustix::fs::renameat(at, name, &self.top, &beside) {
                // An interrupted removal left one of that name.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                moved => {
                    self.waiting.push(beside);
                    return moved;
                }
            }
        }
    }

    /// Removes the directory whose entries are all read, and goes back to the one above.
    fn leave(&self, levels: &mut Vec<Level>) -> io::Result<()> {
        let Some(mut level) = levels.pop() else {
            return Ok(());
        };
        let above = match levels.last() {
            Some(above) => above.dir.fd()?,
            None => self.top.as_fd(),
        };
        match unlink(above, &level.name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.rounds < ROUNDS => {
                level.rounds += 1;
                level.dir.rewind();
                levels.push(level);
                Ok(())
            }
            done => done,
        }
    }
}

/// Without privileges, an own directory without write permission must be opened up first.
fn unlink(at: impl AsFd, name: &CStr, flags: AtFlags) -> io::Result<()> {
    let once = || rustix::fs::unlinkat(&at, name, flags);
    match once() {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(&at, Mode::RWXU)?;
            once()
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_tree_goes_and_what_its_links_point_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("kept")).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink("/", tree.join("root")).unwrap();
        for closed in ["a/b", "a"] {
            fs::set_permissions(tree.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "kept");
        assert!(outside.join("kept").exists());
        remove(&tree).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut here = rustix::fs::open(&tree, super::super::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, c"deeper", Mode::RWXU).unwrap();
            here = open_directory(&here, c"deeper").unwrap();
        }
        remove(&tree).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
