//! What can go wrong with a ledger, whatever it stores.

use contracts::Error;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A failure of the file below a store.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// Another process holds the file, and went on doing so.
    #[error("store {}: still in use by another process", .0.display())]
    InUse(PathBuf),
    /// The file or a record in it is damaged.
    #[error("store {}: damaged: {}", .0.display(), .1)]
    Damaged(PathBuf, String),
    /// The file was written by a newer build.
    #[error("store {}: has schema {found}, this build knows up to {known}: start the build that wrote it", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// The newest schema of this build.
        known: u64,
    },
    /// The disk is full.
    #[error("store {}: no space left on the device: free some, nothing was changed", .0.display())]
    Full(PathBuf),
    /// The device failed for somebody else; the file is opened anew by whoever comes next.
    #[error("store {}: was interrupted by a failure of its device, try again", .0.display())]
    Reopened(PathBuf),
    /// The machine has no descriptors or no memory left.
    #[error("store {}: {}: nothing was changed, try again when the machine has some", .0.display(), .1)]
    Short(PathBuf, String),
    /// Any other failure of the device.
    #[error("store {}: {}", .0.display(), .1)]
    Io(PathBuf, String),
    /// A record is larger than any may be.
    #[error("record {0}: {1}")]
    TooLarge(String, String),
    /// The page token is none of ours.
    #[error("page_token {0:?}: is none that this list gave; start without one")]
    Token(String),
    /// The file can only be mended while its owner does not run.
    #[error("store {}: is in use: `gantry fsck --repair` stops its owner, mends it and starts the owner again", .0.display())]
    Stopped(PathBuf),
    /// The process is stopping.
    #[error("store {}: is closing", .0.display())]
    Closing(PathBuf),
}

impl Fault {
    /// A failure of the system, by what can be done about it.
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match (error.kind(), error.raw_os_error()) {
            (ErrorKind::InvalidData | ErrorKind::UnexpectedEof, _) => {
                Self::Damaged(path, error.to_string())
            }
            (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _) => Self::Full(path),
            (ErrorKind::OutOfMemory, _) => Self::Short(path, "no memory left".into()),
            // ENFILE and EMFILE, the same numbers on every Linux.
            (_, Some(23 | 24)) => Self::Short(path, "too many open files".into()),
            _ => Self::Io(path, error.to_string()),
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let message = fault.to_string();
        match fault {
            Fault::InUse(_) | Fault::Closing(_) | Fault::Reopened(_) => Error::unavailable(message),
            Fault::Damaged(..) => Error::data_loss(message),
            Fault::Newer { .. } | Fault::Stopped(_) => Error::precondition(message),
            Fault::Full(_) | Fault::Short(..) | Fault::TooLarge(..) => Error::exhausted(message),
            Fault::Io(..) => Error::internal(message),
            Fault::Token(_) => Error::invalid(message),
        }
    }
}
