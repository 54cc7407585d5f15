//! Owners that are killed while they commit, and disks that fill up under them.

use contracts::{Code, Error, OperationId, Result, events::Entry};
use ledger::{Ledger, LedgerConfig, Table};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const THINGS: Table<String> = Table::new("things");
const EVENTS: Table<Entry> = Table::new("_outbox");
/// Where the child of this test finds its file, and the prefix of its keys.
const FILE: &str = "LEDGER_TEST_FILE";
const PREFIX: &str = "LEDGER_TEST_PREFIX";

fn open(path: &Path) -> Ledger {
    Ledger::open(path, LedgerConfig::FIRST).unwrap()
}

async fn put(ledger: &Ledger, key: String, value: String) -> Result<()> {
    let operation = OperationId::new(key.as_str())?;
    ledger
        .write(Some(&operation), move |tx| {
            tx.put(&THINGS, &key, &value)?;
            tx.emit(None, "/things/create", &key)?;
            Ok(())
        })
        .await
}

/// Not a test of its own: what the killed process does. It says on stderr what it was told to be on disk.
#[tokio::test]
async fn a_child_that_writes_until_it_is_killed() {
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let prefix = std::env::var(PREFIX).unwrap();
    let ledger = open(Path::new(&file));
    let write = async |writer: usize| {
        for i in 0.. {
            let key = format!("{prefix}-{writer}-{i}");
            let value = "v".repeat(i * 37 % 3000);
            put(&ledger, key.clone(), value).await.unwrap();
            std::io::stderr()
                .write_all(format!("{key}\n").as_bytes())
                .unwrap();
        }
    };
    tokio::join!(write(0), write(1), write(2), write(3), write(4), write(5));
}

/// Runs the child until it has acknowledged `many` keys, kills it, and answers all that it acknowledged.
fn killed_after(many: usize, file: &Path, prefix: &str) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_child_that_writes_until_it_is_killed"])
        .arg("--nocapture")
        .env(FILE, file)
        .env(PREFIX, prefix)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut keys = Vec::new();
    for line in said {
        let line = line.unwrap();
        if line.starts_with(prefix) {
            keys.push(line);
        }
        if keys.len() == many {
            // It goes on, and what it still says counts too.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(keys.len() >= many, "it ended by itself: {keys:?}");
    keys
}

#[test]
fn what_was_acknowledged_survives_twenty_kills() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.redb");
    let mut acknowledged = Vec::new();
    for round in 0..20 {
        let many = 1 + rand_below(150);
        acknowledged.extend(killed_after(many, &file, &format!("r{round}")));
        let ledger = open(&file);
        let (mut things, mut events) = (Vec::new(), Vec::new());
        let version = ledger.read::<_, Error>(|snapshot| {
            snapshot.scan(&THINGS, "", None, |key, _| {
                things.push(key.to_owned());
                true
            })?;
            snapshot.scan(&EVENTS, "", None, |_, entry| {
                events.push(entry.event);
                true
            })?;
            Ok(snapshot.version()?)
        });
        assert!(version.unwrap() > 0);
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|key| things.binary_search(key).is_err())
            .collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
        let mut told: Vec<String> = events
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        told.sort();
        assert_eq!(told, things, "each change has its event, and only it");
    }
}

/// A number below `bound` that differs from run to run.
fn rand_below(bound: u64) -> usize {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    (random % bound) as usize
}

/// A file system of 4 MiB, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-t", "tmpfs", "-o", "size=4m", "none"];
        let mut mount = Command::new("mount");
        assert!(mount.args(args).arg(dir.path()).status().unwrap().success());
        Self(dir)
    }

    fn fill(&self) {
        std::fs::write(self.0.path().join("ballast"), vec![0; 8 << 20]).unwrap_err();
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

/// How many of the fifty records there are; each must be whole.
fn look(ledger: &Ledger) -> Result<usize> {
    let mut seen = 0;
    ledger.read::<_, Error>(|snapshot| {
        snapshot.scan(&THINGS, "before-", None, |_, value| {
            seen += usize::from(value.len() == 1000);
            true
        })?;
        Ok(seen)
    })
}

#[test]
fn a_full_disk_is_told_to_every_write_of_a_batch_and_hides_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    let small = Small::new();
    let ledger = open(&small.0.path().join("x.redb"));
    let write = |key: String, size| put(&ledger, key, "x".repeat(size));
    for i in 0..50 {
        runtime
            .block_on(write(format!("before-{i}"), 1000))
            .unwrap();
    }
    small.fill();
    let (stop, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                match look(&ledger) {
                    Ok(seen) => assert_eq!(seen, 50),
                    Err(error) => assert_eq!(error.code, Code::Unavailable, "{error}"),
                }
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0..10 {
            let large = |i| write(format!("large-{round}-{i}"), 700 << 10);
            let all = async { tokio::join!(large(0), large(1), large(2)) };
            let (a, b, c) = runtime.block_on(all);
            for error in [a, b, c].map(|written| written.unwrap_err()) {
                assert_eq!(error.code, Code::ResourceExhausted, "{error}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert!(looks.load(Ordering::Relaxed) > 0);
    assert_eq!(
        look(&ledger).unwrap(),
        50,
        "the first look after it is sound"
    );
    small.make_room();
    runtime.block_on(write("after".into(), 1)).unwrap();
    let large = ledger.read::<_, Error>(|snapshot| Ok(snapshot.get(&THINGS, "large-0-0")?));
    assert_eq!(large.unwrap(), None);
}

#[tokio::test]
async fn a_store_on_a_full_disk_opens_for_reading() {
    let small = Small::new();
    let path = small.0.path().join("x.redb");
    put(&open(&path), "before".into(), "1".into())
        .await
        .unwrap();
    small.fill();
    let ledger = open(&path);
    let before = ledger.read::<_, Error>(|snapshot| Ok(snapshot.get(&THINGS, "before")?));
    assert_eq!(before.unwrap().as_deref(), Some("1"));
}
