//! What mounts mean to this plugin: where a layer goes, and how a snapshot looks to a container.
//!
//! A driver answers mounts as data. Nothing here attaches one to the mount tree: a view is a detached overlay mount that
//! lives as long as its descriptor, and is read-only whatever the mounts say.

use crate::error::{Doing, Error, Result, shown};
use crate::root;
use crate::tree::Whiteouts;
use contracts::Mount;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Option of a bind mount whose directory becomes an overlay layer: a snapshot that was prepared before its parent is
/// known has no overlay mount yet, but its deletions must already be written down. `x-` options mean nothing to a kernel.
pub const OVERLAY_WHITEOUTS: &str = "x-gantry.whiteouts=overlay";

/// Where a layer is extracted to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The directory.
    pub root: PathBuf,
    /// How deletions are put into effect there.
    pub whiteouts: Whiteouts,
    /// The directories of the layers below, topmost first; empty when `root` holds them.
    pub lowers: Vec<PathBuf>,
}

impl Target {
    /// Opens the directory. Errors: `Io`.
    pub fn open(&self) -> Result<OwnedFd> {
        directory(&self.root)
    }
}

/// Says where a layer goes: into the bound directory, or into the upper directory of an overlay.
///
/// A bound directory holds the layers below, unless the mount has the option [`OVERLAY_WHITEOUTS`].
/// Errors: `Unsupported` for anything but one writable `bind` or `overlay` mount. Source: containerd, diff/apply on Linux.
pub fn target(mounts: &[Mount]) -> Result<Target> {
    let layers = Layers::of(mounts)?;
    if layers.read_only {
        return Err(Error::Unsupported(
            "mounts are read-only, a layer needs a prepared snapshot".to_owned(),
        ));
    }
    match layers.upper {
        Some(root) => {
            let whiteouts = Whiteouts::Overlay {
                user_xattr: layers.user_xattr,
            };
            Ok(Target {
                root,
                whiteouts,
                lowers: layers.lowers,
            })
        }
        None => match <[PathBuf; 1]>::try_from(layers.lowers) {
            Ok([root]) => Ok(Target {
                root,
                whiteouts: layers.bound,
                lowers: Vec::new(),
            }),
            Err(_) => Err(Error::Unsupported(
                "mounts have no upperdir, a layer needs a prepared snapshot".to_owned(),
            )),
        },
    }
}

/// The directories that make up a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layers {
    /// The writable layer of an overlay.
    pub(crate) upper: Option<PathBuf>,
    /// The layers below, topmost first; one bound directory counts as one.
    pub(crate) lowers: Vec<PathBuf>,
    pub(crate) user_xattr: bool,
    read_only: bool,
    /// How deletions are written into a bound directory.
    bound: Whiteouts,
}

impl Layers {
    pub(crate) fn of(mounts: &[Mount]) -> Result<Self> {
        let [mount] = mounts else {
            return Err(Error::Unsupported(format!(
                "{} mounts where one was expected",
                mounts.len()
            )));
        };
        if !mount.target.is_empty() {
            return Err(Error::Unsupported(format!(
                "mount at {} instead of the root",
                mount.target
            )));
        }
        let option = |wanted: &str| mount.options.iter().any(|option| option == wanted);
        let user_xattr = option("userxattr");
        let bound = match option(OVERLAY_WHITEOUTS) {
            true => Whiteouts::Overlay { user_xattr },
            false => Whiteouts::Remove,
        };
        let mut layers = Self {
            upper: None,
            lowers: Vec::new(),
            user_xattr,
            read_only: option("ro"),
            bound,
        };
        match mount.fs_type.as_str() {
            "bind" | "rbind" => layers.lowers.push(mount.source.clone().into()),
            "overlay" => layers.read(&mount.options),
            other => {
                return Err(Error::Unsupported(format!(
                    "mount of type {other:?}, expected bind or overlay"
                )));
            }
        }
        match layers.all().next().is_none() || layers.all().any(|path| !path.is_absolute()) {
            true => Err(Error::Unsupported(
                "mount without absolute directories".to_owned(),
            )),
            false => Ok(layers),
        }
    }

    fn read(&mut self, options: &[String]) {
        for option in options {
            match option.split_once('=') {
                Some(("lowerdir", list)) => self.lowers.extend(unescaped(list)),
                Some(("lowerdir+", one)) => self.lowers.push(one.into()),
                Some(("upperdir", one)) => self.upper = Some(one.into()),
                _ => {}
            }
        }
    }

    /// All directories, topmost first.
    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.upper.iter().chain(&self.lowers)
    }
}

/// Splits at colons; a backslash takes the next character as it is. Source: kernel, filesystems/overlayfs.rst.
fn unescaped(list: &str) -> Vec<PathBuf> {
    let mut paths = vec![String::new()];
    let mut chars = list.chars();
    while let Some(char) = chars.next() {
        match (char, paths.last_mut()) {
            (':', _) => paths.push(String::new()),
            ('\\', Some(path)) => path.extend(chars.next()),
            (other, Some(path)) => path.push(other),
            (_, None) => {}
        }
    }
    paths.into_iter().map(PathBuf::from).collect()
}

