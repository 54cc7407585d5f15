//! The bundle folder: what a shim finds when it starts, and its removal. Everything here blocks.
//!
//! ```text
//! <state>/bundles/<namespace>/<id>/   0700
//!   config.json    the container's spec
//!   made-by.json   which shim it is for: a bundle is its own journal until its record is on disk
//!   stdin, stdin-<exec>                         fifos, when stdin was asked for
//!   stdout, stderr, stdout-<exec>, …            fifos of shims that do not know `log://`
//!   log            fifo for the own log of such shims
//!   shim.log       what gantry's own shim has to say about itself
//!   cgroups.json   cgroups that could not be removed with their container, for who tries again
//!   …              what the shim and its runtime put there
//! ```

use crate::launch::Launch;
use crate::record::Program;
use contracts::{Error, ExecId, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, StatxAttributes, StatxFlags, mknodat, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Names cgroups that outlived their container, with their inodes.
const STANDING: &str = "cgroups.json";

/// What tasks itself reads from a container's spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    /// What goes into `config.json`.
    pub(crate) text: String,
    pub(crate) tty: bool,
    /// Path below the cgroup root; empty when the runtime chooses.
    pub(crate) cgroup: String,
}

impl Spec {
    /// Reads a spec; with `ours` its root file system is the bundle's `rootfs`. Errors: `InvalidArgument`.
    pub(crate) fn read(text: &str, ours: bool) -> Result<Self> {
        let mut spec: Value = serde_json::from_str(text)
            .map_err(|e| Error::invalid(format!("spec: not an OCI runtime spec: {e}")))?;
        if !spec.is_object() {
            return Err(Error::invalid("spec: must be a JSON object"));
        }
        let tty = spec["process"]["terminal"].as_bool().unwrap_or(false);
        let cgroup = spec["linux"]["cgroupsPath"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let text = if ours && spec["root"]["path"] != "rootfs" {
            spec["root"]["path"] = "rootfs".into();
            spec.to_string()
        } else {
            text.to_owned()
        };
        Ok(Self { text, tty, cgroup })
    }
}

/// Makes the folder of a shim that is about to be started, with its `config.json`.
pub(crate) fn make(launch: &Launch, spec: &Spec) -> Result<()> {
    let bundle = &launch.bundle;
    private_folder(bundle)?;
    let by = serde_json::to_string(&(&launch.program, &launch.socket)).unwrap_or_default();
    new_file(&bundle.join("made-by.json"), &by)?;
    new_file(&bundle.join("config.json"), &spec.text)
}

fn new_file(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| about(path, &e))
}

/// Which shim a bundle was made for, and the socket it was given.
pub(crate) fn made_by(bundle: &Path) -> Option<(Program, PathBuf)> {
    let text = fs::read_to_string(bundle.join("made-by.json")).ok()?;
    serde_json::from_str(&text).ok()
}

/// Makes a folder that only we may look into, and the ones above it.
pub(crate) fn private_folder(path: &Path) -> Result<()> {
    let make = || DirBuilder::new().recursive(true).mode(0o700).create(path);
    let mut made = make();
    // Whoever removes the last folder beside this one removes the parent too, perhaps just now.
    for _ in 0..8 {
        match &made {
            Err(e) if e.kind() == ErrorKind::NotFound => made = make(),
            _ => break,
        }
    }
    made.map_err(|e| about(path, &e))
}

/// Where a stream's fifo is.
pub(crate) fn fifo_path(bundle: &Path, stream: &str, exec: Option<&ExecId>) -> PathBuf {
    match exec {
        None => bundle.join(stream),
        Some(exec) => bundle.join(format!("{stream}-{exec}")),
    }
}

/// Makes a fifo; one that is there stays.
pub(crate) fn fifo(path: &Path) -> Result<()> {
    match mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(about(path, &e.into())),
    }
}

/// Removes the folder, and whatever is still mounted in it first: the files behind a mount are not ours.
pub(crate) fn remove(bundle: &Path) -> Result<()> {
    unmount_all(&bundle.join("rootfs"))?;
    // A shim that ends removes its own files at the same time.
    for _ in 0..16 {
        match fs::remove_dir_all(bundle) {
            Ok(()) => break,
            Err(e) if e.kind() == ErrorKind::NotFound && !bundle.exists() => break,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => {}
            Err(e) => return Err(about(bundle, &e)),
        }
    }
    remove_empty_parent(bundle);
    Ok(())
}

/// Unmounts all that is stacked on a path.
pub(crate) fn unmount_all(path: &Path) -> Result<()> {
    while is_mount(path) {
        unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|e| about(path, &e.into()))?;
    }
    Ok(())
}

