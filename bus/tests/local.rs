//! What the bus promises, seen through real links in one process.

use actix::{Actor, Context, Handler};
use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Boot, Call, Ctx, Open, Registration, Reply, Routes, Streaming, items};
use contracts::content::{Abort, Content, Follow, Growth, Open as OpenBlob, Opened, Stat, Status};
use contracts::images::{Get, Images};
use contracts::{Code, Digest, Error, Fd, Ref, Result};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::{io::Read, time::Duration};

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {}

/// Answers a few content calls without a store.
struct Echo;

impl Actor for Echo {
    type Context = Context<Self>;
}

impl Handler<Call<Status>> for Echo {
    type Result = Reply<Status>;
    fn handle(&mut self, call: Call<Status>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            match call.body.r#ref.as_str() {
                "hang" => futures_util::future::pending().await,
                name => Err(Error::not_found(format!(
                    "ingest {name}: not there ({})",
                    call.ctx.operation
                ))),
            }
        })
    }
}

impl Handler<Call<OpenBlob>> for Echo {
    type Result = Reply<OpenBlob>;
    fn handle(&mut self, call: Call<OpenBlob>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            let (mut near, far) = std::os::unix::net::UnixStream::pair()
                .map_err(|e| Error::internal(e.to_string()))?;
            std::io::Write::write_all(&mut near, b"through a descriptor")
                .map_err(|e| Error::internal(e.to_string()))?;
            let now = contracts::Timestamp::now();
            let blob = contracts::content::Blob {
                digest: call.body.digest,
                size: 20,
                labels: Default::default(),
                created_at: now,
                updated_at: now,
            };
            Ok(Opened {
                blob,
                fd: Fd::from(std::os::fd::OwnedFd::from(far)),
            })
        })
    }
}

impl Handler<Open<Follow>> for Echo {
    type Result = Streaming<Follow>;
    fn handle(&mut self, _: Open<Follow>, _: &mut Context<Self>) -> Self::Result {
        let numbers = futures_util::stream::iter(0..1000u64);
        Box::pin(async move {
            Ok(items(numbers.map(|offset| {
                Ok::<_, Error>(Growth {
                    fd: None,
                    offset,
                    complete: offset == 999,
                })
            })))
        })
    }
}

fn echo() -> Registration {
    let routes = || {
        Routes::<Echo>::default()
            .on::<Status>()
            .on::<OpenBlob>()
            .stream::<Follow>()
    };
    Registration::new::<Content>("local").start(routes, |_: Boot<Config>| Ok(Echo))
}

fn node(dir: &tempfile::TempDir) -> Result<LocalNode> {
    LocalBus::new().plugin(echo()).start(dir.path())
}

fn status(name: &str) -> Status {
    Status {
        r#ref: Ref::new(name).unwrap(),
    }
}

#[actix::test]
async fn an_error_crosses_with_code_and_message() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir).unwrap();
    let ctx = Ctx::new(None);
    let first = node.bus().call(&ctx, status("x")).await.unwrap_err();
    assert_eq!(first.code, Code::NotFound);
    let again = node.bus().call(&ctx, status("x")).await.unwrap_err();
    assert_eq!(
        first, again,
        "the same call made again has the same operation id"
    );
    let other = node
        .bus()
        .call(&ctx.step("other"), status("x"))
        .await
        .unwrap_err();
    assert_ne!(first, other, "another step has another");
}

#[actix::test]
async fn a_descriptor_arrives_open() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir).unwrap();
    let digest = Digest::sha256(&[7; 32]);
    let opened = node
        .bus()
        .call(&Ctx::new(None), OpenBlob { digest })
        .await
        .unwrap();
    let mut text = String::new();
    std::fs::File::from(opened.fd.into_owned().unwrap())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "through a descriptor");
}

#[actix::test]
async fn a_stream_delivers_everything_in_order_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir).unwrap();
    let follow = Follow {
        r#ref: Ref::new("x").unwrap(),
        digest: Digest::sha256(&[7; 32]),
    };
    let stream = node.bus().open(&Ctx::new(None), follow).await.unwrap();
    let seen: Vec<u64> = stream.map(|item| item.unwrap().offset).collect().await;
    assert_eq!(seen, (0..1000).collect::<Vec<_>>());
}

