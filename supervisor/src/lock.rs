//! One supervisor per state folder: a lock that the kernel drops with the process, however it ends.

use rustix::fs::FlockOperation;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// File name below the state folder.
const NAME: &str = "supervisor.lock";

/// Held as long as the node runs; dropping it removes the file.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

/// Why the lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another supervisor has it.
    #[error("state folder {} is in use by the supervisor with pid {pid}; stop it, or choose another state folder", state.display())]
    Held {
        /// Which folder.
        state: PathBuf,
        /// Who.
        pid: String,
    },
    /// The system refused.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock of `state` and writes our pid into it: no supervisor begins while it is held.
    pub fn take(state: &Path) -> Result<Self, LockError> {
        let path = state.join(NAME);
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        loop {
            let mut file = open(&path).map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if !is_current(&file, &path) => continue,
                Ok(()) => {
                    write_pid(&mut file).map_err(failed)?;
                    return Ok(Self {
                        path: path.clone(),
                        _file: file,
                    });
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(state, file)),
                Err(e) => return Err(failed(e.into())),
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

/// A predecessor that just stopped has removed the file between our open and our lock.
fn is_current(file: &File, path: &Path) -> bool {
    let (ours, named) = (file.metadata(), fs::metadata(path));
    matches!((ours, named), (Ok(ours), Ok(named)) if ours.ino() == named.ino())
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn held(state: &Path, mut file: File) -> LockError {
    let mut pid = String::new();
    // Only a hint: the lock is what counts.
    let _ = file.read_to_string(&mut pid);
    let pid = match pid.trim() {
        "" => "unknown".to_owned(),
        pid => pid.to_owned(),
    };
    LockError::Held {
        state: state.into(),
        pid,
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_is_refused_with_the_pid_of_the_first() {
        let state = tempfile::tempdir().unwrap();
        let first = Lock::take(state.path()).unwrap();
        let error = Lock::take(state.path()).unwrap_err().to_string();
        let pid = std::process::id().to_string();
        assert!(error.contains(&format!("pid {pid};")), "{error}");
        drop(first);
        assert!(!state.path().join(NAME).exists());
        Lock::take(state.path()).unwrap();
    }
}
