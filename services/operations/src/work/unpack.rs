//! Unpack: layers → committed snapshots, each extracted while it is still arriving.
//!
//! With a driver that can rebase, layers are extracted in any order, made durable by one sync, and then committed
//! bottom up; otherwise one after the other. Snapshots are named by chain id, so images share what they share.

use super::fetch::{self, Source};
use super::naming;
use crate::run::{Run, maybe, undone};
use contracts::content::Update;
use contracts::diff::{Applied, Apply, Settle, Sync};
use contracts::images::Get;
use contracts::operations::{PulledImage, Unpack};
use contracts::snapshots::{Commit, Driver, List, Prepare, REBASE, Remove, Stat, View};
use contracts::transfer::{ImagePlan, Layer, Plan};
use contracts::{Code, Descriptor, Error, LabelPatch, Labels, Mount, Paging, Result, SnapshotKey};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

/// What one layer needs: its blob and its names.
struct Step<'a> {
    index: usize,
    blob: &'a Descriptor,
    diff_id: &'a contracts::Digest,
    name: SnapshotKey,
    /// Name of the layer below.
    parent: Option<SnapshotKey>,
}

/// A layer that is extracted and not committed.
struct Extracted {
    key: SnapshotKey,
    mounts: Vec<Mount>,
    applied: Applied,
}

/// Unpacks an image that is here.
pub(super) async fn unpack_named(run: &Run, asked: &Unpack) -> Result<PulledImage> {
    let name = naming::full(run, &asked.image).await?;
    let image = run.call(Get { name: name.clone() }).await?;
    let plan = run
        .call(Plan {
            target: image.target.clone(),
            platform: asked.platform.clone(),
            shallow: false,
        })
        .await?;
    let driver = naming::snapshotter(run, &asked.snapshotter).await?;
    let lease = run.hold().await?;
    let result = unpack(&run.held_by(&lease), None, &plan, &driver).await;
    discard(run).await;
    run.release(lease).await;
    Ok(PulledImage {
        name,
        target: image.target,
        platform: Some(plan.platform),
        snapshot: result?,
        snapshotter: driver,
    })
}

/// Fetches the layers and nothing more.
pub(super) async fn fetch_only(run: &Run, source: &Source<'_>, plan: &ImagePlan) -> Result<()> {
    let blobs = stream::iter(plan.layers.iter().map(Ok));
    blobs
        .try_for_each_concurrent(run.config.parallel_layers, |layer| {
            fetch::blob(run, source, &layer.blob)
        })
        .await
}

/// Makes the snapshots of an image, fetching its layers on the way when there is a source. Answers the top one's name.
///
/// Errors: as `transfer.fetch`, `diff.apply`; `NotFound` for the driver. The caller holds a lease and discards.
pub(super) async fn unpack(
    run: &Run,
    source: Option<&Source<'_>>,
    plan: &ImagePlan,
    driver: &str,
) -> Result<String> {
    let steps = steps(plan)?;
    let Some(top) = steps.last().map(|step| step.name.clone()) else {
        return Err(Error::invalid(format!(
            "image {}: has no layers",
            plan.manifest.digest
        )));
    };
    // Two pulls of one image: the second waits and then finds everything there.
    let _turn = run.turn(&format!("{driver} {top}")).await;
    let missing = missing(run, driver, &steps).await?;
    let info = run.bus.call_named(driver, &run.ctx(), Driver {}).await?;
    if info.rebase {
        in_any_order(run, source, driver, &steps, missing).await?;
    } else {
        bottom_up(run, source, driver, &steps, missing).await?;
    }
    refer(run, plan, driver, &top).await?;
    Ok(top.to_string())
}

fn steps(plan: &ImagePlan) -> Result<Vec<Step<'_>>> {
    let mut parent = None;
    let unknown =
        |layer: &Layer| Error::internal(format!("layer {}: has no chain id", layer.blob.digest));
    let step = |(index, layer)| {
        let layer: &Layer = layer;
        let (Some(chain), Some(diff_id)) = (&layer.chain_id, &layer.diff_id) else {
            return Err(unknown(layer));
        };
        let name = SnapshotKey::new(chain.as_str())?;
        let below = parent.replace(name.clone());
        Ok(Step {
            index,
            blob: &layer.blob,
            diff_id,
            name,
            parent: below,
        })
    };
    plan.layers.iter().enumerate().map(step).collect()
}

