//! A copy of a tree as `cp -a` makes it: owners, modes, times, extended attributes, hard links, holes, devices, fifos.

use super::{is_dots, open_directory};
use crate::error::{Error, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::{self, Errno};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Bytes that are asked for at once; the kernel does as many as it likes.
const CHUNK: usize = 1 << 30;
/// Bytes of the buffer where the kernel cannot copy by itself.
const BUFFER: usize = 128 << 10;

/// Copies all that is in `from`, and what `from` itself is like, to the empty directory `to`.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let open = |path: &Path| {
        rustix::fs::open(path, super::DIRECTORY, Mode::empty()).map_err(Error::io(path.display()))
    };
    let (source, target) = (open(from)?, open(to)?);
    let mut copier = Copier {
        root: target.try_clone().map_err(|source| Error::Io {
            what: to.display().to_string(),
            source,
        })?,
        linked: HashMap::new(),
        clones: true,
        privileged: rustix::process::geteuid().is_root()
            || rustix::thread::capabilities(None).is_ok_and(|sets| {
                sets.effective
                    .contains(rustix::thread::CapabilitySet::CHOWN)
            }),
        path: PathBuf::new(),
    };
    copier.tree(source, target).map_err(|e| {
        let at = to.join(&copier.path);
        Error::io(format!("copy to {}", at.display()))(e)
    })
}

struct Copier {
    root: OwnedFd,
    /// Where the first name of each hard-linked file went, below the root.
    linked: HashMap<(u64, u64), PathBuf>,
    /// Whether this file system may share extents.
    clones: bool,
    /// Whether owners can be given at all.
    privileged: bool,
    /// What is being copied, below the root.
    path: PathBuf,
}

struct Level {
    source: Dir,
    target: OwnedFd,
    /// What the finished directory is like.
    like: Stat,
}

impl Level {
    fn new(source: OwnedFd, target: OwnedFd) -> io::Result<Self> {
        let like = rustix::fs::fstat(&source)?;
        Ok(Self {
            source: Dir::new(source)?,
            target,
            like,
        })
    }
}

impl Copier {
    fn tree(&mut self, source: OwnedFd, target: OwnedFd) -> io::Result<()> {
        let mut levels = vec![Level::new(source, target)?];
        while let Some(level) = levels.last_mut() {
            match level.source.read() {
                Some(entry) => {
                    let entry = entry?;
                    let name = entry.file_name();
                    if is_dots(name) {
                        continue;
                    }
                    self.path.push(os(name));
                    match self.entry(level, name)? {
                        Some(deeper) => levels.push(deeper),
                        None => drop(self.path.pop()),
                    }
                }
                None => {
                    // Last, because every new entry moves the directory's time, and a mode may forbid them.
                    self.finish_directory(level)?;
                    levels.pop();
                    self.path.pop();
                }
            }
        }
        Ok(())
    }

    /// Copies one entry; of a directory only the beginning, which it answers.
    fn entry(&mut self, level: &Level, name: &CStr) -> io::Result<Option<Level>> {
        let (from, to) = (level.source.fd()?, level.target.as_fd());
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let first = self.linked.get(&(stat.st_dev, stat.st_ino));
            if let Some(first) = first {
                rustix::fs::linkat(&self.root, first, to, name, AtFlags::empty())?;
                return Ok(None);
            }
            let place = self.path.clone();
            self.linked.insert((stat.st_dev, stat.st_ino), place);
        }
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                let opened = (open_directory(from, name)?, open_directory(to, name)?);
                return Level::new(opened.0, opened.1).map(Some);
            }
            FileType::RegularFile => self.file(from, to, name, &stat)?,
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(link, to, name)?;
            }
            other => rustix::fs::mknodat(to, name, other, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        self.finish(from, to, name, &stat)?;
        Ok(None)
    }

    fn file(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, name, read, Mode::empty())?;
        let target = rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size == 0 {
            return Ok(());
        }
        if self.clones {
            match rustix::fs::ioctl_ficlone(&target, &source) {
                Ok(()) => return Ok(()),
                Err(_) => self.clones = false,
            }
        }
        let mut at = 0;
        while let Some((begin, end)) = next_data(&source, at, size)? {
            copy_range(&source, &target, begin, end)?;
            at = end;
        }
        rustix::fs::ftruncate(&target, size)
    }

    /// Owner before mode and capabilities, because a change of owner drops some of both; times last.
    fn finish(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> io::Result<()> {
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::chownat(to, name, Some(owner.0), Some(owner.1), nofollow) {
            Err(Errno::PERM) if !self.privileged => {}
            done => done?,
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
        }
        self.attributes(&by_path(from, name)?, &by_path(to, name)?)?;
        rustix::fs::utimensat(to, name, &times(stat), nofollow)
    }

    fn finish_directory(&self, level: &Level) -> io::Result<()> {
        self.finish(level.source.fd()?, level.target.as_fd(), c".", &level.like)
    }

    fn attributes(&self, from: &CStr, to: &CStr) -> io::Result<()> {
        let mut names = match rustix::fs::llistxattr_query(from) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
            size => vec![0; size?],
        };
        let length = rustix::fs::llistxattr(from, names.as_mut_slice())?;
        for name in names[..length].split_inclusive(|&byte| byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else {
                continue;
            };
            let mut value = vec![0; rustix::fs::lgetxattr_query(from, name)?];
            let length = rustix::fs::lgetxattr(from, name, value.as_mut_slice())?;
            match rustix::fs::lsetxattr(to, name, &value[..length], XattrFlags::empty()) {
                // The policy of this machine labels new files by itself.
                Err(_) if name == c"security.selinux" => {}
                Err(Errno::PERM) if !self.privileged => {}
                done => done?,
            }
        }
        Ok(())
    }
}

