//! What leases there are and what they hold. See the module page for the tables.

use contracts::collect::{Count, Edge, Edges, Node, Removal, Resource, Swept};
use contracts::leases::{
    Add, Changed, Create, Delete, Deleted, Get, Lease, List, Remove, Resources, Update,
};
use contracts::{
    Error, Labels, LeaseId, Namespace, OperationId, Page, Result, Timestamp, check_labels,
};
use filter::{Fields, Filters};
use ledger::{Fault, Ledger, LedgerConfig, Snapshot, Table, Tx, page};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Moment at which a lease ends by itself, RFC 3339. Source: containerd, docs/garbage-collection.md.
const EXPIRE: &str = "containerd.io/gc.expire";
/// Holds only what it names, not what that refers to. Source: containerd, docs/garbage-collection.md.
const FLAT: &str = "containerd.io/gc.flat";
/// Edges of one page of roots: well below one message.
const ROOTS: usize = 500;
/// Leases removed by one sweep step.
const SWEEP: usize = 100;

const LEASES: Table<Record> = Table::new("leases");
const RESOURCES: Table<Resource> = Table::new("resources");

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    labels: Labels,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
}

/// The durable state of the plugin. Clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    ledger: Ledger,
}

struct Row<'a>(&'a Lease);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => Some(self.0.id.as_str().into()),
            ["labels", rest @ ..] => filter::label(&self.0.labels, rest),
            _ => None,
        }
    }
}

