//! Makes faults on a node of its own and says whether it kept its word; `integration/faults` builds and runs this.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use integration::Outcome;
use integration::chaos::{self, Blow, Random};
use integration::faults::flips::{self, Where};
use integration::faults::full::{self, Scarce};
use integration::faults::{points, power};
use integration::node::Setup;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

#[derive(Parser)]
#[command(
    name = "faults",
    about = "makes faults on a node of its own, and says whether it kept its word"
)]
struct Arguments {
    #[command(subcommand)]
    fault: Fault,
    /// Repeats the choices of an earlier run; made up and printed when absent
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// A file of TOML that is appended to the configuration of the node
    #[arg(long, global = true)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Fault {
    /// Cuts the power while images are pulled, moved, deleted and collected, containers made, and events published
    Power {
        /// How many cuts
        #[arg(long, default_value_t = 20)]
        cuts: usize,
        /// Keeps every cut that a node does not survive in this folder
        #[arg(long)]
        keep: Option<PathBuf>,
        /// Tries a cut again that was kept: FOLDER/cut-N.json
        #[arg(long)]
        again: Option<PathBuf>,
    },
    /// Ends one plugin after the other with SIGKILL while clients work
    Kill(Long),
    /// Stops one plugin after the other with SIGSTOP for a while, while clients work
    Stop(Long),
    /// Has a process die at each named fault point, while a client does a bit of everything
    Points,
    /// Fills the disk to the last byte or the last name, uses the node, makes room, uses it again
    Disk(Rounds),
    /// Flips bits in blobs and layers below a running node, and in stores below a stopped one
    Flips(Rounds),
    /// Ends the supervisor with SIGKILL again and again while clients work
    Supervisor(Long),
}

#[derive(clap::Args)]
struct Long {
    /// How long clients work
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How many clients
    #[arg(long, default_value_t = 4)]
    clients: usize,
}

#[derive(clap::Args)]
struct Rounds {
    /// How often, each time on a fresh node
    #[arg(long, default_value_t = 6)]
    rounds: u64,
}

fn main() -> ExitCode {
    match begin(Arguments::parse()) {
        Ok(true) => {
            println!("verdict: it kept its word");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("verdict: it did NOT keep its word");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("faults: {error}");
            ExitCode::from(2)
        }
    }
}

fn begin(arguments: Arguments) -> Outcome<bool> {
    let seed = arguments.seed.unwrap_or_else(chaos::seed);
    println!("seed {seed}; --seed {seed} makes the same choices again");
    let mut setup = Setup::default();
    if let Some(path) = &arguments.config {
        setup = setup.config(&std::fs::read_to_string(path)?);
    }
    alone()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(inflict(arguments.fault, seed, setup))
}

/// Mounts in a namespace that ends with this process and its children, so that nothing stays behind, whatever happens.
fn alone() -> Outcome {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    Ok(())
}

async fn inflict(fault: Fault, seed: u64, setup: Setup) -> Outcome<bool> {
    match fault {
        Fault::Power {
            again: Some(kept), ..
        } => {
            let wrong = power::again(&kept, &setup).await?;
            wrong.iter().for_each(|line| println!("    WRONG: {line}"));
            Ok(wrong.is_empty())
        }
        Fault::Power { cuts, keep, .. } => {
            let plan = power::Plan {
                cuts,
                seed,
                setup,
                keep,
                moments: power::Moments::All,
            };
            let verdict = power::run(&plan, |line| println!("{line}")).await?;
            println!("{verdict}");
            Ok(verdict.wrong.is_empty())
        }
        Fault::Kill(long) => storm(Blow::Kill, &long, seed, setup).await,
        Fault::Stop(long) => storm(Blow::Stop, &long, seed, setup).await,
        Fault::Points => {
            let verdict = points::run(seed, setup, |line| println!("{line}")).await?;
            let (passed_by, wrong) = (verdict.passed_by.len(), verdict.wrong.len());
            verdict.wrong.iter().for_each(|line| println!("  {line}"));
            let struck = verdict.struck;
            println!("{struck} points struck, {passed_by} not passed, {wrong} findings");
            Ok(verdict.wrong.is_empty())
        }
        Fault::Disk(Rounds { rounds }) => {
            let scarce = [Scarce::Bytes, Scarce::Names];
            let round = async |number: u64, seed| {
                let scarce = scarce[number as usize % scarce.len()];
                println!("round {number}: no {scarce:?} left");
                full::round(scarce, seed, setup.clone()).await
            };
            again(rounds, seed, round).await
        }
        Fault::Flips(Rounds { rounds }) => {
            let places = [Where::Blob, Where::Layer, Where::Store];
            let round = async |number: u64, seed| {
                let place = places[number as usize % places.len()];
                println!("round {number}: {place:?}");
                flips::round(place, seed, setup.clone(), |line| println!("  {line}")).await
            };
            again(rounds, seed, round).await
        }
        Fault::Supervisor(long) => storm(Blow::Supervisor, &long, seed, setup).await,
    }
}

async fn storm(blow: Blow, long: &Long, seed: u64, setup: Setup) -> Outcome<bool> {
    let mut plan = chaos::Plan::new(blow, seed, Duration::from_secs(long.seconds));
    plan.clients = long.clients;
    plan.setup = setup;
    let verdict = chaos::run(plan).await?;
    println!("{verdict}");
    Ok(verdict.problems.is_empty())
}

/// Runs several rounds with a seed each, and tells whether nothing was wrong in any.
async fn again(
    rounds: u64,
    seed: u64,
    round: impl AsyncFn(u64, u64) -> Outcome<Vec<String>>,
) -> Outcome<bool> {
    let mut chance = Random::new(seed, 0);
    let mut kept = true;
    for number in 0..rounds {
        let wrong = round(number, chance.number()).await?;
        wrong.iter().for_each(|line| println!("    WRONG: {line}"));
        kept &= wrong.is_empty();
    }
    Ok(kept)
}
