//! What a process may use at most: a cgroup of its own, made only where limits are set.
//!
//! A process whose plugins have limits is put into `gantry-plugins-STATE/PLUGIN` below the supervisor's own cgroup, in the
//! memory and cpu hierarchies of version 1 or in the one of version 2, before it is told who it is. The folder stays
//! over the lives of the process, so that its count of kills tells why one ended, and goes with the node. In version 2 a
//! cgroup with processes cannot hand controllers on: the supervisor and what descends from it then move into a leaf. Where
//! others share the cgroup, as a shell does from which a daemon was started, nobody is moved: a node with limits wants one
//! of its own. Where that, a kernel or its owner does not allow any of this, the process runs without limits, and says
//! why. What a plugin reads and writes through the page cache counts as its memory, but is given back under pressure.
//!
//! Source: kernel, `cgroup-v1/memory.rst`, `scheduler/sched-bwc.rst`, `cgroup-v2.rst`.

use contracts::{PluginId, plugin::Limits};
use serde_json::Value;
use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// Less is no plugin but a forgotten unit.
const LEAST_MEMORY: u64 = 1 << 20;
/// The kernel's least quota is 1 ms of every period of 100 ms.
const LEAST_CPU: u32 = 10;
/// Microseconds over which CPU time is counted.
const PERIOD: u64 = 100_000;
/// What the supervisor and its other processes are moved to in version 2.
const LEAF: &str = "gantry-others";
/// How often is looked for what is to be moved.
const PASSES: usize = 3;
/// The longest line of parents that is followed.
const DEEPEST: usize = 64;
/// The kernel allows 255 bytes.
const LONGEST_NAME: usize = 128;

/// Reads bytes: a number, or a text such as `64MiB`. Errors: in words.
pub(crate) fn memory(value: &Value) -> Result<u64, String> {
    let bytes = match value {
        Value::Null => return Ok(0),
        Value::Number(number) => number.as_u64(),
        Value::String(text) => bytes(text),
        _ => None,
    };
    match bytes {
        None => Err(format!(
            "memory {value}: write a number of bytes, or a text such as \"64MiB\" (KiB, MiB, GiB)"
        )),
        Some(bytes) if bytes != 0 && bytes < LEAST_MEMORY => Err(format!(
            "memory {value}: is less than 1 MiB, in which no plugin runs; write for example \"64MiB\""
        )),
        Some(bytes) => Ok(bytes),
    }
}

fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (number, shift) = units
        .iter()
        .find_map(|&(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .unwrap_or((text, 0));
    let number: u64 = number.trim().parse().ok()?;
    number.checked_mul(1 << shift)
}

/// Checks thousandths of a CPU. Errors: in words.
pub(crate) fn cpu(thousandths: u32) -> Result<u32, String> {
    match thousandths {
        0 => Ok(0),
        few if few < LEAST_CPU => Err(format!(
            "cpu {few}: is in thousandths of one CPU, at least {LEAST_CPU}; write 500 for half a CPU"
        )),
        enough => Ok(enough),
    }
}

/// What a process may use whose plugins have these limits: their sum. Where one plugin has none, neither have the others,
/// and it is said why.
fn together(limits: &[Limits]) -> (Limits, String) {
    let sum = |of: fn(&Limits) -> u64, name| {
        let asked = limits.iter().any(|l| of(l) > 0);
        match (asked, limits.iter().all(|l| of(l) > 0)) {
            (true, false) => (
                0,
                Some(format!(
                    "{name} is not limited: it shares its process with a plugin without such a limit"
                )),
            ),
            _ => (limits.iter().map(of).fold(0, u64::saturating_add), None),
        }
    };
    let (memory, no_memory) = sum(|l| l.memory, "memory");
    let (cpu, no_cpu) = sum(|l| l.cpu.into(), "cpu");
    let why: Vec<_> = [no_memory, no_cpu].into_iter().flatten().collect();
    let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
    (Limits { memory, cpu }, why.join("; "))
}

/// Why a process ended that was killed for its memory.
fn out_of_memory(limit: u64) -> String {
    format!("out of memory: limit {:.1} MiB", limit as f64 / 1_048_576.0)
}

/// Where the cgroups of one node are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// The supervisor's own folder where memory is limited, and where CPU time is.
    memory: Option<Place>,
    cpu: Option<Place>,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    folder: PathBuf,
    unified: bool,
}