pub(crate) fn directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).doing(&format!("open {}", path.display()))
}

/// Opens the root of a snapshot as a container would see it: all layers merged, nothing writable.
///
/// Needs `CAP_SYS_ADMIN` when there is more than one layer. Errors: `Unsupported` mounts; `Io`.
pub fn view(mounts: &[Mount]) -> Result<OwnedFd> {
    let layers = Layers::of(mounts)?;
    let dirs = layers
        .all()
        .map(|path| directory(path))
        .collect::<Result<Vec<_>>>()?;
    match <[OwnedFd; 1]>::try_from(dirs) {
        Ok([alone]) => Ok(alone),
        Err(dirs) => merged(&dirs, layers.user_xattr),
    }
}

/// Opens every directory that makes up a snapshot, topmost first. Errors: as [`view`].
pub(crate) fn layers(mounts: &[Mount]) -> Result<Vec<OwnedFd>> {
    Layers::of(mounts)?
        .all()
        .map(|path| directory(path))
        .collect()
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

fn merged(dirs: &[OwnedFd], user_xattr: bool) -> Result<OwnedFd> {
    let by_descriptor = detached(BY_DESCRIPTOR, dirs, user_xattr);
    by_descriptor
        .or_else(|_| by_number(dirs, user_xattr, &[ONE_BY_ONE, AT_ONCE]))
        .doing("merge the layers")
}

/// The numbers are relative paths, so this happens in a thread with a working directory of its own.
fn by_number(dirs: &[OwnedFd], user_xattr: bool, ways: &[Stack]) -> std::io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let mount = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            rustix::process::chdir(c"/proc/thread-self/fd")?;
            let mut done = Err(rustix::io::Errno::INVAL);
            for way in ways {
                done = done.or_else(|_| detached(*way, dirs, user_xattr));
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

fn detached(stack: Stack, dirs: &[OwnedFd], user_xattr: bool) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, c"source", c"gantry")?;
    stack(&fs, dirs)?;
    if user_xattr {
        rustix::mount::fsconfig_set_flag(&fs, c"userxattr")?;
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

    fn mount(fs_type: &str, source: &str, options: &[&str]) -> Vec<Mount> {
        let options = options.iter().map(ToString::to_string).collect();
        vec![Mount {
            fs_type: fs_type.into(),
            source: source.into(),
            target: String::new(),
            options,
        }]
    }

    #[test]
    fn a_bound_directory_is_changed_in_place() {
        let target = target(&mount("bind", "/s/1/fs", &["rw", "rbind"])).unwrap();
        assert_eq!(
            (target.root, target.whiteouts),
            ("/s/1/fs".into(), Whiteouts::Remove)
        );
    }

    #[test]
    fn a_bound_directory_may_be_a_layer_to_be() {
        let target = target(&mount(
            "bind",
            "/s/1/fs",
            &["rw", "rbind", OVERLAY_WHITEOUTS],
        ))
        .unwrap();
        assert_eq!(target.whiteouts, Whiteouts::Overlay { user_xattr: false });
    }

    #[test]
    fn an_overlay_is_changed_in_its_upper_directory() {
        let options = [
            "workdir=/s/3/work",
            "upperdir=/s/3/fs",
            r"lowerdir=/s/2\:x/fs:/s/1/fs",
        ];
        let target = target(&mount("overlay", "overlay", &options)).unwrap();
        assert_eq!(target.root, PathBuf::from("/s/3/fs"));
        assert_eq!(target.whiteouts, Whiteouts::Overlay { user_xattr: false });
        assert_eq!(
            target.lowers,
            [PathBuf::from("/s/2:x/fs"), "/s/1/fs".into()]
        );
    }

    #[test]
    fn views_and_unknown_mounts_take_no_layer() {
        for mounts in [
            mount("bind", "/s/1/fs", &["ro"]),
            mount("overlay", "overlay", &["lowerdir=/s/2/fs:/s/1/fs"]),
            mount("ext4", "/dev/vda", &[]),
            mount("bind", "relative", &[]),
            Vec::new(),
        ] {
            assert!(
                matches!(target(&mounts), Err(Error::Unsupported(_))),
                "{mounts:?}"
            );
        }
    }

    #[test]
    fn every_way_to_stack_directories_gives_the_same_view() {
        let home = tempfile::tempdir().unwrap();
        let dirs: Vec<_> = ["a", "b", "c"].map(|name| home.path().join(name)).into();
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("who"), dir.as_os_str().as_encoded_bytes()).unwrap();
        }
        let dirs: Vec<_> = dirs.iter().map(|dir| directory(dir).unwrap()).collect();
        for way in [ONE_BY_ONE, AT_ONCE] {
            let view = by_number(&dirs, false, &[way]).unwrap();
            let who = root::open(&view, b"who", OFlags::PATH).unwrap();
            let mut text = String::new();
            regular(who)
                .unwrap()
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert!(text.ends_with("/a"), "{text}");
        }
        assert!(merged(&dirs, false).is_ok());
    }
}
