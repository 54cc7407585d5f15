//! One error for everything: a class the caller can act on, and a sentence.

use std::fmt;

use ttrpc::Code;

/// What went wrong, with containerd's error class.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    pub(crate) code: Code,
    pub(crate) message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
        }
    }

    pub(crate) fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    pub(crate) fn exists(message: impl fmt::Display) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    pub(crate) fn precondition(message: impl fmt::Display) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    pub(crate) fn invalid(message: impl fmt::Display) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    pub(crate) fn unimplemented(message: impl fmt::Display) -> Self {
        Self::new(Code::UNIMPLEMENTED, message)
    }

    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self::new(Code::INTERNAL, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code, error.message))
    }
}

/// Names the object an I/O error is about.
pub(crate) trait About<T> {
    /// Turns the error into an internal one that starts with `what`.
    fn about(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> About<T> for std::result::Result<T, E> {
    fn about(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::internal(format!("{what}: {error}")))
    }
}
