//! What can go wrong with a snapshot.

use contracts::SnapshotKey;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the store, before it becomes the one that crosses the bus.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("snapshot {0}: not there")]
    Missing(SnapshotKey),
    #[error("snapshot {0}: its directory is gone from disk; pull an image that has it again")]
    Gone(SnapshotKey),
    #[error("snapshot {0}: is there already")]
    Exists(SnapshotKey),
    #[error("parent {0}: not there")]
    MissingParent(SnapshotKey),
    #[error("parent {0}: is not committed; commit it first")]
    OpenParent(SnapshotKey),
    #[error("snapshot {0}: is {1}, only an active one can be committed")]
    NotActive(SnapshotKey, &'static str),
    #[error("snapshot {0}: is committed and has no mounts; take a view of it")]
    Committed(SnapshotKey),
    #[error("snapshot {key}: is the parent of {child}; remove that first")]
    HasChild { key: SnapshotKey, child: String },
    #[error(
        "snapshot {0}: this driver cannot set a parent at commit; prepare it on top of its parent"
    )]
    CannotRebase(SnapshotKey),
    #[error("snapshot {key}: has parent {has}, and keeps it; prepare one without a parent")]
    OtherParent { key: SnapshotKey, has: SnapshotKey },
    /// Somebody changed what a draft was made from: never seen by a caller.
    #[error("snapshot: changed meanwhile, try again")]
    Overtaken,
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Ledger(#[from] ledger::Fault),
    #[error(transparent)]
    Refused(#[from] contracts::Error),
}

impl Error {
    pub(crate) fn io(what: impl std::fmt::Display) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io {
            what: what.to_string(),
            source: errno.into(),
        }
    }
}

impl From<Error> for contracts::Error {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Missing(_) | Error::MissingParent(_) => Self::not_found(message),
            Error::Gone(_) => Self::data_loss(message),
            Error::Exists(_) => Self::exists(message),
            Error::OpenParent(_)
            | Error::NotActive(..)
            | Error::Committed(_)
            | Error::HasChild { .. } => Self::precondition(message),
            Error::CannotRebase(_) | Error::OtherParent { .. } => Self::invalid(message),
            Error::Overtaken => Self::aborted(message),
            Error::Io { source, .. } => from_io(&source, message),
            Error::Ledger(fault) => fault.into(),
            Error::Refused(error) => error,
        }
    }
}

fn from_io(source: &std::io::Error, message: String) -> contracts::Error {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded => contracts::Error::exhausted(format!(
            "{message}: no bytes or inodes are left on the device of the snapshots; remove images or containers, and collect garbage (POST /v1/gc)"
        )),
        _ if matches!(source.raw_os_error(), Some(23 | 24)) => contracts::Error::exhausted(
            format!("{message}: raise the limit of open files, or try again with less at a time"),
        ),
        PermissionDenied => contracts::Error::denied(message),
        _ => contracts::Error::internal(message),
    }
}
