//! The end of an output: nothing, a file, a log, a fifo.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use logfile::LogFile;
use nix::libc::O_NONBLOCK;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::uri::Target;
use crate::error::{About, Error, Result};
use crate::sys;

/// The longest record of a log, without its head: what the kubelet and CRI readers expect.
pub(super) const RECORD_MAX: usize = 16 * 1024;

/// Shared by both streams of a process when they name the same target.
#[derive(Clone)]
pub(super) enum Sink {
    Null,
    File(Arc<File>),
    Log(Arc<Mutex<Log>>),
    Fifo(Arc<AsyncFd<File>>),
}

impl Sink {
    pub(super) fn open(target: &Target) -> Result<Self> {
        Ok(match target {
            Target::Null => Self::Null,
            Target::File(path) => Self::File(Arc::new(append(path)?)),
            Target::Log(path, bound) => Self::Log(Arc::new(Mutex::new(Log::open(path, *bound)?))),
            Target::Fifo(path) => Self::existing(path)?,
            Target::Binary(program) => {
                return Err(Error::invalid(format!(
                    "{}: a logging process takes both streams: name it as stdout and stderr",
                    program.path.display()
                )));
            }
        })
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// A path without a scheme: a fifo, or a plain file that is appended to.
    fn existing(path: &Path) -> Result<Self> {
        let kind = path.metadata().map_err(|error| {
            Error::not_found(format!(
                "stdio {}: {error}: make the fifo first",
                path.display()
            ))
        })?;
        if !kind.file_type().is_fifo() {
            return Ok(Self::File(Arc::new(append(path)?)));
        }
        // Opened for reading too: a fifo without a reader would refuse to open, and break later.
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(O_NONBLOCK)
            .open(path);
        let file = file.about(path.display())?;
        let fifo = sys::watched(file, Interest::WRITABLE).about(path.display())?;
        Ok(Self::Fifo(Arc::new(fifo)))
    }

    /// Takes some bytes of a stream; fewer than all only when a fifo is full.
    pub(super) fn write(&self, stream: &str, bytes: &[u8], tail: &mut Tail) -> usize {
        match self {
            Self::Null => bytes.len(),
            Self::File(file) => {
                // A full disk must not stop the container: what does not fit is dropped.
                let _ = (&**file).write_all(bytes);
                bytes.len()
            }
            Self::Log(log) => {
                log.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .lines(stream, bytes, tail);
                bytes.len()
            }
            Self::Fifo(fifo) => match fifo.get_ref().write(bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(_) => bytes.len(),
            },
        }
    }

    /// Writes out an unfinished line.
    pub(super) fn flush(&self, stream: &str, tail: &mut Tail) {
        if let Self::Log(log) = self {
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .partial(stream, tail);
        }
    }

    /// Waits until a full fifo has room again.
    pub(super) async fn room(&self) -> io::Result<()> {
        if let Self::Fifo(fifo) = self {
            let mut guard = fifo.writable().await?;
            if !writable_now(fifo.get_ref()) {
                guard.clear_ready();
            }
        }
        Ok(())
    }
}

fn writable_now(file: &File) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(file, PollFlags::OUT)];
    poll(
        &mut fds,
        Some(&rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .is_ok_and(|n| n > 0)
}

fn folder_of(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) => std::fs::create_dir_all(folder).about(folder.display()),
        None => Ok(()),
    }
}

fn append(path: &Path) -> Result<File> {
    folder_of(path)?;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path);
    file.about(path.display())
}

/// The beginning of a line of one stream that has no newline yet.
#[derive(Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A file of CRI log lines.
pub(super) struct Log(LogFile);

impl Log {
    fn open(path: &Path, bound: u64) -> Result<Self> {
        folder_of(path)?;
        LogFile::open(path, bound).map(Self).about(path.display())
    }

