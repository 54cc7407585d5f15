//! Unpack: layers → committed snapshots, each extracted while it is still arriving.
//!
//! With a driver that can rebase, layers are extracted in any order, made durable by one sync, and then committed
//! bottom up without waiting in between; otherwise one after the other. Snapshots are named by chain id, so images share what they share.

use super::fetch::{self, Source};
use super::naming;
use super::origin;
use super::prove::{Chain, prove};
use crate::board::UNPACKING;
use crate::run::{Run, maybe, undone};
use contracts::collect::Resource;
use contracts::content::Update;
use contracts::diff::{Applied, Apply, Settle, Sync};
use contracts::operations::{PulledImage, Unpack};
use contracts::snapshots::{Commit, Driver, List, Prepare, REBASE, Remove, Snapshots, Stat, View};
use contracts::transfer::{ImagePlan, Layer, Plan};
use contracts::{Code, Descriptor, Error, LabelPatch, Labels, Mount, Paging, Result, SnapshotKey};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use std::collections::BTreeMap;

/// What one layer needs: its blob and its names.
pub(super) struct Step<'a> {
    index: usize,
    pub(super) blob: &'a Descriptor,
    pub(super) diff_id: &'a contracts::Digest,
    pub(super) name: SnapshotKey,
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
    let result = async { unpack_held(&run.hold().await?, asked).await }.await;
    super::finish(run).await;
    result
}

async fn unpack_held(run: &Run, asked: &Unpack) -> Result<PulledImage> {
    let image = naming::image(run, &asked.image).await?;
    run.keep(vec![Resource::Content(image.target.digest.clone())])
        .await?;
    let plan = run
        .call(Plan {
            target: image.target.clone(),
            platform: asked.platform.clone(),
            shallow: false,
        })
        .await?;
    let driver = naming::snapshotter(run, &asked.snapshotter).await?;
    let snapshot = unpack(run, None, &plan, &driver).await?;
    Ok(PulledImage {
        name: image.name,
        target: image.target,
        platform: Some(plan.platform),
        snapshot,
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
    hold(run, driver, &steps).await?;
    let (missing, info) = futures_util::try_join!(
        missing(run, driver, &steps),
        run.call_at_driver(driver, Driver {})
    )?;
    let chain = Chain {
        driver,
        steps: &steps,
        stacked: info.rebase,
    };
    if info.rebase {
        in_any_order(run, source, driver, &steps, missing).await?;
    } else {
        below(run, source, chain, missing).await?;
        bottom_up(run, source, driver, &steps, missing).await?;
    }
    for step in &steps[missing..] {
        run.proven(driver, &step.name);
    }
    faults::point("operations.unpack.committed");
    proven(run, source, chain, missing).await?;
    refer(run, plan, driver, &top).await?;
    Ok(top.to_string())
}

/// Compares what is there before a copy of it is made: damage would go on in every layer above.
async fn below(
    run: &Run,
    source: Option<&Source<'_>>,
    chain: Chain<'_>,
    missing: usize,
) -> Result<()> {
    if missing == chain.steps.len() {
        return Ok(());
    }
    if let Some(source) = source {
        for step in &chain.steps[..missing] {
            fetch::blob(run, source, step.blob).await?;
        }
    }
    proven(run, source, chain, missing).await
}

async fn proven(
    run: &Run,
    source: Option<&Source<'_>>,
    chain: Chain<'_>,
    missing: usize,
) -> Result<()> {
    match prove(run, chain, missing).await {
        // Who only unpacks has no source for blobs that were let go after an earlier unpacking.
        Err(error) if source.is_none() && error.is(Code::NotFound) => Ok(()),
        proven => proven,
    }
}

pub(super) fn steps(plan: &ImagePlan) -> Result<Vec<Step<'_>>> {
    steps_of(&plan.layers)
}

/// As [`steps`], of layers that no plan names, lowest first.
pub(super) fn steps_of(layers: &[Layer]) -> Result<Vec<Step<'_>>> {
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
    layers.iter().enumerate().map(step).collect()
}

