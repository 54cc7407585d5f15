//! Typed tables over redb: text keys, encoded records.
//!
//! Keys of things that belong to a namespace are `namespace NUL name`: no checked name contains a control character.

use crate::Fault;
use crate::seal::{OPEN, seal, unseal};
use contracts::{Namespace, Page, Paging, Timestamp, events::Entry};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use serde::{Serialize, de::DeserializeOwned};
use std::cell::{Cell, RefCell};
use std::{collections::HashMap, marker::PhantomData, ops::Bound, path::Path, rc::Rc, sync::Arc};

/// Most items of one page, whatever was asked for.
const MOST: usize = 500;
/// Most encoded bytes of one record: what a region of the file holds, with its page around it.
const LARGEST: usize = 768 << 10;
/// Most encoded bytes of one page: well below what one message may have.
const MOST_BYTES: usize = 1 << 20;

pub(crate) const META: Table<u64> = Table::new("_meta");
pub(crate) const OUTBOX: Table<Entry> = Table::new("_outbox");
pub(crate) const DONE: Table<(Timestamp, Vec<u8>)> = Table::new("_done");

/// A table of records of type `V`, by text key, in byte order of the keys.
pub struct Table<V> {
    name: &'static str,
    record: PhantomData<fn() -> V>,
}

impl<V> Table<V> {
    /// Names a table. Names beginning with `_` are the ledger's own.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            record: PhantomData,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it is the ledger's own, whose records come and go with those of the store.
    fn is_ours(&self) -> bool {
        self.name.starts_with('_')
    }

    pub(crate) fn definition(&self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name)
    }
}

/// Everything as it was committed at one moment.
pub struct Snapshot {
    pub(crate) transaction: redb::ReadTransaction,
    pub(crate) path: Arc<Path>,
    seed: u64,
}

/// A change in the making. Nothing of it is visible, or kept, unless the whole write succeeds.
pub struct Tx<'a> {
    pub(crate) transaction: &'a redb::WriteTransaction,
    pub(crate) path: &'a Arc<Path>,
    /// When this write happens: the one `now` of everything in it.
    pub now: Timestamp,
    pub(crate) changes: u64,
    /// How many records of the store are new, less how many are gone.
    pub(crate) added: i64,
    pub(crate) emitted: bool,
    seed: u64,
    /// The number of this commit: the version that it makes.
    pub(crate) commit: u64,
    /// Whether the disk was found full: what has failed is then the whole transaction, whatever its writes say.
    pub(crate) full: Cell<bool>,
    /// The next number of the outbox, once it was used.
    next: Option<u64>,
    /// What was opened: to open a table is a search of its own.
    tables: RefCell<HashMap<&'static str, Rc<RefCell<Opened<'a>>>>>,
}

/// A table of an open transaction.
type Opened<'a> = redb::Table<'a, &'static str, &'static [u8]>;

pub(crate) fn fault(path: &Path, error: impl Into<redb::Error>) -> Fault {
    let path = path.to_owned();
    match error.into() {
        redb::Error::Corrupted(why) => Fault::Damaged(path, why),
        error @ (redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }) => Fault::Damaged(path, error.to_string()),
        redb::Error::DatabaseAlreadyOpen => Fault::InUse(path),
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => Fault::Reopened(path),
        redb::Error::Io(e) => Fault::io(&path, &e),
        other => Fault::Io(path, other.to_string()),
    }
}

/// The record in an envelope. Errors: `Damaged`, naming table and key.
pub(crate) fn decode<V: DeserializeOwned>(
    path: &Path,
    seed: u64,
    table: &str,
    key: &str,
    value: &[u8],
) -> Result<V, Fault> {
    let damaged =
        |what: String| Fault::Damaged(path.to_owned(), format!("record {table}/{key:?}: {what}"));
    let sealed = unseal(seed, key, value).filter(|sealed| sealed.table == table);
    let sealed = sealed.ok_or_else(|| damaged("its checksum is wrong".into()))?;
    codec::decode(sealed.record).map_err(|e| damaged(e.to_string()))
}

fn encode<V: Serialize>(key: &str, value: &V) -> Result<Vec<u8>, Fault> {
    let bytes = codec::encode(value);
    let bytes = bytes.map_err(|e| Fault::TooLarge(key.to_owned(), e.to_string()))?;
    if bytes.len() > LARGEST {
        let what = format!("{} bytes, at most {LARGEST} fit a store", bytes.len());
        return Err(Fault::TooLarge(key.to_owned(), what));
    }
    Ok(bytes)
}

impl Snapshot {
    pub(crate) fn of(db: &redb::Database, path: &Arc<Path>, seed: u64) -> Result<Self, Fault> {
        let transaction = db.begin_read().map_err(|e| fault(path, e))?;
        Ok(Self {
            transaction,
            path: path.clone(),
            seed,
        })
    }

