//! Files that were cut, flipped or overwritten, before they are opened and while they are open: an error that names the
//! file, never a panic, never a value that was not the last one written; and what a repair brings back.
//!
//! Each case has a number, and its damage follows from it: `LEDGER_DAMAGE_CASES=5000` tries more, and
//! `LEDGER_DAMAGE_CASE=17` one again.

use contracts::{Code, Error, OperationId};
use ledger::{Ledger, LedgerConfig, Table, integrity};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const THINGS: Table<String> = Table::new("things");
/// A cache of one page: everything is read from the file again and again.
const SMALL: LedgerConfig = LedgerConfig {
    cache: 4096,
    ..LedgerConfig::FIRST
};

/// Numbers that look random and follow from a seed. Source: xorshift64*, Marsaglia and Vigna.
struct Random(u64);

impl Random {
    fn new(case: u64) -> Self {
        Self(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        (mixed % bound.max(1) as u64) as usize
    }
}

/// A store that was written to, as its files were when it was closed or killed, and all that was ever in it.
struct Sound {
    file: Vec<u8>,
    mark: Vec<u8>,
    last: BTreeMap<String, String>,
    ever: BTreeMap<String, BTreeSet<String>>,
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(work)
}

async fn put(ledger: &Ledger, key: String, value: String) -> Result<(), Error> {
    let work = move |tx: &mut ledger::Tx<'_>| {
        tx.put(&THINGS, &key, &value)?;
        tx.emit(None, "/things/create", &key)?;
        Ok(())
    };
    ledger.write(None, work).await
}

/// Records of many sizes, some replaced and some removed; `killed` leaves the file as a killed owner would.
fn sound(killed: bool) -> Sound {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
    let (mut last, mut ever) = (BTreeMap::new(), BTreeMap::<_, BTreeSet<_>>::new());
    for i in 0..300usize {
        let (key, value) = (format!("k{}", i % 200), format!("{i} ").repeat(i));
        block_on(put(&ledger, key.clone(), value.clone())).unwrap();
        ever.entry(key.clone()).or_default().insert(value.clone());
        last.insert(key, value);
        let gone = format!("k{}", (i * 13) % 200);
        let removed = gone.clone();
        let work = ledger.write::<_, Error, _>(None, move |tx| Ok(tx.remove(&THINGS, &removed)?));
        block_on(work).unwrap();
        last.remove(&gone);
    }
    let operation = OperationId::new("op-1").unwrap();
    let answer = ledger.write::<_, Error, _>(Some(&operation), |tx| {
        tx.put(&THINGS, "answered", &"once".to_owned())?;
        Ok("first".to_owned())
    });
    block_on(answer).unwrap();
    last.insert("answered".into(), "once".into());
    ever.insert("answered".into(), ["once".to_owned()].into());
    let read = |path: &Path| std::fs::read(path).unwrap();
    let (copy, born) = (read(&path), read(&mark_of(&path)));
    drop(ledger);
    let (file, mark) = if killed {
        (copy, born)
    } else {
        (read(&path), read(&mark_of(&path)))
    };
    Sound {
        file,
        mark,
        last,
        ever,
    }
}

fn mark_of(path: &Path) -> PathBuf {
    path.with_extension("redb.born")
}

impl Sound {
    fn lay_out(&self, path: &Path, file: &[u8]) {
        std::fs::write(path, file).unwrap();
        std::fs::write(mark_of(path), &self.mark).unwrap();
    }
}

/// What a case does to a file: one or two damages; half of the time to its head, where its structure is.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..1 + random.below(2) {
        let reach = match random.below(2) {
            0 => bytes.len().min(4096 * 8),
            _ => bytes.len(),
        };
        if reach == 0 {
            return;
        }
        let at = random.below(reach);
        match random.below(5) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => {
                let end = (at + 1 + random.below(9000)).min(bytes.len());
                bytes[at..end].fill(0);
            }
            3 => {
                let end = (at + 1 + random.below(500)).min(bytes.len());
                bytes[at..end].fill_with(|| random.below(256) as u8);
            }
            _ => bytes.truncate(at),
        }
    }
}

fn cases() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    match number("LEDGER_DAMAGE_CASE") {
        Some(case) => vec![case],
        None => (0..number("LEDGER_DAMAGE_CASES").unwrap_or(100)).collect(),
    }
}

