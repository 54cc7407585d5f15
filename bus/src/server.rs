//! One edge seen by the plugin that answers.
//!
//! Reading stops while too much is in flight, which the socket passes on to the caller: a slow owner slows its callers
//! down instead of growing. A well-behaved caller never lets it come so far (`link.rs` counts its calls), because a
//! reader that has stopped hears no cancellation either. A read or stream whose caller has gone is dropped, and a read
//! whose deadline has passed; a write runs to its end, because its effect may be half done and its record will answer
//! the repetition, which waits until then (`turns.rs`).

#[cfg(test)]
mod tests;

use crate::actor::{Dispatch, Encoded, Incoming, Response};
use crate::client::Ctx;
use crate::control::unpack;
use crate::envelope::{Body, CallFrame, Frame};
use crate::framing::{self, Packet, Reader};
use crate::turns::Turns;
use contracts::{Error, Fd, Kind, Result};
use futures_util::{StreamExt, future::LocalBoxFuture, stream::BoxStream};
use std::{
    cell::RefCell, collections::HashMap, collections::VecDeque, rc::Rc, sync::Arc, time::Duration,
};
use tokio::{
    net::UnixStream,
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

/// Room for what is in flight for one caller: each call takes 1, and 1 more for every [`SHARE`] bytes of its request.
/// Twice what a caller waits for at a time, because writes go on after their callers have gone.
const ROOM: usize = 2 * WINDOW;
/// With [`ROOM`] it bounds the requests of one caller to 64 MiB.
const SHARE: usize = 32 << 10;
/// Most calls that a caller waits for at a time, on one link; others wait for their turn.
pub(crate) const WINDOW: usize = 1024;
/// Packets that may wait for the socket.
const QUEUE: usize = 64;
/// Items that a stream may be ahead of its reader at first; the reader grants more as it consumes.
pub(crate) const FIRST_CREDIT: u32 = 16;

/// Calls that a caller may take back, by id.
type Running = Rc<RefCell<HashMap<u64, Stop>>>;

struct Stop {
    stop: oneshot::Sender<()>,
    credit: Arc<Semaphore>,
}

/// Answers the calls that come by `stream` until the other end is gone. Errors: what the other end sent that no caller
/// sends; the link is of no more use then.
///
/// `busy` counts the writes over all connections of the process, so that a drain can wait for them.
pub async fn serve(
    stream: UnixStream,
    dispatch: Rc<dyn Dispatch>,
    busy: Rc<Busy>,
) -> std::result::Result<(), String> {
    let stream = Rc::new(stream);
    let (out, queue) = mpsc::channel(QUEUE);
    let writer = actix::spawn(write_all(stream.clone(), queue));
    let running = Running::default();
    let room = Arc::new(Semaphore::new(ROOM));
    let mut reader = Reader::default();
    let ended = loop {
        let Packet { bytes, fds } = match reader.next(&stream).await {
            Ok(Some(packet)) => packet,
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => break Err(e.to_string()),
            Ok(None) | Err(_) => break Ok(()),
        };
        match unpack::<Frame>(Packet {
            bytes,
            fds: Vec::new(),
        }) {
            Ok(Frame::Call(call)) if running.borrow().contains_key(&call.id) => {
                break Err(format!("{}: its caller gave two calls one id", call.method));
            }
            Ok(Frame::Call(call)) => {
                let share = 1 + call.body.0.len() / SHARE;
                let Ok(permit) = room.clone().acquire_many_owned(share as u32).await else {
                    break Ok(());
                };
                let work = Work {
                    id: call.id,
                    method: call.method.clone(),
                    out: out.clone(),
                    running: running.clone(),
                    busy: busy.clone(),
                };
                work.begin(call, fds, &dispatch, permit);
            }
            Ok(Frame::Cancel { id }) => drop(
                running
                    .borrow_mut()
                    .remove(&id)
                    .map(|call| call.stop.send(())),
            ),
            Ok(Frame::Credit { id, items }) => {
                if let Some(call) = running.borrow().get(&id) {
                    call.credit.add_permits(items.min(1024) as usize);
                }
            }
            Ok(_) => break Err("a frame that only those who answer send".into()),
            Err(error) => break Err(error.to_string()),
        }
    };
    running.borrow_mut().clear();
    writer.abort();
    ended
}

/// Sends queued packets, in batches, until the socket or the queue ends.
pub(crate) async fn write_all(stream: Rc<UnixStream>, mut queue: mpsc::Receiver<Packet>) {
    let mut batch = VecDeque::new();
    while let Some(packet) = queue.recv().await {
        batch.push_back(packet);
        while let Ok(packet) = queue.try_recv() {
            batch.push_back(packet);
        }
        if framing::write(&stream, &mut batch).await.is_err() {
            return hang_up(&stream);
        }
    }
}

/// Ends a connection for both directions, so that neither half waits for the other.
pub(crate) fn hang_up(stream: &UnixStream) {
    // The other end may have closed it already.
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
}

struct Work {
    id: u64,
    method: String,
    out: mpsc::Sender<Packet>,
    running: Running,
    busy: Rc<Busy>,
}

impl Work {
    fn begin(
        self,
        call: CallFrame,
        fds: Vec<contracts::Fd>,
        dispatch: &Rc<dyn Dispatch>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) {
        let deadline = Instant::now() + Duration::from_micros(call.left);
        let operation = call.operation.clone();
        let ctx = Ctx {
            namespace: call.namespace,
            lease: call.lease,
            deadline,
            operation: call.operation,
        };
        let response = dispatch
            .dispatch(Incoming {
                method: call.method,
                ctx,
                body: call.body.0,
                fds,
            })
            .0;
        let (stop, stopped) = oneshot::channel();
        let credit = Arc::new(Semaphore::new(FIRST_CREDIT as usize));
        self.running.borrow_mut().insert(
            self.id,
            Stop {
                stop,
                credit: credit.clone(),
            },
        );
        let writing = matches!(response, Response::One(Kind::Write, _)).then(|| self.busy.enter());
        actix::spawn(async move {
            let (_permit, _writing) = (permit, writing);
            match response {
                Response::One(Kind::Write, answer) => {
                    let _turn = self.busy.turns.take(operation).await;
                    self.one(answer).await;
                }
                Response::One(_, answer) => tokio::select! {
                    () = self.one(answer) => {}
                    _ = stopped => {}
                    () = tokio::time::sleep_until(deadline) => {}
                },
                Response::Many(stream) => self.many(stream, credit, stopped).await,
            }
            self.running.borrow_mut().remove(&self.id);
        });
    }

    async fn one(&self, answer: LocalBoxFuture<'static, Result<Encoded>>) {
        let (result, fds) = match answer.await {
            Ok((bytes, fds)) => (Ok(Body(bytes)), fds),
            Err(e) => (Err(e), Vec::new()),
        };
        let id = self.id;
        let packet = self
            .packet(&Frame::Reply { id, result }, fds)
            .or_else(|error| {
                let result = Err(error);
                self.packet(&Frame::Reply { id, result }, Vec::new())
            });
        self.send(packet).await;
    }

    async fn many(
        &self,
        stream: LocalBoxFuture<'static, Result<BoxStream<'static, Result<Encoded>>>>,
        credit: Arc<Semaphore>,
        stopped: oneshot::Receiver<()>,
    ) {
        let result = tokio::select! {
            result = self.items(stream, credit) => result,
            _ = stopped => return,
        };
        let id = self.id;
        let packet = self
            .packet(&Frame::End { id, result }, Vec::new())
            .or_else(|error| {
                let result = Err(error);
                self.packet(&Frame::End { id, result }, Vec::new())
            });
        self.send(packet).await;
    }

    async fn items(
        &self,
        stream: LocalBoxFuture<'static, Result<BoxStream<'static, Result<Encoded>>>>,
        credit: Arc<Semaphore>,
    ) -> Result<()> {
        let mut stream = stream.await?;
        while let Some(item) = stream.next().await {
            let (bytes, fds) = item?;
            match credit.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return Ok(()),
            }
            let body = Body(bytes);
            let packet = self.packet(&Frame::Item { id: self.id, body }, fds)?;
            self.send(Ok(packet)).await;
        }
        Ok(())
    }

    fn packet(&self, frame: &Frame, fds: Vec<Fd>) -> Result<Packet> {
        codec::encode(frame)
            .map_err(|e| Error::exhausted(e.to_string()))
            .and_then(|bytes| Packet::new(bytes, fds))
            .map_err(|e| e.context(format!("{}: reply", self.method)))
    }

    async fn send(&self, packet: Result<Packet>) {
        if let Ok(packet) = packet {
            // A closed queue means that the caller has gone: its successor will ask again.
            let _ = self.out.send(packet).await;
        }
    }
}

