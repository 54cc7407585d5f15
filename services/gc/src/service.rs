//! The actor: one collection at a time, by request and by the clock.

use crate::collector::Collector;
use crate::config::Config;
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Ctx, Reply, Routes};
use contracts::gc::{Collect, Collected, Last, Plan, Why};
use contracts::{Code, Error, Result, Timestamp};
use std::{cell::Cell, cell::RefCell, rc::Rc, time::Duration};
use tokio::{sync::Mutex, task::JoinHandle};

/// How often a collection begins again because an owner restarted.
const TRIES: u32 = 3;
/// How long a collection by the clock may take.
const LONG: Duration = Duration::from_secs(3600);
/// The clock waits so many times as long as the last collection took: collecting never becomes the main work.
const REST: u32 = 50;

/// Answers `gc`.
pub(crate) struct GcService {
    hands: Hands,
    clock: Option<JoinHandle<()>>,
}

/// What a collection needs. Clones share it.
#[derive(Clone)]
struct Hands {
    bus: Bus,
    /// Held by the collection under way.
    turn: Rc<Mutex<()>>,
    last: Rc<RefCell<Option<Collected>>>,
    generation: Rc<Cell<u64>>,
}

impl GcService {
    pub(crate) fn new(bus: Bus, config: &Config) -> Self {
        let hands = Hands {
            bus,
            turn: Rc::default(),
            last: Rc::default(),
            generation: Rc::default(),
        };
        let interval = Duration::from_secs(config.interval);
        // A task and not one of the actor's own, which would keep the actor alive after its last caller.
        let clock = (!interval.is_zero())
            .then(|| tokio::task::spawn_local(hands.clone().by_the_clock(interval)));
        Self { hands, clock }
    }
}

impl Drop for GcService {
    fn drop(&mut self) {
        self.clock.iter().for_each(JoinHandle::abort);
    }
}

impl Actor for GcService {
    type Context = Context<Self>;
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

    /// Marks, and does `then` with what is marked; all of it again when an owner restarted and forgot the generation.
    async fn marked<T>(
        &self,
        ctx: &Ctx,
        then: impl AsyncFn(&mut Collector<'_>) -> Result<T>,
    ) -> Result<T> {
        let _turn = self.turn.lock().await;
        let mut tries = 0;
        loop {
            let ctx = ctx.step(&format!("try {tries}"));
            let mut collector = Collector::new(&self.bus, &ctx, self.next());
            let result = match collector.mark().await {
                Ok(()) => then(&mut collector).await,
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.is(Code::FailedPrecondition) && tries < TRIES => tries += 1,
                result => return result,
            }
        }
    }

    async fn collect(&self, ctx: &Ctx) -> Result<Collected> {
        let swept = self.marked(ctx, async |collector| collector.sweep(false).await);
        let collected = swept.await.map_err(|error| error.context("collection"))?;
        self.last.replace(Some(collected.clone()));
        Ok(collected)
    }

    async fn plan(&self, ctx: &Ctx) -> Result<Collected> {
        self.marked(ctx, async |collector| collector.sweep(true).await)
            .await
    }

    async fn why(&self, ctx: &Ctx, why: Why) -> Result<Vec<contracts::collect::Edge>> {
        let chain = self.marked(ctx, async |collector| Ok(collector.marks.why(&why.node)));
        let chain = chain.await?;
        if chain.is_empty() {
            return Err(Error::not_found(format!(
                "{:?}: nothing keeps it, or it is not there",
                why.node.resource
            )));
        }
        Ok(chain)
    }

    /// Larger than any before, also after a restart: the clock in microseconds, unless that went back.
    fn next(&self) -> u64 {
        let clock = Timestamp::now().0.unsigned_abs() / 1000;
        self.generation.set(clock.max(self.generation.get() + 1));
        self.generation.get()
    }
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
