//! Create and run: image → snapshot → spec → record → task.

use super::{naming, pull, unpack};
use crate::run::{Run, maybe, undone};
use contracts::collect::Resource;
use contracts::containers::{Container, Create, Delete, Generate, Get};
use contracts::diff::Lookup;
use contracts::operations::{CreateContainer, Pull};
use contracts::snapshots::{Mounts, Prepare, Remove, Snapshots, Stat};
use contracts::tasks::{self, Stdio, Task};
use contracts::transfer::{ImagePlan, Plan};
use contracts::{Code, ContainerId, Error, ImageName, Mount, Result, SnapshotKey};
use std::io::Read;

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes: it must fit a message beside the config.
const ACCOUNTS: u64 = 1 << 20;

/// A root file system that is ready for a container.
struct Rootfs {
    image: ImageName,
    driver: String,
    key: SnapshotKey,
    mounts: Vec<Mount>,
    config: String,
}

/// Makes a container. A failure leaves nothing of it.
pub(super) async fn create(run: &Run, asked: &CreateContainer) -> Result<Container> {
    let made = make(run, asked).await;
    faults::point("operations.create.recorded");
    if made.is_err() {
        undo(run, &asked.id).await;
    }
    super::finish(run).await;
    made
}

/// Makes a container and starts its task. A failure leaves neither.
pub(super) async fn run(run: &Run, asked: &CreateContainer) -> Result<Task> {
    let started = async {
        let container = make(run, asked).await?;
        faults::point("operations.run.recorded");
        run.board.part("task", "starting", 0, 0);
        // The record now keeps what the lease kept.
        let (task, ()) = futures_util::join!(start(run, asked, &container), super::finish(run));
        task
    };
    let started = started.await;
    faults::point("operations.run.started");
    match &started {
        Ok(_) => run.board.part("task", "done", 0, 0),
        Err(_) => {
            undo(run, &asked.id).await;
            super::finish(run).await;
        }
    }
    started
}

/// Takes back what this operation made of a container, and only that: task, record, snapshot.
pub(super) async fn undo(run: &Run, id: &ContainerId) {
    let ctx = run.ctx().step("undo");
    let container = match maybe(run.bus.call(&ctx, Get { id: id.clone() }).await) {
        Ok(container) => container.filter(|container| run.owns(&container.labels)),
        Err(error) => return tracing::warn!(%id, %error, "container could not be undone"),
    };
    if container.is_some() {
        let delete = tasks::Delete {
            id: id.clone(),
            exec: None,
            force: true,
        };
        if let Err(error) = maybe(run.bus.call(&ctx, delete).await) {
            // While there is a task its container must be there, or nobody could delete it.
            return tracing::warn!(%id, %error, "task could not be undone; delete its container by force");
        }
        faults::point("operations.undo.task-deleted");
        let deleted = run.bus.call(&ctx, Delete { id: id.clone() }).await;
        undone("container", deleted);
        faults::point("operations.undo.record-deleted");
    }
    let Ok(key) = SnapshotKey::new(id.as_str()) else {
        return;
    };
    for driver in run.bus.peers::<Snapshots>() {
        let key = key.clone();
        let there = run.bus.call_at(driver, &ctx, Stat { key: key.clone() });
        if there.await.is_ok_and(|info| run.owns(&info.labels)) {
            let removed = run.bus.call_at(driver, &ctx, Remove { key }).await;
            undone("snapshot", removed);
        }
    }
}

/// Creates and starts the task of this very container. What an earlier attempt did with it is not done again.
async fn start(run: &Run, asked: &CreateContainer, container: &Container) -> Result<Task> {
    let stdio = Stdio {
        tty: asked.options.tty,
        stdin: asked.options.stdin,
        discard: false,
    };
    let create = tasks::Create {
        id: asked.id.clone(),
        rootfs: None,
        stdio,
    };
    let start = tasks::Start {
        id: asked.id.clone(),
        exec: None,
    };
    let ctx = || run.once(&format!("task of {}", container.created_at.0));
    run.surely(None, ctx(), create).await?;
    faults::point("operations.run.task-created");
    run.surely(None, ctx(), start).await
}

fn check(asked: &CreateContainer) -> Result<()> {
    if asked.image.is_empty() && asked.spec.is_empty() {
        return Err(Error::invalid("image: name one, or give a whole spec"));
    }
    if !asked.spec.is_empty() && asked.options != Default::default() {
        return Err(Error::invalid(
            "spec: is taken whole, so args, env and the other options must be inside it",
        ));
    }
    match asked.pull.as_str() {
        "" | "missing" | "always" | "never" => Ok(()),
        other => Err(Error::invalid(format!(
            "pull {other:?}: must be missing, always or never"
        ))),
    }
}

/// Refuses a taken id before anything is made. A later attempt may meet what an earlier one made.
async fn fresh(run: &Run, asked: &CreateContainer) -> Result<Option<Container>> {
    let id = asked.id.clone();
    match maybe(run.call(Get { id }).await)? {
        Some(container) if !run.owns(&container.labels) => Err(Error::exists(format!(
            "container {}: is there already; delete it or choose another id",
            asked.id
        ))),
        container => Ok(container),
    }
}

async fn make(run: &Run, asked: &CreateContainer) -> Result<Container> {
    check(asked)?;
    let (there, held) = futures_util::join!(fresh(run, asked), run.hold());
    let (there, held) = (there?, held?);
    if let Some(container) = there {
        return Ok(container);
    }
    faults::point("operations.run.held");
    let rootfs = if asked.image.is_empty() {
        None
    } else {
        Some(rootfs(&held, asked).await?)
    };
    faults::point("operations.run.snapshot-prepared");
    record(&held, asked, rootfs.as_ref()).await
}

