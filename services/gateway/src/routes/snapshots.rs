//! Snapshots of each driver. Mounts are data here: nothing is mounted.

use crate::convert::snapshot::{MountsView, SnapshotView, UsageView};
use crate::convert::{DryView, LabelBody, PageView};
use crate::errors::Answer;
use crate::lists;
use crate::request::{Request, created, encode, nothing, ok};
use crate::router::{Route, delete, get, patch, post};
use contracts::snapshots::{
    Commit, Driver, List, Mounts, Prepare, Remove, Snapshots, Stat, Update, Usage, View,
};
use contracts::{Error, Result, SnapshotKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces/{ns}/snapshots", drivers)
            .says("Snapshot drivers")
            .lists::<DriverView>(),
        get("/v1/namespaces/{ns}/snapshots/{driver}", list)
            .says("Snapshots of a driver, by key")
            .lists::<SnapshotView>(),
        post("/v1/namespaces/{ns}/snapshots/{driver}", make)
            .says("Makes a writable snapshot, or a read-only view, and answers its mounts")
            .takes::<SnapshotBody>()
            .answers::<MountsView>()
            .status(201),
        get("/v1/namespaces/{ns}/snapshots/{driver}/{key*}/usage", usage)
            .says("What a snapshot itself holds, without its parents")
            .answers::<UsageView>(),
        get(
            "/v1/namespaces/{ns}/snapshots/{driver}/{key*}/mounts",
            mounts,
        )
        .says("How an active or view snapshot is mounted")
        .answers::<MountsView>(),
        get("/v1/namespaces/{ns}/snapshots/{driver}/{key*}", show)
            .says("One snapshot")
            .answers::<SnapshotView>(),
        post("/v1/namespaces/{ns}/snapshots/{driver}/{key*}", make)
            .says("As POST on the driver, with the key in the path")
            .takes::<SnapshotBody>()
            .answers::<MountsView>()
            .status(201),
        post(
            "/v1/namespaces/{ns}/snapshots/{driver}/{key*}:commit",
            commit,
        )
        .says("Turns an active snapshot into a committed one under a name")
        .takes::<CommitBody>()
        .answers::<SnapshotView>()
        .status(201),
        patch("/v1/namespaces/{ns}/snapshots/{driver}/{key*}", relabel)
            .says("Changes labels")
            .takes::<LabelBody>()
            .answers::<SnapshotView>(),
        delete("/v1/namespaces/{ns}/snapshots/{driver}/{key*}", remove)
            .says("Removes a snapshot and its files")
            .dry()
            .status(204),
    ]
}

/// Calls the driver of the path.
async fn ask<R>(request: &Request, message: R) -> Result<R::Reply>
where
    R: contracts::Request<Service = Snapshots>,
{
    request
        .bus()
        .call_named(request.text("driver"), &request.ctx, message)
        .await
}

/// A driver.
#[derive(Serialize, ToSchema)]
#[schema(as = Driver)]
struct DriverView {
    /// `overlayfs`, `native`.
    name: String,
    /// Whether a parent may be set when committing.
    rebase: bool,
}

async fn drivers(request: Request) -> Answer {
    let mut views = Vec::new();
    for driver in request.bus().peers::<Snapshots>() {
        let info = request
            .bus()
            .call_at(driver, &request.ctx, Driver {})
            .await?;
        views.push(DriverView {
            name: info.name,
            rebase: info.rebase,
        });
    }
    lists::part(&request, views)
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    let version = lists::version(&request).await;
    let page = PageView::<SnapshotView>::of(ask(&request, List { paging }).await?);
    ok(PageView { version, ..page })
}

async fn find(request: &Request, key: SnapshotKey) -> Result<SnapshotView> {
    Ok(ask(request, Stat { key }).await?.into())
}

async fn show(request: Request) -> Answer {
    let key = request.part("key")?;
    ok(find(&request, key).await?)
}

async fn usage(request: Request) -> Answer {
    let key = request.part("key")?;
    ok(UsageView::from(ask(&request, Usage { key }).await?))
}

async fn mounts(request: Request) -> Answer {
    let key = request.part("key")?;
    ok(MountsView::from(ask(&request, Mounts { key }).await?))
}

/// Which kind of snapshot to make.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = NewSnapshotKind)]
enum Kind {
    /// Writable.
    #[default]
    Active,
    /// Read-only.
    View,
}

/// A snapshot to make.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = NewSnapshot)]
struct SnapshotBody {
    /// Its key, unless the path says it.
    key: Option<String>,
    /// A committed snapshot; absent for an empty one.
    parent: Option<String>,
    /// `active` (the default) or `view`.
    kind: Kind,
    /// Its labels.
    labels: BTreeMap<String, String>,
}

async fn make(mut request: Request) -> Answer {
    let body: SnapshotBody = request.json().await?;
    let key = match (request.text("key"), body.key) {
        ("", None) => return Err(Error::invalid("key: name the new snapshot").into()),
        ("", Some(key)) => key,
        (path, Some(key)) if path != key => {
            return Err(Error::invalid(format!("key {key}: the path says {path}")).into());
        }
        (path, _) => path.to_owned(),
    };
    let key = SnapshotKey::new(key)?;
    let place = place(&request, &key);
    let (parent, labels) = (body.parent.map(SnapshotKey::new).transpose()?, body.labels);
    let mounts = match body.kind {
        Kind::Active => {
            let prepare = Prepare {
                key,
                parent,
                labels,
            };
            ask(&request, prepare).await?
        }
        Kind::View => {
            let view = View {
                key,
                parent,
                labels,
            };
            ask(&request, view).await?
        }
    };
    created(&place, MountsView::from(mounts))
}

fn place(request: &Request, key: &SnapshotKey) -> String {
    let (ns, driver) = (request.text("ns"), request.text("driver"));
    format!(
        "/v1/namespaces/{ns}/snapshots/{driver}/{}",
        encode(key.as_str())
    )
}

/// A committed snapshot to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SnapshotCommit)]
struct CommitBody {
    /// The name it becomes visible under.
    name: String,
    /// Sets the parent of a snapshot that was prepared without one.
    #[serde(default)]
    parent: Option<String>,
    /// Its labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

async fn commit(mut request: Request) -> Answer {
    let body: CommitBody = request.json().await?;
    let name = SnapshotKey::new(body.name)?;
    let commit = Commit {
        name: name.clone(),
        key: request.part("key")?,
        parent: body.parent.map(SnapshotKey::new).transpose()?,
        labels: body.labels,
    };
    ask(&request, commit).await?;
    let place = place(&request, &name);
    created(&place, find(&request, name).await?)
}

async fn relabel(mut request: Request) -> Answer {
    let body: LabelBody = request.json().await?;
    let update = Update {
        key: request.part("key")?,
        labels: body.into(),
    };
    ok(SnapshotView::from(ask(&request, update).await?))
}

async fn remove(request: Request) -> Answer {
    let key: SnapshotKey = request.part("key")?;
    if request.dry_run()? {
        let snapshot = find(&request, key).await?;
        return ok(DryView::would("remove the snapshot", snapshot));
    }
    ask(&request, Remove { key }).await?;
    nothing()
}