/// The cgroup of one process.
#[derive(Clone, Debug)]
pub(crate) struct Cage {
    limits: Limits,
    memory: Option<Home>,
    cpu: Option<Home>,
}

/// A folder, and the one of all limited processes of the node above it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Home {
    base: PathBuf,
    node: PathBuf,
    own: PathBuf,
    unified: bool,
}

/// How it went to hold a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// What is enforced.
    pub(crate) limits: Limits,
    /// Why not all of it is; may be empty.
    pub(crate) why: String,
    /// How many of its processes the kernel had killed for memory until now.
    pub(crate) kills: u64,
}

/// The limits of one process, over all its lives.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    cage: Option<Cage>,
    /// What the plan already rules out.
    ruled_out: String,
    held: Held,
}

impl Holding {
    /// Prepares for a new life. Gives the cage to put the process into, if it has one.
    pub(crate) fn prepare(
        &mut self,
        cgroups: &Cgroups,
        hosts: &[PluginId],
        limits: &[Limits],
    ) -> Option<Cage> {
        let (limits, ruled_out) = together(limits);
        let first = hosts.first().filter(|_| limits != Limits::default());
        *self = Self {
            cage: first.map(|first| cgroups.cage(first, limits)),
            ruled_out,
            held: Held::default(),
        };
        self.cage.clone()
    }

    /// Takes note of how it went to put the process there.
    pub(crate) fn is_held(&mut self, held: Held) {
        self.held = held;
    }

    /// What is enforced.
    pub(crate) fn limits(&self) -> Limits {
        self.held.limits
    }

    /// Why not all that was asked for is.
    pub(crate) fn unlimited(&self) -> String {
        let whys = [self.ruled_out.as_str(), &self.held.why];
        let whys = whys.into_iter().filter(|why| !why.is_empty());
        whys.collect::<Vec<_>>().join("; ")
    }

    /// Why the process was killed, when it was for its memory.
    pub(crate) fn kill(&self) -> Option<String> {
        let killed = self.cage.as_ref()?.kills() > self.held.kills;
        killed.then(|| out_of_memory(self.held.limits.memory))
    }
}

impl Cgroups {
    /// Finds the cgroups of this process; `state` tells nodes of one machine apart.
    pub(crate) fn find(state: &Path) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::of(
            &read("/proc/self/mountinfo"),
            &read("/proc/self/cgroup"),
            state,
        )
    }

    fn of(mounts: &str, own: &str, state: &Path) -> Self {
        let unified = || place(mounts, own, None);
        // A hybrid machine has a version 2 tree without controllers: it must not win.
        let able = |place: &Place, controller: &str| {
            let list = fs::read_to_string(place.folder.join("cgroup.controllers"));
            list.is_ok_and(|list| list.split_whitespace().any(|word| word == controller))
        };
        let find = |controller| {
            place(mounts, own, Some(controller))
                .or_else(|| unified().filter(|p| able(p, controller)))
        };
        Self {
            memory: find("memory"),
            cpu: find("cpu"),
            name: name(state),
        }
    }

    /// Describes the cgroup of the process that hosts `first` and perhaps others.
    pub(crate) fn cage(&self, first: &PluginId, limits: Limits) -> Cage {
        let home = |place: &Option<Place>, wanted: bool| {
            let place = place.as_ref().filter(|_| wanted)?;
            let node = place.folder.join(&self.name);
            Some(Home {
                base: place.folder.clone(),
                own: node.join(first.as_str().replace('/', "-")),
                node,
                unified: place.unified,
            })
        };
        Cage {
            limits,
            memory: home(&self.memory, limits.memory > 0),
            cpu: home(&self.cpu, limits.cpu > 0),
        }
    }

    /// Removes all that was made, as far as it is empty.
    pub(crate) fn remove(&self) {
        for place in [&self.memory, &self.cpu].into_iter().flatten() {
            let node = place.folder.join(&self.name);
            for entry in fs::read_dir(&node).into_iter().flatten().flatten() {
                // The files of a cgroup cannot be removed, and go with it.
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&node);
        }
    }
}