/// Holds every layer, found or made, and what it is first extracted into: one write for all of them.
async fn hold(run: &Run, driver: &str, steps: &[Step<'_>]) -> Result<()> {
    let mut resources = Vec::new();
    for step in steps {
        for key in [step.name.clone(), extraction(run, step, 0)?] {
            let driver = driver.to_owned();
            resources.push(Resource::Snapshot { driver, key });
        }
    }
    run.keep(resources).await
}

/// Index of the lowest layer that has no snapshot: those above have none either, or are made again.
async fn missing(run: &Run, driver: &str, steps: &[Step<'_>]) -> Result<usize> {
    let stats = steps.iter().map(|step| async {
        let key = step.name.clone();
        maybe(run.call_at_driver(driver, Stat { key }).await)
    });
    let there = try_join_all(stats).await?;
    Ok(there
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |top| top + 1))
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
            extract(run, driver, step, None, source.is_some())
                .await
                .map(|extracted| Some((step.index, extracted)))
        })
        .await
    });
    let extracted: Vec<Option<(usize, Extracted)>> = work
        .buffer_unordered(run.config.parallel_layers)
        .try_collect()
        .await?;
    let extracted: BTreeMap<usize, Extracted> = extracted.into_iter().flatten().collect();
    faults::point("operations.unpack.extracted");
    if let Some(first) = extracted.values().next() {
        sync(run, &first.mounts).await?;
    }
    faults::point("operations.unpack.synced");
    let mut commits = Vec::new();
    for (index, layer) in &extracted {
        let step = &steps[*index];
        if step.parent.is_some() && !layer.applied.implied.is_empty() {
            // The one below must be there to be looked at.
            try_join_all(commits.drain(..)).await?;
            settle(run, driver, step, layer).await?;
            sync(run, &layer.mounts).await?;
        }
        commits.push(commit(run, driver, step, &layer.key, true));
    }
    // They are sent in this order and arrive in it: none waits for the answer of the one below.
    try_join_all(commits).await.map(drop)
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
            let layer = extract(run, driver, step, step.parent.clone(), source.is_some()).await?;
            sync(run, &layer.mounts).await?;
            commit(run, driver, step, &layer.key, false).await?;
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
    fetching: bool,
) -> Result<Extracted> {
    let mut tries = 0;
    loop {
        match extract_once(run, driver, step, parent.clone(), fetching, tries).await {
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
    fetching: bool,
    tries: u32,
) -> Result<Extracted> {
    let key = extraction(run, step, tries)?;
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
    let prepared = (driver.to_owned(), key.clone());
    run.left().prepared.borrow_mut().insert(prepared);
    // The first try is held with all others.
    let ctx = if tries == 0 { run.kept() } else { run.ctx() };
    let mounts = run.bus.call_named(driver, &ctx, prepare).await?;
    let apply = Apply {
        layer: step.blob.clone(),
        r#ref: match fetching {
            true => Some(fetch::ingest(step.blob)?),
            false => None,
        },
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
            UNPACKING,
            item.offset,
            step.blob.size,
        );
    }
    Err(Error::internal(format!(
        "layer {}: its extraction ended without a result",
        step.blob.digest
    )))
}

/// The snapshot that a layer is extracted into.
fn extraction(run: &Run, step: &Step<'_>, tries: u32) -> Result<SnapshotKey> {
    SnapshotKey::new(format!(
        "{}{}.{tries} {}",
        prefix(run),
        run.attempt,
        step.name
    ))
}

/// Gives directories that the layer only implied the look they have below.
async fn settle(run: &Run, driver: &str, step: &Step<'_>, layer: &Extracted) -> Result<()> {
    let key = SnapshotKey::new(format!(
        "{}settle {} {}",
        prefix(run),
        run.attempt,
        step.name
    ))?;
    let view = View {
        key: key.clone(),
        parent: step.parent.clone(),
        labels: Labels::new(),
    };
    let below = run.call_at_driver(driver, view).await?;
    let settle = Settle {
        mounts: layer.mounts.clone(),
        parent: below,
        implied: layer.applied.implied.clone(),
    };
    let settled = run.call(settle).await;
    undone("view", run.call_at_driver(driver, Remove { key }).await);
    settled
}

async fn sync(run: &Run, mounts: &[Mount]) -> Result<()> {
    let mounts = mounts.to_vec();
    run.call(Sync { mounts }).await
}

async fn commit(
    run: &Run,
    driver: &str,
    step: &Step<'_>,
    key: &SnapshotKey,
    rebase: bool,
) -> Result<()> {
    let parent = step.parent.clone().filter(|_| rebase);
    let commit = Commit {
        name: step.name.clone(),
        key: key.clone(),
        parent,
        labels: origin::labels(step.blob, step.diff_id),
    };
    match run.bus.call_named(driver, &run.kept(), commit).await {
        Ok(()) => {
            let committed = (driver.to_owned(), key.clone());
            run.left().prepared.borrow_mut().remove(&committed);
        }
        // Somebody else was faster; this copy goes when the work is discarded.
        Err(error) if error.is(Code::AlreadyExists) => {}
        Err(error) => return Err(error),
    }
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
    run.call(update).await.map(drop)
}

/// How the snapshots that this operation is still working on begin.
pub(super) fn prefix(run: &Run) -> String {
    format!("extract {} ", run.tag())
}

/// Removes what this operation prepared and did not commit; what an earlier attempt left, too, when it looks for it.
pub(super) async fn discard(run: &Run, looking: bool) {
    let mut left = std::mem::take(&mut *run.left().prepared.borrow_mut());
    if looking {
        left.extend(found(run).await);
    }
    let ctx = run.ctx().step("discard");
    for (driver, key) in left {
        let removed = run.bus.call_named(&driver, &ctx, Remove { key }).await;
        undone("extraction", removed);
    }
}

/// What is there of this operation's extractions.
async fn found(run: &Run) -> Vec<(String, SnapshotKey)> {
    let mut found = Vec::new();
    for driver in run.bus.peers::<Snapshots>() {
        let mut paging = Paging {
            filters: vec![format!("name~=\"^{}\"", prefix(run))],
            ..Paging::default()
        };
        loop {
            let list = List {
                paging: paging.clone(),
            };
            let page = match run.bus.call_at(driver, &run.ctx(), list).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%driver, %error, "what was not committed stays for the collector");
                    break;
                }
            };
            let keys = page.items.into_iter().map(|info| info.key);
            found.extend(keys.map(|key| (driver.id().to_owned(), key)));
            if page.next.is_empty() {
                break;
            }
            paging.token = page.next;
        }
    }
    found
}
