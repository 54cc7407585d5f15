//! Container records.
//!
//! ```text
//! <root>/containers.redb
//!   containers   namespace NUL id → record without its spec, so that lists stay light
//!   specs        namespace NUL id → spec as it was given, byte for byte
//! ```

use crate::record::{self, Row};
use crate::spec::SpecError;
use contracts::collect::Count;
use contracts::containers::{
    Container, Create, Created, Delete, Deleted, Get, List, Update, Updated,
};
use contracts::{ContainerId, Error, Namespace, OperationId, Page};
use filter::{FilterError, Filters};
use ledger::{Fault, Ledger, LedgerConfig, Snapshot, Table, Tx};
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const CONTAINERS: Table<Container> = Table::new("containers");
const SPECS: Table<String> = Table::new("specs");

/// What can go wrong with container records.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such record.
    #[error("container {0}: not found in namespace {1}")]
    Missing(ContainerId, Namespace),
    /// The id is taken.
    #[error("container {0}: exists already, choose another id or delete it first")]
    Exists(ContainerId),
    /// Somebody changed the record since the caller read it.
    #[error(
        "container {id}: has version {found}, not {given}: read it again and repeat the change"
    )]
    Stale {
        /// Which record.
        id: ContainerId,
        /// Its version.
        found: u64,
        /// The version that the caller saw.
        given: u64,
    },
    /// A field of the request is wrong.
    #[error("{field} {value:?}: {problem}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it said.
        value: String,
        /// What is wrong with it and what would help.
        problem: &'static str,
    },
    /// The spec is none.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A filter cannot be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A label is wrong.
    #[error(transparent)]
    Label(#[from] Error),
    /// A collection speaks of a generation that is not open.
    #[error(transparent)]
    Generation(Error),
    /// The file failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Missing(..) => Error::not_found(message),
            StoreError::Exists(_) => Error::exists(message),
            StoreError::Stale { .. } => Error::aborted(message),
            StoreError::Field { .. } | StoreError::Spec(_) | StoreError::Filter(_) => {
                Error::invalid(message)
            }
            StoreError::Label(error) | StoreError::Generation(error) => error,
            StoreError::Fault(fault) => fault.into(),
        }
    }
}

/// What the store's methods return.
pub(crate) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The records of all namespaces. Clones share the file.
#[derive(Clone)]
pub struct Store {
    ledger: Ledger,
}

fn key(namespace: &Namespace, id: &ContainerId) -> String {
    format!("{namespace}\0{id}")
}

impl Store {
    /// Opens the records below `root`, or begins with none. Blocks. Errors: those of the file.
    pub fn open(root: &Path, cache: usize) -> Result<Self> {
        let config = LedgerConfig {
            cache,
            ..LedgerConfig::FIRST
        };
        let ledger = Ledger::open(root.join("containers.redb"), config)?;
        Ok(Self { ledger })
    }

    /// The file, for the delivery of its events.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Makes a record. Errors: `Exists`; a field, label or spec that is wrong.
    pub async fn create(
        &self,
        namespace: &Namespace,
        operation: &OperationId,
        request: Create,
    ) -> Result<Container> {
        record::check(&request)?;
        let namespace = namespace.clone();
        let work = move |tx: &mut Tx<'_>| create(tx, &namespace, &request);
        self.ledger.write(Some(operation), work).await
    }

    /// Looks up a record with its spec. Errors: `Missing`.
    pub fn get(&self, namespace: &Namespace, request: &Get) -> Result<Container> {
        self.ledger.read(|snapshot| {
            let key = key(namespace, &request.id);
            let missing = || StoreError::Missing(request.id.clone(), namespace.clone());
            let mut container = snapshot.get(&CONTAINERS, &key)?.ok_or_else(missing)?;
            container.spec = snapshot.get(&SPECS, &key)?.unwrap_or_default();
            Ok(container)
        })
    }

    /// Lists records without their specs, by id. Errors: `Filter`, a page token that is none.
    pub fn list(&self, namespace: &Namespace, request: &List) -> Result<Page<Container>> {
        let filters = Filters::parse(&request.paging.filters)?;
        let keep = |_: &str, one: Container| filters.matches(&Row(&one)).then_some(one);
        self.ledger.read(|snapshot| {
            let prefix = format!("{namespace}\0");
            Ok(ledger::page(
                snapshot,
                &CONTAINERS,
                &prefix,
                &request.paging,
                keep,
            )?)
        })
    }

    /// Changes a record. Errors: `Missing`, `Stale`; a label or spec that is wrong.
    pub async fn update(
        &self,
        namespace: &Namespace,
        operation: &OperationId,
        request: Update,
    ) -> Result<Container> {
        if let Some(spec) = &request.spec {
            crate::spec::check(spec)?;
        }
        let namespace = namespace.clone();
        let work = move |tx: &mut Tx<'_>| update(tx, &namespace, &request);
        self.ledger.write(Some(operation), work).await
    }