    /// The record under `key`. Errors: `Damaged`, `Io`.
    pub fn get<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        key: &str,
    ) -> Result<Option<V>, Fault> {
        let name = table.name;
        let Some(table) = self.open(table)? else {
            return Ok(None);
        };
        let value = table.get(key).map_err(|e| fault(&self.path, e))?;
        value
            .map(|bytes| decode(&self.path, self.seed, name, key, bytes.value()))
            .transpose()
    }

    /// Shows records whose key begins with `prefix` and comes after `after`, in key order, until `each` says false.
    pub fn scan<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        prefix: &str,
        after: Option<&str>,
        mut each: impl FnMut(&str, V) -> bool,
    ) -> Result<(), Fault> {
        let name = table.name;
        let Some(table) = self.open(table)? else {
            return Ok(());
        };
        let decode = |key: &str, value: &[u8]| decode(&self.path, self.seed, name, key, value);
        scan(&table, &self.path, prefix, after, &decode, &mut each)
    }

    /// Grows with every change of this file: the version of each of its collections.
    pub fn version(&self) -> Result<u64, Fault> {
        Ok(self.get(&META, "version")?.unwrap_or(0))
    }

    /// Names of the tables that there are, in order.
    pub(crate) fn tables(&self) -> Result<Vec<String>, Fault> {
        let tables = self.transaction.list_tables();
        let tables = tables.map_err(|e| fault(&self.path, e))?;
        let mut names: Vec<_> = tables.map(|table| table.name().to_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// Shows the stored bytes of a table's records after `after`, in key order, until `each` says false.
    pub(crate) fn raw(
        &self,
        table: &str,
        after: Option<&str>,
        each: &mut dyn FnMut(&str, &[u8]) -> bool,
    ) -> Result<(), Fault> {
        let definition = TableDefinition::<&str, &[u8]>::new(table);
        let table = self.transaction.open_table(definition);
        let table = table.map_err(|e| fault(&self.path, e))?;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = table.range::<&str>((start, Bound::Unbounded));
        for row in rows.map_err(|e| fault(&self.path, e))? {
            let (key, value) = row.map_err(|e| fault(&self.path, e))?;
            if !each(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }

    /// Whether stored bytes are a record of this table and key.
    pub(crate) fn proves(&self, table: &str, key: &str, value: &[u8]) -> bool {
        unseal(self.seed, key, value).is_some_and(|sealed| sealed.table == table)
    }

    fn open<V>(
        &self,
        table: &Table<V>,
    ) -> Result<Option<redb::ReadOnlyTable<&'static str, &'static [u8]>>, Fault> {
        match self.transaction.open_table(table.definition()) {
            Ok(table) => Ok(Some(table)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(fault(&self.path, e)),
        }
    }
}

/// What makes a record of key and stored bytes.
type Decode<'a, V> = dyn Fn(&str, &[u8]) -> Result<V, Fault> + 'a;

fn scan<V>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    path: &Path,
    prefix: &str,
    after: Option<&str>,
    decode: &Decode<'_, V>,
    each: &mut dyn FnMut(&str, V) -> bool,
) -> Result<(), Fault> {
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    for row in table
        .range::<&str>((start, Bound::Unbounded))
        .map_err(|e| fault(path, e))?
    {
        let (key, value) = row.map_err(|e| fault(path, e))?;
        let key = key.value();
        if !key.starts_with(prefix) || !each(key, decode(key, value.value())?) {
            break;
        }
    }
    Ok(())
}

impl<'a> Tx<'a> {
    pub(crate) fn new(
        transaction: &'a redb::WriteTransaction,
        path: &'a Arc<Path>,
        now: Timestamp,
        seed: u64,
        commit: u64,
    ) -> Self {
        Self {
            transaction,
            path,
            now,
            changes: 0,
            added: 0,
            emitted: false,
            seed,
            commit,
            full: Cell::new(false),
            next: None,
            tables: RefCell::default(),
        }
    }

    fn open<V>(&self, table: &Table<V>) -> Result<Rc<RefCell<Opened<'a>>>, Fault> {
        if let Some(opened) = self.tables.borrow().get(table.name) {
            return Ok(opened.clone());
        }
        let opened = self.transaction.open_table(table.definition());
        let opened = Rc::new(RefCell::new(opened.map_err(|e| self.fault(e))?));
        let mut tables = self.tables.borrow_mut();
        tables.insert(table.name, opened.clone());
        Ok(opened)
    }

    /// Stores what was counted while the write was made. Must be called once, before the commit.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        match self.next {
            Some(next) => self.put(&META, "outbox", &next),
            None => Ok(()),
        }
    }

    fn seed(&self, table: &str) -> u64 {
        if table == META.name { OPEN } else { self.seed }
    }

    /// A record of this commit in its envelope.
    pub(crate) fn sealed(&self, table: &str, key: &str, record: &[u8]) -> Vec<u8> {
        seal(self.seed(table), table, key, self.commit, record)
    }

    fn fault(&self, error: impl Into<redb::Error>) -> Fault {
        let fault = fault(self.path, error);
        self.full
            .set(self.full.get() || matches!(fault, Fault::Full(_)));
        fault
    }

    /// The record under `key`, with the changes of this write.
    pub fn get<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        key: &str,
    ) -> Result<Option<V>, Fault> {
        let name = table.name;
        let opened = self.open(table)?;
        let opened = opened.borrow();
        let value = opened.get(key).map_err(|e| self.fault(e))?;
        value
            .map(|bytes| decode(self.path, self.seed, name, key, bytes.value()))
            .transpose()
    }

    /// Stores a record, replacing what was there. Errors: `TooLarge`, `Io`.
    pub fn put<V: Serialize>(
        &mut self,
        table: &Table<V>,
        key: &str,
        value: &V,
    ) -> Result<(), Fault> {
        self.changes += 1;
        let bytes = self.sealed(table.name, key, &encode(key, value)?);
        let opened = self.open(table)?;
        let mut opened = opened.borrow_mut();
        let replaced = opened.insert(key, bytes.as_slice());
        let replaced = replaced.map_err(|e| self.fault(e))?.is_some();
        self.added += i64::from(!replaced && !table.is_ours());
        Ok(())
    }

    /// Removes a record; says whether it was there.
    pub fn remove<V>(&mut self, table: &Table<V>, key: &str) -> Result<bool, Fault> {
        self.changes += 1;
        let opened = self.open(table)?;
        let mut opened = opened.borrow_mut();
        let removed = opened.remove(key).map_err(|e| self.fault(e))?.is_some();
        self.added -= i64::from(removed && !table.is_ours());
        Ok(removed)
    }

    /// As [`Snapshot::scan`], with the changes of this write. `each` cannot change the table.
    pub fn scan<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        prefix: &str,
        after: Option<&str>,
        mut each: impl FnMut(&str, V) -> bool,
    ) -> Result<(), Fault> {
        let name = table.name;
        let opened = self.open(table)?;
        let opened = opened.borrow();
        let decode = |key: &str, value: &[u8]| decode(self.path, self.seed, name, key, value);
        scan(&*opened, self.path, prefix, after, &decode, &mut each)
    }

    /// Shows every record after `after`, those that cannot be read by their fault, until `each` says false.
    pub(crate) fn scan_past<V: DeserializeOwned>(
        &self,
        table: &Table<V>,
        after: Option<&str>,
        mut each: impl FnMut(&str, Result<V, Fault>) -> bool,
    ) -> Result<(), Fault> {
        let name = table.name;
        let opened = self.open(table)?;
        let opened = opened.borrow();
        let decode = |key: &str, value: &[u8]| Ok(decode(self.path, self.seed, name, key, value));
        scan(&*opened, self.path, "", after, &decode, &mut each)
    }

    /// Records an event that goes to the log when, and only when, this write is committed.
    ///
    /// `payload` is the struct that the contract's `emits` names for `topic`.
    pub fn emit<E: Serialize>(
        &mut self,
        namespace: Option<&Namespace>,
        topic: &str,
        payload: &E,
    ) -> Result<(), Fault> {
        let event = serde_json::to_string(payload)
            .map_err(|e| Fault::TooLarge(topic.to_owned(), e.to_string()))?;
        let entry = Entry {
            time: self.now,
            namespace: namespace.cloned(),
            topic: topic.to_owned(),
            event,
        };
        let number = match self.next {
            Some(next) => next,
            None => self.get(&META, "outbox")?.unwrap_or(1),
        };
        self.put(&OUTBOX, &outbox_key(number), &entry)?;
        self.next = Some(number + 1);
        self.emitted = true;
        Ok(())
    }
}

