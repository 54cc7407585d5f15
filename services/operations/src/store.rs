//! The journal. See the module page for the tables.

use contracts::operations::{Ended, List, Operation, Started, State, Work};
use contracts::{Error, LeaseId, Namespace, OperationId, Page, Result};
use filter::{Fields, Filters};
use ledger::{Fault, Ledger, LedgerConfig, Snapshot, Table, Tx, page};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, path::Path};

const OPERATIONS: Table<Record> = Table::new("operations");
const MOMENTS: Table<String> = Table::new("moments");
const RUNNING: Table<()> = Table::new("running");
const ENDED: Table<()> = Table::new("ended");
const COUNTS: Table<u64> = Table::new("counts");
/// Old records forgotten by one write, so that forgetting never makes it slow.
const FORGET: usize = 32;

/// How many ended operations are kept, and for how long all of them are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) count: usize,
    /// Seconds. A repetition within this time finds its first.
    pub(crate) least: i64,
}

/// One operation as it is journaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) namespace: Option<Namespace>,
    /// What the caller wants to hold the results with.
    pub(crate) lease: Option<LeaseId>,
    /// What to begin again after a crash; `None` when that cannot be.
    pub(crate) work: Option<Work>,
    pub(crate) operation: Operation,
}

/// Work that is about to begin.
#[derive(Clone, Debug)]
pub(crate) struct Begin {
    pub(crate) id: OperationId,
    pub(crate) namespace: Option<Namespace>,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) work: Option<Work>,
    pub(crate) kind: &'static str,
    pub(crate) subject: String,
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
        // Collecting is an operation: its journal must have room on a disk that it makes room on.
        let config = LedgerConfig {
            essential: true,
            ..LedgerConfig::FIRST
        };
        Ok(Self {
            ledger: Ledger::open(root.join("operations.redb"), config)?,
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Journals work before its first step. Answers the record, and whether this call began it.
    pub(crate) async fn begin(&self, begin: Begin) -> Result<(Record, bool)> {
        let Begin {
            id,
            namespace,
            lease,
            work,
            kind,
            subject,
        } = begin;
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
                    lease: lease.clone(),
                    work: work.clone(),
                    operation,
                };
                let key = format!("{:020}\0{id}", u64::MAX - tx.now.0.unsigned_abs());
                tx.put(&MOMENTS, id.as_str(), &key)?;
                tx.put(&OPERATIONS, &key, &record)?;
                tx.put(&RUNNING, id.as_str(), &())?;
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
    pub(crate) async fn end(&self, mut ended: Operation, keep: Keep) -> Result<Operation> {
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
                let id = &ended.id;
                tx.remove(&RUNNING, id.as_str())?;
                tx.put(
                    &ENDED,
                    &format!("{:020}\0{id}", tx.now.0.unsigned_abs()),
                    &(),
                )?;
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
            let mut ids = Vec::new();
            snapshot.scan(&RUNNING, "", None, |id, ()| {
                ids.push(id.to_owned());
                true
            })?;
            let mut running = Vec::new();
            for id in ids {
                if let Some(key) = snapshot.get(&MOMENTS, &id)? {
                    running.extend(snapshot.get(&OPERATIONS, &key)?);
                }
            }
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

/// Counts one more ended operation, and forgets the oldest when there are too many.
fn forget(tx: &mut Tx<'_>, keep: Keep) -> Result<(), Fault> {
    let count = tx.get(&COUNTS, "ended")?.unwrap_or(0) + 1;
    let excess = usize::try_from(count)
        .unwrap_or(usize::MAX)
        .saturating_sub(keep.count);
    let oldest = tx.now.plus_seconds(-keep.least).0.unsigned_abs();
    let mut old = Vec::new();
    if excess > 0 {
        tx.scan(&ENDED, "", None, |key, ()| {
            let (moment, id) = key.split_once('\0').unwrap_or_default();
            let passed = moment.parse().is_ok_and(|moment: u64| moment <= oldest);
            if passed {
                old.push((key.to_owned(), id.to_owned()));
            }
            passed && old.len() < excess.min(FORGET)
        })?;
    }
    for (key, id) in &old {
        tx.remove(&ENDED, key)?;
        if let Some(moment) = tx.get(&MOMENTS, id)? {
            tx.remove(&OPERATIONS, &moment)?;
            tx.remove(&MOMENTS, id)?;
        }
    }
    tx.put(&COUNTS, "ended", &(count - old.len() as u64))
}

/// What may be written down of some work: nothing that holds credentials or a live archive.
pub(crate) fn journaled(work: &Work) -> Option<Work> {
    let access = match work {
        Work::Pull(pull) => &pull.access,
        Work::Push(push) => &push.access,
        Work::Create(create) | Work::Run(create) => &create.access,
        Work::Import(_) | Work::Export(_) => return None,
        Work::Unpack(_) | Work::Remove(_) | Work::Collect(_) | Work::Scrub(_) => {
            return Some(work.clone());
        }
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
        Work::Scrub(_) => ("scrub", "disk".into()),
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

    fn begin(id: &str) -> Begin {
        Begin {
            id: OperationId::new(id).unwrap(),
            namespace: None,
            lease: None,
            work: Some(Work::Pull(Pull::default())),
            kind: "pull",
            subject: "x".into(),
        }
    }

    fn done(record: Record) -> Operation {
        Operation {
            state: State::Done,
            ..record.operation
        }
    }

    const ALL: Keep = Keep {
        count: 2,
        least: 3600,
    };

    #[tokio::test]
    async fn only_work_that_has_not_ended_is_picked_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (first, new) = store.begin(begin("a")).await.unwrap();
        assert!(new && !store.begin(begin("a")).await.unwrap().1);
        store.begin(begin("b")).await.unwrap();
        store.end(done(first), ALL).await.unwrap();
        let left: Vec<_> = store
            .interrupted()
            .unwrap()
            .into_iter()
            .map(|record| record.operation.id.to_string())
            .collect();
        assert_eq!(left, ["b"]);
        let again = store.resumed(OperationId::new("b").unwrap()).await.unwrap();
        assert_eq!(again.operation.resumed, 1);
    }

    async fn kept(keep: Keep) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.begin(begin("running")).await.unwrap();
        for i in 0..5 {
            let (record, _) = store.begin(begin(&format!("op{i}"))).await.unwrap();
            store.end(done(record.clone()), keep).await.unwrap();
            // A repeated end counts once.
            store.end(done(record), keep).await.unwrap();
        }
        let left = store.list(None, &List::default()).unwrap().items;
        left.into_iter()
            .map(|operation| operation.id.to_string())
            .collect()
    }

    #[tokio::test]
    async fn old_ended_work_is_forgotten_and_running_work_never() {
        let keep = Keep { count: 2, least: 0 };
        assert_eq!(kept(keep).await, ["op4", "op3", "running"]);
    }

    #[tokio::test]
    async fn young_work_is_kept_however_much_there_is() {
        let all = ["op4", "op3", "op2", "op1", "op0", "running"];
        assert_eq!(kept(ALL).await, all);
    }
}
