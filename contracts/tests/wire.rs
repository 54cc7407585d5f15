//! Every message of every contract, on the wire and as JSON.
//!
//! Messages are found by visiting the contracts, and their samples are made by `wire/example.rs`, so a new message is
//! checked from its first day. `golden/messages.txt` holds the bytes of a sample of each (of one per variant where an
//! enum carries data), `golden/enums.txt` the variants of every enum. After a change that is meant:
//! `UPDATE_GOLDEN=1 cargo test -p contracts`, and say in the commit what becomes of those who still speak the old form.

#[path = "wire/example.rs"]
mod example;

use contracts::{Request, Visitor, fd, plugin};
use example::{Met, example};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, collections::BTreeSet, fmt::Write, path::PathBuf};

/// Samples of each message: enough that every enum shows every variant, filled and bare.
const SAMPLES: usize = 64;

/// One type that crosses the bus.
struct Message {
    /// `content.stat request`, `content.stat reply`.
    name: String,
    /// Makes a sample, takes it there and back in every form it has, and answers its bytes.
    there_and_back: fn(usize, &mut Met) -> Result<Vec<u8>, String>,
    /// Reads what may be anything.
    read: fn(&[u8]) -> bool,
}

#[derive(Default)]
struct Messages(Vec<Message>);

impl Messages {
    fn every() -> Vec<Message> {
        let mut all = Self::default();
        macro_rules! visit {
            ($service:path) => {
                <$service as contracts::Service>::visit(&mut all)
            };
        }
        contracts::each_service!(visit);
        all.add::<plugin::ToPlugin>("control", "to_plugin");
        all.add::<plugin::FromPlugin>("control", "from_plugin");
        all.0
    }

    fn add<T: Serialize + DeserializeOwned>(&mut self, method: &str, side: &str) {
        self.0.push(Message {
            name: format!("{method} {side}"),
            there_and_back: there_and_back::<T>,
            read: |bytes| fd::receiving(Vec::new(), || codec::decode::<T>(bytes)).is_ok(),
        });
    }
}

impl Visitor for Messages {
    fn method<R: Request>(&mut self) {
        self.add::<R>(R::NAME, "request");
        self.add::<R::Reply>(R::NAME, "reply");
    }
}

fn there_and_back<T: Serialize + DeserializeOwned>(
    number: usize,
    met: &mut Met,
) -> Result<Vec<u8>, String> {
    let sample: T = example(number, met)?;
    let (bytes, fds) = fd::sending(|| codec::encode(&sample));
    let bytes = bytes.map_err(|e| e.to_string())?;
    let descriptors = fds.len();
    let read: T = fd::receiving(fds, || codec::decode(&bytes)).map_err(|e| e.to_string())?;
    same("the wire", &bytes, &read)?;
    match serde_json::to_string(&sample) {
        Ok(json) if descriptors == 0 => {
            let read: T = serde_json::from_str(&json).map_err(|e| format!("{json}: {e}"))?;
            same(&json, &bytes, &read)?;
        }
        Err(_) if descriptors > 0 => {}
        Ok(json) => return Err(format!("a descriptor became JSON: {json}")),
        Err(e) => return Err(format!("no JSON form: {e}")),
    }
    Ok(bytes)
}

fn same<T: Serialize>(through: &str, bytes: &[u8], read: &T) -> Result<(), String> {
    let (again, _) = fd::sending(|| codec::encode(read));
    match again {
        Ok(again) if again == bytes => Ok(()),
        _ => Err(format!("comes back as something else through {through}")),
    }
}

/// The samples of `golden/messages.txt`, by message: as many as its widest enum with data has variants.
fn samples() -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for message in Messages::every() {
        let mut met = Met::default();
        let made: Result<Vec<Vec<u8>>, String> = (0..SAMPLES)
            .map(|number| (message.there_and_back)(number, &mut met))
            .collect();
        let made = made.unwrap_or_else(|e| panic!("{}: {e}", message.name));
        let filled = made.into_iter().step_by(2).take(met.variants.max(1));
        let before = all.insert(message.name.clone(), filled.collect());
        assert!(before.is_none(), "{}: two messages of a name", message.name);
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a golden file says; with `UPDATE_GOLDEN` it says `now` from here on.
fn golden(file: &str, now: &[String]) -> BTreeSet<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = path.join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, now.join("\n") + "\n").unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn every_message_comes_back_from_the_wire_and_from_json() {
    // The samples check themselves; this says that there are some.
    assert!(samples().len() > 170);
}

#[test]
fn every_message_has_the_bytes_that_it_always_had() {
    let samples = samples();
    let lines: Vec<String> = samples
        .iter()
        .flat_map(|(name, all)| {
            all.iter()
                .map(move |bytes| format!("{name} {}", hex(bytes)))
        })
        .collect();
    let golden = golden("messages.txt", &lines);
    let now: BTreeSet<String> = lines.into_iter().collect();
    let name = |line: &String| line.rsplit_once(' ').map(|(name, _)| name.to_owned());
    let lost: BTreeSet<_> = golden.difference(&now).filter_map(name).collect();
    let new: BTreeSet<_> = now.difference(&golden).filter_map(name).collect();
    assert!(
        lost.is_empty() && new.is_empty(),
        "golden bytes without a message: {lost:?}; messages without golden bytes: {new:?}; \
         if that is meant: UPDATE_GOLDEN=1 cargo test -p contracts"
    );
}

#[test]
fn an_enum_changes_only_by_growing_at_its_end() {
    let mut met = Met::default();
    for message in Messages::every() {
        for number in 0..SAMPLES {
            (message.there_and_back)(number, &mut met).unwrap();
        }
    }
    let now: Vec<String> = met
        .enums
        .iter()
        .map(|(name, variants)| format!("{name} {}", variants.join(" ")))
        .collect();
    let golden = golden("enums.txt", &now);
    for old in &golden {
        let grown = now
            .iter()
            .any(|new| new == old || new.starts_with(&format!("{old} ")));
        assert!(
            grown,
            "enum {old}: lost a variant, or has them in another order"
        );
    }
    for new in &now {
        assert!(
            golden.contains(new),
            "enum {new}: not in enums.txt; UPDATE_GOLDEN=1 cargo test -p contracts"
        );
    }
}

#[test]
fn no_bytes_make_reading_panic() {
    let messages = Messages::every();
    let samples = samples();
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    let damage = (bytes, any::<prop::sample::Index>(), 1u8..);
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(16)
    };
    let ran = TestRunner::new(config).run(&damage, |(bytes, at, flip)| {
        for message in &messages {
            (message.read)(&bytes);
            for sample in &samples[&message.name] {
                let mut damaged = sample.clone();
                if !damaged.is_empty() {
                    damaged[at.index(sample.len())] ^= flip;
                }
                (message.read)(&damaged);
            }
        }
        Ok(())
    });
    ran.unwrap();
}
