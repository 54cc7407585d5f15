//! Child processes that end with their owner, waits with a bound, and what processes weigh.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Outcome;

/// How often a wait looks again. Short against everything that is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// Looks until `state` shows something. Errors: it did not within the bound; `what` names it.
pub async fn until<T>(
    what: &str,
    bound: Duration,
    mut state: impl AsyncFnMut() -> Option<T>,
) -> Outcome<T> {
    let end = Instant::now() + bound;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Some(found) = state().await {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(format!("{what}: not within {bound:?}").into());
        }
    }
}

/// A process that is killed and reaped when its owner forgets it.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
}

impl Daemon {
    /// Starts a command with no input, its output appended to `log`. Errors: the program or the log cannot be opened.
    pub fn spawn(command: &mut Command, log: &Path) -> Outcome<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .map_err(|error| format!("{name}: {error}; is it installed?"))?;
        Ok(Self { name, child })
    }

    /// Returns the process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Tells whether the process has ended; reaps it when it has.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal. Errors: the process has ended.
    pub fn signal(&self, signal: Signal) -> Outcome {
        kill(Pid::from_raw(self.pid()), signal)
            .map_err(|error| format!("{}: {error}", self.name).into())
    }

    /// Sends a signal and waits for the end. Errors: it has not ended within the bound.
    pub async fn end(&mut self, signal: Signal, bound: Duration) -> Outcome {
        if !self.has_ended() {
            self.signal(signal)?;
        }
        let what = format!("{} ends after {signal}", self.name);
        until(&what, bound, async || self.has_ended().then_some(())).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end and returns what it wrote. Errors: it could not start or failed; its stderr is in the message.
pub fn run(command: &mut Command) -> Outcome<Vec<u8>> {
    let name = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}; is it installed?"))?;
    if !output.status.success() {
        return Err(format!(
            "{name}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(output.stdout)
}

/// Lists the ids of all processes of the machine that still run; zombies have ended and only wait for their parent.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| !is_zombie(*pid)).collect()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// Lists a process and all its descendants.
pub fn tree(root: i32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = all()
        .into_iter()
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(one) = family.get(next).copied() {
        family.extend(
            parents
                .iter()
                .filter(|(_, parent)| *parent == one)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    family
}

/// Returns the parent of a process, unless it is gone.
pub fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Returns the proportional set size of a process: its own pages and its share of the shared ones, in bytes.
pub fn pss(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
