//! The folders of a node, and whose they are. The file system is the only record of uids.
//!
//! ```text
//! <root>, <state>             0710 root:<uid_base>    only our plugins pass through
//!   <service>/                0710 root:<uid_base>
//!     <id>/                   0700, the plugin's own uid
//! ```
//!
//! Plugins have a uid each and share one group, which is all it takes to let them through and keep everybody else out:
//! with 0700 every path of a plugin would have to go through a passed descriptor instead. Started by another user than
//! root, everything is 0700 and belongs to that user.

use contracts::PluginId;
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Both folders of a node, ready for its plugins.
#[derive(Debug)]
pub(crate) struct Folders {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    /// The common gid of plugins, which is also their first uid; `None` when not started by root.
    base: Option<u32>,
}

/// A folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refused.
    #[error("folder {}: {source}", path.display())]
    Io {
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something else in it.
    #[error("folder {}: holds files and is not gantry's own (expected owner {uid}, group {gid}, mode {mode:04o}); choose an empty or a new folder", path.display())]
    Foreign {
        /// Which folder.
        path: PathBuf,
        /// Who should own it.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its mode.
        mode: u32,
    },
    /// A folder above it is closed.
    #[error("folder {}: plugins, which run unprivileged, cannot pass through {} (mode {mode:04o}); choose another place or allow it with `chmod o+x {}`", path.display(), closed.display(), closed.display())]
    Closed {
        /// Which folder.
        path: PathBuf,
        /// What closes it off.
        closed: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { path, source }
}

impl Folders {
    /// Makes both folders or takes over those that are ours. `base` is `None` when not started by root.
    pub(crate) fn open(root: &Path, state: &Path, base: Option<u32>) -> Result<Self, FolderError> {
        let open = |path: &Path| {
            claim(path, base)?;
            let path = path.canonicalize().map_err(failed(path))?;
            match base {
                Some(gid) => passable(&path, gid).map(|()| path),
                None => Ok(path),
            }
        };
        Ok(Self {
            root: open(root)?,
            state: open(state)?,
            base,
        })
    }

    /// Uid and gid of each process, in order; `None` stays what the supervisor is. `hosts`: what it hosts, and whether as root.
    pub(crate) fn identities(&self, processes: &[(&[PluginId], bool)]) -> Vec<Option<(u32, u32)>> {
        let Some(base) = self.base else {
            return vec![None; processes.len()];
        };
        let uids = assign(processes, &self.owners(), base);
        let uids = uids.into_iter();
        uids.map(|uid| uid.map(|uid| (uid, base))).collect()
    }

    /// Makes the folders of a plugin, and gives it all that a former uid of it owned there. Returns root and state.
    pub(crate) fn prepare(
        &self,
        plugin: &PluginId,
        identity: Option<(u32, u32)>,
    ) -> Result<(PathBuf, PathBuf), FolderError> {
        let prepare = |top: &Path| {
            let service = top.join(plugin.service());
            make(&service, self.shared_mode())?;
            set(&service, self.base.map(|gid| (0, gid)), self.shared_mode())?;
            let own = service.join(plugin.id());
            make(&own, 0o700)?;
            if self.base.is_some() {
                hand_over(&own, identity.unwrap_or((0, 0))).map_err(failed(&own))?;
            }
            set(&own, None, 0o700).map(|()| own)
        };
        Ok((prepare(&self.root)?, prepare(&self.state)?))
    }

    /// Removes the run-time folders that hold nothing.
    pub(crate) fn sweep<'a>(&self, plugins: impl Iterator<Item = &'a PluginId>) {
        for plugin in plugins {
            // What is not empty belongs to containers that run on.
            let service = self.state.join(plugin.service());
            let _ = fs::remove_dir(service.join(plugin.id()));
            let _ = fs::remove_dir(service);
        }
    }

    fn shared_mode(&self) -> u32 {
        match self.base {
            Some(_) => 0o710,
            None => 0o700,
        }
    }

    /// The uid that owns each plugin's durable folder.
    fn owners(&self) -> BTreeMap<PluginId, u32> {
        let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        let mut owners = BTreeMap::new();
        for service in entries(&self.root) {
            for plugin in entries(&service.path()) {
                let (service, id) = (service.file_name(), plugin.file_name());
                let id = format!("{}/{}", service.to_string_lossy(), id.to_string_lossy());
                if let (Ok(id), Ok(facts)) = (PluginId::new(id), plugin.metadata()) {
                    owners.insert(id, facts.uid());
                }
            }
        }
        owners
    }
}

