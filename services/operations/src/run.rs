//! One operation under way: whom it may call, what keeps its results, and how it ends.

use crate::board::Board;
use crate::config::Config;
use bus::{Bus, Ctx};
use contracts::leases::{Create, Delete};
use contracts::{Code, Error, LeaseId, OperationId, Request, Result};
use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// How long one step may take before the operation gives up on it: a step waits for a restarting plugin, not for ever.
const STEP: Duration = Duration::from_secs(120);
/// How long a stream may stay open: longer than any image takes.
const STREAM: Duration = Duration::from_secs(24 * 3600);
/// How long a lease outlives an operation that nobody finishes. Source: containerd, default lease expiry.
const LEASE: u64 = 24 * 3600;

/// Work on the same thing waits here for its turn: the second one then finds it done.
pub(crate) type Turns = Rc<RefCell<HashMap<String, Arc<Mutex<()>>>>>;

/// What the steps of one operation share.
pub(crate) struct Run {
    pub(crate) bus: Bus,
    pub(crate) board: Board,
    pub(crate) config: Rc<Config>,
    /// How often it was begun again: steps whose effect an earlier attempt may have undone carry it in their name.
    pub(crate) attempt: u32,
    ctx: Ctx,
    turns: Turns,
}

impl Run {
    pub(crate) fn new(
        bus: Bus,
        board: Board,
        config: Rc<Config>,
        ctx: Ctx,
        turns: Turns,
        attempt: u32,
    ) -> Self {
        Self {
            bus,
            board,
            config,
            attempt,
            ctx,
            turns,
        }
    }

    /// The context of a step: same call, same operation id, in every attempt.
    pub(crate) fn ctx(&self) -> Ctx {
        self.ctx.clone().with_deadline(STEP)
    }

    /// The context of a step that must be done anew in every attempt.
    pub(crate) fn anew(&self) -> Ctx {
        self.ctx
            .step(&format!("attempt {}", self.attempt))
            .with_deadline(STEP)
    }

    /// The context of a stream.
    pub(crate) fn stream(&self) -> Ctx {
        self.ctx.clone().with_deadline(STREAM)
    }

    /// Calls the one plugin that answers.
    pub(crate) async fn call<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.bus.call(&self.ctx(), request).await
    }

    /// Calls a snapshot driver by name.
    pub(crate) async fn call_at_driver<R: Request>(
        &self,
        driver: &str,
        request: R,
    ) -> Result<R::Reply> {
        self.bus.call_named(driver, &self.ctx(), request).await
    }

    /// The operation's id.
    pub(crate) fn id(&self) -> &OperationId {
        &self.ctx.operation
    }

    /// The lease of this operation, whether it was made or not.
    pub(crate) fn lease(&self) -> Result<LeaseId> {
        LeaseId::new(format!("operation-{}", self.ctx.operation))
    }

    /// The same operation, with `lease` keeping what it makes.
    pub(crate) fn held_by(&self, lease: &LeaseId) -> Self {
        let ctx = self.ctx.clone().with_lease(Some(lease.clone()));
        Self {
            ctx,
            bus: self.bus.clone(),
            board: self.board.clone(),
            config: self.config.clone(),
            turns: self.turns.clone(),
            attempt: self.attempt,
        }
    }

    /// Holds whatever this operation makes from now on, until [`Run::release`] or a day later.
    pub(crate) async fn hold(&self) -> Result<LeaseId> {
        let id = self.lease()?;
        let create = Create {
            id: Some(id.clone()),
            expires_in: Some(LEASE),
            ..Create::default()
        };
        match self.bus.call(&self.anew(), create).await {
            Err(error) if !error.is(Code::AlreadyExists) => Err(error),
            _ => Ok(id),
        }
    }

    /// Lets go. What nothing refers to is collected; a lease that cannot be released ends by itself.
    pub(crate) async fn release(&self, id: LeaseId) {
        if let Err(error) = self.bus.call(&self.anew(), Delete { id: id.clone() }).await
            && !error.is(Code::NotFound)
        {
            tracing::warn!(lease = %id, %error, "lease ends by itself");
        }
    }

    /// Waits until nobody else works on `what`.
    pub(crate) async fn turn(&self, what: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.borrow_mut();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(what.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}

/// Takes "it is not there" for an answer.
pub(crate) fn maybe<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is(Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Undoes as much as can be undone, and says what could not.
pub(crate) fn undone(what: &str, result: Result<(), Error>) {
    match result {
        Err(error) if !error.is(Code::NotFound) => {
            tracing::warn!(what, %error, "could not be undone; the collector will find it")
        }
        _ => {}
    }
}
