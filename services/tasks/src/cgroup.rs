//! The little that tasks itself does to cgroups: empty parents, and what a shim that died young left in one.
//!
//! A path is the same in every hierarchy: one per controller in version 1, a single one in version 2, both on a mixed
//! host. Everything here blocks. Source: kernel, `cgroup-v1/cgroups.rst` and `cgroup-v2.rst`.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder above all that gantry makes.
const OURS: &str = "/gantry";

/// Kills what is left in a container's cgroup and removes it.
pub(crate) fn end(path: &str) {
    for folder in folders(path) {
        let left = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for pid in left.lines().filter_map(|line| line.parse::<i32>().ok()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        // A process that is still ending keeps it: the next delete or start finds it.
        let _ = fs::remove_dir(folder);
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
