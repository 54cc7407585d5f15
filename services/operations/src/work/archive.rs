//! Import and export: images ↔ tar archives.

use super::{naming, unpack};
use crate::run::{Run, maybe};
use contracts::collect::Resource;
use contracts::images::Put;
use contracts::operations::{Export, Import, PulledImage};
use contracts::transfer::{self, Plan};
use contracts::{Code, Descriptor, Error, ImageName, Labels, Result};
use futures_util::StreamExt;

/// Stores, names and unpacks what an archive holds.
pub(super) async fn import(run: &Run, import: Import) -> Result<Vec<PulledImage>> {
    let result = async { held(&run.hold().await?, import).await }.await;
    let unfinished = match &result {
        Ok(_) => Vec::new(),
        // Nobody reads an archive twice: what it did not finish is of no use.
        Err(_) => run.unfinished().await,
    };
    super::finish(run).await;
    super::forget(run, unfinished).await;
    result
}

async fn held(run: &Run, import: Import) -> Result<Vec<PulledImage>> {
    let found = read(run, &import).await?;
    let targets = found
        .iter()
        .map(|(_, target)| Resource::Content(target.digest.clone()));
    run.keep(targets.collect()).await?;
    faults::point("operations.import.read");
    let mut images = Vec::new();
    for (name, target) in found {
        let name = if name.is_empty() {
            format!("import@{}", target.digest)
        } else {
            name
        };
        images.push(one(run, &import, ImageName::new(name)?, target).await?);
    }
    Ok(images)
}

async fn read(run: &Run, import: &Import) -> Result<Vec<(String, Descriptor)>> {
    let request = transfer::Import {
        archive: import.archive.clone(),
        prefix: import.prefix.clone(),
    };
    let mut progress = run.bus.open(&run.stream(), request).await?;
    while let Some(item) = progress.next().await {
        let item = item?;
        run.board.part(
            "archive",
            if item.done { "done" } else { "reading" },
            item.offset,
            0,
        );
        if item.done {
            return Ok(item.images);
        }
    }
    Err(Error::internal("import: ended without a result"))
}

async fn one(
    run: &Run,
    import: &Import,
    name: ImageName,
    target: Descriptor,
) -> Result<PulledImage> {
    let mut image = PulledImage {
        name,
        target,
        platform: None,
        snapshot: String::new(),
        snapshotter: String::new(),
    };
    if !import.no_unpack {
        let plan = run
            .call(Plan {
                target: image.target.clone(),
                platform: String::new(),
                shallow: false,
            })
            .await;
        // An archive may hold other platforms only: it is stored all the same.
        if let Some(plan) = maybe(plan)? {
            let driver = naming::snapshotter(run, &import.snapshotter).await?;
            image.snapshot = unpack::unpack(run, None, &plan, &driver).await?;
            image.platform = Some(plan.platform);
            image.snapshotter = driver;
        }
    }
    let put = Put {
        name: image.name.clone(),
        target: image.target.clone(),
        labels: Labels::new(),
        version: None,
    };
    run.call(put).await?;
    faults::point("operations.import.named");
    Ok(image)
}

/// Writes images into an archive.
pub(super) async fn export(run: &Run, export: Export) -> Result<Vec<PulledImage>> {
    if export.images.is_empty() {
        return Err(Error::invalid("images: name at least one"));
    }
    let mut images = Vec::new();
    for reference in &export.images {
        let image = naming::image(run, reference).await?;
        images.push((image.name, image.target));
    }
    let request = transfer::Export {
        images: images.clone(),
        platform: export.platform.clone(),
        archive: export.archive,
    };
    let mut progress = run.bus.open(&run.stream(), request).await?;
    let mut finished = false;
    while let Some(item) = progress.next().await {
        let item = item?;
        run.board.part(
            &item.name,
            if item.done { "done" } else { "writing" },
            item.offset,
            item.total,
        );
        finished |= item.done;
    }
    if !finished {
        return Err(Error::new(Code::Cancelled, "export: the reader went away"));
    }
    faults::point("operations.export.written");
    let done = |(name, target)| PulledImage {
        name,
        target,
        platform: None,
        snapshot: String::new(),
        snapshotter: String::new(),
    };
    Ok(images.into_iter().map(done).collect())
}
