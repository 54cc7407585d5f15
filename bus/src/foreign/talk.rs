//! The conversation with a program, over any two streams: calls of others go in, its answers come out, and its own
//! calls go to the bus.
//!
//! What waits is bounded on both sides. At most [`WINDOW`] calls are unanswered at the program, those that nobody waits
//! for any more included: the next wait for their turn. At most [`OWN`] of its calls are under way: beyond, its stdout
//! is not read. A program that does not read its stdin therefore slows down its callers, and costs nobody else.

#[cfg(test)]
mod tests;

use super::line::{self, Own, Said};
use crate::actor::{Answer, Dispatch, Encoded, Incoming, Response};
use crate::json::Methods;
use crate::{Bus, Ctx};
use contracts::{Error, Kind, Result};
use serde_json::Value;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufRead, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// Most calls that a program has to answer at a time.
pub(super) const WINDOW: usize = 256;
/// Most calls that a program makes at a time.
pub(super) const OWN: usize = 64;
/// Lines that may wait for the program; who wants to say more waits.
const QUEUE: usize = 16;

/// What the host wants to know of what the program said.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// It answers calls from now on.
    Ready,
    /// It needs so much longer until it is ready.
    Wait(Duration),
    /// It answered a ping.
    Pong(u64),
}

/// Both halves of the conversation. The streams are moved by [`Talk::speak`] and [`Talk::hear`].
pub(super) struct Talk {
    bus: Bus,
    methods: Methods,
    next: Cell<u64>,
    asked: RefCell<HashMap<u64, Asked>>,
    room: Arc<Semaphore>,
    own: RefCell<HashMap<u64, oneshot::Sender<()>>>,
    own_room: Arc<Semaphore>,
    pings: RefCell<BTreeSet<u64>>,
    is_ready: Cell<bool>,
    lines: mpsc::Sender<String>,
    /// What must not wait behind calls: pings, cancellations, the stop. As many as there are calls, and a few.
    urgent: mpsc::UnboundedSender<String>,
}

/// What [`Talk::speak`] takes its lines from.
pub(super) struct Lines {
    waiting: mpsc::Receiver<String>,
    urgent: mpsc::UnboundedReceiver<String>,
}

/// A call that the program has to answer. Without a waiter, nobody wants the answer any more.
struct Asked {
    waiter: Option<oneshot::Sender<Result<Value>>>,
    _room: OwnedSemaphorePermit,
}

/// Tells the program when the caller has gone.
struct Withdraw {
    talk: Rc<Talk>,
    id: u64,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        let mut asked = self.talk.asked.borrow_mut();
        let waiter = asked.get_mut(&self.id).and_then(|call| call.waiter.take());
        if waiter.is_some() {
            self.talk.say(line::cancel(self.id));
        }
    }
}

impl Talk {
    pub(super) fn new(bus: Bus) -> (Rc<Self>, Lines) {
        let (lines, waiting) = mpsc::channel(QUEUE);
        let (urgent, urgently) = mpsc::unbounded_channel();
        let talk = Self {
            bus,
            methods: Methods::default(),
            next: Cell::new(1),
            asked: RefCell::default(),
            room: Arc::new(Semaphore::new(WINDOW)),
            own: RefCell::default(),
            own_room: Arc::new(Semaphore::new(OWN)),
            pings: RefCell::default(),
            is_ready: Cell::new(false),
            lines,
            urgent,
        };
        let lines = Lines {
            waiting,
            urgent: urgently,
        };
        (Rc::new(talk), lines)
    }

    /// Says a line as soon as the program reads.
    pub(super) fn say(&self, line: String) {
        // Without anybody who speaks, the program has ended.
        let _ = self.urgent.send(line);
    }

    /// Asks whether it lives; [`News::Pong`] is the answer.
    pub(super) fn ping(&self, number: u64) {
        self.pings.borrow_mut().insert(number);
        self.say(line::ping(number));
    }

    /// Reads what the program says until it says no more. Errors: what was wrong with what it said.
    pub(super) async fn hear(
        self: &Rc<Self>,
        mut from: impl AsyncBufRead + Unpin,
        news: impl Fn(News),
    ) -> Result<(), String> {
        while let Some(line) = line::next(&mut from).await? {
            match line::understand(&line)? {
                Said::Ready if self.is_ready.replace(true) => {
                    return Err("it said ready twice".into());
                }
                Said::Ready => news(News::Ready),
                Said::Wait(longer) => news(News::Wait(longer)),
                Said::Pong(number) if self.pings.borrow_mut().remove(&number) => {
                    news(News::Pong(number));
                }
                Said::Pong(number) => {
                    return Err(format!("it said pong {number}, which nobody asked"));
                }
                Said::Answer(id, result) => self.answered(id, result)?,
                Said::Call(own) => self.begin(*own).await?,
                // It may have been answered in the meantime.
                Said::Cancel(id) => drop(self.own.borrow_mut().remove(&id)),
            }
        }
        Ok(())
    }

    fn answered(&self, id: u64, result: Result<Value>) -> Result<(), String> {
        let asked = self.asked.borrow_mut().remove(&id);
        match asked {
            Some(Asked { waiter, .. }) => {
                // Without a waiter, or with one that has just gone, it came too late.
                let _ = waiter.map(|waiter| waiter.send(result));
                Ok(())
            }
            None => Err(format!(
                "it answered call {id}, which was not asked or is answered"
            )),
        }
    }

