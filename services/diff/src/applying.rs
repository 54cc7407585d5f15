//! One `diff.apply`: the layer is followed and extracted, its progress told, its caller watched.

use crate::apply::{self, Limits, Options, Watch};
use crate::following::Following;
use crate::growing::Growing;
use crate::mounts::{self, Target};
use crate::stream::Compression;
use crate::telling::{PROGRESS, Tell, attended, place, telling};
use crate::verifying;
use bus::{Bus, Ctx, Items};
use contracts::diff::{Applied, Apply, Applying};
use contracts::{Code, Digest, Error, Result};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// What an extraction needs.
pub(crate) struct Work {
    bus: Bus,
    room: Arc<Semaphore>,
    limits: Limits,
}

impl Work {
    pub(crate) fn new(bus: Bus, room: Arc<Semaphore>, limits: Limits) -> Self {
        Self { bus, room, limits }
    }

    /// Begins; dropping the stream stops the extraction.
    pub(crate) fn start(self, ctx: Ctx, body: Apply) -> Items<Apply> {
        telling::<Apply>(async move |tell| self.run(ctx, body, tell).await)
    }

    async fn run(self, ctx: Ctx, body: Apply, tell: &Tell<Apply>) -> Result<Applying> {
        let compression = Compression::of(&body.layer.media_type)?;
        let target = mounts::target(&body.mounts)?;
        let begun = Following::begin(self.bus.clone(), ctx.clone(), &body.layer, body.r#ref);
        let (source, mut following) = attended(tell, begun).await?;
        let place = place(tell, &self.room).await?;
        let mut options = Options::new(target.whiteouts);
        options.limits = self.limits;
        options.source = Some(following.growth().clone());
        let watch = options.watch.clone();
        let mut work = extraction(source, compression, target, options);
        let done = drive(&mut work, &mut following, &watch, tell).await;
        drop(place);
        faults::point("diff.apply.extracted");
        let applied = match done {
            Ok(applied) => applied,
            Err(error) => return Err(self.explained(&ctx, error, &body.layer.digest).await),
        };
        let applied = Applied {
            diff_id: Digest::new(applied.diff_id)?,
            size: applied.size,
            implied: applied.implied,
        };
        if let Err(error) = verified(&applied, body.diff_id.as_ref(), &body.layer.digest) {
            return Err(self.explained(&ctx, error, &body.layer.digest).await);
        }
        Ok(Applying {
            offset: body.layer.size,
            applied: Some(applied),
        })
    }
}

impl Work {
    /// Names the layer; bytes that do not fit are shown to the content store, which knows whether they are damaged.
    async fn explained(&self, ctx: &Ctx, error: Error, layer: &Digest) -> Error {
        if error.is(Code::DataLoss)
            && let Err(damaged) = verifying::doubt(&self.bus, ctx, layer).await
        {
            return damaged.context(format!("layer {layer}"));
        }
        match error.message.contains(layer.as_str()) {
            true => error,
            false => error.context(format!("layer {layer}")),
        }
    }
}

type Extraction = JoinHandle<crate::Result<apply::Applied>>;

fn extraction(
    source: Growing,
    compression: Compression,
    target: Target,
    options: Options,
) -> Extraction {
    tokio::task::spawn_blocking(move || {
        let root = target.open()?;
        apply::apply(source, compression, root.as_fd(), &options)
    })
}

/// Waits for the extraction, meanwhile feeds it, and stops it when the caller goes. It has ended when this returns.
async fn drive(
    work: &mut Extraction,
    following: &mut Following,
    watch: &Watch,
    tell: &Tell<Apply>,
) -> Result<apply::Applied> {
    let mut clock = tokio::time::interval(PROGRESS);
    let mut lost = None;
    let growth = following.growth().clone();
    loop {
        tokio::select! {
            done = &mut *work => {
                let done = done.map_err(|e| Error::internal(format!("extraction: {e}")))?;
                // what the content store said is the cause of what the extraction says
                return done.map_err(|error| lost.unwrap_or_else(|| error.into()));
            }
            error = following.feed(), if lost.is_none() => lost = Some(error),
            () = tell.closed(), if !watch.cancelled.load(Ordering::Relaxed) => {
                watch.cancelled.store(true, Ordering::Relaxed);
                growth.fail("the caller has gone");
            }
            _ = clock.tick() => {
                // a full queue means that the caller has news enough
                let _ = tell.try_send(Ok(Applying { offset: growth.consumed(), applied: None }));
            }
        }
    }
}

fn verified(applied: &Applied, wanted: Option<&Digest>, layer: &Digest) -> Result<()> {
    match wanted {
        Some(wanted) if *wanted != applied.diff_id => Err(Error::data_loss(format!(
            "layer {layer}: its diff id is {}, the image config says {wanted}",
            applied.diff_id
        ))),
        _ => Ok(()),
    }
}
