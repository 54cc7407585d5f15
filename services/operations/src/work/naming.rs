//! From what users type to full names.

use crate::run::{Run, maybe};
use contracts::images::{self, Image};
use contracts::namespaces::Get;
use contracts::{Error, ImageName, Result};
use reference::Reference;

/// Namespace label that names the default snapshot driver. Source: containerd, defaults package.
const SNAPSHOTTER: &str = "containerd.io/defaults/snapshotter";

/// The full name of a reference: `busybox` is `docker.io/library/busybox:latest`. Errors: `InvalidArgument`.
pub(super) fn full(reference: &str) -> Result<ImageName> {
    ImageName::new(Reference::parse(reference)?.to_string())
}

/// The image that a user means: the one of this very name, or else of its full form. Errors: `NotFound` naming the full
/// name; `InvalidArgument` when nothing is called so and it is no reference.
pub(super) async fn image(run: &Run, given: &str) -> Result<Image> {
    match here(run, given).await? {
        Some(image) => Ok(image),
        None => Err(Error::not_found(format!(
            "image {}: not in this namespace; pull it, or list what is there",
            full(given)?
        ))),
    }
}

/// As [`image`]; `None` when it is not here. Errors: `InvalidArgument` as there.
pub(super) async fn here(run: &Run, given: &str) -> Result<Option<Image>> {
    if let Ok(name) = ImageName::new(given)
        && let Some(image) = maybe(run.call(images::Get { name }).await)?
    {
        return Ok(Some(image));
    }
    let name = full(given)?;
    match name.as_str() == given {
        true => Ok(None),
        false => maybe(run.call(images::Get { name }).await),
    }
}

/// The snapshot driver to use: what was asked for, what the namespace says, what the node says.
pub(super) async fn snapshotter(run: &Run, asked: &str) -> Result<String> {
    if !asked.is_empty() {
        return Ok(asked.to_owned());
    }
    let name = run.ctx().namespace()?.clone();
    let labelled = match maybe(run.call(Get { name }).await) {
        Ok(info) => info.and_then(|info| info.labels.get(SNAPSHOTTER).cloned()),
        // Its label is a convenience: work does not wait for a plugin that it can do without.
        Err(_) => None,
    };
    Ok(labelled.unwrap_or_else(|| run.config.snapshotter.clone()))
}
