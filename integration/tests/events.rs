//! The events of a node are one numbered sequence that a reader goes on with, whatever dies in between.

use std::collections::BTreeSet;
use std::time::Duration;

use hyper::Method;
use integration::Outcome;
use integration::http::{Record, Records};
use integration::node::Node;
use integration::process::until;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

async fn publish(node: &Node, number: usize) -> Outcome {
    let body =
        json!({"topic": "/story/step", "event": {"number": number}, "namespace": node.namespace()});
    node.post("/v1/events", body).await?.ok()?;
    Ok(())
}

/// Reads until the event of that number, noting every sequence number.
async fn read_to(events: &mut Records, number: usize, seen: &mut Vec<u64>) -> Outcome<String> {
    loop {
        let record = events.next(SOON).await?.ok_or("the stream ended")?;
        seen.push(record.id.parse()?);
        if record.data["event"]["number"] == number {
            return Ok(record.id);
        }
    }
}

async fn resumed(node: &Node, last: &str) -> Outcome<Records> {
    node.client()
        .clone()
        .with_header("last-event-id", last)?
        .stream(Method::GET, "/v1/events", "text/event-stream", ())
        .await
}

/// Every number from the first to the last, each once.
fn assert_whole(seen: &[u64]) {
    let first = seen.first().copied().unwrap_or_default();
    let expected: Vec<u64> = (first..first + seen.len() as u64).collect();
    assert_eq!(seen, expected);
}

#[actix_rt::test]
async fn an_open_stream_goes_on_when_the_log_is_killed() -> Outcome {
    let node = Node::start().await?;
    let mut events = node.events(0).await?;
    let mut seen = Vec::new();
    for round in 0..3 {
        publish(&node, 2 * round).await?;
        read_to(&mut events, 2 * round, &mut seen).await?;
        let killed = node.kill("events/log").await?;
        publish(&node, 2 * round + 1).await?;
        read_to(&mut events, 2 * round + 1, &mut seen).await?;
        node.until_ready_after(killed).await?;
    }
    assert_whole(&seen);
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice() -> Outcome {
    let node = Node::start().await?;
    let mut events = node.events(0).await?;
    let mut seen = Vec::new();
    publish(&node, 0).await?;
    let mut last = read_to(&mut events, 0, &mut seen).await?;
    for number in 1..4 {
        let killed = node.kill("gateway/http").await?;
        publish(&node, number).await?;
        node.until_ready_after(killed).await?;
        let mut events = resumed(&node, &last).await?;
        last = read_to(&mut events, number, &mut seen).await?;
    }
    assert_whole(&seen);
    node.stop_clean().await
}

#[actix_rt::test]
async fn numbers_go_on_after_the_whole_node_was_killed() -> Outcome {
    let mut node = Node::start().await?;
    let mut seen = Vec::new();
    publish(&node, 0).await?;
    let last = read_to(&mut node.events(0).await?, 0, &mut seen).await?;
    node.kill_supervisor().await?;
    node.restart().await?;
    publish(&node, 1).await?;
    read_to(&mut resumed(&node, &last).await?, 1, &mut seen).await?;
    assert_whole(&seen);
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_change_and_its_event_are_never_apart() -> Outcome {
    let node = Node::start().await?;
    let mut names = BTreeSet::new();
    let mut killed = Vec::new();
    for number in 0..12 {
        let name = format!("example.org/image:{number}");
        let target = json!({"media_type": "application/vnd.oci.image.manifest.v1+json", "size": 2,
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"});
        let path = node.at(&format!("/images/{name}"));
        if number % 4 == 1 {
            killed.push(node.kill("images/local").await?);
        }
        if number % 4 == 3 {
            killed.push(node.kill("events/log").await?);
        }
        node.put(&path, json!({"target": target})).await?.ok()?;
        names.insert(name);
    }
    let told = until("every event is told", SOON, async || {
        let page = node
            .get("/v1/events?limit=1000&filter=topic==%22/images/create%22")
            .await
            .ok()?;
        let items = page.ok().ok()?["items"].as_array()?.clone();
        (items.len() >= names.len()).then_some(items)
    })
    .await?;
    let mut found: Vec<&str> = told
        .iter()
        .filter_map(|event| event["event"]["name"].as_str())
        .collect();
    found.sort_unstable();
    let mut expected: Vec<&str> = names.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    node.stop_clean().await
}

#[actix_rt::test]
async fn filters_choose_and_both_forms_carry_the_same() -> Outcome {
    let node = Node::start().await?;
    publish(&node, 1).await?;
    node.post("/v1/events", json!({"topic": "/other/topic"}))
        .await?
        .ok()?;
    let filter = "/v1/events?since=0&filter=topic==%22/story/step%22";
    let first = async |accept: &str| -> Outcome<Record> {
        let mut stream = node
            .client()
            .stream(Method::GET, filter, accept, ())
            .await?;
        stream.next(SOON).await?.ok_or_else(|| "no record".into())
    };
    let (sse, ndjson) = (
        first("text/event-stream").await?,
        first("application/x-ndjson").await?,
    );
    assert_eq!(sse.data, ndjson.data);
    assert_eq!(sse.event, "/story/step");
    assert_eq!(sse.data["namespace"], node.namespace());
    assert_eq!(sse.data["event"]["number"], 1);
    let page = node.get(filter).await?.ok()?;
    assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{page}");
    node.stop_clean().await
}
