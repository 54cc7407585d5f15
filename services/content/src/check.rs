//! What this store answers about its own disk, in short steps, and how it mends what a step found.
//!
//! ```text
//! records → files → ingests → bytes (deep only)
//! ```
//!
//! A token is the stage and where it goes on. Bytes are read at most [`BYTES`] a step; a blob larger than that is
//! hashed over several steps, whose hash is kept here: when it is lost, that blob begins again. Damage is marked as soon
//! as it is seen, for nobody may be given such bytes, whoever mends them later.

use crate::{
    blobs::ALGORITHMS,
    error::Trouble,
    hasher::Hasher,
    ingest::Phase,
    store::{BLOBS, Key, Record, SHARERS, Store},
    trust::Stamp,
    verify::{unreadable, wait},
};
use contracts::{
    Digest, Error, Namespace, Ref,
    integrity::{Check, Checked, Cure, Damage, Finding, Mend, Mended},
};
use ledger::{Snapshot, Tx};
use std::{fs, sync::Mutex};

/// Bytes that one step reads.
const BYTES: u64 = 64 << 20;
/// Records or files that one step looks at.
const THINGS: usize = 500;
/// Checks whose places in a blob are kept; of more the oldest begins its blob again.
const BOOKMARKS: usize = 16;

/// A blob that is hashed over several steps.
pub(crate) struct Reading {
    digest: Digest,
    stamp: Stamp,
    at: u64,
    hasher: Hasher,
}

/// Where the last steps of checks stopped within blobs: several may go on side by side.
pub(crate) type Bookmarks = Mutex<Vec<Reading>>;

impl Store {
    /// One step of a check. Blocks. Errors: `InvalidArgument` for a token that is none of ours.
    pub(crate) fn check(&self, ask: &Check) -> Result<Checked, Trouble> {
        let (stage, at) = ask.token.split_once(':').unwrap_or(("records", ""));
        let (mut step, follows) = match stage {
            "records" => (self.check_records(at)?, "files:"),
            "files" => (self.check_files(at)?, "ingests:"),
            "ingests" => (self.check_ingests()?, if ask.deep { "bytes:" } else { "" }),
            "bytes" => (self.check_bytes(at)?, ""),
            _ => {
                let what = format!("token {:?}: is none that a check gave", ask.token);
                return Err(Error::invalid(what).into());
            }
        };
        step.next = match step.next.is_empty() {
            true => follows.to_owned(),
            false => format!("{stage}:{}", step.next),
        };
        Ok(step)
    }

    /// Each record has a row by digest, and a file of its size that is not known to be damaged.
    fn check_records(&self, after: &str) -> Result<Checked, Trouble> {
        let mut step = Checked::default();
        let mut rows = Vec::new();
        self.ledger().read(|snapshot: &Snapshot| {
            let after = (!after.is_empty()).then_some(after);
            snapshot.scan(&BLOBS, "", after, |text, record: Record| {
                if rows.len() == THINGS {
                    return false;
                }
                text.clone_into(&mut step.next);
                rows.push((text.to_owned(), record.size));
                true
            })?;
            Ok::<_, Trouble>(())
        })?;
        if rows.len() < THINGS {
            step.next.clear();
        }
        for (text, size) in rows {
            step.things += 1;
            match Key::parse(&text) {
                Some(key) => step.findings.extend(self.check_record(&key, size)?),
                None => step.findings.push(nameless(&text)),
            }
        }
        Ok(step)
    }

