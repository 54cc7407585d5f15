//! Blocking and process-changing work, done in a forked child of the shim.
//!
//! libcontainer changes directories, the dumpable flag and the OOM score of whoever calls it, blocks
//! on hooks, and leaves a few MiB of heap behind. In a helper all of that ends with the helper; the
//! container's init is cloned as its *sibling*, hence a child of the shim. The answer comes back as
//! one frame on a pipe: its length is written, because a waiting init still holds the other end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;
use ttrpc::Code;

use crate::children::Children;
use crate::error::{About, Error, Result};
use crate::sys::{self, Forked};

/// An answer is a pid or nothing; an error is a sentence. More than this is a broken helper.
const MAX_ANSWER: u32 = 64 * 1024;

/// How long to look for the answer of a helper that has ended.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Runs `work` in a forked child and returns its number (a pid, or 0).
///
/// `fds` are the descriptors `work` uses; all others are closed in the child.
pub(crate) async fn run(
    children: &Children,
    fds: &[RawFd],
    work: impl FnOnce() -> Result<i32>,
) -> Result<i32> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).about("helper pipe")?;
    let exited = match sys::fork().about("fork a helper")? {
        Forked::Child => in_child(fds, write, work),
        Forked::Parent { child } => children.expect(child),
    };
    // Dropped here: the child's ends of the container's pipes, owned by `work`, and our write end.
    drop((work, write));
    let mut answer = Receiver::from_owned_fd(read).about("helper pipe")?;
    let mut frame = pin!(receive(&mut answer));
    let mut exited = exited;
    let exit = tokio::select! {
        biased;
        answer = &mut frame => match answer {
            Ok(answer) => return answer,
            // It closed the pipe without a word: by its end.
            Err(_) => return Err(died(exited.await.map_or(0, |exit| exit.status))),
        },
        exit = &mut exited => exit,
    };
    // The reactor may tell the exit first: what was answered is in the pipe by now.
    match timeout(LAST_WORD, frame).await {
        Ok(Ok(answer)) => answer,
        _ => Err(died(exit.map_or(0, |exit| exit.status))),
    }
}

fn died(status: u32) -> Error {
    Error::internal(format!(
        "the helper process died with status {status} before it answered"
    ))
}

async fn receive(pipe: &mut Receiver) -> io::Result<Result<i32>> {
    let code = pipe.read_i32().await?;
    let value = pipe.read_i32().await?;
    if code == 0 {
        return Ok(Ok(value));
    }
    let length = u32::try_from(value).unwrap_or(0).min(MAX_ANSWER);
    let mut message = vec![0; length as usize];
    pipe.read_exact(&mut message).await?;
    let code = protobuf::Enum::from_i32(code).unwrap_or(Code::UNKNOWN);
    Ok(Err(Error::new(code, String::from_utf8_lossy(&message))))
}

fn in_child(fds: &[RawFd], answer: OwnedFd, work: impl FnOnce() -> Result<i32>) -> ! {
    let mut keep = fds.to_vec();
    keep.push(answer.as_raw_fd());
    sys::close_all_but(&keep);
    sys::fresh_signals();
    // What we do is of no use to anybody once the shim is gone; `delete` takes over then.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut notes = memfd_create("notes", MemfdFlags::CLOEXEC)
        .map(File::from)
        .ok();
    let done = catch_unwind(AssertUnwindSafe(|| with_notes(notes.as_ref(), work)))
        .unwrap_or_else(|_| Err(Error::internal("the helper process panicked")));
    let frame = match done {
        Ok(value) => [0i32.to_be_bytes(), value.to_be_bytes()].concat(),
        Err(error) => refusal(&explain(error, notes.as_mut())),
    };
    let sent = File::from(answer).write_all(&frame);
    sys::exit_now(i32::from(sent.is_err()))
}

fn refusal(error: &Error) -> Vec<u8> {
    let text = &error.message.as_bytes()[..error.message.len().min(MAX_ANSWER as usize)];
    let mut frame = (error.code as i32).max(1).to_be_bytes().to_vec();
    frame.extend((text.len() as i32).to_be_bytes());
    frame.extend(text);
    frame
}

/// Collects what libcontainer logs as errors, in all the processes it forks: its returned errors
/// often say only which step failed.
fn with_notes(notes: Option<&File>, work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    let Some(notes) = notes.and_then(|file| file.try_clone().ok()) else {
        return work();
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .without_time()
        .with_target(false)
        .with_level(false)
        .with_ansi(false)
        .with_writer(Mutex::new(notes))
        .finish();
    tracing::subscriber::with_default(subscriber, work)
}

/// Adds the first note, which is the innermost cause, where the error does not say it already.
fn explain(mut error: Error, notes: Option<&mut File>) -> Error {
    let mut text = String::new();
    if let Some(file) = notes {
        let _ = file.seek(SeekFrom::Start(0));
        let _ = file
            .take(u64::from(MAX_ANSWER) / 2)
            .read_to_string(&mut text);
    }
    if let Some(first) = text.lines().map(str::trim).find(|line| !line.is_empty())
        && !error.message.contains(first)
    {
        error.message = format!("{}: {first}", error.message);
    }
    error
}
