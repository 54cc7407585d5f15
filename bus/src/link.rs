//! One edge seen by the plugin that calls: what is pending, what must be sent again, and what to say when nobody answers.
//!
//! The socket of a link comes and goes; the link stays. Reads and writes that are pending when the peer dies are sent
//! again to its successor, with the same operation id and what is left of the deadline. A stream that was sent breaks
//! with `Unavailable`: its reader knows where it was and opens a new one.
//!
//! At most [`WINDOW`] calls are pending; the next waits for its turn. So the peer never has more of this caller than it
//! reads at once, and hears every cancellation.
//!
//! A call that ends the peer each time it is sent is found, and refused instead of being sent for ever: `suspects.rs`.
//!
//! A link whose bytes are no frames is reported, and so is one that stays closed though its peer lives: the supervisor
//! makes it anew.

mod standing;
mod suspects;
#[cfg(test)]
mod tests;
mod trials;

use crate::control::{pack, unpack};
use crate::envelope::{Body, CallFrame, Frame};
use crate::framing::{Packet, Reader};
use crate::server::{FIRST_CREDIT, WINDOW, hang_up, write_all};
use contracts::{Error, Fd, PluginId, Result, plugin::State};
use standing::Standing;
use std::{
    cell::Cell,
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    io,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};
use suspects::Suspects;
use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// Packets that may wait for the socket; callers wait beyond.
const QUEUE: usize = 64;
/// How long a closed link may have no successor though its peer lives: the supervisor hears of a death much sooner.
const CLOSED: Duration = Duration::from_secs(1);

/// An answer as it came from the wire.
pub(crate) type Encoded = (Vec<u8>, Vec<Fd>);

/// The caller's half of an edge. Lives as long as the plugin.
pub(crate) struct Link {
    peer: PluginId,
    next: Cell<u64>,
    pending: RefCell<BTreeMap<u64, Pending>>,
    connection: RefCell<Option<Connection>>,
    standing: RefCell<Standing>,
    suspects: RefCell<Suspects>,
    /// This link, for what goes on by itself.
    me: Weak<Link>,
    room: Arc<Semaphore>,
    /// Whom to tell that this link is of no more use, and what was last told.
    report: RefCell<Option<Report>>,
    broke: RefCell<String>,
}

type Report = Box<dyn Fn(String)>;

struct Connection {
    number: u64,
    out: mpsc::Sender<Packet>,
    stream: Rc<UnixStream>,
}

struct Pending {
    call: CallFrame,
    deadline: Instant,
    fds: Vec<Fd>,
    waiter: Waiter,
    /// The connection that it was last sent by.
    sent: Option<u64>,
    _room: OwnedSemaphorePermit,
}

enum Waiter {
    One(oneshot::Sender<Result<Encoded>>),
    Many(Queue),
}

/// Items that wait for a stream's reader, and how many they are.
struct Queue {
    items: mpsc::UnboundedSender<Result<Encoded>>,
    ahead: Rc<Cell<u32>>,
}

