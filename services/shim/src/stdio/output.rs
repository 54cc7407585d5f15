//! One stream on its way from the container's pipe (or terminal) to its sink.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sink::{Sink, Tail};
use crate::error::{About, Result};
use crate::sys;

/// How much is read at once, on the stack: two records of a log.
const CHUNK: usize = 32 * 1024;

/// How long an unfinished line may be silent before a log shows it: a prompt should be seen.
const SILENCE: Duration = Duration::from_millis(200);

pub(super) struct Output {
    stream: &'static str,
    source: AsyncFd<OwnedFd>,
    sink: Sink,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tail: Tail,
    /// Read, but not taken by a full fifo yet.
    backlog: Vec<u8>,
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something moved; there may be more.
    Moved,
    /// The source is empty for now.
    Empty,
    /// The fifo at the other end is full.
    Full,
    /// Every writer has closed its end.
    Ended,
}

impl Output {
    pub(super) fn new(stream: &'static str, source: OwnedFd, sink: Sink) -> Result<Self> {
        let flags = fcntl_getfl(&source).about(stream)?;
        fcntl_setfl(&source, flags | OFlags::NONBLOCK).about(stream)?;
        let source = sys::watched(source, Interest::READABLE).about(stream)?;
        Ok(Self {
            stream,
            source,
            sink,
            state: Mutex::default(),
        })
    }

    /// Moves bytes until the stream ends.
    pub(super) async fn pump(self: Arc<Self>) {
        while let Ok(true) = self.turn().await {}
        self.flush();
    }

    /// Waits for something to do and does it; false at the end.
    async fn turn(&self) -> io::Result<bool> {
        let mut ready = if self.has_tail() {
            match tokio::time::timeout(SILENCE, self.source.readable()).await {
                Ok(ready) => ready?,
                Err(_) => {
                    self.flush();
                    return Ok(true);
                }
            }
        } else {
            self.source.readable().await?
        };
        match self.step() {
            Step::Moved => {}
            Step::Empty => ready.clear_ready(),
            Step::Full => self.sink.room().await?,
            Step::Ended => return Ok(false),
        }
        Ok(true)
    }

    /// Moves all there is, without waiting for anything.
    pub(super) fn drain(&self) {
        while self.step() == Step::Moved {}
        self.flush();
    }

    fn step(&self) -> Step {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.backlog.is_empty() {
            return self.catch_up(&mut state);
        }
        if state.ended {
            return Step::Ended;
        }
        let mut chunk = [0; CHUNK];
        match read(self.source.get_ref(), &mut chunk) {
            Ok(0) => state.end(),
            Ok(count) => self.take(&mut state, &chunk[..count]),
            Err(Errno::AGAIN) => Step::Empty,
            Err(Errno::INTR) => Step::Moved,
            // A terminal answers EIO when nobody has it open any more.
            Err(_) => state.end(),
        }
    }

    fn take(&self, state: &mut State, bytes: &[u8]) -> Step {
        let count = self.sink.write(self.stream, bytes, &mut state.tail);
        if count == bytes.len() {
            return Step::Moved;
        }
        state.backlog = bytes[count..].to_vec();
        Step::Full
    }

    fn catch_up(&self, state: &mut State) -> Step {
        let backlog = std::mem::take(&mut state.backlog);
        self.take(state, &backlog)
    }

    fn flush(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.sink.flush(self.stream, &mut state.tail);
    }

    fn has_tail(&self) -> bool {
        !self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .tail
            .is_empty()
    }
}

impl State {
    fn end(&mut self) -> Step {
        self.ended = true;
        Step::Ended
    }
}