    fn check_record(&self, key: &Key, size: u64) -> Result<Option<Finding>, Trouble> {
        let row = |snapshot: &Snapshot| Ok::<_, Trouble>(snapshot.get(&SHARERS, &key.shared())?);
        if self.ledger().read(row)? != Some(size) && self.record(key)?.is_some() {
            let what = "the row that finds its record by digest is missing or wrong".to_owned();
            let found = finding(Damage::Record, key, what, Cure::Rebuild);
            return Ok(Some(found));
        }
        let trouble = match self.marked(&key.digest)? {
            Some(what) => return Ok(Some(finding(Damage::Blob, key, what, Cure::Fetch))),
            None => self.blobs().read(&key.digest, size).err(),
        };
        // What goes while it is looked at is not missing.
        let Some(trouble) = trouble.filter(|_| matches!(self.record(key), Ok(Some(_)))) else {
            return Ok(None);
        };
        Ok(Some(match trouble {
            Trouble::Gone(_) => {
                let what = "its file is gone".to_owned();
                finding(Damage::Missing, key, what, Cure::Fetch)
            }
            Trouble::Damaged { found, size, .. } => {
                let what = format!("has {found} bytes, {size} in its record");
                finding(Damage::Blob, key, what, Cure::Fetch)
            }
            other => return Err(other),
        }))
    }

    /// Every file has a record, unless it is about to get one.
    fn check_files(&self, after: &str) -> Result<Checked, Trouble> {
        let mut step = Checked::default();
        let mut all = Vec::new();
        for algorithm in ALGORITHMS {
            let folder = self.blobs().folder(algorithm);
            let names = fs::read_dir(&folder).map_err(Trouble::io(&folder))?;
            let names = names.flatten().map(|file| file.file_name());
            all.extend(names.map(|name| format!("{algorithm}/{}", name.to_string_lossy())));
        }
        all.retain(|name| name.as_str() > after);
        all.sort_unstable();
        for name in all.iter().take(THINGS) {
            step.things += 1;
            if self.is_stray(name)? {
                let what = "a file that no record names".to_owned();
                step.findings.push(leftover(format!("blobs/{name}"), what));
            }
        }
        if all.len() > THINGS {
            step.next.clone_from(&all[THINGS - 1]);
        }
        Ok(step)
    }

    /// Whether a file below `blobs` belongs to nobody, and nobody is about to commit it.
    fn is_stray(&self, name: &str) -> Result<bool, Trouble> {
        let Ok(digest) = Digest::new(name.replacen('/', ":", 1)) else {
            return Ok(true);
        };
        // Whoever moves bytes to their place holds it until their record is there.
        let _lock = self.blobs().lock_blocking(&digest);
        if self.shared(&digest)?.is_some() || self.blobs().size(&digest)?.is_none() {
            return Ok(false);
        }
        let mut ingests = self.ingests().all(None).into_iter();
        Ok(!ingests.any(|(_, ingest)| ingest.about().becoming.as_ref() == Some(&digest)))
    }

    /// Every unfinished write has as many bytes as were told, and every folder is one.
    fn check_ingests(&self) -> Result<Checked, Trouble> {
        let mut step = Checked::default();
        for ((namespace, name), ingest) in self.ingests().all(None) {
            step.things += 1;
            let told = ingest.watch().borrow().offset;
            let there = fs::metadata(ingest.data()).map_or(0, |data| data.len());
            let busy = ingest.try_claim().is_err() || ingest.is_gone() || ingest.is_writing();
            let moved = ingest.about().becoming.is_some();
            if there < told && !busy && !moved {
                step.findings.push(Finding {
                    damage: Damage::Missing,
                    namespace: Some(namespace),
                    subject: format!("ingest {name}"),
                    what: format!("has {there} bytes, {told} were stored"),
                    cure: Cure::Remove,
                });
            }
        }
        for folder in self.ingests().strays()? {
            step.things += 1;
            let what = "a folder of no unfinished write".to_owned();
            let subject = format!("ingests/{folder}");
            step.findings.push(leftover(subject, what));
        }
        Ok(step)
    }

    /// The bytes of every digest, some at a time.
    fn check_bytes(&self, token: &str) -> Result<Checked, Trouble> {
        let mut step = Checked::default();
        // Not empty even before the first blob is through.
        let mut after = token.strip_prefix('=').unwrap_or_default().to_owned();
        while step.bytes < BYTES && step.things < THINGS as u64 {
            let Some((namespace, digest, size)) = self.after(&after)? else {
                return Ok(step);
            };
            if self.read_on(&namespace, &digest, size, &mut step)? {
                after = digest.to_string();
            }
        }
        step.next = format!("={after}");
        Ok(step)
    }

