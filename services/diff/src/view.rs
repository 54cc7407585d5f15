//! How a snapshot looks to a container.
//!
//! Nothing here attaches a mount to the mount tree: a view is a detached overlay mount that lives as long as its
//! descriptor, and is read-only whatever the mounts say.

use crate::error::{Doing, Error, Result, shown};
use crate::mounts::{self, Layers, Style};
use crate::root;
use contracts::Mount;
use rustix::fs::{FileType, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Opens the root of a snapshot as a container would see it: all layers merged, nothing writable.
///
/// Needs `CAP_SYS_ADMIN` when there is more than one layer. Errors: `Unsupported` mounts; `Io`.
pub fn view(mounts: &[Mount]) -> Result<OwnedFd> {
    let dirs = mounts::layers(mounts)?;
    match <[OwnedFd; 1]>::try_from(dirs) {
        Ok([alone]) => Ok(alone),
        Err(dirs) => merged(&dirs, Layers::of(mounts)?.style),
    }
}

/// Tells the kernel about the directories, in the way that it knows.
type Stack = fn(&OwnedFd, &[OwnedFd]) -> rustix::io::Result<()>;

/// From Linux 6.13 on.
const BY_DESCRIPTOR: Stack = |fs, dirs| {
    dirs.iter()
        .try_for_each(|dir| rustix::mount::fsconfig_set_fd(fs, c"lowerdir+", dir))
};
/// From Linux 6.7 on.
const ONE_BY_ONE: Stack = |fs, dirs| {
    dirs.iter().try_for_each(|dir| {
        rustix::mount::fsconfig_set_string(fs, c"lowerdir+", number(dir).as_str())
    })
};
/// From Linux 5.2 on; the kernel takes 255 bytes here, which is room for 60 layers and more as bare numbers.
const AT_ONCE: Stack = |fs, dirs| {
    let all: Vec<_> = dirs.iter().map(number).collect();
    rustix::mount::fsconfig_set_string(fs, c"lowerdir", all.join(":").as_str())
};

/// The directory as a path relative to `/proc/thread-self/fd`: short, and free of characters that need escaping.
fn number(dir: &OwnedFd) -> String {
    std::os::fd::AsRawFd::as_raw_fd(dir).to_string()
}

fn merged(dirs: &[OwnedFd], style: Style) -> Result<OwnedFd> {
    let by_descriptor = detached(BY_DESCRIPTOR, dirs, style);
    by_descriptor
        .or_else(|_| by_number(dirs, style, &[ONE_BY_ONE, AT_ONCE]))
        .doing("merge the layers")
}

/// The numbers are relative paths, so this happens in a thread with a working directory of its own.
fn by_number(dirs: &[OwnedFd], style: Style, ways: &[Stack]) -> std::io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let mount = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            rustix::process::chdir(c"/proc/thread-self/fd")?;
            let mut done = Err(rustix::io::Errno::INVAL);
            for way in ways {
                done = done.or_else(|_| detached(*way, dirs, style));
            }
            Ok(done?)
        };
        let gone = |_| Err(std::io::Error::other("the mounting thread panicked"));
        std::thread::Builder::new()
            .name("mount".to_owned())
            .spawn_scoped(scope, mount)?
            .join()
            .unwrap_or_else(gone)
    })
}

fn detached(stack: Stack, dirs: &[OwnedFd], style: Style) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, c"source", c"gantry")?;
    stack(&fs, dirs)?;
    if style.user_xattr {
        rustix::mount::fsconfig_set_flag(&fs, c"userxattr")?;
    }
    if style.index_off {
        rustix::mount::fsconfig_set_string(&fs, c"index", c"off")?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    let safe = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, safe)
}

/// Reads one small regular file as a container would see it, links resolved within the snapshot.
///
/// Errors: `Missing`; `Refused` when it is no regular file; `Limit` past `limit` bytes; `Unsupported` mounts; `Io`.
pub fn lookup(mounts: &[Mount], path: &str, limit: u64) -> Result<Vec<u8>> {
    let view = view(mounts)?;
    let there = match root::open(&view, path.as_bytes(), OFlags::PATH | OFlags::CLOEXEC) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            return Err(Error::Missing(shown(path.as_bytes())));
        }
        there => there.doing(&format!("open {path}"))?,
    };
    let file = regular(there).doing(&format!("open {path}"))?;
    let Some(file) = file else {
        return Err(Error::Refused(format!("{path} is not a regular file")));
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .doing(&format!("read {path}"))?;
    match bytes.len() as u64 > limit {
        true => Err(Error::Limit {
            what: "bytes in that file",
            most: limit,
        }),
        false => Ok(bytes),
    }
}

/// Opens for reading what was so far only looked at, if it is a regular file: opening a device or a pipe may have effects.
pub(crate) fn regular(there: impl AsFd) -> std::io::Result<Option<File>> {
    let stat = rustix::fs::fstat(&there)?;
    match root::file_type(&stat) == FileType::RegularFile {
        true => File::open(crate::attributes::itself(&there)).map(Some),
        false => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_stack_directories_gives_the_same_view() {
        let home = tempfile::tempdir().unwrap();
        let dirs: Vec<_> = ["a", "b", "c"].map(|name| home.path().join(name)).into();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("who"), dir.as_os_str().as_encoded_bytes()).unwrap();
        }
        let dirs: Vec<_> = dirs
            .iter()
            .map(|dir| mounts::directory(dir).unwrap())
            .collect();
        let style = Style {
            index_off: true,
            ..Style::default()
        };
        for way in [ONE_BY_ONE, AT_ONCE] {
            let view = by_number(&dirs, style, &[way]).unwrap();
            let who = root::open(&view, b"who", OFlags::PATH).unwrap();
            let mut text = String::new();
            regular(who)
                .unwrap()
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert!(text.ends_with("/a"), "{text}");
        }
        assert!(merged(&dirs, style).is_ok());
    }
}
