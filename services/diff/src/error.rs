//! What can go wrong between a layer and a snapshot.

use contracts::Code;
use std::io;

/// A failure to apply, compare or look up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// One archive entry could not be extracted; `cause` says why.
    #[error("layer entry {name}: {cause}")]
    Entry {
        /// The entry's name as it stands in the archive, shortened when huge.
        name: String,
        /// Why.
        cause: Box<Error>,
    },
    /// The bytes are no tar archive, or break its rules.
    #[error("layer: byte {offset} of its tar: {what}")]
    Malformed {
        /// Offset in the uncompressed archive.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// An entry breaks a rule: its name, its link, its ids.
    #[error("{0}")]
    Refused(String),
    /// The stream ends in the middle of something.
    #[error("layer is truncated: its {0} ends too early, fetch it again")]
    Truncated(&'static str),
    /// The compressed stream is damaged.
    #[error("layer is damaged: {0}")]
    Damaged(String),
    /// The compressed bytes could not be read, or stopped arriving.
    #[error("layer could not be read: {0}")]
    Source(io::Error),
    /// A media type that is no layer, or mounts of a kind this plugin does not know.
    #[error("{0}")]
    Unsupported(String),
    /// The archive is larger than the caller allows.
    #[error("layer has more than {most} {what}, raise the limit to accept it")]
    Limit {
        /// `bytes`, `entries`…
        what: &'static str,
        /// The limit.
        most: u64,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The path is not there.
    #[error("{0} is not in this snapshot")]
    Missing(String),
    /// The caller gave up.
    #[error("cancelled")]
    Cancelled,
}

/// What every function of this crate's core answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Names the archive entry that failed; an error that names one already stays as it is.
    pub(crate) fn entry(self, name: &[u8]) -> Self {
        match self {
            Self::Entry { .. } | Self::Truncated(_) | Self::Damaged(_) | Self::Source(_) => self,
            Self::Limit { .. } | Self::Cancelled | Self::Malformed { .. } => self,
            cause => Self::Entry {
                name: shown(name),
                cause: Box::new(cause),
            },
        }
    }

    /// Whether no descriptor was left, in the machine (`ENFILE`) or in this process (`EMFILE`).
    fn out_of_descriptors(&self) -> bool {
        match self {
            Self::Entry { cause, .. } => cause.out_of_descriptors(),
            Self::Io { source, .. } => matches!(source.raw_os_error(), Some(23 | 24)),
            _ => false,
        }
    }

    /// Whether the file system had no room left.
    pub fn out_of_space(&self) -> bool {
        match self {
            Self::Entry { cause, .. } => cause.out_of_space(),
            Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            _ => false,
        }
    }
}

impl Error {
    /// The class under which users meet it.
    fn code(&self) -> Code {
        if self.out_of_descriptors() {
            return Code::ResourceExhausted;
        }
        match self {
            Self::Entry { cause, .. } => cause.code(),
            Self::Malformed { .. } | Self::Truncated(_) | Self::Damaged(_) => Code::DataLoss,
            Self::Refused(_) | Self::Unsupported(_) => Code::InvalidArgument,
            Self::Source(_) => Code::Unavailable,
            Self::Limit { .. } => Code::ResourceExhausted,
            Self::Io { .. } if self.out_of_space() => Code::ResourceExhausted,
            Self::Io { .. } => Code::Internal,
            Self::Missing(_) => Code::NotFound,
            Self::Cancelled => Code::Cancelled,
        }
    }
}

impl From<Error> for contracts::Error {
    fn from(error: Error) -> Self {
        let way_out = if error.out_of_space() {
            ": no bytes or inodes are left on the device of the snapshots; remove images or containers, and collect garbage (POST /v1/gc)"
        } else if error.out_of_descriptors() {
            ": raise the limit of open files, or try again with less at a time"
        } else {
            ""
        };
        contracts::Error::new(error.code(), format!("{error}{way_out}"))
    }
}

/// Unwraps an error of ours that travelled through an `io::Read`.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Truncated("compressed stream")
            }
            Err(error) => Self::Damaged(error.to_string()),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}

/// Says what a failed system call was about.
pub(crate) trait Doing<T> {
    /// Names what was being done.
    fn doing(self, what: &str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|error| Error::Io {
            what: what.to_owned(),
            source: error.into(),
        })
    }
}

/// A name from an archive, fit for a message: valid UTF-8, no control characters, not endless.
pub(crate) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(256)]);
    let printable = text
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect::<String>();
    if name.len() > 256 {
        printable + "…"
    } else {
        printable
    }
}
