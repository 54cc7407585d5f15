//! Pull: resolve, fetch, unpack while fetching, make it durable, name it.

use super::fetch::{Source, documents, everything};
use super::{naming, unpack};
use crate::run::Run;
use contracts::collect::Resource;
use contracts::images::Put;
use contracts::operations::{Pull, PulledImage};
use contracts::transfer::Resolve;
use contracts::{ImageName, Result};

/// Brings an image in. Errors: those of the registry, the content store and the snapshot driver.
pub(super) async fn pull(run: &Run, pull: &Pull) -> Result<PulledImage> {
    let result = async { held(&run.hold().await?, pull).await }.await;
    super::finish(run).await;
    result
}

/// The same under a lease that somebody else releases.
pub(super) async fn held(run: &Run, pull: &Pull) -> Result<PulledImage> {
    run.board.part("resolve", "resolving", 0, 0);
    let resolve = Resolve {
        reference: pull.reference.clone(),
        access: pull.access.clone(),
    };
    let resolved = run.call(resolve).await?;
    faults::point("operations.pull.resolved");
    run.board.part("resolve", "done", 0, 0);
    let source = Source {
        name: &resolved.name,
        access: &pull.access,
    };
    // What is here already is not brought in, so nothing else holds it; with it goes all that it refers to.
    run.keep(vec![Resource::Content(resolved.target.digest.clone())])
        .await?;
    let plan = documents(run, &source, &resolved.target, &pull.platform).await?;
    faults::point("operations.pull.documents-fetched");
    let mut pulled = PulledImage {
        name: resolved.name.clone(),
        target: resolved.target.clone(),
        platform: Some(plan.platform.clone()),
        snapshot: String::new(),
        snapshotter: String::new(),
    };
    if pull.no_unpack {
        unpack::fetch_only(run, &source, &plan).await?;
    } else {
        let driver = naming::snapshotter(run, &pull.snapshotter).await?;
        pulled.snapshot = unpack::unpack(run, Some(&source), &plan, &driver).await?;
        pulled.snapshotter = driver;
    }
    if pull.all_platforms {
        everything(run, &source, &resolved.target).await?;
    }
    faults::point("operations.pull.unpacked");
    name(run, &resolved.name, pull, &pulled).await?;
    faults::point("operations.pull.named");
    Ok(pulled)
}

async fn name(run: &Run, name: &ImageName, pull: &Pull, pulled: &PulledImage) -> Result<()> {
    let put = Put {
        name: name.clone(),
        target: pulled.target.clone(),
        labels: pull.labels.clone(),
        version: None,
    };
    run.call(put).await.map(drop)
}
