//! Event streams: resumable, without loss or doubles, and nothing stays behind when a client goes.

use crate::support::{Edge, World, read_until};
use actix::{Actor, Context, Handler};
use bus::testing::{Fake, LocalBus};
use bus::{Boot, Call, Open, Registration, Reply, Routes, Streaming, items};
use contracts::events::{Batch, Entry, Event, Events, List, Publish};
use contracts::tasks::{LogBatch, LogLine, Logs, Tasks, Wait};
use contracts::{Error, Namespace, Timestamp};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{cell::RefCell, rc::Rc, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn event(seq: u64) -> Event {
    Event {
        seq,
        entry: Entry {
            time: Timestamp(0),
            namespace: Some(Namespace::new("default").unwrap()),
            topic: "/tasks/exit".into(),
            event: format!(r#"{{"container_id":"c{seq}"}}"#),
        },
    }
}

fn batch(seqs: &[u64]) -> Batch {
    Batch {
        events: seqs.iter().map(|seq| event(*seq)).collect(),
        seen: seqs.last().copied().unwrap_or(0),
        gap: None,
        end: true,
    }
}

/// What each page was asked to come after.
type Asked = Rc<RefCell<Vec<u64>>>;

/// A log that tells two events a page up to the fourth, and is away when it is asked the second time.
fn breaking() -> (Fake<Events>, Asked) {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let noted = asked.clone();
    let events = Fake::new("log").on(move |_, list: List| {
        noted.borrow_mut().push(list.since);
        if noted.borrow().len() == 2 {
            return Err(Error::unavailable("events/log: is starting again"));
        }
        Ok(Batch {
            end: list.since >= 2,
            ..batch(&[list.since + 1, list.since + 2])
        })
    });
    (events, asked)
}

#[actix_rt::test]
async fn events_go_on_after_a_break_without_loss_or_doubles() {
    let (events, asked) = breaking();
    let edge = World {
        events,
        ..World::default()
    }
    .start();
    let ask = edge
        .ask("GET", "/v1/events?since=0")
        .header("accept", "text/event-stream");
    let mut response = ask.open().await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = read_until(&mut response, |text| text.contains("id: 4\n")).await;
    let ids: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .collect();
    assert_eq!(ids, ["1", "2", "3", "4"]);
    assert_eq!(asked.borrow()[..], [0, 2, 2]);
    assert!(
        text.contains("event: /tasks/exit\ndata: {\"seq\":1,"),
        "{text}"
    );
    assert!(text.contains(r#""event":{"container_id":"c1"}"#), "{text}");
}

#[actix_rt::test]
async fn a_reader_resumes_behind_the_last_event_it_has_seen() {
    let (events, asked) = breaking();
    let edge = World {
        events,
        ..World::default()
    }
    .start();
    let ask = edge
        .ask("GET", "/v1/events?since=1")
        .header("accept", "application/x-ndjson");
    let mut response = ask.header("last-event-id", "40").open().await;
    let text = read_until(&mut response, |text| text.lines().count() >= 2).await;
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["seq"], 41);
    assert_eq!(asked.borrow()[0], 40);
    let wrong = edge
        .ask("GET", "/v1/events")
        .header("accept", "text/event-stream");
    wrong
        .header("last-event-id", "x")
        .send()
        .await
        .problem(400, "INVALID_ARGUMENT");
}

#[actix_rt::test]
async fn what_retention_has_passed_is_told_as_a_gap() {
    let events = Fake::new("log").on(|_, _: List| {
        Ok(Batch {
            gap: Some((1, 9)),
            ..batch(&[10])
        })
    });
    let edge = World {
        events,
        ..World::default()
    }
    .start();
    let ask = edge
        .ask("GET", "/v1/events?since=0")
        .header("accept", "text/event-stream");
    let text = read_until(&mut ask.open().await, |text| text.contains("id: 10\n")).await;
    assert!(
        text.contains("event: gap\ndata: {\"gap\":{\"first\":1,\"last\":9}}\n\nid: 10"),
        "{text}"
    );
}

#[actix_rt::test]
async fn a_bad_filter_is_an_ordinary_problem_even_for_a_stream() {
    let events = Fake::new("log").on(|_, list: List| {
        let bad = &list.filters[0];
        Err(Error::invalid(format!("filter {bad:?}: bad")))
    });
    let edge = World {
        events,
        ..World::default()
    }
    .start();
    let ask = edge
        .ask("GET", "/v1/events?since=0&filter=%3D%3D")
        .header("accept", "text/event-stream");
    ask.send().await.problem(400, "INVALID_ARGUMENT");
}

#[actix_rt::test]
async fn events_come_as_pages_and_users_may_add_their_own() {
    let events = Fake::new("log")
        .on(|_, list: List| {
            Ok(Batch {
                end: list.since >= 2,
                ..batch(&[list.since + 1, list.since + 2])
            })
        })
        .on(|ctx, publish: Publish| {
            assert_eq!(ctx.namespace.unwrap().as_str(), "default");
            assert_eq!(
                (publish.topic.as_str(), publish.event.as_str()),
                ("/mine", r#"{"a":1}"#)
            );
            Ok(9)
        });
    let edge = World {
        events,
        ..World::default()
    }
    .start();
    let page = edge.get("/v1/events").await.json();
    assert_eq!(
        (&page["items"][1]["seq"], &page["next_page_token"]),
        (&2.into(), &"2".into())
    );
    let page = edge.get("/v1/events?page_token=2").await.json();
    assert_eq!(
        (&page["items"][0]["seq"], &page["next_page_token"]),
        (&3.into(), &"".into())
    );
    let body = r#"{"topic":"/mine","event":{"a":1},"namespace":"default"}"#;
    let published = edge.post("/v1/events", body).await;
    assert_eq!(
        (published.status.as_u16(), &published.json()["seq"]),
        (201, &9.into())
    );
}

/// Calls and streams of [`Silent`] that are still there.
static OPEN: AtomicUsize = AtomicUsize::new(0);

struct Guard;

impl Guard {
    fn new() -> Self {
        OPEN.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Config {}

/// Tasks that tell one line and then nothing, for ever.
struct Silent;

impl Actor for Silent {
    type Context = Context<Self>;
}

impl Handler<Open<Logs>> for Silent {
    type Result = Streaming<Logs>;
    fn handle(&mut self, _: Open<Logs>, _: &mut Context<Self>) -> Self::Result {
        let guard = Guard::new();
        let line = LogLine {
            time: Timestamp(1),
            stderr: false,
            newline: true,
            bytes: b"first".to_vec(),
            lost: 0,
        };
        let first = futures_util::stream::iter([Ok::<_, Error>(LogBatch { lines: vec![line] })]);
        let rest = futures_util::stream::pending().map(move |item| {
            let _ = &guard;
            item
        });
        Box::pin(async move { Ok(items(first.chain(rest))) })
    }
}

impl Handler<Call<Wait>> for Silent {
    type Result = Reply<Wait>;
    fn handle(&mut self, _: Call<Wait>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            let _guard = Guard::new();
            std::future::pending().await
        })
    }
}

fn silent() -> Registration {
    let routes = || Routes::<Silent>::default().stream::<Logs>().on::<Wait>();
    Registration::new::<Tasks>("local").start(routes, |_: Boot<Config>| Ok(Silent))
}

/// Waits until `open` calls and streams are there.
async fn until_open(open: usize) {
    let wait = async {
        while OPEN.load(Ordering::SeqCst) != open {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait)
        .await
        .unwrap();
}

/// Sends a request about a task, and leaves the connection to the caller.
async fn raw(edge: &Edge, what: &str) -> UnixStream {
    let mut stream = UnixStream::connect(edge.socket()).await.unwrap();
    let request = format!("GET /v1/namespaces/default/tasks/a/{what} HTTP/1.1\r\nhost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[actix_rt::test]
async fn a_client_that_goes_takes_its_stream_and_its_wait_along() {
    let edge = World {
        tasks: None,
        ..World::default()
    }
    .start_with(LocalBus::new().plugin(silent()));
    let mut following = raw(&edge, "logs?follow").await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"first\n\r\n") {
        assert!(following.read_buf(&mut seen).await.unwrap() > 0, "{seen:?}");
    }
    until_open(1).await;
    let waiting = raw(&edge, "wait").await;
    until_open(2).await;
    drop(following);
    until_open(1).await;
    drop(waiting);
    until_open(0).await;
}
