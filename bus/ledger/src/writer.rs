//! The one thread that writes, and the handle to it.

use crate::Fault;
use crate::file::{File, Opened};
use crate::mark::Progress;
use crate::table::{DONE, META, OUTBOX, Snapshot, Tx, fault, outbox_key};
use contracts::{OperationId, Timestamp, events::Entry};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering, mpsc},
};
use tokio::sync::{Notify, oneshot};

/// Most writes of one commit: the gain of sharing an fsync flattens out there.
const BATCH: usize = 512;
/// How long the reply of a write is kept for its repetition. Source: API.md, `Idempotency-Key`.
const KEPT: i64 = 24 * 3600;
/// How many old replies one commit forgets at most, so that forgetting never makes a write slow.
const FORGET: usize = 64;

/// What a store tells its ledger.
#[derive(Clone, Copy, Debug)]
pub struct LedgerConfig {
    /// Version of the store's tables; older ones are brought up by `migrate`.
    pub schema: u64,
    /// Brings tables up from schema `.1` to [`LedgerConfig::schema`], in one transaction.
    pub migrate: fn(&mut Tx<'_>, u64) -> Result<(), Fault>,
    /// Bytes of page cache. Records are small: little is enough.
    pub cache: usize,
    /// Whether removing things elsewhere needs this store's writes: then all of them may use up the reserve that is
    /// kept for removals on a full disk.
    pub essential: bool,
}

impl LedgerConfig {
    /// Schema 1, with nothing older to bring up.
    pub const FIRST: Self = Self {
        schema: 1,
        migrate: |_, _| Ok(()),
        cache: 1 << 20,
        essential: false,
    };
}

/// An owner's durable state. Clones share the file; it is closed when the last one is dropped.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    file: Arc<File>,
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<std::thread::JoinHandle<()>>,
    outbox: Arc<Outbox>,
}

/// What the log has, and that there is more.
#[derive(Default)]
pub(crate) struct Outbox {
    delivered: AtomicU64,
    pub(crate) more: Notify,
}

/// One write: what it does to a transaction, and what happens when the batch is decided.
struct Job {
    operation: Option<OperationId>,
    work: Box<dyn FnMut(&mut Tx<'_>) -> Step + Send>,
    settle: Box<dyn FnOnce(Result<(), Fault>) + Send>,
}

/// How one write of a batch went.
enum Step {
    /// Done; its encoded reply when it must be recorded.
    Done(Option<Vec<u8>>),
    /// Failed: its changes must not be kept.
    Failed,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs.take();
        self.outbox.more.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has ended the process already.
            let _ = writer.join();
        }
    }
}

impl Ledger {
    /// Opens the file, or makes it; waits for a predecessor that is still closing it.
    ///
    /// Blocks. Errors: `InUse`, `Damaged`, `Newer`, `Full`, `Io`.
    pub fn open(path: impl Into<PathBuf>, config: LedgerConfig) -> Result<Self, Fault> {
        let file = Arc::new(File::open(path.into().into(), &config)?);
        let outbox = Arc::<Outbox>::default();
        let (jobs, queue) = mpsc::channel();
        let writer = Writer {
            file: file.clone(),
            outbox: outbox.clone(),
            essential: config.essential,
            low: Cell::new(false),
            passed: RefCell::default(),
        };
        let thread = std::thread::Builder::new()
            .name("ledger".into())
            .stack_size(512 << 10);
        let writer = thread
            .spawn(move || writer.run(&queue))
            .map_err(|e| Fault::Io(file.path.to_path_buf(), e.to_string()))?;
        let inner = Inner {
            file,
            jobs: Some(jobs),
            writer: Some(writer),
            outbox,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Reads everything as it is now. Blocks for disk reads only.
    pub fn read<T, E: From<Fault>>(
        &self,
        look: impl FnOnce(&Snapshot) -> Result<T, E>,
    ) -> Result<T, E> {
        look(&self.inner.file.snapshot()?)
    }

    /// Changes something; returns when it is on disk, together with its events and its reply.
    ///
    /// With an operation id, a repetition returns the first reply and changes nothing. `work` may run several times
    /// (always on unchanged state) and only the last counts, so it must have no other effect. When it returns an error
    /// nothing is changed and nothing is recorded.
    pub async fn write<T, E, F>(&self, operation: Option<&OperationId>, mut work: F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: From<Fault> + Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let slot = Arc::new(std::sync::Mutex::new(None::<Result<T, E>>));
        let filled = slot.clone();
        let asked = operation.cloned();
        let job = Job {
            operation: operation.cloned(),
            work: Box::new(move |tx| {
                let (step, result) = attempt(tx, asked.as_ref(), &mut work);
                if let Ok(mut slot) = slot.lock() {
                    *slot = Some(result);
                }
                step
            }),
            settle: Box::new(move |outcome| drop(answer.send(outcome))),
        };
        self.submit(job)?;
        let closing = || Fault::Closing(self.inner.file.path.to_path_buf());
        let outcome = answered.await.map_err(|_| closing())?;
        let result = filled.lock().ok().and_then(|mut slot| slot.take());
        match (outcome, result) {
            (_, Some(Err(error))) => Err(error),
            (Err(fault), _) => Err(fault.into()),
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), None) => Err(closing().into()),
        }
    }