/// Gives each process the uid that owns its first folder that has one, else one that nobody has used yet.
fn assign(
    processes: &[(&[PluginId], bool)],
    owners: &BTreeMap<PluginId, u32>,
    base: u32,
) -> Vec<Option<u32>> {
    let used = owners.values().copied().filter(|&uid| uid >= base);
    let mut next = used.max().map_or(base, |uid| uid + 1);
    let mut given = Vec::new();
    for (hosts, root) in processes {
        let owned = hosts.iter().filter_map(|plugin| owners.get(plugin));
        let mut free = owned
            .copied()
            .filter(|&uid| uid >= base && !given.contains(&Some(uid)));
        let uid = match (root, free.next()) {
            (true, _) => None,
            (false, Some(uid)) => Some(uid),
            (false, None) => {
                next += 1;
                Some(next - 1)
            }
        };
        given.push(uid);
    }
    given
}

/// Takes `path` as root or state folder.
fn claim(path: &Path, base: Option<u32>) -> Result<(), FolderError> {
    let (mode, owner) = match base {
        Some(gid) => (0o710, (0, gid)),
        None => {
            let own = (rustix::process::geteuid(), rustix::process::getegid());
            (0o700, (own.0.as_raw(), own.1.as_raw()))
        }
    };
    make_all(path)?;
    let facts = fs::metadata(path).map_err(failed(path))?;
    let ours = facts.uid() == owner.0 && facts.mode() & 0o7777 == mode;
    let ours = ours && (base.is_none() || facts.gid() == owner.1);
    let mut entries = fs::read_dir(path).map_err(failed(path))?;
    if !ours && entries.next().is_some() {
        return Err(FolderError::Foreign {
            path: path.into(),
            uid: owner.0,
            gid: owner.1,
            mode,
        });
    }
    set(path, base.map(|_| owner), mode)
}

/// Checks that every folder above `path` lets group `gid` pass.
fn passable(path: &Path, gid: u32) -> Result<(), FolderError> {
    for above in path.ancestors().skip(1) {
        let facts = fs::metadata(above).map_err(failed(above))?;
        let for_group = facts.gid() == gid && facts.mode() & 0o010 != 0;
        if facts.mode() & 0o001 == 0 && !for_group {
            return Err(FolderError::Closed {
                path: path.into(),
                closed: above.into(),
                mode: facts.mode() & 0o7777,
            });
        }
    }
    Ok(())
}

/// Makes `path` and those above; what is new above can be passed by everybody.
fn make_all(path: &Path) -> Result<(), FolderError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    builder.create(path).map_err(failed(path))
}

fn make(path: &Path, mode: u32) -> Result<(), FolderError> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed(path)(e)),
        _ => Ok(()),
    }
}

