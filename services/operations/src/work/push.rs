//! Push: an image that is here → a registry.

use super::naming;
use crate::run::Run;
use contracts::operations::{PulledImage, Push};
use contracts::{Error, Result, transfer};
use futures_util::StreamExt;

/// Sends an image. Errors: `NotFound` for the image or its content; those of the registry.
pub(super) async fn push(run: &Run, push: &Push) -> Result<PulledImage> {
    let image = naming::image(run, &push.image).await?;
    let name = image.name.clone();
    let reference = if push.reference.is_empty() {
        name.to_string()
    } else {
        push.reference.clone()
    };
    let target = naming::full(&reference)?;
    let request = transfer::Push {
        reference,
        target: image.target.clone(),
        platform: push.platform.clone(),
        access: push.access.clone(),
    };
    let mut progress = run.bus.open(&run.stream(), request).await?;
    let mut finished = false;
    while let Some(item) = progress.next().await {
        let item = item?;
        let phase = if item.done { "done" } else { "pushing" };
        run.board.part(&item.name, phase, item.offset, item.total);
        finished |= item.done;
    }
    faults::point("operations.push.sent");
    if !finished {
        return Err(Error::internal(format!(
            "push of {name}: ended without a result"
        )));
    }
    Ok(PulledImage {
        name: target,
        target: image.target,
        platform: None,
        snapshot: String::new(),
        snapshotter: String::new(),
    })
}
