//! Images: names and what they stand for; pull, push, unpack.

use super::images_names::{find, meant, named};
use crate::convert::image::{AuthBody, DescriptorView, ImageView, PulledView, access};
use crate::convert::{DryView, LabelBody};
use crate::errors::Answer;
use crate::lists;
use crate::request::{Request, nothing, ok, versioned};
use crate::router::{Route, delete, get, patch, post, put};
use crate::work::{self, WAIT, When};
use contracts::images::{Delete, Get, List, Put, Tag, Update};
use contracts::operations::{Outcome, Pull, Push, Unpack, Work};
use contracts::transfer::Resolve;
use contracts::{Descriptor, ImageName};
use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/namespaces/{ns}/images:pull", pull)
            .says("Brings an image in and unpacks it; a dry run only asks the registry")
            .works(WAIT)
            .takes::<PullBody>()
            .dry()
            .answers::<PulledView>(),
        post("/v1/namespaces/{ns}/images:push", push)
            .says("Sends an image to a registry")
            .works(WAIT)
            .takes::<PushBody>()
            .answers::<PulledView>(),
        get("/v1/namespaces/{ns}/images", list)
            .says("Images, by name")
            .lists::<ImageView>(),
        post("/v1/namespaces/{ns}/images/{name*}:unpack", unpack)
            .says("Unpacks an image that is here")
            .works(WAIT)
            .takes::<UnpackBody>()
            .answers::<PulledView>(),
        post("/v1/namespaces/{ns}/images/{name*}:tag", tag)
            .says("Gives an image a second name")
            .takes::<TagBody>()
            .answers::<ImageView>()
            .status(201),
        get("/v1/namespaces/{ns}/images/{name*}", show)
            .says("One image")
            .answers::<ImageView>(),
        put("/v1/namespaces/{ns}/images/{name*}", make)
            .says("Makes the name, or points it elsewhere and replaces its labels")
            .takes::<PutBody>()
            .conditional()
            .dry()
            .answers::<ImageView>(),
        patch("/v1/namespaces/{ns}/images/{name*}", relabel)
            .says("Changes labels")
            .takes::<LabelBody>()
            .conditional()
            .answers::<ImageView>(),
        delete("/v1/namespaces/{ns}/images/{name*}", remove)
            .says("Deletes a name; its content stays until collected")
            .conditional()
            .dry()
            .status(204),
    ]
}

/// An image to bring in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Pull)]
struct PullBody {
    /// As a user types it: `busybox`, `127.0.0.1:5000/a/b:tag`, `…@sha256:…`.
    r#ref: String,
    /// `linux/arm64/v8`; empty for this machine's.
    #[serde(default)]
    platform: String,
    /// Fetch every platform of an index.
    #[serde(default)]
    all_platforms: bool,
    /// Snapshot driver; empty for the node's default.
    #[serde(default)]
    snapshotter: String,
    /// Only fetch.
    #[serde(default)]
    no_unpack: bool,
    /// Labels of the image.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Speak plain HTTP; loopback registries are tried so anyway.
    #[serde(default)]
    plain_http: bool,
    /// Credentials; absent for anonymous.
    #[serde(default)]
    auth: Option<AuthBody>,
}

async fn pull(mut request: Request) -> Answer {
    let body: PullBody = request.json().await?;
    let access = access(body.plain_http, body.auth);
    if request.dry_run()? {
        let resolve = Resolve {
            reference: body.r#ref,
            access,
        };
        let found = request.call(resolve).await?;
        let target = DescriptorView::from(found.target);
        return ok(DryView::would(
            format!("pull {} from {}", found.name, found.host),
            target,
        ));
    }
    let pull = Pull {
        reference: body.r#ref,
        platform: body.platform,
        all_platforms: body.all_platforms,
        snapshotter: body.snapshotter,
        no_unpack: body.no_unpack,
        labels: body.labels,
        access,
    };
    work::answer(&request, Work::Pull(pull), When::Begun, image).await
}

