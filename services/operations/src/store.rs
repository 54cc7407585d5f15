//! The journal. See the module page for the tables.

use contracts::operations::{Ended, List, Operation, Started, State, Work};
use contracts::{Error, Namespace, OperationId, Page, Result};
use filter::{Fields, Filters};
use ledger::{Fault, Ledger, LedgerConfig, Snapshot, Table, Tx, page};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, path::Path};

const OPERATIONS: Table<Record> = Table::new("operations");
const MOMENTS: Table<String> = Table::new("moments");
/// Old records forgotten by one write, so that forgetting never makes it slow.
const FORGET: usize = 32;

/// One operation as it is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) namespace: Option<Namespace>,
    /// What to begin again after a crash; `None` when that cannot be.
    pub(crate) work: Option<Work>,
    pub(crate) operation: Operation,
}

/// The durable state of the plugin. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    ledger: Ledger,
}

struct Row<'a>(&'a Operation);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => Some(self.0.id.as_str().into()),
            ["kind"] => Some(self.0.kind.as_str().into()),
            ["subject"] => Some(self.0.subject.as_str().into()),
            ["state"] => Some(state(self.0.state).into()),
            _ => None,
        }
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Done => "done",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

impl Store {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            ledger: Ledger::open(root.join("operations.redb"), LedgerConfig::FIRST)?,
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Journals work before its first step. Answers the record, and whether this call began it.
    pub(crate) async fn begin(
        &self,
        namespace: Option<Namespace>,
        id: OperationId,
        work: Option<Work>,
        kind: &'static str,
        subject: String,
    ) -> Result<(Record, bool)> {
        self.ledger
            .write(None, move |tx| {
                if let Some(record) = found(tx, &id)? {
                    return Ok((record, false));
                }
                let operation = Operation {
                    id: id.clone(),
                    kind: kind.into(),
                    subject: subject.clone(),
                    state: State::Running,
                    progress: Vec::new(),
                    result: None,
                    error: None,
                    started_at: tx.now,
                    updated_at: tx.now,
                    resumed: 0,
                };
                let record = Record {
                    namespace: namespace.clone(),
                    work: work.clone(),
                    operation,
                };
                let key = format!("{:020}\0{id}", u64::MAX - tx.now.0.unsigned_abs());
                tx.put(&MOMENTS, id.as_str(), &key)?;
                tx.put(&OPERATIONS, &key, &record)?;
                let started = Started {
                    id: id.clone(),
                    kind: kind.into(),
                    subject: subject.clone(),
                };
                tx.emit(namespace.as_ref(), "/operations/start", &started)?;
                Ok((record, true))
            })
            .await
    }

    /// Counts that work was begun again.
    pub(crate) async fn resumed(&self, id: OperationId) -> Result<Record> {
        self.ledger
            .write(None, move |tx| {
                let mut record = found(tx, &id)?.ok_or_else(|| missing(&id))?;
                record.operation.resumed += 1;
                replace(tx, &record)?;
                Ok(record)
            })
            .await
    }

    /// Journals how work ended and forgets ended work beyond `keep`.
    pub(crate) async fn end(&self, mut ended: Operation, keep: usize) -> Result<Operation> {
        self.ledger
            .write(None, move |tx| {
                let mut record = found(tx, &ended.id)?.ok_or_else(|| missing(&ended.id))?;
                if record.operation.state != State::Running {
                    return Ok(record.operation);
                }
                ended.updated_at = tx.now;
                record.work = None;
                record.operation = ended.clone();
                replace(tx, &record)?;
                forget(tx, keep)?;
                let event = Ended {
                    id: ended.id.clone(),
                    kind: ended.kind.clone(),
                    subject: ended.subject.clone(),
                    state: ended.state,
                    code: ended.error.as_ref().map(|error| error.code),
                };
                tx.emit(record.namespace.as_ref(), "/operations/end", &event)?;
                Ok(ended.clone())
            })
            .await
    }

    pub(crate) fn get(&self, id: &OperationId) -> Result<Record> {
        self.ledger.read(|snapshot| {
            let key = snapshot
                .get(&MOMENTS, id.as_str())?
                .ok_or_else(|| missing(id))?;
            snapshot.get(&OPERATIONS, &key)?.ok_or_else(|| missing(id))
        })
    }

    /// Operations of a namespace, or of all; newest first.
    pub(crate) fn list(
        &self,
        namespace: Option<&Namespace>,
        list: &List,
    ) -> Result<Page<Operation>> {
        let filters =
            Filters::parse(&list.paging.filters).map_err(|e| Error::invalid(e.to_string()))?;
        // A token shows the separator of the key as a dash.
        let mut paging = list.paging.clone();
        paging.token.clear();
        let after = list.paging.token.replacen('-', "\0", 1);
        self.ledger.read(|snapshot| {
            let keep = |key: &str, record: Record| {
                let wanted = key > after.as_str()
                    && namespace.is_none_or(|only| record.namespace.as_ref() == Some(only));
                (wanted && filters.matches(&Row(&record.operation))).then_some(record.operation)
            };
            let mut page = page(snapshot, &OPERATIONS, "", &paging, keep)?;
            page.next = page.next.replacen('\0', "-", 1);
            Ok(page)
        })
    }

