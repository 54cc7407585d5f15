//! The file below redb: whatever comes back from it is what was put there, and there is room to remove things.
//!
//! *It remembers.* A checksum of each block that was read or written is kept in memory, 8 bytes for 4 KiB. redb checks
//! its tree when it opens a file and trusts what it reads from then on; a block that changes later is noticed here,
//! before redb sees it, and is an error that says damage.
//!
//! *It holds back.* redb writes while it opens a file, also into one that turns out to be damaged. What it writes is
//! kept in memory until the owner has looked at what was opened ([`Device::release`]); a file that is refused is left as
//! it was found.
//!
//! *It keeps a reserve.* The disk has promised blocks for all of the file, and for some more beyond its end. The file
//! does not grow into the reserve, but for what removes things on a full disk ([`Device::spend`]).

use crate::mark::options;
use redb::{BackendError, StorageBackend, backends::FileBackend};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a block: redb's page.
const BLOCK: u64 = 4096;
/// Where redb's header says how many pages its regions have, and what it says in a new file: 4 GiB of them.
const PAGES_AT: usize = 20;
const PAGES: u32 = 1 << 20;
/// What it is made to say instead: 1 MiB of them. A file is doubled until it has one region and then grows by a region
/// at a time, so that it takes little more of the disk than it needs, and the reserve is enough for it to grow once.
const FEW_PAGES: u32 = 1 << 8;
/// Bytes kept beyond the end of the file. Growing once is enough for removals: they use again what they free.
const RESERVE: u64 = (1 << 20) + (128 << 10);

/// A file that redb stores its pages in. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Device(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// Takes the locks that redb's own files take.
    locks: FileBackend,
    /// Whether redb makes the file.
    new: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Length of the file, with what is held back.
    length: u64,
    /// Checksums of blocks; 0 for one that was not seen.
    sums: Vec<u64>,
    /// What was not written yet, in order; `None` once it is released.
    held: Option<Vec<Held>>,
    /// End of the blocks that the file has.
    backed: u64,
    /// Length when the first block was written last, with which redb describes the others; and that when it was on disk.
    described: u64,
    settled: u64,
    /// Whether the reserve may be used.
    spend: bool,
}

#[derive(Debug)]
enum Held {
    Write(u64, Box<[u8]>),
    Length(u64),
    Sync,
}

impl Device {
    /// Opens the file, or makes it. With `anew` it begins empty, whatever it holds.
    pub(crate) fn open(path: &Path, anew: bool) -> Result<Self> {
        let mut options = options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        let length = file.metadata()?.len();
        let state = State {
            length: if anew { 0 } else { length },
            sums: Vec::new(),
            held: Some(if anew {
                vec![Held::Length(0)]
            } else {
                Vec::new()
            }),
            backed: 0,
            described: u64::MAX,
            settled: u64::MAX,
            spend: false,
        };
        let locks = FileBackend::new(file.try_clone()?).map_err(Error::other)?;
        Ok(Self(Arc::new(Inner {
            file,
            locks,
            new: anew || length == 0,
            state: Mutex::new(state),
        })))
    }

    /// Writes what was held back, in the order in which it came, and from now on everything at once.
    pub(crate) fn release(&self) -> Result<()> {
        let held = {
            let mut state = self.state();
            // Opening needs to work on a full disk.
            state.spend = true;
            // From here on the length is that of the file as it is.
            state.length = self.0.file.metadata()?.len();
            state.held.take()
        };
        let written = held
            .unwrap_or_default()
            .into_iter()
            .try_for_each(|held| match held {
                Held::Write(at, bytes) => self.put(&mut self.state(), at, &bytes),
                Held::Length(length) => self.resize(&mut self.state(), length),
                Held::Sync => self.sync(),
            });
        let mut state = self.state();
        state.spend = false;
        if written.is_err() {
            // redb knows nothing of it, and would call the file whole when it closes it: that is held back for good.
            state.held = Some(Vec::new());
            return written;
        }
        // A disk that is full now has no reserve for us; whoever adds something finds out.
        let _ = self.allocate(&mut state, 0);
        let _ = self.allocate(&mut state, RESERVE);
        Ok(())
    }

    /// Says whether the reserve may be used from now on.
    pub(crate) fn spend(&self, spend: bool) {
        self.state().spend = spend;
    }

    /// Makes the reserve whole, with room to grow before it. Errors: `ENOSPC` while there is none.
    pub(crate) fn refill(&self) -> Result<()> {
        let growth = u64::from(FEW_PAGES) * BLOCK;
        self.allocate(&mut self.state(), RESERVE + growth)
    }

