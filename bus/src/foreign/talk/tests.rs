//! Conversations with a program that is played by hand.

use super::*;
use crate::testing::{Fake, LocalBus, LocalNode};
use contracts::events::{Batch, Events, Publish, Subscribe};
use contracts::images::{Get, Images, List};
use contracts::{Code, Fd, Page, Request};
use serde_json::json;
use tokio::io::{
    AsyncBufReadExt, BufReader, DuplexStream, Lines as Read, ReadHalf, WriteHalf, split,
};
use tokio::{task::JoinHandle, time::timeout};

/// Bound of every wait in these tests.
const SOON: Duration = Duration::from_secs(10);

/// The other end: what the program would read and write.
struct Played {
    talk: Rc<Talk>,
    reads: Read<BufReader<ReadHalf<DuplexStream>>>,
    writes: WriteHalf<DuplexStream>,
    heard: JoinHandle<Result<(), String>>,
    news: mpsc::UnboundedReceiver<News>,
    _node: LocalNode,
    _folder: tempfile::TempDir,
}

fn neighbours() -> LocalBus {
    let events = Fake::<Events>::new("log")
        .on(|ctx, publish: Publish| match ctx.operation.as_str().len() {
            32 if publish.topic == "/hello" => Ok(7),
            _ => Err(Error::invalid("no")),
        })
        .stream(|_, _: Subscribe| {
            let batch = |seen| Batch {
                seen,
                ..Batch::default()
            };
            Ok(vec![batch(1), batch(2)])
        });
    let images = Fake::<Images>::new("local")
        .on(|ctx, _: List| {
            let next = ctx.namespace()?.to_string();
            Ok(Page {
                items: Vec::new(),
                next,
                version: 0,
            })
        })
        .on(|_, get: Get| Err(Error::not_found(format!("image {}", get.name))));
    LocalBus::new().fake(events).fake(images)
}

impl Played {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = neighbours().start(folder.path()).unwrap();
        let (talk, lines) = Talk::new(node.bus());
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (from, to) = split(ours);
        let (tell, news) = mpsc::unbounded_channel();
        actix::spawn(lines.speak(to));
        let hearing = talk.clone();
        let heard = actix::spawn(async move {
            let tell = move |news| drop(tell.send(news));
            hearing.hear(BufReader::new(from), tell).await
        });
        let (reads, writes) = split(theirs);
        Self {
            talk,
            reads: BufReader::new(reads).lines(),
            writes,
            heard,
            news,
            _node: node,
            _folder: folder,
        }
    }

    async fn says(&mut self, line: Value) {
        self.writes_text(&format!("{line}\n")).await;
    }

    async fn writes_text(&mut self, text: &str) {
        let _ = self.writes.write_all(text.as_bytes()).await;
    }

    async fn reads(&mut self) -> Value {
        let line = timeout(SOON, self.reads.next_line()).await.unwrap();
        serde_json::from_str(&line.unwrap().unwrap()).unwrap()
    }

    fn asked(&self, method: &str, body: Vec<u8>, left: Duration) -> JoinHandle<Result<Encoded>> {
        let ctx = Ctx::new(None).with_deadline(left);
        self.asked_with(method, body, ctx, Vec::new())
    }

    fn asked_with(
        &self,
        method: &str,
        body: Vec<u8>,
        ctx: Ctx,
        fds: Vec<Fd>,
    ) -> JoinHandle<Result<Encoded>> {
        let method = method.to_owned();
        actix::spawn(self.talk.clone().ask(Incoming {
            method,
            ctx,
            body,
            fds,
        }))
    }

    /// Ends by the program's fault, and says why.
    async fn fault(self) -> String {
        timeout(SOON, self.heard)
            .await
            .unwrap()
            .unwrap()
            .unwrap_err()
    }
}

fn text(json: &str) -> Vec<u8> {
    codec::encode(&json).unwrap()
}

#[actix::test]
async fn answers_come_in_any_order_and_reach_who_asked() {
    let mut played = Played::new();
    let first = played.asked("greeter.hello", text("{\"n\":1}"), SOON);
    let one = played.reads().await;
    let second = played.asked("greeter.hello", text("{\"n\":2}"), SOON);
    let two = played.reads().await;
    assert_eq!(
        (&one["call"], &one["request"]["n"]),
        (&json!("greeter.hello"), &json!(1))
    );
    assert_eq!(one["operation"].as_str().map(str::len), Some(32));
    assert!(one["deadline_ms"].as_u64() > Some(5_000) && one["namespace"].is_null());
    let refusal = json!({"code": "NOT_FOUND", "message": "who"});
    played
        .says(json!({"id": two["id"], "answer": "second"}))
        .await;
    played
        .says(json!({"id": one["id"], "error": refusal}))
        .await;
    let (answer, _) = second.await.unwrap().unwrap();
    assert_eq!(codec::decode::<String>(&answer).unwrap(), "\"second\"");
    assert!(first.await.unwrap().unwrap_err().is(Code::NotFound));
}

#[actix::test]
async fn a_contract_is_spoken_in_json_and_held_to_its_word() {
    let mut played = Played::new();
    let get = codec::encode(&json_of::<Get>("{\"name\":\"busybox\"}")).unwrap();
    let stat = played.asked(Get::NAME, get.clone(), SOON);
    let call = played.reads().await;
    assert_eq!(call["request"], json!({"name": "busybox"}));
    played
        .says(json!({"id": call["id"], "answer": {"name": "busybox"}}))
        .await;
    let error = stat.await.unwrap().unwrap_err();
    assert!(
        error.is(Code::Internal) && error.message.contains("missing field"),
        "{error}"
    );

    let stat = played.asked(Get::NAME, get, SOON);
    let call = played.reads().await;
    let image = json!({
        "name": "busybox", "labels": {}, "version": 1,
        "target": {"media_type": "m", "digest": format!("sha256:{}", "0".repeat(64)), "size": 1},
        "created_at": "2026-01-31T12:00:00Z", "updated_at": "2026-01-31T12:00:00Z",
    });
    played
        .says(json!({"id": call["id"], "answer": image}))
        .await;
    let (answer, _) = stat.await.unwrap().unwrap();
    let image: contracts::images::Image = codec::decode(&answer).unwrap();
    assert_eq!(image.target.size, 1);
}

