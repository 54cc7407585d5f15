//! The actor: starts, watches and cancels work, and picks up what a crash left.

mod integrity;

pub(crate) use integrity::fsck;

use crate::board::Board;
use crate::config::Config;
use crate::run::{Run, Shared};
use crate::store::{Begin, Keep, Record, Store, described, journaled};
use crate::work;
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Ctx, Open, Reply, Routes, Streaming, items, on_disk};
use contracts::integrity::{Check, Mend};
use contracts::operations::{
    Cancel, Claim, Get, List, Operation, Outcome, Scrub, Settle, Start, State, Watch, Work,
};
use contracts::{Code, Error, OperationId, Result, Timestamp};
use futures_util::stream;
use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::sync::oneshot;

/// For how long every ended operation is kept, in seconds. Source: API.md, `Idempotency-Key`.
const KEPT: i64 = 24 * 3600;
/// Pause before an end is journaled again that could not be.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the clock is looked at: a week needs no better.
const GLANCE: Duration = Duration::from_secs(60);

/// Operations under way, by id.
type Running = Rc<RefCell<HashMap<OperationId, Live>>>;

struct Live {
    board: Board,
    cancel: Option<oneshot::Sender<()>>,
}

/// An operation that can be watched and cancelled, and is about to be carried out.
struct Entered {
    board: Board,
    cancelled: oneshot::Receiver<()>,
}

/// Answers `operations`.
pub(crate) struct OperationsService {
    hands: Hands,
    /// What the clock of the scrubs works with: when this goes, it stops.
    _clock: Rc<Hands>,
}

/// What it takes to carry out work. Clones share it.
#[derive(Clone)]
struct Hands {
    store: Store,
    bus: Bus,
    config: Rc<Config>,
    running: Running,
    shared: Rc<Shared>,
}

impl OperationsService {
    /// Errors: the settings are wrong, or the journal cannot be read.
    pub(crate) fn new(store: Store, bus: Bus, config: Config) -> Result<Self> {
        ledger::deliver(store.ledger(), &bus);
        let interrupted = store.interrupted()?;
        let config = Rc::new(config.check()?);
        let hands = Hands {
            store,
            bus,
            config,
            running: Running::default(),
            shared: Rc::default(),
        };
        for mut record in interrupted {
            record.operation.resumed += u32::from(record.work.is_some());
            let entered = hands.enter(&record.operation);
            actix::spawn(hands.clone().pick_up(record, entered));
        }
        let clock = Rc::new(hands.clone());
        if clock.config.scrub_hours > 0 {
            actix::spawn(now_and_then(Rc::downgrade(&clock)));
        }
        let _clock = clock;
        Ok(Self { hands, _clock })
    }
}

/// Looks at the clock as long as the service is there.
async fn now_and_then(clock: Weak<Hands>) {
    loop {
        tokio::time::sleep(GLANCE).await;
        let Some(hands) = clock.upgrade().map(|clock| (*clock).clone()) else {
            return;
        };
        hands.scrub_when_due().await;
    }
}

impl Actor for OperationsService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<OperationsService> {
    Routes::default()
        .on::<Check>()
        .on::<Mend>()
        .on::<Start>()
        .on::<Get>()
        .on::<List>()
        .stream::<Watch>()
        .on::<Cancel>()
        .on::<Claim>()
        .on::<Settle>()
}

impl Hands {
    /// From now on the operation can be watched and cancelled.
    fn enter(&self, operation: &Operation) -> Entered {
        let (cancel, cancelled) = oneshot::channel();
        let board = Board::new(operation.clone());
        let live = Live {
            board: board.clone(),
            cancel: Some(cancel),
        };
        self.running.borrow_mut().insert(operation.id.clone(), live);
        Entered { board, cancelled }
    }

