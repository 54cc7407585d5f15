//! The socket on which a runtime hands back the master of a new terminal.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::{About, Error, Result};
use crate::stdio::reach;

/// Listens at a path of its own inside the bundle, for one runtime, once.
pub(crate) struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    pub(crate) fn bind(bundle: &Path, name: &str) -> Result<Self> {
        let path = bundle.join(format!("console-{name}.sock"));
        let _ = fs::remove_file(&path);
        let (_folder, short) = reach(&path)?;
        let listener = UnixListener::bind(short).about(path.display())?;
        listener.set_nonblocking(true).about(path.display())?;
        Ok(Self { path, listener })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Takes the master; the runtime has sent it before its create or exec returned.
    pub(crate) fn receive(self) -> Result<OwnedFd> {
        let (stream, _) = self
            .listener
            .accept()
            .about("the runtime sent no terminal")?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        let mut data = [IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)
            .about("console socket")?;
        let mut fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        fds.next()
            .ok_or_else(|| Error::internal("the runtime sent no terminal"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