fn json_of<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}

#[actix::test]
async fn what_json_cannot_carry_never_reaches_the_program() {
    let mut played = Played::new();
    let null = std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let fds = vec![Fd::from(null)];
    let carried = played.asked_with("greeter.hello", text("{}"), Ctx::new(None), fds);
    assert!(carried.await.unwrap().unwrap_err().is(Code::Unimplemented));
    let unknown = played.asked("images.paint", Vec::new(), SOON);
    assert!(unknown.await.unwrap().unwrap_err().is(Code::Unimplemented));
    played.talk.ping(1);
    assert_eq!(played.reads().await, json!({"ping": 1}));
}

#[actix::test]
async fn a_call_that_is_late_is_taken_back_and_its_late_answer_ignored() {
    let mut played = Played::new();
    let late = played.asked("greeter.hello", text("{}"), Duration::from_millis(5));
    let call = played.reads().await;
    assert_eq!(played.reads().await, json!({"cancel": call["id"]}));
    let error = late.await.unwrap().unwrap_err();
    assert!(error.is(Code::DeadlineExceeded), "{error}");
    assert_eq!(
        error.plugin.map(|p| p.to_string()).as_deref(),
        Some("test/outside")
    );
    played.says(json!({"id": call["id"], "answer": 1})).await;
    played.says(json!({"ready": true})).await;
    assert_eq!(played.news.recv().await, Some(News::Ready));
    assert_eq!(played.talk.room.available_permits(), WINDOW);
}

#[actix::test]
async fn more_calls_than_the_window_wait_and_a_ping_waits_for_none_of_them() {
    let mut played = Played::new();
    let calls: Vec<_> = (0..WINDOW + 3)
        .map(|_| played.asked("greeter.hello", text("{}"), SOON))
        .collect();
    for _ in 0..WINDOW {
        assert!(played.reads().await["id"].is_u64());
    }
    played.talk.ping(9);
    assert_eq!(played.reads().await, json!({"ping": 9}));
    for id in 1..=3 {
        played.says(json!({"id": id, "answer": 1})).await;
        assert_eq!(played.reads().await["id"], json!(WINDOW + id));
    }
    assert!(calls.iter().filter(|call| call.is_finished()).count() <= 3);
}

#[actix::test]
async fn the_program_calls_others_and_hears_their_answers_and_errors() {
    let mut played = Played::new();
    played
        .says(json!({"id": 3, "call": "images.list", "namespace": "default"}))
        .await;
    let page = json!({"id": 3, "answer": {"items": [], "next": "default", "version": 0}});
    assert_eq!(played.reads().await, page);
    let request = json!({"topic": "/hello", "event": "{}"});
    played
        .says(json!({"id": 3, "call": "events.publish", "operation": "op", "request": request}))
        .await;
    assert_eq!(played.reads().await, json!({"id": 3, "answer": 7}));
    for (method, code) in [
        ("images.get", "INVALID_ARGUMENT"),
        ("images.paint", "NOT_FOUND"),
        ("painter.paint", "NOT_FOUND"),
        ("content.stat", "INVALID_ARGUMENT"),
    ] {
        played.says(json!({"id": 4, "call": method})).await;
        assert_eq!(played.reads().await["error"]["code"], code, "{method}");
    }
}

#[actix::test]
async fn the_program_reads_a_stream_to_its_end() {
    let mut played = Played::new();
    played
        .says(json!({"id": 5, "call": "events.subscribe"}))
        .await;
    for seen in [1, 2] {
        let item = played.reads().await;
        assert_eq!(
            (&item["id"], &item["item"]["seen"]),
            (&json!(5), &json!(seen))
        );
    }
    assert_eq!(played.reads().await, json!({"id": 5, "end": true}));
    played.says(json!({"cancel": 5})).await;
    played.talk.ping(1);
    assert_eq!(played.reads().await, json!({"ping": 1}));
}

#[actix::test]
async fn nothing_that_is_wrong_is_passed_over() {
    for (lines, why) in [
        ("hello\n", "JSON lines of the protocol"),
        (
            "{\"id\":1,\"answer\":1}\n",
            "it answered call 1, which was not asked",
        ),
        ("{\"pong\":1}\n", "pong 1, which nobody asked"),
        ("{\"ready\":true}\n{\"ready\":true}\n", "ready twice"),
        (
            "{\"id\":1,\"call\":\"events.subscribe\"}\n{\"id\":1,\"call\":\"images.list\"}\n",
            "it gave two calls the id 1",
        ),
    ] {
        let mut played = Played::new();
        played.writes_text(lines).await;
        let fault = played.fault().await;
        assert!(fault.contains(why), "{fault}");
    }
}

#[actix::test]
async fn the_number_of_a_call_that_was_taken_back_is_free_at_once() {
    let mut played = Played::new();
    for _ in 0..20 {
        let lines = [
            json!({"id": 3, "call": "no.such"}),
            json!({"cancel": 3}),
            json!({"id": 3, "call": "images.list", "namespace": "default"}),
        ];
        let lines = lines.map(|line| format!("{line}\n"));
        played.writes_text(&lines.concat()).await;
        let answer = played.reads().await;
        assert_eq!(answer["answer"]["next"], "default", "{answer}");
    }
}
