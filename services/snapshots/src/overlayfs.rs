//! The overlayfs driver: a snapshot holds only what differs from its parent, and the kernel shows them as one.

use crate::driver::{Driver, Shape, bind};
use crate::error::{Error, Result};
use crate::folders::Folders;
use contracts::Mount;
use contracts::snapshots::SnapshotKind;
use rustix::fs::{Gid, Mode, Uid};
use std::path::Path;

/// `f_type` of overlay itself. Source: kernel, include/uapi/linux/magic.h.
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

/// Stacks.
#[derive(Debug)]
pub(crate) struct Overlayfs {
    /// Mount options that every overlay here needs.
    options: Vec<String>,
}

impl Overlayfs {
    /// Finds out what the kernel offers, without mounting: that takes a privilege this plugin does not have.
    ///
    /// Errors: `FailedPrecondition` saying what is missing.
    pub(crate) fn probe(root: &Path) -> contracts::Result<Self> {
        let refuse = |why: &str| {
            let root = root.display();
            Err(contracts::Error::precondition(format!(
                "overlayfs at {root}: {why}, or use the native driver"
            )))
        };
        if !offered() {
            return refuse("this kernel has no overlay file system; `modprobe overlay`");
        }
        if root.to_string_lossy().contains([':', ',', '\\', '"']) {
            return refuse(
                "the path has a character that mount options give a meaning to; choose another root",
            );
        }
        if lies_on_overlay(root) {
            return refuse(
                "this folder lies on an overlay itself, which cannot hold another; put root on a disk",
            );
        }
        let mut options = Vec::new();
        if since(4, 13) {
            options.push("index=off".into());
        }
        if in_user_namespace() {
            options.push("userxattr".into());
        }
        Ok(Self { options })
    }

    fn overlay(&self, own: Option<(&Path, &Path)>, lower: &[String]) -> Mount {
        let mut options = self.options.clone();
        if let Some((upper, work)) = own {
            options.push(format!("workdir={}", work.display()));
            options.push(format!("upperdir={}", upper.display()));
        }
        options.push(format!("lowerdir={}", lower.join(":")));
        Mount {
            fs_type: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options,
        }
    }
}

impl Driver for Overlayfs {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn rebase(&self) -> bool {
        true
    }

    /// The root directory is that of the topmost layer, so a new one takes after its parent's.
    fn fill(&self, folder: &Path, kind: SnapshotKind, parent: Option<&Path>) -> Result<()> {
        if kind == SnapshotKind::Active {
            let work = folder.join("work");
            rustix::fs::mkdir(&work, Mode::from_raw_mode(0o711))
                .or_else(|e| {
                    if e == rustix::io::Errno::EXIST {
                        Ok(())
                    } else {
                        Err(e)
                    }
                })
                .map_err(Error::io(work.display()))?;
        }
        match parent {
            Some(parent) => take_after(parent, &folder.join("fs")),
            None => Ok(()),
        }
    }

    /// As containerd's overlay snapshotter gives them: an overlay only where something is stacked.
    fn mounts(&self, folders: &Folders, shape: &Shape) -> Vec<Mount> {
        let mut lower: Vec<String> = shape
            .chain
            .iter()
            .map(|&number| folders.fs(number).to_string_lossy().into_owned())
            .collect();
        let (fs, work) = (folders.fs(shape.number), folders.work(shape.number));
        let active = shape.kind == SnapshotKind::Active;
        if active && shape.layer && lower.is_empty() {
            lower.push(folders.empty().to_string_lossy().into_owned());
        }
        vec![match (active, lower.as_slice()) {
            (_, []) => bind(&fs, active),
            (true, _) => self.overlay(Some((&fs, &work)), &lower),
            (false, [only]) => bind(Path::new(only), false),
            (false, _) => self.overlay(None, &lower),
        }]
    }
}

fn take_after(parent: &Path, fs: &Path) -> Result<()> {
    let like = rustix::fs::stat(parent).map_err(Error::io(parent.display()))?;
    let now = rustix::fs::stat(fs).map_err(Error::io(fs.display()))?;
    if (like.st_uid, like.st_gid) != (now.st_uid, now.st_gid) {
        let owner = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        rustix::fs::chown(fs, Some(owner.0), Some(owner.1)).map_err(Error::io(fs.display()))?;
    }
    rustix::fs::chmod(fs, Mode::from_raw_mode(like.st_mode & 0o7777))
        .map_err(Error::io(fs.display()))
}

/// Whether overlay is in the kernel, or a module that the first mount loads.
fn offered() -> bool {
    let lists = |path: &str, what: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.contains(what)))
    };
    let modules = format!("/lib/modules/{}", release());
    lists("/proc/filesystems", "\toverlay")
        || lists(&format!("{modules}/modules.dep"), "/overlay.ko")
        || lists(&format!("{modules}/modules.builtin"), "/overlay.ko")
}

fn lies_on_overlay(root: &Path) -> bool {
    rustix::fs::statfs(root).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(OVERLAYFS_SUPER_MAGIC))
}

fn release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

/// Whether the kernel is at least this one.
fn since(major: u32, minor: u32) -> bool {
    let release = release();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// In a user namespace that is not the first, `trusted.*` attributes are out of reach. Source: user_namespaces(7).
fn in_user_namespace() -> bool {
    let whole = ["0", "0", "4294967295"];
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.split_whitespace().eq(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(kind: SnapshotKind, layer: bool, chain: &[u64]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::open(dir.path(), 1, true).unwrap();
        let driver = Overlayfs {
            options: vec!["index=off".into()],
        };
        let shape = Shape {
            number: 9,
            kind,
            layer,
            chain: chain.to_vec(),
        };
        let mounts = driver.mounts(&folders, &shape);
        let text = format!(
            "{} {} {}",
            mounts[0].fs_type,
            mounts[0].source,
            mounts[0].options.join(",")
        );
        text.replace(&format!("{}/", dir.path().display()), "")
    }

    #[test]
    fn mounts_are_those_of_containerds_overlay_snapshotter() {
        use SnapshotKind::{Active, View};
        assert_eq!(mounts(Active, false, &[]), "bind snapshots/9/fs rw,rbind");
        assert_eq!(mounts(View, false, &[]), "bind snapshots/9/fs ro,rbind");
        assert_eq!(mounts(View, false, &[3]), "bind snapshots/3/fs ro,rbind");
        assert_eq!(
            mounts(View, false, &[3, 1]),
            "overlay overlay index=off,lowerdir=snapshots/3/fs:snapshots/1/fs"
        );
        assert_eq!(
            mounts(Active, false, &[3, 1]),
            "overlay overlay index=off,workdir=snapshots/9/work,upperdir=snapshots/9/fs,lowerdir=snapshots/3/fs:snapshots/1/fs"
        );
    }

    #[test]
    fn a_layer_without_its_parent_is_an_overlay_above_nothing() {
        assert_eq!(
            mounts(SnapshotKind::Active, true, &[]),
            "overlay overlay index=off,workdir=snapshots/9/work,upperdir=snapshots/9/fs,lowerdir=empty"
        );
    }

    #[test]
    fn a_root_that_mount_options_cannot_carry_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a:b");
        std::fs::create_dir(&odd).unwrap();
        let error = Overlayfs::probe(&odd).unwrap_err();
        assert!(error.message.contains("choose another root"), "{error}");
    }
}
