//! Task records, and the events that are committed with them.
//!
//! ```text
//! <root>/tasks.redb
//!   tasks   namespace NUL id            → record of a task
//!   execs   namespace NUL id NUL exec   → record of an added process
//! ```
//!
//! A record stands before its bundle, shim and cgroup do: what is found of phase `creating` after a crash is undone.

use crate::lifecycle::{Input, Process, Refusal, Told};
use crate::record::{ExecRecord, Name, Record, Row, doubt};
use contracts::tasks::{
    Created, Deleted, ExecAdded, ExecStarted, Exit, Exited, Leak, Leaked, List, Oom, Paused,
    Resumed, Started, Task,
};
use contracts::{ContainerId, Error, ExecId, Namespace, OperationId, Page, Timestamp};
use filter::{FilterError, Filters};
use ledger::{Fault, Ledger, LedgerConfig, Snapshot, Table, Tx};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::path::Path;

const TASKS: Table<Record> = Table::new("tasks");
const EXECS: Table<ExecRecord> = Table::new("execs");

/// What can go wrong with task records.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("task {id}: not found in namespace {namespace}", id = .0.id, namespace = .0.namespace)]
    Missing(Name),
    #[error("exec {1}: not found in task {id}", id = .0.id)]
    MissingExec(Name, ExecId),
    #[error("task {id}: exists already, delete it first", id = .0.id)]
    Exists(Name),
    #[error("exec {1}: exists already in task {id}, choose another id", id = .0.id)]
    ExecExists(Name, ExecId),
    #[error("{what}: {why}")]
    Refused { what: String, why: Refusal },
    /// This operation was not recorded: it was not done yet.
    #[error("operation was not recorded")]
    NotYet,
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Missing(_) | StoreError::MissingExec(..) => Error::not_found(message),
            StoreError::Exists(_) | StoreError::ExecExists(..) => Error::exists(message),
            StoreError::Refused { .. } => Error::precondition(message),
            StoreError::NotYet => Error::internal(message),
            StoreError::Filter(_) => Error::invalid(message),
            StoreError::Fault(fault) => fault.into(),
        }
    }
}

type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The records of all namespaces. Clones share the file.
#[derive(Clone)]
pub(crate) struct Store {
    ledger: Ledger,
}

impl Store {
    /// Opens the records below `root`, or begins with none. Blocks. Errors: those of the file.
    pub(crate) fn open(root: &Path, cache: usize) -> Result<Self> {
        let config = LedgerConfig {
            cache,
            ..LedgerConfig::FIRST
        };
        let ledger = Ledger::open(root.join("tasks.redb"), config)?;
        Ok(Self { ledger })
    }

    /// The file, for the delivery of its events.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What an operation was answered before, if it was.
    pub(crate) async fn replied<T>(&self, operation: &OperationId) -> Result<Option<T>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let asked = self
            .ledger
            .write(Some(operation), |_| Err::<T, _>(StoreError::NotYet));
        match asked.await {
            Ok(reply) => Ok(Some(reply)),
            Err(StoreError::NotYet) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Records that an operation was answered which changes no record.
    pub(crate) async fn answered(&self, operation: &OperationId) -> Result<()> {
        self.ledger.write(Some(operation), |_| Ok(())).await
    }

    /// Journals a task that is about to be made. Errors: `Exists`.
    pub(crate) async fn intend(&self, name: &Name, record: Record) -> Result<()> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| {
            if tx.get(&TASKS, &name.key())?.is_some() {
                return Err(StoreError::Exists(name.clone()));
            }
            Ok(tx.put(&TASKS, &name.key(), &record)?)
        };
        self.ledger.write(None, work).await
    }

