//! A content store in memory that keeps the contract, and breaks when told to.

use bus::testing::Fake;
use contracts::{
    Code, Digest, Error, Fd, Labels, Ref, Result, Timestamp,
    content::{
        Abort, Blob, Commit, Content, Follow, Growth, Open, Opened, Stat, Update, Verify, Write,
        Writer,
    },
};
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{Read, Seek, Write as _},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

/// The blobs, shared with the fake that serves them.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    blobs: HashMap<Digest, (Vec<u8>, Labels)>,
    ingests: HashMap<Ref, Ingest>,
    breaks: Vec<usize>,
    broken: bool,
    full: bool,
    damaged: HashSet<Digest>,
    offsets: Vec<u64>,
}

#[derive(Default)]
struct Ingest {
    bytes: Vec<u8>,
    reader: Option<JoinHandle<Vec<u8>>>,
}

impl Ingest {
    /// Waits for the pipe to end and takes what came.
    fn settle(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.bytes.extend(reader.join().unwrap_or_default());
        }
    }
}

impl Shelf {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, bytes: &[u8]) -> Digest {
        let digest = super::digest(bytes);
        self.inner()
            .blobs
            .insert(digest.clone(), (bytes.to_vec(), Labels::new()));
        digest
    }

    pub fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.inner()
            .blobs
            .get(digest)
            .map(|(bytes, _)| bytes.clone())
    }

    pub fn labels(&self, digest: &Digest) -> Labels {
        self.inner()
            .blobs
            .get(digest)
            .map(|(_, labels)| labels.clone())
            .unwrap_or_default()
    }

    pub fn count(&self) -> usize {
        self.inner().blobs.len()
    }

    pub fn ingests(&self) -> usize {
        self.inner().ingests.len()
    }

    /// Leaves a part of an ingest behind, as a transfer that was killed does.
    pub fn begin(&self, r#ref: Ref, bytes: &[u8]) {
        self.inner().ingests.insert(
            r#ref,
            Ingest {
                bytes: bytes.to_vec(),
                reader: None,
            },
        );
    }

    /// Breaks the next pipes after so many bytes each, as a store that restarts does.
    pub fn break_after(&self, bytes: &[usize]) {
        self.inner().breaks = bytes.iter().rev().copied().collect();
    }

    /// Damages a blob: it is written again by who fetches it.
    pub fn damage(&self, digest: &Digest) {
        self.inner().damaged.insert(digest.clone());
    }

    /// Makes the disk full.
    pub fn fill(&self) {
        self.inner().full = true;
    }

    /// Fills the disk while something is written: pipes break without a word, and only a commit tells why.
    pub fn fill_meanwhile(&self) {
        self.inner().broken = true;
    }

    /// Offsets at which writes were begun.
    pub fn offsets(&self) -> Vec<u64> {
        self.inner().offsets.clone()
    }

    pub fn fake(&self) -> Fake<Content> {
        let shelf = || self.clone();
        let (a, b, c, d, e, f, g, h) = (
            shelf(),
            shelf(),
            shelf(),
            shelf(),
            shelf(),
            shelf(),
            shelf(),
            shelf(),
        );
        Fake::<Content>::new("local")
            .on(move |_, stat: Stat| a.stat(&stat.digest))
            .on(move |_, verify: Verify| h.verify(&verify))
            .on(move |_, open: Open| b.open(&open.digest))
            .on(move |_, update: Update| c.update(update))
            .on(move |_, write: Write| d.write(write))
            .on(move |_, commit: Commit| e.commit(commit))
            .on(move |_, abort: Abort| {
                f.inner().ingests.remove(&abort.r#ref);
                Ok(())
            })
            .stream(move |_, follow: Follow| g.follow(&follow))
    }

    fn stat(&self, digest: &Digest) -> Result<Blob> {
        let inner = self.inner();
        let (bytes, labels) = inner
            .blobs
            .get(digest)
            .ok_or_else(|| Error::not_found(format!("content {digest}: is not there")))?;
        Ok(Blob {
            digest: digest.clone(),
            size: size(bytes),
            labels: labels.clone(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        })
    }

    fn verify(&self, verify: &Verify) -> Result<Blob> {
        let damaged = self.inner().damaged.contains(&verify.digest);
        match damaged {
            true => Err(Error::data_loss("content: is damaged")),
            false => self.stat(&verify.digest),
        }
    }

    fn open(&self, digest: &Digest) -> Result<Opened> {
        let blob = self.verify(&Verify {
            digest: digest.clone(),
            doubt: false,
        })?;
        let bytes = self.get(digest).unwrap_or_default();
        let file = tempfile::tempfile().and_then(|mut file| {
            file.write_all(&bytes)?;
            file.rewind()?;
            Ok(file)
        });
        let file = file.map_err(|error| Error::internal(error.to_string()))?;
        Ok(Opened {
            blob,
            fd: Fd::from(OwnedFd::from(file)),
        })
    }

    fn update(&self, update: Update) -> Result<Blob> {
        if let Some((_, labels)) = self.inner().blobs.get_mut(&update.digest) {
            update.labels.apply(labels)?;
        }
        self.stat(&update.digest)
    }

    fn write(&self, write: Write) -> Result<Writer> {
        let mut inner = self.inner();
        if write.expected.as_ref().is_some_and(|digest| {
            inner.blobs.contains_key(digest) && !inner.damaged.contains(digest)
        }) {
            return Err(Error::exists("content: is there"));
        }
        if inner.full {
            return Err(Error::exhausted("content: no space left on the device"));
        }
        let stop = inner.breaks.pop().or(inner.broken.then_some(0));
        let ingest = inner.ingests.entry(write.r#ref).or_default();
        ingest.settle();
        if write.restart {
            ingest.bytes.clear();
        }
        let (reader, pipe) = std::io::pipe().map_err(|error| Error::internal(error.to_string()))?;
        let mut reader = File::from(OwnedFd::from(reader));
        ingest.reader = Some(std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let limit = stop.map_or(u64::MAX, |stop| u64::try_from(stop).unwrap_or(0));
            let _ = (&mut reader).take(limit).read_to_end(&mut bytes);
            bytes
        }));
        let offset = size(&ingest.bytes);
        inner.offsets.push(offset);
        Ok(Writer {
            offset,
            pipe: Fd::from(OwnedFd::from(pipe)),
        })
    }

    fn commit(&self, commit: Commit) -> Result<Blob> {
        if self.inner().broken {
            return Err(Error::exhausted("content: no space left on the device"));
        }
        let mut ingest =
            self.inner().ingests.remove(&commit.r#ref).ok_or_else(|| {
                Error::not_found(format!("ingest {}: is not there", commit.r#ref))
            })?;
        ingest.settle();
        let digest = super::digest(&ingest.bytes);
        if commit
            .size
            .is_some_and(|expected| expected != size(&ingest.bytes))
        {
            let what = format!(
                "ingest {}: size {}, expected {:?}",
                commit.r#ref,
                ingest.bytes.len(),
                commit.size
            );
            self.inner().ingests.insert(commit.r#ref, ingest);
            return Err(Error::precondition(what));
        }
        if commit.expected.is_some_and(|expected| expected != digest) {
            return Err(Error::data_loss(format!(
                "ingest {}: has digest {digest}",
                commit.r#ref
            )));
        }
        self.inner().damaged.remove(&digest);
        self.inner()
            .blobs
            .insert(digest.clone(), (ingest.bytes, commit.labels));
        self.stat(&digest)
    }

    fn follow(&self, follow: &Follow) -> Result<Vec<Growth>> {
        match self.stat(&follow.digest) {
            Ok(blob) => Ok(vec![Growth {
                fd: None,
                offset: blob.size,
                complete: true,
            }]),
            Err(_) => Err(Error::new(Code::Aborted, "ingest: was dropped")),
        }
    }
}

fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
