//! One edge seen by the plugin that calls: what is pending, what must be sent again, and what to say when nobody answers.
//!
//! The socket of a link comes and goes; the link stays. Reads and writes that are pending when the peer dies are sent
//! again to its successor, with the same operation id and what is left of the deadline. A stream breaks with
//! `Unavailable`: its reader knows where it was and opens a new one.

use crate::control::{pack, unpack};
use crate::envelope::{Body, CallFrame, Frame};
use crate::framing::{Packet, Reader};
use crate::server::{FIRST_CREDIT, write_all};
use contracts::{Error, Fd, PluginId, Result, plugin::State};
use std::{cell::Cell, cell::RefCell, collections::BTreeMap, rc::Rc};
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
    time::Instant,
};

/// Packets that may wait for the socket; callers wait beyond.
const QUEUE: usize = 64;

/// An answer as it came from the wire.
pub(crate) type Encoded = (Vec<u8>, Vec<Fd>);

/// The caller's half of an edge. Lives as long as the plugin.
pub(crate) struct Link {
    peer: PluginId,
    next: Cell<u64>,
    pending: RefCell<BTreeMap<u64, Pending>>,
    connection: RefCell<Option<Connection>>,
    standing: RefCell<Standing>,
}

struct Connection {
    number: u64,
    out: mpsc::Sender<Packet>,
    stream: Rc<UnixStream>,
}

/// What the supervisor last said about the peer.
struct Standing {
    state: State,
    cause: String,
    chain: Vec<PluginId>,
}

struct Pending {
    call: CallFrame,
    deadline: Instant,
    fds: Vec<Fd>,
    waiter: Waiter,
}

enum Waiter {
    One(oneshot::Sender<Result<Encoded>>),
    Many(mpsc::UnboundedSender<Result<Encoded>>),
}

/// A stream's receiving half; grants credit as items are taken, so at most [`FIRST_CREDIT`] wait in it.
pub(crate) struct Items {
    link: Rc<Link>,
    id: u64,
    queue: mpsc::UnboundedReceiver<Result<Encoded>>,
    taken: u32,
}

/// Takes a call back when its future is dropped.
struct Withdraw {
    link: Rc<Link>,
    id: u64,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.link.withdraw(self.id);
    }
}

impl Link {
    pub(crate) fn new(peer: PluginId) -> Rc<Self> {
        Rc::new(Self {
            peer,
            next: Cell::new(1),
            pending: RefCell::default(),
            connection: RefCell::new(None),
            standing: RefCell::new(Standing {
                state: State::Pending,
                cause: String::new(),
                chain: Vec::new(),
            }),
        })
    }