fn os(name: &CStr) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes())
}

/// Attributes of links, fifos and devices are reached by path only; this one follows nothing of the tree.
fn by_path(at: BorrowedFd<'_>, name: &CStr) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", at.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).map_err(|_| Errno::INVAL)
}

fn times(stat: &Stat) -> Timestamps {
    let moment = |seconds, nanos| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    Timestamps {
        last_access: moment(stat.st_atime, stat.st_atime_nsec),
        last_modification: moment(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// The next stretch that is no hole.
fn next_data(file: &OwnedFd, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => Ok(None),
        // Without an answer it is all data.
        Err(Errno::INVAL) => Ok(Some((at, size))),
        begin => {
            let begin = begin?;
            let end = rustix::fs::seek(file, SeekFrom::Hole(begin)).unwrap_or(size);
            Ok((begin < size).then_some((begin, end.min(size))))
        }
    }
}

fn copy_range(source: &OwnedFd, target: &OwnedFd, begin: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (begin, begin);
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(CHUNK).min(CHUNK);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
            // Somebody made it shorter.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_bytes(source, target, from, end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_bytes(source: &OwnedFd, target: &OwnedFd, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
        let length = io::pread(source, &mut buffer[..wanted], at)?;
        if length == 0 {
            break;
        }
        let mut written = 0;
        while written < length {
            let done = io::pwrite(target, &buffer[written..length], at + written as u64)?;
            written += done;
        }
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn copied(make: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        make(&from);
        copy(&from, &to).unwrap();
        (dir, from, to)
    }

    #[test]
    fn holes_links_and_times_are_kept() {
        let (_dir, from, to) = copied(|from| {
            let sparse = fs::File::create(from.join("sparse")).unwrap();
            std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 5 << 20).unwrap();
            sparse.set_len(10 << 20).unwrap();
            fs::create_dir(from.join("sub")).unwrap();
            fs::hard_link(from.join("sparse"), from.join("sub/again")).unwrap();
            symlink("nowhere", from.join("link")).unwrap();
            let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1, 5);
            fs::File::open(from.join("sub"))
                .unwrap()
                .set_modified(old)
                .unwrap();
            fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o500)).unwrap();
        });
        let stat = |path: &Path| fs::symlink_metadata(path).unwrap();
        assert_eq!(
            fs::read(from.join("sparse")).unwrap(),
            fs::read(to.join("sparse")).unwrap()
        );
        assert!(
            stat(&to.join("sparse")).blocks() * 512 < 1 << 20,
            "holes stay holes"
        );
        assert_eq!(
            stat(&to.join("sparse")).ino(),
            stat(&to.join("sub/again")).ino()
        );
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("nowhere")
        );
        assert_eq!(stat(&to.join("sub")).mode() & 0o7777, 0o500);
        assert_eq!(
            (
                stat(&to.join("sub")).mtime(),
                stat(&to.join("sub")).mtime_nsec()
            ),
            (1, 5)
        );
        assert_eq!(
            stat(&to.join("link")).mtime_nsec(),
            stat(&from.join("link")).mtime_nsec()
        );
    }

    #[test]
    fn owners_set_id_bits_and_attributes_are_kept() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (_dir, _, to) = copied(|from| {
            fs::write(from.join("su"), "x").unwrap();
            std::os::unix::fs::chown(from.join("su"), Some(1), Some(2)).unwrap();
            fs::set_permissions(from.join("su"), fs::Permissions::from_mode(0o6755)).unwrap();
            xattr::set(from.join("su"), "user.a", b"1").unwrap();
            xattr::set(from.join("su"), "trusted.b", b"2").unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                from.join("pipe"),
                FileType::Fifo,
                Mode::RWXU,
                0,
            )
            .unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                from.join("null"),
                FileType::CharacterDevice,
                Mode::RUSR,
                rustix::fs::makedev(1, 3),
            )
            .unwrap();
            std::os::unix::fs::chown(from, Some(3), Some(4)).unwrap();
        });
        let stat = |name: &str| fs::symlink_metadata(to.join(name)).unwrap();
        assert_eq!(
            (
                stat("su").uid(),
                stat("su").gid(),
                stat("su").mode() & 0o7777
            ),
            (1, 2, 0o6755)
        );
        assert_eq!(xattr::get(to.join("su"), "user.a").unwrap().unwrap(), b"1");
        assert_eq!(
            xattr::get(to.join("su"), "trusted.b").unwrap().unwrap(),
            b"2"
        );
        assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
        assert_eq!(stat("pipe").mode() & 0o7777, 0o700);
        assert_eq!((stat(".").uid(), stat(".").gid()), (3, 4));
    }
}
