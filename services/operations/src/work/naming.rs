//! From what users type to full names.

use crate::run::Run;
use contracts::namespaces::Get;
use contracts::transfer::Explain;
use contracts::{ImageName, Result};

/// Namespace label that names the default snapshot driver. Source: containerd, defaults package.
const SNAPSHOTTER: &str = "containerd.io/defaults/snapshotter";

/// The full name of a reference: `busybox` is `docker.io/library/busybox:latest`. Errors: `InvalidArgument`.
pub(super) async fn full(run: &Run, reference: &str) -> Result<ImageName> {
    Ok(run
        .call(Explain {
            reference: reference.into(),
        })
        .await?
        .name)
}

/// The snapshot driver to use: what was asked for, what the namespace says, what the node says.
pub(super) async fn snapshotter(run: &Run, asked: &str) -> Result<String> {
    if !asked.is_empty() {
        return Ok(asked.to_owned());
    }
    let name = run.ctx().namespace()?.clone();
    let labelled = match crate::run::maybe(run.call(Get { name }).await) {
        Ok(info) => info.and_then(|info| info.labels.get(SNAPSHOTTER).cloned()),
        // Its label is a convenience: work does not wait for a plugin that it can do without.
        Err(_) => None,
    };
    Ok(labelled.unwrap_or_else(|| run.config.snapshotter.clone()))
}
