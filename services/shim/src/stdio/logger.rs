//! `binary://`: a process of the user's that takes both streams itself.
//! Source: containerd `core/runtime/v2/README.md`, "Logging".

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::Timespec;

use super::{Owner, pipe, uri::Program};
use crate::error::{About, Error, Result};
use crate::sys;

/// How long a logging process may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);

/// Starts it; returns the container's ends of stdout and stderr.
pub(super) fn spawn(program: &Program, owner: &Owner<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let name = program.path.display();
    let (out, stdout) = pipe(owner.user)?;
    let (err, stderr) = pipe(owner.user)?;
    let (ready, signal) = pipe_with(PipeFlags::CLOEXEC).about("ready pipe")?;
    let mut fds = Vec::new();
    for fd in [out, err, signal] {
        fds.push(sys::dup_high(fd).about(&name)?);
    }
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::pass_from_three(&mut command, fds);
    // Reaped by the shim like every other child, so nobody waits for this handle.
    let child = command.spawn().map_err(|error| {
        Error::invalid(format!(
            "logging process {name}: {error}: check the path in stdout"
        ))
    })?;
    // The command owns our copies of the descriptors: closed here, or the ready pipe never ends.
    drop(command);
    wait_ready(ready).inspect_err(|_| {
        let _ = sys::kill(child.id() as i32, nix::libc::SIGKILL);
    })?;
    Ok((stdout, stderr))
}

/// Waits for the end of the ready pipe.
fn wait_ready(ready: OwnedFd) -> Result<()> {
    let until = Instant::now() + READY;
    let mut ready = std::fs::File::from(ready);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&ready, PollFlags::IN)];
        let bound = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        if !matches!(poll(&mut fds, Some(&bound)), Ok(1..)) {
            return Err(Error::internal(
                "the logging process did not close descriptor 5 in 10 s",
            ));
        }
        if ready.read(&mut [0; 16]).about("ready pipe")? == 0 {
            return Ok(());
        }
    }
}
