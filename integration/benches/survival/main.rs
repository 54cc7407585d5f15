//! What clients lose while the server dies every second: gantry beside Debian's containerd, by the same script.
//!
//! ```text
//! integration/survival [--seconds 30] [--clients 4] [--seed N]
//! ```
//!
//! Each client makes the name of an image and deletes it again, as fast as it is answered. A request whose connection
//! breaks is sent again until it is answered, as a careful client does; an answer that a calm server would not give
//! counts as failed. Every acknowledged change must have its one event. containerd is killed with SIGKILL every second
//! and started again at once; of gantry one plugin by chance, and in a second run the whole node.

mod ours;
mod theirs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration::Outcome;
use integration::chaos::seed;

/// How long a client repeats a request before it counts as lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long, by how many, by which chance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) length: Duration,
    pub(crate) clients: usize,
    pub(crate) seed: u64,
}

impl Plan {
    fn from_args(mut args: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut plan = Self {
            length: Duration::from_secs(30),
            clients: 4,
            seed: seed(),
        };
        while let Some(flag) = args.next() {
            if flag == "--bench" {
                continue; // cargo's own
            }
            let value = args.next().ok_or_else(|| format!("{flag} wants a value"))?;
            match flag.as_str() {
                "--seconds" => plan.length = Duration::from_secs(value.parse()?),
                "--clients" => plan.clients = value.parse()?,
                "--seed" => plan.seed = value.parse()?,
                other => {
                    let known = "--seconds --clients --seed";
                    return Err(format!("{other} is unknown; there are {known}").into());
                }
            }
        }
        Ok(plan)
    }
}

/// Says when everybody goes home.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bell(Arc<AtomicBool>);

impl Bell {
    pub(crate) fn ring(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn rung(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How one request ended.
pub(crate) enum Answer {
    /// As a calm server answers.
    Right,
    /// Otherwise.
    Wrong(String),
    /// The connection broke before an answer came.
    Broken,
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    requests: u64,
    broken: u64,
    failed: Vec<String>,
    slowest: Duration,
    /// How often each event must be told: `topic name`.
    expected: BTreeMap<String, u64>,
}

impl Tally {
    /// Sends one request until it is answered, and notes the event that it must have.
    pub(crate) async fn request(&mut self, event: String, mut send: impl AsyncFnMut() -> Answer) {
        let begun = Instant::now();
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        self.requests += 1;
        loop {
            pause.tick().await;
            match send().await {
                Answer::Right => *self.expected.entry(event).or_default() += 1,
                Answer::Wrong(why) => self.failed.push(why),
                Answer::Broken if begun.elapsed() > PATIENCE => {
                    self.failed.push(format!("{event}: no answer"));
                }
                Answer::Broken => {
                    self.broken += 1;
                    continue;
                }
            }
            break;
        }
        self.slowest = self.slowest.max(begun.elapsed());
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.broken += other.broken;
        self.failed.extend(other.failed);
        self.slowest = self.slowest.max(other.slowest);
        for (event, count) in other.expected {
            *self.expected.entry(event).or_default() += count;
        }
    }
}

/// One row of the table.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) deaths: u64,
    pub(crate) tally: Tally,
    /// What was told: `topic name`.
    pub(crate) told: BTreeMap<String, u64>,
}

impl Row {
    fn print(&self) {
        let of = |event: &String| self.told.get(event).copied().unwrap_or(0);
        let expected = &self.tally.expected;
        let lost: u64 = expected.iter().map(|(e, n)| n.saturating_sub(of(e))).sum();
        let doubled: u64 = expected.iter().map(|(e, n)| of(e).saturating_sub(*n)).sum();
        let Tally {
            requests,
            broken,
            failed,
            slowest,
            ..
        } = &self.tally;
        println!(
            "{:<34} {:>6} {requests:>9} {broken:>7} {:>7} {lost:>7} {doubled:>7} {:>9.0}",
            self.name,
            self.deaths,
            failed.len(),
            slowest.as_secs_f64() * 1000.0
        );
        for why in failed.iter().take(3) {
            println!("    {why}");
        }
    }
}

#[actix_rt::main]
async fn main() -> Outcome {
    let plan = Plan::from_args(std::env::args().skip(1))?;
    println!("seed {}; --seed {} repeats it", plan.seed, plan.seed);
    let rows = [
        ours::run(plan, ours::Blow::Plugin).await?,
        ours::run(plan, ours::Blow::Node).await?,
        theirs::run(plan).await?,
    ];
    println!(
        "{:<34} {:>6} {:>9} {:>7} {:>7} {:>7} {:>7} {:>9}",
        "SIGKILL every second",
        "DEATHS",
        "REQUESTS",
        "BROKEN",
        "FAILED",
        "EVENTS-",
        "EVENTS+",
        "SLOWEST ms"
    );
    rows.iter().for_each(Row::print);
    Ok(())
}
