//! The log on disk.
//!
//! ```text
//! log.redb
//!   events     number, 20 digits → entry
//!   bounds     `log` → oldest number, newest number, bytes of payload
//!   sources    plugin id → life of its outbox, and the last number the log has of it
//! ```

use crate::{config::Config, filters::Row};
use contracts::{
    Error, Namespace, OperationId, Timestamp,
    events::{Append, Batch, Entry, Event, LogInfo, Publish},
};
use filter::Filters;
use ledger::{Fault, Ledger, LedgerConfig, Snapshot, Table, Tx};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};
use tokio::sync::watch;

/// Most events of one batch.
pub(crate) const BATCH: usize = 256;
/// Most bytes of payload of one batch; a single larger event still passes.
const BATCH_BYTES: usize = 256 << 10;
/// Most events that one read looks at when a filter wants few of them.
const LOOK: usize = 8192;
/// Most bytes of one published payload: what the frame of a shim's event may have.
const PAYLOAD: usize = 64 << 10;
/// Most bytes of a topic.
const TOPIC: usize = 256;
/// By how much the numbers go on after the file was rebuilt: nobody has seen so many that are lost, so no number is given
/// twice.
const LEAP: u64 = 1_000_000;
/// How many events one step of retention removes at most, so that no append waits long for it.
pub(crate) const STEP: usize = 256;

const EVENTS: Table<Entry> = Table::new("events");
const BOUNDS: Table<Bounds> = Table::new("bounds");
const SOURCES: Table<Source> = Table::new("sources");

