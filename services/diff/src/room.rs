//! Room that extracted files leave on the device for the records of all plugins: without it nobody could note that there
//! is none, and nothing could be removed to make some.

use rustix::fs::fstatvfs;
use std::{io, os::fd::AsFd};

/// Bytes that are left: as much as every store together grows by in a busy minute.
const LEFT: u64 = 8 << 20;
/// Bytes that may be written without another look at the device.
const STRETCH: u64 = 1 << 20;

/// Looks at the device now and then.
#[derive(Debug)]
pub(crate) struct Room {
    unseen: u64,
}

impl Room {
    /// The first write looks.
    pub(crate) fn new() -> Self {
        Self { unseen: STRETCH }
    }

    /// Notes that `length` bytes are about to be written. Errors: `StorageFull` when there is little room.
    pub(crate) fn take(&mut self, file: impl AsFd, length: usize) -> io::Result<()> {
        self.unseen += length as u64;
        if self.unseen < STRETCH {
            return Ok(());
        }
        self.unseen = 0;
        let device = fstatvfs(file)?;
        match device.f_bavail.saturating_mul(device.f_frsize) < LEFT {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}
