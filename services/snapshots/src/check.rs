//! What this driver answers about its own disk, in short steps: whether records and directories are of one mind.
//!
//! ```text
//! the ledger's records → snapshots → folders
//! ```
//!
//! What is *in* a layer's directory is proven by its blob, which only `diff` reads: see `diff.verify`.

use crate::error::{Error, Result};
use crate::record::{self, Look, Record, SNAPSHOTS};
use crate::store::{Store, numbers};
use contracts::integrity::{Check, Checked, Cure, Damage, Finding, Mend, Mended};
use contracts::snapshots::SnapshotKind;
use contracts::{Namespace, SnapshotKey};
use ledger::integrity::{self, Found};
use std::path::Path;

/// Records that one step looks at.
const THINGS: usize = 500;

impl Store {
    /// One step of a check. Blocks. Errors: `InvalidArgument` for a token that is none of ours.
    pub(crate) fn check(&self, ask: &Check) -> Result<Checked> {
        if integrity::is_mine(&ask.token) {
            let mut step = integrity::check(&self.ledger, &ask.token)?;
            if step.next.is_empty() {
                step.next = "snapshots:".to_owned();
            }
            return Ok(step);
        }
        match ask.token.split_once(':').unwrap_or_default() {
            ("snapshots", at) => self.check_records(at),
            ("folders", _) => self.check_folders(),
            _ => {
                let what = format!("token {:?}: is none that a check gave", ask.token);
                Err(contracts::Error::invalid(what).into())
            }
        }
    }

    /// Each record has its directory, and its parent is there and committed.
    fn check_records(&self, after: &str) -> Result<Checked> {
        let mut step = Checked::default();
        let mut rows: Vec<(String, Record)> = Vec::new();
        self.ledger.read(|look| {
            let after = (!after.is_empty()).then_some(after);
            look.scan(&SNAPSHOTS, "", after, |row, record: Record| {
                rows.push((row.to_owned(), record));
                rows.len() < THINGS
            })
        })?;
        for (row, record) in &rows {
            step.things += 1;
            if let Some((ns, key)) = record::named(row) {
                step.findings.extend(self.check_record(ns, key, record)?);
            }
        }
        step.next = match rows.last().filter(|_| rows.len() == THINGS) {
            Some((last, _)) => format!("snapshots:{last}"),
            None => "folders:".to_owned(),
        };
        Ok(step)
    }

    fn check_record(
        &self,
        ns: Namespace,
        key: SnapshotKey,
        record: &Record,
    ) -> Result<Option<Finding>> {
        let gone = !self.folders.fs(record.number).is_dir();
        let orphan = match &record.parent {
            None => false,
            Some(parent) => {
                let parent = self.ledger.read(|look| look.record(&ns, parent))?;
                parent.is_none_or(|parent| parent.kind != SnapshotKind::Committed)
            }
        };
        // What goes while it is looked at is not missing.
        let same = |now: Option<Record>| now.is_some_and(|now| now.number == record.number);
        if !(gone || orphan) || !same(self.ledger.read(|look| look.record(&ns, &key))?) {
            return Ok(None);
        }
        let (damage, what, cure) = match (gone, record.kind) {
            (true, SnapshotKind::Committed) => {
                (Damage::Missing, "its directory is gone", Cure::Fetch)
            }
            (true, _) => (Damage::Missing, "its directory is gone", Cure::Rebuild),
            (false, _) => (Damage::Record, "its parent is not there", Cure::None),
        };
        Ok(Some(Finding {
            damage,
            namespace: Some(ns),
            subject: key.to_string(),
            what: what.to_owned(),
            cure,
        }))
    }

    /// Each directory has a record, or is about to get one.
    fn check_folders(&self) -> Result<Checked> {
        let (mut step, ledger) = (Checked::default(), self.ledger.clone());
        let (all, strays) = self.folders.strays(|| numbers(&ledger))?;
        step.things = all;
        step.findings = strays
            .into_iter()
            .map(|name| Finding {
                damage: Damage::Leftover,
                namespace: None,
                subject: format!("snapshots/{name}"),
                what: "a directory that no record names".to_owned(),
                cure: Cure::Remove,
            })
            .collect();
        Ok(step)
    }

    /// Mends one finding. Blocks.
    pub(crate) fn mend(&self, mend: &Mend) -> Result<Mended> {
        let finding = &mend.finding;
        let of_ledger = matches!(finding.damage, Damage::Store | Damage::Record);
        if of_ledger && finding.namespace.is_none() {
            return Ok(integrity::mend_only(&self.ledger, finding)?);
        }
        let how = match (finding.damage, &finding.namespace) {
            (Damage::Leftover, _) => self.remove_stray(&finding.subject)?,
            (Damage::Missing, Some(ns)) => {
                self.make_again(ns, &SnapshotKey::new(finding.subject.as_str())?)?
            }
            _ => {
                let what = format!(
                    "snapshot {}: {}; nothing here can mend it, remove it",
                    finding.subject, finding.what
                );
                return Err(contracts::Error::precondition(what).into());
            }
        };
        Ok(Mended {
            how: how.to_owned(),
        })
    }

    fn remove_stray(&self, subject: &str) -> Result<&'static str> {
        let name = subject.strip_prefix("snapshots/").unwrap_or_default();
        let ledger = self.ledger.clone();
        let (_, strays) = self.folders.strays(|| numbers(&ledger))?;
        match strays.iter().any(|stray| stray == name) {
            true => {
                self.folders.discard_named(name);
                Ok("removed")
            }
            false => Ok("is not there any more, or has a record"),
        }
    }

    /// Makes a lost directory again. That of a layer is empty then: `diff.verify` fills it.
    fn make_again(&self, ns: &Namespace, key: &SnapshotKey) -> Result<&'static str> {
        let Some(record) = self.ledger.read(|look| look.record(ns, key))? else {
            return Ok("was removed meanwhile");
        };
        if record.kind != SnapshotKind::Committed {
            return match self.mounts(ns, key) {
                Ok(_) => Ok("its directory was made again, without what it held"),
                Err(Error::Missing(_)) => Ok("was removed meanwhile"),
                Err(error) => Err(error),
            };
        }
        if !self.folders.fs(record.number).is_dir() {
            self.folders.restore(record.number)?;
        }
        Ok("its directory was made again, and is filled from its layer")
    }
}

/// Looks at the folder below `root` while the plugin does not run, and mends it when `repair` says so. What is in the
/// layers is looked at by a scrub of the running node.
///
/// Directories of nobody stay when records were lost: they may be what those records named.
pub(crate) fn fsck(root: &Path, repair: bool) -> contracts::Result<Found> {
    let mut found = integrity::fsck(&root.join("snapshots.redb"), repair)?;
    let lost = !found.is_empty();
    if lost && !repair {
        return Ok(found);
    }
    let store = Store::looking(root)?;
    let mut token = "snapshots:".to_owned();
    while !token.is_empty() {
        let step = store.check(&Check { deep: true, token })?;
        for finding in step.findings {
            let keeps = lost && finding.cure == Cure::Remove;
            let mended = match repair && !keeps && finding.cure != Cure::None {
                true => Some(store.mend(&Mend {
                    finding: finding.clone(),
                })?),
                false => None,
            };
            found.push((finding, mended));
        }
        token = step.next;
    }
    Ok(found)
}
