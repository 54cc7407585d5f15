//! The bytes of a layer, from the content store, while they may still be arriving.

use crate::growing::{Growing, Growth};
use bus::{Bus, Ctx};
use contracts::content::{Follow, Growth as Grown, Open};
use contracts::{Code, Descriptor, Error, Fd, Ref, Result};
use futures_util::{Stream, StreamExt};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::sync::Arc;

/// How often in a row the content store may go away before any byte has come from its successor.
const PATIENCE: u32 = 5;

type Items = Pin<Box<dyn Stream<Item = Result<Grown>>>>;

/// A layer that is being followed.
pub(crate) struct Following {
    bus: Bus,
    ctx: Ctx,
    follow: Follow,
    items: Option<Items>,
    growth: Arc<Growth>,
    /// Which file it is: a writer that starts over writes another one.
    file: (u64, u64),
    broken: u32,
}

impl Following {
    /// Waits for the layer's first bytes, or opens it at once when it is committed.
    ///
    /// Errors: those of `content.open` and `content.follow`.
    pub(crate) async fn begin(
        bus: Bus,
        ctx: Ctx,
        layer: &Descriptor,
        r#ref: Option<Ref>,
    ) -> Result<(Growing, Self)> {
        let digest = layer.digest.clone();
        let growth = Growth::new();
        let Some(r#ref) = r#ref else {
            let open = Open {
                digest: digest.clone(),
            };
            let opened = bus.call(&ctx, open).await?;
            growth.finish(opened.blob.size);
            let r#ref = Ref::new("none")?;
            let follow = Follow { r#ref, digest };
            return Self::with(bus, ctx, follow, None, growth, opened.fd);
        };
        let follow = Follow { r#ref, digest };
        let mut items = bus.open(&ctx, follow.clone()).await?;
        let first = loop {
            match items.next().await.transpose()? {
                None => return Err(Error::aborted("content ended the stream of a layer")),
                Some(Grown {
                    fd: Some(fd),
                    offset,
                    complete,
                }) => {
                    grow(&growth, offset, complete);
                    break fd;
                }
                Some(_) => {}
            }
        };
        Self::with(bus, ctx, follow, Some(items), growth, first)
    }

    fn with(
        bus: Bus,
        ctx: Ctx,
        follow: Follow,
        items: Option<Items>,
        growth: Arc<Growth>,
        fd: Fd,
    ) -> Result<(Growing, Self)> {
        let file = file(fd)?;
        let following = Self {
            bus,
            ctx,
            follow,
            items,
            file: identity(&file)?,
            growth: growth.clone(),
            broken: 0,
        };
        Ok((Growing::new(file, growth), following))
    }

    pub(crate) fn growth(&self) -> &Arc<Growth> {
        &self.growth
    }

    /// Passes on news until the layer is complete or lost; then waits forever, for there is nothing more to hear.
    ///
    /// Errors: why the layer is lost; the reader has been told.
    pub(crate) async fn feed(&mut self) -> Error {
        loop {
            let error = match self.items.as_mut() {
                None => std::future::pending().await,
                Some(items) => match items.next().await {
                    Some(Ok(grown)) => match self.take(grown) {
                        Ok(()) => continue,
                        Err(error) => error,
                    },
                    Some(Err(error)) => error,
                    None if self.growth.finished() => {
                        self.items = None;
                        continue;
                    }
                    None => Error::unavailable("content ended the stream of a layer"),
                },
            };
            let error = match self.again(error).await {
                Ok(items) => {
                    self.items = Some(items);
                    continue;
                }
                Err(error) => error,
            };
            self.growth.fail(error.to_string());
            self.items = None;
            return error;
        }
    }

    fn take(&mut self, grown: Grown) -> Result<()> {
        if let Some(fd) = grown.fd {
            let over = identity(&file(fd)?)? != self.file || grown.offset < self.growth.consumed();
            if over {
                let what = format!(
                    "layer {}: its download started over, apply it again",
                    self.follow.digest
                );
                return Err(Error::aborted(what));
            }
        }
        self.broken = 0;
        grow(&self.growth, grown.offset, grown.complete);
        Ok(())
    }

    /// Turns to the successor of a content store that has died.
    async fn again(&mut self, error: Error) -> Result<Items> {
        self.broken += 1;
        if error.code != Code::Unavailable || self.broken > PATIENCE || self.growth.finished() {
            return Err(error);
        }
        let ctx = self.ctx.clone().with_deadline(bus::DEFAULT_DEADLINE);
        self.bus.open(&ctx, self.follow.clone()).await
    }
}

fn grow(growth: &Growth, offset: u64, complete: bool) {
    match complete {
        true => growth.finish(offset),
        false => growth.advance(offset),
    }
}

fn file(fd: Fd) -> Result<File> {
    let owned = fd.into_owned();
    owned
        .map(File::from)
        .map_err(|e| Error::exhausted(format!("layer descriptor: {e}")))
}

fn identity(file: &File) -> Result<(u64, u64)> {
    let stat = file.metadata();
    stat.map(|stat| (stat.dev(), stat.ino()))
        .map_err(|e| Error::internal(format!("layer descriptor: {e}")))
}
