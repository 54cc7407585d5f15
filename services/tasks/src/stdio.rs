//! Where the streams of a process go: what a shim is told, and the fifos behind that.
//!
//! gantry's own shim writes the log itself (`log://`), so the log goes on while tasks is away. Other shims know no log of
//! this form: they get fifos in the bundle, and tasks pumps from the fifos to the same file (see `pump.rs`). Their stdin
//! ends with its last writer, so tasks holds a writing end until it is closed: it ends, too, when tasks dies.

use crate::bundle::{fifo, fifo_path};
use crate::launch::Launch;
use crate::live::Tracked;
use crate::pump::{self, Pumps};
use crate::record::Io;
use contracts::{Error, ExecId, Fd, Result};
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tokio::task::AbortHandle;

/// What `Create` and `Exec` are told about the streams of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Fifos to pump from, each with the name of its stream, and the log they go to.
    fifos: Vec<(&'static str, PathBuf)>,
    log: PathBuf,
    bound: u64,
    /// Whether stdin ends with its first writer unless somebody holds it.
    hold: bool,
    /// The fifo for a stock shim's own log.
    own_log: Option<PathBuf>,
}

impl Streams {
    /// Decides where the streams go, and makes the fifos. Blocks.
    pub(crate) fn make(
        launch: &Launch,
        log: &Path,
        exec: Option<&ExecId>,
        stdio: Io,
    ) -> Result<Self> {
        let streams = Self::of(launch, log, exec, stdio);
        if stdio.stdin {
            fifo(Path::new(&streams.stdin))?;
        }
        for (_, path) in &streams.fifos {
            fifo(path)?;
        }
        if let Some(path) = &streams.own_log {
            fifo(path)?;
        }
        Ok(streams)
    }

    /// Where the streams of a process go that was made before.
    pub(crate) fn of(launch: &Launch, log: &Path, exec: Option<&ExecId>, stdio: Io) -> Self {
        let path = |stream| fifo_path(&launch.bundle, stream, exec);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let stdin = if stdio.stdin {
            text(path("stdin"))
        } else {
            String::new()
        };
        let names: &[&'static str] = match (stdio.discard, stdio.tty) {
            (true, _) => &[],
            (false, true) => &["stdout"],
            (false, false) => &["stdout", "stderr"],
        };
        let own = launch.program.own;
        let target = |stream: &'static str| match names.contains(&stream) {
            false => String::new(),
            true if own => format!("log://{}?bound={}", encoded(log), launch.log_bytes),
            true => text(path(stream)),
        };
        let fifos = if own { &[][..] } else { names };
        Self {
            stdin,
            stdout: target("stdout"),
            stderr: target("stderr"),
            fifos: fifos.iter().map(|&name| (name, path(name))).collect(),
            log: log.into(),
            bound: launch.log_bytes,
            hold: !own,
            own_log: (!own && exec.is_none()).then(|| launch.bundle.join("log")),
        }
    }

    /// Starts what tasks itself does for the streams; gantry's own shim needs none of it.
    pub(crate) fn attend(&self, process: &Tracked) -> Result<()> {
        if !self.fifos.is_empty() {
            let pumps = Pumps::start(&self.fifos, &self.log, self.bound)?;
            process.pumps.replace(Some(pumps));
        }
        if self.hold && !self.stdin.is_empty() {
            let end = writer(Path::new(&self.stdin), true)?;
            process.held.replace(Some(end));
        }
        Ok(())
    }

    /// Reads a stock shim's own log, which would stop it when full.
    pub(crate) fn shim_log(&self) -> Result<Option<AbortHandle>> {
        self.own_log.as_deref().map(pump::drain).transpose()
    }
}

/// Opens the writing end of a fifo that somebody reads, or with `alone` of one that nobody reads yet. Blocks no longer than the opening.
///
/// Errors: `FailedPrecondition` when the reader has gone.
pub(crate) fn writer(path: &Path, alone: bool) -> Result<Fd> {
    let mut options = OpenOptions::new();
    let opened = options
        .write(true)
        .read(alone)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path);
    let file = opened.map_err(|e| Error::precondition(format!("stdin: is closed: {e}")))?;
    if !alone {
        // Writers that come later mean to wait when it is full.
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())
            .map_err(|e| Error::internal(format!("stdin: {e}")))?;
    }
    Ok(Fd::from(OwnedFd::from(file)))
}

/// Percent-encodes what a URI's path may not have.
fn encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => text.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => text.push(byte.into()),
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Name, Program};
    use contracts::{ContainerId, Namespace};

    fn launch(own: bool) -> Launch {
        Launch {
            program: Program {
                path: "/x".into(),
                first: None,
                own,
            },
            name: Name {
                namespace: Namespace::new("test").unwrap(),
                id: ContainerId::new("box").unwrap(),
            },
            bundle: "/b".into(),
            socket: "/s".into(),
            events: "/e".into(),
            cgroup: String::new(),
            log_bytes: 9,
        }
    }

    #[test]
    fn our_own_shim_writes_the_log_itself() {
        let io = Io::default();
        let streams = Streams::of(&launch(true), Path::new("/l og/init.log"), None, io);
        assert_eq!(streams.stdout, "log:///l%20og/init.log?bound=9");
        assert_eq!(streams.stderr, streams.stdout);
        assert!(streams.fifos.is_empty() && streams.own_log.is_none());
    }

    #[test]
    fn a_stock_shim_gets_fifos_and_a_terminal_has_one_stream() {
        let exec = ExecId::new("e").unwrap();
        let io = Io {
            tty: true,
            stdin: true,
            discard: false,
        };
        let streams = Streams::of(&launch(false), Path::new("/l"), Some(&exec), io);
        assert_eq!(streams.stdin, "/b/stdin-e");
        assert_eq!(streams.stdout, "/b/stdout-e");
        assert_eq!(streams.stderr, "");
        let dropped = Io {
            discard: true,
            ..io
        };
        let streams = Streams::of(&launch(false), Path::new("/l"), None, dropped);
        assert_eq!(streams.stdout, "");
    }
}
