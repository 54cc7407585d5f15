//! An unpacked layer is what its blob says: asked once per life of this plugin, and again after a scrub found otherwise.

use super::unpack::Step;
use crate::run::{Run, maybe, undone};
use contracts::collect::Resource;
use contracts::diff::{Proof, Verified, Verify};
use contracts::integrity::{Cure, Damage, Finding, Mend};
use contracts::snapshots::{Remove, Snapshots, Stat, View};
use contracts::{Code, Error, Labels, Mount, Result, SnapshotKey};
use futures_util::{StreamExt, TryStreamExt, stream};

/// Layers of one driver that lie on top of each other, lowest first.
#[derive(Clone, Copy)]
pub(super) struct Chain<'a> {
    pub(super) driver: &'a str,
    pub(super) steps: &'a [Step<'a>],
    /// Whether each directory holds its own layer only.
    pub(super) stacked: bool,
}

/// Compares the layers below `end` with their blobs, which are here and right, and mends them. Those that were compared
/// in this life of the plugin are trusted, so that a second pull costs nothing.
pub(super) async fn prove(run: &Run, chain: Chain<'_>, end: usize) -> Result<()> {
    let waiting: Vec<usize> = (0..end)
        .filter(|index| !run.is_proven(chain.driver, &chain.steps[*index].name))
        .collect();
    let beside = stream::iter(waiting.iter().map(|index| Ok(*index)))
        .try_for_each_concurrent(run.config.parallel_layers, |index| one(run, chain, index))
        .await;
    match beside {
        Err(error) if is_gone(&error) => {
            // A lost directory keeps those above it from being compared: bottom up it is there in time.
            for index in waiting {
                one(run, chain, index).await?;
            }
            Ok(())
        }
        done => done,
    }
}

/// Whether a directory is lost, as the driver or who opens it says it; or a blob, which the next try says again.
fn is_gone(error: &Error) -> bool {
    matches!(error.code, Code::NotFound | Code::DataLoss)
}

async fn one(run: &Run, chain: Chain<'_>, index: usize) -> Result<()> {
    let step = &chain.steps[index];
    let size = step.blob.size;
    run.board
        .part(step.blob.digest.as_str(), "verifying", 0, size);
    let Some(verified) = layer(run, chain, index, true).await? else {
        return Ok(());
    };
    if verified.mended < verified.different {
        return Err(Error::data_loss(format!(
            "snapshot {}: {} of its files are not what its layer says and could not be put right; remove it and pull again",
            step.name,
            verified.different - verified.mended
        )));
    }
    if verified.different > 0 {
        tracing::warn!(snapshot = %step.name, files = verified.different, "a damaged layer was put right");
    }
    run.proven(chain.driver, &step.name);
    run.board
        .part(step.blob.digest.as_str(), "done", size, size);
    Ok(())
}

/// Compares one layer; `None` when it goes meanwhile. A lost directory is made again when it may be mended.
///
/// Errors: those of `diff.verify`; `NotFound` when the directory is gone and nothing is to be mended.
pub(super) async fn layer(
    run: &Run,
    chain: Chain<'_>,
    index: usize,
    mend: bool,
) -> Result<Option<Verified>> {
    let name = &chain.steps[index].name;
    for again in [false, true] {
        let verified = compare(run, chain, index, mend).await;
        let gone = maybe(run.call_at_driver(chain.driver, stat(name)).await)?.is_none();
        match verified {
            _ if gone => return Ok(None),
            Err(error) if is_gone(&error) && mend && !again => {
                make_again(run, chain.driver, name).await?
            }
            verified => return verified.map(Some),
        }
    }
    Ok(None)
}

fn stat(name: &SnapshotKey) -> Stat {
    Stat { key: name.clone() }
}

/// The driver makes the directory of a layer again, empty.
async fn make_again(run: &Run, driver: &str, name: &SnapshotKey) -> Result<()> {
    let finding = Finding {
        damage: Damage::Missing,
        namespace: Some(run.ctx().namespace()?.clone()),
        subject: name.to_string(),
        what: "its directory is gone".into(),
        cure: Cure::Fetch,
    };
    let drivers = run.bus.peers::<Snapshots>();
    let Some(driver) = drivers.iter().find(|plugin| plugin.id() == driver) else {
        return Err(Error::not_found(format!("snapshot driver {driver}")));
    };
    let ctx = run.stream();
    run.bus
        .call_at(driver, &ctx, Mend { finding })
        .await
        .map(drop)
}

/// How often a comparison is begun anew because a plugin died meanwhile.
const TRIES: u32 = 3;

async fn compare(run: &Run, chain: Chain<'_>, index: usize, mend: bool) -> Result<Verified> {
    let mut tries = 0;
    loop {
        match compare_once(run, chain, index, mend).await {
            Err(error)
                if error.is(Code::Unavailable) && error.plugin.is_some() && tries < TRIES =>
            {
                tries += 1
            }
            result => return result,
        }
    }
}

async fn compare_once(run: &Run, chain: Chain<'_>, index: usize, mend: bool) -> Result<Verified> {
    let (key, mounts) = view(run, chain, index).await?;
    let below = if chain.stacked { index } else { 0 };
    let layers = chain.steps[below..=index]
        .iter()
        .map(|step| Proof {
            layer: step.blob.clone(),
            diff_id: step.diff_id.clone(),
        })
        .collect();
    let verify = Verify {
        layers,
        mounts,
        mend,
    };
    let verified = watched(run, &chain.steps[index], verify).await;
    undone(
        "view",
        run.call_at_driver(chain.driver, Remove { key }).await,
    );
    verified
}

async fn view(run: &Run, chain: Chain<'_>, index: usize) -> Result<(SnapshotKey, Vec<Mount>)> {
    let (driver, name) = (chain.driver.to_owned(), &chain.steps[index].name);
    // Views of one operation are told apart by time: what an earlier attempt left is the discarding's.
    let number = run.number();
    let prefix = super::unpack::prefix(run);
    let key = SnapshotKey::new(format!("{prefix}prove {} {number} {name}", run.attempt))?;
    let prepared = (driver.clone(), key.clone());
    run.left().prepared.borrow_mut().insert(prepared.clone());
    let resource = Resource::Snapshot {
        driver,
        key: key.clone(),
    };
    run.keep(vec![resource]).await?;
    let view = View {
        key: key.clone(),
        parent: Some(name.clone()),
        labels: Labels::new(),
    };
    let mounts = run.call_at_driver(chain.driver, view).await?;
    run.left().prepared.borrow_mut().remove(&prepared);
    Ok((key, mounts))
}

async fn watched(run: &Run, step: &Step<'_>, verify: Verify) -> Result<Verified> {
    let mut progress = run.bus.open(&run.stream(), verify).await?;
    while let Some(item) = progress.next().await {
        let item = item.map_err(|error| error.context(format!("snapshot {}", step.name)))?;
        if let Some(verified) = item.verified {
            return Ok(verified);
        }
        let name = step.blob.digest.as_str();
        run.board.part(name, "verifying", item.offset, 0);
    }
    Err(Error::internal(format!(
        "snapshot {}: its comparison ended without a result",
        step.name
    )))
}