/// Sets owner and mode of a folder without following a link at its end.
fn set(path: &Path, owner: Option<(u32, u32)>, mode: u32) -> Result<(), FolderError> {
    let set = || -> io::Result<()> {
        let folder = rustix::fs::open(path, folder_flags(), Mode::empty())?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        Ok(rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?)
    };
    set().map_err(failed(path))
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Gives `path` to `to`, and all below it that had the same owner: only a change of manifest or privileges makes that
/// a long walk. What others own below, as the files of an unpacked image do, stays theirs.
fn hand_over(path: &Path, to: (u32, u32)) -> io::Result<()> {
    let folder = rustix::fs::open(path, folder_flags(), Mode::empty())?;
    let facts = rustix::fs::fstat(&folder)?;
    let owner = (Uid::from_raw(to.0), Gid::from_raw(to.1));
    if facts.st_uid != to.0 && !is_empty(&folder)? {
        hand_over_below(&folder, facts.st_uid, owner)?;
    }
    Ok(rustix::fs::fchown(&folder, Some(owner.0), Some(owner.1))?)
}

fn is_empty(folder: &OwnedFd) -> io::Result<bool> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn hand_over_below(folder: impl AsFd, from: u32, to: (Uid, Gid)) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let facts = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match rustix::fs::openat(&folder, name, folder_flags(), Mode::empty()) {
            Ok(below) => hand_over_below(below, from, to)?,
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(e.into()),
        }
        if facts.st_uid == from {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&folder, name, Some(to.0), Some(to.1), flags)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::id;

    #[test]
    fn a_uid_is_the_owner_of_the_folder_or_one_never_used() {
        let owners = BTreeMap::from([
            (id("a/x"), 700_005),
            (id("b/x"), 700_002),
            (id("gone/x"), 700_009),
            (id("t/x"), 0),
        ]);
        let (a, b, n, t) = ([id("a/x")], [id("b/x")], [id("n/x")], [id("t/x")]);
        let all: [(&[PluginId], bool); 4] = [(&a, false), (&n, false), (&b, false), (&t, true)];
        assert_eq!(
            assign(&all, &owners, 700_000),
            [Some(700_005), Some(700_010), Some(700_002), None]
        );
        assert_eq!(
            assign(&[(&n, false)], &BTreeMap::new(), 700_000),
            [Some(700_000)]
        );
    }

    #[test]
    fn plugins_that_leave_a_shared_process_get_uids_of_their_own() {
        let owners = BTreeMap::from([(id("a/x"), 700_000), (id("b/x"), 700_000)]);
        let (a, b) = ([id("a/x")], [id("b/x")]);
        let alone: [(&[PluginId], bool); 2] = [(&a, false), (&b, false)];
        assert_eq!(
            assign(&alone, &owners, 700_000),
            [Some(700_000), Some(700_001)]
        );
        let both = [id("a/x"), id("b/x")];
        assert_eq!(assign(&[(&both, false)], &owners, 700_000), [Some(700_000)]);
    }

    #[test]
    fn a_folder_with_foreign_files_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "x").unwrap();
        set(folder.path(), None, 0o755).unwrap();
        let error = claim(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("choose an empty or a new folder"), "{error}");
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_closed_folder_above_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        make_all(&root).unwrap();
        set(folder.path(), None, 0o700).unwrap();
        let error = passable(&root, 7).unwrap_err().to_string();
        assert!(error.contains("chmod o+x"), "{error}");
        set(folder.path(), None, 0o711).unwrap();
        passable(&root, 7).unwrap();
    }

    #[test]
    fn folders_of_a_plugin_are_its_own_and_reopened_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        set(folder.path(), None, 0o755).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let base = is_root.then_some(700_000);
        for _ in 0..2 {
            let (root, state) = (folder.path().join("root"), folder.path().join("state"));
            let folders = Folders::open(&root, &state, base).unwrap();
            let hosts = [id("content/local")];
            let identity = folders.identities(&[(&hosts, false)])[0];
            assert_eq!(identity, base.map(|base| (base, base)));
            let (own, _) = folders.prepare(&hosts[0], identity).unwrap();
            let facts = fs::metadata(&own).unwrap();
            assert_eq!(facts.mode() & 0o7777, 0o700);
            assert!(!is_root || facts.uid() == 700_000);
            fs::write(own.join("file"), "x").unwrap();
        }
    }

    #[test]
    fn a_change_of_uid_takes_along_what_the_plugin_owned_and_nothing_else() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        let (mine, other) = (own.join("d/mine"), own.join("d/other"));
        fs::create_dir_all(own.join("d")).unwrap();
        fs::write(&mine, "x").unwrap();
        fs::write(&other, "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", own.join("link")).unwrap();
        for path in [&own, &own.join("d"), &mine, &own.join("link")] {
            std::os::unix::fs::lchown(path, Some(700_001), Some(700_000)).unwrap();
        }
        hand_over(&own, (700_002, 700_000)).unwrap();
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();
        assert_eq!(
            (owner(&own), owner(&mine), owner(&own.join("link"))),
            (700_002, 700_002, 700_002)
        );
        assert_eq!((owner(&other), owner(Path::new("/etc/passwd"))), (0, 0));
    }
}
