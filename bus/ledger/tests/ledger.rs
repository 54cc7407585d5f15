//! What the ledger promises.

use contracts::{Error, OperationId, Paging, Result};
use ledger::{Ledger, LedgerConfig, Table, page};

const THINGS: Table<String> = Table::new("things");

fn open(dir: &tempfile::TempDir) -> Ledger {
    Ledger::open(dir.path().join("x.redb"), LedgerConfig::FIRST).unwrap()
}

fn operation(name: &str) -> OperationId {
    OperationId::new(name).unwrap()
}

async fn put(
    ledger: &Ledger,
    op: Option<&OperationId>,
    key: &'static str,
    value: &'static str,
) -> Result<String> {
    ledger
        .write(op, move |tx| {
            if tx.get(&THINGS, key)?.is_some() {
                return Err(Error::exists(key));
            }
            tx.put(&THINGS, key, &value.to_owned())?;
            tx.emit(None, "/things/create", &serde_json::json!({ "key": key }))?;
            Ok(value.to_owned())
        })
        .await
}

#[tokio::test]
async fn a_repeated_operation_gets_the_first_reply_and_no_second_effect() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir);
    let op = operation("once");
    assert_eq!(put(&ledger, Some(&op), "a", "1").await.unwrap(), "1");
    assert_eq!(put(&ledger, Some(&op), "a", "2").await.unwrap(), "1");
    assert!(
        put(&ledger, Some(&operation("other")), "a", "2")
            .await
            .is_err()
    );
    drop(ledger);
    let ledger = open(&dir);
    assert_eq!(
        put(&ledger, Some(&op), "a", "3").await.unwrap(),
        "1",
        "also after a restart"
    );
}

#[tokio::test]
async fn a_failed_write_leaves_no_trace_and_hurts_no_neighbour() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir);
    let bad = ledger.write(None, |tx| {
        tx.put(&THINGS, "bad", &"x".to_owned())?;
        Err::<(), _>(Error::invalid("no"))
    });
    let (good, bad, other) = tokio::join!(
        put(&ledger, None, "good", "1"),
        bad,
        put(&ledger, None, "other", "2")
    );
    assert!(good.is_ok() && other.is_ok());
    assert_eq!(bad.unwrap_err().message, "no");
    let there = ledger
        .read::<_, Error>(|s| Ok((s.get(&THINGS, "bad")?, s.get(&THINGS, "good")?)))
        .unwrap();
    assert_eq!(there, (None, Some("1".to_owned())));
}

#[tokio::test]
async fn pages_cover_everything_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir);
    for i in 0..25u32 {
        let key = format!("ns\0{i:03}");
        ledger
            .write::<_, Error, _>(None, move |tx| Ok(tx.put(&THINGS, &key, &i.to_string())?))
            .await
            .unwrap();
    }
    ledger
        .write::<_, Error, _>(None, |tx| {
            Ok(tx.put(&THINGS, "other\0x", &"no".to_owned())?)
        })
        .await
        .unwrap();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let paging = Paging {
            limit: 7,
            token,
            ..Paging::default()
        };
        let page = ledger
            .read::<_, Error>(|s| Ok(page(s, &THINGS, "ns\0", &paging, |_, v| Some(v))?))
            .unwrap();
        assert!(page.items.len() <= 7);
        seen.extend(page.items);
        token = page.next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(
        seen,
        (0..25).map(|i: u32| i.to_string()).collect::<Vec<_>>()
    );
}

#[actix_rt::test]
async fn events_reach_the_log_once_and_in_order_also_after_a_restart() {
    use bus::testing::{Fake, LocalBus};
    use contracts::events::{Append, Events};
    use std::{cell::RefCell, rc::Rc};

    let dir = tempfile::tempdir().unwrap();
    let log: Rc<RefCell<Vec<(u64, String)>>> = Rc::default();
    let appended = log.clone();
    let fake = Fake::<Events>::new("log").on(move |_, append: Append| {
        let mut log = appended.borrow_mut();
        for (i, entry) in append.entries.into_iter().enumerate() {
            log.push((append.first + i as u64, entry.event));
        }
        Ok(log.len() as u64)
    });
    let node = LocalBus::new().fake(fake).start(dir.path()).unwrap();
    let ledger = open(&dir);
    put(&ledger, None, "a", "1").await.unwrap();
    ledger::deliver(&ledger, &node.bus());
    put(&ledger, None, "b", "2").await.unwrap();
    let expected = vec![
        (1, r#"{"key":"a"}"#.to_owned()),
        (2, r#"{"key":"b"}"#.to_owned()),
    ];
    tokio::time::timeout(std::time::Duration::from_secs(5), async {
        while log.borrow().len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(*log.borrow(), expected);
}

/// A file system of 4 MiB, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-t", "tmpfs", "-o", "size=4m", "none"];
        let mut mount = std::process::Command::new("mount");
        assert!(mount.args(args).arg(dir.path()).status().unwrap().success());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let _ = umount.arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room_and_loses_nothing() {
    let small = Small::new();
    let ledger = open(&small.0);
    put(&ledger, None, "before", "1").await.unwrap();
    let ballast = small.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).unwrap_err();
    let large = "x".repeat(700 << 10);
    for _ in 0..2 {
        let large = large.clone();
        let full: Result<()> = ledger
            .write(None, move |tx| Ok(tx.put(&THINGS, "large", &large)?))
            .await;
        let error = full.unwrap_err();
        assert!(error.is(contracts::Code::ResourceExhausted), "{error}");
    }
    std::fs::remove_file(ballast).unwrap();
    put(&ledger, None, "after", "2").await.unwrap();
    let read = |key| ledger.read::<_, Error>(|snapshot| Ok(snapshot.get(&THINGS, key)?));
    assert_eq!(read("before").unwrap().as_deref(), Some("1"));
    assert_eq!(read("after").unwrap().as_deref(), Some("2"));
    assert_eq!(read("large").unwrap(), None);
}

#[tokio::test]
async fn a_file_of_a_build_without_envelopes_is_brought_up_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.redb");
    let old = redb::Database::create(&path).unwrap();
    let transaction = old.begin_write().unwrap();
    let number = |number: u64| codec::encode(&number).unwrap();
    let put = |table: &str, key: &str, value: &[u8]| {
        let definition = redb::TableDefinition::<&str, &[u8]>::new(table);
        let mut table = transaction.open_table(definition).unwrap();
        table.insert(key, value).unwrap();
    };
    for (key, value) in [("schema", 1), ("epoch", 77), ("version", 5), ("outbox", 9)] {
        put("_meta", key, &number(value));
    }
    for i in 0..3000 {
        let value = codec::encode(&format!("v{i}")).unwrap();
        put("things", &format!("k{i}"), &value);
    }
    transaction.commit().unwrap();
    drop(old);
    for _ in 0..2 {
        let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
        let read = |key| ledger.read::<_, Error>(|snapshot| Ok(snapshot.get(&THINGS, key)?));
        assert_eq!(read("k2999").unwrap().as_deref(), Some("v2999"));
        let version = ledger.read::<_, Error>(|snapshot| Ok(snapshot.version()?));
        assert_eq!(version.unwrap(), 6, "brought up in one commit");
    }
}
