//! Asking the kernel to begin with what a commit will wait for.
#![allow(unsafe_code)] // `sync_file_range` has no safe wrapper in the house's packages.

use std::{fs::File, os::fd::AsRawFd};

/// Bytes between two requests: large enough for the device, small beside a layer.
pub(crate) const STRETCH: u64 = 8 << 20;

/// Starts to write `length` bytes from `offset` on to the device, and does not wait. Makes nothing durable.
pub(crate) fn start(file: &File, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return;
    };
    let flags = nix::libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: the call takes numbers only, and the descriptor is open as long as `file` is borrowed.
    let _ = unsafe { nix::libc::sync_file_range(file.as_raw_fd(), offset, length, flags) };
}