/// The supervisor's folder in the hierarchy of `controller`, or in that of version 2.
fn place(mounts: &str, own: &str, controller: Option<&str>) -> Option<Place> {
    let (root, mount) = mounts
        .lines()
        .find_map(|line| hierarchy(line, controller))?;
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, list, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is = match controller {
            Some(controller) => list.split(',').any(|word| word == controller),
            None => number == "0" && list.is_empty(),
        };
        is.then_some(path)
    })?;
    let mut inside = Path::new(path).strip_prefix(root).ok()?;
    // Who stepped aside in an earlier life, or was started from there, still belongs above.
    while inside.ends_with(LEAF) {
        inside = inside.parent()?;
    }
    let folder = Path::new(mount).join(inside);
    Some(Place {
        folder,
        unified: controller.is_none(),
    })
}

/// Root and mount point of one line of mountinfo, when it is what is looked for. Source: proc_pid_mountinfo(5).
fn hierarchy<'a>(line: &'a str, controller: Option<&str>) -> Option<(&'a str, &'a str)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1)?);
    let is = match controller {
        Some(controller) => kind == "cgroup" && options.split(',').any(|word| word == controller),
        None => kind == "cgroup2",
    };
    let mut left = left.split(' ').skip(3);
    is.then_some((left.next()?, left.next()?))
}

fn name(state: &Path) -> String {
    let path = state.to_string_lossy();
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let path: String = path.trim_matches('/').chars().map(safe).collect();
    // The end of a path tells more than its beginning.
    let begin = path.len().saturating_sub(LONGEST_NAME);
    format!("gantry-plugins-{}", path.get(begin..).unwrap_or_default())
}

impl Cage {
    /// Makes the cgroup, sets its limits and puts the process there. Blocks for some milliseconds.
    pub(crate) fn hold(&self, pid: u32) -> Held {
        let mut held = Held::default();
        let mut whys = Vec::new();
        if self.limits.memory > 0 {
            match self.hold_in(&self.memory, pid, "memory", |home| {
                limit_memory(home, self.limits.memory)
            }) {
                Ok(()) => held.limits.memory = self.limits.memory,
                Err(why) => whys.push(format!("memory is not limited: {why}")),
            }
        }
        if self.limits.cpu > 0 {
            match self.hold_in(&self.cpu, pid, "cpu", |home| {
                limit_cpu(home, self.limits.cpu)
            }) {
                Ok(()) => held.limits.cpu = self.limits.cpu,
                Err(why) => whys.push(format!("cpu is not limited: {why}")),
            }
        }
        held.kills = self.kills();
        held.why = whys.join("; ");
        held
    }

    fn hold_in(
        &self,
        home: &Option<Home>,
        pid: u32,
        controller: &str,
        limit: impl Fn(&Home) -> Result<(), String>,
    ) -> Result<(), String> {
        let home = home
            .as_ref()
            .ok_or("this machine has no such cgroup controller")?;
        let made = fs::create_dir_all(&home.own);
        made.map_err(|e| format!("{}: {e}", home.own.display()))?;
        if home.unified {
            hand_on(&home.base, controller)?;
            hand_on(&home.node, controller)?;
        }
        limit(home)?;
        write(&home.own.join("cgroup.procs"), &pid.to_string())
    }

    /// How many of its processes the kernel has killed for memory.
    pub(crate) fn kills(&self) -> u64 {
        let file = |home: &Home| match home.unified {
            true => home.own.join("memory.events"),
            false => home.own.join("memory.oom_control"),
        };
        let text = self
            .memory
            .as_ref()
            .map(|home| fs::read_to_string(file(home)));
        let text = text.and_then(Result::ok).unwrap_or_default();
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or_default()
    }
}

