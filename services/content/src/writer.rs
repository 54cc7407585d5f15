//! The thread that reads one ingest's pipe: file first, so that followers may go on, then the hash.

use crate::{error::is_full, hasher::Hasher, ingest::Ingest, room, writeback};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use tokio::sync::OwnedSemaphorePermit;

/// Bytes that may wait in a pipe: as much as an unprivileged process may ask for.
const PIPE: usize = 1 << 20;
/// Bytes written, told and hashed at a time: stays in the second-level cache.
const PIECE: usize = 256 << 10;
/// The thread calls nothing deep; its buffers are on the heap.
const STACK: usize = 128 << 10;

/// Why a thread stopped reading.
#[derive(Debug)]
pub(crate) enum End {
    /// Every copy of the writing end is closed.
    Closed,
    /// The ingest is dropped, or the store stops.
    Stopped,
    /// The device is full. What was stored stays.
    Full,
    /// More came than was announced. Exactly what was announced is stored.
    TooLong,
    /// The device failed.
    Failed(io::Error),
}

/// Ends a thread before its pipe ends.
#[derive(Debug)]
pub(crate) struct Stop {
    wanted: AtomicBool,
    bell: OwnedFd,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self {
            wanted: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn ring(&self) {
        self.wanted.store(true, Ordering::Release);
        // A bell that cannot ring any louder has rung.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// A running thread, as its ingest sees it.
#[derive(Debug)]
pub(crate) struct Running {
    stop: Arc<Stop>,
    pipe: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Whether nobody can write any more, and the thread only takes what is left in the pipe.
    pub(crate) fn is_draining(&self) -> bool {
        let mut pipe = [PollFd::new(&*self.pipe, PollFlags::empty())];
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut pipe, Some(&now)).is_ok() && pipe[0].revents().contains(PollFlags::HUP)
    }

    /// Tells the thread to end now.
    pub(crate) fn stop(&self) {
        self.stop.ring();
    }

    /// Waits until the thread has ended. Must not be called with the ingest's state locked.
    pub(crate) fn join(self) {
        drop(self.pipe);
        // A thread that panicked has ended the process already.
        let _ = self.thread.join();
    }
}

/// What a thread begins with.
pub(crate) struct Job {
    pub(crate) ingest: Arc<Ingest>,
    /// What is stored so far; written to at `offset`.
    pub(crate) file: File,
    pub(crate) offset: u64,
    /// Has taken in the first `hashed` bytes of the file.
    pub(crate) hasher: Hasher,
    pub(crate) hashed: u64,
    /// Most bytes to store; 0 for any number.
    pub(crate) total: u64,
    /// One of the threads that may run at a time.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Starts a thread; answers its handle and the writing end of its pipe.
pub(crate) fn start(job: Job) -> io::Result<(Running, OwnedFd)> {
    let (reading, writing) = pipe_with(PipeFlags::CLOEXEC)?;
    // A smaller pipe, for a user with many, only costs more system calls.
    let _ = fcntl_setpipe_size(&reading, PIPE);
    // Only this end: each end is a file description of its own.
    rustix::io::ioctl_fionbio(&reading, true)?;
    let (stop, pipe) = (Arc::new(Stop::new()?), Arc::new(reading));
    let work = Work {
        written_back: job.offset,
        job,
        stop: stop.clone(),
    };
    let read = pipe.clone();
    let thread = std::thread::Builder::new()
        .name("ingest".into())
        .stack_size(STACK)
        .spawn(move || work.run(read))?;
    Ok((Running { stop, pipe, thread }, writing))
}

struct Work {
    job: Job,
    /// What is before this offset is on its way to the device.
    written_back: u64,
    stop: Arc<Stop>,
}

impl Work {
    fn run(mut self, pipe: Arc<OwnedFd>) {
        let end = self.catch_up().and_then(|()| self.pump(&pipe));
        let end = end.unwrap_or_else(|error| match is_full(&error) {
            true => End::Full,
            false => End::Failed(error),
        });
        drop(pipe);
        let Job {
            ingest,
            hasher,
            hashed,
            permit,
            ..
        } = self.job;
        drop(permit);
        ingest.ended(hasher, hashed, end);
    }

    /// Takes in what an earlier writer stored.
    fn catch_up(&mut self) -> io::Result<()> {
        let job = &mut self.job;
        if job.hashed < job.offset {
            job.hasher.read(&job.file, job.hashed, job.offset)?;
            job.hashed = job.offset;
        }
        Ok(())
    }

    fn pump(&mut self, pipe: &OwnedFd) -> io::Result<End> {
        let mut buffer = vec![0; PIPE];
        while !self.stop.wanted.load(Ordering::Acquire) {
            match rustix::io::read(pipe, &mut buffer[..]) {
                Ok(0) => return Ok(End::Closed),
                Ok(got) => {
                    if !self.store(&buffer[..got])? {
                        return Ok(End::TooLong);
                    }
                }
                Err(Errno::AGAIN) => self.wait(pipe)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(End::Stopped)
    }

    fn wait(&self, pipe: &OwnedFd) -> io::Result<()> {
        let mut ready = [
            PollFd::new(pipe, PollFlags::IN),
            PollFd::new(&self.stop.bell, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores bytes; says whether all of them were wanted.
    fn store(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let room = match self.job.total {
            0 => u64::MAX,
            total => total.saturating_sub(self.job.offset),
        };
        let most = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        for piece in bytes[..most].chunks(PIECE) {
            self.piece(piece)?;
        }
        Ok(most == bytes.len())
    }

    fn piece(&mut self, mut piece: &[u8]) -> io::Result<()> {
        let job = &mut self.job;
        room::check(&job.file)?;
        while !piece.is_empty() {
            let stored = match job.file.write_at(piece, job.offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                stored => stored?,
            };
            job.offset += stored as u64;
            job.ingest.grew(job.offset);
            job.hasher.update(&piece[..stored]);
            job.hashed = job.offset;
            piece = &piece[stored..];
        }
        if job.offset - self.written_back >= writeback::STRETCH {
            let from = self.written_back;
            writeback::start(&job.file, from, job.offset - from);
            self.written_back = job.offset;
        }
        Ok(())
    }
}
