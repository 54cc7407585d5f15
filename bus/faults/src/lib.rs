//! Named places at which a test may end this very process: between any two steps of work that must survive it.
//!
//! Inert unless the variable [`FOLDER`] names a folder; then one look at a folder is made at each point. A file of the
//! point's name there arms it *once*: whoever removes the file strikes, so that a successor passes. What the file says
//! is what happens: `kill` (also when it is empty) or `stop`, the signals of these names. Nothing else can be injected:
//! what is tested is a death, and a death needs no cooperation of the code around it.
//!
//! Names are `service.operation.what-has-been-done`, `tasks.create.shim-started`, unique in the house and given as
//! literals, so that a test finds all of them in the source and fails when one of them is never struck.

use rustix::process::{Signal, getpid, kill_process};
use std::{env, fs, path::PathBuf, sync::OnceLock};

/// The variable that names the folder with armed points. Plugins of all users must be able to remove files there.
pub const FOLDER: &str = "GANTRY_FAULTS";

/// A place where this process may be made to die.
pub fn point(name: &'static str) {
    static ARMED: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = ARMED.get_or_init(|| env::var_os(FOLDER).map(PathBuf::from));
    if let Some(folder) = folder {
        strike(folder.join(name));
    }
}

fn strike(arm: PathBuf) {
    let Ok(what) = fs::read_to_string(&arm) else {
        return;
    };
    // Only one of several that pass at once removes it.
    if fs::remove_file(&arm).is_err() {
        return;
    }
    let signal = match what.trim() {
        "stop" => Signal::STOP,
        _ => Signal::KILL,
    };
    let _ = kill_process(getpid(), signal);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn an_armed_point_ends_the_process_once() {
        if std::env::var_os(super::FOLDER).is_some() {
            super::point("tests.strike");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let run = || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "tests::an_armed_point_ends_the_process_once"]);
            let command = command.env(super::FOLDER, folder.path());
            command.output().unwrap().status.success()
        };
        assert!(run(), "not armed");
        std::fs::write(folder.path().join("tests.strike"), "kill").unwrap();
        assert!(!run(), "armed");
        assert!(run(), "struck already");
    }
}
