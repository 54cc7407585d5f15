//! The program as a process: how it is started, what it leaves behind, how it ends.
#![allow(unsafe_code)]

use super::LAST_WORDS;
use contracts::{Error, PluginId, Result, plugin::PluginBoot};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    cell::RefCell, io, os::unix::process::ExitStatusExt, process::ExitStatus, process::Stdio,
    rc::Rc,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

/// Most bytes of one line of the log.
const LINE: u64 = 8 << 10;

/// A program and what it has started and did not lead away.
#[derive(Clone, Copy)]
pub(super) struct Group(Pid);

impl Group {
    /// Kills all of it.
    pub(super) fn kill(self) {
        // It may have ended already.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// A running program. Dropping it kills it and its group.
pub(super) struct Program {
    child: Child,
    group: Option<Group>,
    log: JoinHandle<()>,
    /// The last line that it logged.
    words: Rc<RefCell<String>>,
}

/// Starts the program of `boot` in its durable folder, in a process group of its own, so that it dies with this process.
///
/// Must be called in the main thread: the program is to die with the thread that made it. Errors: `FailedPrecondition`
/// naming the program and the reason.
pub(super) fn start(
    boot: &PluginBoot,
    command: &[String],
) -> Result<(Program, ChildStdin, ChildStdout)> {
    let (name, arguments) = command
        .split_first()
        .ok_or_else(|| Error::precondition(format!("plugin {}: names no program", boot.id)))?;
    let mut child = dying_with_us(&mut Command::new(name))
        .args(arguments)
        .current_dir(&boot.root)
        .env("GANTRY_PLUGIN", boot.id.as_str())
        .env("GANTRY_ROOT", &boot.root)
        .env("GANTRY_STATE", &boot.state)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| refused(name, &e))?;
    let (Some(input), Some(output), Some(log)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Error::internal(format!("program {name}: has no pipes")));
    };
    let words = Rc::default();
    let log = actix::spawn(pass_on(log, boot.id.clone(), Rc::clone(&words)));
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let group = pid.map(Group);
    let program = Program {
        child,
        group,
        log,
        words,
    };
    Ok((program, input, output))
}

fn refused(name: &str, error: &io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "; the file or the interpreter of its first line is missing",
        io::ErrorKind::PermissionDenied => {
            "; the plugin's own user must be able to reach and execute it: try `chmod o+rx`"
        }
        _ => "",
    };
    Error::precondition(format!("program {name}: {error}{hint}"))
}

/// Without this, the program of a host that was killed would go on beside that of its successor.
fn dying_with_us(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: between fork and exec the closure only makes the system calls prctl and getppid, which are
    // async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            match rustix::process::getppid() {
                Some(pid) if pid.as_raw_pid().cast_unsigned() == parent => Ok(()),
                // It died in between, and the signal with it.
                _ => Err(io::ErrorKind::BrokenPipe.into()),
            }
        })
    }
}

/// Passes the program's stderr on to the log.
async fn pass_on(log: impl AsyncRead + Unpin, plugin: PluginId, words: Rc<RefCell<String>>) {
    let mut log = BufReader::new(log);
    loop {
        let mut line = Vec::new();
        let read = (&mut log).take(LINE).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        let text = String::from_utf8_lossy(line.trim_ascii_end());
        tracing::info!(%plugin, "{text}");
        if !text.trim().is_empty() {
            words.replace(text.trim().to_owned());
        }
    }
}

impl Program {
    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> String {
        let how = match self.child.wait().await {
            Ok(status) => ending(status),
            Err(e) => format!("an unknown status: {e}"),
        };
        // Bounded, for somebody may live on who holds it open.
        let _ = timeout(LAST_WORDS, &mut self.log).await;
        let last = self.words.borrow();
        match last.is_empty() {
            true => format!("its program ended with {how}"),
            false => format!("its program ended with {how}; last it logged {last:?}"),
        }
    }

    /// It and what it has started.
    pub(super) fn group(&self) -> Option<Group> {
        self.group
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            group.kill();
        }
    }
}

/// Says how a process ended, for people.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => match Signal::from_named_raw(signal) {
            // The library shows it as `Signal::KILL`.
            Some(known) => {
                let name = format!("{known:?}").replace("Signal::", "SIG");
                format!("signal {signal} ({})", name.trim_matches('"'))
            }
            None => format!("signal {signal}"),
        },
        _ => format!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_names_code_or_signal() {
        assert_eq!(ending(ExitStatus::from_raw(7 << 8)), "exit code 7");
        assert_eq!(ending(ExitStatus::from_raw(9)), "signal 9 (SIGKILL)");
        assert_eq!(ending(ExitStatus::from_raw(11)), "signal 11 (SIGSEGV)");
    }
}