    fn submit(&self, job: Job) -> Result<(), Fault> {
        let sent = self.inner.jobs.as_ref().map(|jobs| jobs.send(job).is_ok());
        if sent == Some(true) {
            Ok(())
        } else {
            Err(Fault::Closing(self.inner.file.path.to_path_buf()))
        }
    }

    /// The file.
    pub fn path(&self) -> &std::path::Path {
        &self.inner.file.path
    }

    pub(crate) fn outbox(&self) -> Arc<Outbox> {
        self.inner.outbox.clone()
    }

    /// A handle that does not keep the file open.
    pub(crate) fn weak(&self) -> impl Fn() -> Option<Ledger> + 'static {
        let inner = Arc::downgrade(&self.inner);
        move || inner.upgrade().map(|inner| Ledger { inner })
    }

    /// Names this life of the file: a rebuilt one gets another.
    pub(crate) fn epoch(&self) -> u64 {
        self.inner.file.life.epoch
    }

    /// Events that the log does not have yet: the number of the first, and some of them in order.
    pub(crate) fn undelivered(&self, most: usize) -> Result<(u64, Vec<Entry>), Fault> {
        let delivered = self.inner.outbox.delivered.load(Ordering::Acquire);
        let (mut first, mut entries) = (0, Vec::new());
        let mut bytes = 0;
        self.read::<_, Fault>(|snapshot| {
            snapshot.scan(&OUTBOX, "", Some(&outbox_key(delivered)), |key, entry| {
                if entries.is_empty() {
                    first = key.parse().unwrap_or(0);
                }
                bytes += entry.event.len() + entry.topic.len();
                entries.push(entry);
                entries.len() < most && bytes < (1 << 20)
            })
        })?;
        Ok((first, entries))
    }

    /// Learns that the log has everything up to `number`; the rows go with the next write.
    pub(crate) fn delivered(&self, number: u64) {
        self.inner
            .outbox
            .delivered
            .fetch_max(number, Ordering::AcqRel);
    }
}