/// What is in flight in this process, and whether it is to end.
///
/// Writes count by themselves. Nothing is lost with a read or a stream: their callers ask again. An edge enters
/// whatever its clients would lose.
#[derive(Default)]
pub struct Busy {
    turns: Turns,
    count: std::cell::Cell<usize>,
    idle: tokio::sync::Notify,
    is_ending: std::cell::Cell<bool>,
    ending: tokio::sync::Notify,
}

impl Busy {
    /// Counts something that is in flight until the guard is dropped.
    pub fn enter(self: &Rc<Self>) -> BusyGuard {
        self.count.set(self.count.get() + 1);
        BusyGuard(self.clone())
    }

    /// Waits until nothing is in flight.
    pub async fn idle(&self) {
        while self.count.get() > 0 {
            self.idle.notified().await;
        }
    }

    /// Says that the process is to end as soon as nothing is in flight.
    pub fn end(&self) {
        self.is_ending.set(true);
        self.ending.notify_waiters();
    }

    /// Whether the process is to end.
    pub fn is_ending(&self) -> bool {
        self.is_ending.get()
    }

    /// Waits until the process is to end: accept nothing new from then on.
    pub async fn ending(&self) {
        while !self.is_ending.get() {
            self.ending.notified().await;
        }
    }
}

/// Something that is in flight, until dropped.
pub struct BusyGuard(Rc<Busy>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}