/// A stream's receiving half; grants credit as items are taken, so at most [`FIRST_CREDIT`] wait in it.
pub(crate) struct Items {
    link: Rc<Link>,
    id: u64,
    method: String,
    deadline: Instant,
    queue: mpsc::UnboundedReceiver<Result<Encoded>>,
    ahead: Rc<Cell<u32>>,
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
        Rc::new_cyclic(|me| Self {
            peer,
            next: Cell::new(1),
            pending: RefCell::default(),
            connection: RefCell::new(None),
            standing: RefCell::new(Standing {
                state: State::Pending,
                cause: String::new(),
                chain: Vec::new(),
            }),
            suspects: RefCell::new(trials::none()),
            me: me.clone(),
            room: Arc::new(Semaphore::new(WINDOW)),
            report: RefCell::new(None),
            broke: RefCell::default(),
        })
    }

    /// The other end.
    pub(crate) fn peer(&self) -> &PluginId {
        &self.peer
    }

    /// Says whom to tell when this link is of no more use although its peer lives.
    pub(crate) fn report_to(&self, report: impl Fn(String) + 'static) {
        self.report.replace(Some(Box::new(report)));
    }

    /// Sends a call and waits for its answer until the deadline.
    pub(crate) async fn call(
        self: &Rc<Self>,
        call: CallFrame,
        fds: Vec<Fd>,
        deadline: Instant,
    ) -> Result<Encoded> {
        let method = call.method.clone();
        let stopping = || Error::unavailable(format!("{method}: this plugin is stopping"));
        let answered = async {
            let room = self.room().await?;
            let (answer, mut answered) = oneshot::channel();
            let id = self.enter(call, fds, deadline, Waiter::One(answer), room);
            let _withdraw = Withdraw {
                link: self.clone(),
                id,
            };
            // The answer may come first: that the peer has failed, or from the successor of one that reads nothing.
            let result = tokio::select! {
                biased;
                result = &mut answered => result,
                () = self.send(id) => answered.await,
            };
            result.unwrap_or_else(|_| Err(stopping()))
        };
        self.in_time(&method, deadline, answered).await
    }

    /// Sends a call for a stream.
    pub(crate) async fn open(
        self: &Rc<Self>,
        call: CallFrame,
        fds: Vec<Fd>,
        deadline: Instant,
    ) -> Result<Items> {
        let method = call.method.clone();
        let opened = async {
            let room = self.room().await?;
            let (items, queue) = mpsc::unbounded_channel();
            let ahead = Rc::<Cell<u32>>::default();
            let method = call.method.clone();
            let waiter = Waiter::Many(Queue {
                items,
                ahead: ahead.clone(),
            });
            let id = self.enter(call, fds, deadline, waiter, room);
            let stream = Items {
                link: self.clone(),
                id,
                method,
                deadline,
                queue,
                ahead,
                taken: 0,
            };
            self.send(id).await;
            Ok(stream)
        };
        self.in_time(&method, deadline, opened).await
    }

    async fn in_time<T>(
        &self,
        method: &str,
        deadline: Instant,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        match timeout_at(deadline, work).await {
            Ok(result) => result,
            Err(_) => Err(self.too_late(method)),
        }
    }

    /// Waits for its turn. Errors: `Unavailable` when the peer has failed.
    async fn room(&self) -> Result<OwnedSemaphorePermit> {
        self.refuse_when_failed()?;
        let room = self.room.clone().acquire_owned().await;
        self.refuse_when_failed()?;
        room.map_err(|_| self.unavailable())
    }

    /// Takes over a fresh socket and sends again what is pending.
    pub(crate) fn attach(self: &Rc<Self>, stream: UnixStream) {
        let number = self.next.get();
        self.next.set(number + 1);
        let stream = Rc::new(stream);
        let (out, queue) = mpsc::channel(QUEUE);
        actix::spawn(write_all(stream.clone(), queue));
        self.detach();
        self.broke.replace(String::new());
        self.suspects.borrow_mut().opened();
        self.connection.replace(Some(Connection {
            number,
            out,
            stream: stream.clone(),
        }));
        actix::spawn(self.clone().read_all(stream, number));
        let pending: Vec<u64> = self.pending.borrow().keys().copied().collect();
        actix::spawn(self.clone().resend(number, pending));
        self.go_on();
    }

    /// Lets go of the current socket, if there is one. Reads and writes stay pending.
    pub(crate) fn detach(&self) {
        if let Some(old) = self.connection.take() {
            hang_up(&old.stream);
            self.closed();
        }
        self.break_streams();
    }

    fn enter(
        &self,
        mut call: CallFrame,
        fds: Vec<Fd>,
        deadline: Instant,
        waiter: Waiter,
        room: OwnedSemaphorePermit,
    ) -> u64 {
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
                sent: None,
                _room: room,
            },
        );
        id
    }

    /// Hands a pending call to the current connection, if there is one; otherwise the next connection will.
    async fn send(&self, id: u64) {
        if let Some(number) = self.number() {
            self.send_by(number, id).await;
        }
    }

    async fn send_by(&self, number: u64, id: u64) {
        let Some(out) = self.out(number) else {
            return;
        };
        let Ok(place) = out.reserve().await else {
            return;
        };
        if self.number() != Some(number) || self.suspects.borrow_mut().holds(id) {
            return;
        }
        let packet = match self.pending.borrow_mut().get_mut(&id) {
            Some(pending) if pending.sent != Some(number) => pending.packet(number),
            _ => return,
        };
        self.suspects.borrow_mut().delivered(id, Instant::now());
        match packet {
            Ok(packet) => place.send(packet),
            Err(error) => self.finish(id, Err(error)),
        }
    }

    /// Which connection there is now.
    fn number(&self) -> Option<u64> {
        let connection = self.connection.borrow();
        connection.as_ref().map(|connection| connection.number)
    }

    fn out(&self, number: u64) -> Option<mpsc::Sender<Packet>> {
        let connection = self.connection.borrow();
        let current = connection.as_ref().filter(|now| now.number == number)?;
        Some(current.out.clone())
    }

    /// Sends what a fresh connection found pending, unless there is a still fresher one.
    async fn resend(self: Rc<Self>, number: u64, pending: Vec<u64>) {
        for id in pending {
            self.send_by(number, id).await;
        }
    }

    async fn read_all(self: Rc<Self>, stream: Rc<UnixStream>, number: u64) {
        let mut reader = Reader::default();
        let broke = loop {
            let Packet { bytes, fds } = match reader.next(&stream).await {
                Ok(Some(packet)) => packet,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => break Some(e.to_string()),
                Ok(None) | Err(_) => break None,
            };
            let fds_apart = Packet {
                bytes,
                fds: Vec::new(),
            };
            let taken = unpack::<Frame>(fds_apart).map_err(|e| e.to_string());
            if let Err(why) = taken.and_then(|frame| self.take(frame, fds)) {
                break Some(why);
            }
        };
        hang_up(&stream);
        if self.number() == Some(number) {
            self.connection.replace(None);
            self.closed();
            self.break_streams();
            self.miss(broke).await;
        }
    }

    /// Tells that the link has ended: at once when it broke, after a while when it was merely closed.
    async fn miss(self: Rc<Self>, broke: Option<String>) {
        let why = match broke {
            Some(why) => why,
            None => {
                tokio::time::sleep(CLOSED).await;
                "it was closed".into()
            }
        };
        let lives = matches!(self.standing.borrow().state, State::Ready | State::Degraded);
        if self.number().is_some() || !lives {
            return;
        }
        tracing::error!(peer = %self.peer, why, "link broke");
        self.broke.replace(why.clone());
        if let Some(report) = self.report.borrow().as_ref() {
            report(why);
        }
    }

    /// Takes what the peer sent. Errors: it is nothing that an answer consists of.
    fn take(&self, frame: Frame, fds: Vec<Fd>) -> std::result::Result<(), String> {
        match frame {
            Frame::Reply { id, result } => {
                let result = result.map_err(|error| self.through_me(error));
                self.finish(id, result.map(|body| (body.0, fds)));
            }
            Frame::Item { id, body } => self.item(id, (body.0, fds)),
            Frame::End { id, result } => match result {
                Ok(()) => drop(self.remove(id)),
                Err(error) => self.finish(id, Err(self.through_me(error))),
            },
            Frame::Call(_) | Frame::Cancel { .. } | Frame::Credit { .. } => {
                return Err("a frame that only callers send".into());
            }
        }
        Ok(())
    }

    fn item(&self, id: u64, item: Encoded) {
        let pending = self.pending.borrow();
        let Some(Waiter::Many(queue)) = pending.get(&id).map(|pending| &pending.waiter) else {
            return;
        };
        if queue.ahead.get() < FIRST_CREDIT {
            queue.ahead.set(queue.ahead.get() + 1);
            // A reader that has gone withdraws by itself.
            let _ = queue.items.send(Ok(item));
            return;
        }
        drop(pending);
        let error = Error::internal(format!("{} sent more than it was asked for", self.peer));
        self.finish(id, Err(error));
        self.tell(&Frame::Cancel { id });
    }

    /// Takes a call out; whoever had to wait for its end goes on.
    fn remove(&self, id: u64) -> Option<Pending> {
        let pending = self.pending.borrow_mut().remove(&id);
        self.suspects.borrow_mut().forget(id);
        self.go_on();
        pending
    }

    fn finish(&self, id: u64, result: Result<Encoded>) {
        if let Some(pending) = self.remove(id) {
            pending.waiter.finish(result);
        }
    }

    fn break_streams(&self) {
        let pending = self.pending.borrow();
        let broken: Vec<u64> = pending
            .iter()
            .filter(|(_, call)| call.sent.is_some() && matches!(call.waiter, Waiter::Many(_)))
            .map(|(&id, _)| id)
            .collect();
        drop(pending);
        let broken: Vec<Pending> = broken.iter().filter_map(|&id| self.remove(id)).collect();
        for stream in broken {
            let error = Error::unavailable(format!(
                "{}: stream broke: {} ended",
                stream.call.method, self.peer
            ));
            let error = error.caused_by(self.peer.clone(), vec![self.peer.clone()]);
            stream.waiter.finish(Err(error));
        }
    }

    fn withdraw(&self, id: u64) {
        let sent = self.remove(id).and_then(|pending| pending.sent);
        if sent.is_some() && sent == self.number() {
            self.tell(&Frame::Cancel { id });
        }
    }

    /// Whether a pending call has never been sent.
    fn is_waiting(&self, id: u64) -> bool {
        let pending = self.pending.borrow();
        pending.get(&id).is_some_and(|call| call.sent.is_none())
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
}

