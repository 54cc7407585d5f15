//! Bringing in what an image consists of.

use crate::board::FETCHING;
use crate::run::Run;
use contracts::transfer::{Access, Children, Fetch, ImagePlan, Plan};
use contracts::{Descriptor, Error, ImageName, Labels, Ref, Result};
use futures_util::{StreamExt, TryStreamExt, stream};

/// What is fetched: an image name says from where, `access` how.
pub(super) struct Source<'a> {
    pub(super) name: &'a ImageName,
    pub(super) access: &'a Access,
}

/// The ingest that brings a blob: pulls of the same blob share it.
pub(super) fn ingest(blob: &Descriptor) -> Result<Ref> {
    Ref::new(format!("fetch-{}", blob.digest))
}

/// Brings one blob in. A stream that breaks is opened again, as long as bytes arrive.
pub(super) async fn blob(run: &Run, source: &Source<'_>, blob: &Descriptor) -> Result<()> {
    let name = blob.digest.as_str();
    run.board.part(name, FETCHING, 0, blob.size);
    let fetching = run.fetching(&ingest(blob)?);
    let (mut furthest, mut stuck) = (0, 0);
    loop {
        match once(run, source, blob, &mut furthest).await {
            Ok(()) => break,
            Err((error, moved))
                if error.is(contracts::Code::Unavailable) && error.plugin.is_some() =>
            {
                stuck = if moved { 0 } else { stuck + 1 };
                if stuck > 3 {
                    return Err(error);
                }
            }
            Err((error, _)) => return Err(error),
        }
    }
    faults::point("operations.fetch.done");
    fetching.finished();
    run.board.part(name, "fetched", blob.size, blob.size);
    Ok(())
}

async fn once(
    run: &Run,
    source: &Source<'_>,
    blob: &Descriptor,
    furthest: &mut u64,
) -> Result<(), (Error, bool)> {
    let before = *furthest;
    let request = Fetch {
        name: source.name.clone(),
        target: blob.clone(),
        r#ref: ingest(blob).map_err(|e| (e, false))?,
        labels: Labels::new(),
        access: source.access.clone(),
    };
    let mut progress = run
        .bus
        .open(&run.stream(), request)
        .await
        .map_err(|e| (e, false))?;
    while let Some(item) = progress.next().await {
        let item = item.map_err(|error| (error, *furthest > before))?;
        *furthest = item.offset.max(*furthest);
        run.board
            .part(blob.digest.as_str(), FETCHING, item.offset, blob.size);
        if item.done {
            return Ok(());
        }
    }
    Err((
        Error::internal(format!(
            "content {}: its fetch ended without a result",
            blob.digest
        )),
        false,
    ))
}

/// Brings in the documents of one platform and says what must be unpacked.
pub(super) async fn documents(
    run: &Run,
    source: &Source<'_>,
    target: &Descriptor,
    platform: &str,
) -> Result<ImagePlan> {
    blob(run, source, target).await?;
    let plan = |shallow| Plan {
        target: target.clone(),
        platform: platform.into(),
        shallow,
    };
    let mut shallow = run.call(plan(true)).await?;
    while shallow.config == shallow.manifest {
        // The index is here and what it chose, a manifest or one more index, is not.
        blob(run, source, &shallow.manifest).await?;
        shallow = run.call(plan(true)).await?;
    }
    if shallow.config_json.is_empty() {
        blob(run, source, &shallow.config).await?;
    }
    run.call(plan(false)).await
}

/// Brings in everything that a document refers to, whatever its platform.
pub(super) async fn everything(run: &Run, source: &Source<'_>, target: &Descriptor) -> Result<()> {
    let mut documents = vec![target.clone()];
    while let Some(document) = documents.pop() {
        blob(run, source, &document).await?;
        let children = run.call(Children { target: document }).await?;
        let (nested, leaves): (Vec<_>, Vec<_>) = children.into_iter().partition(is_document);
        documents.extend(nested);
        let fetches = stream::iter(leaves.iter().map(Ok))
            .try_for_each_concurrent(run.config.parallel_layers, |leaf| blob(run, source, leaf));
        fetches.await?;
    }
    Ok(())
}

/// Manifests and indexes have children of their own. Source: OCI image-spec, media-types.md; Docker schema 2.
fn is_document(blob: &Descriptor) -> bool {
    [
        "manifest.v1+json",
        "index.v1+json",
        "manifest.v2+json",
        "manifest.list.v2+json",
    ]
    .iter()
    .any(|end| blob.media_type.ends_with(end))
}
