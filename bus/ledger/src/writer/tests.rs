//! Records of the ledger's own that cannot be read, and what goes on beside them.

use super::*;
use crate::{Table, integrity};

const THINGS: Table<String> = Table::new("things");

async fn write(ledger: &Ledger, work: impl Fn(&mut Tx<'_>) -> Result<(), Fault> + Send + 'static) {
    let work = move |tx: &mut Tx<'_>| {
        work(tx)?;
        tx.put(&THINGS, "k", &"v".to_owned())
    };
    ledger.write::<_, Fault, _>(None, work).await.unwrap();
}

/// Stores what no writer stores.
fn garble<V>(tx: &Tx<'_>, table: &Table<V>, key: &str) {
    let mut table = tx.transaction.open_table(table.definition()).unwrap();
    table.insert(key, b"garbage".as_slice()).unwrap();
}

fn keys<V>(ledger: &Ledger, table: &Table<V>) -> Vec<String> {
    let mut keys = Vec::new();
    let mut each = |key: &str, _: &[u8]| {
        keys.push(key.to_owned());
        true
    };
    let read = |snapshot: &Snapshot| snapshot.raw(table.name(), None, &mut each);
    ledger.read::<_, Fault>(read).unwrap();
    keys
}

fn findings(ledger: &Ledger) -> Vec<String> {
    let checked = integrity::check(ledger, "").unwrap();
    checked.findings.into_iter().map(|f| f.subject).collect()
}

#[tokio::test]
async fn an_event_that_cannot_be_read_stops_no_write_and_is_named_by_delivery_and_check() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
    for _ in 0..3 {
        write(&ledger, |tx| tx.emit(None, "/things/create", &())).await;
    }
    write(&ledger, |tx| {
        garble(tx, &OUTBOX, &outbox_key(2));
        Ok(())
    })
    .await;
    let broken = format!("_outbox/{:?}", outbox_key(2));
    let refused = ledger.undelivered(10).unwrap_err().to_string();
    assert!(refused.contains(&broken), "{refused}");
    assert_eq!(findings(&ledger), [broken.as_str()]);
    // It broke only after the log had it: what can be read goes, and the broken one is kept for the check.
    ledger.delivered(3);
    write(&ledger, |_| Ok(())).await;
    assert_eq!(keys(&ledger, &OUTBOX), [outbox_key(2)]);
    assert_eq!(findings(&ledger), [broken.as_str()]);
    drop(ledger);
    // Whether the log has it is not known any more.
    let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
    write(&ledger, |tx| tx.emit(None, "/things/create", &())).await;
    let refused = ledger.undelivered(10).unwrap_err().to_string();
    assert!(refused.contains(&broken), "{refused}");
}

#[tokio::test]
async fn a_reply_that_cannot_be_read_stops_no_write_and_no_forgetting() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path().join("x.redb"), LedgerConfig::FIRST).unwrap();
    write(&ledger, |tx| {
        tx.put(&DONE, "zz-old", &(Timestamp(0), Vec::new()))
    })
    .await;
    write(&ledger, |tx| {
        garble(tx, &DONE, "zy-broken");
        Ok(())
    })
    .await;
    for _ in 0..16 {
        write(&ledger, |_| Ok(())).await;
    }
    assert_eq!(keys(&ledger, &DONE), ["zy-broken"]);
    assert_eq!(findings(&ledger), ["_done/\"zy-broken\""]);
}
