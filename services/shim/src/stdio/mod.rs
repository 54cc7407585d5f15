//! The stdio of one process: what the caller asked for, the pipes in between, and their pumps.

mod logger;
mod output;
mod sink;
mod stdin;
mod uri;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::task::JoinHandle;

use crate::error::{About, Error, Result};
use crate::runtime::{ChildIo, ConsoleSocket};
use output::Output;
use sink::Sink;
use stdin::Input;
use uri::Target;

/// The URIs of one process, as asked for in `Create` or `Exec`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Who the process is: its user owns the pipes, its names go to a logging process.
pub(crate) struct Owner<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) user: (u32, u32),
}

/// The shim's side of a process's stdio.
#[derive(Default)]
pub(crate) struct Io {
    outputs: Vec<Arc<Output>>,
    pumps: Vec<JoinHandle<()>>,
    input: Option<Input>,
    terminal: Option<Arc<OwnedFd>>,
}

/// Between the making of the pipes and the birth of the process.
pub(crate) struct Prepared {
    io: Io,
    console: Option<Console>,
}

struct Console {
    socket: ConsoleSocket,
    sink: Sink,
    stdin: String,
    user: (u32, u32),
}

impl Stdio {
    /// Opens everything, and makes the container's ends.
    ///
    /// Errors: `INVALID_ARGUMENT` for a URI that is not understood, `NOT_FOUND` for a missing fifo.
    pub(crate) fn prepare(&self, owner: &Owner<'_>) -> Result<(ChildIo, Prepared)> {
        if self.terminal {
            self.prepare_terminal(owner)
        } else {
            self.prepare_pipes(owner)
        }
    }

    fn prepare_terminal(&self, owner: &Owner<'_>) -> Result<(ChildIo, Prepared)> {
        let sink = match Target::parse(&self.stdout)? {
            Target::Binary(_) => {
                return Err(Error::invalid(
                    "a logging process cannot serve a terminal: use log://",
                ));
            }
            target => Sink::open(&target)?,
        };
        let socket = ConsoleSocket::bind(owner.bundle, &rand_name())?;
        let child = ChildIo {
            stdio: None,
            console: Some(socket.path()),
        };
        let console = Console {
            socket,
            sink,
            stdin: self.stdin.clone(),
            user: owner.user,
        };
        Ok((
            child,
            Prepared {
                io: Io::default(),
                console: Some(console),
            },
        ))
    }

    fn prepare_pipes(&self, owner: &Owner<'_>) -> Result<(ChildIo, Prepared)> {
        let mut io = Io::default();
        let (stdin, input) = stdin::open(&self.stdin, owner.user)?;
        io.input = input;
        let (out, err) = (Target::parse(&self.stdout)?, Target::parse(&self.stderr)?);
        let (stdout, stderr) = if let Target::Binary(uri) = &out {
            logger::spawn(uri, owner)?
        } else {
            let first = Sink::open(&out)?;
            let second = if err == out {
                first.clone()
            } else {
                Sink::open(&err)?
            };
            (
                io.pump("stdout", first, owner)?,
                io.pump("stderr", second, owner)?,
            )
        };
        let child = ChildIo {
            stdio: Some([stdin, stdout, stderr]),
            console: None,
        };
        Ok((child, Prepared { io, console: None }))
    }
}

impl Prepared {
    /// Completes the stdio of a process that was just born: takes its terminal.
    pub(crate) fn finish(self) -> Result<Io> {
        let mut io = self.io;
        if let Some(console) = self.console {
            io.adopt(console)?;
        }
        Ok(io)
    }
}

impl Io {
    /// One pipe into a sink; returns the container's end.
    fn pump(&mut self, stream: &'static str, sink: Sink, owner: &Owner<'_>) -> Result<OwnedFd> {
        if sink.is_null() {
            return null();
        }
        let (read, write) = pipe(owner.user)?;
        self.watch(Output::new(stream, read, sink)?);
        Ok(write)
    }

    fn watch(&mut self, output: Output) {
        let output = Arc::new(output);
        self.pumps.push(tokio::spawn(output.clone().pump()));
        self.outputs.push(output);
    }

    fn adopt(&mut self, console: Console) -> Result<()> {
        let master = Arc::new(console.socket.receive()?);
        own_terminal(&master, console.user);
        let copy = master.try_clone().about("terminal")?;
        self.watch(Output::new("stdout", copy, console.sink)?);
        self.input = stdin::into_terminal(&console.stdin, &master)?;
        self.terminal = Some(master);
        Ok(())
    }

    /// Moves what is in the pipes now to where it belongs; called when the process has ended.
    pub(crate) fn drain(&self) {
        for output in &self.outputs {
            output.drain();
        }
    }

    /// Waits until every writer has closed its end, at most `bound`; then lets go of the rest.
    pub(crate) async fn finish(mut self, bound: Duration) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        let until = tokio::time::Instant::now() + bound;
        for mut pump in std::mem::take(&mut self.pumps) {
            if tokio::time::timeout_at(until, &mut pump).await.is_err() {
                pump.abort();
            }
        }
        self.drain();
    }

    /// Delivers what stdin's fifo holds, then closes the container's end.
    pub(crate) fn close_stdin(&mut self) {
        if let Some(input) = &self.input {
            input.close();
        }
    }

    /// Sets the size of the terminal.
    ///
    /// Errors: `FAILED_PRECONDITION` when the process has none.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Err(Error::precondition("the process has no terminal"));
        };
        let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: narrow(rows),
            ws_col: narrow(columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal.as_fd(), size).about("resize the terminal")
    }
}

/// The process's user owns its terminal, so that it may be opened by name (`/dev/pts/0`).
fn own_terminal(master: &OwnedFd, (uid, gid): (u32, u32)) {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    // Best effort: a mount without owners (or a runtime that did it) is no reason to fail.
    if let Ok(peer) = ioctl_tiocgptpeer(master, flags) {
        let _ = fchown(&peer, Some(Uid::from_raw(uid)), None);
        let _ = gid;
    }
}

/// A pipe that the process's user may open again through `/dev/stdout`.
fn pipe((uid, gid): (u32, u32)) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).about("stdio pipe")?;
    fchown(&write, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).about("stdio pipe")?;
    Ok((read, write))
}

fn null() -> Result<OwnedFd> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).about("/dev/null")
}

fn rand_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

/// A short name for a path whose folder may be too deep for a socket address (107 bytes).
///
/// The name is good while the returned descriptor lives.
pub(crate) fn reach(path: &Path) -> Result<(File, PathBuf)> {
    use std::os::fd::AsRawFd;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path
        .file_name()
        .ok_or_else(|| Error::invalid("a socket needs a name"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut options = File::options();
    let folder = options
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(folder);
    let folder = folder.about(path.display())?;
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    Ok((folder, short))
}
