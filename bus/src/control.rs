//! The control link: typed messages between the supervisor and a process that hosts plugins, over the process's stdin.

use crate::framing::{self, Packet, Reader};
use contracts::{Error, fd};
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::VecDeque, marker::PhantomData, os::fd::AsFd};
use tokio::net::UnixStream;

/// Writes `Out` to one end of a control link. Sends of one task at a time: hold it in one place.
pub struct Sender<Out> {
    stream: std::rc::Rc<UnixStream>,
    out: PhantomData<Out>,
}

/// Reads `In` from one end of a control link.
pub struct Receiver<In> {
    stream: std::rc::Rc<UnixStream>,
    reader: Reader,
    input: PhantomData<In>,
}

/// Splits a connected, non-blocking socket into both directions of a control link.
pub fn split<Out: Serialize, In: DeserializeOwned>(
    stream: UnixStream,
) -> (Sender<Out>, Receiver<In>) {
    let stream = std::rc::Rc::new(stream);
    let sender = Sender {
        stream: stream.clone(),
        out: PhantomData,
    };
    (
        sender,
        Receiver {
            stream,
            reader: Reader::default(),
            input: PhantomData,
        },
    )
}

impl<Out: Serialize> Sender<Out> {
    /// Sends one message. Errors: `Unavailable` when the other end is gone, `Internal` when it cannot be encoded.
    pub async fn send(&self, message: &Out) -> contracts::Result<()> {
        let packet = pack(message)?;
        framing::write(&self.stream, &mut VecDeque::from([packet]))
            .await
            .map_err(|e| Error::unavailable(format!("control link: {e}")))
    }
}

impl<In: DeserializeOwned> Receiver<In> {
    /// Waits for the next message; `None` when the other end is gone. Errors: `Internal` for a malformed message.
    pub async fn next(&mut self) -> contracts::Result<Option<In>> {
        match self.reader.next(&self.stream).await {
            Ok(Some(packet)) => unpack(packet).map(Some),
            Ok(None) => Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(Error::internal(format!("control link: {e}")))
            }
            Err(_) => Ok(None),
        }
    }
}

/// Reads one message from a blocking socket, before any runtime exists.
pub(crate) fn receive_blocking<In: DeserializeOwned>(
    reader: &mut Reader,
    socket: impl AsFd,
) -> contracts::Result<In> {
    match reader.next_blocking(socket.as_fd()) {
        Ok(Some(packet)) => unpack(packet),
        Ok(None) => Err(Error::unavailable("control link: closed before boot")),
        Err(e) => Err(Error::internal(format!("control link: {e}"))),
    }
}

/// Continues a link whose first messages were read by [`receive_blocking`].
pub(crate) fn resume<Out: Serialize, In: DeserializeOwned>(
    stream: UnixStream,
    reader: Reader,
) -> (Sender<Out>, Receiver<In>) {
    let (sender, mut receiver) = split(stream);
    receiver.reader = reader;
    (sender, receiver)
}

pub(crate) fn pack<T: Serialize>(message: &T) -> contracts::Result<Packet> {
    let (bytes, fds) = fd::sending(|| codec::encode(message));
    let bytes = bytes.map_err(|e| Error::exhausted(format!("message: {e}")))?;
    Packet::new(bytes, fds)
}

pub(crate) fn unpack<T: DeserializeOwned>(packet: Packet) -> contracts::Result<T> {
    let Packet { bytes, fds } = packet;
    fd::receiving(fds, || codec::decode(&bytes))
        .map_err(|e| Error::internal(format!("message from peer: {e}")))
}
