//! Room that blobs leave on the device for the records of all plugins: without it nobody could note that there is none,
//! and nothing could be removed to make some.

use rustix::fs::fstatvfs;
use std::{fs::File, io};

/// Bytes that are left: as much as every store together grows by in a busy minute.
pub(crate) const LEFT: u64 = 8 << 20;

/// Errors: `StorageFull` when the device of `file` has little room.
pub(crate) fn check(file: &File) -> io::Result<()> {
    let device = fstatvfs(file)?;
    match device.f_bavail.saturating_mul(device.f_frsize) < LEFT {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}