    /// Forgets a task whose making was undone.
    pub(crate) async fn forget(&self, name: &Name) -> Result<()> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| remove(tx, &name).map(drop);
        self.ledger.write(None, work).await
    }

    /// Records that a task stands, and where its shim listens.
    pub(crate) async fn created(
        &self,
        name: &Name,
        operation: &OperationId,
        (pid, address, api): (u32, String, u32),
    ) -> Result<Task> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| {
            let mut record = task(tx, &name)?;
            record.address.clone_from(&address);
            record.api = api;
            tx.put(&TASKS, &name.key(), &record)?;
            Ok(change(tx, &name, &[Input::Created { pid }])?.task())
        };
        self.ledger.write(Some(operation), work).await
    }

    /// Takes inputs of the first process, all or none. Errors: `Missing`, `Refused`.
    pub(crate) async fn change(
        &self,
        name: &Name,
        operation: Option<&OperationId>,
        inputs: Vec<Input>,
    ) -> Result<Task> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| Ok(change(tx, &name, &inputs)?.task());
        self.ledger.write(operation, work).await
    }

    /// As [`Store::change`] for callers that are answered with nothing.
    pub(crate) async fn change_quietly(
        &self,
        name: &Name,
        operation: &OperationId,
        input: Input,
    ) -> Result<()> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| change(tx, &name, std::slice::from_ref(&input)).map(drop);
        self.ledger.write(Some(operation), work).await
    }

    /// Takes the end of the first process, with why it ended when that needs saying.
    pub(crate) async fn lost(&self, name: &Name, exit: Exit, reason: String) -> Result<()> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| {
            let mut record = change(tx, &name, &[Input::Exited(exit.clone())])?;
            record.reason.clone_from(&reason);
            tx.put(&TASKS, &name.key(), &record)?;
            for exec in execs(|prefix, each| tx.scan(&EXECS, prefix, None, each), &name)? {
                change_exec(tx, &name, &exec.id, &[Input::Exited(exit.clone())])?;
            }
            Ok(())
        };
        self.ledger.write(None, work).await
    }

    /// Takes inputs of an added process. Errors: `MissingExec`, `Refused`.
    pub(crate) async fn change_exec(
        &self,
        name: &Name,
        exec: &ExecId,
        operation: Option<&OperationId>,
        inputs: Vec<Input>,
    ) -> Result<Task> {
        let (name, exec) = (name.clone(), exec.clone());
        let work = move |tx: &mut Tx<'_>| {
            change_exec(tx, &name, &exec, &inputs)?;
            Ok(task(tx, &name)?.task())
        };
        self.ledger.write(operation, work).await
    }

    /// Records an added process. Errors: `Missing`, `ExecExists`.
    pub(crate) async fn exec_added(
        &self,
        name: &Name,
        operation: &OperationId,
        record: ExecRecord,
    ) -> Result<()> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| {
            task(tx, &name)?;
            let key = name.exec_key(&record.id);
            if tx.get(&EXECS, &key)?.is_some() {
                return Err(StoreError::ExecExists(name.clone(), record.id.clone()));
            }
            tx.put(&EXECS, &key, &record)?;
            let event = ExecAdded {
                container_id: name.id.to_string(),
                exec_id: record.id.to_string(),
            };
            Ok(tx.emit(Some(&name.namespace), "/tasks/exec-added", &event)?)
        };
        self.ledger.write(Some(operation), work).await
    }

    /// Records that the kernel killed for lack of memory at `at`; what is not newer than the last is not told again.
    pub(crate) async fn oom(&self, name: &Name, at: Timestamp) -> Result<()> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| {
            let mut record = task(tx, &name)?;
            if at <= record.oom_at {
                return Ok(());
            }
            record.oom_at = at;
            tx.put(&TASKS, &name.key(), &record)?;
            let event = Oom {
                container_id: name.id.to_string(),
            };
            Ok(tx.emit(Some(&name.namespace), "/tasks/oom", &event)?)
        };
        self.ledger.write(None, work).await
    }

    /// Tells of a leak that was cleaned.
    pub(crate) async fn leaked(&self, leak: &Leak) -> Result<()> {
        let event = Leaked {
            kind: leak.kind,
            what: leak.what.clone(),
        };
        let work = move |tx: &mut Tx<'_>| {
            tx.emit(None, "/tasks/leak", &event)?;
            Ok(())
        };
        self.ledger.write(None, work).await
    }

    /// Removes an ended task and its added processes; answers how it ended. Errors: `Missing`.
    pub(crate) async fn deleted(
        &self,
        name: &Name,
        operation: &OperationId,
        exit: Exit,
    ) -> Result<Exit> {
        let name = name.clone();
        let work = move |tx: &mut Tx<'_>| {
            let record = change(tx, &name, &[Input::Exited(exit.clone())])?;
            remove(tx, &name)?;
            let exit = record.process.exit.clone().unwrap_or_else(|| exit.clone());
            deletion(tx, &name, String::new(), record.process.pid, &exit)?;
            Ok(exit)
        };
        self.ledger.write(Some(operation), work).await
    }

    /// Removes an ended added process; answers how it ended. Errors: `MissingExec`.
    pub(crate) async fn exec_deleted(
        &self,
        name: &Name,
        exec: &ExecId,
        operation: &OperationId,
        exit: Exit,
    ) -> Result<Exit> {
        let (name, exec) = (name.clone(), exec.clone());
        let work = move |tx: &mut Tx<'_>| {
            let key = name.exec_key(&exec);
            let missing = || StoreError::MissingExec(name.clone(), exec.clone());
            let record = tx.get(&EXECS, &key)?.ok_or_else(missing)?;
            tx.remove(&EXECS, &key)?;
            let exit = record.process.exit.clone().unwrap_or_else(|| exit.clone());
            deletion(tx, &name, exec.to_string(), record.process.pid, &exit)?;
            Ok(exit)
        };
        self.ledger.write(Some(operation), work).await
    }

    /// Looks up a task. Errors: `Missing`.
    pub(crate) fn get(&self, name: &Name) -> Result<Record> {
        self.ledger.read(|snapshot| find(snapshot, name))
    }

    /// Looks up an added process. Errors: `Missing`, `MissingExec`.
    pub(crate) fn get_exec(&self, name: &Name, exec: &ExecId) -> Result<ExecRecord> {
        self.ledger.read(|snapshot| {
            find(snapshot, name)?;
            let missing = || StoreError::MissingExec(name.clone(), exec.clone());
            snapshot
                .get(&EXECS, &name.exec_key(exec))?
                .ok_or_else(missing)
        })
    }

    /// Lists tasks by id; `doubts` are those whose shim does not answer, and how. Errors: `Filter`, a bad token.
    pub(crate) fn list(
        &self,
        namespace: &Namespace,
        request: &List,
        doubts: &HashMap<ContainerId, String>,
    ) -> Result<Page<Task>> {
        let filters = Filters::parse(&request.paging.filters)?;
        let keep = |_: &str, record: Record| {
            let mut task = record.task();
            if let Some(reason) = doubts.get(&record.id) {
                doubt(&mut task, reason);
            }
            filters.matches(&Row(&task)).then_some(task)
        };
        let prefix = format!("{namespace}\0");
        self.ledger.read(|snapshot| {
            Ok(ledger::page(
                snapshot,
                &TASKS,
                &prefix,
                &request.paging,
                keep,
            )?)
        })
    }

    /// Lists the added processes of a task, by id. Errors: `Missing`.
    pub(crate) fn execs(&self, name: &Name) -> Result<Vec<ExecRecord>> {
        self.ledger.read(|snapshot| {
            find(snapshot, name)?;
            execs(
                |prefix, each| snapshot.scan(&EXECS, prefix, None, each),
                name,
            )
        })
    }

    /// Everything there is, for the start of the plugin.
    pub(crate) fn all(&self) -> Result<Vec<(Name, Record)>> {
        let mut all = Vec::new();
        self.ledger.read(|snapshot| {
            Ok::<_, StoreError>(snapshot.scan(&TASKS, "", None, |key, record: Record| {
                let namespace = key.split_once('\0').map(|(namespace, _)| namespace);
                if let Some(Ok(namespace)) = namespace.map(Namespace::new) {
                    let id = record.id.clone();
                    all.push((Name { namespace, id }, record));
                }
                true
            })?)
        })?;
        Ok(all)
    }
}

