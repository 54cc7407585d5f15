//! What the bus promises when many call at once, when callers go away, and when messages are too large.

use actix::{Actor, Context, Handler};
use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Boot, Bus, Call, Ctx, Open, Registration, Reply, Routes, Streaming, items};
use contracts::content::{Abort, Content, Follow, Growth, Ingest, Status};
use contracts::images::{Get, Image, Images};
use contracts::{Code, Digest, Error, Ref, Result, Timestamp};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::{
    cell::Cell,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Bound of every wait in these tests.
const SOON: Duration = Duration::from_secs(10);

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {}

thread_local! {
    /// Handlers that have begun and are not dropped, on this test's thread.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
    static WRITTEN: Cell<usize> = const { Cell::new(0) };
}

struct Inside;

impl Inside {
    fn new() -> Self {
        INSIDE.set(INSIDE.get() + 1);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get() - 1);
    }
}

/// A content store that only hangs, counts and refuses.
struct Slow {
    gate: Arc<tokio::sync::Notify>,
}

thread_local! {
    static GATE: Arc<tokio::sync::Notify> = Arc::default();
    static MADE: Arc<AtomicU64> = Arc::default();
}

impl Actor for Slow {
    type Context = Context<Self>;
}

impl Handler<Call<Status>> for Slow {
    type Result = Reply<Status>;
    fn handle(&mut self, call: Call<Status>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            let _inside = Inside::new();
            match call.body.r#ref.as_str() {
                "hang" => futures_util::future::pending().await,
                name => Ok(ingest(name, call.ctx.deadline)),
            }
        })
    }
}

impl Handler<Call<Abort>> for Slow {
    type Result = Reply<Abort>;
    fn handle(&mut self, _: Call<Abort>, _: &mut Context<Self>) -> Self::Result {
        let gate = self.gate.clone();
        Box::pin(async move {
            let _inside = Inside::new();
            gate.notified().await;
            WRITTEN.set(WRITTEN.get() + 1);
            Ok(())
        })
    }
}

impl Handler<Open<Follow>> for Slow {
    type Result = Streaming<Follow>;
    fn handle(&mut self, _: Open<Follow>, _: &mut Context<Self>) -> Self::Result {
        let made = MADE.with(Clone::clone);
        let numbers = futures_util::stream::repeat_with(move || Growth {
            fd: None,
            offset: made.fetch_add(1, Ordering::Relaxed),
            complete: false,
        });
        Box::pin(async move { Ok(items(numbers.map(Ok::<_, Error>))) })
    }
}

/// The ingest's `total` says how many milliseconds the handler was given.
fn ingest(name: &str, deadline: Instant) -> Ingest {
    let left = deadline.saturating_duration_since(Instant::now());
    Ingest {
        r#ref: Ref::new(name).unwrap(),
        offset: 0,
        total: left.as_millis() as u64,
        expected: None,
        started_at: Timestamp::default(),
        updated_at: Timestamp::default(),
    }
}

fn slow() -> Registration {
    let routes = || {
        Routes::<Slow>::default()
            .on::<Status>()
            .on::<Abort>()
            .stream::<Follow>()
    };
    Registration::new::<Content>("local").start(routes, |_: Boot<Config>| {
        let gate = GATE.with(Clone::clone);
        Ok(Slow { gate })
    })
}

/// Answers nothing by itself: asks content for it.
struct Asking {
    bus: Bus,
}

impl Actor for Asking {
    type Context = Context<Self>;
}

impl Handler<Call<Get>> for Asking {
    type Result = Reply<Get>;
    fn handle(&mut self, call: Call<Get>, _: &mut Context<Self>) -> Self::Result {
        let bus = self.bus.clone();
        Box::pin(async move {
            let ingest = bus.call(&call.ctx, status(call.body.name.as_str())).await?;
            Err(Error::not_found(ingest.total.to_string()))
        })
    }
}

fn asking() -> Registration {
    Registration::new::<Images>("local")
        .requires::<Content>()
        .start(
            || Routes::<Asking>::default().on::<Get>(),
            |boot: Boot<Config>| Ok(Asking { bus: boot.bus }),
        )
}

fn node(dir: &tempfile::TempDir) -> LocalNode {
    let bus = LocalBus::new().plugin(slow()).plugin(asking());
    bus.start(dir.path()).unwrap()
}

fn status(name: &str) -> Status {
    Status {
        r#ref: Ref::new(name).unwrap(),
    }
}

fn follow() -> Follow {
    Follow {
        r#ref: Ref::new("x").unwrap(),
        digest: Digest::sha256(&[7; 32]),
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "not in time: {what}");
}

type Task<T> = tokio::task::JoinHandle<Result<T>>;

fn asked(bus: &Bus, name: &str) -> Task<Ingest> {
    let (bus, request) = (bus.clone(), status(name));
    actix::spawn(async move { bus.call(&Ctx::new(None), request).await })
}

#[actix::test]
async fn a_thousand_calls_at_once_are_all_answered() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let calls: Vec<_> = (0..1000).map(|i| asked(&bus, &format!("c{i}"))).collect();
    for (i, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap().r#ref.as_str(), format!("c{i}"));
    }
}

#[actix::test]
async fn a_dropped_read_is_dropped_where_it_is_handled() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let call = asked(&bus, "hang");
    until("it is handled", || INSIDE.get() == 1).await;
    call.abort();
    until("its handler is dropped", || INSIDE.get() == 0).await;
}

