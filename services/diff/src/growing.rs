//! Reading a blob while it is still being written.

use crate::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How far a file has been written; shared between whoever learns of new bytes and the readers that wait for them.
#[derive(Debug, Default)]
pub struct Growth {
    state: Mutex<State>,
    changed: Condvar,
    consumed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    available: u64,
    finished: bool,
    failed: Option<String>,
}

impl Growth {
    /// Makes one for a file that nobody is known to have written to yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes the first `available` bytes readable; a smaller number than before changes nothing.
    pub fn advance(&self, available: u64) {
        let mut state = self.lock();
        state.available = state.available.max(available);
        self.changed.notify_all();
    }

    /// Says that `total` bytes are all there will be.
    pub fn finish(&self, total: u64) {
        let mut state = self.lock();
        state.available = total;
        state.finished = true;
        self.changed.notify_all();
    }

    /// Says that no more bytes will come, and why; readers fail at once, whatever they have not read yet.
    pub fn fail(&self, reason: impl Into<String>) {
        let mut state = self.lock();
        state.failed.get_or_insert(reason.into());
        self.changed.notify_all();
    }

    /// Whether all there will be is readable.
    pub fn finished(&self) -> bool {
        self.lock().finished
    }

    /// How many bytes the furthest reader has read.
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // a poisoned state is still true: every change is one assignment
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for bytes past `offset` and answers the end of what is readable; `offset` itself at the end of the file.
    fn wait(&self, offset: u64) -> io::Result<u64> {
        let waiting = |state: &mut State| {
            state.failed.is_none() && !state.finished && state.available <= offset
        };
        let state = self
            .changed
            .wait_while(self.lock(), waiting)
            .unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(reason) => Err(Error::Source(io::Error::other(reason.clone())).into()),
            None => Ok(state.available.max(offset)),
        }
    }
}

/// Reads a growing file from its start: blocks until there are more bytes, ends when the growth is finished.
#[derive(Debug)]
pub struct Growing {
    file: File,
    growth: Arc<Growth>,
    offset: u64,
}

impl Growing {
    /// Reads `file` as far as `growth` says; the file's own position is neither used nor moved.
    pub fn new(file: File, growth: Arc<Growth>) -> Self {
        Self {
            file,
            growth,
            offset: 0,
        }
    }
}

impl Read for Growing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let end = self.growth.wait(self.offset)?;
        let most = usize::try_from(end - self.offset)
            .unwrap_or(usize::MAX)
            .min(into.len());
        let got = self.file.read_at(&mut into[..most], self.offset)?;
        self.offset += got as u64;
        self.growth
            .consumed
            .fetch_max(self.offset, Ordering::Relaxed);
        match got == 0 && most > 0 {
            true => Err(Error::Truncated("file").into()),
            false => Ok(got),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file() -> (File, File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        (file.reopen().unwrap(), file.reopen().unwrap())
    }

    #[test]
    fn a_reader_waits_for_bytes_and_ends_with_the_growth() {
        let (mut writer, reader) = file();
        let growth = Growth::new();
        let mut growing = Growing::new(reader, growth.clone());
        let read = std::thread::spawn(move || {
            let mut all = Vec::new();
            growing.read_to_end(&mut all).map(|_| all)
        });
        for part in [&b"one "[..], b"two ", b"three"] {
            writer.write_all(part).unwrap();
            growth.advance(writer.metadata().unwrap().len());
        }
        growth.finish(13);
        assert_eq!(read.join().unwrap().unwrap(), b"one two three");
    }

    #[test]
    fn a_failure_wakes_the_reader_with_its_reason() {
        let growth = Growth::new();
        let mut growing = Growing::new(file().1, growth.clone());
        let read = std::thread::spawn(move || growing.read(&mut [0; 8]));
        growth.fail("connection reset");
        assert!(
            read.join()
                .unwrap()
                .unwrap_err()
                .to_string()
                .contains("connection reset")
        );
    }

    #[test]
    fn a_file_shorter_than_promised_is_truncated() {
        let growth = Growth::new();
        growth.finish(5);
        let error = Growing::new(file().1, growth)
            .read(&mut [0; 8])
            .unwrap_err();
        assert!(error.to_string().contains("truncated"));
    }
}