    /// Begins work again that a crash interrupted, or ends it when that cannot be.
    async fn pick_up(self, mut record: Record, entered: Entered) {
        let work = match record.work.take() {
            Some(work) => {
                let id = record.operation.id.clone();
                let resumed = self.store.resumed(id).await;
                faults::point("operations.resume.counted");
                resumed.map(|_| work)
            }
            None => {
                let Operation { kind, subject, .. } = &record.operation;
                let why = "was interrupted, and neither its credentials nor its archive are ever written down; start it again";
                Err(Error::aborted(format!("{kind} {subject}: {why}")))
            }
        };
        self.carry_out(record, work, entered).await;
    }

    /// Begins a scrub when the last one is as long ago as the settings say.
    async fn scrub_when_due(self) {
        let every = 3600 * i64::from(self.config.scrub_hours);
        let scrubbed = async {
            let due = self.store.last_scrub().await?.plus_seconds(every);
            match due <= Timestamp::now() {
                true => self.clone().scrub(due).await,
                false => Ok(()),
            }
        };
        if let Err(error) = scrubbed.await {
            tracing::warn!(%error, "when the next scrub is due");
        }
    }

    /// Carries out the scrub that was due then, once.
    async fn scrub(self, due: Timestamp) -> Result<()> {
        let scrub = Work::Scrub(Scrub {
            deep: true,
            ..Scrub::default()
        });
        let (kind, subject) = described(&scrub);
        let begin = Begin {
            id: OperationId::new(format!("scrub-{}", due.0))?,
            namespace: None,
            lease: None,
            work: journaled(&scrub),
            kind,
            subject,
        };
        if let Some(record) = self.store.begin_scrub(begin).await? {
            let entered = self.enter(&record.operation);
            self.carry_out(record, Ok(scrub), entered).await;
        }
        Ok(())
    }

    /// Does the work, or cleans up after it; then journals and shows how it ended.
    async fn carry_out(self, record: Record, work: Result<Work>, entered: Entered) {
        let Entered { board, cancelled } = entered;
        let id = record.operation.id.clone();
        let ctx = Ctx::new(record.namespace)
            .with_operation(id.clone())
            .with_lease(record.lease);
        let run = Run::new(
            self.bus.clone(),
            board.clone(),
            self.config.clone(),
            self.store.clone(),
            ctx,
            self.shared.clone(),
            record.operation.resumed,
        );
        let (result, failed) = match work {
            Ok(work) => tokio::select! {
                result = work::perform(&run, work) => (result, State::Failed),
                Ok(()) = cancelled => {
                    work::abandon(&run, &record.operation, true).await;
                    (Err(Error::cancelled(format!("operation {id}: cancelled"))), State::Cancelled)
                }
            },
            Err(error) => {
                work::abandon(&run, &record.operation, false).await;
                (Err(error), State::Failed)
            }
        };
        faults::point("operations.end.worked");
        self.end(&board, result, failed).await;
        self.running.borrow_mut().remove(&id);
    }