fn find(snapshot: &Snapshot, name: &Name) -> Result<Record> {
    let missing = || StoreError::Missing(name.clone());
    snapshot.get(&TASKS, &name.key())?.ok_or_else(missing)
}

fn task(tx: &Tx<'_>, name: &Name) -> Result<Record> {
    tx.get(&TASKS, &name.key())?
        .ok_or_else(|| StoreError::Missing(name.clone()))
}

fn execs(
    scan: impl FnOnce(&str, &mut dyn FnMut(&str, ExecRecord) -> bool) -> Result<(), Fault>,
    name: &Name,
) -> Result<Vec<ExecRecord>> {
    let mut found = Vec::new();
    scan(&name.execs(), &mut |_, record| {
        found.push(record);
        true
    })?;
    Ok(found)
}

fn remove(tx: &mut Tx<'_>, name: &Name) -> Result<()> {
    for exec in execs(|prefix, each| tx.scan(&EXECS, prefix, None, each), name)? {
        tx.remove(&EXECS, &name.exec_key(&exec.id))?;
    }
    tx.remove(&TASKS, &name.key())?;
    Ok(())
}

fn change(tx: &mut Tx<'_>, name: &Name, inputs: &[Input]) -> Result<Record> {
    let mut record = task(tx, name)?;
    let mut told = Vec::new();
    for input in inputs {
        let refused = |why| StoreError::Refused {
            what: format!("task {}", name.id),
            why,
        };
        told.extend(record.process.step(input).map_err(refused)?);
    }
    tx.put(&TASKS, &name.key(), &record)?;
    for told in told {
        tell(tx, name, &record, told)?;
    }
    Ok(record)
}

