//! Readers that stall cost nobody anything, and what retention has passed is told.
//!
//! Small here; `GANTRY_STORM=100000x500` makes it as large as the promise. Latencies and rates are printed, not judged.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use hyper::Method;
use integration::Outcome;
use integration::http::{Client, Connection, Records};
use integration::node::{Node, Setup};
use integration::process::{pss, until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
/// Publishers at a time.
const PUBLISHERS: usize = 8;
/// What one stalled reader may cost the gateway, in bytes: its connection and one page.
const PER_READER: u64 = 512 << 10;

/// Events and readers of this run.
fn size() -> (usize, usize) {
    let given = std::env::var("GANTRY_STORM").unwrap_or_default();
    let parts = given
        .split_once('x')
        .and_then(|(events, readers)| Some((events.parse().ok()?, readers.parse().ok()?)));
    parts.unwrap_or((1000, 200))
}

fn body(number: usize) -> Value {
    json!({"topic": "/storm/step", "event": {"number": number, "text": "x".repeat(100)}})
}

async fn publish(connection: &mut Connection, number: usize) -> Outcome<Duration> {
    let begun = Instant::now();
    connection
        .send(Method::POST, "/v1/events", body(number))
        .await?
        .ok()?;
    Ok(begun.elapsed())
}

/// Publishes with several connections at a time. Answers how long each event took, sorted, and all of them.
async fn storm(
    client: &Client,
    from: usize,
    count: usize,
    publishers: usize,
) -> Outcome<(Vec<Duration>, Duration)> {
    let begun = Instant::now();
    let mut parts = Vec::new();
    for part in 0..publishers {
        let client = client.clone();
        let numbers = (from + part..from + count).step_by(publishers);
        parts.push(tokio::spawn(async move {
            let mut connection = client.connect().await?;
            let mut times = Vec::new();
            for number in numbers {
                times.push(publish(&mut connection, number).await?);
            }
            Outcome::Ok(times)
        }));
    }
    let mut times = Vec::new();
    for part in parts {
        times.extend(part.await??);
    }
    times.sort();
    Ok((times, begun.elapsed()))
}

fn quantile(sorted: &[Duration], of: f64) -> Duration {
    let place = (sorted.len() as f64 * of) as usize;
    sorted
        .get(place.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

async fn pid(node: &Node, plugin: &str) -> Outcome<i32> {
    Ok(node.incarnation(plugin).await?.pid)
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .count()
}

/// Opens readers that read not one record.
async fn stalled(node: &Node, count: usize) -> Outcome<Vec<Records>> {
    let mut readers = Vec::new();
    for number in 0..count {
        // Half begin where the log begins, half where it ends.
        let since = ["?since=0", ""][number % 2];
        let accept = ["text/event-stream", "application/x-ndjson"][number / 2 % 2];
        let path = format!("/v1/events{since}");
        readers.push(node.client().stream(Method::GET, &path, accept, ()).await?);
    }
    Ok(readers)
}

/// Reads the whole log by pages. Errors: a hole.
async fn numbers(node: &Node) -> Outcome<BTreeSet<u64>> {
    let (mut since, mut found) = (0, BTreeSet::new());
    loop {
        let page = node
            .get(&format!("/v1/events?since={since}&limit=256"))
            .await?
            .ok()?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            return Ok(found);
        }
        for item in items {
            let seq = item["seq"].as_u64().unwrap_or_default();
            if seq != since + 1 {
                return Err(format!("event {seq} comes after {since}").into());
            }
            since = seq;
            found.extend(item["event"]["number"].as_u64());
        }
    }
}

#[actix_rt::test]
async fn readers_that_stall_cost_publishers_nothing_and_the_node_little() -> Outcome {
    let (events, readers) = size();
    let setup = Setup::default().config("[plugins.\"events/log\"]\nretain_bytes = 1073741824");
    let node = Node::start_with(setup).await?;
    let (gateway, log) = (
        pid(&node, "gateway/http").await?,
        pid(&node, "events/log").await?,
    );
    storm(node.client(), 0, events, PUBLISHERS).await?;
    let (free, _) = storm(node.client(), events, events, PUBLISHERS).await?;
    let before = (
        pss(gateway),
        pss(log),
        descriptors(gateway),
        descriptors(log),
    );
    let mut waiting = stalled(&node, readers).await?;
    let (busy, _) = storm(node.client(), 2 * events, events, PUBLISHERS).await?;
    let after = (
        pss(gateway),
        pss(log),
        descriptors(gateway),
        descriptors(log),
    );

    let ratio = |of| quantile(&busy, of).as_secs_f64() / quantile(&free, of).as_secs_f64();
    println!(
        "{events} events, {readers} stalled readers: median {:?} → {:?} (×{:.2}), 99th of 100 {:?} → {:?} (×{:.2})",
        quantile(&free, 0.5),
        quantile(&busy, 0.5),
        ratio(0.5),
        quantile(&free, 0.99),
        quantile(&busy, 0.99),
        ratio(0.99)
    );
    println!(
        "gateway {} → {} KiB, log {} → {} KiB",
        before.0 >> 10,
        after.0 >> 10,
        before.1 >> 10,
        after.1 >> 10
    );
    let grown = after.0.saturating_sub(before.0);
    assert!(
        grown < readers as u64 * PER_READER,
        "the gateway grew by {grown} bytes"
    );
    // The log does not know how many read.
    let grown = after.1.saturating_sub(before.1);
    assert!(grown < 64 << 20, "the log grew by {grown} bytes");
    assert!(
        after.2 <= before.2 + readers + PUBLISHERS + 8,
        "descriptors of the gateway: {before:?} {after:?}"
    );
    assert!(
        after.3 <= before.3 + 8,
        "descriptors of the log: {before:?} {after:?}"
    );

    let numbers = numbers(&node).await?;
    assert_eq!(numbers.len(), 3 * events);
    // Who wakes up reads on from where it stood, without a hole.
    for reader in waiting.iter_mut().take(4) {
        let mut last = None;
        for _ in 0..100 {
            let record = reader.next(SOON).await?.ok_or("the stream ended")?;
            let seq = record.data["seq"].as_u64();
            assert!(
                last.is_none() || seq == last.map(|last: u64| last + 1),
                "{seq:?} after {last:?}"
            );
            last = seq;
        }
    }
    drop(waiting);
    until("the gateway lets go of its readers", SOON, async || {
        (descriptors(gateway) <= before.2 + 8).then_some(())
    })
    .await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn more_readers_than_a_link_has_calls_keep_nobody_out() -> Outcome {
    let node = Node::start().await?;
    let waiting = stalled(&node, 1200).await?;
    let (times, _) = storm(node.client(), 0, 16, 2).await?;
    assert_eq!(times.len(), 16);
    drop(waiting);
    node.stop_clean().await
}

#[actix_rt::test]
async fn events_are_appended_durably_side_by_side() -> Outcome {
    let node = Node::start().await?;
    let mut from = 0;
    for (publishers, count) in [(1, 200), (8, 800), (64, 3200)] {
        let (times, took) = storm(node.client(), from, count, publishers).await?;
        from += count;
        println!(
            "{publishers} publishers: {:.0} events a second, median {:?}",
            count as f64 / took.as_secs_f64(),
            quantile(&times, 0.5)
        );
    }
    let found = numbers(&node).await?;
    assert_eq!(found, (0..from as u64).collect());
    node.stop_clean().await
}

#[actix_rt::test]
async fn what_retention_has_passed_is_told_to_every_kind_of_reader() -> Outcome {
    let setup = Setup::default().config("[plugins.\"events/log\"]\nretain_bytes = 20000");
    let node = Node::start_with(setup).await?;
    storm(node.client(), 0, 600, 4).await?;
    let page = node.get("/v1/events?since=5&limit=10").await?.ok()?;
    let (first, last) = (page["gap"]["first"].as_u64(), page["gap"]["last"].as_u64());
    assert_eq!(first, Some(6), "{page}");
    assert!(last > Some(300), "{page}");
    assert_eq!(page["items"][0]["seq"].as_u64(), last.map(|last| last + 1));
    for accept in ["text/event-stream", "application/x-ndjson"] {
        let client = node.client().clone().with_header("last-event-id", "5")?;
        let mut stream = client.stream(Method::GET, "/v1/events", accept, ()).await?;
        let gap = stream.next(SOON).await?.ok_or("the stream ended")?;
        assert_eq!(gap.data["gap"]["first"], 6, "{gap:?}");
        let next = stream.next(SOON).await?.ok_or("the stream ended")?;
        let behind = gap.data["gap"]["last"].as_u64().map(|last| last + 1);
        assert_eq!(next.data["seq"].as_u64(), behind, "{next:?}");
    }
    node.stop_clean().await
}
