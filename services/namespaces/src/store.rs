//! The records. See the module page for the table.

use contracts::namespaces::{Created, Deleted, Info, Put, Update, Updated};
use contracts::{Error, Labels, Namespace, OperationId, Result, Timestamp, check_labels};
use ledger::{Ledger, LedgerConfig, Table};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

const NAMESPACES: Table<Record> = Table::new("namespaces");

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    labels: Labels,
    created_at: Timestamp,
}

/// The durable state of the plugin. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    ledger: Ledger,
}

impl Store {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            ledger: Ledger::open(root.join("namespaces.redb"), LedgerConfig::FIRST)?,
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) fn get(&self, name: &Namespace) -> Result<Option<Info>> {
        let record = self
            .ledger
            .read::<_, Error>(|snapshot| Ok(snapshot.get(&NAMESPACES, name.as_str())?))?;
        Ok(record.map(|record| info(name.clone(), record)))
    }

    /// All records by name, and the version of the collection.
    pub(crate) fn all(&self) -> Result<(BTreeMap<Namespace, Info>, u64)> {
        self.ledger.read(|snapshot| {
            let mut all = BTreeMap::new();
            snapshot.scan(&NAMESPACES, "", None, |key, record| {
                if let Ok(name) = Namespace::new(key) {
                    all.insert(name.clone(), info(name, record));
                }
                true
            })?;
            Ok((all, snapshot.version()?))
        })
    }

    pub(crate) async fn put(&self, op: &OperationId, put: Put) -> Result<Info> {
        check_labels(&put.labels)?;
        self.ledger
            .write(Some(op), move |tx| {
                let (name, labels) = (put.name.clone(), put.labels.clone());
                match tx.get(&NAMESPACES, name.as_str())? {
                    Some(_) if put.create_only => {
                        Err(Error::exists(format!("namespace {name}: is there already")))
                    }
                    Some(Record { created_at, .. }) => {
                        let record = Record {
                            labels: labels.clone(),
                            created_at,
                        };
                        tx.put(&NAMESPACES, name.as_str(), &record)?;
                        tx.emit(
                            Some(&name),
                            "/namespaces/update",
                            &Updated {
                                name: name.clone(),
                                labels,
                            },
                        )?;
                        Ok(info(name, record))
                    }
                    None => {
                        let record = Record {
                            labels: labels.clone(),
                            created_at: tx.now,
                        };
                        tx.put(&NAMESPACES, name.as_str(), &record)?;
                        tx.emit(
                            Some(&name),
                            "/namespaces/create",
                            &Created {
                                name: name.clone(),
                                labels,
                            },
                        )?;
                        Ok(info(name, record))
                    }
                }
            })
            .await
    }

    pub(crate) async fn update(&self, op: &OperationId, update: Update) -> Result<Info> {
        self.ledger
            .write(Some(op), move |tx| {
                let name = update.name.clone();
                let mut record = tx
                    .get(&NAMESPACES, name.as_str())?
                    .ok_or_else(|| missing(&name))?;
                update.labels.apply(&mut record.labels)?;
                tx.put(&NAMESPACES, name.as_str(), &record)?;
                let labels = record.labels.clone();
                tx.emit(
                    Some(&name),
                    "/namespaces/update",
                    &Updated {
                        name: name.clone(),
                        labels,
                    },
                )?;
                Ok(info(name, record))
            })
            .await
    }

    pub(crate) async fn delete(&self, op: &OperationId, name: Namespace) -> Result<()> {
        self.ledger
            .write(Some(op), move |tx| {
                if !tx.remove(&NAMESPACES, name.as_str())? {
                    return Err(missing(&name));
                }
                Ok(tx.emit(
                    Some(&name),
                    "/namespaces/delete",
                    &Deleted { name: name.clone() },
                )?)
            })
            .await
    }
}

pub(crate) fn missing(name: &Namespace) -> Error {
    Error::not_found(format!("namespace {name}: has no record and holds nothing"))
}

fn info(name: Namespace, record: Record) -> Info {
    Info {
        name,
        labels: record.labels,
        created_at: Some(record.created_at),
    }
}
