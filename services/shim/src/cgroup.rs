//! A container's cgroups, found from its init and used directly: version 1, 2 and both mixed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::sys;

/// The unified hierarchy's name in [`Cgroup::dir`].
pub(crate) const UNIFIED: &str = "";

/// Folders by controller name (`memory`, `pids`, `name=systemd`, [`UNIFIED`] …).
///
/// Only folders that are not the shim's own are kept: on a mixed host a runtime may leave a hierarchy
/// alone, and nobody must kill or remove what the shim shares with its starter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    dirs: BTreeMap<String, PathBuf>,
}

impl Cgroup {
    /// Finds the cgroups of a living process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let theirs = memberships(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?);
        let ours = memberships(&fs::read_to_string("/proc/self/cgroup")?);
        let mounts = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
        let dirs = theirs
            .into_iter()
            .filter(|(name, path)| ours.get(name) != Some(path) && path != "/")
            .filter_map(|(name, path)| Some((name.clone(), mounts.get(&name)?.dir(&path)?)))
            .collect();
        Ok(Self { dirs })
    }

    /// The cgroups a container at `path` will have, without those that somebody has already.
    pub(crate) fn to_come(path: &str) -> Self {
        let mut dirs = controllers_v1(Some(path)).unwrap_or_default();
        if dirs.is_empty() {
            dirs.push(Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')));
        }
        dirs.retain(|dir| !path.contains("..") && !dir.exists());
        Self::at(dirs)
    }

    /// Cgroups at known places, for killing and removing.
    pub(crate) fn at(dirs: Vec<PathBuf>) -> Self {
        let named = |dir: PathBuf| (dir.display().to_string(), dir);
        Self {
            dirs: dirs.into_iter().map(named).collect(),
        }
    }

    /// The folder of one controller; on a pure v2 host every controller lives in the unified one.
    pub(crate) fn dir(&self, controller: &str) -> Option<&Path> {
        self.dirs.get(controller).map(PathBuf::as_path)
    }

    /// Whether the controllers are those of version 2.
    pub(crate) fn is_v2(&self) -> bool {
        self.dirs.keys().all(|name| name == UNIFIED)
    }

    /// Everything that runs in it, nested cgroups included.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = Vec::new();
        for dir in self.tree() {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        pids.retain(|pid| *pid > 0);
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends a signal to everything that runs in it.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        for pid in self.pids() {
            match sys::kill(pid, signal) {
                Err(error) if error.raw_os_error() != Some(nix::libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Freezes (or thaws) all of it and waits until it is so.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        if let Some(dir) = self.dir("freezer") {
            let wanted = if frozen { "FROZEN" } else { "THAWED" };
            let file = dir.join("freezer.state");
            return settle(until, || {
                fs::write(&file, wanted)?;
                Ok(fs::read_to_string(&file)?.trim() == wanted)
            });
        }
        let dir = self
            .dir(UNIFIED)
            .ok_or(io::Error::from(ErrorKind::NotFound))?;
        fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        settle(until, || {
            Ok(fs::read_to_string(dir.join("cgroup.events"))?
                .lines()
                .any(|line| line == wanted))
        })
    }

    /// Kills everything in it, frozen or not.
    pub(crate) fn kill(&self) {
        if let Some(dir) = self.dir(UNIFIED) {
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
        let _ = self.signal(nix::libc::SIGKILL);
        if let Some(dir) = self.dir("freezer") {
            let _ = fs::write(dir.join("freezer.state"), "THAWED");
        }
    }

    /// Tries to remove the folders; false while something still runs in them.
    pub(crate) fn try_remove(&self) -> io::Result<bool> {
        let mut gone = true;
        for dir in self.dirs.values() {
            match remove_tree(dir) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::ResourceBusy => gone = false,
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }

    /// Kills what runs in it and removes the folders, within a bound.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        settle(until, || {
            if self.try_remove()? {
                return Ok(true);
            }
            self.kill();
            Ok(false)
        })
    }

    /// Every folder and the ones inside it, each hierarchy counted.
    fn tree(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = Vec::new();
        let mut open: Vec<PathBuf> = self.dirs.values().cloned().collect();
        while let Some(dir) = open.pop() {
            open.extend(folders_in(&dir));
            all.push(dir);
        }
        all
    }
}

/// The folders of a path in every hierarchy of version 1 that has a controller; without a path those
/// this process is in. Empty on a host of version 2 alone.
pub(crate) fn controllers_v1(path: Option<&str>) -> io::Result<Vec<PathBuf>> {
    let ours = memberships(&fs::read_to_string("/proc/self/cgroup")?);
    let mounts = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
    let version_1 = |name: &str| name != UNIFIED && !name.starts_with("name=");
    let mut dirs: Vec<PathBuf> = ours
        .iter()
        .filter(|(name, _)| version_1(name))
        .filter_map(|(name, own)| {
            let place = mounts.get(name)?;
            match path {
                Some(path) => Some(place.mount_point.join(path.trim_start_matches('/'))),
                None => place.dir(own),
            }
        })
        .collect();
    dirs.sort();
    dirs.dedup();
    Ok(dirs)
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for inner in folders_in(dir) {
        remove_tree(&inner)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn folders_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// Asks until the answer is yes; the kernel gives no event for these states.
fn settle(until: Instant, mut ask: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let mut pause = Duration::from_micros(200);
    while !ask()? {
        if Instant::now() > until {
            return Err(io::Error::from(ErrorKind::TimedOut));
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// `/proc/PID/cgroup`: controller name → path in its hierarchy.
fn memberships(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        if let (Some(names), Some(path)) = (parts.next(), parts.next()) {
            for name in names.split(',') {
                found.insert(name.to_owned(), path.to_owned());
            }
        }
    }
    found
}

struct Hierarchy {
    root: String,
    mount_point: PathBuf,
}

impl Hierarchy {
    fn dir(&self, path: &str) -> Option<PathBuf> {
        let inside = match self.root.as_str() {
            "/" => path,
            root => path.strip_prefix(root)?,
        };
        Some(self.mount_point.join(inside.trim_start_matches('/')))
    }
}

/// `/proc/self/mountinfo`: controller name → where its hierarchy is mounted.
fn hierarchies(text: &str) -> BTreeMap<String, Hierarchy> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(mount_point)) = (left.next(), left.next()) else {
            continue;
        };
        let mut right = right.split(' ');
        let names: Vec<&str> = match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) => vec![UNIFIED],
            (Some("cgroup"), Some(options)) => options.split(',').collect(),
            _ => continue,
        };
        for name in names {
            let place = Hierarchy {
                root: root.into(),
                mount_point: mount_point.into(),
            };
            found.entry(name.to_owned()).or_insert(place);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_host_is_read_per_hierarchy() {
        let members = memberships("9:pids:/a/b\n3:cpu,cpuacct:/a\n0::/\n1:name=systemd:/x\n");
        assert_eq!(members["cpuacct"], "/a");
        assert_eq!(members[UNIFIED], "/");
        assert_eq!(members["name=systemd"], "/x");
        let mounts = hierarchies(
            "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             40 31 0:37 /box /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n",
        );
        assert_eq!(
            mounts["pids"].dir("/a/b").unwrap(),
            Path::new("/sys/fs/cgroup/pids/a/b")
        );
        assert_eq!(
            mounts[UNIFIED].dir("/u").unwrap(),
            Path::new("/sys/fs/cgroup/unified/u")
        );
        assert_eq!(
            mounts["name=systemd"].dir("/box/c").unwrap(),
            Path::new("/sys/fs/cgroup/systemd/c")
        );
        assert!(mounts["name=systemd"].dir("/other").is_none());
    }

    #[test]
    fn the_cgroups_we_share_with_a_process_are_not_its_own() {
        let own = Cgroup::of(std::process::id() as i32).expect("readable");
        assert_eq!(own, Cgroup::default());
        assert!(own.pids().is_empty());
    }
}
