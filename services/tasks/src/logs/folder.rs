//! Whose logs a folder holds, and when they go: with the container's record, which tasks does not own.
//!
//! See `owners.rs` for when that is looked at. Everything here blocks.

use crate::bundle::{about, private_folder};
use contracts::{Result, Timestamp};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Logs of ended added processes that are kept for one container: enough to look back, too few to fill a disk.
const EXEC_LOGS: usize = 64;

/// Makes the folder of a container whose record was made at `made`; logs of another one of that name go.
pub(crate) fn open(folder: &Path, made: Timestamp) -> Result<()> {
    if owner(folder) != Some(made) {
        remove(folder)?;
    }
    private_folder(folder)?;
    let path = folder.join("container");
    fs::write(&path, made.0.to_string()).map_err(|e| about(&path, &e))
}

/// When the record was made of the container whose logs these are.
pub(crate) fn owner(folder: &Path) -> Option<Timestamp> {
    let text = fs::read_to_string(folder.join("container")).ok()?;
    text.trim().parse().ok().map(Timestamp)
}

/// Removes the folder, and the namespace's when it was the last.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(about(folder, &e)),
        _ => {}
    }
    if let Some(namespace) = folder.parent() {
        // Another container's logs may be in it.
        let _ = fs::remove_dir(namespace);
    }
    Ok(())
}

/// Makes room for the log of a new added process: its predecessor's of the same id goes, and so do the oldest of too many.
pub(crate) fn fresh(log: &Path) -> Result<()> {
    let Some(folder) = log.parent() else {
        return Ok(());
    };
    let mut logs: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"exec-"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort();
    let many = logs.len().saturating_sub(EXEC_LOGS - 1);
    let old = logs.iter().take(many).map(|(_, path)| path.as_path());
    let before = logfile::older(log);
    for path in old.chain([log, &before]) {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(about(path, &e)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_container_of_the_same_name_begins_with_empty_logs() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("ns/box");
        open(&folder, Timestamp(1)).unwrap();
        fs::write(folder.join("init.log"), "x").unwrap();
        open(&folder, Timestamp(1)).unwrap();
        assert!(folder.join("init.log").exists());
        open(&folder, Timestamp(2)).unwrap();
        assert!(!folder.join("init.log").exists());
        assert_eq!(owner(&folder), Some(Timestamp(2)));
        remove(&folder).unwrap();
        assert!(!root.path().join("ns").exists());
    }

    #[test]
    fn the_oldest_of_too_many_exec_logs_goes() {
        let root = tempfile::tempdir().unwrap();
        let path = |number: usize| root.path().join(format!("exec-{number}.log"));
        for number in 0..EXEC_LOGS + 5 {
            fresh(&path(number)).unwrap();
            fs::write(path(number), "x").unwrap();
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), EXEC_LOGS);
        assert!(path(EXEC_LOGS + 4).exists());
    }
}
