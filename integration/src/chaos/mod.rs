//! A node under load while its parts die: clients at full speed, a hand that kills, and a verdict.
//!
//! | file | what it knows |
//! |---|---|
//! | `random.rs` | numbers that a seed repeats |
//! | `keyed.rs` | one request that is repeated with its key until it has an answer |
//! | `load.rs` | what one client does, and which events its acknowledged effects must have |
//! | `hand.rs` | kills or stops plugins, one after the other, and measures how long they are away |
//! | `reader.rs` | a reader of all events that comes back whenever its stream breaks |
//! | `verdict.rs` | what was lost, doubled, refused or left behind |
//!
//! A request that breaks with the gateway's death is not a failed request: the client repeats it with the same
//! `Idempotency-Key` and must get the one true answer. Any answer that a calm node would not give is a failure.

mod hand;
mod keyed;
mod load;
mod random;
mod reader;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Method;
use serde_json::json;

use crate::Outcome;
use crate::image::sample;
use crate::node::{Node, Setup};
use crate::registry::Registry;

pub use hand::{Away, plugins};
pub use keyed::{Answered, Keyed};
pub use random::Random;
use reader::Reader;
pub use verdict::{Told, Verdict, told};

/// What the hand does to a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// Nothing: how a calm node answers under the same load.
    Nothing,
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT 0.5 to 3 s later unless somebody has ended the process meanwhile.
    Stop,
    /// SIGKILL of the supervisor, whose plugins die with it; the harness starts it again.
    Supervisor,
}

/// One round of chaos.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Repeats the choices of clients and hand, as far as timing allows.
    pub seed: u64,
    /// How long clients work.
    pub length: Duration,
    /// How many clients work at a time.
    pub clients: usize,
    /// From one blow to the next.
    pub every: Duration,
    /// What is done to plugins.
    pub blow: Blow,
    /// What else the node is started with.
    pub setup: Setup,
}

impl Plan {
    /// Four clients, a blow every second.
    pub fn new(blow: Blow, seed: u64, length: Duration) -> Self {
        Self {
            seed,
            length,
            clients: 4,
            every: Duration::from_secs(1),
            blow,
            setup: Setup::default(),
        }
    }
}

/// A seed nobody chose: `GANTRY_SEED` repeats one that failed.
pub fn seed() -> u64 {
    let given = std::env::var("GANTRY_SEED").ok();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    given
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| now.map_or(1, |now| u64::from(now.subsec_nanos())))
}

/// Says when everybody goes home. Clones are one bell.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<AtomicBool>);

impl Bell {
    /// Rings.
    pub fn ring(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Tells whether it has rung.
    pub fn rung(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lives through one round on a node of its own and judges it. Errors: the node could not be set up, or never came back.
pub async fn run(plan: Plan) -> Outcome<Verdict> {
    println!(
        "chaos: {:?} with seed {}, GANTRY_SEED repeats it",
        plan.blow, plan.seed
    );
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let mut node = Node::start_with(plan.setup.clone()).await?;
    node.pull(&image).await?;
    let scene = load::Scene::prepare(&node, &image, plan.clients).await?;

    let (bell, reading) = (Bell::default(), Bell::default());
    let reader = tokio::spawn(Reader::new(node.client()).read(reading.clone()));
    let clients: Vec<_> = (0..plan.clients)
        .map(|number| tokio::spawn(load::work(scene.clone(), number, plan.seed, bell.clone())))
        .collect();
    let away = hand::strike(&mut node, &plan).await;
    bell.ring();
    let mut verdict = Verdict::default();
    for client in clients {
        verdict.heard(client.await?);
    }
    verdict.away = away?;
    verdict.judge(&node, &scene).await?;
    reading.ring();
    // One last event wakes the reader.
    node.post("/v1/events", json!({"topic": "/chaos/end"}))
        .await?
        .ok()?;
    verdict.read(reader.await??);
    scene.clear(&node).await?;
    verdict.left(&node).await?;
    let stopped = match node.stop_and_keep().await {
        Ok(folder) => drop_folder(folder),
        Err(error) => Err(error),
    };
    verdict
        .problems
        .extend(stopped.err().map(|error| error.to_string()));
    Ok(verdict)
}

fn drop_folder(folder: tempfile::TempDir) -> Outcome {
    if std::env::var_os("GANTRY_KEEP").is_some() {
        println!("kept {}", folder.keep().display());
    }
    Ok(())
}

/// Every way a request of the load may end well.
pub(crate) fn is_fine(method: &Method, status: u16) -> bool {
    matches!((method.as_str(), status), (_, 200 | 201 | 204))
}
