//! Endless answers: records as server-sent events or as one JSON text per line, with a heartbeat.
//!
//! Whoever drops the answer drops the producer with everything it holds, so a client that goes leaves nothing behind.
//! Source: WHATWG HTML, "Server-sent events".

use crate::request::Accept;
use actix_web::http::header;
use actix_web::{HttpResponse, HttpResponseBuilder, web::Bytes};
use bus::server::Busy;
use contracts::{Error, Result};
use futures_util::{Stream, StreamExt, stream};
use std::{pin::Pin, rc::Rc, time::Duration};
use tokio::sync::mpsc;

/// How many items a producer may be ahead of its reader.
const AHEAD: usize = 8;

/// A stream that stays on this thread.
pub(crate) type Local<T> = Pin<Box<dyn Stream<Item = T>>>;

/// The producing end of a stream.
pub(crate) struct Feed<T>(mpsc::Sender<T>);

impl<T> Feed<T> {
    /// Hands an item over, waiting while the reader is slow.
    pub(crate) async fn send(&self, item: T) {
        // The receiver lives as long as the producer: both are one stream.
        let _ = self.0.send(item).await;
    }
}

/// Makes a stream of what an ordinary async function sends. It runs only while the stream is read.
pub(crate) fn produce<T: 'static, F>(make: impl FnOnce(Feed<T>) -> F) -> Local<T>
where
    F: Future<Output = ()> + 'static,
{
    let (feed, mut items) = mpsc::channel(AHEAD);
    let work = make(Feed(feed));
    let items = stream::poll_fn(move |context| items.poll_recv(context)).map(Some);
    let work = stream::once(work).map(|()| None);
    stream::select(items, work)
        .filter_map(std::future::ready)
        .boxed_local()
}

/// One record of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// What a reader resumes from.
    pub(crate) id: Option<u64>,
    /// What kind it is.
    pub(crate) event: String,
    /// JSON text without newlines.
    pub(crate) data: String,
}

impl Record {
    fn bytes(&self, accept: Accept) -> Bytes {
        if accept != Accept::Sse {
            return Bytes::from(format!("{}\n", self.data));
        }
        let id = self.id.map_or_else(String::new, |id| format!("id: {id}\n"));
        // A line break would end the field; no topic that the log accepts has one, but a user's may be odd.
        let event = self.event.replace(['\n', '\r'], " ");
        Bytes::from(format!("{id}event: {event}\ndata: {}\n\n", self.data))
    }
}

/// Answers with records in the form that the client accepts; the headers go out at once.
pub(crate) fn records(
    accept: Accept,
    heartbeat: Duration,
    records: impl Stream<Item = Record> + 'static,
) -> HttpResponse {
    let (kind, first, beat) = match accept {
        Accept::Sse => ("text/event-stream", ": hello\n\n", ": heartbeat\n\n"),
        _ => ("application/x-ndjson", "", "\n"),
    };
    let records = records.map(move |record| record.bytes(accept));
    let first = stream::iter([Bytes::from_static(first.as_bytes())]);
    let body = first.chain(with_heartbeat(
        records,
        heartbeat,
        Bytes::from_static(beat.as_bytes()),
    ));
    streaming(kind, body.map(Ok))
}

/// Answers with bytes as they come. An error cuts the connection, so that the client does not take a part for the whole.
pub(crate) fn streaming(
    kind: &str,
    body: impl Stream<Item = Result<Bytes>> + 'static,
) -> HttpResponse {
    uncached(&mut HttpResponse::Ok())
        .content_type(kind)
        .streaming(body.map(|item| item.map_err(Cut)))
}

/// Tells caches and buffering proxies to keep away.
pub(crate) fn uncached(response: &mut HttpResponseBuilder) -> HttpResponseBuilder {
    let mut response = std::mem::replace(response, HttpResponse::Ok());
    response
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header(("x-accel-buffering", "no"));
    response
}

/// An error in the middle of a body.
#[derive(Debug)]
pub(crate) struct Cut(pub(crate) Error);

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Cut {}

/// Breaks an answer off when this process is to end, so that nobody takes a part for the whole.
pub(crate) fn until_ending<T: 'static>(
    items: impl Stream<Item = Result<T>> + 'static,
    busy: Rc<Busy>,
) -> Local<Result<T>> {
    let items = Some(items.boxed_local());
    let next = move |items: Option<Local<Result<T>>>| {
        let busy = busy.clone();
        async move {
            let mut items = items?;
            tokio::select! {
                item = items.next() => Some((item?, Some(items))),
                () = busy.ending() => {
                    let why = "this gateway is being replaced; ask again for what comes after this";
                    Some((Err(Error::unavailable(why)), None))
                }
            }
        }
    };
    stream::unfold(items, next).boxed_local()
}

fn with_heartbeat(
    items: impl Stream<Item = Bytes> + 'static,
    every: Duration,
    beat: Bytes,
) -> impl Stream<Item = Bytes> {
    stream::unfold(items.boxed_local(), move |mut items| {
        let beat = beat.clone();
        async move {
            match tokio::time::timeout(every, items.next()).await {
                Ok(Some(item)) => Some((item, items)),
                Ok(None) => None,
                Err(_) => Some((beat, items)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: Some(7),
            event: "/tasks/exit".into(),
            data: r#"{"seq":7}"#.into(),
        }
    }

    #[test]
    fn a_record_has_the_same_json_in_both_forms() {
        let sse = record().bytes(Accept::Sse);
        assert_eq!(sse, "id: 7\nevent: /tasks/exit\ndata: {\"seq\":7}\n\n");
        assert_eq!(record().bytes(Accept::Ndjson), "{\"seq\":7}\n");
    }

    #[test]
    fn a_line_break_in_an_event_name_cannot_forge_a_record() {
        let odd = Record {
            event: "/a\ndata: x".into(),
            ..record()
        };
        assert_eq!(
            odd.bytes(Accept::Sse),
            "id: 7\nevent: /a data: x\ndata: {\"seq\":7}\n\n"
        );
    }

    #[actix_rt::test]
    async fn a_produced_stream_ends_with_its_producer() {
        let numbers = produce(|feed| async move {
            for number in 0..100 {
                feed.send(number).await;
            }
        });
        assert_eq!(
            numbers.collect::<Vec<_>>().await,
            (0..100).collect::<Vec<_>>()
        );
    }

    #[actix_rt::test]
    async fn a_silent_stream_beats() {
        let silent = stream::pending::<Bytes>();
        let mut beating = Box::pin(with_heartbeat(
            silent,
            Duration::from_millis(1),
            Bytes::from_static(b"beat"),
        ));
        assert_eq!(beating.next().await.unwrap(), "beat");
        assert_eq!(beating.next().await.unwrap(), "beat");
    }
}