    /// Deletes a record. Errors: `Missing`.
    pub async fn delete(
        &self,
        namespace: &Namespace,
        operation: &OperationId,
        request: Delete,
    ) -> Result<()> {
        let namespace = namespace.clone();
        let work = move |tx: &mut Tx<'_>| delete(tx, &namespace, &request.id);
        self.ledger.write(Some(operation), work).await
    }

    /// Counts records of all namespaces, or of one.
    pub fn tally(&self, only: Option<&Namespace>) -> Result<Vec<Count>> {
        let mut counts = BTreeMap::<Namespace, u64>::new();
        let prefix = only
            .map(|namespace| format!("{namespace}\0"))
            .unwrap_or_default();
        self.read(|snapshot| {
            Ok(snapshot.scan(&CONTAINERS, &prefix, None, |key, _| {
                if let Some(namespace) = namespace_of(key) {
                    *counts.entry(namespace).or_default() += 1;
                }
                true
            })?)
        })?;
        let count = |(namespace, count)| Count {
            namespace,
            what: "containers".to_owned(),
            count,
        };
        Ok(counts.into_iter().map(count).collect())
    }

    /// Reads everything as it is now.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Snapshot) -> Result<T>) -> Result<T> {
        self.ledger.read(look)
    }

    /// Looks up a record without its spec; `None` when there is none.
    pub(crate) fn find(
        snapshot: &Snapshot,
        namespace: &Namespace,
        id: &ContainerId,
    ) -> Result<Option<Container>> {
        Ok(snapshot.get(&CONTAINERS, &key(namespace, id))?)
    }
}

/// The namespace of a key; keys are made of checked names.
pub(crate) fn namespace_of(key: &str) -> Option<Namespace> {
    let (namespace, _) = key.split_once('\0')?;
    Namespace::new(namespace).ok()
}

fn create(tx: &mut Tx<'_>, namespace: &Namespace, request: &Create) -> Result<Container> {
    let key = key(namespace, &request.id);
    if tx.get(&CONTAINERS, &key)?.is_some() {
        return Err(StoreError::Exists(request.id.clone()));
    }
    let mut container = Container {
        id: request.id.clone(),
        image: request.image.clone(),
        labels: request.labels.clone(),
        runtime: request.runtime.clone(),
        snapshotter: request.snapshotter.clone(),
        snapshot_key: request.snapshot_key.clone(),
        spec: String::new(),
        created_at: tx.now,
        updated_at: tx.now,
        version: 1,
    };
    tx.put(&CONTAINERS, &key, &container)?;
    tx.put(&SPECS, &key, &request.spec)?;
    let event = Created {
        id: request.id.clone(),
        image: text(request.image.as_ref()),
        runtime: request.runtime.name.clone(),
        labels: container.labels.clone(),
        snapshot_key: text(container.snapshot_key.as_ref()),
        version: container.version,
    };
    tx.emit(Some(namespace), "/containers/create", &event)?;
    container.spec.clone_from(&request.spec);
    Ok(container)
}

fn update(tx: &mut Tx<'_>, namespace: &Namespace, request: &Update) -> Result<Container> {
    let (id, key) = (&request.id, key(namespace, &request.id));
    let missing = || StoreError::Missing(id.clone(), namespace.clone());
    let mut container = tx.get(&CONTAINERS, &key)?.ok_or_else(missing)?;
    if let Some(given) = request.version.filter(|given| *given != container.version) {
        return Err(StoreError::Stale {
            id: id.clone(),
            found: container.version,
            given,
        });
    }
    request.labels.apply(&mut container.labels)?;
    if request.image.is_some() {
        container.image.clone_from(&request.image);
    }
    container.updated_at = tx.now;
    container.version += 1;
    tx.put(&CONTAINERS, &key, &container)?;
    if let Some(spec) = &request.spec {
        tx.put(&SPECS, &key, spec)?;
    }
    tx.emit(Some(namespace), "/containers/update", &changed(&container))?;
    container.spec = tx.get(&SPECS, &key)?.unwrap_or_default();
    Ok(container)
}

fn changed(container: &Container) -> Updated {
    Updated {
        id: container.id.clone(),
        image: text(container.image.as_ref()),
        labels: container.labels.clone(),
        snapshot_key: text(container.snapshot_key.as_ref()),
        version: container.version,
    }
}

fn delete(tx: &mut Tx<'_>, namespace: &Namespace, id: &ContainerId) -> Result<()> {
    let key = key(namespace, id);
    if tx.get(&CONTAINERS, &key)?.is_none() {
        return Err(StoreError::Missing(id.clone(), namespace.clone()));
    }
    tx.remove(&CONTAINERS, &key)?;
    tx.remove(&SPECS, &key)?;
    let event = Deleted { id: id.clone() };
    Ok(tx.emit(Some(namespace), "/containers/delete", &event)?)
}

fn text(name: Option<&impl std::fmt::Display>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}