impl Store {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            ledger: Ledger::open(root.join("leases.redb"), LedgerConfig::FIRST)?,
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) async fn create(
        &self,
        ns: &Namespace,
        op: &OperationId,
        create: Create,
    ) -> Result<Lease> {
        check_labels(&create.labels)?;
        let id = create.id.map_or_else(|| LeaseId::new(op.as_str()), Ok)?;
        let (ns, labels, expires_in) = (ns.clone(), create.labels, create.expires_in);
        self.ledger
            .write(Some(op), move |tx| {
                let key = key(&ns, &id);
                if live(tx, &key)?.is_some() {
                    return Err(Error::exists(format!("lease {id}: is there already")));
                }
                let expires_at = expiry(&labels, expires_in, tx.now)?;
                let record = Record {
                    labels: labels.clone(),
                    created_at: tx.now,
                    expires_at,
                };
                forget(tx, &key)?;
                tx.put(&LEASES, &key, &record)?;
                tx.emit(Some(&ns), "/leases/create", &changed(&id, &record))?;
                Ok(lease(id.clone(), record))
            })
            .await
    }

    pub(crate) fn get(&self, ns: &Namespace, get: &Get, now: Timestamp) -> Result<Lease> {
        let record = self
            .ledger
            .read::<_, Error>(|snapshot| Ok(snapshot.get(&LEASES, &key(ns, &get.id))?))?;
        let record = record
            .filter(|record| !over(record, now))
            .ok_or_else(|| missing(&get.id))?;
        Ok(lease(get.id.clone(), record))
    }

    pub(crate) fn list(&self, ns: &Namespace, list: &List, now: Timestamp) -> Result<Page<Lease>> {
        let filters =
            Filters::parse(&list.paging.filters).map_err(|e| Error::invalid(e.to_string()))?;
        let prefix = format!("{ns}\0");
        let keep = |key: &str, record: Record| {
            let id = LeaseId::new(&key[prefix.len()..]).ok()?;
            let alive = !over(&record, now);
            let lease = lease(id, record);
            (alive && filters.matches(&Row(&lease))).then_some(lease)
        };
        self.ledger
            .read(|snapshot| Ok(page(snapshot, &LEASES, &prefix, &list.paging, keep)?))
    }

    pub(crate) async fn update(
        &self,
        ns: &Namespace,
        op: &OperationId,
        update: Update,
    ) -> Result<Lease> {
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let key = key(&ns, &update.id);
                let mut record = live(tx, &key)?.ok_or_else(|| missing(&update.id))?;
                update.labels.apply(&mut record.labels)?;
                if update.labels.replace || update.labels.set.contains_key(EXPIRE) {
                    record.expires_at = expiry(&record.labels, None, tx.now)?;
                }
                tx.put(&LEASES, &key, &record)?;
                tx.emit(Some(&ns), "/leases/update", &changed(&update.id, &record))?;
                Ok(lease(update.id.clone(), record))
            })
            .await
    }

    pub(crate) async fn delete(
        &self,
        ns: &Namespace,
        op: &OperationId,
        delete: Delete,
    ) -> Result<()> {
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let key = key(&ns, &delete.id);
                live(tx, &key)?.ok_or_else(|| missing(&delete.id))?;
                forget(tx, &key)?;
                let event = Deleted {
                    id: delete.id.clone(),
                };
                Ok(tx.emit(Some(&ns), "/leases/delete", &event)?)
            })
            .await
    }

    pub(crate) async fn add(&self, ns: &Namespace, op: &OperationId, add: Add) -> Result<()> {
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let lease = key(&ns, &add.id);
                live(tx, &lease)?.ok_or_else(|| missing(&add.id))?;
                for resource in &add.resources {
                    tx.put(&RESOURCES, &resource_key(&lease, resource), resource)?;
                }
                Ok(())
            })
            .await
    }

    pub(crate) async fn remove(
        &self,
        ns: &Namespace,
        op: &OperationId,
        remove: Remove,
    ) -> Result<()> {
        let ns = ns.clone();
        self.ledger
            .write(Some(op), move |tx| {
                let lease = key(&ns, &remove.id);
                live(tx, &lease)?.ok_or_else(|| missing(&remove.id))?;
                for resource in &remove.resources {
                    tx.remove(&RESOURCES, &resource_key(&lease, resource))?;
                }
                Ok(())
            })
            .await
    }

    pub(crate) fn resources(
        &self,
        ns: &Namespace,
        asked: &Resources,
        now: Timestamp,
    ) -> Result<Page<Resource>> {
        self.get(
            ns,
            &Get {
                id: asked.id.clone(),
            },
            now,
        )?;
        let prefix = format!("{}\0", key(ns, &asked.id));
        // The token is the rest of a key and holds the separator, which tokens may not: it is shown as a slash.
        let mut paging = asked.paging.clone();
        let token = paging.token.replacen('/', "\0", 1);
        paging.token.clear();
        self.ledger.read(|snapshot| {
            let mut page = Page {
                items: Vec::new(),
                next: String::new(),
                version: snapshot.version()?,
            };
            let limit = if paging.limit == 0 {
                ROOTS
            } else {
                (paging.limit as usize).min(ROOTS)
            };
            let after = (!token.is_empty()).then(|| format!("{prefix}{token}"));
            let mut last = String::new();
            snapshot.scan(&RESOURCES, &prefix, after.as_deref(), |key, resource| {
                if page.items.len() == limit {
                    page.next = last.replacen('\0', "/", 1);
                    return false;
                }
                page.items.push(resource);
                last = key[prefix.len()..].to_owned();
                true
            })?;
            Ok(page)
        })
    }

    /// What unexpired leases hold, as edges from the lease.
    pub(crate) fn roots(&self, token: &str, now: Timestamp) -> Result<Edges> {
        let after = (!token.is_empty()).then_some(token);
        self.ledger.read(|snapshot| {
            let leases = all_leases(snapshot, now)?;
            let mut edges = Edges::default();
            let mut last = String::new();
            snapshot.scan(&RESOURCES, "", after, |key, resource| {
                if edges.items.len() == ROOTS {
                    edges.next = std::mem::take(&mut last);
                    return false;
                }
                key.clone_into(&mut last);
                edges.items.extend(edge(&leases, key, resource));
                true
            })?;
            Ok(edges)
        })
    }

    /// What one lease holds, as edges.
    pub(crate) fn held(&self, ns: &Namespace, id: &LeaseId, now: Timestamp) -> Result<Vec<Edge>> {
        self.ledger.read(|snapshot| {
            let lease = key(ns, id);
            let record = snapshot.get(&LEASES, &lease)?;
            let Some(record) = record.filter(|record| !over(record, now)) else {
                return Ok(Vec::new());
            };
            let leases = BTreeMap::from([(lease.clone(), record.labels.contains_key(FLAT))]);
            let mut edges = Vec::new();
            snapshot.scan(&RESOURCES, &format!("{lease}\0"), None, |key, resource| {
                edges.extend(edge(&leases, key, resource));
                true
            })?;
            Ok(edges)
        })
    }

    /// Removes some expired leases, or lists all.
    pub(crate) async fn sweep(&self, dry_run: bool) -> Result<Swept> {
        let now = Timestamp::now();
        let most = if dry_run { usize::MAX } else { SWEEP };
        let expired = self.ledger.read::<_, Error>(|snapshot| {
            let mut expired = Vec::new();
            snapshot.scan(&LEASES, "", None, |key, record| {
                if over(&record, now) {
                    expired.push(key.to_owned());
                }
                expired.len() < most
            })?;
            Ok(expired)
        })?;
        let done = expired.len() < most;
        let expired = if dry_run || expired.is_empty() {
            expired
        } else {
            self.forget_expired(expired).await?
        };
        Ok(Swept {
            removed: expired.iter().filter_map(|key| removal(key)).collect(),
            done,
            ..Swept::default()
        })
    }

    /// Removes leases, but those that somebody has made anew meanwhile. Answers which went.
    async fn forget_expired(&self, expired: Vec<String>) -> Result<Vec<String>> {
        self.ledger
            .write::<_, Error, _>(None, move |tx| {
                let mut gone = Vec::new();
                for key in &expired {
                    if live(tx, key)?.is_none() {
                        forget(tx, key)?;
                        expired_now(tx, key)?;
                        gone.push(key.clone());
                    }
                }
                Ok(gone)
            })
            .await
    }

    pub(crate) fn tally(&self, only: Option<&Namespace>, now: Timestamp) -> Result<Vec<Count>> {
        let mut counts: BTreeMap<Namespace, u64> = BTreeMap::new();
        self.ledger.read::<_, Error>(|snapshot| {
            Ok(snapshot.scan(&LEASES, "", None, |key, record: Record| {
                let namespace = split(key).and_then(|(ns, _)| Namespace::new(ns).ok());
                if let Some(ns) =
                    namespace.filter(|ns| only.is_none_or(|only| only == ns) && !over(&record, now))
                {
                    *counts.entry(ns).or_default() += 1;
                }
                true
            })?)
        })?;
        Ok(counts
            .into_iter()
            .map(|(namespace, count)| Count {
                namespace,
                what: "leases".into(),
                count,
            })
            .collect())
    }
}

