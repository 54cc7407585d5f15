//! A container that writes without end fills no disk, and what is not kept of its log is said.

use std::fs;
use std::time::Duration;

use integration::Outcome;
use integration::image::sample;
use integration::node::{Node, Setup};
use integration::process::until;
use integration::registry::Registry;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const BOUND: u64 = 100_000;
const LINES: u64 = 20_000;

/// The numbers of a log's lines, and the bytes that are said not to be kept.
fn read(log: &str) -> (Vec<u64>, Vec<u64>) {
    let records = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let (mut numbers, mut gaps) = (Vec::new(), Vec::new());
    for record in records {
        match record["lost"].as_u64() {
            Some(lost) => gaps.push(lost),
            None => numbers.extend(
                record["line"]
                    .as_str()
                    .and_then(|line| line.parse::<u64>().ok()),
            ),
        }
    }
    (numbers, gaps)
}

#[actix_rt::test]
async fn a_log_keeps_its_bound_and_says_what_is_gone() -> Outcome {
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let config = format!("[plugins.\"tasks/local\"]\nlog_bytes = {BOUND}");
    let node = Node::start_with(Setup::default().config(&config)).await?;
    node.pull(&image).await?;
    for runtime in ["", "io.containerd.runc.v2"] {
        let args = json!(["seq", "1", LINES.to_string()]);
        let body = json!({"id": "one", "image": image, "args": args, "runtime": runtime});
        node.run_with(body).await?;
        assert_eq!(node.exit_code("one").await?, 0);
        let folder = node
            .root()
            .join("tasks/local/logs")
            .join(node.namespace())
            .join("one");
        let mut bytes = 0;
        for entry in fs::read_dir(&folder)?.flatten() {
            bytes += entry.metadata()?.len();
        }
        assert!(bytes <= BOUND + 100, "{runtime}: {bytes}");
        let ndjson = node.client().clone();
        let ndjson = ndjson.with_header("accept", "application/x-ndjson")?;
        let get = async |query: &str| {
            let path = node.at(&format!("/tasks/one/logs{query}"));
            Ok::<_, integration::Error>(ndjson.send(hyper::Method::GET, &path, ()).await?.text())
        };
        let (numbers, gaps) = read(&get("").await?);
        let first = LINES + 1 - numbers.len() as u64;
        assert!(first > 1, "nothing was dropped");
        assert_eq!(numbers, (first..=LINES).collect::<Vec<_>>(), "{runtime}");
        let [lost] = gaps[..] else {
            return Err(format!("{runtime}: gaps {gaps:?}").into());
        };
        // A line of this log has a head of 43 bytes or so.
        assert!(lost > first * 40, "{lost} bytes for {first} lines");
        let said = node.logs("one").await?;
        assert!(
            said.starts_with(&format!("[about {lost} bytes")),
            "{}",
            &said[..100]
        );
        for count in [1, 700, numbers.len() as u64] {
            let (tail, gaps) = read(&get(&format!("?tail={count}")).await?);
            assert_eq!(tail, (LINES + 1 - count..=LINES).collect::<Vec<_>>());
            assert_eq!(gaps, Vec::<u64>::new());
        }
        node.remove("one").await?;
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn who_follows_a_log_reads_on_when_a_file_is_full() -> Outcome {
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let config = format!("[plugins.\"tasks/local\"]\nlog_bytes = {BOUND}");
    let node = Node::start_with(Setup::default().config(&config)).await?;
    node.pull(&image).await?;
    let script = "i=0; while [ $i -lt 4000 ]; do i=$((i+1)); echo $i; done";
    node.run("one", &image, &["sh", "-c", script]).await?;
    let ndjson = node.client().clone();
    let ndjson = ndjson.with_header("accept", "application/x-ndjson")?;
    let path = node.at("/tasks/one/logs?follow=true");
    let log = ndjson.send(hyper::Method::GET, &path, ()).await?.text();
    let (numbers, gaps) = read(&log);
    assert_eq!(numbers.last(), Some(&4000));
    assert!(numbers.is_sorted());
    // Every number is there, or it is said that some are not.
    assert!(
        numbers.len() == 4000 || !gaps.is_empty(),
        "{} {gaps:?}",
        numbers.len()
    );
    until("it has ended", SOON, async || {
        let task = node.task("one").await.ok()?;
        (task["status"] == "stopped").then_some(())
    })
    .await?;
    node.remove("one").await?;
    node.stop_clean().await
}
