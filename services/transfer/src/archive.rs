//! Images as tar archives: OCI layouts and what `docker save` writes, in and out.
//!
//! ```text
//! oci-layout             {"imageLayoutVersion":"1.0.0"}
//! index.json             names → manifests (OCI)
//! manifest.json          names → config and layers (Docker; a path each)
//! blobs/sha256/<hex>     everything that index.json leads to
//! <id>/layer.tar         a layer of old docker archives, or a link to another one's
//! ```
//! Archives are read and written in a thread of their own, for they block; that thread asks the asynchronous side for
//! pipes into the content store. Entries come in any order, so names are only resolved at the end.
//! Source: OCI image-spec, image-layout.md; Docker, image tarball format v1.2.

pub(crate) mod compression;
pub(crate) mod contents;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod tape;

use rustix::event::{PollFd, PollFlags, poll};
use std::{
    fs::File,
    io::{self, Read, Write},
};

/// A descriptor that somebody gave us, as blocking, whatever its other holders have set.
pub(crate) struct Blocking(pub(crate) File);

impl Blocking {
    fn wait(&self, what: PollFlags) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.0, what)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN)?
                }
                result => return result,
            }
        }
    }
}

impl Write for Blocking {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::OUT)?
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