/// What can go wrong here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Rows between the last one stored and the first one given are missing.
    #[error("outbox {source_id}: row {first} given, row {next} is next")]
    Hole {
        source_id: String,
        first: u64,
        next: u64,
    },
    /// A number that no event has yet.
    #[error("since {since}: the log ends at {last}; start again with a number it has, or 0")]
    Beyond { since: u64, last: u64 },
    #[error(
        "topic {0:?}: must be a slash path like /tasks/exit, of letters, digits, '.', '_', '-'"
    )]
    Topic(String),
    #[error("event of {0}: must be a JSON object of at most {PAYLOAD} bytes")]
    Payload(String),
    #[error("{0}")]
    Filter(#[from] filter::FilterError),
    #[error(transparent)]
    Disk(#[from] Fault),
    #[error("log: {0}")]
    Worker(String),
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        let message = trouble.to_string();
        match trouble {
            Trouble::Disk(fault) => fault.into(),
            Trouble::Beyond { .. } => Error::out_of_range(message),
            Trouble::Worker(_) => Error::internal(message),
            Trouble::Hole { .. } | Trouble::Topic(_) | Trouble::Payload(_) | Trouble::Filter(_) => {
                Error::invalid(message)
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Bounds {
    first: u64,
    last: u64,
    bytes: u64,
}

impl Bounds {
    const EMPTY: Self = Self {
        first: 1,
        last: 0,
        bytes: 0,
    };
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Source {
    epoch: u64,
    stored: u64,
}

/// The log. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    ledger: Ledger,
    newest: Arc<watch::Sender<u64>>,
    config: Config,
}

impl Store {
    pub(crate) fn open(path: &Path, config: &Config) -> Result<Self, Trouble> {
        let ledger = Ledger::open(path, LedgerConfig::FIRST)?;
        let bounds = ledger.read::<_, Trouble>(bounds)?;
        Ok(Self {
            ledger,
            newest: Arc::new(watch::Sender::new(bounds.last)),
            config: *config,
        })
    }

    /// Puts the bounds of a file that was rebuilt right: what it has is kept, and numbers go on well beyond.
    pub(crate) async fn mend(&self) -> Result<(), Trouble> {
        let mended = self.ledger.write(None, |tx| {
            let known = tx.get(&BOUNDS, "log")?.unwrap_or(Bounds::EMPTY);
            let (mut first, mut last, mut bytes) = (None, known.last, 0);
            tx.scan(&EVENTS, "", None, |key, entry| {
                let number = number(key);
                first = first.or(Some(number));
                last = last.max(number);
                bytes += weight(&entry);
                true
            })?;
            let last = last + LEAP;
            let first = first.unwrap_or(last + 1);
            let bounds = Bounds { first, last, bytes };
            Ok::<_, Trouble>(tx.put(&BOUNDS, "log", &bounds)?)
        });
        mended.await
    }

    /// The file.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Stores the rows of an outbox that the log does not have. Answers the newest number of the log.
    pub(crate) async fn append(&self, append: Append) -> Result<u64, Trouble> {
        let config = self.config;
        // No operation id: the outbox number says whether a row is here already.
        let last = self.ledger.write(None, move |tx| {
            let fresh = fresh(tx, &append)?;
            let last = add(tx, fresh)?;
            if !fresh.is_empty() {
                let stored = append.first + append.entries.len() as u64 - 1;
                let epoch = append.epoch;
                tx.put(&SOURCES, append.source.as_str(), &Source { epoch, stored })?;
                prune(tx, &config, 2 * fresh.len())?;
            }
            Ok::<_, Trouble>(last)
        });
        Ok(self.announce(last.await?))
    }

    /// Stores an event of a user. Answers its number.
    pub(crate) async fn publish(
        &self,
        operation: &OperationId,
        namespace: Option<Namespace>,
        publish: Publish,
    ) -> Result<u64, Trouble> {
        check(&publish)?;
        let config = self.config;
        let number = self.ledger.write(Some(operation), move |tx| {
            let entry = Entry {
                time: tx.now,
                namespace: namespace.clone(),
                topic: publish.topic.clone(),
                event: publish.event.clone(),
            };
            let number = add(tx, &[entry])?;
            prune(tx, &config, 2)?;
            Ok::<_, Trouble>(number)
        });
        Ok(self.announce(number.await?))
    }

    fn announce(&self, last: u64) -> u64 {
        self.newest.send_if_modified(|newest| {
            let more = last > *newest;
            *newest = last.max(*newest);
            more
        });
        last
    }

    /// Says whenever there is more to read.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Reads on after `since`: at most `most` events that pass, fewer when they are large or rare.
    pub(crate) fn read(
        &self,
        since: u64,
        filters: &Filters,
        most: usize,
    ) -> Result<Batch, Trouble> {
        self.ledger.read(|snapshot| {
            let bounds = bounds(snapshot)?;
            if since > bounds.last {
                let last = bounds.last;
                return Err(Trouble::Beyond { since, last });
            }
            let gap = (since + 1 < bounds.first).then(|| (since + 1, bounds.first - 1));
            let mut batch = collect(snapshot, since.max(bounds.first - 1), gap, filters, most)?;
            if batch.end && batch.seen < bounds.last {
                end_behind(&mut batch, bounds.last);
            }
            Ok(batch)
        })
    }

    pub(crate) fn info(&self) -> Result<LogInfo, Trouble> {
        let Bounds { first, last, bytes } = self.ledger.read::<_, Trouble>(bounds)?;
        Ok(LogInfo { first, last, bytes })
    }

    /// Removes what retention has passed, one step. Says whether there may be more.
    pub(crate) async fn prune(&self) -> Result<bool, Trouble> {
        let config = self.config;
        let removed = self
            .ledger
            .write(None, move |tx| Ok::<_, Trouble>(prune(tx, &config, STEP)?));
        Ok(removed.await? as usize == STEP)
    }
}

/// Tells the numbers after the last event, up to `last`: a rebuilt file has given up on them.
fn end_behind(batch: &mut Batch, last: u64) {
    if batch.events.is_empty() {
        let from = batch.gap.map_or(batch.seen + 1, |(from, _)| from);
        batch.gap = Some((from, last));
        batch.seen = last;
    } else {
        batch.end = false;
    }
}

fn key(number: u64) -> String {
    format!("{number:020}")
}

fn number(key: &str) -> u64 {
    key.parse().unwrap_or(0)
}

fn weight(entry: &Entry) -> u64 {
    (entry.event.len() + entry.topic.len()) as u64
}

fn bounds(snapshot: &Snapshot) -> Result<Bounds, Trouble> {
    Ok(snapshot.get(&BOUNDS, "log")?.unwrap_or(Bounds::EMPTY))
}

fn check(publish: &Publish) -> Result<(), Trouble> {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let path = publish.topic.strip_prefix('/');
    if publish.topic.len() > TOPIC || !path.is_some_and(|path| path.split('/').all(part)) {
        return Err(Trouble::Topic(publish.topic.clone()));
    }
    let object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&publish.event);
    if publish.event.len() > PAYLOAD || object.is_err() {
        return Err(Trouble::Payload(publish.topic.clone()));
    }
    Ok(())
}

/// The rows that the log does not have. A new life of an outbox, and one never seen, may begin at any number: what
/// came before was handed to a log that is gone.
fn fresh<'a>(tx: &Tx<'_>, append: &'a Append) -> Result<&'a [Entry], Trouble> {
    let known = tx.get(&SOURCES, append.source.as_str())?;
    let next = match known {
        Some(source) if source.epoch == append.epoch => source.stored + 1,
        _ => append.first,
    };
    if append.first > next {
        return Err(Trouble::Hole {
            source_id: append.source.to_string(),
            first: append.first,
            next,
        });
    }
    let had = usize::try_from(next - append.first).unwrap_or(usize::MAX);
    Ok(append.entries.get(had..).unwrap_or_default())
}

/// Adds entries at the end; answers the newest number then.
fn add(tx: &mut Tx<'_>, entries: &[Entry]) -> Result<u64, Fault> {
    let mut bounds = tx.get(&BOUNDS, "log")?.unwrap_or(Bounds::EMPTY);
    for entry in entries {
        bounds.last += 1;
        bounds.bytes += weight(entry);
        tx.put(&EVENTS, &key(bounds.last), entry)?;
    }
    if !entries.is_empty() {
        tx.put(&BOUNDS, "log", &bounds)?;
    }
    Ok(bounds.last)
}

/// Removes up to `most` of the oldest events as far as retention has passed them; answers how many.
fn prune(tx: &mut Tx<'_>, config: &Config, most: usize) -> Result<u64, Fault> {
    let Some(mut bounds) = tx.get(&BOUNDS, "log")? else {
        return Ok(0);
    };
    let oldest: Timestamp = tx.now.plus_seconds(-3600 * i64::from(config.retain_hours));
    let (mut gone, mut bytes) = (Vec::new(), bounds.bytes);
    tx.scan(&EVENTS, "", None, |key, entry| {
        let passed = bytes > config.retain_bytes || entry.time < oldest;
        if passed && gone.len() < most {
            bytes = bytes.saturating_sub(weight(&entry));
            gone.push(key.to_owned());
            return true;
        }
        false
    })?;
    for key in &gone {
        tx.remove(&EVENTS, key)?;
    }
    if let Some(last) = gone.last() {
        bounds.first = number(last) + 1;
        bounds.bytes = bytes;
        tx.put(&BOUNDS, "log", &bounds)?;
    }
    Ok(gone.len() as u64)
}

fn collect(
    snapshot: &Snapshot,
    since: u64,
    gap: Option<(u64, u64)>,
    filters: &Filters,
    most: usize,
) -> Result<Batch, Trouble> {
    let mut batch = Batch {
        events: Vec::new(),
        seen: since,
        gap,
        end: true,
    };
    let (mut looked, mut bytes, all) = (0, 0, filters.is_everything());
    snapshot.scan(&EVENTS, "", Some(&key(since)), |key, entry: Entry| {
        if batch.events.len() >= most || bytes >= BATCH_BYTES || looked >= LOOK {
            batch.end = false;
            return false;
        }
        // Only a file that was rebuilt has holes: they are told like what retention has passed.
        let seq = number(key);
        if seq > batch.seen + 1 {
            if looked > 0 {
                batch.end = false;
                return false;
            }
            batch.gap = Some((batch.gap.map_or(since + 1, |(from, _)| from), seq - 1));
        }
        looked += 1;
        batch.seen = seq;
        if all || filters.matches(&Row::new(&entry)) {
            bytes += entry.event.len() + entry.topic.len();
            batch.events.push(Event { seq, entry });
        }
        true
    })?;
    Ok(batch)
}
