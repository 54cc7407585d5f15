//! The owners of all that can be collected, and the collector, over the bus inside one process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;

use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Bus, Ctx};
use contracts::collect::{Node, Resource};
use contracts::events::{Append, Events};
use contracts::gc::{Collect, Collected, Plan, Why};
use contracts::{
    Code, ContainerId, Descriptor, Digest, ImageName, LabelPatch, Labels, LeaseId, Namespace,
    Paging, Ref, Request, Result, SnapshotKey,
};
use contracts::{containers as c, content as b, images as i, leases as l, snapshots as s};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// All owners and the collector, with folders of their own.
pub(crate) struct House {
    pub(crate) node: LocalNode,
    pub(crate) tenant: Tenant,
    _folder: TempDir,
}

/// Starts everything; nobody collects by the clock.
pub(crate) fn house() -> House {
    let folder = tempfile::tempdir().unwrap();
    let log = Fake::<Events>::new("log")
        .on(|_, append: Append| Ok(append.first + append.entries.len() as u64 - 1));
    let node = LocalBus::new()
        .fake(log)
        .plugin(leases::plugin())
        .plugin(content::plugin())
        .plugin(snapshots::overlayfs())
        .plugin(snapshots::native())
        .plugin(images::plugin())
        .plugin(containers::plugin())
        .plugin_with(gc::plugin(), r#"{"interval": 0}"#)
        .start(folder.path())
        .unwrap();
    let tenant = Tenant {
        bus: node.bus(),
        namespace: Namespace::new("test").unwrap(),
    };
    House {
        node,
        tenant,
        _folder: folder,
    }
}

/// Somebody who makes and needs things in one namespace.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) bus: Bus,
    pub(crate) namespace: Namespace,
}

/// An image as documents: what a pull would bring.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Image {
    /// An image of some layers, each named by a number: the same number is the same layer.
    pub(crate) fn of(layers: &[u64]) -> Self {
        let named = |what: &str| format!("{what} of {layers:?}").into_bytes();
        Self {
            manifest: named("manifest"),
            config: named("config"),
            layers: layers
                .iter()
                .map(|number| format!("layer {number}").into_bytes())
                .collect(),
        }
    }

    /// Every blob.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.layers)
    }

    /// Names of the snapshots, bottom first.
    pub(crate) fn chain(&self) -> Vec<SnapshotKey> {
        let mut name = String::from("chain");
        let step = |layer: &Vec<u8>| {
            name = format!("{name}/{}", String::from_utf8_lossy(layer));
            SnapshotKey::new(name.clone()).unwrap()
        };
        self.layers.iter().map(step).collect()
    }

    /// Name of the topmost snapshot.
    pub(crate) fn top(&self) -> SnapshotKey {
        self.chain().pop().unwrap()
    }

    fn labels(&self) -> Labels {
        let children = [&self.config].into_iter().chain(&self.layers).enumerate();
        children
            .map(|(index, blob)| {
                let label = format!("containerd.io/gc.ref.content.{index}");
                (label, digest(blob).to_string())
            })
            .collect()
    }
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::sha256(&Sha256::digest(bytes).into())
}

pub(crate) fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: digest(bytes),
        size: bytes.len() as u64,
        annotations: Labels::new(),
        platform: None,
        urls: Vec::new(),
    }
}

/// Takes an answer that the repetition of a step gets.
fn or_there<T>(result: Result<T>, there: Code) -> Result<Option<T>> {
    match result {
        Err(error) if error.is(there) => Ok(None),
        result => result.map(Some),
    }
}

impl Tenant {
    pub(crate) fn ctx(&self) -> Ctx {
        Ctx::new(Some(self.namespace.clone()))
    }

