//! What is written down about a snapshot, and the rows beside it that make questions cheap.
//!
//! ```text
//! snapshots        namespace NUL key → Record
//! children         namespace NUL parent NUL key
//! back_references  namespace NUL resource NUL key     from `containerd.io/gc.bref.*` labels
//! numbers          "next" → the first number that no record ever had
//! ```

use crate::references;
use contracts::collect::Resource;
use contracts::snapshots::{Info, SnapshotKind, Used};
use contracts::{Labels, Namespace, SnapshotKey, Timestamp};
use ledger::{Fault, Snapshot, Table, Tx};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) const SNAPSHOTS: Table<Record> = Table::new("snapshots");
const CHILDREN: Table<()> = Table::new("children");
const BACK: Table<()> = Table::new("back_references");
const NUMBERS: Table<u64> = Table::new("numbers");

/// One snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its directory.
    pub(crate) number: u64,
    pub(crate) kind: SnapshotKind,
    pub(crate) parent: Option<SnapshotKey>,
    /// Whether its parent will be set at commit.
    pub(crate) layer: bool,
    pub(crate) labels: Labels,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    /// What it holds, once somebody asked for a committed one.
    pub(crate) used: Option<Used>,
}

impl Record {
    pub(crate) fn info(self, key: SnapshotKey) -> Info {
        Info {
            key,
            parent: self.parent,
            kind: self.kind,
            labels: self.labels,
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// The row of a snapshot.
pub(crate) fn place(ns: &Namespace, key: &SnapshotKey) -> String {
    format!("{ns}\0{key}")
}

/// The snapshot of a row.
pub(crate) fn named(place: &str) -> Option<(Namespace, SnapshotKey)> {
    let (ns, key) = place.split_once('\0')?;
    Some((Namespace::new(ns).ok()?, SnapshotKey::new(key).ok()?))
}

/// A look at the rows, in a write or beside all writes.
pub(crate) trait Look {
    fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &str) -> Result<Option<V>, Fault>;
    fn scan<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        prefix: &str,
        each: impl FnMut(&str, V) -> bool,
    ) -> Result<(), Fault>;

    fn record(&self, ns: &Namespace, key: &SnapshotKey) -> Result<Option<Record>, Fault> {
        self.get(&SNAPSHOTS, &place(ns, key))
    }

    /// One of the snapshots on top of this one.
    fn child(&self, place: &str) -> Result<Option<String>, Fault> {
        let prefix = format!("{place}\0");
        let mut child = None;
        self.scan(&CHILDREN, &prefix, |row, ()| {
            child = Some(row[prefix.len()..].to_owned());
            false
        })?;
        Ok(child)
    }

    /// Snapshots whose labels say that they stay as long as `resource` does.
    fn pointing_back(
        &self,
        ns: &Namespace,
        resource: &Resource,
    ) -> Result<Vec<SnapshotKey>, Fault> {
        let prefix = format!("{ns}\0{}\0", references::text(resource));
        let mut keys = Vec::new();
        self.scan(&BACK, &prefix, |row, ()| {
            keys.extend(SnapshotKey::new(&row[prefix.len()..]));
            true
        })?;
        Ok(keys)
    }
}

impl Look for Snapshot {
    fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &str) -> Result<Option<V>, Fault> {
        Snapshot::get(self, table, key)
    }
    fn scan<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        prefix: &str,
        each: impl FnMut(&str, V) -> bool,
    ) -> Result<(), Fault> {
        Snapshot::scan(self, table, prefix, None, each)
    }
}

impl Look for Tx<'_> {
    fn get<V: DeserializeOwned>(&self, table: &Table<V>, key: &str) -> Result<Option<V>, Fault> {
        Tx::get(self, table, key)
    }
    fn scan<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        prefix: &str,
        each: impl FnMut(&str, V) -> bool,
    ) -> Result<(), Fault> {
        Tx::scan(self, table, prefix, None, each)
    }
}

/// Writes a new record with its rows.
pub(crate) fn add(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    key: &SnapshotKey,
    record: &Record,
) -> Result<(), Fault> {
    if let Some(parent) = &record.parent {
        tx.put(&CHILDREN, &format!("{}\0{key}", place(ns, parent)), &())?;
    }
    for row in back(ns, key, record) {
        tx.put(&BACK, &row, &())?;
    }
    tx.put(&SNAPSHOTS, &place(ns, key), record)
}

/// Removes a record with its rows.
pub(crate) fn forget(
    tx: &mut Tx<'_>,
    ns: &Namespace,
    key: &SnapshotKey,
    record: &Record,
) -> Result<(), Fault> {
    if let Some(parent) = &record.parent {
        tx.remove(&CHILDREN, &format!("{}\0{key}", place(ns, parent)))?;
    }
    for row in back(ns, key, record) {
        tx.remove(&BACK, &row)?;
    }
    tx.remove(&SNAPSHOTS, &place(ns, key)).map(drop)
}

fn back(ns: &Namespace, key: &SnapshotKey, record: &Record) -> Vec<String> {
    references::back(&record.labels)
        .map(|resource| format!("{ns}\0{}\0{key}", references::text(&resource)))
        .collect()
}

/// The first number that no record ever had.
pub(crate) fn next(look: &impl Look) -> Result<u64, Fault> {
    Ok(look.get(&NUMBERS, "next")?.unwrap_or(1))
}

/// Writes down that `number` is used.
pub(crate) fn used_up(tx: &mut Tx<'_>, number: u64) -> Result<(), Fault> {
    if next(tx)? <= number {
        tx.put(&NUMBERS, "next", &(number + 1))?;
    }
    Ok(())
}