#[actix::test]
async fn reads_that_nobody_waits_for_leave_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let hanging: Vec<_> = (0..3000).map(|_| asked(&bus, "hang")).collect();
    until("many are handled", || INSIDE.get() > 500).await;
    hanging.iter().for_each(Task::abort);
    assert!(asked(&bus, "quick").await.unwrap().is_ok());
    until("their handlers are dropped", || INSIDE.get() == 0).await;
}

#[actix::test]
async fn a_dropped_call_takes_the_calls_made_for_it_along() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let get = Get {
        name: "hang".parse().unwrap(),
    };
    let call = actix::spawn(async move { bus.call(&Ctx::new(None), get).await });
    until("the inner call is handled", || INSIDE.get() == 1).await;
    call.abort();
    until("its handler is dropped", || INSIDE.get() == 0).await;
}

#[actix::test]
async fn a_dropped_write_is_carried_out() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let abort = Abort {
        r#ref: Ref::new("x").unwrap(),
    };
    let call = actix::spawn({
        let bus = bus.clone();
        async move { bus.call(&Ctx::new(None), abort).await }
    });
    until("it is handled", || INSIDE.get() == 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // The cancellation is before this call on the same link.
    assert!(asked(&bus, "quick").await.unwrap().is_ok());
    GATE.with(|gate| gate.notify_one());
    until("it is carried out", || WRITTEN.get() == 1).await;
}

#[actix::test]
async fn a_stream_runs_ahead_of_its_reader_by_its_credit_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let made = MADE.with(Clone::clone);
    let mut stream = bus.open(&Ctx::new(None), follow()).await.unwrap();
    for taken in 1..=1000 {
        stream.next().await.unwrap().unwrap();
        let ahead = made.load(Ordering::Relaxed) - taken;
        assert!(ahead <= 16 + 1, "{ahead} ahead after {taken}");
    }
    assert_eq!(
        Arc::strong_count(&made),
        3,
        "the test, its thread, the stream"
    );
    drop(stream);
    until("the stream is dropped", || Arc::strong_count(&made) == 2).await;
}

#[actix::test]
async fn a_deadline_is_passed_on_to_the_calls_made_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let get = |name: &str| Get {
        name: name.parse().unwrap(),
    };
    let ctx = Ctx::new(None).with_deadline(Duration::from_secs(5));
    let left = bus.call(&ctx, get("quick")).await.unwrap_err().message;
    let left: u64 = left.parse().unwrap();
    assert!((1..=5000).contains(&left), "{left} ms of 5000");
    let ctx = Ctx::new(None).with_deadline(Duration::from_millis(50));
    let error = bus.call(&ctx, get("hang")).await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
    until("both handlers are dropped", || INSIDE.get() == 0).await;
}

#[actix::test]
async fn the_longest_deadline_is_none_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let ctx = Ctx::new(None).with_deadline(Duration::MAX);
    assert!(bus.call(&ctx, status("quick")).await.is_ok());
}

#[actix::test]
async fn those_who_wait_for_a_plugin_hear_at_once_that_it_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir);
    let waiting: Vec<_> = (0..100).map(|_| asked(&node.bus(), "hang")).collect();
    until("all are handled", || INSIDE.get() == 100).await;
    node.declare_failed("content/local", "exit code 7").unwrap();
    let begun = Instant::now();
    for call in waiting {
        let error = call.await.unwrap().unwrap_err();
        assert!(error.message.contains("exit code 7"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[actix::test]
async fn a_message_past_the_limit_names_its_method() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::<Images>::new("local").on(|_, get: Get| {
        let mut image: Image =
            serde_json::from_str(IMAGE).map_err(|e| Error::internal(e.to_string()))?;
        let size = get.name.as_str().parse().unwrap_or(0);
        image.target.media_type = "x".repeat(size);
        Ok(image)
    });
    let bus = LocalBus::new().fake(fake).start(dir.path()).unwrap().bus();
    let get = |size: usize| Get {
        name: size.to_string().parse().unwrap(),
    };
    let limit = 4 << 20;
    for size in (limit - 400..limit + 20).step_by(7) {
        match bus.call(&Ctx::new(None), get(size)).await {
            Ok(image) => assert_eq!(image.target.media_type.len(), size),
            Err(e) => {
                assert_eq!(e.code, Code::ResourceExhausted, "{size}: {e}");
                assert!(e.message.contains("images.get"), "{e}");
                assert!(size > limit - 300, "{size}: {e}");
            }
        }
    }
    let put = |size: usize| contracts::images::Put {
        name: "a".parse().unwrap(),
        target: serde_json::from_str::<Image>(IMAGE).unwrap().target,
        labels: [("a".to_owned(), "x".repeat(size))].into(),
        version: None,
    };
    for size in (limit - 400..limit + 20).step_by(7) {
        let error = bus.call(&Ctx::new(None), put(size)).await.unwrap_err();
        let fits = error.message.contains("was not taught");
        assert!(fits || size > limit - 300, "{size}: {error}");
        assert!(error.message.contains("images.put"), "{error}");
    }
}

const IMAGE: &str = r#"{
    "name": "a", "labels": {}, "version": 1,
    "created_at": "2026-01-31T12:00:00Z", "updated_at": "2026-01-31T12:00:00Z",
    "target": {"media_type": "", "size": 1,
        "digest": "sha256:0000000000000000000000000000000000000000000000000000000000000000"}
}"#;
