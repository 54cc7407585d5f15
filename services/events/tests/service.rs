//! What the log promises, over the bus.

use bus::testing::{LocalBus, LocalNode};
use bus::{Bus, Ctx};
use contracts::events::{Append, Batch, Entry, Info, List, Publish, Subscribe};
use contracts::{Code, Namespace, PluginId, Result, Timestamp};
use futures_util::{Stream, StreamExt};
use std::{pin::Pin, time::Duration};

type Batches = Pin<Box<dyn Stream<Item = Result<Batch>>>>;

fn node(dir: &tempfile::TempDir) -> LocalNode {
    LocalBus::new()
        .plugin(events::plugin())
        .start(dir.path())
        .unwrap()
}

fn node_with(dir: &tempfile::TempDir, config: &str) -> LocalNode {
    LocalBus::new()
        .plugin_with(events::plugin(), config)
        .start(dir.path())
        .unwrap()
}

fn ctx() -> Ctx {
    Ctx::new(Some(Namespace::new("default").unwrap()))
}

fn entry(number: u64) -> Entry {
    Entry {
        time: Timestamp::now(),
        namespace: Some(Namespace::new("default").unwrap()),
        topic: "/things/create".into(),
        event: format!(r#"{{"number":{number}}}"#),
    }
}

fn rows(first: u64, last: u64) -> Append {
    Append {
        source: PluginId::new("things/local").unwrap(),
        epoch: 1,
        first,
        entries: (first..=last).map(entry).collect(),
    }
}

async fn publish(bus: &Bus, topic: &str, event: &str) -> Result<u64> {
    let (topic, event) = (topic.to_owned(), event.to_owned());
    bus.call(&ctx(), Publish { topic, event }).await
}

fn some(filter: &str) -> Vec<String> {
    let filter = (!filter.is_empty()).then(|| filter.to_owned());
    filter.into_iter().collect()
}

async fn list(bus: &Bus, since: u64, filter: &str) -> Batch {
    let filters = some(filter);
    let list = List {
        since,
        filters,
        limit: 0,
    };
    bus.call(&ctx(), list).await.unwrap()
}

fn numbers(batch: &Batch) -> Vec<u64> {
    batch.events.iter().map(|event| event.seq).collect()
}

async fn subscribe(bus: &Bus, since: Option<u64>, filter: &str) -> Batches {
    let filters = some(filter);
    bus.open(&ctx(), Subscribe { since, filters })
        .await
        .unwrap()
}

async fn next(stream: &mut Batches) -> Batch {
    tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .expect("a batch in time")
        .expect("the stream goes on")
        .unwrap()
}

#[actix_rt::test]
async fn rows_handed_over_twice_are_stored_once_and_holes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(&dir);
    let bus = node.bus();
    assert_eq!(bus.call(&ctx(), rows(1, 3)).await.unwrap(), 3);
    assert_eq!(bus.call(&ctx(), rows(1, 3)).await.unwrap(), 3, "repeated");
    assert_eq!(
        bus.call(&ctx(), rows(2, 5)).await.unwrap(),
        5,
        "overlapping"
    );
    let hole = bus.call(&ctx(), rows(7, 7)).await.unwrap_err();
    assert_eq!(hole.code, Code::InvalidArgument, "{hole}");
    node.restart("events/log").await.unwrap();
    assert_eq!(
        bus.call(&ctx(), rows(4, 6)).await.unwrap(),
        6,
        "after a restart"
    );
    let all = list(&bus, 0, "").await;
    assert_eq!(numbers(&all), [1, 2, 3, 4, 5, 6]);
    let payloads: Vec<_> = all.events.iter().map(|e| e.entry.event.clone()).collect();
    let expected: Vec<_> = (1..=6).map(|n| format!(r#"{{"number":{n}}}"#)).collect();
    assert_eq!(payloads, expected);
}

#[actix_rt::test]
async fn a_new_life_of_an_outbox_begins_at_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    assert_eq!(
        bus.call(&ctx(), rows(40, 41)).await.unwrap(),
        2,
        "first contact"
    );
    let rebuilt = Append {
        epoch: 2,
        ..rows(1, 1)
    };
    assert_eq!(bus.call(&ctx(), rebuilt).await.unwrap(), 3);
}

#[actix_rt::test]
async fn a_repeated_publish_is_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let (context, topic, event) = (ctx(), "/a".to_owned(), "{}".to_owned());
    let once = Publish { topic, event };
    assert_eq!(bus.call(&context, once.clone()).await.unwrap(), 1);
    assert_eq!(bus.call(&context, once).await.unwrap(), 1);
    assert_eq!(bus.call(&ctx(), Info {}).await.unwrap().last, 1);
}

#[actix_rt::test]
async fn a_bad_topic_payload_filter_or_number_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    for (topic, event) in [
        ("a", "{}"),
        ("/", "{}"),
        ("/a//b", "{}"),
        ("/a", "[]"),
        ("/a", "x"),
    ] {
        let error = publish(&bus, topic, event).await.unwrap_err();
        assert_eq!(
            error.code,
            Code::InvalidArgument,
            "{topic} {event}: {error}"
        );
    }
    let filters = vec!["topic==".to_owned()];
    let error = bus
        .call(
            &ctx(),
            List {
                filters,
                ..List::default()
            },
        )
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument, "{error}");
    let since = 9;
    let error = bus
        .call(
            &ctx(),
            List {
                since,
                ..List::default()
            },
        )
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::OutOfRange, "{error}");
}

