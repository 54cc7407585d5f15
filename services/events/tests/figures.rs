//! Figures of the log: how many events a second it takes durably. Run by hand: `cargo nextest run -p events --run-ignored only --no-capture`.

use bus::testing::LocalBus;
use bus::{Bus, Ctx};
use contracts::events::{Append, Entry, Info, Publish};
use contracts::{Namespace, PluginId, Timestamp};
use std::time::{Duration, Instant};

/// As many as an owner hands over at a time.
const BATCH: u64 = 256;

fn entry(number: u64) -> Entry {
    Entry {
        time: Timestamp::now(),
        namespace: Some(Namespace::new("default").unwrap()),
        topic: "/things/create".into(),
        event: format!(r#"{{"number":{number},"text":"{}"}}"#, "x".repeat(100)),
    }
}

/// One owner that hands over batch after batch.
async fn owner(bus: Bus, number: usize, batches: u64) {
    for batch in 0..batches {
        let first = batch * BATCH + 1;
        let append = Append {
            source: PluginId::new(format!("things/n{number}")).unwrap(),
            epoch: 1,
            first,
            entries: (first..first + BATCH).map(entry).collect(),
        };
        bus.call(&Ctx::new(None), append).await.unwrap();
    }
}

/// One user that publishes event after event.
async fn user(bus: Bus, count: u64) {
    for number in 0..count {
        let publish = Publish {
            topic: "/things/create".into(),
            event: entry(number).event,
        };
        bus.call(&Ctx::new(None), publish).await.unwrap();
    }
}

fn told(what: &str, count: u64, took: Duration) {
    println!(
        "{what}: {:.0} events a second",
        count as f64 / took.as_secs_f64()
    );
}

#[actix_rt::test]
#[ignore = "figures, no promise"]
async fn events_a_second() {
    for callers in [1, 8, 64] {
        let dir = tempfile::tempdir().unwrap();
        let node = LocalBus::new()
            .plugin(events::plugin())
            .start(dir.path())
            .unwrap();
        let begun = Instant::now();
        let owners = (0..callers).map(|number| owner(node.bus(), number, 64 / callers as u64));
        futures_util::future::join_all(owners).await;
        told(
            &format!("{callers} owners, batches of {BATCH}"),
            64 * BATCH,
            begun.elapsed(),
        );
        let begun = Instant::now();
        let each = 4096 / callers as u64 / if callers == 1 { 8 } else { 1 };
        let users = (0..callers).map(|_| user(node.bus(), each));
        futures_util::future::join_all(users).await;
        told(
            &format!("{callers} users, one by one"),
            each * callers as u64,
            begun.elapsed(),
        );
        let info = node.bus().call(&Ctx::new(None), Info {}).await.unwrap();
        assert_eq!(info.last, 64 * BATCH + each * callers as u64);
    }
}
