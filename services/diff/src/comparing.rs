//! One `diff.compare`: a layer is made and written into the content store.

use crate::apply::Watch;
use crate::compare::{self, Compared};
use crate::stream::Compression;
use crate::telling::{PROGRESS, Tell, place, telling};
use bus::{Bus, Ctx, DEFAULT_DEADLINE, Items};
use contracts::content::{Abort, Commit, Write};
use contracts::diff::{Compare, Comparing};
use contracts::{Descriptor, Digest, Error, Fd, Labels, Ref, Result};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Semaphore;

/// Says on a compressed layer what its diff id is. Source: containerd, labels package.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What a comparison needs.
pub(crate) struct Work {
    bus: Bus,
    room: Arc<Semaphore>,
}

impl Work {
    pub(crate) fn new(bus: Bus, room: Arc<Semaphore>) -> Self {
        Self { bus, room }
    }

    /// Begins; dropping the stream stops it.
    pub(crate) fn start(self, ctx: Ctx, body: Compare) -> Items<Compare> {
        telling::<Compare>(async move |tell| self.run(ctx, body, tell).await)
    }

    async fn run(self, ctx: Ctx, body: Compare, tell: &Tell<Compare>) -> Result<Comparing> {
        let compression = Compression::of(&body.media_type)?;
        let _place = place(tell, &self.room).await?;
        let r#ref = match &body.r#ref {
            Some(r#ref) => r#ref.clone(),
            None => Ref::new(format!("diff-{}", ctx.operation))?,
        };
        let write = Write {
            r#ref: r#ref.clone(),
            expected: None,
            total: 0,
            restart: true,
        };
        let writer = self.bus.call(&ctx, write).await?;
        let written = self.written(writer.pipe, compression, &body, tell).await;
        let ctx = ctx.with_deadline(DEFAULT_DEADLINE);
        match written {
            Ok(compared) => self.commit(&ctx, r#ref, body, compared).await,
            Err(error) => {
                // what is left of the ingest would otherwise wait for its expiry
                let _ = self.bus.call(&ctx, Abort { r#ref }).await;
                Err(error)
            }
        }
    }

    /// Writes the layer; the pipe is closed when this returns.
    async fn written(
        &self,
        pipe: Fd,
        compression: Compression,
        body: &Compare,
        tell: &Tell<Compare>,
    ) -> Result<Compared> {
        let pipe = pipe.into_owned();
        let pipe = File::from(pipe.map_err(|e| Error::exhausted(format!("pipe: {e}")))?);
        let watch = Arc::new(Watch::default());
        let (lower, upper, seen) = (body.lower.clone(), body.upper.clone(), watch.clone());
        let mut work = tokio::task::spawn_blocking(move || {
            compare::compare(&lower, &upper, pipe, compression, &seen)
        });
        let mut clock = tokio::time::interval(PROGRESS);
        loop {
            tokio::select! {
                done = &mut work => {
                    let done = done.map_err(|e| Error::internal(format!("comparison: {e}")))?;
                    return done.map_err(Error::from);
                }
                () = tell.closed(), if !watch.cancelled.load(Ordering::Relaxed) => {
                    watch.cancelled.store(true, Ordering::Relaxed);
                }
                _ = clock.tick() => {
                    let offset = watch.bytes.load(Ordering::Relaxed);
                    // a full queue means that the caller has news enough
                    let _ = tell.try_send(Ok(Comparing { offset, layer: None, diff_id: None }));
                }
            }
        }
    }

    async fn commit(
        &self,
        ctx: &Ctx,
        r#ref: Ref,
        body: Compare,
        compared: Compared,
    ) -> Result<Comparing> {
        let mut labels: Labels = body.labels;
        labels.insert(UNCOMPRESSED.to_owned(), compared.diff_id.clone());
        let commit = Commit {
            r#ref,
            size: None,
            expected: None,
            labels,
        };
        let blob = self.bus.call(ctx, commit).await?;
        let layer = Descriptor {
            media_type: body.media_type,
            digest: blob.digest,
            size: blob.size,
            annotations: Labels::new(),
            platform: None,
            urls: Vec::new(),
        };
        Ok(Comparing {
            offset: compared.size,
            layer: Some(layer),
            diff_id: Some(Digest::new(compared.diff_id)?),
        })
    }
}
