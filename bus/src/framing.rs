//! Frames ↔ socket. The only file that reads and writes bus sockets.
//!
//! A message is cut into fragments of at most 64 KiB, each behind an eight-byte header: length (u32, little-endian),
//! flags (bit 0: last fragment), number of descriptors, two zero bytes. Descriptors ride on the first byte of the
//! message's first fragment, so every receive is a `recvmsg`: a plain read would drop them.

use contracts::{Error, Fd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};
use tokio::{io::Interest, net::UnixStream};

/// Most bytes of one fragment including its header: it fits a socket buffer several times.
pub(crate) const FRAGMENT: usize = 64 << 10;
/// Most descriptors of one message.
pub(crate) const MAX_FDS: usize = 16;
/// How long to wait until other readers have taken descriptors off their sockets.
const PAUSE: Duration = Duration::from_millis(2);
const HEADER: usize = 8;
const LAST: u8 = 1;

/// An encoded message and the descriptors that travel with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<Fd>,
}

impl Packet {
    /// A message with its descriptors. Errors: `ResourceExhausted` for more than [`MAX_FDS`] of them.
    pub(crate) fn new(bytes: Vec<u8>, fds: Vec<Fd>) -> contracts::Result<Self> {
        if fds.len() > MAX_FDS {
            return Err(Error::exhausted(format!(
                "{} file descriptors in one message, at most {MAX_FDS} may travel together",
                fds.len()
            )));
        }
        Ok(Self { bytes, fds })
    }

    /// Lays the message out as fragments.
    pub(crate) fn fragments(&self, out: &mut Vec<u8>) {
        let mut chunks = self.bytes.chunks(FRAGMENT - HEADER).peekable();
        let mut fds = self.fds.len() as u8;
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let last = chunks.peek().is_none();
            out.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
            out.extend_from_slice(&[if last { LAST } else { 0 }, fds, 0, 0]);
            out.extend_from_slice(chunk);
            fds = 0;
            if last {
                return;
            }
        }
    }
}

/// Writes packets, as many per system call as have no descriptors.
pub(crate) async fn write(stream: &UnixStream, packets: &mut VecDeque<Packet>) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(packet) = packets.pop_front() {
        if !packet.fds.is_empty() {
            send(stream, &buffer, &[]).await?;
            buffer.clear();
        }
        packet.fragments(&mut buffer);
        if !packet.fds.is_empty() || buffer.len() >= FRAGMENT {
            send(stream, &buffer, &packet.fds).await?;
            buffer.clear();
        }
    }
    send(stream, &buffer, &[]).await
}

pub(crate) async fn send(stream: &UnixStream, mut bytes: &[u8], fds: &[Fd]) -> io::Result<()> {
    let mut fds = fds;
    while !bytes.is_empty() {
        let some = || send_some(stream.as_fd(), bytes, fds);
        match stream.async_io(Interest::WRITABLE, some).await {
            Ok(sent) => {
                bytes = &bytes[sent..];
                fds = &[];
            }
            // The kernel bounds what a user has under way in all sockets: readers make room.
            Err(e) if e.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// One `sendmsg`; descriptors go with its first byte.
fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[Fd]) -> io::Result<usize> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many file descriptors in one message",
        ));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

/// Puts received bytes and descriptors together into messages.
#[derive(Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    start: usize,
    /// What came with the messages that announce descriptors, in their order. A batch is short when this process has
    /// no room for more: its message then fails, and those behind it do not.
    batches: VecDeque<Vec<OwnedFd>>,
    message: Vec<u8>,
    message_fds: Vec<Fd>,
}

impl Reader {
    /// Waits for the next message; `None` at the end of the stream.
    ///
    /// Errors: the socket failed, or the peer sent something that is no message.
    pub(crate) async fn next(&mut self, stream: &UnixStream) -> io::Result<Option<Packet>> {
        loop {
            if let Some(packet) = self.take()? {
                return Ok(Some(packet));
            }
            let received = stream
                .async_io(Interest::READABLE, || self.receive(stream.as_fd()))
                .await?;
            if received == 0 {
                return Ok(None);
            }
        }
    }

    /// The same on a blocking socket.
    pub(crate) fn next_blocking(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
        loop {
            if let Some(packet) = self.take()? {
                return Ok(Some(packet));
            }
            if self.receive(socket)? == 0 {
                return Ok(None);
            }
        }
    }

    fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let filled = self.bytes.len();
        // Small messages are the rule: the buffer grows only when a large fragment has announced itself.
        let room = if filled > HEADER { FRAGMENT } else { 4096 };
        self.bytes.resize(filled + room, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut self.bytes[filled..])];
        let result =
            rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let received = result.as_ref().map_or(0, |message| message.bytes);
        self.bytes.truncate(filled + received);
        let mut batch = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                batch.extend(fds);
            }
        }
        if !batch.is_empty() || result?.flags.contains(ReturnFlags::CTRUNC) {
            self.batches.push_back(batch);
        }
        // One for the message that is read and one for that behind it: more was never announced.
        if self.batches.len() > 2 {
            return Err(malformed(
                "file descriptors from peer that belong to no message",
            ));
        }
        Ok(received)
    }

    fn take(&mut self) -> io::Result<Option<Packet>> {
        loop {
            let Some((chunk_end, last, fds)) = self.header()? else {
                return Ok(None);
            };
            self.message
                .extend_from_slice(&self.bytes[self.start + HEADER..chunk_end]);
            self.start = chunk_end;
            let batch = match fds {
                0 => Some(Vec::new()),
                _ => self.batches.pop_front(),
            };
            let (Some(batch), true) = (batch, self.message.len() <= codec::LIMIT + FRAGMENT) else {
                return Err(malformed("malformed message from peer"));
            };
            if batch.len() > fds || self.message_fds.len() + fds > MAX_FDS {
                return Err(malformed("more file descriptors from peer than announced"));
            }
            self.message_fds.extend(batch.into_iter().map(Fd::from));
            if last {
                let bytes = std::mem::take(&mut self.message);
                return Ok(Some(Packet {
                    bytes,
                    fds: std::mem::take(&mut self.message_fds),
                }));
            }
        }
    }

    /// End of the next complete fragment, whether it is the last of its message, and how many descriptors it has.
    fn header(&self) -> io::Result<Option<(usize, bool, usize)>> {
        let rest = &self.bytes[self.start..];
        let Some(&[a, b, c, d, flags, fds, ..]) = rest.get(..HEADER) else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > FRAGMENT - HEADER {
            return Err(malformed(&format!("fragment of {length} bytes from peer")));
        }
        let end = self.start + HEADER + length;
        Ok((end <= self.bytes.len()).then_some((end, flags & LAST != 0, fds as usize)))
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