impl Pending {
    /// The packet that connection `number` sends. What a stream carries is given away: it is not sent again.
    fn packet(&mut self, number: u64) -> Result<Packet> {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now).as_micros();
        let left = u64::try_from(left).unwrap_or(u64::MAX);
        let call = CallFrame {
            left,
            ..self.call.clone()
        };
        let fds = self.fds.clone();
        if let Waiter::Many(_) = self.waiter {
            self.call.body = Body::default();
            self.fds.clear();
        }
        self.sent = Some(number);
        pack(&Frame::Call(call))
            .and_then(|packet| Packet::new(packet.bytes, fds))
            .map_err(|error| error.context(&self.call.method))
    }
}

impl Waiter {
    /// Answers whoever waits, who may have gone meanwhile.
    fn finish(self, result: Result<Encoded>) {
        match self {
            Waiter::One(answer) => drop(answer.send(result)),
            Waiter::Many(queue) => drop(queue.items.send(result)),
        }
    }
}

impl Items {
    /// Waits for the next item; `None` at the end. The deadline bounds the wait for a peer that is not there, no more.
    pub(crate) async fn next(&mut self) -> Option<Result<Encoded>> {
        if self.link.is_waiting(self.id) {
            let first = timeout_at(self.deadline, self.queue.recv()).await;
            if first.is_err() && self.link.is_waiting(self.id) {
                let error = self.link.too_late(&self.method);
                self.link.finish(self.id, Err(error));
            } else if let Ok(item) = first {
                return self.took(item?);
            }
        }
        let item = self.queue.recv().await?;
        self.took(item)
    }

    fn took(&mut self, item: Result<Encoded>) -> Option<Result<Encoded>> {
        self.ahead.set(self.ahead.get().saturating_sub(1));
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
