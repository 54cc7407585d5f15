//! Create and run: image → snapshot → spec → record → task.

use super::{naming, pull, unpack};
use crate::run::{Run, maybe, undone};
use contracts::containers::{Container, Create, Delete, Generate, Get};
use contracts::diff::Lookup;
use contracts::images;
use contracts::operations::{CreateContainer, Pull};
use contracts::snapshots::{Mounts, Prepare, Remove, Stat};
use contracts::tasks::{self, Stdio, Task};
use contracts::transfer::{ImagePlan, Plan};
use contracts::{Code, Error, ImageName, Labels, Mount, Result, SnapshotKey};
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

/// Makes a container.
pub(super) async fn create(run: &Run, asked: &CreateContainer) -> Result<Container> {
    check(asked)?;
    fresh(run, asked).await?;
    let lease = run.hold().await?;
    let made = make(&run.held_by(&lease), asked).await;
    unpack::discard(run).await;
    run.release(lease).await;
    made
}

/// Makes a container and starts its task. A failure leaves neither.
pub(super) async fn run(run: &Run, asked: &CreateContainer) -> Result<Task> {
    let container = create(run, asked).await?;
    run.board.part("task", "starting", 0, 0);
    match start(run, asked).await {
        Ok(task) => {
            run.board.part("task", "done", 0, 0);
            Ok(task)
        }
        Err(error) => {
            let delete = tasks::Delete {
                id: asked.id.clone(),
                exec: None,
                force: true,
            };
            undone("task", run.bus.call(&run.anew(), delete).await.map(|_| ()));
            undone(
                "container",
                run.bus
                    .call(
                        &run.anew(),
                        Delete {
                            id: asked.id.clone(),
                        },
                    )
                    .await,
            );
            if let Some(key) = container.snapshot_key {
                undone(
                    "snapshot",
                    run.bus
                        .call_named(&container.snapshotter, &run.anew(), Remove { key })
                        .await,
                );
            }
            Err(error)
        }
    }
}

async fn start(run: &Run, asked: &CreateContainer) -> Result<Task> {
    let stdio = Stdio {
        tty: asked.options.tty,
        stdin: asked.options.stdin,
        discard: false,
    };
    run.call(tasks::Create {
        id: asked.id.clone(),
        rootfs: None,
        stdio,
    })
    .await?;
    run.call(tasks::Start {
        id: asked.id.clone(),
        exec: None,
    })
    .await
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

/// Refuses a taken id before anything is made. A later attempt of this operation may meet its own container.
async fn fresh(run: &Run, asked: &CreateContainer) -> Result<()> {
    match maybe(
        run.call(Get {
            id: asked.id.clone(),
        })
        .await,
    )? {
        Some(_) if run.attempt == 0 => Err(Error::exists(format!(
            "container {}: is there already; delete it or choose another id",
            asked.id
        ))),
        _ => Ok(()),
    }
}

async fn make(run: &Run, asked: &CreateContainer) -> Result<Container> {
    let rootfs = if asked.image.is_empty() {
        None
    } else {
        Some(rootfs(run, asked).await?)
    };
    let made = record(run, asked, rootfs.as_ref()).await;
    if made.is_err()
        && let Some(Rootfs { driver, key, .. }) = rootfs
    {
        undone(
            "snapshot",
            run.bus
                .call_named(&driver, &run.anew(), Remove { key })
                .await,
        );
    }
    made
}

async fn record(run: &Run, asked: &CreateContainer, rootfs: Option<&Rootfs>) -> Result<Container> {
    let spec = match rootfs {
        Some(rootfs) if asked.spec.is_empty() => spec(run, asked, rootfs).await?,
        _ => asked.spec.clone(),
    };
    let create = Create {
        id: asked.id.clone(),
        image: rootfs.map(|rootfs| rootfs.image.clone()),
        labels: asked.labels.clone(),
        runtime: asked.runtime.clone(),
        snapshotter: rootfs
            .map(|rootfs| rootfs.driver.clone())
            .unwrap_or_default(),
        snapshot_key: rootfs.map(|rootfs| rootfs.key.clone()),
        spec,
    };
    run.call(create).await
}

async fn rootfs(run: &Run, asked: &CreateContainer) -> Result<Rootfs> {
    let driver = naming::snapshotter(run, &asked.snapshotter).await?;
    let (image, plan) = image(run, asked, &driver).await?;
    let top = plan.layers.last().and_then(|layer| layer.chain_id.as_ref());
    let parent = top
        .map(|chain| SnapshotKey::new(chain.as_str()))
        .transpose()?;
    let key = SnapshotKey::new(asked.id.as_str())?;
    let prepare = Prepare {
        key: key.clone(),
        parent,
        labels: Labels::new(),
    };
    let mounts = match run.call_at_driver(&driver, prepare).await {
        Err(error) if error.is(Code::AlreadyExists) && run.attempt > 0 => {
            run.bus
                .call_named(&driver, &run.anew(), Mounts { key: key.clone() })
                .await
        }
        Err(error) if error.is(Code::AlreadyExists) => Err(Error::exists(format!(
            "snapshot {key}: is left of an earlier container; remove it or choose another id"
        ))),
        result => result,
    }?;
    Ok(Rootfs {
        image,
        driver,
        key,
        mounts,
        config: plan.config_json,
    })
}

/// Finds the image, pulls it when that is wanted, and sees to it that it is unpacked.
async fn image(run: &Run, asked: &CreateContainer, driver: &str) -> Result<(ImageName, ImagePlan)> {
    let name = naming::full(run, &asked.image).await?;
    let here = if asked.pull == "always" {
        None
    } else {
        here(run, asked, &name).await?
    };
    let plan = match here {
        Some(plan) => plan,
        None if asked.pull == "never" => {
            return Err(Error::not_found(format!(
                "image {name}: not here, and pull is \"never\"; pull it first"
            )));
        }
        None => {
            let request = Pull {
                reference: asked.image.clone(),
                platform: asked.platform.clone(),
                snapshotter: driver.into(),
                access: asked.access.clone(),
                ..Pull::default()
            };
            let pulled = pull::held(run, &request).await?;
            run.call(Plan {
                target: pulled.target,
                platform: asked.platform.clone(),
                shallow: false,
            })
            .await?
        }
    };
    unpacked(run, &plan, driver).await?;
    Ok((name, plan))
}

async fn here(run: &Run, asked: &CreateContainer, name: &ImageName) -> Result<Option<ImagePlan>> {
    let Some(image) = maybe(run.call(images::Get { name: name.clone() }).await)? else {
        return Ok(None);
    };
    maybe(
        run.call(Plan {
            target: image.target,
            platform: asked.platform.clone(),
            shallow: false,
        })
        .await,
    )
}

async fn unpacked(run: &Run, plan: &ImagePlan, driver: &str) -> Result<()> {
    let Some(chain) = plan.layers.last().and_then(|layer| layer.chain_id.as_ref()) else {
        return Ok(());
    };
    let stat = Stat {
        key: SnapshotKey::new(chain.as_str())?,
    };
    if maybe(run.bus.call_named(driver, &run.anew(), stat).await)?.is_none() {
        unpack::unpack(run, None, plan, driver).await?;
    }
    Ok(())
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
