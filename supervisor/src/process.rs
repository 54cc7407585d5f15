//! Making a process: the same program again, with the control link as its stdin and nearly nothing in its environment.

use crate::program::Program;
use contracts::PluginId;
use std::{
    ffi::OsString,
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    process::{ExitStatus, Stdio},
};
use tokio::process::{Child, Command};

/// Variables that a plugin inherits: where programs are, how to log, the time zone, trusted certificates, proxies,
/// and where tests arm their faults.
const INHERITED: [&str; 15] = [
    "PATH",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "GANTRY_FAULTS",
];

/// Variables that every plugin gets.
const SET: [(&str, &str); 3] = [
    // glibc 2.36 on Zen 3 and 4: `rep movsb` makes unaligned copies of tens of KiB 15–20 times slower.
    (
        "GLIBC_TUNABLES",
        "glibc.cpu.x86_rep_movsb_threshold=1000000000",
    ),
    // Plugins are single-threaded but for disk work: one arena, and free memory goes back early.
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// Starts `gantry plugin IDS…` in a process group of its own. Returns it with our end of its control link, non-blocking.
///
/// Must be called in the main thread: the child is to die with the thread that made it.
pub(crate) fn spawn(program: &Program, plugins: &[PluginId]) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new(program.exec())
        // For people who look at processes.
        .arg0(program.path())
        .arg("plugin")
        .args(plugins.iter().map(PluginId::as_str))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .env_clear()
        .envs(environment())
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, ours))
}

fn environment() -> impl Iterator<Item = (&'static str, OsString)> {
    let inherited = INHERITED
        .iter()
        .filter_map(|&name| Some((name, std::env::var_os(name)?)));
    inherited.chain(SET.iter().map(|&(name, value)| (name, value.into())))
}

/// Says how a process ended, for people: `exit code 101`, `signal 9 (SIGKILL)`.
pub(crate) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal);
            let name = name.map_or("unknown", nix::sys::signal::Signal::as_str);
            format!("signal {signal} ({name})")
        }
        _ => format!("status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_names_code_or_signal() {
        assert_eq!(ending(ExitStatus::from_raw(101 << 8)), "exit code 101");
        assert_eq!(ending(ExitStatus::from_raw(9)), "signal 9 (SIGKILL)");
    }

    #[test]
    fn a_plugin_inherits_no_other_variable() {
        let names: Vec<_> = environment().map(|(name, _)| name).collect();
        assert!(names.contains(&"MALLOC_ARENA_MAX"));
        assert!(!names.contains(&"HOME") && !names.contains(&"CARGO_MANIFEST_DIR"));
    }
}
