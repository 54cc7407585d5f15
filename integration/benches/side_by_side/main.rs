//! gantry beside Debian's containerd, in one run, A B A B: medians and ratios.
//!
//! ```text
//! integration/bench [--rounds 10] [--runs 20] [--megabytes 300] [--only boot,pull,run,memory] [--json FILE]
//! ```
//!
//! Both sides get the same image from the same loopback registry, folders on the same file system
//! (`GANTRY_TEST_DIR`, or the system's temporary folder), a default seccomp profile, and keep what
//! a container writes. Nothing is deleted between rounds and dirty pages are written out before
//! each measurement, so that no side pays for the other's. containerd runs without CRI and other
//! plugins that have no counterpart here, which is in its favour.

mod gantry;
mod peer;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use integration::Outcome;
use integration::image::{Packed, sample};
use integration::node::{self, Setup};
use integration::registry::Registry;

use report::{Report, Unit};

/// What is measured, and how often.
struct Plan {
    rounds: usize,
    runs: usize,
    megabytes: usize,
    only: Vec<String>,
    json: Option<PathBuf>,
}

impl Plan {
    fn from_args(mut args: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut plan = Self {
            rounds: 10,
            runs: 20,
            megabytes: 300,
            only: Vec::new(),
            json: None,
        };
        while let Some(flag) = args.next() {
            if flag == "--bench" {
                continue; // cargo's own
            }
            let value = args.next().ok_or_else(|| format!("{flag} wants a value"))?;
            match flag.as_str() {
                "--rounds" => plan.rounds = value.parse()?,
                "--runs" => plan.runs = value.parse()?,
                "--megabytes" => plan.megabytes = value.parse()?,
                "--only" => plan.only = value.split(',').map(str::to_owned).collect(),
                "--json" => plan.json = Some(value.into()),
                other => {
                    return Err(format!(
                        "{other} is unknown; there are --rounds --runs --megabytes --only --json"
                    )
                    .into());
                }
            }
        }
        Ok(plan)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|one| one == name)
    }
}

/// The registry that both sides pull from, with its images.
pub(crate) struct Images {
    _registry: Registry,
    pub(crate) small: (String, Packed),
    pub(crate) large: (String, Packed),
}

async fn images(megabytes: usize) -> Outcome<Images> {
    let registry = Registry::start().await?;
    let small = sample::busybox()?.pack();
    let large = sample::layers(10, megabytes << 20)?;
    let small = (registry.push(&small, "bench/small", "1").await?, small);
    let large = (registry.push(&large, "bench/large", "1").await?, large);
    Ok(Images {
        _registry: registry,
        small,
        large,
    })
}

#[actix_rt::main]
async fn main() -> Outcome {
    let plan = Plan::from_args(std::env::args().skip(1))?;
    let images = images(plan.megabytes).await?;
    let mut report = Report::new(&node::base(), images.large.1.size(), plan.megabytes);
    if plan.wants("boot") {
        boot(&plan, &mut report).await?;
    }
    if plan.wants("pull") {
        pull(&plan, &images, &mut report).await?;
    }
    if plan.wants("run") || plan.wants("memory") {
        run(&plan, &images, &mut report).await?;
    }
    print!("{}", report.table());
    if let Some(path) = plan.json {
        std::fs::write(path, report.json())?;
    }
    Ok(())
}

/// Starts both in empty folders until they answer; what all processes weigh then.
async fn boot(plan: &Plan, report: &mut Report) -> Outcome {
    for round in 0..plan.rounds {
        eprintln!("boot {}/{}", round + 1, plan.rounds);
        let (time, memory) = gantry::boot().await?;
        report.gantry("boot to ready", Unit::Milliseconds, time);
        report.gantry("idle memory, all processes (PSS)", Unit::Mebibytes, memory);
        let (time, memory) = peer::boot().await?;
        report.containerd("boot to ready", Unit::Milliseconds, time);
        report.containerd("idle memory, all processes (PSS)", Unit::Mebibytes, memory);
    }
    Ok(())
}

/// Pulls and unpacks the large image, each time in a new node whose folder stays until the end.
async fn pull(plan: &Plan, images: &Images, report: &mut Report) -> Outcome {
    const NAME: &str = "pull and unpack of 10 layers";
    const UNSYNCED: &str = "the same with sync = false; containerd as above";
    let mut folders = Vec::new();
    for round in 0..plan.rounds {
        eprintln!("pull {}/{}", round + 1, plan.rounds);
        let (time, kept) = gantry::pull(&images.large.0, Setup::default()).await?;
        folders.push(kept);
        report.gantry(NAME, Unit::Milliseconds, time);
        let (time, kept) = peer::pull(&images.large.0).await?;
        folders.push(kept);
        report.containerd(NAME, Unit::Milliseconds, time);
        report.containerd(UNSYNCED, Unit::Milliseconds, time);
        let (time, kept) = gantry::pull(&images.large.0, gantry::unsynced()).await?;
        folders.push(kept);
        report.gantry(UNSYNCED, Unit::Milliseconds, time);
    }
    Ok(())
}

/// Runs `true` again and again through a lasting connection and through a command; then what a running container weighs.
async fn run(plan: &Plan, images: &Images, report: &mut Report) -> Outcome {
    const LASTING: &str = "create, start, wait, delete `true`: one connection";
    const COMMAND: &str = "the same by a command (curl; ctr run --rm)";
    const MEMORY: &str = "memory per running container, with its shim (PSS)";
    let mut ours = gantry::Runner::start(&images.small.0).await?;
    let mut theirs = peer::Runner::start(&images.small).await?;
    for round in 0..plan.runs * usize::from(plan.wants("run")) {
        eprintln!("run {}/{}", round + 1, plan.runs);
        report.gantry(LASTING, Unit::Milliseconds, ours.lasting(round).await?);
        report.containerd(LASTING, Unit::Milliseconds, theirs.lasting(round).await?);
        report.gantry(COMMAND, Unit::Milliseconds, ours.command(round)?);
        report.containerd(COMMAND, Unit::Milliseconds, theirs.command(round)?);
    }
    if plan.wants("memory") {
        for weight in ours.weigh(plan.rounds).await? {
            report.gantry(MEMORY, Unit::Mebibytes, weight);
        }
        for weight in theirs.weigh(plan.rounds)? {
            report.containerd(MEMORY, Unit::Mebibytes, weight);
        }
    }
    ours.stop().await
}

/// Writes dirty pages out, then takes the time of one step, in milliseconds.
pub(crate) async fn timed<T>(step: impl Future<Output = Outcome<T>>) -> Outcome<(f64, T)> {
    nix::unistd::sync();
    let start = Instant::now();
    let done = step.await?;
    Ok((milliseconds(start.elapsed()), done))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Sums what processes weigh, in mebibytes.
pub(crate) fn weight(pids: &[i32]) -> f64 {
    let bytes: u64 = pids.iter().map(|pid| integration::process::pss(*pid)).sum();
    bytes as f64 / f64::from(1 << 20)
}