    /// Gives back the blocks that the file has taken for a write that does not go on: nothing on disk describes them.
    pub(crate) fn abandon(&self) {
        let mut state = self.state();
        let settled = state.settled;
        if settled < state.length && self.cut(&mut state, settled).is_ok() {
            let _ = self.allocate(&mut state, RESERVE);
        }
    }

    /// A predecessor may have written until it let go of the lock.
    fn look_again(&self) -> Result<()> {
        let mut state = self.state();
        if state.held.as_ref().is_some_and(Vec::is_empty) {
            state.length = self.0.file.metadata()?.len();
            state.sums.clear();
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic is the end of the process.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the disk promise blocks for the whole file and `more` beyond its end.
    fn allocate(&self, state: &mut State, more: u64) -> Result<()> {
        let end = state.length + more;
        if state.backed >= end {
            return Ok(());
        }
        // Only what is missing: a file system may undo all of a promise that it cannot keep.
        let from = state.backed;
        match fallocate(&self.0.file, FallocateFlags::KEEP_SIZE, from, end - from) {
            Ok(()) => state.backed = end,
            // File systems that cannot promise blocks.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => state.backed = u64::MAX,
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn put(&self, state: &mut State, at: u64, bytes: &[u8]) -> Result<()> {
        if at == 0 {
            state.described = state.length;
        }
        self.0.file.write_all_at(bytes, at)
    }

    fn resize(&self, state: &mut State, length: u64) -> Result<()> {
        if length <= state.length {
            return self.cut(state, length);
        }
        let before = std::mem::replace(&mut state.length, length);
        let promised = match self.allocate(state, RESERVE) {
            Err(_) if state.spend => self.allocate(state, 0),
            result => result,
        };
        let grown = promised.and_then(|()| self.0.file.set_len(length));
        if grown.is_err() {
            state.length = before;
        }
        grown
    }

    fn cut(&self, state: &mut State, length: u64) -> Result<()> {
        self.0.file.set_len(length)?;
        state.length = length;
        state.settled = state.settled.min(length);
        state.described = state.described.min(length);
        if state.backed != u64::MAX {
            state.backed = state.backed.min(length);
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let described = self.state().described;
        let synced = self.0.file.sync_data();
        if synced.is_ok() {
            self.state().settled = described;
        } else {
            // What could not be written is in memory only, and the kernel takes it for written: it is read again.
            let _ = fadvise(&self.0.file, 0, None, Advice::DontNeed);
        }
        synced
    }

    /// The header of a new file with smaller regions. redb reads it again before it uses it.
    fn of_few_pages(&self, at: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let field = PAGES_AT..PAGES_AT + 4;
        let said = bytes.get(field.clone()).filter(|_| at == 0 && self.0.new)?;
        (said == PAGES.to_le_bytes()).then(|| {
            let mut bytes = bytes.to_vec();
            bytes[field].copy_from_slice(&FEW_PAGES.to_le_bytes());
            bytes
        })
    }

    /// Reads the file as it will be when what is held back is written.
    fn get(&self, state: &State, at: u64, out: &mut [u8]) -> Result<()> {
        let Some(held) = &state.held else {
            return self.0.file.read_exact_at(out, at);
        };
        let mut read = 0;
        while read < out.len() {
            match self.0.file.read_at(&mut out[read..], at + read as u64)? {
                0 => break,
                some => read += some,
            }
        }
        out[read..].fill(0);
        for held in held {
            match held {
                Held::Write(to, bytes) => lay(at, out, *to, bytes),
                Held::Length(length) => {
                    let from = length.saturating_sub(at).min(out.len() as u64);
                    out[from as usize..].fill(0);
                }
                Held::Sync => {}
            }
        }
        Ok(())
    }

    /// Reads whole blocks and compares them with what is remembered of them.
    fn blocks(&self, first: u64, out: &mut [u8]) -> Result<()> {
        let at = first * BLOCK;
        let held = {
            let state = self.state();
            let held = state.held.is_some();
            if held {
                self.get(&state, at, out)?;
            }
            held
        };
        if !held {
            self.0.file.read_exact_at(out, at)?;
        }
        let sums: Vec<u64> = out.chunks(BLOCK as usize).map(sum).collect();
        let mut state = self.state();
        let known = state.known(first, sums.len());
        for (index, (known, sum)) in known.iter_mut().zip(sums).enumerate() {
            if *known == 0 {
                *known = sum;
            }
            if *known != sum {
                let block = (first + index as u64) * BLOCK;
                let what = format!("bytes at {block} are not those that were there before");
                return Err(Error::new(ErrorKind::InvalidData, what));
            }
        }
        Ok(())
    }

    /// What the block will hold when `bytes` lie on it; read only when they do not cover it.
    fn covered(&self, block: u64, at: u64, bytes: &[u8]) -> Result<u64> {
        let from = block * BLOCK;
        if at <= from && from + BLOCK <= at + bytes.len() as u64 {
            let start = (from - at) as usize;
            return Ok(sum(&bytes[start..start + BLOCK as usize]));
        }
        let mut whole = vec![0; BLOCK as usize];
        if from + BLOCK <= self.state().length {
            self.blocks(block, &mut whole)?;
        }
        lay(from, &mut whole, at, bytes);
        Ok(sum(&whole))
    }
}

impl State {
    fn known(&mut self, first: u64, count: usize) -> &mut [u64] {
        let first = first as usize;
        if self.sums.len() < first + count {
            self.sums.resize(first + count, 0);
        }
        &mut self.sums[first..first + count]
    }
}

/// A checksum that is never 0.
fn sum(block: &[u8]) -> u64 {
    xxh3_64(block).max(1)
}

/// Lays `bytes`, which belong to `to`, on `out`, which begins at `at`.
fn lay(at: u64, out: &mut [u8], to: u64, bytes: &[u8]) {
    let start = at.max(to);
    let end = (at + out.len() as u64).min(to + bytes.len() as u64);
    if start < end {
        let (from, length) = ((start - to) as usize, (end - start) as usize);
        out[(start - at) as usize..][..length].copy_from_slice(&bytes[from..from + length]);
    }
}

impl StorageBackend for Device {
    fn len(&self) -> Result<u64> {
        Ok(self.state().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        let length = self.state().length;
        if end > length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if offset.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK) {
            return self.blocks(offset / BLOCK, out);
        }
        // Whole blocks are remembered; a file that was cut may end inside of one.
        let (first, last) = (offset / BLOCK, end.div_ceil(BLOCK));
        if last * BLOCK > length {
            return self.get(&self.state(), offset, out);
        }
        let mut whole = vec![0; ((last - first) * BLOCK) as usize];
        self.blocks(first, &mut whole)?;
        let start = (offset - first * BLOCK) as usize;
        out.copy_from_slice(&whole[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut state = self.state();
        match &mut state.held {
            Some(held) => {
                held.push(Held::Length(len));
                state.length = len;
            }
            None => self.resize(&mut state, len)?,
        }
        state.sums.truncate((len / BLOCK) as usize);
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        {
            let mut state = self.state();
            if let Some(held) = &mut state.held {
                held.push(Held::Sync);
                return Ok(());
            }
        }
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let few = self.of_few_pages(offset, data);
        let data = few.as_deref().unwrap_or(data);
        let end = offset + data.len() as u64;
        let (first, last) = (offset / BLOCK, end.div_ceil(BLOCK));
        let sums: Vec<u64> = (first..last)
            .map(|block| self.covered(block, offset, data))
            .collect::<Result<_>>()?;
        let mut state = self.state();
        match &mut state.held {
            Some(held) => held.push(Held::Write(offset, data.into())),
            None => self.put(&mut state, offset, data)?,
        }
        state.length = state.length.max(end);
        state.known(first, sums.len()).copy_from_slice(&sums);
        Ok(())
    }

    fn close(&self) -> Result<()> {
        self.0.locks.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        let locked = self.0.locks.try_lock_range(start, end)?;
        self.look_again()?;
        Ok(locked)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.locks.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.locks.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.locks.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.locks.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.locks.query_lock_range(start, end)
    }
}

type Locked<T> = std::result::Result<T, BackendError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_release_that_failed_nothing_is_written_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.redb");
        std::fs::write(&path, [0; 4096]).unwrap();
        let device = Device::open(&path, false).unwrap();
        device.write(0, &[1; 4096]).unwrap();
        // As if the disk had gone: no file goes so far.
        let refused = Held::Write(1 << 63, Box::new([1]));
        device.state().held.as_mut().unwrap().insert(0, refused);
        device.release().unwrap_err();
        device.write(0, &[2; 4096]).unwrap();
        device.sync_data().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
    }
}
