//! File descriptors as values inside messages: big things travel as descriptors, never as frames.
//!
//! An [`Fd`] serialises as its index in the frame's list of descriptors. The codec opens a table with
//! [`sending`] or [`receiving`] around one message; outside of such a scope (JSON, a store) an `Fd` has no
//! meaning and (de)serialising it is an error, which keeps descriptors from being written to disk.

use serde::{Deserialize, Serialize};
use std::{cell::RefCell, os::fd::OwnedFd, sync::Arc};

/// A shared, open file descriptor. Cloning shares it; the last owner closes it.
#[derive(Clone, Debug)]
pub struct Fd(Arc<OwnedFd>);

impl Fd {
    /// Borrows the descriptor.
    pub fn as_owned(&self) -> &OwnedFd {
        &self.0
    }
    /// Takes the descriptor out, duplicating it only when it is shared. Errors: the `dup` failed (`EMFILE`).
    pub fn into_owned(self) -> std::io::Result<OwnedFd> {
        Arc::try_unwrap(self.0).or_else(|shared| shared.try_clone())
    }
}

impl From<OwnedFd> for Fd {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }
}

impl std::os::fd::AsFd for Fd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

thread_local! {
    static OUTGOING: RefCell<Option<Vec<Fd>>> = const { RefCell::new(None) };
    static INCOMING: RefCell<Option<Vec<Option<Fd>>>> = const { RefCell::new(None) };
}

/// Runs `encode` with an open table and returns its result with the descriptors it met, in index order.
pub fn sending<T>(encode: impl FnOnce() -> T) -> (T, Vec<Fd>) {
    let outer = OUTGOING.replace(Some(Vec::new()));
    let result = encode();
    let met = OUTGOING.replace(outer).unwrap_or_default();
    (result, met)
}

/// Runs `decode` with `fds` as the table; a descriptor that no message names is closed.
pub fn receiving<T>(fds: Vec<Fd>, decode: impl FnOnce() -> T) -> T {
    let outer = INCOMING.replace(Some(fds.into_iter().map(Some).collect()));
    let result = decode();
    INCOMING.replace(outer);
    result
}

impl Serialize for Fd {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let index = OUTGOING.with_borrow_mut(|table| {
            let table = table.as_mut()?;
            table.push(self.clone());
            u32::try_from(table.len() - 1).ok()
        });
        match index {
            Some(index) => serializer.serialize_u32(index),
            None => Err(serde::ser::Error::custom(
                "a file descriptor travels only over the bus",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let index = u32::deserialize(deserializer)? as usize;
        INCOMING
            .with_borrow_mut(|table| table.as_mut()?.get_mut(index)?.take())
            .ok_or_else(|| {
                serde::de::Error::custom(format!(
                    "no file descriptor {index} came with this message"
                ))
            })
    }
}