/// Mount points at or below some folders, outer ones last.
pub(crate) fn mounts_below(folders: &[PathBuf]) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<_> = points
        .map(PathBuf::from)
        .filter(|point| folders.iter().any(|folder| point.starts_with(folder)))
        .collect();
    points.reverse();
    points
}

/// Notes the cgroups that are still there although their container is not, before the bundle goes that names them.
pub(crate) fn note_standing(bundle: &Path, cgroup: &str) -> Result<()> {
    let standing = crate::cgroup::standing(cgroup);
    if standing.is_empty() || !bundle.exists() {
        return Ok(());
    }
    let place = bundle.join(STANDING);
    let text = serde_json::to_string(&(cgroup, standing)).unwrap_or_default();
    fs::write(&place, text).map_err(|e| about(&place, &e))
}

/// The cgroup of a bundle's container and those of its folders that were still there when it was about to go, and are.
pub(crate) fn standing(bundle: &Path) -> (String, Vec<(PathBuf, u64)>) {
    let text = fs::read_to_string(bundle.join(STANDING)).unwrap_or_default();
    let noted: (String, Vec<(PathBuf, u64)>) = serde_json::from_str(&text).unwrap_or_default();
    let same = |(folder, inode): &(PathBuf, u64)| crate::cgroup::is_the_same(folder, *inode);
    (noted.0, noted.1.into_iter().filter(same).collect())
}

/// Removes the folder of a container that is gone, unless its cgroup cannot be removed or has another one in it by now.
///
/// Errors: `Internal`.
pub(crate) fn finish(bundle: &Path, in_use: &BTreeSet<String>) -> Result<()> {
    let (cgroup, standing) = standing(bundle);
    if standing.is_empty() || (!in_use.contains(&cgroup) && crate::cgroup::end_all(&standing)) {
        return remove(bundle);
    }
    let folders: Vec<_> = standing.iter().map(|(folder, _)| folder).collect();
    Err(Error::internal(format!(
        "bundle {}: what runs in {folders:?} does not end",
        bundle.display()
    )))
}

fn remove_empty_parent(bundle: &Path) {
    if let Some(namespace) = bundle.parent() {
        // Another bundle may be in it.
        let _ = fs::remove_dir(namespace);
    }
}

/// Moves the folder out of the way, to be removed later. One that is not there was moved before.
pub(crate) fn set_aside(bundle: &Path, gone: &Path) -> Result<()> {
    let mut moved = Ok(());
    for _ in 0..8 {
        private_folder(gone.parent().unwrap_or(gone))?;
        moved = fs::rename(bundle, gone);
        match &moved {
            // The folder of such bundles goes with the last one in it, perhaps just now.
            Err(e) if e.kind() == ErrorKind::NotFound && bundle.exists() => {}
            _ => break,
        }
    }
    match moved {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(about(bundle, &e)),
        _ => {}
    }
    remove_empty_parent(bundle);
    Ok(())
}

/// Whether something is mounted on a path.
pub(crate) fn is_mount(path: &Path) -> bool {
    let seen = statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    );
    seen.is_ok_and(|seen| seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Names the file that an error is about.
pub(crate) fn about(path: &Path, error: &io::Error) -> Error {
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::exhausted(message),
        _ => Error::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Name;

    #[test]
    fn a_spec_is_kept_byte_for_byte_unless_its_root_is_ours() {
        let text = r#"{ "root": {"path":"/srv/x"}, "process":{"terminal":true}, "linux":{"cgroupsPath":"/a/b"} }"#;
        let kept = Spec::read(text, false).unwrap();
        assert_eq!(kept.text, text);
        assert_eq!((kept.tty, kept.cgroup.as_str()), (true, "/a/b"));
        let ours: Value = serde_json::from_str(&Spec::read(text, true).unwrap().text).unwrap();
        assert_eq!(ours["root"]["path"], "rootfs");
        assert_eq!(ours["linux"]["cgroupsPath"], "/a/b");
        assert!(Spec::read("[]", true).is_err());
    }

    #[test]
    fn a_bundle_is_removed_with_everything_in_it_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("ns/box");
        let program = Program {
            path: "/x".into(),
            first: None,
            own: false,
        };
        let launch = Launch {
            program: program.clone(),
            name: Name {
                namespace: contracts::Namespace::new("ns").unwrap(),
                id: contracts::ContainerId::new("box").unwrap(),
            },
            bundle: bundle.clone(),
            socket: "/s".into(),
            events: "/e".into(),
            cgroup: String::new(),
            log_bytes: 9,
        };
        make(&launch, &Spec::read("{}", false).unwrap()).unwrap();
        assert_eq!(made_by(&bundle), Some((program, "/s".into())));
        fifo(&fifo_path(&bundle, "stdin", None)).unwrap();
        remove(&bundle).unwrap();
        remove(&bundle).unwrap();
        assert!(!folder.path().join("ns").exists());
    }
}