    /// Sends a call and waits for its answer until the deadline.
    pub(crate) async fn call(
        self: &Rc<Self>,
        call: CallFrame,
        fds: Vec<Fd>,
        deadline: Instant,
    ) -> Result<Encoded> {
        self.refuse_when_failed()?;
        let method = call.method.clone();
        let (answer, answered) = oneshot::channel();
        let id = self.enter(call, fds, deadline, Waiter::One(answer));
        let _withdraw = Withdraw {
            link: self.clone(),
            id,
        };
        self.send(id).await;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::unavailable(format!(
                "{method}: this plugin is stopping"
            ))),
            Err(_) => Err(self.too_late(&method)),
        }
    }

    /// Sends a call for a stream.
    pub(crate) async fn open(
        self: &Rc<Self>,
        call: CallFrame,
        fds: Vec<Fd>,
        deadline: Instant,
    ) -> Result<Items> {
        self.refuse_when_failed()?;
        let (items, queue) = mpsc::unbounded_channel();
        let id = self.enter(call, fds, deadline, Waiter::Many(items));
        let stream = Items {
            link: self.clone(),
            id,
            queue,
            taken: 0,
        };
        self.send(id).await;
        Ok(stream)
    }

    /// Takes over a fresh socket and sends again what is pending.
    pub(crate) fn attach(self: &Rc<Self>, stream: UnixStream) {
        let number = self.next.get();
        self.next.set(number + 1);
        let stream = Rc::new(stream);
        let (out, queue) = mpsc::channel(QUEUE);
        actix::spawn(write_all(stream.clone(), queue));
        self.detach();
        self.connection.replace(Some(Connection {
            number,
            out,
            stream: stream.clone(),
        }));
        actix::spawn(self.clone().read_all(stream, number));
        let pending: Vec<u64> = self.pending.borrow().keys().copied().collect();
        actix::spawn(self.clone().resend(pending));
    }

    /// Lets go of the current socket, if there is one. Reads and writes stay pending.
    pub(crate) fn detach(&self) {
        if let Some(old) = self.connection.take() {
            // The other end may have closed it already.
            let _ = rustix::net::shutdown(&old.stream, rustix::net::Shutdown::Both);
        }
        self.break_streams();
    }

    /// Hears from the supervisor how the peer stands; fails what waits for a peer that will not come back by itself.
    pub(crate) fn stands(&self, state: State, cause: String, chain: Vec<PluginId>) {
        let gone = matches!(state, State::Failed | State::Stopped);
        self.standing.replace(Standing {
            state,
            cause,
            chain,
        });
        if gone {
            let pending = std::mem::take(&mut *self.pending.borrow_mut());
            for waiting in pending.into_values() {
                waiting.waiter.fail(self.unavailable());
            }
        }
    }

    fn refuse_when_failed(&self) -> Result<()> {
        match self.standing.borrow().state {
            State::Failed | State::Stopped => Err(self.unavailable()),
            _ => Ok(()),
        }
    }

    fn enter(&self, mut call: CallFrame, fds: Vec<Fd>, deadline: Instant, waiter: Waiter) -> u64 {
        let id = self.next.get();
        self.next.set(id + 1);
        call.id = id;
        self.pending.borrow_mut().insert(
            id,
            Pending {
                call,
                deadline,
                fds,
                waiter,
            },
        );
        id
    }

    /// Hands a pending call to the current connection, if there is one; otherwise the next connection will.
    async fn send(&self, id: u64) {
        let Some(out) = self
            .connection
            .borrow()
            .as_ref()
            .map(|connection| connection.out.clone())
        else {
            return;
        };
        let packet = match self.pending.borrow().get(&id) {
            Some(pending) => pending.packet(),
            None => return,
        };
        match packet {
            Ok(packet) => drop(out.send(packet).await),
            Err(error) => {
                if let Some(pending) = self.pending.borrow_mut().remove(&id) {
                    pending.waiter.fail(error);
                }
            }
        }
    }

    async fn resend(self: Rc<Self>, pending: Vec<u64>) {
        for id in pending {
            self.send(id).await;
        }
    }

    async fn read_all(self: Rc<Self>, stream: Rc<UnixStream>, number: u64) {
        let mut reader = Reader::default();
        while let Ok(Some(Packet { bytes, fds })) = reader.next(&stream).await {
            match unpack::<Frame>(Packet {
                bytes,
                fds: Vec::new(),
            }) {
                Ok(frame) => self.take(frame, fds),
                Err(e) => {
                    tracing::error!(peer = %self.peer, error = %e, "malformed frame");
                    break;
                }
            }
        }
        let current = self
            .connection
            .borrow()
            .as_ref()
            .is_some_and(|connection| connection.number == number);
        if current {
            self.connection.replace(None);
            self.break_streams();
        }
    }

    fn take(&self, frame: Frame, fds: Vec<Fd>) {
        match frame {
            Frame::Reply { id, result } => self.finish(id, result.map(|body| (body.0, fds))),
            Frame::Item { id, body } => {
                if let Some(Pending {
                    waiter: Waiter::Many(items),
                    ..
                }) = self.pending.borrow().get(&id)
                {
                    // A reader that has gone withdraws by itself.
                    let _ = items.send(Ok((body.0, fds)));
                }
            }
            Frame::End { id, result } => match result {
                Ok(()) => drop(self.pending.borrow_mut().remove(&id)),
                Err(error) => self.finish(id, Err(error)),
            },
            Frame::Call(_) | Frame::Cancel { .. } | Frame::Credit { .. } => {
                tracing::error!(peer = %self.peer, "a frame that only callers send");
            }
        }
    }

    fn finish(&self, id: u64, result: Result<Encoded>) {
        let pending = self.pending.borrow_mut().remove(&id);
        match pending.map(|pending| pending.waiter) {
            // Whoever waited may have gone meanwhile.
            Some(Waiter::One(answer)) => drop(answer.send(result)),
            Some(Waiter::Many(items)) => drop(items.send(result)),
            None => {}
        }
    }

    fn break_streams(&self) {
        let mut pending = self.pending.borrow_mut();
        let broken: Vec<u64> = pending
            .iter()
            .filter(|(_, call)| call.sent_stream())
            .map(|(&id, _)| id)
            .collect();
        let broken: Vec<Pending> = broken.iter().filter_map(|id| pending.remove(id)).collect();
        drop(pending);
        for stream in broken {
            let error = Error::unavailable(format!(
                "{}: stream broke: {} ended",
                stream.call.method, self.peer
            ));
            stream
                .waiter
                .fail(error.caused_by(self.peer.clone(), vec![self.peer.clone()]));
        }
    }

    fn withdraw(&self, id: u64) {
        if self.pending.borrow_mut().remove(&id).is_some() {
            self.tell(&Frame::Cancel { id });
        }
    }

    /// Sends a hint that the peer can do without: dropped when the queue is full or nobody is there.
    fn tell(&self, frame: &Frame) {
        if let (Some(connection), Ok(packet)) = (self.connection.borrow().as_ref(), pack(frame)) {
            let (out, full) = (connection.out.clone(), connection.out.try_send(packet));
            if let Err(mpsc::error::TrySendError::Full(packet)) = full {
                actix::spawn(async move { drop(out.send(packet).await) });
            }
        }
    }

    fn too_late(&self, method: &str) -> Error {
        if self.connection.borrow().is_none() {
            return self.unavailable();
        }
        Error::deadline(format!("{method}: {} did not answer in time", self.peer))
            .caused_by(self.peer.clone(), vec![self.peer.clone()])
    }

    fn unavailable(&self) -> Error {
        let standing = self.standing.borrow();
        let mut chain = standing.chain.clone();
        if chain.first() != Some(&self.peer) {
            chain.insert(0, self.peer.clone());
        }
        let cause = match standing.cause.as_str() {
            "" => "it is not running",
            cause => cause,
        };
        let culprit = chain.last().cloned().unwrap_or_else(|| self.peer.clone());
        Error::unavailable(format!("plugin {} is not available: {cause}", self.peer))
            .caused_by(culprit, chain)
    }
}