    /// The next digest, one of its namespaces, and its size.
    fn after(&self, digest: &str) -> Result<Option<(Namespace, Digest, u64)>, Trouble> {
        let mut next = None;
        // Behind every namespace of that digest.
        let after = (!digest.is_empty()).then(|| format!("{digest}\u{1}"));
        self.ledger().read(|snapshot: &Snapshot| {
            snapshot.scan(&SHARERS, "", after.as_deref(), |text, size| {
                let parsed = text.split_once('\0').and_then(|(digest, namespace)| {
                    Some((Namespace::new(namespace).ok()?, Digest::new(digest).ok()?))
                });
                next = parsed.map(|(namespace, digest)| (namespace, digest, size));
                next.is_none()
            })?;
            Ok(next)
        })
    }

    /// Reads on in one blob; says whether it is through with it.
    fn read_on(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        size: u64,
        step: &mut Checked,
    ) -> Result<bool, Trouble> {
        // Gone, cut and marked ones were found among the records.
        let Ok(file) = self.blobs().read(digest, size) else {
            return Ok(true);
        };
        if self.marked(digest)?.is_some() {
            return Ok(true);
        }
        let stamp = Stamp::of_file(&file, &self.blobs().path(digest))?;
        let mut reading = self.resume(digest, stamp);
        let end = size.min(reading.at + (BYTES - step.bytes.min(BYTES)).max(1));
        let failed = match reading.hasher.read(&file, reading.at, end) {
            Ok(()) => None,
            Err(error) => unreadable(error).map_err(Trouble::io(&self.blobs().path(digest)))?,
        };
        step.bytes += end - reading.at;
        reading.at = end;
        if end < size && failed.is_none() {
            self.keep(reading);
            return Ok(false);
        }
        step.things += 1;
        let different = match failed {
            Some(what) => Some(what),
            None => self.compared(&reading.hasher, digest)?,
        };
        match different {
            None => self.trust().learn(digest, stamp),
            Some(what) if self.condemn(digest, stamp, &what)? => {
                let key = Key::new(namespace, digest);
                step.findings
                    .push(finding(Damage::Blob, &key, what, Cure::Fetch));
            }
            Some(_) => {}
        }
        Ok(true)
    }

    fn resume(&self, digest: &Digest, stamp: Stamp) -> Reading {
        let mut kept = self.bookmarks().lock().unwrap_or_else(|e| e.into_inner());
        let here = kept.iter().position(|reading| reading.digest == *digest);
        let found = here.map(|here| kept.remove(here));
        let same = |reading: &Reading| reading.stamp == stamp;
        found.filter(same).unwrap_or_else(|| Reading {
            digest: digest.clone(),
            stamp,
            at: 0,
            hasher: Hasher::of(Some(digest)),
        })
    }

    fn keep(&self, reading: Reading) {
        let mut kept = self.bookmarks().lock().unwrap_or_else(|e| e.into_inner());
        if kept.len() == BOOKMARKS {
            kept.remove(0);
        }
        kept.push(reading);
    }

    /// Mends one finding. Blocks.
    pub(crate) fn mend(&self, mend: &Mend) -> Result<Mended, Trouble> {
        let Finding {
            damage,
            namespace,
            subject,
            ..
        } = &mend.finding;
        let how = match (damage, namespace) {
            (Damage::Leftover, _) => self.remove_stray(subject)?,
            (Damage::Record, Some(namespace)) => self.rebuild(namespace, subject)?,
            (Damage::Missing, Some(namespace)) if subject.starts_with("ingest ") => {
                self.remove_ingest(namespace, &subject["ingest ".len()..])?
            }
            (Damage::Blob | Damage::Missing, Some(namespace)) => {
                self.is_right_again(namespace, subject)?
            }
            _ => {
                let why = "is none that content could mend";
                return Err(Trouble::NotMine(subject.clone(), why));
            }
        };
        Ok(Mended {
            how: how.to_owned(),
        })
    }

