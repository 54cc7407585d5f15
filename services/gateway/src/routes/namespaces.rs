//! Namespaces: the tenants of the node.

use crate::convert::namespace::NamespaceView;
use crate::convert::{DryView, LabelBody};
use crate::errors::Answer;
use crate::lists;
use crate::request::{Request, nothing, ok};
use crate::router::{Route, delete, get, patch, put};
use contracts::Result;
use contracts::namespaces::{Delete, Get, List, Put, Update};
use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces", list)
            .says("Namespaces, by name")
            .lists::<NamespaceView>(),
        get("/v1/namespaces/{ns}", show)
            .says("One namespace")
            .answers::<NamespaceView>(),
        put("/v1/namespaces/{ns}", make)
            .says("Makes a namespace, or replaces its labels; only makes with If-None-Match: *")
            .takes::<NamespaceBody>()
            .answers::<NamespaceView>(),
        patch("/v1/namespaces/{ns}", relabel)
            .says("Changes labels")
            .takes::<LabelBody>()
            .answers::<NamespaceView>(),
        delete("/v1/namespaces/{ns}", remove)
            .says("Deletes an empty namespace; 409 naming what it still holds")
            .dry()
            .status(204),
    ]
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    lists::listed::<NamespaceView, _, _>(&request, List { paging }).await
}

async fn find(request: &Request) -> Result<NamespaceView> {
    let name = request.ctx.namespace()?.clone();
    Ok(request.call(Get { name }).await?.into())
}

async fn show(request: Request) -> Answer {
    ok(find(&request).await?)
}

/// A namespace to make.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = NewNamespace)]
struct NamespaceBody {
    /// Its labels from now on.
    labels: BTreeMap<String, String>,
}

async fn make(mut request: Request) -> Answer {
    let body: NamespaceBody = request.json().await?;
    let put = Put {
        name: request.ctx.namespace()?.clone(),
        labels: body.labels,
        create_only: request.version()? == Some(0),
    };
    ok(NamespaceView::from(request.call(put).await?))
}

async fn relabel(mut request: Request) -> Answer {
    let body: LabelBody = request.json().await?;
    let update = Update {
        name: request.ctx.namespace()?.clone(),
        labels: body.into(),
    };
    ok(NamespaceView::from(request.call(update).await?))
}

async fn remove(request: Request) -> Answer {
    if request.dry_run()? {
        return ok(DryView::would(
            "delete the namespace",
            find(&request).await?,
        ));
    }
    let name = request.ctx.namespace()?.clone();
    request.call(Delete { name }).await?;
    nothing()
}
