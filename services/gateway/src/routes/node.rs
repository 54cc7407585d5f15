//! The node itself: version, info, health, metrics, description.

use crate::convert::node::{InfoView, ReadinessView, VersionView};
use crate::errors::Answer;
use crate::openapi;
use crate::request::{Request, ok, with};
use crate::router::{Media, Route, get};
use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use contracts::PluginId;
use contracts::plugin::{List, Node};
use contracts::snapshots::Snapshots;
use contracts::tasks::{Audit, Audited};
use std::time::Duration;

/// How long the numbers of one plugin may hold up those of all others.
const ASIDE: Duration = Duration::from_millis(500);

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/version", version)
            .says("Which build answers")
            .answers::<VersionView>(),
        get("/v1/info", info)
            .says("The node and the machine it runs on")
            .answers::<InfoView>(),
        get("/healthz", healthz)
            .says("Whether the gateway lives")
            .media(Media::Text)
            .open(),
        get("/readyz", readyz)
            .says("Whether every plugin is ready; 503 with those that are not")
            .answers::<ReadinessView>(),
        get("/metrics", metrics)
            .says("Prometheus text about plugins, requests and tasks")
            .media(Media::Text),
        get("/openapi.json", description).says("This document"),
    ]
}

async fn version(_: Request) -> Answer {
    ok(VersionView {
        name: "gantry",
        version: env!("CARGO_PKG_VERSION"),
        api: "v1",
        protocol: bus::PROTOCOL,
    })
}

async fn info(request: Request) -> Answer {
    let node = request.call(Node {}).await?;
    let drivers = request.bus().peers::<Snapshots>();
    let names = drivers.iter().map(|driver| PluginId::id(driver).to_owned());
    ok(InfoView::of(node, names.collect()))
}

async fn healthz(_: Request) -> Answer {
    Ok(text("ok\n".into()))
}

async fn readyz(request: Request) -> Answer {
    let readiness = ReadinessView::of(request.call(List {}).await?);
    let status = match readiness.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    with(status, readiness)
}

async fn metrics(request: Request) -> Answer {
    let plugins = request.call(List {}).await?;
    let mut body = request.edge.metrics.text(&plugins);
    if let Some(audited) = audited(&request).await {
        crate::metrics::tasks(&mut body, &audited);
    }
    Ok(text(body))
}

/// What the auditor saw last. Numbers of the rest do not wait for a plugin that is away.
async fn audited(request: &Request) -> Option<Audited> {
    let last = request.call(Audit { last: true });
    tokio::time::timeout(ASIDE, last).await.ok()?.ok()
}

async fn description(request: Request) -> Answer {
    ok(openapi::document(&request.edge.table))
}

/// Answers plain text.
pub(super) fn text(body: String) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .body(body)
}