    fn remove_stray(&self, subject: &str) -> Result<&'static str, Trouble> {
        const UNKNOWN: &str = "names nothing below the content store";
        let unknown = || Trouble::NotMine(subject.to_owned(), UNKNOWN);
        if let Some(folder) = subject.strip_prefix("ingests/") {
            self.ingests().remove_stray(folder)?;
            return Ok("removed");
        }
        let name = subject.strip_prefix("blobs/").ok_or_else(unknown)?;
        let (algorithm, file) = name.split_once('/').ok_or_else(unknown)?;
        // The folder itself is no file in it.
        let nameless = matches!(file, "" | "." | "..") || file.contains('/');
        if nameless || !ALGORITHMS.contains(&algorithm) {
            return Err(unknown());
        }
        if !self.is_stray(name)? {
            return Ok("is not there any more, or has a record");
        }
        let Ok(digest) = Digest::new(name.replacen('/', ":", 1)) else {
            let path = self.blobs().folder(algorithm).join(file);
            let gone = match fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            };
            gone.map_err(Trouble::io(&path))?;
            return Ok("removed");
        };
        let _lock = self.blobs().lock_blocking(&digest);
        if self.shared(&digest)?.is_none() {
            self.blobs().remove(&digest)?;
        }
        Ok("removed")
    }

    fn remove_ingest(&self, namespace: &Namespace, name: &str) -> Result<&'static str, Trouble> {
        let found = Ref::new(name).ok();
        let found = found.and_then(|name| self.ingests().find(namespace, &name));
        if let Some(ingest) = found {
            let _claim = ingest.try_claim()?;
            if !ingest.is_writing() && !ingest.is_gone() {
                self.ingests().end(&ingest, Phase::Dropped);
            }
        }
        Ok("removed: its writer begins again")
    }

    /// Makes the row by digest again from the record.
    fn rebuild(&self, namespace: &Namespace, subject: &str) -> Result<&'static str, Trouble> {
        let key = Key::new(namespace, &Digest::new(subject)?);
        wait(self.ledger().write(None, move |tx: &mut Tx<'_>| {
            let record: Option<Record> = tx.get(&BLOBS, &key.text())?;
            if let Some(record) = record {
                tx.put(&SHARERS, &key.shared(), &record.size)?;
            }
            Ok::<_, Trouble>(())
        }))?;
        Ok("its row was made again from its record")
    }

    /// Errors: `NotMine` when it is still damaged: its bytes can only come from elsewhere.
    fn is_right_again(
        &self,
        namespace: &Namespace,
        subject: &str,
    ) -> Result<&'static str, Trouble> {
        let why = "is marked and not handed out; pull an image that has it again";
        match self.verify(namespace, &Digest::new(subject)?, false) {
            Ok(_) => Ok("was fetched again meanwhile"),
            Err(Trouble::Missing(_)) => Ok("was deleted meanwhile"),
            Err(trouble) if trouble.is_damage() => Err(Trouble::NotMine(subject.to_owned(), why)),
            Err(trouble) => Err(trouble),
        }
    }
}

fn finding(damage: Damage, key: &Key, what: String, cure: Cure) -> Finding {
    Finding {
        damage,
        namespace: Some(key.namespace()),
        subject: key.digest.to_string(),
        what,
        cure,
    }
}

fn nameless(text: &str) -> Finding {
    Finding {
        damage: Damage::Record,
        namespace: None,
        subject: text.escape_debug().to_string(),
        what: "the key of a record is no namespace and digest".to_owned(),
        cure: Cure::None,
    }
}

fn leftover(subject: String, what: String) -> Finding {
    Finding {
        damage: Damage::Leftover,
        namespace: None,
        subject,
        what,
        cure: Cure::Remove,
    }
}