    /// Passes a call on to the program and waits for its answer until the deadline.
    async fn ask(self: Rc<Self>, call: Incoming) -> Result<Encoded> {
        let Incoming {
            method,
            ctx,
            body,
            fds,
        } = call;
        if !fds.is_empty() {
            return Err(Error::unimplemented(format!(
                "{method}: the request carries file descriptors, which JSON lines cannot"
            )));
        }
        let request = self.methods.asked(&method, &body)?;
        let request: Value = serde_json::from_str(&request)
            .map_err(|e| Error::invalid(format!("{method}: not JSON: {e}")))?;
        let asked = self.clone().put(&method, &request, &ctx);
        let answer = match timeout_at(ctx.deadline, asked).await {
            Ok(answer) => answer?,
            Err(_) => return Err(self.too_late(&method)),
        };
        Ok((
            self.methods.answered(&method, &answer.to_string())?,
            Vec::new(),
        ))
    }

    async fn put(self: Rc<Self>, method: &str, request: &Value, ctx: &Ctx) -> Result<Value> {
        let ended = || Error::unavailable(format!("{method}: the program has ended"));
        let room = self.room.clone().acquire_owned().await;
        let _room = room.map_err(|_| ended())?;
        let place = self.lines.reserve().await.map_err(|_| ended())?;
        let (waiter, answer) = oneshot::channel();
        let id = self.next.replace(self.next.get() + 1);
        let waiter = Some(waiter);
        self.asked.borrow_mut().insert(id, Asked { waiter, _room });
        let talk = self.clone();
        let _withdraw = Withdraw { talk, id };
        let left = ctx.deadline.saturating_duration_since(Instant::now());
        place.send(line::call(id, method, request, ctx, left));
        answer.await.map_err(|_| ended())?
    }

    fn too_late(&self, method: &str) -> Error {
        let plugin = self.bus.plugin();
        let why = match self.room.available_permits() {
            0 => format!("its program has {WINDOW} calls to answer"),
            _ => "its program did not answer in time".into(),
        };
        Error::deadline(format!("{method}: {plugin}: {why}"))
            .caused_by(plugin.clone(), vec![plugin.clone()])
    }

    /// Begins a call of the program, once there is room.
    async fn begin(self: &Rc<Self>, own: Own) -> Result<(), String> {
        if self.own.borrow().contains_key(&own.id) {
            return Err(format!("it gave two calls the id {}", own.id));
        }
        let Ok(room) = self.own_room.clone().acquire_owned().await else {
            return Ok(());
        };
        let (stop, stopped) = oneshot::channel();
        self.own.borrow_mut().insert(own.id, stop);
        let talk = self.clone();
        actix::spawn(async move {
            let _room = room;
            tokio::select! {
                biased;
                // First, for the next call may have its number already.
                _ = stopped => {}
                () = talk.run(own) => {}
            }
        });
        Ok(())
    }

    async fn run(&self, own: Own) {
        let (id, method) = (own.id, own.method.clone());
        let (ctx, request) = (context(&own), own.request.to_string());
        let last = match self.methods.kind(&method) {
            Some(Kind::Stream) => match self.stream(id, &method, &ctx, &request).await {
                Ok(()) => line::end(id),
                Err(error) => line::answer(id, Err(error)),
            },
            _ => {
                let call = self.methods.call(&self.bus, None, &ctx, &method, &request);
                line::answer(id, call.await)
            }
        };
        if let Ok(place) = self.lines.reserve().await {
            // From the answer on, the program may use the number again.
            let stop = self.own.borrow_mut().remove(&id);
            place.send(last);
            drop(stop);
        }
    }

    async fn stream(&self, id: u64, method: &str, ctx: &Ctx, request: &str) -> Result<()> {
        let mut items = self.methods.open(&self.bus, ctx, method, request).await?;
        while let Some(item) = items.next().await {
            let line = line::item(id, item?);
            if self.lines.send(line).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Without an operation id of the program, a repetition by a successor is another call.
fn context(own: &Own) -> Ctx {
    let mut ctx = Ctx::new(own.namespace.clone()).with_lease(own.lease.clone());
    if let Some(operation) = &own.operation {
        ctx = ctx.with_operation(operation.clone());
    }
    match own.deadline {
        Some(left) => ctx.with_deadline(left),
        None => ctx,
    }
}

impl Lines {
    /// Writes what is to be said until the program stops reading. Without anything that waits, all is flushed.
    pub(super) async fn speak(mut self, mut to: impl AsyncWrite + Unpin) {
        loop {
            let line = tokio::select! {
                biased;
                Some(line) = self.urgent.recv() => line,
                Some(line) = self.waiting.recv() => line,
                else => return,
            };
            // A program that has closed its stdin is about to end, or will answer no ping.
            if to.write_all(line.as_bytes()).await.is_err() || to.flush().await.is_err() {
                return;
            }
        }
    }
}

/// A program as somebody who answers calls.
pub(super) struct Answers(pub(super) Rc<Talk>);

impl Dispatch for Answers {
    fn dispatch(&self, call: Incoming) -> Answer {
        let kind = self.0.methods.kind(&call.method);
        if kind == Some(Kind::Stream) {
            let method = call.method;
            return Answer(Response::Many(Box::pin(async move {
                Err(Error::unimplemented(format!(
                    "{method}: a foreign program answers no streams"
                )))
            })));
        }
        // Nobody knows whether a method without a contract changes something: it is treated as if.
        let kind = kind.unwrap_or(Kind::Write);
        Answer(Response::One(kind, Box::pin(self.0.clone().ask(call))))
    }
}
