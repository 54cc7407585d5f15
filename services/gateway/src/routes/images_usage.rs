//! What images hold: config, sizes, and which of them nobody uses.

use super::images_names::find;
use crate::convert::snapshot::UsageView;
use crate::errors::{Answer, Problem};
use crate::param::{self, Param};
use crate::request::{Request, ok};
use crate::router::{Route, get, post};
use contracts::images::{Delete, List};
use contracts::snapshots::{Snapshots, Usage};
use contracts::transfer::{ImagePlan, Plan};
use contracts::{Code, ImageName, PluginId, Result, SnapshotKey, containers};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

const PLATFORM: Param = param::text("platform", "`linux/arm64/v8`; this machine's when absent");

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/namespaces/{ns}/images:prune", prune)
            .says("Deletes images that no container uses; a dry run lists them")
            .takes::<PruneBody>()
            .dry()
            .answers::<PrunedView>(),
        get("/v1/namespaces/{ns}/images/{name*}/config", config)
            .says("The image's OCI config, exactly as it was hashed")
            .query(&[PLATFORM]),
        get("/v1/namespaces/{ns}/images/{name*}/usage", usage)
            .says("What the image holds: blobs, and snapshots by driver")
            .query(&[PLATFORM])
            .answers::<ImageUsageView>(),
    ]
}

async fn plan(request: &Request) -> Result<ImagePlan, Problem> {
    let plan = Plan {
        target: find(request).await?.target,
        platform: request.query("platform").unwrap_or_default().into(),
        shallow: false,
    };
    Ok(request.call(plan).await?)
}

async fn config(request: Request) -> Answer {
    let plan = plan(&request).await?;
    Ok(actix_web::HttpResponse::Ok()
        .insert_header(("etag", format!("\"{}\"", plan.config.digest)))
        .content_type("application/json")
        .body(plan.config_json))
}

/// What an image holds.
#[derive(Serialize, ToSchema)]
#[schema(as = ImageUsage)]
struct ImageUsageView {
    /// Bytes of its manifest, config and layers as they came.
    content: u64,
    /// Unpacked layers, by driver.
    snapshots: Vec<DriverUsageView>,
}

/// What a driver holds of an image.
#[derive(Serialize, ToSchema)]
#[schema(as = DriverUsage)]
struct DriverUsageView {
    /// `overlayfs`, `native`.
    snapshotter: String,
    /// Its layers together.
    #[serde(flatten)]
    used: UsageView,
}

async fn usage(request: Request) -> Answer {
    let plan = plan(&request).await?;
    let layers: u64 = plan.layers.iter().map(|layer| layer.blob.size).sum();
    let mut snapshots = Vec::new();
    for driver in request.bus().peers::<Snapshots>() {
        snapshots.extend(unpacked(&request, driver, &plan).await?);
    }
    ok(ImageUsageView {
        content: plan.manifest.size + plan.config.size + layers,
        snapshots,
    })
}

/// What a driver holds of the image's layers; nothing when it holds none.
async fn unpacked(
    request: &Request,
    driver: &PluginId,
    plan: &ImagePlan,
) -> Result<Option<DriverUsageView>> {
    let (mut size, mut inodes, mut found) = (0, 0, false);
    for chain in plan
        .layers
        .iter()
        .filter_map(|layer| layer.chain_id.as_ref())
    {
        let usage = Usage {
            key: SnapshotKey::new(chain.as_str())?,
        };
        match request.bus().call_at(driver, &request.ctx, usage).await {
            Ok(used) => (size, inodes, found) = (size + used.size, inodes + used.inodes, true),
            Err(error) if error.is(Code::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found.then(|| DriverUsageView {
        snapshotter: driver.id().into(),
        used: UsageView { size, inodes },
    }))
}

/// Which unused images to delete.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Prune)]
struct PruneBody {
    /// Only images that pass one of these; all when empty.
    filters: Vec<String>,
}

/// What pruning deleted, or would delete.
#[derive(Serialize, ToSchema)]
#[schema(as = Pruned)]
struct PrunedView {
    /// Image names. Their content goes with the next collection.
    #[schema(value_type = Vec<String>)]
    items: Vec<ImageName>,
}

async fn prune(mut request: Request) -> Answer {
    let body: PruneBody = request.json().await?;
    let used = used_images(&request).await?;
    let mut unused = Vec::new();
    let mut paging = contracts::Paging {
        filters: body.filters,
        ..Default::default()
    };
    loop {
        let page = request
            .call(List {
                paging: paging.clone(),
            })
            .await?;
        let names = page.items.into_iter().map(|image| image.name);
        unused.extend(names.filter(|name| !used.contains(name)));
        if page.next.is_empty() {
            break;
        }
        paging.token = page.next;
    }
    if !request.dry_run()? {
        for name in &unused {
            let delete = Delete {
                name: name.clone(),
                version: None,
            };
            match request.call(delete).await {
                // Somebody was faster.
                Err(error) if error.is(Code::NotFound) => {}
                deleted => deleted?,
            }
        }
    }
    ok(PrunedView { items: unused })
}

async fn used_images(request: &Request) -> Result<BTreeSet<ImageName>> {
    let mut used = BTreeSet::new();
    let mut paging = contracts::Paging::default();
    loop {
        let list = containers::List {
            paging: paging.clone(),
        };
        let page = request.call(list).await?;
        used.extend(
            page.items
                .into_iter()
                .filter_map(|container| container.image),
        );
        if page.next.is_empty() {
            return Ok(used);
        }
        paging.token = page.next;
    }
}
