//! All unfinished writes of all namespaces. The folders are the truth, this is their index.

use crate::{
    config::Config,
    error::Trouble,
    ingest::{About, Ingest, Phase},
};
use contracts::{
    Namespace, Page, Paging, Ref, Timestamp,
    content::{self, Write},
};
use filter::{Fields, Filters};
use sha2::{Digest as _, Sha256};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{Semaphore, watch};

/// Most items of one page.
const MOST: usize = 500;

type Key = (Namespace, Ref);

pub(crate) struct Ingests {
    root: PathBuf,
    config: Config,
    index: Mutex<BTreeMap<Key, Arc<Ingest>>>,
    writers: Arc<Semaphore>,
    /// Rings when an ingest begins, for those who wait for one.
    news: watch::Sender<()>,
    /// Whether folders were removed that a power cut would bring back.
    loose: AtomicBool,
    /// Held while that is made durable: who comes meanwhile waits for it.
    settling: Mutex<()>,
}

impl Drop for Ingests {
    fn drop(&mut self) {
        // A successor may be waiting for the files.
        let ingests = std::mem::take(&mut *self.index());
        ingests.values().for_each(|ingest| ingest.stop());
    }
}

impl Ingests {
    /// Finds what a predecessor left.
    pub(crate) fn open(root: PathBuf, config: Config) -> Result<Self, Trouble> {
        fs::create_dir_all(&root).map_err(Trouble::io(&root))?;
        let mut index = BTreeMap::new();
        for folder in fs::read_dir(&root).map_err(Trouble::io(&root))?.flatten() {
            let path = folder.path();
            match Ingest::load(path.clone()) {
                Ok(ingest) => {
                    let about = ingest.about();
                    index.insert((about.namespace, about.r#ref), Arc::new(ingest));
                }
                Err(error) => {
                    tracing::warn!(folder = %path.display(), %error, "an ingest without a name goes");
                    // What stays is met again at the next start.
                    let _ = fs::remove_dir_all(&path);
                }
            }
        }
        Ok(Self {
            root,
            config,
            index: Mutex::new(index),
            writers: Arc::new(Semaphore::new(config.writers as usize)),
            news: watch::Sender::new(()),
            loose: AtomicBool::new(true),
            settling: Mutex::default(),
        })
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Ingest>>> {
        // Whoever panicked has ended the process already.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, namespace: &Namespace, name: &Ref) -> Option<Arc<Ingest>> {
        let key = (namespace.clone(), name.clone());
        self.index().get(&key).cloned()
    }

    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Rings for those who wait for an ingest or its blob.
    pub(crate) fn ring(&self) {
        self.news.send_replace(());
    }

    /// Starts or resumes a write. Blocks.
    pub(crate) fn begin(
        &self,
        namespace: &Namespace,
        ask: &Write,
    ) -> Result<(u64, OwnedFd), Trouble> {
        let permit = self.writers.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Trouble::Writers {
            name: ask.r#ref.clone(),
            most: self.config.writers,
        })?;
        loop {
            let ingest = self.find_or_new(namespace, ask);
            let claim = ingest.try_claim()?;
            // Whoever ended it had it out of the index before the claim was free: the next look finds another.
            if ingest.is_gone() {
                continue;
            }
            let begun = ingest.begin(ask, permit);
            if begun.is_err() && ingest.watch().borrow().run == 0 {
                self.end(&ingest, Phase::Dropped);
            }
            drop(claim);
            self.ring();
            return begun;
        }
    }

    fn find_or_new(&self, namespace: &Namespace, ask: &Write) -> Arc<Ingest> {
        let about = || About {
            namespace: namespace.clone(),
            r#ref: ask.r#ref.clone(),
            total: ask.total,
            expected: ask.expected.clone(),
            started_at: Timestamp::now(),
            becoming: None,
        };
        let mut index = self.index();
        let key = (namespace.clone(), ask.r#ref.clone());
        let entry = index.entry(key);
        entry
            .or_insert_with(|| Arc::new(Ingest::new(self.folder(namespace, &ask.r#ref), about())))
            .clone()
    }

    fn folder(&self, namespace: &Namespace, name: &Ref) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(namespace.as_str());
        hash.update([0]);
        hash.update(name.as_str());
        let mut text = String::new();
        for byte in hash.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        self.root.join(text)
    }

    /// Takes an ingest out, with its folder. The caller has claimed it and nobody writes. Blocks.
    pub(crate) fn end(&self, ingest: &Arc<Ingest>, phase: Phase) {
        ingest.end(phase);
        self.loose.store(true, Ordering::Release);
        let about = ingest.about();
        self.index().remove(&(about.namespace, about.r#ref));
    }

    /// Makes durable that ingests have ended. Blocks.
    ///
    /// Whoever removes a blob does this first: an ingest that comes back beside its blob's record has ended, but without
    /// the record it would be a write that goes on.
    pub(crate) fn settle(&self) -> Result<(), Trouble> {
        if !self.config.sync {
            return Ok(());
        }
        let _settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.loose.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let synced = fs::File::open(&self.root).and_then(|root| root.sync_all());
        if synced.is_err() {
            self.loose.store(true, Ordering::Release);
        }
        synced.map_err(Trouble::io(&self.root))
    }

    /// All of a namespace, or of the node, by name.
    pub(crate) fn all(&self, namespace: Option<&Namespace>) -> Vec<(Key, Arc<Ingest>)> {
        let index = self.index();
        let wanted = index
            .iter()
            .filter(|((of, _), _)| namespace.is_none_or(|namespace| of == namespace));
        wanted
            .map(|(key, ingest)| (key.clone(), ingest.clone()))
            .collect()
    }

    /// Whether nobody goes on with it any more.
    pub(crate) fn is_expired(&self, ingest: &Ingest, now: Timestamp) -> bool {
        let life = 3600 * i64::from(self.config.ingest_hours);
        !ingest.is_writing() && ingest.touched().plus_seconds(life) <= now
    }

    /// Drops an ingest that nobody goes on with; says whether it did. Blocks.
    pub(crate) fn expire(&self, ingest: &Arc<Ingest>, now: Timestamp) -> bool {
        let Ok(_claim) = ingest.try_claim() else {
            return false;
        };
        let over = !ingest.is_gone() && self.is_expired(ingest, now);
        if over {
            self.end(ingest, Phase::Dropped);
        }
        over
    }

    /// Folders that belong to no ingest: what somebody else put there, or a crash left.
    pub(crate) fn strays(&self) -> Result<Vec<String>, Trouble> {
        let folders = fs::read_dir(&self.root).map_err(Trouble::io(&self.root))?;
        let there: Vec<PathBuf> = folders.flatten().map(|folder| folder.path()).collect();
        // After the folders, so that none is younger than the index: an ingest is in it before its folder is made.
        let index = self.index();
        let known: std::collections::HashSet<PathBuf> = index
            .keys()
            .map(|(namespace, name)| self.folder(namespace, name))
            .collect();
        drop(index);
        let strays = there
            .into_iter()
            .filter(|path| !known.contains(path) && path.exists());
        Ok(strays
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    /// Removes a folder that belongs to no ingest; none is fine.
    pub(crate) fn remove_stray(&self, name: &str) -> Result<(), Trouble> {
        if !self.strays()?.iter().any(|stray| stray == name) {
            return Ok(());
        }
        let path = self.root.join(name);
        let gone = match fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        gone.map_err(Trouble::io(&path))
    }

    /// One page of a namespace's ingests, by ref.
    pub(crate) fn page(
        &self,
        namespace: &Namespace,
        paging: &Paging,
    ) -> Result<Page<content::Ingest>, Trouble> {
        let filters = Filters::parse(&paging.filters)?;
        let most = match paging.limit as usize {
            0 => MOST,
            limit => limit.min(MOST),
        };
        let mut page = Page {
            items: Vec::new(),
            next: String::new(),
            version: 0,
        };
        for ((_, name), ingest) in self.all(Some(namespace)) {
            if name.as_str() <= paging.token.as_str() || !filters.matches(&Row(&name)) {
                continue;
            }
            if page.items.len() == most {
                let last: Option<&content::Ingest> = page.items.last();
                page.next = last.map(|last| last.r#ref.to_string()).unwrap_or_default();
                break;
            }
            page.items.push(ingest.status());
        }
        Ok(page)
    }
}

struct Row<'a>(&'a Ref);

impl Fields for Row<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        (path == ["ref"]).then(|| Cow::Borrowed(self.0.as_str()))
    }
}