fn tell(tx: &mut Tx<'_>, name: &Name, record: &Record, told: Told) -> Result<(), Fault> {
    let (container_id, pid) = (name.id.to_string(), record.process.pid);
    let space = Some(&name.namespace);
    match told {
        Told::Created => {
            let bundle = record.bundle.clone();
            let event = Created {
                container_id,
                bundle,
                pid,
            };
            tx.emit(space, "/tasks/create", &event)
        }
        Told::Started => tx.emit(space, "/tasks/start", &Started { container_id, pid }),
        Told::Paused => tx.emit(space, "/tasks/paused", &Paused { container_id }),
        Told::Resumed => tx.emit(space, "/tasks/resumed", &Resumed { container_id }),
        Told::Exited => exit_of(tx, name, container_id, &record.process),
    }
}

fn change_exec(tx: &mut Tx<'_>, name: &Name, exec: &ExecId, inputs: &[Input]) -> Result<()> {
    let key = name.exec_key(exec);
    let missing = || StoreError::MissingExec(name.clone(), exec.clone());
    let mut record = tx.get(&EXECS, &key)?.ok_or_else(missing)?;
    let mut told = Vec::new();
    for input in inputs {
        let refused = |why| StoreError::Refused {
            what: format!("exec {exec} of task {}", name.id),
            why,
        };
        told.extend(record.process.step(input).map_err(refused)?);
    }
    tx.put(&EXECS, &key, &record)?;
    for told in told {
        match told {
            Told::Started => {
                let event = ExecStarted {
                    container_id: name.id.to_string(),
                    exec_id: exec.to_string(),
                    pid: record.process.pid,
                };
                tx.emit(Some(&name.namespace), "/tasks/exec-started", &event)?;
            }
            // A process that never ran has no end to tell of.
            Told::Exited if record.process.pid == 0 => {}
            Told::Exited => exit_of(tx, name, exec.to_string(), &record.process)?,
            Told::Created | Told::Paused | Told::Resumed => {}
        }
    }
    Ok(())
}

fn exit_of(tx: &mut Tx<'_>, name: &Name, id: String, process: &Process) -> Result<(), Fault> {
    let Some(exit) = &process.exit else {
        return Ok(());
    };
    let event = Exited {
        container_id: name.id.to_string(),
        id,
        pid: process.pid,
        exit_status: exit.exit_code,
        exited_at: exit.exited_at,
    };
    tx.emit(Some(&name.namespace), "/tasks/exit", &event)
}

fn deletion(tx: &mut Tx<'_>, name: &Name, id: String, pid: u32, exit: &Exit) -> Result<(), Fault> {
    let event = Deleted {
        container_id: name.id.to_string(),
        id,
        pid,
        exit_status: exit.exit_code,
        exited_at: exit.exited_at,
    };
    tx.emit(Some(&name.namespace), "/tasks/delete", &event)
}
