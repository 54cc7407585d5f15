//! The plugin: contract messages ↔ the core.

use crate::apply::Limits;
use crate::config::Config;
use crate::error::{Doing, Error, Result};
use crate::{applying, comparing, mounts, root, settle, verifying, view};
use actix::{Actor, Context, Handler};
use bus::{Bus, Call, Open, Reply, Routes, Streaming, on_disk};
use contracts::Mount;
use contracts::diff::{Apply, Compare, Found, Lookup, Settle, Sync, Verify};
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Applies layers and makes them. Holds no state but what is running.
pub struct DiffService {
    pub(crate) bus: Bus,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) limits: Limits,
    /// Whether anything is flushed.
    pub(crate) sync: bool,
}

impl DiffService {
    /// Makes the actor.
    pub fn new(config: &Config, bus: Bus) -> Self {
        let limits = Limits {
            bytes: config.max_layer_bytes,
            entries: config.max_layer_entries,
        };
        let room = Arc::new(Semaphore::new(config.parallel.max(1)));
        Self {
            bus,
            room,
            limits,
            sync: config.sync,
        }
    }
}

/// What this plugin answers.
pub(crate) fn routes() -> Routes<DiffService> {
    Routes::default()
        .stream::<Apply>()
        .on::<Settle>()
        .stream::<Compare>()
        .on::<Lookup>()
        .on::<Sync>()
        .stream::<Verify>()
}

impl Actor for DiffService {
    type Context = Context<Self>;
}

impl Handler<Open<Apply>> for DiffService {
    type Result = Streaming<Apply>;
    fn handle(&mut self, open: Open<Apply>, _: &mut Context<Self>) -> Self::Result {
        let work = applying::Work::new(self.bus.clone(), self.room.clone(), self.limits);
        Box::pin(async move { Ok(work.start(open.ctx, open.body)) })
    }
}

impl Handler<Open<Compare>> for DiffService {
    type Result = Streaming<Compare>;
    fn handle(&mut self, open: Open<Compare>, _: &mut Context<Self>) -> Self::Result {
        let work = comparing::Work::new(self.bus.clone(), self.room.clone());
        Box::pin(async move { Ok(work.start(open.ctx, open.body)) })
    }
}

impl Handler<Call<Settle>> for DiffService {
    type Result = Reply<Settle>;
    fn handle(&mut self, call: Call<Settle>, _: &mut Context<Self>) -> Self::Result {
        let Settle {
            mounts,
            parent,
            implied,
        } = call.body;
        on_disk(move || -> Result<()> {
            if implied.is_empty() || parent.is_empty() {
                return Ok(());
            }
            let upper = mounts::target(&mounts)?.open()?;
            let parent = view::view(&parent)?;
            settle::settle(upper.as_fd(), parent.as_fd(), &implied)
        })
    }
}

impl Handler<Call<Lookup>> for DiffService {
    type Result = Reply<Lookup>;
    fn handle(&mut self, call: Call<Lookup>, _: &mut Context<Self>) -> Self::Result {
        let Lookup {
            mounts,
            path,
            limit,
        } = call.body;
        on_disk(move || {
            let bytes = view::lookup(&mounts, &path, limit)?;
            let size = bytes.len() as u64;
            sealed(&bytes).map(|fd| Found {
                size,
                fd: fd.into(),
            })
        })
    }
}

impl Handler<Call<Sync>> for DiffService {
    type Result = Reply<Sync>;
    fn handle(&mut self, call: Call<Sync>, _: &mut Context<Self>) -> Self::Result {
        let (mounts, sync) = (call.body.mounts, self.sync);
        on_disk(move || match sync {
            true => flush(&mounts),
            false => Ok(()),
        })
    }
}

/// Flushes each file system that the mounts are on, once.
fn flush(mounts: &[Mount]) -> Result<()> {
    let mut flushed = Vec::new();
    for dir in mounts::layers(mounts)? {
        let device = rustix::fs::fstat(&dir).doing("look at a layer")?.st_dev;
        if !flushed.contains(&device) {
            root::sync(&dir)?;
            flushed.push(device);
        }
    }
    faults::point("diff.sync.flushed");
    Ok(())
}

impl Handler<Open<Verify>> for DiffService {
    type Result = Streaming<Verify>;
    fn handle(&mut self, open: Open<Verify>, _: &mut Context<Self>) -> Self::Result {
        let work = verifying::Work {
            bus: self.bus.clone(),
            room: self.room.clone(),
            limits: self.limits,
            sync: self.sync,
        };
        Box::pin(async move { Ok(work.start(open.ctx, open.body)) })
    }
}

/// A copy in memory that nobody can change any more: the file itself may belong to a running container.
fn sealed(bytes: &[u8]) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create(c"lookup", flags).doing("make a copy")?);
    let written = copy.write_all(bytes).and_then(|()| copy.rewind());
    written.map_err(|source| Error::Io {
        what: "make a copy".to_owned(),
        source,
    })?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals).doing("seal a copy")?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_contract_has_a_route() {
        assert_eq!(
            routes().missing::<contracts::diff::Diff>(),
            Vec::<&str>::new()
        );
    }
}