impl Pending {
    fn packet(&self) -> Result<Packet> {
        let left = self
            .deadline
            .saturating_duration_since(Instant::now())
            .as_micros();
        let call = CallFrame {
            left: u64::try_from(left).unwrap_or(u64::MAX),
            ..self.call.clone()
        };
        let packet = pack(&Frame::Call(call))?;
        Ok(Packet {
            bytes: packet.bytes,
            fds: self.fds.clone(),
        })
    }

    fn sent_stream(&self) -> bool {
        matches!(self.waiter, Waiter::Many(_))
    }
}

impl Waiter {
    fn fail(self, error: Error) {
        match self {
            Waiter::One(answer) => drop(answer.send(Err(error))),
            Waiter::Many(items) => drop(items.send(Err(error))),
        }
    }
}

impl Items {
    /// Waits for the next item; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Encoded>> {
        let item = self.queue.recv().await?;
        self.taken += 1;
        if self.taken >= FIRST_CREDIT / 2 {
            self.link.tell(&Frame::Credit {
                id: self.id,
                items: self.taken,
            });
            self.taken = 0;
        }
        Some(item)
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        self.link.withdraw(self.id);
    }
}

/// Makes the frame of a call; its id is given when it enters the link.
pub(crate) fn frame(
    method: &str,
    ctx: &crate::Ctx,
    operation: contracts::OperationId,
    body: Vec<u8>,
) -> CallFrame {
    CallFrame {
        id: 0,
        method: method.into(),
        namespace: ctx.namespace.clone(),
        lease: ctx.lease.clone(),
        left: 0,
        operation,
        body: Body(body),
    }
}
