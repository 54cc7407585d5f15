//! Whole directory trees: removed, measured, copied. Blocks; follows no symbolic link; leaves no tree it was given.

mod copy;
mod remove;
mod usage;

pub(crate) use copy::copy;
pub(crate) use remove::remove;
pub(crate) use usage::usage;

use rustix::fs::{Mode, OFlags};
use rustix::io;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// How a directory is opened for its entries.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn open_directory(at: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    rustix::fs::openat(at, name, DIRECTORY, Mode::empty())
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
