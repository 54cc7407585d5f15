//! The actor: one collection at a time, by request and by the clock.

use crate::collector::Collector;
use crate::config::Config;
use actix::{Actor, AsyncContext, Context, Handler};
use bus::{Bus, Call, Ctx, Reply, Routes};
use contracts::gc::{Collect, Collected, Last, Plan, Why};
use contracts::{Code, Error, Result, Timestamp};
use std::{cell::RefCell, rc::Rc, time::Duration};
use tokio::sync::Mutex;

/// How often a collection begins again because an owner restarted.
const TRIES: u32 = 3;
/// How long a collection by the clock may take.
const LONG: Duration = Duration::from_secs(3600);
/// The clock waits so many times as long as the last collection took: collecting never becomes the main work.
const REST: u32 = 50;

/// Answers `gc`.
pub(crate) struct GcService {
    hands: Hands,
    interval: Duration,
}

/// What a collection needs. Clones share it.
#[derive(Clone)]
struct Hands {
    bus: Bus,
    /// Held by the collection under way.
    turn: Rc<Mutex<()>>,
    last: Rc<RefCell<Option<Collected>>>,
}

impl GcService {
    pub(crate) fn new(bus: Bus, config: &Config) -> Self {
        let hands = Hands {
            bus,
            turn: Rc::default(),
            last: Rc::default(),
        };
        Self {
            hands,
            interval: Duration::from_secs(config.interval),
        }
    }
}

impl Actor for GcService {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        if !self.interval.is_zero() {
            let clock = self.hands.clone().by_the_clock(self.interval);
            context.spawn(actix::fut::wrap_future(clock));
        }
    }
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<GcService> {
    Routes::default()
        .on::<Collect>()
        .on::<Plan>()
        .on::<Why>()
        .on::<Last>()
}

impl Hands {
    async fn by_the_clock(self, interval: Duration) {
        let mut pause = interval;
        loop {
            tokio::time::sleep(pause).await;
            let began = std::time::Instant::now();
            if let Err(error) = self.collect(&Ctx::new(None).with_deadline(LONG)).await {
                tracing::warn!(%error, "collection by the clock");
            }
            pause = interval.max(began.elapsed() * REST);
        }
    }

    async fn collect(&self, ctx: &Ctx) -> Result<Collected> {
        let _turn = self.turn.lock().await;
        let mut tries = 0;
        loop {
            let ctx = ctx.step(&format!("try {tries}"));
            let mut collector = Collector::new(&self.bus, &ctx, generation());
            let result = match collector.mark().await {
                Ok(()) => collector.sweep(false).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(collected) => {
                    self.last.replace(Some(collected.clone()));
                    return Ok(collected);
                }
                // An owner restarted and forgot the generation.
                Err(error) if error.is(Code::FailedPrecondition) && tries < TRIES => tries += 1,
                Err(error) => return Err(error.context("collection")),
            }
        }
    }

    async fn plan(&self, ctx: &Ctx) -> Result<Collected> {
        let _turn = self.turn.lock().await;
        let mut collector = Collector::new(&self.bus, ctx, generation());
        collector.mark().await?;
        collector.sweep(true).await
    }

    async fn why(&self, ctx: &Ctx, why: Why) -> Result<Vec<contracts::collect::Edge>> {
        let _turn = self.turn.lock().await;
        let mut collector = Collector::new(&self.bus, ctx, generation());
        collector.mark().await?;
        match collector.marks.why(&why.node) {
            chain if chain.is_empty() => Err(Error::not_found(format!(
                "{:?}: nothing keeps it, or it is not there",
                why.node.resource
            ))),
            chain => Ok(chain),
        }
    }
}

/// Larger than any before, also after a restart: the clock in microseconds.
fn generation() -> u64 {
    Timestamp::now().0.unsigned_abs() / 1000
}

impl Handler<Call<Collect>> for GcService {
    type Result = Reply<Collect>;
    fn handle(&mut self, call: Call<Collect>, _: &mut Context<Self>) -> Self::Result {
        let hands = self.hands.clone();
        Box::pin(async move { hands.collect(&call.ctx).await })
    }
}

impl Handler<Call<Plan>> for GcService {
    type Result = Reply<Plan>;
    fn handle(&mut self, call: Call<Plan>, _: &mut Context<Self>) -> Self::Result {
        let hands = self.hands.clone();
        Box::pin(async move { hands.plan(&call.ctx).await })
    }
}

impl Handler<Call<Why>> for GcService {
    type Result = Reply<Why>;
    fn handle(&mut self, call: Call<Why>, _: &mut Context<Self>) -> Self::Result {
        let hands = self.hands.clone();
        Box::pin(async move { hands.why(&call.ctx, call.body).await })
    }
}

impl Handler<Call<Last>> for GcService {
    type Result = Reply<Last>;
    fn handle(&mut self, _: Call<Last>, _: &mut Context<Self>) -> Self::Result {
        let last = self.hands.last.borrow().clone();
        Box::pin(async move { Ok(last) })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_of_the_contract_has_a_route() {
        assert!(super::routes().missing::<contracts::gc::Gc>().is_empty());
    }
}
