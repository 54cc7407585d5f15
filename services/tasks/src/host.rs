//! Processes of shims as the host shows them: how ours are known without doubt, and how they end. Everything here blocks.
//!
//! A process is one of our shims when all of this holds; nothing else is ever signalled:
//!
//! - its arguments name our events socket (`-address`), which every shim of ours is given;
//! - at the end of that path *it* sees the very folder that *we* see there: another node in a container of its own may
//!   use the same path, and has another folder;
//! - it is gantry's own program or calls itself `gantry-shim`, or its program is a `containerd-shim-…`;
//! - it runs as our user.
//!
//! Numbers of processes are used again, so a signal goes through a descriptor that was checked after it was opened.

use crate::launch::Launch;
use crate::layout::Layout;
use crate::record::{Name, Program};
use contracts::{ContainerId, Namespace};
use rustix::process::{
    Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open, pidfd_send_signal,
};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a killed process may stay visible.
const DYING: Duration = Duration::from_secs(3);

/// A process of a shim of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shim {
    pub(crate) pid: i32,
    /// When it started, in ticks since boot: with the number, this names one process for ever.
    pub(crate) started: u64,
    pub(crate) name: Name,
    /// Where one of gantry's own listens.
    pub(crate) socket: Option<PathBuf>,
}

/// What our shims are known by.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    events: PathBuf,
    sockets: PathBuf,
    /// gantry's own shim.
    own: PathBuf,
}

impl Host {
    pub(crate) fn new(layout: &Layout, own: &Program) -> Self {
        let own = PathBuf::from(&own.path);
        Self {
            events: layout.events(),
            sockets: layout.sockets(),
            own: own.canonicalize().unwrap_or(own),
        }
    }

    /// All processes of our shims: servers, and what starts or deletes one just now.
    pub(crate) fn shims(&self) -> Vec<Shim> {
        let folder = self.folder();
        let shim = |pid| self.shim(pid, folder);
        pids().into_iter().filter_map(shim).collect()
    }

    /// Kills all processes of one task's shim, and waits until none is left; answers the cgroups its children were in.
    pub(crate) fn end(&self, launch: &Launch) -> BTreeSet<String> {
        self.end_where(|shim| match launch.program.own {
            true => shim.socket.as_ref() == Some(&launch.socket),
            false => shim.socket.is_none() && shim.name == launch.name,
        })
    }

    /// As [`Host::end`] for whatever `wanted` says.
    pub(crate) fn end_where(&self, wanted: impl Fn(&Shim) -> bool) -> BTreeSet<String> {
        let (until, mut cgroups) = (Instant::now() + DYING, BTreeSet::new());
        loop {
            let found: Vec<_> = self.shims().into_iter().filter(&wanted).collect();
            if found.is_empty() || Instant::now() > until {
                return cgroups;
            }
            for shim in &found {
                cgroups.extend(cgroups_of_children(shim));
                self.kill(shim);
            }
            sleep(Duration::from_millis(2));
        }
    }

    fn kill(&self, shim: &Shim) {
        let Some(pid) = Pid::from_raw(shim.pid) else {
            return;
        };
        let process = pidfd_open(pid, PidfdFlags::empty());
        if self.shim(shim.pid, self.folder()).as_ref() != Some(shim) {
            return;
        }
        let _ = match process {
            Ok(process) => pidfd_send_signal(process, Signal::KILL),
            // No descriptors are left.
            Err(_) => kill_process(pid, Signal::KILL),
        };
    }

    fn folder(&self) -> Option<(u64, u64)> {
        identity(self.events.parent()?)
    }