fn all(ledger: &Ledger) -> Result<BTreeMap<String, String>, Error> {
    let mut seen = BTreeMap::new();
    ledger.read::<_, Error>(|snapshot| {
        snapshot.scan(&THINGS, "", None, |key, value| {
            seen.insert(key.to_owned(), value);
            true
        })?;
        Ok(())
    })?;
    Ok(seen)
}

fn names_the_file(case: u64, error: &Error) {
    assert!(error.message.contains("x.redb"), "case {case}: {error}");
    assert_eq!(error.code, Code::DataLoss, "case {case}: {error}");
}

#[test]
fn a_file_that_is_damaged_before_it_is_opened_is_refused_or_reads_as_it_was() {
    let stores = [sound(false), sound(true)];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let (mut refused, mut tried) = (0, 0);
    for case in cases() {
        let sound = &stores[case as usize % 2];
        let mut bytes = sound.file.clone();
        damage(&mut Random::new(case), &mut bytes);
        sound.lay_out(&path, &bytes);
        tried += 1;
        match Ledger::open(&path, LedgerConfig::FIRST) {
            Ok(ledger) => {
                assert_eq!(all(&ledger).unwrap(), sound.last, "case {case}");
                block_on(put(&ledger, "new".into(), "x".repeat(5000))).unwrap();
            }
            Err(fault) => {
                refused += 1;
                names_the_file(case, &fault.into());
                let left = std::fs::read(&path).unwrap();
                assert!(left == bytes, "case {case}: a refused file was written to");
            }
        }
    }
    assert!(
        refused * 5 > tried,
        "only {refused} of {tried} were noticed"
    );
}

#[test]
fn a_file_that_is_damaged_while_it_is_open_reads_as_it_was_or_says_so() {
    let sound = sound(false);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let (mut noticed, mut tried) = (0, 0);
    for case in cases() {
        sound.lay_out(&path, &sound.file);
        let ledger = Ledger::open(&path, SMALL).unwrap();
        assert_eq!(all(&ledger).unwrap(), sound.last);
        let mut random = Random::new(case);
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut random, &mut bytes);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        tried += 1;
        let mut wrong = false;
        for _ in 0..3 {
            for (key, value) in &sound.last {
                let read = ledger.read::<_, Error>(|snapshot| Ok(snapshot.get(&THINGS, key)?));
                match read {
                    Ok(read) => assert_eq!(read.as_ref(), Some(value), "case {case}"),
                    Err(error) if error.code == Code::Unavailable => {}
                    Err(error) => {
                        wrong = true;
                        names_the_file(case, &error);
                    }
                }
            }
            let (key, value) = sound.last.first_key_value().unwrap();
            if let Err(error) = block_on(put(&ledger, key.clone(), value.clone())) {
                wrong = true;
                names_the_file(case, &error);
            }
        }
        noticed += usize::from(wrong);
    }
    assert!(
        noticed * 5 > tried,
        "only {noticed} of {tried} were noticed"
    );
}

#[test]
fn a_repair_brings_back_what_proves_itself_and_nothing_that_never_was() {
    let stores = [sound(false), sound(true)];
    let (mut records, mut found, mut repaired, mut stale) = (0, 0, 0, 0);
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.redb");
        let sound = &stores[case as usize % 2];
        let mut bytes = sound.file.clone();
        damage(&mut Random::new(case), &mut bytes);
        sound.lay_out(&path, &bytes);
        let seen = integrity::fsck(&path, false).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            bytes,
            "a look changes nothing"
        );
        let mended = integrity::fsck(&path, true).unwrap();
        assert_eq!(seen.len(), mended.len(), "case {case}");
        assert!(mended.iter().all(|(_, mended)| mended.is_some()));
        assert_eq!(integrity::fsck(&path, false).unwrap(), [], "case {case}");
        let ledger = Ledger::open(&path, LedgerConfig::FIRST)
            .unwrap_or_else(|fault| panic!("case {case}: {fault}\n{mended:#?}"));
        let read = all(&ledger).unwrap();
        for (key, value) in &read {
            let ever = sound.ever.get(key).is_some_and(|ever| ever.contains(value));
            assert!(ever, "case {case}: {key} never had this value");
        }
        if mended.is_empty() {
            assert_eq!(read, sound.last, "case {case}");
            continue;
        }
        // It works like any other from here on.
        block_on(put(&ledger, "new".into(), "x".repeat(5000))).unwrap();
        // What was cut off is nowhere.
        if bytes.len() < sound.file.len() {
            continue;
        }
        repaired += 1;
        records += sound.last.len();
        for (key, value) in &sound.last {
            found += usize::from(read.get(key) == Some(value));
        }
        stale += read
            .keys()
            .filter(|key| !sound.last.contains_key(*key))
            .count();
    }
    println!(
        "{repaired} repaired: {found} of {records} records, {stale} that were removed came back"
    );
    assert!(found * 10 > records * 9, "{found} of {records} came back");
}

