//! Leases: what they hold stays until they are released or expire.

use crate::convert::lease::{LeaseView, ResourceView};
use crate::convert::{DryView, LabelBody};
use crate::errors::{Answer, Problem};
use crate::lists;
use crate::request::{Request, created, encode, nothing, ok};
use crate::router::{Route, delete, get, patch, post};
use contracts::LeaseId;
use contracts::collect::Resource;
use contracts::leases::{Add, Create, Delete, Get, List, Remove, Resources, Update};
use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces/{ns}/leases", list)
            .says("Leases, by id")
            .lists::<LeaseView>(),
        post("/v1/namespaces/{ns}/leases", create)
            .says("Makes a lease; name it in Gantry-Lease to have it hold what a request makes")
            .takes::<LeaseBody>()
            .answers::<LeaseView>()
            .status(201),
        get("/v1/namespaces/{ns}/leases/{id*}/resources", resources)
            .says("What a lease holds")
            .lists::<ResourceView>(),
        post("/v1/namespaces/{ns}/leases/{id*}/resources", add)
            .says("Lets a lease hold more")
            .takes::<ResourcesBody>()
            .status(204),
        delete("/v1/namespaces/{ns}/leases/{id*}/resources", drop_some)
            .says("Lets a lease hold less")
            .takes::<ResourcesBody>()
            .status(204),
        get("/v1/namespaces/{ns}/leases/{id*}", show)
            .says("One lease")
            .answers::<LeaseView>(),
        patch("/v1/namespaces/{ns}/leases/{id*}", relabel)
            .says("Changes labels")
            .takes::<LabelBody>()
            .answers::<LeaseView>(),
        delete("/v1/namespaces/{ns}/leases/{id*}", release)
            .says("Releases a lease")
            .dry()
            .status(204),
    ]
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    lists::listed::<LeaseView, _, _>(&request, List { paging }).await
}

/// A lease to make.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = NewLease)]
struct LeaseBody {
    /// Its id; made up when absent.
    id: Option<String>,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// Seconds until it ends by itself; absent for never.
    expires_in: Option<u64>,
}

async fn create(mut request: Request) -> Answer {
    let body: LeaseBody = request.json().await?;
    let create = Create {
        id: body.id.map(LeaseId::new).transpose()?,
        labels: body.labels,
        expires_in: body.expires_in,
    };
    let lease = LeaseView::from(request.call(create).await?);
    let id = encode(lease.id.as_str());
    let place = format!("/v1/namespaces/{}/leases/{id}", request.text("ns"));
    created(&place, lease)
}

async fn show(request: Request) -> Answer {
    let id = request.part("id")?;
    ok(LeaseView::from(request.call(Get { id }).await?))
}

async fn relabel(mut request: Request) -> Answer {
    let body: LabelBody = request.json().await?;
    let update = Update {
        id: request.part("id")?,
        labels: body.into(),
    };
    ok(LeaseView::from(request.call(update).await?))
}

async fn release(request: Request) -> Answer {
    let id: LeaseId = request.part("id")?;
    if request.dry_run()? {
        let lease = LeaseView::from(request.call(Get { id }).await?);
        return ok(DryView::would("release the lease", lease));
    }
    request.call(Delete { id }).await?;
    nothing()
}

async fn resources(request: Request) -> Answer {
    let resources = Resources {
        id: request.part("id")?,
        paging: request.paging()?,
    };
    lists::listed::<ResourceView, _, _>(&request, resources).await
}

/// What to hold, or no longer to hold.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LeasedResources)]
struct ResourcesBody {
    /// By type and id.
    resources: Vec<ResourceView>,
}

async fn named(request: &mut Request) -> Result<(LeaseId, Vec<Resource>), Problem> {
    let body: ResourcesBody = request.json().await?;
    let resources = body.resources.into_iter().map(Resource::try_from);
    Ok((request.part("id")?, resources.collect::<Result<_, _>>()?))
}

async fn add(mut request: Request) -> Answer {
    let (id, resources) = named(&mut request).await?;
    request.call(Add { id, resources }).await?;
    nothing()
}

async fn drop_some(mut request: Request) -> Answer {
    let (id, resources) = named(&mut request).await?;
    request.call(Remove { id, resources }).await?;
    nothing()
}
