//! Bytes in and out of the content store.

use crate::support::{Edge, World, digest};
use bus::testing::Fake;
use contracts::content::{
    Blob, Commit, Content, Ingest, Open, Opened, Stat, Status, Write, Writer,
};
use contracts::{Digest, Error, Fd, Timestamp};
use std::io::{Read, Seek, Write as _};
use std::sync::{Arc, Mutex};
use std::{fs::File, os::fd::OwnedFd};

fn blob(digest: Digest, size: u64) -> Blob {
    Blob {
        digest,
        size,
        labels: Default::default(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    }
}

/// A store with one blob of `bytes`, for every digest that is asked for.
fn holding(bytes: Vec<u8>) -> Edge {
    let size = bytes.len() as u64;
    let content: Fake<Content> = Fake::new("local")
        .on(move |_, stat: Stat| Ok(blob(stat.digest, size)))
        .on(move |_, open: Open| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            file.rewind().unwrap();
            Ok(Opened {
                blob: blob(open.digest, size),
                fd: Fd::from(OwnedFd::from(file)),
            })
        });
    World {
        content,
        ..World::default()
    }
    .start()
}

fn path() -> String {
    format!("/v1/namespaces/default/content/{}", digest('a'))
}

#[actix_rt::test]
async fn a_blob_comes_whole_or_in_parts() {
    let bytes: Vec<u8> = (0..700_000u32).map(|number| (number / 7) as u8).collect();
    let edge = holding(bytes.clone());
    let whole = edge.get(&path()).await;
    assert_eq!(whole.header("content-length"), "700000");
    assert_eq!(whole.header("etag"), format!("\"{}\"", digest('a')));
    assert!(whole.body == bytes, "all bytes, in order");

    let part = edge
        .ask("GET", &path())
        .header("range", "bytes=100000-299999")
        .send()
        .await;
    assert_eq!(part.status, 206);
    assert_eq!(part.header("content-range"), "bytes 100000-299999/700000");
    assert!(part.body == bytes[100_000..300_000], "the part");

    let beyond = edge
        .ask("GET", &path())
        .header("range", "bytes=700000-")
        .send()
        .await;
    beyond.problem(416, "OUT_OF_RANGE");
    assert_eq!(beyond.header("content-range"), "bytes */700000");
}

#[actix_rt::test]
async fn a_head_request_tells_the_size_without_the_bytes() {
    let edge = holding(b"abc".to_vec());
    let head = edge.ask("HEAD", &path()).send().await;
    assert_eq!((head.header("content-length"), head.body.len()), ("3", 0));
    assert_eq!(
        edge.get(&format!("{}/info", path())).await.json()["size"],
        3
    );
}

#[actix_rt::test]
async fn an_empty_blob_has_an_empty_body() {
    let edge = holding(Vec::new());
    let answer = edge.get(&path()).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("content-length")),
        (200, "0")
    );
}

/// An ingest that a thread fills from the pipe, as a store does.
fn ingesting() -> (Edge, Arc<Mutex<Vec<u8>>>) {
    let stored: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (filled, seen, committed) = (stored.clone(), stored.clone(), stored.clone());
    let content: Fake<Content> = Fake::new("local")
        .on(move |_, write: Write| {
            let (reading, writing) = rustix::pipe::pipe().unwrap();
            let filled = filled.clone();
            if write.restart {
                filled.lock().unwrap().clear();
            }
            let offset = filled.lock().unwrap().len() as u64;
            std::thread::spawn(move || {
                let mut pipe = File::from(reading);
                let mut bytes = vec![0; 1000];
                while let Ok(count @ 1..) = pipe.read(&mut bytes) {
                    filled.lock().unwrap().extend(&bytes[..count]);
                }
            });
            Ok(Writer {
                offset,
                pipe: Fd::from(writing),
            })
        })
        .on(move |_, status: Status| match seen.lock().unwrap().len() {
            0 => Err(Error::not_found("ingest: is not there")),
            offset => Ok(Ingest {
                r#ref: status.r#ref,
                offset: offset as u64,
                total: 0,
                expected: None,
                started_at: Timestamp(0),
                updated_at: Timestamp(0),
            }),
        })
        .on(move |_, commit: Commit| {
            assert_eq!(commit.r#ref.as_str(), "a/b");
            let size = committed.lock().unwrap().len() as u64;
            Ok(blob(commit.expected.unwrap(), size))
        });
    let edge = World {
        content,
        ..World::default()
    }
    .start();
    (edge, stored)
}

#[actix_rt::test]
async fn an_ingest_is_written_in_parts_and_committed() {
    let (edge, stored) = ingesting();
    let path = "/v1/namespaces/default/ingests/a/b";
    let put = |range: &str, bytes: &[u8]| {
        edge.ask("PUT", path)
            .header("content-range", range)
            .body(bytes)
    };
    let first = put("bytes 0-99999/200000", &[1; 100_000]).send().await;
    assert_eq!(
        (first.status.as_u16(), &first.json()["offset"]),
        (200, &100_000.into())
    );

    let hole = put("bytes 150000-199999/200000", &[2; 50_000]).send().await;
    let said = hole.problem(416, "OUT_OF_RANGE");
    assert!(said.contains("has 100000 bytes"), "{said}");
    assert_eq!(hole.header("range"), "0-99999");

    let second = put("bytes 100000-199999/200000", &[2; 100_000])
        .send()
        .await;
    assert_eq!(second.json()["offset"], 200_000);
    assert!(stored.lock().unwrap()[..100_000] == [1; 100_000]);

    let body = format!(r#"{{"digest":"{}","size":200000}}"#, digest('b'));
    let committed = edge.post(&format!("{path}:commit"), &body).await;
    assert_eq!(committed.status, 201);
    assert!(committed.header("location").ends_with(digest('b').as_str()));
}

#[actix_rt::test]
async fn a_body_that_is_not_as_long_as_announced_is_refused() {
    let (edge, _) = ingesting();
    let path = "/v1/namespaces/default/ingests/a/b";
    let put = edge
        .ask("PUT", path)
        .header("content-range", "bytes 0-9/*")
        .body("123");
    let said = put.send().await.problem(400, "INVALID_ARGUMENT");
    assert!(said.contains("10 bytes, 3 came"), "{said}");
}