    /// Work that a crash interrupted.
    pub(crate) fn interrupted(&self) -> Result<Vec<Record>> {
        self.ledger.read(|snapshot: &Snapshot| {
            let mut running = Vec::new();
            snapshot.scan(&OPERATIONS, "", None, |_, record| {
                if record.operation.state == State::Running {
                    running.push(record);
                }
                true
            })?;
            Ok(running)
        })
    }
}

fn missing(id: &OperationId) -> Error {
    Error::not_found(format!("operation {id}: not there, or ended long ago"))
}

fn found(tx: &Tx<'_>, id: &OperationId) -> Result<Option<Record>, Fault> {
    match tx.get(&MOMENTS, id.as_str())? {
        Some(key) => tx.get(&OPERATIONS, &key),
        None => Ok(None),
    }
}

fn replace(tx: &mut Tx<'_>, record: &Record) -> Result<()> {
    let id = &record.operation.id;
    let key = tx.get(&MOMENTS, id.as_str())?.ok_or_else(|| missing(id))?;
    Ok(tx.put(&OPERATIONS, &key, record)?)
}

fn forget(tx: &mut Tx<'_>, keep: usize) -> Result<(), Fault> {
    let (mut ended, mut old) = (0, Vec::new());
    tx.scan(&OPERATIONS, "", None, |key, record| {
        if record.operation.state != State::Running {
            ended += 1;
            if ended > keep {
                old.push((key.to_owned(), record.operation.id));
            }
        }
        old.len() < FORGET
    })?;
    for (key, id) in old {
        tx.remove(&OPERATIONS, &key)?;
        tx.remove(&MOMENTS, id.as_str())?;
    }
    Ok(())
}

/// What may be written down of some work: nothing that holds credentials or a live archive.
pub(crate) fn journaled(work: &Work) -> Option<Work> {
    let access = match work {
        Work::Pull(pull) => &pull.access,
        Work::Push(push) => &push.access,
        Work::Create(create) | Work::Run(create) => &create.access,
        Work::Import(_) | Work::Export(_) => return None,
        Work::Unpack(_) | Work::Remove(_) | Work::Collect(_) => return Some(work.clone()),
    };
    access.auth.is_none().then(|| work.clone())
}

/// What an operation is called, and what it is about.
pub(crate) fn described(work: &Work) -> (&'static str, String) {
    match work {
        Work::Pull(pull) => ("pull", pull.reference.clone()),
        Work::Push(push) => (
            "push",
            if push.reference.is_empty() {
                push.image.clone()
            } else {
                push.reference.clone()
            },
        ),
        Work::Import(_) => ("import", "archive".into()),
        Work::Export(export) => ("export", export.images.join(" ")),
        Work::Unpack(unpack) => ("unpack", unpack.image.clone()),
        Work::Create(create) => ("create", create.id.to_string()),
        Work::Run(create) => ("run", create.id.to_string()),
        Work::Remove(remove) => ("remove", remove.id.to_string()),
        Work::Collect(_) => ("collect", "garbage".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::operations::Pull;
    use contracts::transfer::{Access, Auth};

    #[test]
    fn work_with_credentials_is_never_written_down() {
        let auth = Auth {
            username: "u".into(),
            password: "secret".into(),
            ..Auth::default()
        };
        let access = Access {
            plain_http: true,
            auth: Some(auth),
        };
        let with = Work::Pull(Pull {
            access,
            ..Pull::default()
        });
        assert!(journaled(&with).is_none());
        assert!(journaled(&Work::Pull(Pull::default())).is_some());
    }

    #[tokio::test]
    async fn only_work_that_has_not_ended_is_picked_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let work = Work::Pull(Pull::default());
        let begin = |id: &str| {
            store.begin(
                None,
                OperationId::new(id).unwrap(),
                journaled(&work),
                "pull",
                "x".into(),
            )
        };
        let (first, new) = begin("a").await.unwrap();
        assert!(new && !begin("a").await.unwrap().1);
        begin("b").await.unwrap();
        let ended = Operation {
            state: State::Done,
            ..first.operation
        };
        store.end(ended, 10).await.unwrap();
        let left: Vec<_> = store
            .interrupted()
            .unwrap()
            .into_iter()
            .map(|record| record.operation.id.to_string())
            .collect();
        assert_eq!(left, ["b"]);
        assert_eq!(
            store
                .resumed(OperationId::new("b").unwrap())
                .await
                .unwrap()
                .operation
                .resumed,
            1
        );
    }

    #[tokio::test]
    async fn old_ended_work_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for i in 0..5 {
            let id = OperationId::new(format!("op{i}")).unwrap();
            let (record, _) = store
                .begin(None, id, None, "collect", "garbage".into())
                .await
                .unwrap();
            store
                .end(
                    Operation {
                        state: State::Done,
                        ..record.operation
                    },
                    2,
                )
                .await
                .unwrap();
        }
        let left = store.list(None, &List::default()).unwrap().items;
        assert_eq!(
            left.iter()
                .map(|operation| operation.id.as_str())
                .collect::<Vec<_>>(),
            ["op4", "op3"]
        );
    }
}
