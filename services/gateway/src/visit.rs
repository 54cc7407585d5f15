//! One connection, and when it may be closed: nobody's request is cut off when this process is to end.
//!
//! A request that is in flight is finished, and its answer says that the connection closes. Who has just connected and
//! not asked yet may ask once. An idle connection is closed; a client that uses it at that very moment asks again on
//! another, as HTTP expects. Source: RFC 9112, section 9.3.1 and 9.6.

use actix_web::HttpResponse;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::web::Bytes;
use bus::server::Busy;
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long a client that has just connected may take to ask.
const FIRST: Duration = Duration::from_secs(1);
/// How long an idle connection stays open still: the last bytes of its last answer may be on their way.
const GRACE: Duration = Duration::from_millis(100);

/// What is going on in a connection.
#[derive(Default)]
pub(crate) struct Visit {
    /// Requests whose answers are not written yet.
    open: Cell<u32>,
    has_asked: Cell<bool>,
    /// The client reads more slowly than it is written to.
    is_slow: Cell<bool>,
    /// Its present answer is its last.
    is_last: Cell<bool>,
    changed: Notify,
}

impl Visit {
    /// Counts a request, until the guard is dropped.
    pub(crate) fn ask(self: &Rc<Self>) -> Asking {
        self.open.set(self.open.get() + 1);
        self.has_asked.set(true);
        self.changed.notify_waiters();
        Asking(self.clone())
    }

    /// Waits until the process is to end and the connection may be closed.
    pub(crate) async fn over(&self, busy: &Busy) {
        busy.ending().await;
        if !self.has_asked.get() {
            // Who does not ask in time has no request that could be lost.
            let _ = timeout(FIRST, self.changed.notified()).await;
        }
        loop {
            while self.open.get() > 0 || self.is_slow.get() {
                self.changed.notified().await;
            }
            if self.is_last.get() {
                // The server closes it when all is written.
                return std::future::pending().await;
            }
            if timeout(GRACE, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }
}

/// A request in flight.
pub(crate) struct Asking(Rc<Visit>);

impl Asking {
    /// Lets the answer keep the request in flight until all of it is written; the last one says so.
    pub(crate) fn answer(self, mut response: HttpResponse, busy: &Busy) -> HttpResponse {
        if busy.is_ending() {
            let close = actix_http::ConnectionType::Close;
            response.head_mut().set_connection_type(close);
            self.0.is_last.set(true);
        }
        response.map_body(|_, body| {
            let asking = self;
            BoxBody::new(Answer {
                body,
                _asking: asking,
            })
        })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.changed.notify_waiters();
    }
}

/// A body that keeps its request in flight.
struct Answer {
    body: BoxBody,
    _asking: Asking,
}

impl MessageBody for Answer {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.body.as_pin_mut().poll_next(context)
    }
}

/// A connection with what is going on in it.
pub(crate) struct Line<T> {
    pub(crate) io: T,
    pub(crate) visit: Rc<Visit>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Line<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Line<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        if written.is_pending() {
            self.visit.is_slow.set(true);
        }
        written
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        // The server flushes when it has written all it has.
        if flushed.is_ready() && self.visit.is_slow.replace(false) {
            self.visit.changed.notify_waiters();
        }
        flushed
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::pin::pin;

    fn asked() -> (Rc<Busy>, Rc<Visit>, Asking) {
        let (busy, visit) = (Rc::<Busy>::default(), Rc::<Visit>::default());
        let asking = visit.ask();
        (busy, visit, asking)
    }

    #[actix_rt::test]
    async fn an_idle_connection_is_closed_only_when_the_process_is_to_end() {
        let (busy, visit, asking) = asked();
        drop(asking);
        let mut over = pin!(visit.over(&busy));
        assert!(poll!(&mut over).is_pending());
        busy.end();
        over.await;
    }

    #[actix_rt::test]
    async fn a_request_in_flight_is_finished_first() {
        let (busy, visit, asking) = asked();
        busy.end();
        let mut over = pin!(visit.over(&busy));
        tokio::task::yield_now().await;
        assert!(poll!(&mut over).is_pending());
        drop(asking);
        over.await;
    }

    #[actix_rt::test]
    async fn an_answer_keeps_its_request_in_flight_and_the_last_one_says_so() {
        let (busy, visit, asking) = asked();
        let close = actix_http::ConnectionType::Close;
        let first = asking.answer(HttpResponse::Ok().body("x"), &busy);
        assert!(first.head().connection_type() != close);
        assert_eq!(visit.open.get(), 1);
        busy.end();
        let last = visit.ask().answer(HttpResponse::Ok().body("x"), &busy);
        assert!(last.head().connection_type() == close);
        drop((first, last));
        assert_eq!(visit.open.get(), 0);
        assert!(visit.is_last.get());
    }

    #[actix_rt::test]
    async fn a_slow_reader_gets_all_of_what_was_written() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (busy, visit, asking) = asked();
        let (io, mut reader) = tokio::io::duplex(4);
        let mut line = Line {
            io,
            visit: visit.clone(),
        };
        let mut writing = Box::pin(async move {
            line.write_all(b"0123456789").await?;
            line.flush().await?;
            Ok::<_, std::io::Error>(line)
        });
        assert!(poll!(&mut writing).is_pending());
        drop(asking);
        busy.end();
        let mut over = pin!(visit.over(&busy));
        assert!(poll!(&mut over).is_pending());
        assert!(visit.is_slow.get());
        let mut read = [0; 10];
        let (written, all) = tokio::join!(writing, reader.read_exact(&mut read));
        assert!(written.is_ok() && all.is_ok() && !visit.is_slow.get());
        over.await;
    }
}
