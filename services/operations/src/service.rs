//! The actor: starts, watches and cancels work, and picks up what a crash left.

use crate::board::Board;
use crate::config::Config;
use crate::run::{Run, Turns};
use crate::store::{Record, Store, described, journaled};
use crate::work;
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Ctx, Open, Reply, Routes, Streaming, items, on_disk};
use contracts::operations::{Cancel, Get, List, Operation, Start, State, Watch, Work};
use contracts::{Error, OperationId, Result};
use futures_util::stream;
use std::{cell::RefCell, collections::HashMap, rc::Rc};
use tokio::sync::oneshot;

/// Operations under way, by id.
type Running = Rc<RefCell<HashMap<OperationId, Live>>>;

struct Live {
    board: Board,
    cancel: Option<oneshot::Sender<()>>,
}

/// Answers `operations`.
pub(crate) struct OperationsService {
    hands: Hands,
}

/// What it takes to begin work. Clones share it.
#[derive(Clone)]
struct Hands {
    store: Store,
    bus: Bus,
    config: Rc<Config>,
    running: Running,
    turns: Turns,
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
            turns: Turns::default(),
        };
        for record in interrupted {
            actix::spawn(hands.clone().pick_up(record));
        }
        Ok(Self { hands })
    }
}

impl Actor for OperationsService {
    type Context = Context<Self>;
}

/// Which messages are answered.
pub(crate) fn routes() -> Routes<OperationsService> {
    Routes::default()
        .on::<Start>()
        .on::<Get>()
        .on::<List>()
        .stream::<Watch>()
        .on::<Cancel>()
}

impl Hands {
    /// Begins work again that a crash interrupted, or ends it when that cannot be.
    async fn pick_up(self, record: Record) {
        let id = record.operation.id.clone();
        let resumed = match record.work {
            Some(_) => self.store.resumed(id.clone()).await,
            None => Ok(record),
        };
        match resumed {
            Ok(Record {
                work: Some(work),
                namespace,
                operation,
            }) => {
                let ctx = Ctx::new(namespace).with_operation(id);
                self.begin(ctx, work, operation);
            }
            Ok(Record { operation, .. }) => {
                let why = "was interrupted, and neither its credentials nor its archive are ever written down; start it again";
                let error =
                    Error::aborted(format!("{} {}: {why}", operation.kind, operation.subject));
                self.end(&Board::new(operation), Err(error), State::Failed)
                    .await;
            }
            Err(error) => tracing::error!(%id, %error, "interrupted operation"),
        }
    }

    fn begin(&self, ctx: Ctx, work: Work, operation: Operation) {
        let (cancel, cancelled) = oneshot::channel();
        let (id, attempt) = (operation.id.clone(), operation.resumed);
        let board = Board::new(operation);
        self.running.borrow_mut().insert(
            id.clone(),
            Live {
                board: board.clone(),
                cancel: Some(cancel),
            },
        );
        let run = Run::new(
            self.bus.clone(),
            board.clone(),
            self.config.clone(),
            ctx,
            self.turns.clone(),
            attempt,
        );
        let hands = self.clone();
        actix::spawn(async move {
            let (result, failed) = tokio::select! {
                result = work::perform(&run, work) => (result, State::Failed),
                Ok(()) = cancelled => {
                    work::abandon(&run).await;
                    (Err(Error::cancelled(format!("operation {id}: cancelled"))), State::Cancelled)
                }
            };
            hands.end(&board, result, failed).await;
            hands.running.borrow_mut().remove(&id);
        });
    }

    /// Journals the end, then shows it: nobody sees an end that a crash could take back.
    async fn end(
        &self,
        board: &Board,
        result: Result<contracts::operations::Outcome>,
        failed: State,
    ) {
        let mut operation = board.now();
        match result {
            Ok(outcome) => (operation.state, operation.result) = (State::Done, Some(outcome)),
            Err(error) => (operation.state, operation.error) = (failed, Some(error)),
        }
        match self.store.end(operation.clone(), self.config.keep).await {
            Ok(ended) => board.end(ended),
            Err(error) => {
                tracing::error!(id = %operation.id, %error, "end of an operation");
                board.end(Operation {
                    state: State::Failed,
                    error: Some(error),
                    result: None,
                    ..operation
                });
            }
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
            let begun = hands.store.begin(
                ctx.namespace.clone(),
                ctx.operation.clone(),
                journaled(&work),
                kind,
                subject,
            );
            let (record, new) = begun.await?;
            if new {
                hands.begin(ctx, work, record.operation.clone());
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
            let asked = hands
                .running
                .borrow_mut()
                .get_mut(&call.body.id)
                .and_then(|live| Some((live.board.clone(), live.cancel.take()?)));
            if let Some((board, cancel)) = asked {
                // It may have ended meanwhile; what is shown says so.
                let _ = cancel.send(());
                return Ok(ended(&board).await);
            }
            Ok(hands.store.get(&call.body.id)?.operation)
        })
    }
}

/// Waits until an operation has ended.
async fn ended(board: &Board) -> Operation {
    use futures_util::StreamExt;
    let mut last = board.now();
    let mut watching = std::pin::pin!(board.watch());
    while let Some(Ok(operation)) = watching.next().await {
        last = operation;
    }
    last
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