fn attempt<T, E, F>(
    tx: &mut Tx<'_>,
    operation: Option<&OperationId>,
    work: &mut F,
) -> (Step, Result<T, E>)
where
    T: Serialize + DeserializeOwned,
    E: From<Fault>,
    F: FnMut(&mut Tx<'_>) -> Result<T, E>,
{
    let result = first_reply(tx, operation).and_then(|known| match known {
        Some(reply) => Ok((reply, false)),
        None => work(tx).map(|reply| (reply, true)),
    });
    let encoded = match &result {
        Ok((reply, true)) if operation.is_some() => codec::encode(reply).map(Some),
        Ok(_) => Ok(None),
        Err(_) => return (Step::Failed, result.map(|(reply, _)| reply)),
    };
    match encoded {
        Ok(encoded) => (Step::Done(encoded), result.map(|(reply, _)| reply)),
        Err(e) => (
            Step::Failed,
            Err(Fault::TooLarge("reply".into(), e.to_string()).into()),
        ),
    }
}

fn first_reply<T: DeserializeOwned, E: From<Fault>>(
    tx: &Tx<'_>,
    operation: Option<&OperationId>,
) -> Result<Option<T>, E> {
    let Some(operation) = operation else {
        return Ok(None);
    };
    let Some((_, reply)) = tx.get(&DONE, operation.as_str())? else {
        return Ok(None);
    };
    let reply = codec::decode(&reply)
        .map_err(|e| Fault::Damaged(tx.path.to_path_buf(), format!("reply of {operation}: {e}")))?;
    Ok(Some(reply))
}

struct Writer {
    file: Arc<File>,
    outbox: Arc<Outbox>,
    /// Whether the store's writes are needed for removing things elsewhere.
    essential: bool,
    /// Whether the disk was full: until the reserve is whole again only what removes is done.
    low: Cell<bool>,
    /// What could not be read beside a write, and was said.
    passed: RefCell<BTreeSet<String>>,
}

/// How a batch went.
enum Went {
    /// On disk, or nothing was changed.
    Done,
    /// Not done, because of one of its writes. That one's own error waits in its slot, unless it is told here.
    Without(usize, Result<(), Fault>),
}

impl Writer {
    fn run(self, queue: &mpsc::Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let mut batch = vec![first];
            batch.extend(queue.try_iter().take(BATCH - 1));
            self.commit(batch);
        }
    }

    /// Commits a batch; what fails is answered at once and the rest is done again without it.
    fn commit(&self, mut batch: Vec<Job>) {
        let (mut reopened, mut full) = (false, false);
        let outcome = loop {
            let opened = match self.file.opened() {
                Ok(opened) => opened,
                Err(fault) => break Err(fault),
            };
            if !full && self.low.get() {
                self.low.set(opened.device.refill().is_err());
            }
            match self.attempt(&opened, &mut batch) {
                Ok(Went::Done) => break Ok(()),
                Ok(Went::Without(failed, told)) => {
                    let job = batch.remove(failed);
                    (job.settle)(told);
                }
                Err(fault) => {
                    if matches!(fault, Fault::Full(_)) {
                        opened.device.abandon();
                    }
                    self.file.let_go(opened);
                    match &fault {
                        Fault::Full(_) if !full => {
                            full = true;
                            self.low.set(true);
                        }
                        // One that adds much may have used up what the others need.
                        Fault::Full(_) if batch.len() > 1 => {
                            return batch.into_iter().for_each(|job| self.commit(vec![job]));
                        }
                        // An earlier failure that is told again: a file that is opened anew says how things are now.
                        Fault::Reopened(_) if !reopened => reopened = true,
                        _ => break Err(fault),
                    }
                }
            }
        };
        for job in batch {
            (job.settle)(outcome.clone());
        }
    }

    /// Runs the batch in one transaction. When one of its writes fails nothing is kept.
    fn attempt(&self, opened: &Opened, batch: &mut [Job]) -> Result<Went, Fault> {
        let path = &self.file.path;
        opened.device.spend(self.low.get());
        let transaction = opened.database.begin_write().map_err(|e| fault(path, e))?;
        let mut tx = Tx::new(&transaction, path, Timestamp::now(), self.file.life.seed, 0);
        tx.commit = tx.get(&META, "version")?.unwrap_or(0) + 1;
        let mut without = None;
        for (index, job) in batch.iter_mut().enumerate() {
            let (changes, added) = (tx.changes, tx.added);
            match (job.work)(&mut tx) {
                Step::Done(_) if self.low.get() && !self.essential && tx.added > added => {
                    without = Some(Went::Without(index, Err(Fault::Full(path.to_path_buf()))));
                }
                Step::Done(Some(reply)) => {
                    if let Some(operation) = &job.operation {
                        tx.put(&DONE, operation.as_str(), &(tx.now, reply))?;
                    }
                }
                Step::Done(None) => {}
                // It failed before it changed anything, as nearly all do: its error waits in its slot.
                Step::Failed if tx.changes == changes => {}
                Step::Failed => without = Some(Went::Without(index, Ok(()))),
            }
            if without.is_some() {
                break;
            }
        }
        if tx.full.get() {
            return Err(Fault::Full(path.to_path_buf()));
        }
        if without.is_some() || tx.changes == 0 {
            drop(tx);
            transaction.abort().map_err(|e| fault(path, e))?;
            return Ok(without.unwrap_or(Went::Done));
        }
        let (emitted, commit) = (tx.emitted, tx.commit);
        tx.finish()?;
        self.tidy(&mut tx)?;
        drop(tx);
        transaction.commit().map_err(|e| fault(path, e))?;
        let delivered = self.outbox.delivered.load(Ordering::Acquire);
        let delivered = delivered.max(self.file.before.delivered);
        self.file.note(Progress { commit, delivered });
        if emitted {
            self.outbox.more.notify_one();
        }
        Ok(Went::Done)
    }

    /// What rides along with a commit: the version, delivered events, replies nobody will ask for again. A record that
    /// cannot be read is passed by: no write is the worse for it.
    fn tidy(&self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let version = tx.commit;
        tx.put(&META, "version", &version)?;
        let delivered = outbox_key(self.outbox.delivered.load(Ordering::Acquire));
        let mut done = Vec::new();
        tx.scan_past(&OUTBOX, None, |key, entry| {
            let deliver = key <= delivered.as_str();
            if deliver && self.readable(entry).is_some() {
                done.push(key.to_owned());
            }
            deliver && done.len() < BATCH
        })?;
        for key in done {
            tx.remove(&OUTBOX, &key)?;
        }
        if version.is_multiple_of(16) {
            self.forget(tx, version)
        } else {
            Ok(())
        }
    }

    /// Looks at a few replies, another part of the table each time, and forgets those past their day.
    fn forget(&self, tx: &mut Tx<'_>, version: u64) -> Result<(), Fault> {
        let from = format!("{:02x}", (version / 16) % 256);
        let oldest = tx.now.plus_seconds(-KEPT);
        let (mut seen, mut old) = (0, Vec::new());
        tx.scan_past(&DONE, Some(&from), |key, record| {
            if self.readable(record).is_some_and(|(when, _)| when < oldest) {
                old.push(key.to_owned());
            }
            seen += 1;
            seen < FORGET
        })?;
        for key in old {
            tx.remove(&DONE, &key)?;
        }
        Ok(())
    }

    /// The record, unless it cannot be read: then it is left to the check, and said once in a life of the writer.
    fn readable<V>(&self, record: Result<V, Fault>) -> Option<V> {
        record
            .map_err(|fault| {
                let fault = fault.to_string();
                let mut passed = self.passed.borrow_mut();
                if !passed.contains(&fault) {
                    tracing::warn!(%fault, "left as it is: `gantry fsck --repair` mends it");
                    passed.insert(fault);
                }
            })
            .ok()
    }
}

#[cfg(test)]
mod tests;