/// Numbers as text that sorts like numbers.
pub(crate) fn outbox_key(number: u64) -> String {
    format!("{number:020}")
}

/// Reads one page of a table: the records below `prefix` that `keep` turns into items, in key order.
///
/// A page ends at the limit asked for, at 500 items, or at a mebibyte. The token is the last key's rest behind `prefix`.
/// Errors: `Token`, `Damaged`, `Io`; what `keep` fails with.
pub fn page<V, T>(
    snapshot: &Snapshot,
    table: &Table<V>,
    prefix: &str,
    paging: &Paging,
    mut keep: impl FnMut(&str, V) -> Option<T>,
) -> Result<Page<T>, Fault>
where
    V: DeserializeOwned + Serialize,
{
    if paging.token.chars().any(char::is_control) {
        return Err(Fault::Token(paging.token.clone()));
    }
    let limit = if paging.limit == 0 {
        MOST
    } else {
        (paging.limit as usize).min(MOST)
    };
    let after = (!paging.token.is_empty()).then(|| format!("{prefix}{}", paging.token));
    let mut page = Page {
        items: Vec::new(),
        next: String::new(),
        version: snapshot.version()?,
    };
    let (mut bytes, mut last) = (0, String::new());
    snapshot.scan(table, prefix, after.as_deref(), |key, record| {
        if page.items.len() >= limit || bytes >= MOST_BYTES {
            page.next.clone_from(&last);
            return false;
        }
        let size = codec::encode(&record).map_or(0, |encoded| encoded.len());
        if let Some(item) = keep(key, record) {
            bytes += size;
            page.items.push(item);
        }
        last.clear();
        last.push_str(&key[prefix.len()..]);
        true
    })?;
    Ok(page)
}