    fn lines(&mut self, stream: &str, bytes: &[u8], tail: &mut Tail) {
        let mut records = Records::new(stream, bytes.len());
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            records.piece(piece, tail);
        }
        self.append(&records.text);
    }

    fn partial(&mut self, stream: &str, tail: &mut Tail) {
        if tail.is_empty() {
            return;
        }
        let mut records = Records::new(stream, tail.0.len());
        records.record(b'P', &tail.0);
        tail.0 = Vec::new();
        self.append(&records.text);
    }

    fn append(&mut self, text: &[u8]) {
        if !text.is_empty() {
            self.0.append(text);
        }
    }
}

/// Some log lines of one moment.
struct Records<'a> {
    stream: &'a str,
    time: String,
    text: Vec<u8>,
}

impl<'a> Records<'a> {
    fn new(stream: &'a str, size: usize) -> Self {
        let time = format!("{:.9}", Timestamp::now());
        Self {
            stream,
            time,
            text: Vec::with_capacity(size + 128),
        }
    }

    /// Adds a piece that ends with a newline, or is the last one and does not.
    fn piece(&mut self, piece: &[u8], tail: &mut Tail) {
        let (body, ended) = match piece.split_last() {
            Some((b'\n', body)) => (body, true),
            _ => (piece, false),
        };
        let mut body = body;
        while tail.0.len() + body.len() > RECORD_MAX {
            let (now, later) = body.split_at(RECORD_MAX - tail.0.len());
            let begun = std::mem::take(&mut tail.0);
            self.joined(b'P', &begun, now);
            body = later;
        }
        if ended {
            let begun = std::mem::take(&mut tail.0);
            self.joined(b'F', &begun, body);
        } else {
            tail.0.extend_from_slice(body);
        }
    }

    fn record(&mut self, tag: u8, body: &[u8]) {
        self.joined(tag, b"", body);
    }

    fn joined(&mut self, tag: u8, begun: &[u8], rest: &[u8]) {
        let text = &mut self.text;
        text.extend_from_slice(self.time.as_bytes());
        text.push(b' ');
        text.extend_from_slice(self.stream.as_bytes());
        text.extend_from_slice(&[b' ', tag, b' ']);
        text.extend_from_slice(begun);
        text.extend_from_slice(rest);
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stream a reader rebuilds from log lines.
    fn rebuilt(log: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let mut parts = line[..line.len() - 1].splitn(4, |byte| *byte == b' ');
            let tag = parts.nth(2).expect("tag");
            let body = parts.next().expect("body");
            assert!(body.len() <= RECORD_MAX);
            bytes.extend_from_slice(body);
            if tag == b"F" {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    fn logged(chunks: &[&[u8]]) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("log");
        let sink = Sink::open(&Target::Log(path.clone(), 0)).expect("opens");
        let mut tail = Tail::default();
        for chunk in chunks {
            assert_eq!(sink.write("stdout", chunk, &mut tail), chunk.len());
        }
        sink.flush("stdout", &mut tail);
        std::fs::read(path).expect("reads")
    }

    #[test]
    fn bytes_are_rebuilt_exactly_however_they_arrive() {
        let long = vec![b'x'; 3 * RECORD_MAX + 7];
        for stream in [
            &b"a\n\nb c\n"[..],
            b"no end",
            b"\n",
            b"",
            &long,
            b"\xff\0 \n tail",
        ] {
            for size in [1, 3, 4096, 100_000] {
                let chunks: Vec<&[u8]> = stream.chunks(size).collect();
                assert_eq!(rebuilt(&logged(&chunks)), stream);
            }
        }
    }

    #[test]
    fn a_line_has_time_stream_and_tag() {
        let text = String::from_utf8(logged(&[b"one\ntwo"])).expect("text");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        assert_eq!(lines[0][1..], ["stdout", "F", "one"]);
        assert_eq!(lines[1][1..], ["stdout", "P", "two"]);
        let time = lines[0][0];
        assert_eq!(time.len(), "2024-01-02T03:04:05.123456789Z".len());
        time.parse::<Timestamp>().expect("RFC 3339");
    }
}
