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

    /// What went wrong below us: `RESOURCE_EXHAUSTED` where the kernel has no more of something, else `INTERNAL`.
    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self::new(class(&message), message)
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

/// What the kernel has no more of is not a mistake of anybody: no memory, no descriptors, no room.
const EXHAUSTED: [nix::errno::Errno; 5] = [
    nix::errno::Errno::ENOMEM,
    nix::errno::Errno::ENFILE,
    nix::errno::Errno::EMFILE,
    nix::errno::Errno::ENOSPC,
    nix::errno::Errno::EDQUOT,
];

/// By their text, for the runtimes below hand on nothing else.
fn class(message: &str) -> Code {
    let says = |errno: &nix::errno::Errno| {
        let number = format!("os error {}", *errno as i32);
        message.contains(&format!("({number})")) || message.contains(errno.desc())
    };
    match EXHAUSTED.iter().any(says) {
        true => Code::RESOURCE_EXHAUSTED,
        false => Code::INTERNAL,
    }
}

/// Names the object an I/O error is about.
pub(crate) trait About<T> {
    /// Turns the error into [`Error::internal`] that starts with `what`.
    fn about(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> About<T> for std::result::Result<T, E> {
    fn about(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::internal(format!("{what}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_as_such_however_deep_it_was_met() {
        let full = std::io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let told = Err::<(), _>(full).about("/b/config.json").unwrap_err();
        assert_eq!(told.code, Code::RESOURCE_EXHAUSTED);
        let deep = Error::internal("create: failed to write: EMFILE: Too many open files");
        assert_eq!(deep.code, Code::RESOURCE_EXHAUSTED);
        let other = std::io::Error::from_raw_os_error(nix::libc::EACCES);
        let told = Err::<(), _>(other).about("x").unwrap_err();
        assert_eq!(told.code, Code::INTERNAL);
    }
}
