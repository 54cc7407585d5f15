//! What a tree holds on disk, as `du` counts.

use super::{is_dots, open_directory};
use crate::error::{Error, Result};
use contracts::snapshots::Used;
use rustix::fs::{AtFlags, Dir, FileType, Mode, Stat};
use rustix::io;
use std::collections::HashSet;
use std::path::Path;

/// Unit of `st_blocks`, bytes. Source: inode(7).
const BLOCK: u64 = 512;

/// Measures a directory with all that is in it, each hard-linked file once.
///
/// A tree that changes meanwhile is measured as far as it is there.
pub(crate) fn usage(path: &Path) -> Result<Used> {
    measure(path).map_err(Error::io(path.display()))
}

fn measure(path: &Path) -> io::Result<Used> {
    let root = rustix::fs::open(path, super::DIRECTORY, Mode::empty())?;
    let mut count = Count::default();
    count.add(&rustix::fs::fstat(&root)?);
    let mut levels = vec![Dir::new(root)?];
    while let Some(dir) = levels.last_mut() {
        let Some(entry) = dir.read() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        if is_dots(entry.file_name()) {
            continue;
        }
        let deeper = count.entry(dir, entry.file_name());
        match deeper {
            Ok(deeper) => levels.extend(deeper),
            Err(io::Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count.used)
}

#[derive(Default)]
struct Count {
    used: Used,
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn entry(&mut self, dir: &Dir, name: &std::ffi::CStr) -> io::Result<Option<Dir>> {
        let at = dir.fd()?;
        let stat = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.add(&stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Dir::new(open_directory(at, name)?).map(Some),
            _ => Ok(None),
        }
    }

    fn add(&mut self, stat: &Stat) {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !directory && stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        self.used.inodes += 1;
        self.used.size += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_hard_linked_file_counts_once_and_a_hole_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let empty = usage(dir.path()).unwrap();
        assert_eq!(empty.inodes, 1);
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("a"), vec![1; 100_000]).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("sub/b")).unwrap();
        let hole = fs::File::create(dir.path().join("hole")).unwrap();
        hole.set_len(1 << 30).unwrap();
        let used = usage(dir.path()).unwrap();
        assert_eq!(used.inodes, 4);
        assert!(
            (100_000..200_000).contains(&(used.size - empty.size)),
            "{used:?}"
        );
    }
}