#[test]
fn a_single_flipped_bit_costs_at_most_the_record_it_hits() {
    let sound = sound(true);
    for case in 0..100u64 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.redb");
        let mut bytes = sound.file.clone();
        let mut random = Random::new(case);
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
        sound.lay_out(&path, &bytes);
        let mended = integrity::fsck(&path, true).unwrap();
        let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
        let read = all(&ledger).unwrap();
        let gone = |(key, value): &(&String, &String)| read.get(*key) != Some(*value);
        let lost: Vec<_> = sound.last.iter().filter(gone).map(|(key, _)| key).collect();
        assert!(lost.len() <= 2, "case {case} lost {lost:?}: {mended:#?}");
    }
}

#[test]
fn a_file_that_is_gone_empty_or_older_than_its_mark_is_not_taken_for_a_new_store() {
    let sound = sound(true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let refused = |what: &str| {
        let error: Error = Ledger::open(&path, LedgerConfig::FIRST)
            .err()
            .unwrap_or_else(|| panic!("{what}: opened"))
            .into();
        names_the_file(0, &error);
        assert!(error.message.contains(what), "{error}");
    };
    std::fs::write(mark_of(&path), &sound.mark).unwrap();
    refused("is missing");
    assert!(!path.exists(), "a refused store is not made");
    std::fs::write(&path, b"").unwrap();
    refused("is empty");
    // An earlier state of the same file, as a backup would be.
    let elsewhere = dir.path().join("y.redb");
    drop(Ledger::open(&elsewhere, LedgerConfig::FIRST).unwrap());
    let early = std::fs::read(&elsewhere).unwrap();
    let ledger = Ledger::open(&elsewhere, LedgerConfig::FIRST).unwrap();
    for i in 0..5 {
        block_on(put(&ledger, format!("k{i}"), "v".into())).unwrap();
    }
    drop(ledger);
    std::fs::write(&path, early).unwrap();
    std::fs::copy(mark_of(&elsewhere), mark_of(&path)).unwrap();
    refused("lost commits 2..6");
    let mended = integrity::fsck(&path, true).unwrap();
    assert!(mended[0].0.what.contains("lost commits 2..6"), "{mended:?}");
    Ledger::open(&path, LedgerConfig::FIRST).unwrap();
}

#[test]
fn an_answer_that_was_given_is_salvaged_too() {
    let sound = sound(true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let mut bytes = sound.file.clone();
    // Both commits that the header knows.
    bytes[64..320].fill(0xff);
    sound.lay_out(&path, &bytes);
    assert!(Ledger::open(&path, LedgerConfig::FIRST).is_err());
    integrity::fsck(&path, true).unwrap();
    let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
    let operation = OperationId::new("op-1").unwrap();
    let again = ledger.write::<_, Error, _>(Some(&operation), |_| Ok("second".to_owned()));
    assert_eq!(block_on(again).unwrap(), "first");
    let aside = std::fs::read_dir(dir.path()).unwrap();
    let aside = aside.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with("x.redb.damaged-")
    });
    assert_eq!(aside.count(), 1, "what was there is kept");
}

#[test]
fn a_making_that_was_cut_off_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    for length in [0, 1, 4096, 70_000] {
        std::fs::write(&path, vec![0; length]).unwrap();
        let ledger = Ledger::open(&path, LedgerConfig::FIRST).unwrap();
        block_on(put(&ledger, "k".into(), "v".into())).unwrap();
        drop(ledger);
        std::fs::remove_file(mark_of(&path)).unwrap();
    }
}
