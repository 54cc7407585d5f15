//! What a node may have left on the machine: processes, mounts, sockets, cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process;

/// Below this a hierarchy of version 1, the unified one, or both are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Looks for what belongs to one node.
#[derive(Debug)]
pub(super) struct Leaks {
    folder: PathBuf,
    namespace: String,
    /// Processes that were descendants of a supervisor, with their start times: a number may be used again.
    seen: BTreeMap<i32, u64>,
}

impl Leaks {
    pub(super) fn new(folder: &Path, namespace: &str) -> Self {
        let folder = folder.to_owned();
        let namespace = namespace.to_owned();
        Self {
            folder,
            namespace,
            seen: BTreeMap::new(),
        }
    }

    /// Notes all descendants of the supervisor, before it ends and they have no parent to be found by.
    pub(super) fn remember(&mut self, supervisor: i32) {
        let family = process::tree(supervisor).into_iter().skip(1);
        self.seen
            .extend(family.filter_map(|pid| Some((pid, started(pid)?))));
    }

    /// Describes everything that is left, a line each.
    pub(super) fn left(&self) -> Vec<String> {
        let processes = self
            .processes()
            .into_iter()
            .map(|pid| format!("process {pid}: {}", command_line(pid)));
        let mounts = self
            .mounts()
            .into_iter()
            .map(|path| format!("mount {}", path.display()));
        let sockets = sockets(&self.folder)
            .into_iter()
            .map(|path| format!("socket {}", path.display()));
        let cgroups = self
            .cgroups()
            .into_iter()
            .map(|path| format!("cgroup {}", path.display()));
        processes
            .chain(mounts)
            .chain(sockets)
            .chain(cgroups)
            .collect()
    }

    /// Describes everything of containers that there is while the node runs, a line each: processes that are not the
    /// node's own, mounts, cgroups, and what tasks keeps of a container that it has.
    pub(super) fn of_containers(&self, supervisor: i32) -> Vec<String> {
        let own = process::tree(supervisor);
        let strangers = self
            .processes()
            .into_iter()
            .filter(|pid| !own.contains(pid));
        let processes = strangers.map(|pid| format!("process {pid}: {}", command_line(pid)));
        let mounts = self.mounts().into_iter();
        let cgroups = self.cgroups().into_iter();
        let tasks = self.folder.join("state/tasks/local");
        let kept = ["bundles", "gone", "sockets"].map(|name| entries(&tasks.join(name)));
        processes
            .chain(mounts.map(|path| format!("mount {}", path.display())))
            .chain(cgroups.map(|path| format!("cgroup {}", path.display())))
            .chain(
                kept.into_iter()
                    .flatten()
                    .map(|path| format!("{}", path.display())),
            )
            .collect()
    }

    /// Ends, unmounts and removes what is left, as far as it goes.
    pub(super) fn remove(&self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for path in self.mounts().iter().rev() {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
        for path in self.cgroups().iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }

    fn processes(&self) -> Vec<i32> {
        let grouped = self
            .cgroups()
            .iter()
            .flat_map(|path| members(path))
            .collect::<Vec<_>>();
        let mut found = process::all();
        found.retain(|pid| self.was_seen(*pid) || grouped.contains(pid) || self.names_folder(*pid));
        found
    }

    fn was_seen(&self, pid: i32) -> bool {
        self.seen
            .get(&pid)
            .is_some_and(|start| started(pid) == Some(*start))
    }

    /// A process belongs to the node when its arguments, environment, working folder or an open file name the node's folder.
    fn names_folder(&self, pid: i32) -> bool {
        if pid == std::process::id().cast_signed() {
            return false;
        }
        let name = self.folder.as_os_str().as_encoded_bytes();
        let texts = ["cmdline", "environ"]
            .map(|file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default());
        let open = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let mut links = open.chain([PathBuf::from(format!("/proc/{pid}/cwd"))]);
        texts
            .iter()
            .any(|text| text.windows(name.len()).any(|part| part == name))
            || links.any(|link| {
                fs::read_link(link).is_ok_and(|target| target.starts_with(&self.folder))
            })
    }

    /// Mount points below the node's folder, outer ones first.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from);
        points
            .filter(|point| point.starts_with(&self.folder))
            .collect()
    }

    /// Cgroups of the node's namespace in every hierarchy, outer ones first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir(CGROUPS)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let tops = hierarchies
            .chain([PathBuf::from(CGROUPS)])
            .map(|path| path.join("gantry").join(&self.namespace));
        tops.filter(|path| path.is_dir())
            .flat_map(|path| folders(&path))
            .collect()
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn folders(top: &Path) -> Vec<PathBuf> {
    let inner = fs::read_dir(top)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let inner = inner
        .filter(|path| path.is_dir() && !path.is_symlink())
        .flat_map(|path| folders(&path));
    [top.to_owned()].into_iter().chain(inner).collect()
}

fn sockets(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let kinds = entries.filter_map(|entry| Some((entry.path(), entry.file_type().ok()?)));
    kinds
        .flat_map(|(path, kind)| {
            if kind.is_dir() {
                sockets(&path)
            } else {
                Vec::from_iter(kind.is_socket().then_some(path))
            }
        })
        .collect()
}

fn members(cgroup: &Path) -> Vec<i32> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}

fn command_line(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// Returns when a process started, in clock ticks since boot. Source: proc(5), `/proc/pid/stat` field 22.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use nix::mount::{MsFlags, mount};

    use super::*;
    use crate::Outcome;

    #[test]
    fn everything_that_a_node_leaves_is_found_and_removed() -> Outcome {
        let folder = tempfile::tempdir()?;
        let namespace = format!("leaks-{}", std::process::id());
        let leaks = Leaks::new(folder.path(), &namespace);
        assert_eq!(leaks.left(), Vec::<String>::new());

        let point = folder.path().join("point");
        fs::create_dir(&point)?;
        mount(
            Some("none"),
            &point,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        let _socket = UnixListener::bind(folder.path().join("socket"))?;
        let hierarchy = fs::read_dir(CGROUPS)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.ends_with("pids"));
        let cgroup = hierarchy
            .unwrap_or_else(|| CGROUPS.into())
            .join("gantry")
            .join(&namespace)
            .join("one");
        fs::create_dir_all(&cgroup)?;
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .current_dir(folder.path())
            .spawn()?;

        let left = leaks.left();
        for kind in ["process", "mount", "socket", "cgroup"] {
            assert!(
                left.iter().any(|line| line.starts_with(kind)),
                "no {kind} in {left:?}"
            );
        }
        leaks.remove();
        child.wait()?;
        fs::remove_file(folder.path().join("socket"))?;
        assert_eq!(leaks.left(), Vec::<String>::new());
        Ok(())
    }
}
