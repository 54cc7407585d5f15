//! What can go wrong in the content store.

use contracts::{Digest, Error, Ref};
use std::{io, path::Path, path::PathBuf};

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("content {0}: not in this namespace")]
    Missing(Digest),
    #[error("content {0}: is here already")]
    Exists(Digest),
    #[error(
        "content {digest}: {found} bytes on disk, {size} in its record; pull an image that has it again"
    )]
    Damaged {
        digest: Digest,
        found: u64,
        size: u64,
    },
    #[error("content {0}: its bytes are gone from disk; pull an image that has it again")]
    Gone(Digest),
    #[error("content {digest}: is damaged, {what}; pull an image that has it again")]
    Rotten { digest: Digest, what: String },
    #[error("finding {0}: {1}")]
    NotMine(String, &'static str),
    #[error("ingest {0}: not there")]
    NoIngest(Ref),
    #[error("ingest {0}: another writer holds it; follow it, or try again")]
    Busy(Ref),
    #[error("ingest {0}: was dropped")]
    Dropped(Ref),
    #[error("ingest {name}: was opened for {what} {known}, not {given}; restart or abort it")]
    Differs {
        name: Ref,
        what: &'static str,
        known: String,
        given: String,
    },
    #[error("ingest {0}: its pipe is still open; close every copy of it before the commit")]
    Open(Ref),
    #[error("ingest {0}: its writer was interrupted; name size or digest, or go on at its offset")]
    Interrupted(Ref),
    #[error("ingest {name}: size {found}, expected {size}")]
    Size { name: Ref, found: u64, size: u64 },
    #[error("ingest {name}: more than the {size} bytes that were announced")]
    TooLong { name: Ref, size: u64 },
    #[error("ingest {name}: digest {found}, expected {expected}")]
    Wrong {
        name: Ref,
        found: Digest,
        expected: Digest,
    },
    #[error(
        "ingest {0}: no space left on the device of the content store, bytes or inodes; remove images or containers, collect garbage (POST /v1/gc), and go on at its offset"
    )]
    Full(Ref),
    #[error("ingest {name}: {most} pipes are open already; try again later")]
    Writers { name: Ref, most: u32 },
    #[error("generation {0}: is not open here; begin again")]
    Generation(u64),
    #[error("{0}")]
    Filter(#[from] filter::FilterError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Disk(#[from] ledger::Fault),
    #[error(transparent)]
    Refused(#[from] Error),
}

impl Trouble {
    /// For `map_err` around an operation on `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// Whether it says that bytes are not those of their digest.
    pub(crate) fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::Gone(_) | Self::Rotten { .. }
        )
    }

    pub(crate) fn worker(error: tokio::task::JoinError) -> Self {
        Self::Refused(Error::internal(format!("disk work: {error}")))
    }
}

/// Says whether a device or a quota is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// `ENFILE` and `EMFILE`: no descriptor is left, in the machine or in this process.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        let message = trouble.to_string();
        match trouble {
            Trouble::Missing(_) | Trouble::NoIngest(_) => Error::not_found(message),
            Trouble::Exists(_) => Error::exists(message),
            Trouble::Damaged { .. }
            | Trouble::Gone(_)
            | Trouble::Rotten { .. }
            | Trouble::Wrong { .. } => Error::data_loss(message),
            Trouble::NotMine(..) => Error::precondition(message),
            Trouble::Busy(_) | Trouble::Dropped(_) => Error::aborted(message),
            Trouble::Differs { .. } | Trouble::Filter(_) => Error::invalid(message),
            Trouble::Open(_)
            | Trouble::Interrupted(_)
            | Trouble::Size { .. }
            | Trouble::TooLong { .. }
            | Trouble::Generation(_) => Error::precondition(message),
            Trouble::Full(_) | Trouble::Writers { .. } => Error::exhausted(message),
            Trouble::Io { source, .. } if is_full(&source) => Error::exhausted(format!(
                "{message}: remove images or containers, and collect garbage (POST /v1/gc)"
            )),
            Trouble::Io { source, .. } if is_out_of_descriptors(&source) => {
                Error::exhausted(format!(
                    "{message}: raise the limit of open files, or try again with less at a time"
                ))
            }
            Trouble::Io { .. } => Error::internal(message),
            Trouble::Disk(fault) => fault.into(),
            Trouble::Refused(error) => error,
        }
    }
}
