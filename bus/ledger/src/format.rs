//! The ledger's own numbers in a file, and how a file of an older build is brought up.
//!
//! Format 2 puts each record into an [envelope](crate::seal); format 1 had none, and no number.

use crate::mark::{Life, options};
use crate::seal::{OPEN, unseal};
use crate::table::{META, Tx, fault};
use crate::{Fault, LedgerConfig};
use contracts::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::{ops::Bound, path::Path, sync::Arc};

/// How this build stores records.
pub(crate) const FORMAT: u64 = 2;
/// How many records are brought up between two looks at the table.
const SOME: usize = 1000;

/// What a file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Born {
    pub(crate) life: Life,
    pub(crate) version: u64,
    pub(crate) format: u64,
}

/// Reads what a file says about itself; `None` for one that nothing was ever stored in.
pub(crate) fn look(database: &Database, path: &Path) -> Result<Option<Born>, Fault> {
    let transaction = database.begin_read().map_err(|e| fault(path, e))?;
    let table = match transaction.open_table(META.definition()) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(e) => return Err(fault(path, e)),
    };
    let raw = |key: &str| -> Result<Option<Vec<u8>>, Fault> {
        let value = table.get(key).map_err(|e| fault(path, e))?;
        Ok(value.map(|value| value.value().to_vec()))
    };
    // A file of format 1 has no number and no envelopes.
    let sealed = raw("format")?.is_some();
    let number = |key: &str| -> Result<Option<u64>, Fault> {
        let Some(value) = raw(key)? else {
            return Ok(None);
        };
        let record = if sealed {
            let opened = unseal(OPEN, key, &value).filter(|opened| opened.table == META.name());
            opened.map(|opened| opened.record)
        } else {
            Some(value.as_slice())
        };
        let number = record.and_then(|record| codec::decode(record).ok());
        let damaged = || Fault::Damaged(path.to_owned(), format!("record _meta/{key:?}"));
        number.ok_or_else(damaged).map(Some)
    };
    let (Some(schema), Some(epoch)) = (number("schema")?, number("epoch")?) else {
        return Ok(None);
    };
    let life = Life {
        epoch,
        seed: number("seed")?.unwrap_or(OPEN),
        schema,
    };
    Ok(Some(Born {
        life,
        version: number("version")?.unwrap_or(0),
        format: number("format")?.unwrap_or(1),
    }))
}

/// Whether the file is one whose making was cut off: nothing is known of it, and nothing is in it.
pub(crate) fn is_unborn(path: &Path) -> Result<bool, Fault> {
    if crate::mark::path_of(path).exists() {
        return Ok(false);
    }
    let file = options().read(true).open(path);
    let file = file.map_err(|e| Fault::io(path, &e))?;
    let mut rest = file.take(64 << 20);
    let mut head = [0; 4096];
    let read = rest.read(&mut head).map_err(|e| Fault::io(path, &e))?;
    // The first bytes of a database are written last of all.
    let begun = head[..read.min(9)].iter().any(|&byte| byte != 0);
    let mut body = Vec::new();
    rest.read_to_end(&mut body)
        .map_err(|e| Fault::io(path, &e))?;
    Ok(!begun && body.iter().all(|&byte| byte == 0))
}

/// Checks format and schema, brings older ones up, and names this life of a new file.
pub(crate) fn prepare(
    database: &Database,
    path: &Arc<Path>,
    config: &LedgerConfig,
    born: Option<Born>,
) -> Result<Born, Fault> {
    if let Some(born) = born {
        newest(path, born.format, FORMAT)?;
        newest(path, born.life.schema, config.schema)?;
        if born.format == FORMAT && born.life.schema == config.schema {
            return Ok(born);
        }
    }
    let now = Timestamp::now();
    let life = Life {
        epoch: born.map_or(now.0.unsigned_abs(), |born| born.life.epoch),
        seed: match born {
            Some(born) if born.life.seed != OPEN => born.life.seed,
            _ => random(),
        },
        schema: config.schema,
    };
    let version = born.map_or(0, |born| born.version) + 1;
    let transaction = database.begin_write().map_err(|e| fault(path, e))?;
    let mut tx = Tx::new(&transaction, path, now, life.seed, version);
    if let Some(born) = born {
        if born.format < FORMAT {
            envelop(&mut tx)?;
        }
        if born.life.schema != config.schema {
            (config.migrate)(&mut tx, born.life.schema)?;
        }
    }
    tx.finish()?;
    put(&mut tx, life, version)?;
    drop(tx);
    transaction.commit().map_err(|e| fault(path, e))?;
    Ok(Born {
        life,
        version,
        format: FORMAT,
    })
}

/// Stores what a file says about itself.
pub(crate) fn put(tx: &mut Tx<'_>, life: Life, version: u64) -> Result<(), Fault> {
    tx.put(&META, "format", &FORMAT)?;
    tx.put(&META, "schema", &life.schema)?;
    tx.put(&META, "epoch", &life.epoch)?;
    tx.put(&META, "seed", &life.seed)?;
    tx.put(&META, "version", &version)
}

fn newest(path: &Path, found: u64, known: u64) -> Result<(), Fault> {
    if found <= known {
        return Ok(());
    }
    Err(Fault::Newer {
        path: path.to_owned(),
        found,
        known,
    })
}

/// A number that nobody can guess.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

/// Puts every record of every table into an envelope.
fn envelop(tx: &mut Tx<'_>) -> Result<(), Fault> {
    let (transaction, path) = (tx.transaction, tx.path);
    let tables = transaction.list_tables().map_err(|e| fault(path, e))?;
    let names: Vec<_> = tables.map(|table| table.name().to_owned()).collect();
    for name in names {
        let definition = TableDefinition::<&str, &[u8]>::new(&name);
        let mut table = transaction
            .open_table(definition)
            .map_err(|e| fault(path, e))?;
        let mut after = None::<String>;
        loop {
            let start = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let rows = table.range::<&str>((start, Bound::Unbounded));
            let mut some = Vec::new();
            for row in rows.map_err(|e| fault(path, e))?.take(SOME) {
                let (key, value) = row.map_err(|e| fault(path, e))?;
                some.push((key.value().to_owned(), value.value().to_vec()));
            }
            let Some((last, _)) = some.last() else {
                break;
            };
            after = Some(last.clone());
            for (key, value) in some {
                let sealed = tx.sealed(&name, &key, &value);
                let stored = table.insert(key.as_str(), sealed.as_slice());
                stored.map_err(|e| fault(path, e))?;
            }
        }
    }
    Ok(())
}