    /// Journals the end, then shows it: nobody sees an end that a crash could take back.
    async fn end(&self, board: &Board, result: Result<Outcome>, failed: State) {
        let mut operation = board.now();
        match result {
            Ok(outcome) => (operation.state, operation.result) = (State::Done, Some(outcome)),
            Err(error) => (operation.state, operation.error) = (failed, Some(error)),
        }
        let keep = Keep {
            count: self.config.keep,
            least: KEPT,
        };
        loop {
            let error = match self.store.end(operation.clone(), keep).await {
                Ok(ended) => {
                    faults::point("operations.end.journaled");
                    return board.end(ended);
                }
                Err(error) => error,
            };
            tracing::error!(id = %operation.id, %error, "end of an operation");
            // What cannot be journaled has failed. That is shown at once, and journaled when there is room again.
            operation.state = State::Failed;
            operation.result = None;
            operation.error = Some(error.clone());
            board.end(operation.clone());
            if error.is(Code::NotFound) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn live(&self, id: &OperationId) -> Option<Board> {
        self.running.borrow().get(id).map(|live| live.board.clone())
    }
}

impl Handler<Call<Start>> for OperationsService {
    type Result = Reply<Start>;
    fn handle(&mut self, call: Call<Start>, _: &mut Context<Self>) -> Self::Result {
        let hands = self.hands.clone();
        Box::pin(async move {
            let (ctx, work) = (call.ctx, call.body.work);
            let (kind, subject) = described(&work);
            let begin = Begin {
                id: ctx.operation,
                namespace: ctx.namespace,
                lease: ctx.lease,
                work: journaled(&work),
                kind,
                subject,
            };
            let (record, new) = hands.store.begin(begin).await?;
            if new {
                faults::point("operations.start.journaled");
                let entered = hands.enter(&record.operation);
                actix::spawn(hands.clone().carry_out(record.clone(), Ok(work), entered));
            }
            Ok(hands
                .live(&record.operation.id)
                .map_or(record.operation, |board| board.now()))
        })
    }
}

impl Handler<Call<Get>> for OperationsService {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Self::Result {
        if let Some(board) = self.hands.live(&call.body.id) {
            return Box::pin(async move { Ok(board.now()) });
        }
        let store = self.hands.store.clone();
        on_disk(move || Ok::<_, Error>(store.get(&call.body.id)?.operation))
    }
}

impl Handler<Call<List>> for OperationsService {
    type Result = Reply<List>;
    fn handle(&mut self, call: Call<List>, _: &mut Context<Self>) -> Self::Result {
        let hands = self.hands.clone();
        Box::pin(async move {
            let mut page = hands.store.list(call.ctx.namespace.as_ref(), &call.body)?;
            for operation in &mut page.items {
                if let Some(board) = hands.live(&operation.id) {
                    *operation = board.now();
                }
            }
            Ok(page)
        })
    }
}

impl Handler<Open<Watch>> for OperationsService {
    type Result = Streaming<Watch>;
    fn handle(&mut self, open: Open<Watch>, _: &mut Context<Self>) -> Self::Result {
        let (live, store) = (self.hands.live(&open.body.id), self.hands.store.clone());
        Box::pin(async move {
            match live {
                Some(board) => Ok(items(board.watch())),
                None => {
                    let ended = store.get(&open.body.id)?.operation;
                    Ok(items(stream::iter([Ok::<_, Error>(ended)])))
                }
            }
        })
    }
}

impl Handler<Call<Cancel>> for OperationsService {
    type Result = Reply<Cancel>;
    fn handle(&mut self, call: Call<Cancel>, _: &mut Context<Self>) -> Self::Result {
        let hands = self.hands.clone();
        Box::pin(async move {
            let live = hands
                .running
                .borrow_mut()
                .get_mut(&call.body.id)
                .map(|live| {
                    // Whoever asks again waits, too. It may have ended meanwhile; what is shown says so.
                    let _ = live.cancel.take().map(|cancel| cancel.send(()));
                    live.board.clone()
                });
            match live {
                Some(board) => Ok(board.ended().await),
                None => Ok(hands.store.get(&call.body.id)?.operation),
            }
        })
    }
}

impl Handler<Call<Claim>> for OperationsService {
    type Result = Reply<Claim>;
    fn handle(&mut self, call: Call<Claim>, _: &mut Context<Self>) -> Self::Result {
        let store = self.hands.store.clone();
        Box::pin(async move { store.claim(call.ctx.namespace, call.body).await })
    }
}

impl Handler<Call<Settle>> for OperationsService {
    type Result = Reply<Settle>;
    fn handle(&mut self, call: Call<Settle>, _: &mut Context<Self>) -> Self::Result {
        let store = self.hands.store.clone();
        Box::pin(async move { store.settle(call.ctx.namespace, call.body).await })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_method_of_the_contract_has_a_route() {
        assert!(
            super::routes()
                .missing::<contracts::operations::Operations>()
                .is_empty()
        );
    }
}