fn key(ns: &Namespace, id: &LeaseId) -> String {
    format!("{ns}\0{id}")
}

fn split(key: &str) -> Option<(&str, &str)> {
    key.split_once('\0')
}

fn resource_key(lease: &str, resource: &Resource) -> String {
    let (kind, name) = match resource {
        Resource::Content(digest) => ("content".to_owned(), digest.as_str()),
        Resource::Snapshot { driver, key } => (format!("snapshot-{driver}"), key.as_str()),
        Resource::Ingest(r) => ("ingest".into(), r.as_str()),
        Resource::Image(name) => ("image".into(), name.as_str()),
        Resource::Container(id) => ("container".into(), id.as_str()),
        Resource::Lease(id) => ("lease".into(), id.as_str()),
    };
    format!("{lease}\0{kind}\0{name}")
}

fn lease(id: LeaseId, record: Record) -> Lease {
    Lease {
        id,
        labels: record.labels,
        created_at: record.created_at,
        expires_at: record.expires_at,
    }
}

fn changed(id: &LeaseId, record: &Record) -> Changed {
    Changed {
        id: id.clone(),
        labels: record.labels.clone(),
        expires_at: record.expires_at,
    }
}

fn expired_now(tx: &mut Tx<'_>, key: &str) -> Result<(), Fault> {
    let names =
        split(key).and_then(|(ns, id)| Some((Namespace::new(ns).ok()?, LeaseId::new(id).ok()?)));
    match names {
        Some((ns, id)) => tx.emit(Some(&ns), "/leases/delete", &Deleted { id }),
        None => Ok(()),
    }
}

fn over(record: &Record, now: Timestamp) -> bool {
    record.expires_at.is_some_and(|moment| moment <= now)
}

fn missing(id: &LeaseId) -> Error {
    Error::not_found(format!("lease {id}: not there, or over"))
}

fn live(tx: &Tx<'_>, key: &str) -> Result<Option<Record>> {
    let now = tx.now;
    Ok(tx.get(&LEASES, key)?.filter(|record| !over(record, now)))
}

/// Removes a lease and what it held.
fn forget(tx: &mut Tx<'_>, key: &str) -> Result<(), Fault> {
    let prefix = format!("{key}\0");
    let mut held = Vec::new();
    tx.scan(&RESOURCES, &prefix, None, |key, _| {
        held.push(key.to_owned());
        true
    })?;
    for resource in held {
        tx.remove(&RESOURCES, &resource)?;
    }
    tx.remove(&LEASES, key)?;
    Ok(())
}

fn expiry(labels: &Labels, expires_in: Option<u64>, now: Timestamp) -> Result<Option<Timestamp>> {
    let labelled = labels.get(EXPIRE).map(|text| {
        text.parse::<Timestamp>()
            .map_err(|e| e.context(format!("label {EXPIRE}")))
    });
    let wished =
        expires_in.map(|seconds| now.plus_seconds(i64::try_from(seconds).unwrap_or(i64::MAX)));
    match (wished, labelled.transpose()?) {
        (Some(moment), _) => Ok(Some(moment)),
        (None, Some(moment)) if moment <= now => Err(Error::invalid(format!(
            "label {EXPIRE}: {moment} has passed; name a later moment"
        ))),
        (None, moment) => Ok(moment),
    }
}

fn all_leases(snapshot: &Snapshot, now: Timestamp) -> Result<BTreeMap<String, bool>, Fault> {
    let mut leases = BTreeMap::new();
    snapshot.scan(&LEASES, "", None, |key, record| {
        if !over(&record, now) {
            leases.insert(key.to_owned(), record.labels.contains_key(FLAT));
        }
        true
    })?;
    Ok(leases)
}

fn edge(leases: &BTreeMap<String, bool>, key: &str, resource: Resource) -> Option<Edge> {
    let (namespace, rest) = split(key)?;
    let (id, _) = split(rest)?;
    let flat = *leases.get(&format!("{namespace}\0{id}"))?;
    let namespace = Namespace::new(namespace).ok()?;
    let from = Node {
        namespace: namespace.clone(),
        resource: Resource::Lease(LeaseId::new(id).ok()?),
    };
    Some(Edge {
        from,
        to: Node {
            namespace,
            resource,
        },
        reason: "lease".into(),
        flat,
    })
}

fn removal(key: &str) -> Option<Removal> {
    let (namespace, id) = split(key)?;
    let node = Node {
        namespace: Namespace::new(namespace).ok()?,
        resource: Resource::Lease(LeaseId::new(id).ok()?),
    };
    Some(Removal {
        node,
        size: 0,
        reason: "expired".into(),
    })
}