#[actix::test]
async fn a_pending_call_is_sent_again_to_the_successor() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(&dir).unwrap();
    let bus = node.bus();
    let follow = Follow {
        r#ref: Ref::new("x").unwrap(),
        digest: Digest::sha256(&[7; 32]),
    };
    let mut broken = bus.open(&Ctx::new(None), follow).await.unwrap();
    let waiting = actix::spawn({
        let bus = bus.clone();
        async move {
            bus.call(
                &Ctx::new(None).with_deadline(Duration::from_millis(300)),
                status("hang"),
            )
            .await
        }
    });
    tokio::task::yield_now().await;
    node.restart("content/local").await.unwrap();
    assert!(
        bus.call(&Ctx::new(None), status("x"))
            .await
            .unwrap_err()
            .is(Code::NotFound),
        "the successor answers"
    );
    let late = waiting.await.unwrap().unwrap_err();
    assert_eq!(
        late.code,
        Code::DeadlineExceeded,
        "the pending call reached the successor and hung there: {late}"
    );
    let end = loop {
        match broken.next().await {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    assert!(
        end.unwrap().unwrap_err().is(Code::Unavailable),
        "a stream breaks; its reader resumes it"
    );
}

#[actix::test]
async fn a_failed_plugin_is_named_with_cause_and_chain() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir).unwrap();
    node.declare_failed("content/local", "exit code 7").unwrap();
    let error = node
        .bus()
        .call(&Ctx::new(None), status("x"))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(
        error.message.contains("content/local") && error.message.contains("exit code 7"),
        "{error}"
    );
    assert_eq!(error.plugin.unwrap().as_str(), "content/local");
}

#[actix::test]
async fn an_unknown_method_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir).unwrap();
    let error = node
        .bus()
        .call(
            &Ctx::new(None),
            Abort {
                r#ref: Ref::new("x").unwrap(),
            },
        )
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unimplemented);
    let error = node
        .bus()
        .call(
            &Ctx::new(None),
            Get {
                name: "x".parse().unwrap(),
            },
        )
        .await
        .unwrap_err();
    assert!(error.message.contains("images"), "{error}");
}

#[actix::test]
async fn a_message_of_a_megabyte_crosses_in_fragments() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::<Images>::new("local").on(|_, _: contracts::images::List| {
        let target = contracts::Descriptor {
            media_type: "x".repeat(1 << 20),
            digest: Digest::sha256(&[1; 32]),
            size: 1,
            annotations: Default::default(),
            platform: None,
            urls: Vec::new(),
        };
        let now = contracts::Timestamp::now();
        let image = contracts::images::Image {
            name: "a".parse()?,
            target,
            labels: Default::default(),
            created_at: now,
            updated_at: now,
            version: 1,
        };
        Ok(contracts::Page {
            items: vec![image],
            next: String::new(),
            version: 1,
        })
    });
    let node = LocalBus::new().fake(fake).start(dir.path()).unwrap();
    let page = node
        .bus()
        .call(&Ctx::new(None), contracts::images::List::default())
        .await
        .unwrap();
    assert_eq!(page.items[0].target.media_type.len(), 1 << 20);
}

#[actix::test]
async fn json_reaches_every_method_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir).unwrap();
    let methods = bus::json::Methods::default();
    assert!(methods.names().count() > 80);
    let error = methods
        .call(
            &node.bus(),
            None,
            &Ctx::new(None),
            "content.ingest",
            r#"{"ref":"x"}"#,
        )
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    let error = methods
        .call(&node.bus(), None, &Ctx::new(None), "content.nope", "{}")
        .await
        .unwrap_err();
    assert!(error.message.contains("content.stat"), "{error}");
    let error = methods
        .call(
            &node.bus(),
            None,
            &Ctx::new(None),
            "content.stat",
            r#"{"digest":"sha256:1"}"#,
        )
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    let _ = Stat {
        digest: Digest::sha256(&[0; 32]),
    };
}