    fn shim(&self, pid: i32, folder: Option<(u64, u64)>) -> Option<Shim> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        let words: Vec<&str> = line.split('\0').collect();
        let value = |flag: &str| {
            let pair = words.windows(2).find(|pair| pair[0] == flag)?;
            Some(pair[1])
        };
        if Path::new(value("-address")?) != self.events {
            return None;
        }
        let name = Name {
            namespace: Namespace::new(value("-namespace")?).ok()?,
            id: ContainerId::new(value("-id")?).ok()?,
        };
        let socket = value("-socket").map(PathBuf::from);
        let socket = socket.filter(|path| path.parent() == Some(&self.sockets));
        let known = folder.is_some() && self.theirs(pid) == folder;
        let program = match socket {
            Some(_) => self.is_own_program(pid),
            // A script is run by another program, which is given its name.
            None => words.iter().take(2).any(|word| is_stock(Path::new(word))),
        };
        (known && program && is_our_user(pid)).then_some(())?;
        let (_, _, started) = stat(pid)?;
        Some(Shim {
            pid,
            started,
            name,
            socket,
        })
    }

    fn is_own_program(&self, pid: i32) -> bool {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let this = fs::read_link("/proc/self/exe").unwrap_or_default();
        comm.trim() == "gantry-shim" || program == this || program == self.own
    }

    /// The folder of events as that process sees it.
    fn theirs(&self, pid: i32) -> Option<(u64, u64)> {
        let folder = self.events.parent()?;
        let inside = folder.strip_prefix("/").unwrap_or(folder);
        identity(&Path::new("/proc").join(format!("{pid}/root")).join(inside))
    }
}

/// The process of the shim with this bundle, when it is stopped. Only read from: the file may be old.
pub(crate) fn stopped_shim(bundle: &Path) -> Option<i32> {
    let pid = fs::read_to_string(bundle.join("shim.pid")).ok()?;
    let pid = pid.trim().parse().ok()?;
    is_stopped(pid).then_some(pid)
}

/// Now, in ticks since boot. Source: proc(5), `/proc/pid/stat` field 22.
pub(crate) fn ticks() -> u64 {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let per_second = per_second
        .ok()
        .flatten()
        .and_then(|n| u64::try_from(n).ok());
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    let per_second = per_second.unwrap_or(100);
    seconds * per_second + nanos * per_second / 1_000_000_000
}

/// Whether a process is stopped by a signal: it answers nobody until it is continued.
fn is_stopped(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, ..)| matches!(state, 'T' | 't'))
}

fn is_stock(program: &Path) -> bool {
    let file = program.file_name().unwrap_or_default().to_string_lossy();
    file.starts_with("containerd-shim-")
}

fn is_our_user(pid: i32) -> bool {
    let owner = fs::metadata(format!("/proc/{pid}")).map(|process| process.uid());
    owner.ok() == Some(geteuid().as_raw())
}

fn identity(folder: &Path) -> Option<(u64, u64)> {
    let folder = fs::metadata(folder).ok()?;
    Some((folder.dev(), folder.ino()))
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// State, parent and start of a process. Source: proc(5), `/proc/pid/stat` fields 3, 4 and 22.
fn stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, parent, fields.nth(17)?.parse().ok()?))
}

/// Paths of cgroups that a shim's children are in and the shim itself is not, and that were named after its container.
fn cgroups_of_children(shim: &Shim) -> BTreeSet<String> {
    let own = memberships(shim.pid);
    let child = |pid: &i32| stat(*pid).is_some_and(|(_, parent, _)| parent == shim.pid);
    let named = |path: &String| path.split('/').any(|part| part == shim.name.id.as_str());
    pids()
        .into_iter()
        .filter(child)
        .flat_map(memberships)
        .filter(|membership| !own.contains(membership))
        .map(|(_, path)| path)
        .filter(named)
        .collect()
}

fn memberships(pid: i32) -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let line = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        Some((names.to_owned(), path.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A process with any arguments: the shell keeps those that it does not use.
    fn decoy(words: &[&str]) -> std::process::Child {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read x", "sh"]).args(words);
        command.stdin(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn arguments_alone_make_nobody_a_shim_of_ours() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path(), folder.path());
        let own = Program {
            path: "/x".into(),
            first: None,
            own: true,
        };
        let host = Host::new(&layout, &own);
        let (events, socket) = (layout.events(), layout.sockets().join("0"));
        let words = [
            "-namespace",
            "n",
            "-id",
            "i",
            "-address",
            events.to_str().unwrap(),
            "-socket",
            socket.to_str().unwrap(),
        ];
        let mut child = decoy(&words);
        assert_eq!(host.shims(), []);
        host.end_where(|_| true);
        assert!(child.try_wait().unwrap().is_none(), "it was killed");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_stopped_process_is_seen_at_once() {
        let mut child = decoy(&[]);
        let pid = child.id().cast_signed();
        assert!(!is_stopped(pid));
        kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
        while !is_stopped(pid) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_stopped(pid));
    }
}