    pub(crate) async fn call<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.bus.call(&self.ctx(), request).await
    }

    /// Makes a lease, and answers a context under it.
    pub(crate) async fn lease(&self, id: &str, labels: Labels) -> Result<Ctx> {
        let id = LeaseId::new(id)?;
        let create = l::Create {
            id: Some(id.clone()),
            labels,
            expires_in: None,
        };
        self.call(create).await?;
        Ok(self.ctx().with_lease(Some(id)))
    }

    pub(crate) async fn release(&self, ctx: &Ctx) -> Result<()> {
        let id = ctx.lease.clone().unwrap();
        self.call(l::Delete { id }).await
    }

    /// Brings a blob in through an ingest of its own.
    pub(crate) async fn blob(&self, ctx: &Ctx, bytes: &[u8], labels: Labels) -> Result<Digest> {
        let digest = digest(bytes);
        let name = Ref::new(format!("{} for {}", digest, ctx.operation))?;
        let write = b::Write {
            r#ref: name.clone(),
            expected: Some(digest.clone()),
            total: bytes.len() as u64,
            restart: false,
        };
        let Some(writer) = or_there(self.bus.call(ctx, write).await, Code::AlreadyExists)? else {
            return Ok(digest);
        };
        // Less than a pipe holds: this does not block.
        let pipe = File::from(writer.pipe.into_owned().unwrap());
        (&pipe).write_all(bytes).unwrap();
        drop(pipe);
        let commit = b::Commit {
            r#ref: name,
            size: None,
            expected: Some(digest.clone()),
            labels,
        };
        self.bus.call(ctx, commit).await?;
        Ok(digest)
    }

    pub(crate) fn labelled(&self, bytes: &[u8], label: &str, value: &str) -> b::Update {
        let labels = LabelPatch {
            replace: false,
            set: [(label.to_owned(), Some(value.to_owned()))].into(),
        };
        let digest = digest(bytes);
        b::Update { digest, labels }
    }

    /// Prepares and commits one layer, unless it is there.
    pub(crate) async fn layer(
        &self,
        ctx: &Ctx,
        driver: &str,
        name: &SnapshotKey,
        parent: Option<SnapshotKey>,
    ) -> Result<()> {
        let key = SnapshotKey::new(format!("extract {} {name}", ctx.operation))?;
        let prepare = s::Prepare {
            key: key.clone(),
            parent,
            labels: Labels::new(),
        };
        self.bus.call_named(driver, ctx, prepare).await?;
        let commit = s::Commit {
            name: name.clone(),
            key: key.clone(),
            parent: None,
            labels: Labels::new(),
        };
        let commit = self.bus.call_named(driver, ctx, commit).await;
        if or_there(commit, Code::AlreadyExists)?.is_none() {
            let gone = self.bus.call_named(driver, ctx, s::Remove { key }).await;
            or_there(gone, Code::NotFound)?;
        }
        Ok(())
    }

    /// Brings in documents, layers and snapshots under the lease of `ctx`, as a pull does, and names nothing.
    pub(crate) async fn bring(&self, ctx: &Ctx, driver: &str, image: &Image) -> Result<()> {
        self.blob(ctx, &image.manifest, image.labels()).await?;
        for blob in image.blobs().skip(1) {
            self.blob(ctx, blob, Labels::new()).await?;
        }
        // Found or made: what is held cannot go while the next layer is made upon it.
        let hold = |key| Resource::Snapshot {
            driver: driver.into(),
            key,
        };
        let id = ctx.lease.clone().unwrap();
        let resources = image.chain().into_iter().map(hold).collect();
        self.bus.call(ctx, l::Add { id, resources }).await?;
        let mut parent = None;
        for name in image.chain() {
            let stat = s::Stat { key: name.clone() };
            let there = or_there(self.bus.call_named(driver, ctx, stat).await, Code::NotFound)?;
            if there.is_none() {
                self.layer(ctx, driver, &name, parent).await?;
            }
            parent = Some(name);
        }
        let label = format!("containerd.io/gc.ref.snapshot.{driver}");
        let update = self.labelled(&image.config, &label, image.top().as_str());
        self.bus.call(ctx, update).await.map(drop)
    }

    pub(crate) fn put(&self, name: &ImageName, image: &Image) -> i::Put {
        i::Put {
            name: name.clone(),
            target: descriptor(&image.manifest),
            labels: Labels::new(),
            version: None,
        }
    }

    pub(crate) async fn name(&self, name: &str, image: &Image) -> Result<()> {
        let put = self.put(&ImageName::new(name)?, image);
        self.call(put).await.map(drop)
    }

    /// A whole pull: lease, content, snapshots, name, and the lease goes.
    pub(crate) async fn pull(
        &self,
        id: &str,
        driver: &str,
        name: &str,
        image: &Image,
    ) -> Result<()> {
        let ctx = self.lease(id, Labels::new()).await?;
        self.bring(&ctx, driver, image).await?;
        self.name(name, image).await?;
        self.release(&ctx).await
    }

    pub(crate) async fn forget(&self, name: &str) -> Result<()> {
        let name = ImageName::new(name)?;
        self.call(i::Delete {
            name,
            version: None,
        })
        .await
    }

    /// A container on an image, under the lease of `ctx`.
    pub(crate) async fn container(
        &self,
        ctx: &Ctx,
        id: &str,
        driver: &str,
        image: &Image,
    ) -> Result<()> {
        let key = SnapshotKey::new(id)?;
        let prepare = s::Prepare {
            key: key.clone(),
            parent: Some(image.top()),
            labels: Labels::new(),
        };
        self.bus.call_named(driver, ctx, prepare).await?;
        let create = self.record(driver, &key)?;
        self.bus.call(ctx, create).await.map(drop)
    }

    /// The record of a container that has the name of its snapshot.
    pub(crate) fn record(&self, driver: &str, key: &SnapshotKey) -> Result<c::Create> {
        Ok(c::Create {
            id: ContainerId::new(key.as_str())?,
            image: None,
            labels: Labels::new(),
            runtime: c::Runtime::default(),
            snapshotter: driver.into(),
            snapshot_key: Some(key.clone()),
            spec: SPEC.into(),
        })
    }

    pub(crate) async fn collect(&self) -> Result<Collected> {
        self.bus.call(&Ctx::new(None), Collect {}).await
    }

    pub(crate) async fn plan(&self) -> Result<Collected> {
        self.bus.call(&Ctx::new(None), Plan {}).await
    }

    /// The reasons why something stays, from its root on.
    pub(crate) async fn why(&self, resource: Resource) -> Result<Vec<String>> {
        let node = Node {
            namespace: self.namespace.clone(),
            resource,
        };
        let edges = self.bus.call(&Ctx::new(None), Why { node }).await?;
        Ok(edges.into_iter().map(|edge| edge.reason).collect())
    }

    /// All that is there, without touching it: blobs by digest, snapshots by driver and key.
    pub(crate) async fn there(&self) -> Result<BTreeSet<String>> {
        let mut there = BTreeSet::new();
        for driver in ["overlayfs", "native"] {
            let mut paging = Paging::default();
            loop {
                let list = s::List {
                    paging: paging.clone(),
                };
                let page = self.bus.call_named(driver, &self.ctx(), list).await?;
                let names = page.items.into_iter();
                there.extend(names.map(|info| format!("{driver} {}", info.key)));
                if page.next.is_empty() {
                    break;
                }
                paging.token = page.next;
            }
        }
        let mut paging = Paging::default();
        loop {
            let list = b::List {
                paging: paging.clone(),
            };
            let page = self.call(list).await?;
            there.extend(page.items.into_iter().map(|blob| blob.digest.to_string()));
            if page.next.is_empty() {
                return Ok(there);
            }
            paging.token = page.next;
        }
    }

    /// What an image consists of, as [`Tenant::there`] names it.
    pub(crate) fn parts(&self, driver: &str, image: &Image) -> BTreeSet<String> {
        let blobs = image.blobs().map(|blob| digest(blob).to_string());
        let chain = image.chain().into_iter();
        blobs
            .chain(chain.map(|key| format!("{driver} {key}")))
            .collect()
    }

    /// What is missing of an image.
    pub(crate) async fn missing(&self, driver: &str, image: &Image) -> Result<BTreeSet<String>> {
        let there = self.there().await?;
        Ok(&self.parts(driver, image) - &there)
    }
}

const SPEC: &str = r#"{"ociVersion":"1.0.2","process":{"user":{"uid":0,"gid":0},"cwd":"/","args":["true"]},"root":{"path":"rootfs"}}"#;
