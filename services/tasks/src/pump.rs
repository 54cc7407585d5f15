//! fifo → log, for shims that cannot write a log: the lines of a process, and their own.
//!
//! The reading end is opened before the shim opens the writing one, and ends when the last writer has gone. Such a shim
//! keeps a reading end of its own while it copies: when tasks is away the container waits for room, and nothing is lost
//! but what is still in a fifo (64 KiB at most) when the process ends in just that time.

use crate::bundle::about;
use contracts::{Result, Timestamp};
use logfile::LogFile;
use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::task::{AbortHandle, JoinHandle};

/// The longest record of a log: what readers of this format expect. Source: Kubernetes, CRI log format.
const RECORD: usize = 16 * 1024;
/// How much is read at once.
const CHUNK: usize = 32 * 1024;
/// How long an unfinished line may be silent before the log shows it: a prompt should be seen.
const SILENCE: Duration = Duration::from_millis(200);

/// The pumps of one process.
pub(crate) struct Pumps(Vec<JoinHandle<()>>);

impl Pumps {
    /// Starts a pump for each fifo. Errors: those of the files.
    pub(crate) fn start(fifos: &[(&'static str, PathBuf)], log: &Path, bound: u64) -> Result<Self> {
        let file = LogFile::open(log, bound).map_err(|e| about(log, &e))?;
        let file = Rc::new(RefCell::new(file));
        let start = |(stream, path): &(&'static str, PathBuf)| {
            let source = pipe::OpenOptions::new().open_receiver(path);
            let source = source.map_err(|e| about(path, &e))?;
            let pump = Pump {
                stream,
                source,
                log: file.clone(),
                begun: Vec::new(),
            };
            Ok(tokio::task::spawn_local(pump.run()))
        };
        Ok(Self(fifos.iter().map(start).collect::<Result<_>>()?))
    }

    /// Waits until everything is in the log, or `bound` has passed: what holds a stream open then is pumped on.
    pub(crate) async fn finish(mut self, bound: Duration) {
        let all = futures_util::future::join_all(self.0.iter_mut());
        let _ = tokio::time::timeout(bound, all).await;
        // Dropping them would stop those that go on.
        std::mem::take(&mut self.0);
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Reads and forgets what comes by a fifo.
pub(crate) fn drain(path: &Path) -> Result<AbortHandle> {
    // Also open for writing, so that it never ends.
    let source = pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(path)
        .map_err(|e| about(path, &e))?;
    let task = tokio::task::spawn_local(async move {
        let mut chunk = vec![0; 4096];
        while source.readable().await.is_ok() {
            match source.try_read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => {
                    let said = String::from_utf8_lossy(&chunk[..count]);
                    tracing::debug!(said = said.trim(), "a shim's own log");
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    });
    Ok(task.abort_handle())
}

struct Pump {
    stream: &'static str,
    source: pipe::Receiver,
    log: Rc<RefCell<LogFile>>,
    /// The beginning of a line without its newline.
    begun: Vec<u8>,
}

impl Pump {
    async fn run(mut self) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(true) = self.turn(&mut chunk).await {}
        self.flush();
    }

    /// Waits for bytes and moves them; false at the end.
    async fn turn(&mut self, chunk: &mut [u8]) -> io::Result<bool> {
        let readable = self.source.readable();
        if self.begun.is_empty() {
            readable.await?;
        } else if let Ok(ready) = tokio::time::timeout(SILENCE, readable).await {
            ready?;
        } else {
            self.flush();
            return Ok(true);
        }
        match self.source.try_read(chunk) {
            Ok(0) => return Ok(false),
            Ok(count) => self.take(&chunk[..count]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(true)
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut text = Vec::with_capacity(bytes.len() + 128);
        let time = Timestamp::now().to_string();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (mut body, ended) = match piece {
                [body @ .., b'\n'] => (body, true),
                body => (body, false),
            };
            while self.begun.len() + body.len() > RECORD {
                let (now, later) = body.split_at(RECORD - self.begun.len());
                self.record(&mut text, &time, "P", now);
                body = later;
            }
            if ended {
                self.record(&mut text, &time, "F", body);
            } else {
                self.begun.extend_from_slice(body);
            }
        }
        self.write(&text);
    }

    fn flush(&mut self) {
        if !self.begun.is_empty() {
            let mut text = Vec::new();
            self.record(&mut text, &Timestamp::now().to_string(), "P", b"");
            self.write(&text);
        }
    }

    fn record(&mut self, text: &mut Vec<u8>, time: &str, tag: &str, rest: &[u8]) {
        text.extend_from_slice(format!("{time} {} {tag} ", self.stream).as_bytes());
        text.append(&mut self.begun);
        text.extend_from_slice(rest);
        text.push(b'\n');
    }

    fn write(&self, text: &[u8]) {
        if !text.is_empty() {
            self.log.borrow_mut().append(text);
        }
    }
}