fn limit_memory(home: &Home, bytes: u64) -> Result<(), String> {
    let (limit, swap) = match home.unified {
        true => ("memory.max", "memory.swap.max"),
        false => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    };
    // Without swap accounting there is no such file, and where there is no swap nothing to limit.
    if !home.unified {
        // A smaller one of before would be in the way.
        let _ = write(&home.own.join(swap), "-1");
    }
    write(&home.own.join(limit), &bytes.to_string())?;
    let swapped = if home.unified { 0 } else { bytes };
    let _ = write(&home.own.join(swap), &swapped.to_string());
    Ok(())
}

fn limit_cpu(home: &Home, thousandths: u32) -> Result<(), String> {
    let quota = u64::from(thousandths) * PERIOD / 1000;
    if home.unified {
        return write(&home.own.join("cpu.max"), &format!("{quota} {PERIOD}"));
    }
    write(&home.own.join("cpu.cfs_period_us"), &PERIOD.to_string())?;
    write(&home.own.join("cpu.cfs_quota_us"), &quota.to_string())
}

/// Lets the folders below have a controller of version 2.
fn hand_on(folder: &Path, controller: &str) -> Result<(), String> {
    let file = folder.join("cgroup.subtree_control");
    let word = format!("+{controller}");
    let busy = |e: &io::Error| e.kind() == ErrorKind::ResourceBusy;
    match fs::write(&file, &word) {
        Err(e) if busy(&e) => step_aside(folder, std::process::id(), parent_of)?,
        other => return other.map_err(|e| format!("{}: {e}", file.display())),
    }
    fs::write(&file, &word).map_err(|e| match busy(&e) {
        true => shared(folder, "some"),
        false => format!("{}: {e}", file.display()),
    })
}

/// Moves the supervisor and what descends from it into a leaf below a folder; nothing when others are there too: a
/// daemon that was started by hand shares the cgroup of its user's session, which is not ours to move.
fn step_aside(folder: &Path, own: u32, parent: impl Fn(u32) -> Option<u32>) -> Result<(), String> {
    let leaf = folder.join(LEAF);
    // What is moved may just now have begun another.
    for _ in 0..PASSES {
        let (ours, strangers) = sorted(&here(folder)?, own, &parent);
        if !strangers.is_empty() {
            return Err(shared(folder, &strangers.join(", ")));
        }
        if ours.is_empty() {
            break;
        }
        fs::create_dir_all(&leaf).map_err(|e| format!("{}: {e}", leaf.display()))?;
        for pid in ours {
            move_to(&leaf, pid)?;
        }
    }
    Ok(())
}

fn here(folder: &Path) -> Result<String, String> {
    let file = folder.join("cgroup.procs");
    fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))
}

fn move_to(leaf: &Path, pid: u32) -> Result<(), String> {
    let file = leaf.join("cgroup.procs");
    match fs::write(&file, pid.to_string()) {
        // It has ended meanwhile.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
        other => other.map_err(|e| format!("{}: {e}", file.display())),
    }
}

/// The processes of a folder that are `own` or descend from it, and the strangers. Who has no parent any more has ended,
/// but 0 stands for a process outside of our pid namespace.
fn sorted(pids: &str, own: u32, parent: &impl Fn(u32) -> Option<u32>) -> (Vec<u32>, Vec<String>) {
    let (mut ours, mut strangers) = (Vec::new(), Vec::new());
    for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
        let mut line = std::iter::successors(Some(pid), |&pid| parent(pid)).take(DEEPEST);
        if line.any(|pid| pid == own) {
            ours.push(pid);
        } else if pid == 0 || parent(pid).is_some() {
            strangers.push(pid.to_string());
        }
    }
    (ours, strangers)
}

fn shared(folder: &Path, strangers: &str) -> String {
    format!(
        "{}: has processes that are not the node's own ({strangers}): run the daemon in a cgroup of its own, for example \
         in a systemd unit with Delegate=yes",
        folder.display()
    )
}

fn parent_of(pid: u32) -> Option<u32> {
    parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The parent in the text of a `stat`: its name may have spaces and brackets. Source: proc_pid_stat(5).
fn parent_in(stat: &str) -> Option<u32> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(1)?.parse().ok()
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

#[cfg(test)]
mod tests;
