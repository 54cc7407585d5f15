//! What mounts mean to this plugin: which directories they are made of, and where a layer goes.

use crate::error::{Doing, Error, Result};
use crate::tree::Whiteouts;
use contracts::Mount;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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
/// A bound directory holds the layers below, so deletions are done in it.
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
                user_xattr: layers.style.user_xattr,
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
                whiteouts: Whiteouts::Remove,
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
    /// How the overlay is mounted.
    pub(crate) style: Style,
    read_only: bool,
}

/// Options of an overlay that decide how its directories are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Style {
    /// Bookkeeping is in `user.overlay.*`, not `trusted.overlay.*`.
    pub(crate) user_xattr: bool,
    /// A directory may be part of several overlays at a time.
    pub(crate) index_off: bool,
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
        let style = Style {
            user_xattr: option("userxattr"),
            index_off: option("index=off"),
        };
        let mut layers = Self {
            upper: None,
            lowers: Vec::new(),
            style,
            read_only: option("ro"),
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
    pub(crate) fn all(&self) -> impl Iterator<Item = &PathBuf> {
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
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => Err(Error::Missing(format!("directory {}", path.display()))),
        opened => opened.doing(&format!("open {}", path.display())),
    }
}

/// Opens every directory that makes up a snapshot, topmost first. Errors: `Unsupported` mounts; `Io`.
pub(crate) fn layers(mounts: &[Mount]) -> Result<Vec<OwnedFd>> {
    Layers::of(mounts)?
        .all()
        .map(|path| directory(path))
        .collect()
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
}
