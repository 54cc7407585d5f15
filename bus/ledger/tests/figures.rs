//! What it costs that writes are durable and records prove themselves. Run with `--run-ignored only --no-capture`.

use contracts::{Error, OperationId};
use ledger::{Ledger, LedgerConfig, Table};
use redb::{Database, ReadableDatabase, TableDefinition};
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

const THINGS: Table<String> = Table::new("things");
const RAW: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("things");
/// How long each figure is taken.
const LONG: Duration = Duration::from_secs(3);

fn rate(count: usize, since: Instant) -> u64 {
    (count as f64 / since.elapsed().as_secs_f64()) as u64
}

/// Durable writes per second when `writers` wait at once: a record, its event, its reply.
async fn written(folder: &Path, writers: usize) -> u64 {
    let path = folder.join(format!("w{writers}.redb"));
    let ledger = Ledger::open(path, LedgerConfig::FIRST).unwrap();
    let began = Instant::now();
    let write = async |writer: usize| {
        let mut count = 0;
        while began.elapsed() < LONG {
            let key = format!("k-{writer}-{count}");
            let operation = OperationId::new(format!("op-{writer}-{count}")).unwrap();
            let work = move |tx: &mut ledger::Tx<'_>| {
                tx.put(&THINGS, &key, &"v".repeat(200))?;
                tx.emit(None, "/things/create", &key)?;
                Ok::<_, Error>(())
            };
            ledger.write(Some(&operation), work).await.unwrap();
            count += 1;
        }
        count
    };
    let all = (0..writers).map(write);
    let counts = futures(all).await;
    rate(counts.into_iter().sum(), began)
}

/// Waits for all of them at once.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(Box::pin).map(Some).collect();
    let mut done: Vec<Option<T>> = all.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (slot, done) in all.iter_mut().zip(&mut done) {
            if let Some(future) = slot
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                (*done, *slot) = (Some(value), None);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// The same bytes put into the database without a ledger, one commit each.
fn written_bare(folder: &Path) -> u64 {
    let database = Database::create(folder.join("bare.redb")).unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < LONG {
        let transaction = database.begin_write().unwrap();
        for table in ["things", "outbox", "done"] {
            let definition = TableDefinition::<&str, &[u8]>::new(table);
            let mut table = transaction.open_table(definition).unwrap();
            let key = format!("k-{count}");
            table.insert(key.as_str(), [b'v'; 200].as_slice()).unwrap();
        }
        transaction.commit().unwrap();
        count += 1;
    }
    rate(count, began)
}

/// Reads per second of single records, with a ledger and without.
async fn read(folder: &Path, cache: usize) -> (u64, u64) {
    let path = folder.join(format!("r{cache}.redb"));
    let config = LedgerConfig {
        cache,
        ..LedgerConfig::FIRST
    };
    let ledger = Ledger::open(&path, config).unwrap();
    let fill = |tx: &mut ledger::Tx<'_>| {
        for i in 0..20_000 {
            tx.put(&THINGS, &format!("k{i}"), &"v".repeat(200))?;
        }
        Ok::<_, Error>(())
    };
    ledger.write(None, fill).await.unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < LONG {
        let key = format!("k{}", count * 7919 % 20_000);
        let value = ledger.read::<_, Error>(|snapshot| Ok(snapshot.get(&THINGS, &key)?));
        assert_eq!(black_box(value.unwrap().unwrap()).len(), 200);
        count += 1;
    }
    let with = rate(count, began);
    drop(ledger);
    let database = Database::builder()
        .set_cache_size(cache)
        .create(&path)
        .unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < LONG {
        let key = format!("k{}", count * 7919 % 20_000);
        let transaction = database.begin_read().unwrap();
        let table = transaction.open_table(RAW).unwrap();
        black_box(table.get(key.as_str()).unwrap().unwrap().value().to_vec());
        count += 1;
    }
    (with, rate(count, began))
}

#[tokio::test]
#[ignore = "a figure, not a test"]
async fn what_it_costs() {
    // Not in memory: the folder of the build is on a disk.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for writers in [1, 64, 512] {
        let rate = written(dir.path(), writers).await;
        println!("{writers:>4} writers: {rate} durable writes/s");
    }
    println!(
        "bare database, a commit each: {}/s",
        written_bare(dir.path())
    );
    for cache in [1 << 20, 16 << 20] {
        let (with, without) = read(dir.path(), cache).await;
        let mib = cache >> 20;
        println!("reads, {mib} MiB cache of 5 MiB: {with}/s; bare database {without}/s");
    }
}