#[actix_rt::test]
async fn a_filtered_list_says_how_far_it_looked() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    bus.call(&ctx(), rows(1, 10)).await.unwrap();
    let one = list(&bus, 0, "event.number==4").await;
    assert_eq!((numbers(&one), one.seen, one.end), (vec![4], 10, true));
    let none = list(&bus, 0, r#"topic=="/tasks/exit""#).await;
    assert_eq!((numbers(&none), none.seen), (vec![], 10));
    let few = List {
        since: 2,
        limit: 3,
        ..List::default()
    };
    let few = bus.call(&ctx(), few).await.unwrap();
    assert_eq!(
        (numbers(&few), few.seen, few.end),
        (vec![3, 4, 5], 5, false)
    );
}

#[actix_rt::test]
async fn a_subscriber_gets_history_in_batches_and_then_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    bus.call(&ctx(), rows(1, 600)).await.unwrap();
    let mut stream = subscribe(&bus, Some(0), "").await;
    let mut seen = Vec::new();
    while seen.len() < 600 {
        let batch = next(&mut stream).await;
        assert!(batch.events.len() <= 256);
        seen.extend(numbers(&batch));
    }
    bus.call(&ctx(), rows(601, 601)).await.unwrap();
    seen.extend(numbers(&next(&mut stream).await));
    assert_eq!(seen, (1..=601).collect::<Vec<_>>());
}

#[actix_rt::test]
async fn without_a_number_only_what_happens_from_now_on_comes() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    bus.call(&ctx(), rows(1, 5)).await.unwrap();
    let mut stream = subscribe(&bus, None, "topic~=|^/a/|").await;
    let first = next(&mut stream).await;
    assert_eq!(
        (numbers(&first), first.seen),
        (vec![], 5),
        "headers at once"
    );
    publish(&bus, "/b/c", "{}").await.unwrap();
    publish(&bus, "/a/b", "{}").await.unwrap();
    assert_eq!(numbers(&next(&mut stream).await), [7]);
}

#[actix_rt::test]
async fn a_reader_that_stands_still_loses_nothing_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let bus = node(&dir).bus();
    let mut slow = subscribe(&bus, Some(0), "").await;
    for block in 0..20 {
        let append = rows(1 + block * 500, (block + 1) * 500);
        bus.call(&ctx(), append).await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.len() < 10_000 {
        seen.extend(numbers(&next(&mut slow).await));
    }
    assert_eq!(seen, (1..=10_000).collect::<Vec<_>>());
}

#[actix_rt::test]
async fn what_retention_passed_is_told_as_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let node = node_with(&dir, r#"{"retain_bytes": 400}"#);
    let bus = node.bus();
    for number in 1..=100 {
        bus.call(&ctx(), rows(number, number)).await.unwrap();
    }
    let info = bus.call(&ctx(), Info {}).await.unwrap();
    assert!(
        info.bytes <= 400 && info.first > 80 && info.last == 100,
        "{info:?}"
    );
    let batch = list(&bus, 10, "").await;
    assert_eq!(batch.gap, Some((11, info.first - 1)));
    assert_eq!(numbers(&batch), (info.first..=100).collect::<Vec<_>>());
    let recent = list(&bus, info.first, "").await;
    assert_eq!(recent.gap, None);
}

#[actix_rt::test]
async fn what_is_too_old_goes_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = node(&dir);
    let bus = node.bus();
    let mut old = rows(1, 3);
    for entry in &mut old.entries {
        entry.time = Timestamp::now().plus_seconds(-3600 * 24 * 8);
    }
    bus.call(&ctx(), old).await.unwrap();
    let info = bus.call(&ctx(), Info {}).await.unwrap();
    assert_eq!((info.first, info.last, info.bytes), (4, 3, 0), "empty");
    node.restart("events/log").await.unwrap();
    assert_eq!(bus.call(&ctx(), rows(4, 4)).await.unwrap(), 4);
}

#[test]
fn a_log_that_was_rebuilt_keeps_its_numbers_and_gives_none_twice() {
    let dir = tempfile::tempdir().unwrap();
    actix_rt::System::new().block_on(async {
        let node = node(&dir);
        node.bus().call(&ctx(), rows(1, 10)).await.unwrap();
    });
    let root = dir.path().join("root/events/log");
    let file = root.join("log.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    // Both commits that its header knows.
    bytes[64..320].fill(0xff);
    std::fs::write(&file, bytes).unwrap();
    let fsck = events::plugin().offline().unwrap();
    assert!(!fsck(&root, true).unwrap().is_empty());
    assert!(fsck(&root, false).unwrap().is_empty());
    actix_rt::System::new().block_on(async {
        let node = node(&dir);
        let kept = list(&node.bus(), 5, "").await;
        assert_eq!((numbers(&kept), kept.gap), (vec![6, 7, 8, 9, 10], None));
        let told = publish(&node.bus(), "/things/later", "{}").await.unwrap();
        assert!(told > 1000, "{told} may have been given before");
        let after = list(&node.bus(), 10, "").await;
        assert_eq!(numbers(&after), [told]);
        assert_eq!(after.gap, Some((11, told - 1)), "what may be lost is told");
    });
}
