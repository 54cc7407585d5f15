//! One edge seen by the plugin that answers.
//!
//! Reading stops while too much is in flight, which the socket passes on to the caller: a slow owner slows its callers
//! down instead of growing. A read or stream whose caller has gone is dropped; a write runs to its end, because its
//! effect may be half done and its record will answer the repetition.

use crate::actor::{Dispatch, Encoded, Incoming, Response};
use crate::client::Ctx;
use crate::control::{pack, unpack};
use crate::envelope::{Body, CallFrame, Frame};
use crate::framing::{self, Packet, Reader};
use contracts::{Kind, Result};
use futures_util::{StreamExt, future::LocalBoxFuture, stream::BoxStream};
use std::{
    cell::RefCell, collections::HashMap, collections::VecDeque, rc::Rc, sync::Arc, time::Duration,
};
use tokio::{
    net::UnixStream,
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

/// Most calls of one caller that are worked on at a time.
const IN_FLIGHT: usize = 256;
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

/// Answers the calls that come by `stream` until the other end is gone.
///
/// `busy` counts what is in flight over all connections of the plugin, so that a drain can wait for it.
pub async fn serve(stream: UnixStream, dispatch: Rc<dyn Dispatch>, busy: Rc<Busy>) {
    let stream = Rc::new(stream);
    let (out, queue) = mpsc::channel(QUEUE);
    let writer = actix::spawn(write_all(stream.clone(), queue));
    let running = Running::default();
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut reader = Reader::default();
    while let Ok(Some(packet)) = reader.next(&stream).await {
        let Packet { bytes, fds } = packet;
        match unpack::<Frame>(Packet {
            bytes,
            fds: Vec::new(),
        }) {
            Ok(Frame::Call(call)) => {
                let Ok(permit) = room.clone().acquire_owned().await else {
                    break;
                };
                let work = Work {
                    id: call.id,
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
            Ok(_) => break,
            Err(error) => {
                tracing::error!(%error, "malformed frame from a caller");
                break;
            }
        }
    }
    running.borrow_mut().clear();
    writer.abort();
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
            return;
        }
    }
}

struct Work {
    id: u64,
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
        let ctx = Ctx {
            namespace: call.namespace,
            lease: call.lease,
            deadline: Instant::now() + Duration::from_micros(call.left),
            operation: call.operation,
        };
        let guard = self.busy.enter();
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
        actix::spawn(async move {
            let (_permit, _guard) = (permit, guard);
            match response {
                Response::One(Kind::Write, answer) => self.one(answer).await,
                Response::One(_, answer) => tokio::select! {
                    () = self.one(answer) => {}
                    _ = stopped => {}
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
        self.send(
            &Frame::Reply {
                id: self.id,
                result,
            },
            fds,
        )
        .await;
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
        self.send(
            &Frame::End {
                id: self.id,
                result,
            },
            Vec::new(),
        )
        .await;
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
            self.send(
                &Frame::Item {
                    id: self.id,
                    body: Body(bytes),
                },
                fds,
            )
            .await;
        }
        Ok(())
    }

    async fn send(&self, frame: &Frame, fds: Vec<contracts::Fd>) {
        let packet = pack(frame).or_else(|error| {
            pack(&Frame::Reply {
                id: self.id,
                result: Err(error),
            })
        });
        if let Ok(packet) = packet {
            // A closed queue means that the caller has gone: its successor will ask again.
            let _ = self
                .out
                .send(Packet {
                    bytes: packet.bytes,
                    fds,
                })
                .await;
        }
    }
}

/// How much is in flight in this process.
#[derive(Default)]
pub struct Busy {
    count: std::cell::Cell<usize>,
    idle: tokio::sync::Notify,
}

impl Busy {
    fn enter(self: &Rc<Self>) -> BusyGuard {
        self.count.set(self.count.get() + 1);
        BusyGuard(self.clone())
    }

    /// Waits until nothing is in flight. Streams count: callers that stay are cut off by the caller's bound.
    pub async fn idle(&self) {
        while self.count.get() > 0 {
            self.idle.notified().await;
        }
    }
}

struct BusyGuard(Rc<Busy>);

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.idle.notify_waiters();
        }
    }
}
