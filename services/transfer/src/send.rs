//! A whole image into a registry: blobs side by side, then documents from the leaves up, the tag last.

use crate::{
    image::{self, Tree},
    manifest::{self, is_document},
    platform,
    progress::{Meter, Report},
    push::Pushed,
    registry::Repository,
    store::{self, Store},
};
use contracts::{Code, Descriptor, Error, Labels, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// Blobs that are sent side by side: enough to hide round trips, few enough for a home line.
const AT_ONCE: usize = 4;

/// Sends the image `target`.
///
/// Errors: as [`Repository::push_blob`]; `NotFound` for content that is not here; `FailedPrecondition` when some but
/// not all platforms of an index are here.
pub(crate) async fn push(
    store: &Store,
    repository: &Repository,
    target: &Descriptor,
    wanted: &str,
    report: Report<'_>,
) -> Result<()> {
    let target = match wanted {
        "" => target.clone(),
        wanted => {
            image::choose(store, target, &platform::parse(wanted)?)
                .await?
                .0
        }
    };
    let tree = whole(store, &target).await?;
    stream::iter(&tree.blobs)
        .map(|blob| send(store, repository, blob, report))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let root = tree.documents.len().saturating_sub(1);
    for (number, (document, bytes)) in tree.documents.iter().enumerate() {
        let tag = repository.reference.tag().filter(|_| number == root);
        repository.push_document(document, bytes, tag).await?;
        Meter::new(document.digest.as_str(), document.size, report).done();
    }
    Ok(())
}

/// Collects what there is to send. Of an index with a single platform here that one is sent, as Docker does.
async fn whole(store: &Store, target: &Descriptor) -> Result<Tree> {
    let tree = image::tree(store, target).await?;
    if tree.missing.is_empty() {
        return Ok(tree);
    }
    let here: Vec<&Descriptor> = tree
        .documents
        .iter()
        .map(|(document, _)| document)
        .filter(|document| document.digest != target.digest)
        .collect();
    match here
        .iter()
        .filter(|document| platform::is_image(document))
        .collect::<Vec<_>>()
        .as_slice()
    {
        [only] => image::tree(store, only).await,
        [] => Err(Error::not_found(format!(
            "content {}: no platform of this index is here",
            target.digest
        ))),
        _ => Err(Error::precondition(format!(
            "content {}: {} of its platforms are here and {} are not; pull all platforms, or push one by name",
            target.digest,
            here.len(),
            tree.missing.len()
        ))),
    }
}

async fn send(
    store: &Store,
    repository: &Repository,
    blob: &Descriptor,
    report: Report<'_>,
) -> Result<()> {
    if manifest::is_foreign(&blob.media_type) || is_document(&blob.media_type) {
        return Ok(());
    }
    let (record, file) = store.open(&blob.digest).await?;
    let label = store::source_label(repository.reference.registry());
    let known = record
        .labels
        .get(&label)
        .map(String::as_str)
        .unwrap_or_default();
    let elsewhere: Vec<String> = known
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    let mut meter = Meter::new(blob.digest.as_str(), blob.size, report);
    let pushed = repository
        .push_blob(blob, &Arc::new(file), &elsewhere, &mut |at| meter.at(at))
        .await;
    let pushed = match pushed {
        // The registry found other bytes: if they are ours, the store says so and what to do about it.
        Err(error) if error.is(Code::DataLoss) => {
            store.doubt(&blob.digest).await?;
            return Err(error);
        }
        pushed => pushed?,
    };
    meter.done();
    tracing::debug!(blob = %blob.digest, ?pushed, "pushed");
    if pushed != Pushed::Present {
        let labels = Labels::from([(label, repository.reference.repository().to_owned())]);
        // Only a hint for the next push.
        let _ = store.label(&record, &labels).await;
    }
    Ok(())
}