async fn record(run: &Run, asked: &CreateContainer, rootfs: Option<&Rootfs>) -> Result<Container> {
    let spec = match rootfs {
        Some(rootfs) if asked.spec.is_empty() => spec(run, asked, rootfs).await?,
        _ => asked.spec.clone(),
    };
    let create = Create {
        id: asked.id.clone(),
        image: rootfs.map(|rootfs| rootfs.image.clone()),
        labels: asked
            .labels
            .clone()
            .into_iter()
            .chain(run.owned())
            .collect(),
        runtime: asked.runtime.clone(),
        snapshotter: rootfs
            .map(|rootfs| rootfs.driver.clone())
            .unwrap_or_default(),
        snapshot_key: rootfs.map(|rootfs| rootfs.key.clone()),
        spec,
    };
    run.surely(None, run.ctx(), create).await
}

async fn rootfs(run: &Run, asked: &CreateContainer) -> Result<Rootfs> {
    let (driver, here) = futures_util::try_join!(
        naming::snapshotter(run, &asked.snapshotter),
        here(run, asked)
    )?;
    let (name, plan) = match here {
        Some(here) => here,
        None => fetched(run, asked, &driver).await?,
    };
    let (key, mounts) = match prepare(run, asked, &driver, &plan).await {
        // It is not unpacked, or not any more: what is prepared on it from now on keeps it.
        Err(error) if error.is(Code::NotFound) && !plan.layers.is_empty() => {
            run.keep(vec![Resource::Content(plan.manifest.digest.clone())])
                .await?;
            unpack::unpack(run, None, &plan, &driver).await?;
            prepare(run, asked, &driver, &plan).await?
        }
        prepared => prepared?,
    };
    Ok(Rootfs {
        image: name,
        driver,
        key,
        mounts,
        config: plan.config_json,
    })
}

/// Makes the writable snapshot, or finds it made by an earlier attempt. Errors: `NotFound` when the image is not unpacked.
async fn prepare(
    run: &Run,
    asked: &CreateContainer,
    driver: &str,
    plan: &ImagePlan,
) -> Result<(SnapshotKey, Vec<Mount>)> {
    let top = plan.layers.last().and_then(|layer| layer.chain_id.as_ref());
    let key = SnapshotKey::new(asked.id.as_str())?;
    let prepare = Prepare {
        key: key.clone(),
        parent: top
            .map(|chain| SnapshotKey::new(chain.as_str()))
            .transpose()?,
        labels: run.owned(),
    };
    let mounts = match run.surely(Some(driver), run.ctx(), prepare).await {
        Err(error) if error.is(Code::AlreadyExists) => found(run, driver, &key).await,
        prepared => prepared,
    }?;
    Ok((key, mounts))
}

async fn found(run: &Run, driver: &str, key: &SnapshotKey) -> Result<Vec<Mount>> {
    let key = key.clone();
    let info = run
        .call_at_driver(driver, Stat { key: key.clone() })
        .await?;
    if run.owns(&info.labels) {
        return run.call_at_driver(driver, Mounts { key }).await;
    }
    Err(Error::exists(format!(
        "snapshot {key}: is there and not of this container; remove it or choose another id"
    )))
}

/// Pulls the image when that is wanted.
async fn fetched(
    run: &Run,
    asked: &CreateContainer,
    driver: &str,
) -> Result<(ImageName, ImagePlan)> {
    if asked.pull == "never" {
        return Err(Error::not_found(format!(
            "image {}: not here, and pull is \"never\"; pull it first",
            naming::full(&asked.image)?
        )));
    }
    let request = Pull {
        reference: asked.image.clone(),
        platform: asked.platform.clone(),
        snapshotter: driver.into(),
        access: asked.access.clone(),
        ..Pull::default()
    };
    let pulled = pull::held(run, &request).await?;
    let plan = run.call(Plan {
        target: pulled.target,
        platform: asked.platform.clone(),
        shallow: false,
    });
    Ok((pulled.name, plan.await?))
}

/// Finds the image and what it is made of; `None` when any of it is not here, or shall be looked for anew.
async fn here(run: &Run, asked: &CreateContainer) -> Result<Option<(ImageName, ImagePlan)>> {
    if asked.pull == "always" {
        return Ok(None);
    }
    let Some(image) = naming::here(run, &asked.image).await? else {
        return Ok(None);
    };
    let plan = run.call(Plan {
        target: image.target,
        platform: asked.platform.clone(),
        shallow: false,
    });
    Ok(maybe(plan.await)?.map(|plan| (image.name, plan)))
}

async fn spec(run: &Run, asked: &CreateContainer, rootfs: &Rootfs) -> Result<String> {
    let (passwd, group) = futures_util::try_join!(
        account_file(run, &rootfs.mounts, "/etc/passwd"),
        account_file(run, &rootfs.mounts, "/etc/group")
    )?;
    let generate = Generate {
        id: asked.id.clone(),
        config: rootfs.config.clone(),
        passwd,
        group,
        options: asked.options.clone(),
    };
    run.call(generate).await
}

/// A file that maps names to ids; an image without one has no names.
async fn account_file(run: &Run, mounts: &[Mount], path: &str) -> Result<String> {
    let lookup = Lookup {
        mounts: mounts.to_vec(),
        path: path.into(),
        limit: ACCOUNTS,
    };
    let Some(found) = maybe(run.call(lookup).await)? else {
        return Ok(String::new());
    };
    let broken = |e: std::io::Error| Error::internal(format!("{path} of the image: {e}"));
    let mut bytes = Vec::new();
    let file = std::fs::File::from(found.fd.into_owned().map_err(broken)?);
    // A sealed copy in memory: reading it does not block.
    file.take(ACCOUNTS)
        .read_to_end(&mut bytes)
        .map_err(broken)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