/// Index of the lowest layer that has no snapshot: those above have none either, or are made again.
async fn missing(run: &Run, driver: &str, steps: &[Step<'_>]) -> Result<usize> {
    for (index, step) in steps.iter().enumerate().rev() {
        let stat = run.call_at_driver(
            driver,
            Stat {
                key: step.name.clone(),
            },
        );
        if maybe(stat.await)?.is_some() {
            return Ok(index + 1);
        }
    }
    Ok(0)
}

async fn in_any_order(
    run: &Run,
    source: Option<&Source<'_>>,
    driver: &str,
    steps: &[Step<'_>],
    missing: usize,
) -> Result<()> {
    let work = stream::iter(steps).map(|step| async move {
        let wanted = step.index >= missing;
        both(run, source, step, async {
            if !wanted {
                return Ok(None);
            }
            extract(run, driver, step, None)
                .await
                .map(|extracted| Some((step.index, extracted)))
        })
        .await
    });
    let extracted: Vec<Option<(usize, Extracted)>> = work
        .buffer_unordered(run.config.parallel_layers)
        .try_collect()
        .await?;
    let mut extracted: BTreeMap<usize, Extracted> = extracted.into_iter().flatten().collect();
    if let Some(first) = extracted.values().next() {
        sync(run, &first.mounts).await?;
    }
    for step in &steps[missing..] {
        if let Some(layer) = extracted.remove(&step.index) {
            if settle(run, driver, step, &layer).await? {
                sync(run, &layer.mounts).await?;
            }
            commit(run, driver, step, layer.key, true).await?;
        }
    }
    Ok(())
}

async fn bottom_up(
    run: &Run,
    source: Option<&Source<'_>>,
    driver: &str,
    steps: &[Step<'_>],
    missing: usize,
) -> Result<()> {
    // Layers above are fetched while lower ones are extracted: their turn only decides about extraction.
    let fetch_ahead = async {
        match source {
            Some(source) => {
                let blobs = stream::iter(steps.iter().map(Ok));
                blobs
                    .try_for_each_concurrent(run.config.parallel_layers, |step| {
                        fetch::blob(run, source, step.blob)
                    })
                    .await
            }
            None => Ok(()),
        }
    };
    let extract_in_order = async {
        for step in &steps[missing..] {
            let layer = extract(run, driver, step, step.parent.clone()).await?;
            sync(run, &layer.mounts).await?;
            commit(run, driver, step, layer.key, false).await?;
        }
        Ok(())
    };
    futures_util::try_join!(fetch_ahead, extract_in_order).map(|_| ())
}

/// Fetches a layer and extracts it meanwhile. When one fails the other is dropped.
async fn both<T>(
    run: &Run,
    source: Option<&Source<'_>>,
    step: &Step<'_>,
    extract: impl Future<Output = Result<T>>,
) -> Result<T> {
    let fetch = async {
        match source {
            Some(source) => fetch::blob(run, source, step.blob).await,
            None => Ok(()),
        }
    };
    futures_util::try_join!(fetch, extract).map(|((), extracted)| extracted)
}

/// How often a layer is extracted anew because a plugin died meanwhile.
const TRIES: u32 = 3;

/// Extracts a layer into a fresh snapshot. What a dead plugin left half extracted is discarded, never gone on with.
async fn extract(
    run: &Run,
    driver: &str,
    step: &Step<'_>,
    parent: Option<SnapshotKey>,
) -> Result<Extracted> {
    let mut tries = 0;
    loop {
        match extract_once(run, driver, step, parent.clone(), tries).await {
            Err(error)
                if error.is(Code::Unavailable) && error.plugin.is_some() && tries < TRIES =>
            {
                tries += 1
            }
            result => return result,
        }
    }
}

async fn extract_once(
    run: &Run,
    driver: &str,
    step: &Step<'_>,
    parent: Option<SnapshotKey>,
    tries: u32,
) -> Result<Extracted> {
    let key = SnapshotKey::new(format!(
        "{}{}.{tries} {}",
        prefix(run),
        run.attempt,
        step.name
    ))?;
    // The bottom layer has nothing below that its deletions could hide.
    let rebased = parent.is_none() && step.parent.is_some();
    let labels = rebased
        .then(|| (REBASE.to_owned(), "true".to_owned()))
        .into_iter()
        .collect();
    let prepare = Prepare {
        key: key.clone(),
        parent,
        labels,
    };
    let mounts = run.bus.call_named(driver, &run.anew(), prepare).await?;
    let apply = Apply {
        layer: step.blob.clone(),
        r#ref: Some(fetch::ingest(step.blob)?),
        mounts: mounts.clone(),
        diff_id: Some(step.diff_id.clone()),
    };
    let mut progress = run.bus.open(&run.stream(), apply).await?;
    while let Some(item) = progress.next().await {
        let item = item.map_err(|error| error.context(format!("layer {}", step.blob.digest)))?;
        if let Some(applied) = item.applied {
            run.board.part(
                step.blob.digest.as_str(),
                "unpacked",
                step.blob.size,
                step.blob.size,
            );
            return Ok(Extracted {
                key,
                mounts,
                applied,
            });
        }
        run.board.part(
            step.blob.digest.as_str(),
            "unpacking",
            item.offset,
            step.blob.size,
        );
    }
    Err(Error::internal(format!(
        "layer {}: its extraction ended without a result",
        step.blob.digest
    )))
}

/// Gives directories that the layer only implied the look they have below. Says whether there were any.
async fn settle(run: &Run, driver: &str, step: &Step<'_>, layer: &Extracted) -> Result<bool> {
    let (Some(parent), false) = (&step.parent, layer.applied.implied.is_empty()) else {
        return Ok(false);
    };
    let key = SnapshotKey::new(format!(
        "{}settle {} {}",
        prefix(run),
        run.attempt,
        step.name
    ))?;
    let view = View {
        key: key.clone(),
        parent: Some(parent.clone()),
        labels: Labels::new(),
    };
    let below = run.bus.call_named(driver, &run.anew(), view).await?;
    let settle = Settle {
        mounts: layer.mounts.clone(),
        parent: below,
        implied: layer.applied.implied.clone(),
    };
    let settled = run.bus.call(&run.anew(), settle).await;
    undone(
        "view",
        run.bus
            .call_named(driver, &run.anew(), Remove { key })
            .await,
    );
    settled.map(|()| true)
}

async fn sync(run: &Run, mounts: &[Mount]) -> Result<()> {
    run.bus
        .call(
            &run.anew(),
            Sync {
                mounts: mounts.to_vec(),
            },
        )
        .await
}

async fn commit(
    run: &Run,
    driver: &str,
    step: &Step<'_>,
    key: SnapshotKey,
    rebase: bool,
) -> Result<()> {
    let parent = step.parent.clone().filter(|_| rebase);
    let commit = Commit {
        name: step.name.clone(),
        key: key.clone(),
        parent,
        labels: Labels::new(),
    };
    match run.bus.call_named(driver, &run.anew(), commit).await {
        // Somebody else was faster; this copy goes when the work is discarded.
        Err(error) if error.is(Code::AlreadyExists) => Ok(()),
        result => result,
    }?;
    run.board.part(
        step.blob.digest.as_str(),
        "done",
        step.blob.size,
        step.blob.size,
    );
    Ok(())
}

/// Lets the image's config hold its top snapshot, as containerd's clients do.
async fn refer(run: &Run, plan: &ImagePlan, driver: &str, top: &SnapshotKey) -> Result<()> {
    let label = format!("containerd.io/gc.ref.snapshot.{driver}");
    let set = BTreeMap::from([(label, Some(top.to_string()))]);
    let update = Update {
        digest: plan.config.digest.clone(),
        labels: LabelPatch {
            replace: false,
            set,
        },
    };
    run.bus.call(&run.anew(), update).await.map(|_| ())
}

/// How the snapshots that this operation is still working on begin.
fn prefix(run: &Run) -> String {
    format!("extract {} ", run.id())
}

/// Removes what this operation, in any attempt, prepared and did not commit.
pub(super) async fn discard(run: &Run) {
    let drivers = run.bus.peers::<contracts::snapshots::Snapshots>().to_vec();
    for driver in drivers {
        let filter = format!("name~=\"^{}\"", prefix(run));
        let list = List {
            paging: Paging {
                filters: vec![filter],
                ..Paging::default()
            },
        };
        let found = run.bus.call_at(&driver, &run.anew(), list).await;
        for info in found.map(|page| page.items).unwrap_or_default() {
            let removed = run
                .bus
                .call_at(&driver, &run.anew(), Remove { key: info.key })
                .await;
            undone("extraction", removed);
        }
    }
}
