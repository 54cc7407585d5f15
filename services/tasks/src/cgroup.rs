//! The little that tasks itself does to cgroups: empty parents, and what a shim that died young left in one.
//!
//! A path is the same in every hierarchy: one per controller in version 1, a single one in version 2, both on a mixed
//! host. Everything here blocks. Source: kernel, `cgroup-v1/cgroups.rst` and `cgroup-v2.rst`.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The folder above all that gantry makes.
const OURS: &str = "/gantry";
/// How long killed processes may take to end.
const DYING: Duration = Duration::from_secs(2);

/// Kills what is left in a container's cgroup and removes it with all that is nested in it; says whether it is gone.
///
/// Waits a little: a process that was killed keeps its cgroup until it has ended.
pub(crate) fn end(path: &str) -> bool {
    let until = Instant::now() + DYING;
    loop {
        let left: Vec<_> = folders(path)
            .into_iter()
            .filter(|top| !ended(top))
            .collect();
        if left.is_empty() || Instant::now() > until {
            return left.is_empty();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ended(top: &Path) -> bool {
    for inner in fs::read_dir(top).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            ended(&inner.path());
        }
    }
    let left = fs::read_to_string(top.join("cgroup.procs")).unwrap_or_default();
    for pid in left.lines().filter_map(|line| line.parse::<i32>().ok()) {
        // 0 is who lives in another pid namespace, and would mean ourselves.
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // A frozen process does not die before it is thawed (version 1).
    let _ = fs::write(top.join("freezer.state"), "THAWED");
    fs::remove_dir(top).is_ok() || !top.exists()
}

/// The folders of a container's cgroup that are there, with their inodes: a later one of the name has others.
///
/// Only of a path that is ours by its name: a spec may name any.
pub(crate) fn standing(path: &str) -> Vec<(PathBuf, u64)> {
    let ours = path.starts_with(&format!("{OURS}/"));
    let folders = folders(path).into_iter().filter(|_| ours);
    let inode = |folder: PathBuf| Some((fs::metadata(&folder).ok()?.ino(), folder));
    let found = folders.filter_map(inode);
    found.map(|(inode, folder)| (folder, inode)).collect()
}

/// Whether a folder is the one with this inode.
pub(crate) fn is_the_same(folder: &Path, inode: u64) -> bool {
    fs::metadata(folder).is_ok_and(|now| now.ino() == inode)
}

/// As [`end`] for what [`standing`] found.
pub(crate) fn end_all(standing: &[(PathBuf, u64)]) -> bool {
    let until = Instant::now() + DYING;
    let gone = |(folder, inode): &(PathBuf, u64)| !is_the_same(folder, *inode) || ended(folder);
    loop {
        if standing.iter().filter(|it| !gone(it)).count() == 0 {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Removes a folder of ours from every hierarchy where nothing is in it, and then the one above.
pub(crate) fn remove_empty(path: &str) {
    for path in [path, OURS] {
        for folder in folders(path) {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Where a path is, in each hierarchy that has it. Only below [`OURS`] or with a name of its own: never a hierarchy's top.
fn folders(path: &str) -> Vec<PathBuf> {
    let inside = path.trim_matches('/');
    if inside.is_empty() || inside.split('/').any(|part| part == "..") {
        return Vec::new();
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hierarchies(&mounts)
        .map(|top| top.join(inside))
        .filter(|folder| folder.is_dir())
        .collect()
}

fn hierarchies(mountinfo: &str) -> impl Iterator<Item = &Path> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        matches!(kind, "cgroup" | "cgroup2").then_some(())?;
        left.split(' ').nth(4).map(Path::new)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hierarchy_is_found_and_nothing_else() {
        let text = "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                    40 31 0:37 / /sys rw - sysfs sysfs rw\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found: Vec<_> = hierarchies(text).collect();
        assert_eq!(
            found,
            [
                Path::new("/sys/fs/cgroup/pids"),
                Path::new("/sys/fs/cgroup/unified")
            ]
        );
    }

    #[test]
    fn the_top_of_a_hierarchy_is_never_meant() {
        for path in ["", "/", "//", "/a/../.."] {
            assert!(folders(path).is_empty());
        }
    }
}
