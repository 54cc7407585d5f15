//! Files that were cut, flipped or overwritten: an error that names the file, and never a panic.

use contracts::{Code, Error};
use ledger::{Ledger, LedgerConfig, Table};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use std::path::Path;

const THINGS: Table<String> = Table::new("things");

/// Opens, reads everything and writes something: whatever a plugin would do.
fn use_it(path: &Path) -> Result<usize, Error> {
    let ledger = Ledger::open(path, LedgerConfig::FIRST)?;
    let mut seen = 0;
    ledger.read::<_, Error>(|snapshot| {
        snapshot.scan(&THINGS, "", None, |_, _| {
            seen += 1;
            true
        })?;
        Ok(())
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|e| Error::internal(e.to_string()))?;
    runtime.block_on(ledger.write::<_, Error, _>(None, |tx| {
        tx.put(&THINGS, "new", &"x".repeat(5000))?;
        Ok(())
    }))?;
    Ok(seen)
}

/// A file with records of many sizes, some replaced and some removed.
fn sound(path: &Path) -> Vec<u8> {
    let ledger = Ledger::open(path, LedgerConfig::FIRST).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(async {
        for i in 0..300usize {
            let written = ledger.write::<_, Error, _>(None, move |tx| {
                tx.put(&THINGS, &format!("k{}", i % 200), &"v".repeat(i * 7))?;
                tx.remove(&THINGS, &format!("k{}", (i * 13) % 200))?;
                Ok(())
            });
            written.await.unwrap();
        }
    });
    drop(ledger);
    std::fs::read(path).unwrap()
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Zero(prop::sample::Index, usize),
    Cut(prop::sample::Index),
    Noise(prop::sample::Index, Vec<u8>),
}

impl Damage {
    fn any() -> impl Strategy<Value = Self> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            (at(), 1u8..).prop_map(|(at, bits)| Self::Flip(at, bits)),
            (at(), 1..9000usize).prop_map(|(at, size)| Self::Zero(at, size)),
            at().prop_map(Self::Cut),
            (at(), prop::collection::vec(any::<u8>(), 1..500))
                .prop_map(|(at, n)| Self::Noise(at, n)),
        ]
    }

    /// Damages `bytes`; half of the time its head, where the file's structure is.
    fn apply(&self, bytes: &mut Vec<u8>, head: bool) {
        let reach = if head {
            bytes.len().min(4096 * 8)
        } else {
            bytes.len()
        };
        match self {
            Self::Flip(at, bits) => bytes[at.index(reach)] ^= bits,
            Self::Zero(at, size) => {
                let at = at.index(reach);
                let end = (at + size).min(bytes.len());
                bytes[at..end].fill(0);
            }
            Self::Cut(at) => bytes.truncate(at.index(reach)),
            Self::Noise(at, noise) => {
                let at = at.index(reach);
                let end = (at + noise.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&noise[..end - at]);
            }
        }
    }
}

#[test]
fn a_damaged_file_is_an_error_that_names_it_or_nothing_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.redb");
    let sound = sound(&path);
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(200)
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let damage = (prop::collection::vec(Damage::any(), 1..3), any::<bool>());
    let mut refused = std::cell::Cell::new(0);
    let count = &refused;
    let ran = runner.run(&damage, |(damages, head)| {
        let mut bytes = sound.clone();
        for damage in damages {
            if !bytes.is_empty() {
                damage.apply(&mut bytes, head);
            }
        }
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = use_it(&path) {
            count.set(count.get() + 1);
            prop_assert!(error.message.contains("x.redb"), "{error}");
            prop_assert_eq!(error.code, Code::DataLoss, "{}", error);
        }
        Ok(())
    });
    ran.unwrap();
    assert!(*refused.get_mut() > 20, "only {refused:?} were noticed");
}