/// Answers an image that work has dealt with.
fn image(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Image(image) => ok(PulledView::from(image)),
        other => Err(work::unexpected(&other)),
    }
}

/// An image to send.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Push)]
struct PushBody {
    /// The image that is here.
    image: String,
    /// Where to; empty for the image's own name.
    #[serde(default)]
    r#ref: String,
    /// Only this platform; empty for all that are here.
    #[serde(default)]
    platform: String,
    /// Speak plain HTTP.
    #[serde(default)]
    plain_http: bool,
    /// Credentials; absent for anonymous.
    #[serde(default)]
    auth: Option<AuthBody>,
}

async fn push(mut request: Request) -> Answer {
    let body: PushBody = request.json().await?;
    let push = Push {
        image: body.image,
        reference: body.r#ref,
        platform: body.platform,
        access: access(body.plain_http, body.auth),
    };
    work::answer(&request, Work::Push(push), When::Begun, image).await
}

/// How to unpack.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Unpack)]
struct UnpackBody {
    /// Empty for this machine's.
    platform: String,
    /// Snapshot driver; empty for the node's default.
    snapshotter: String,
}

async fn unpack(mut request: Request) -> Answer {
    let body: UnpackBody = request.json().await?;
    let unpack = Unpack {
        image: request.text("name").into(),
        platform: body.platform,
        snapshotter: body.snapshotter,
    };
    work::answer(&request, Work::Unpack(unpack), When::Begun, image).await
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    lists::listed::<ImageView, _, _>(&request, List { paging }).await
}

async fn show(request: Request) -> Answer {
    let image = find(&request).await?;
    versioned(image.version, ImageView::from(image))
}

/// What a name shall stand for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewImage)]
struct PutBody {
    /// A manifest or an index.
    target: DescriptorView,
    /// Its labels from now on.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

async fn make(mut request: Request) -> Answer {
    let body: PutBody = request.json().await?;
    let name = named(&request).await?;
    contracts::check_labels(&body.labels)?;
    let target: Descriptor = body.target.into();
    if request.dry_run()? {
        let current = request.call(Get { name: name.clone() }).await;
        let current = current.ok().map(ImageView::from);
        return ok(DryView::would(
            format!("point {name} to {}", target.digest),
            current,
        ));
    }
    let put = Put {
        name,
        target,
        labels: body.labels,
        version: request.version()?,
    };
    let image = request.call(put).await.map_err(|e| request.refused(e))?;
    versioned(image.version, ImageView::from(image))
}

async fn relabel(mut request: Request) -> Answer {
    let body: LabelBody = request.json().await?;
    let update = Update {
        name: named(&request).await?,
        target: None,
        labels: body.into(),
        version: request.version()?,
    };
    let image = request.call(update).await.map_err(|e| request.refused(e))?;
    versioned(image.version, ImageView::from(image))
}

async fn remove(request: Request) -> Answer {
    if request.dry_run()? {
        let image = ImageView::from(find(&request).await?);
        return ok(DryView::would(format!("delete {}", image.name), image));
    }
    let delete = Delete {
        name: named(&request).await?,
        version: request.version()?,
    };
    request.call(delete).await.map_err(|e| request.refused(e))?;
    nothing()
}

/// An additional name.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Tag)]
struct TagBody {
    /// The name; a short one is made in full, `copy` is `docker.io/library/copy:latest`.
    name: String,
    /// Whether an existing name is moved.
    #[serde(default)]
    force: bool,
}

async fn tag(mut request: Request) -> Answer {
    let body: TagBody = request.json().await?;
    let tag = Tag {
        source: named(&request).await?,
        name: meant(&request, ImageName::new(body.name)?).await?,
        force: body.force,
    };
    let image = ImageView::from(request.call(tag).await?);
    let place = format!(
        "/v1/namespaces/{}/images/{}",
        request.text("ns"),
        crate::request::encode(image.name.as_str())
    );
    crate::request::created(&place, image)
}
