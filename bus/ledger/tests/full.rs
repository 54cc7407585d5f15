//! Machines that have nothing left: no bytes, no inodes, no descriptors. What removes goes on, what adds is refused by
//! name, and all is well again as soon as there is room.

use contracts::{Code, Error, OperationId, Result};
use ledger::{Ledger, LedgerConfig, Table};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

const THINGS: Table<String> = Table::new("things");

/// A file system in memory, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]);
        assert!(mount.arg(dir.path()).status().unwrap().success());
        Self(dir)
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("x.redb")
    }

    fn fill(&self) {
        std::fs::write(self.0.path().join("ballast"), vec![0; 64 << 20]).unwrap_err();
        assert_eq!(rustix::fs::statvfs(self.0.path()).unwrap().f_bfree, 0);
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        let _ = umount.arg("--lazy").arg(self.0.path()).status();
    }
}

async fn put(ledger: &Ledger, key: &str, value: String) -> Result<()> {
    let key = key.to_owned();
    let work = move |tx: &mut ledger::Tx<'_>| {
        tx.put(&THINGS, &key, &value)?;
        tx.emit(None, "/things/create", &key)?;
        Ok(())
    };
    ledger.write(None, work).await
}

async fn remove(ledger: &Ledger, key: &str) -> Result<bool> {
    let operation = OperationId::new(format!("remove-{key}"))?;
    let key = key.to_owned();
    let work = move |tx: &mut ledger::Tx<'_>| {
        let removed = tx.remove(&THINGS, &key)?;
        tx.emit(None, "/things/delete", &key)?;
        Ok(removed)
    };
    ledger.write(Some(&operation), work).await
}

fn all(ledger: &Ledger) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let read = ledger.read::<_, Error>(|snapshot| {
        snapshot.scan(&THINGS, "", None, |key, value| {
            seen.insert(key.to_owned(), value);
            true
        })?;
        Ok(())
    });
    read.unwrap();
    seen
}

fn is_full(written: Result<()>) {
    let error = written.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    assert!(error.message.contains("x.redb: no space left"), "{error}");
}

/// Adds until the disk says no. Answers what is there.
async fn added_until_full(ledger: &Ledger) -> BTreeMap<String, String> {
    for i in 0.. {
        let added = put(ledger, &format!("k{i}"), "v".repeat(i * 131 % 3000)).await;
        if added.is_err() {
            is_full(added);
            break;
        }
    }
    all(ledger)
}

#[tokio::test]
async fn on_a_full_disk_everything_can_be_removed_and_nothing_can_be_added() {
    let small = Small::new("size=8m");
    let ledger = Ledger::open(small.store(), LedgerConfig::FIRST).unwrap();
    for i in 0..200 {
        let value = "v".repeat(i * 131 % 3000);
        put(&ledger, &format!("first-{i}"), value).await.unwrap();
    }
    small.fill();
    let mut expected = added_until_full(&ledger).await;
    assert!(expected.len() >= 200);
    for key in expected.keys().cloned().collect::<Vec<_>>() {
        assert!(remove(&ledger, &key).await.unwrap(), "{key}");
        expected.remove(&key);
        if expected.len().is_multiple_of(50) {
            assert_eq!(all(&ledger), expected);
        }
    }
    let again = remove(&ledger, "first-0").await.unwrap();
    assert!(again, "a repetition gets the first answer");
    small.make_room();
    put(&ledger, "after", "v".repeat(2000)).await.unwrap();
    drop(ledger);
    let ledger = Ledger::open(small.store(), LedgerConfig::FIRST).unwrap();
    assert_eq!(all(&ledger).into_keys().collect::<Vec<_>>(), ["after"]);
}

#[tokio::test]
async fn a_store_that_is_opened_on_a_full_disk_removes_too() {
    let small = Small::new("size=8m");
    let ledger = Ledger::open(small.store(), LedgerConfig::FIRST).unwrap();
    for i in 0..100 {
        put(&ledger, &format!("k{i}"), "v".repeat(500))
            .await
            .unwrap();
    }
    drop(ledger);
    small.fill();
    for round in 0..5 {
        let ledger = Ledger::open(small.store(), LedgerConfig::FIRST).unwrap();
        for i in 0..20 {
            let key = format!("k{}", round * 20 + i);
            assert!(remove(&ledger, &key).await.unwrap(), "{key}");
        }
    }
    let ledger = Ledger::open(small.store(), LedgerConfig::FIRST).unwrap();
    assert_eq!(all(&ledger), BTreeMap::new());
}

#[tokio::test]
async fn a_store_needs_no_inode_to_open_and_to_write() {
    let small = Small::new("size=8m,nr_inodes=12");
    let ledger = Ledger::open(small.store(), LedgerConfig::FIRST).unwrap();
    put(&ledger, "before", "1".into()).await.unwrap();
    for i in 0.. {
        if std::fs::File::create(small.0.path().join(format!("f{i}"))).is_err() {
            break;
        }
    }
    put(&ledger, "during", "2".into()).await.unwrap();
    drop(ledger);
    let ledger = Ledger::open(small.store(), LedgerConfig::FIRST).unwrap();
    put(&ledger, "after", "3".into()).await.unwrap();
    assert_eq!(all(&ledger).len(), 3);
    // A store that is made now has no room for its name.
    let none = Ledger::open(small.0.path().join("y.redb"), LedgerConfig::FIRST);
    let error: Error = none.err().unwrap().into();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    assert!(error.message.contains("y.redb"), "{error}");
}

#[tokio::test]
async fn without_descriptors_an_open_store_works_and_another_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path().join("x.redb"), LedgerConfig::FIRST).unwrap();
    put(&ledger, "before", "1".into()).await.unwrap();
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    put(&ledger, "during", "2".into()).await.unwrap();
    let other = Ledger::open(dir.path().join("y.redb"), LedgerConfig::FIRST);
    let error: Error = other.err().unwrap().into();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    assert!(error.message.contains("too many open files"), "{error}");
    drop(taken);
    Ledger::open(dir.path().join("y.redb"), LedgerConfig::FIRST).unwrap();
    assert_eq!(all(&ledger).len(), 2);
}

#[tokio::test]
async fn a_large_store_takes_little_more_of_the_disk_than_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
    let mut stored = 0;
    for i in 0..60 {
        let work = move |tx: &mut ledger::Tx<'_>| {
            for j in 0..100 {
                tx.put(&THINGS, &format!("k{i}-{j}"), &"v".repeat(4000))?;
            }
            Ok::<_, Error>(())
        };
        ledger.write(None, work).await.unwrap();
        stored += 100 * 4000;
    }
    use std::os::unix::fs::MetadataExt;
    let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(taken < 2 * stored, "{taken} bytes for {stored}");
    drop(ledger);
    let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
    assert_eq!(all(&ledger).len(), 6000);
}
