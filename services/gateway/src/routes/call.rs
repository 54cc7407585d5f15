//! Any method of any contract, as JSON: what is new on the bus is at hand before it has a resource, and what a foreign
//! program answers needs none.

use crate::errors::Answer;
use crate::param;
use crate::request::Request;
use crate::router::{Route, post};
use actix_web::HttpResponse;
use bus::json::Methods;
use contracts::{Namespace, PluginId};
use serde_json::Value;

/// The message of the method, as its contract declares it.
#[derive(utoipa::ToSchema)]
struct Message {}

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/call/{method}", call)
            .says("Calls a method by its wire name, content.stat, with its message as JSON; of a contract, or of a program that the manifest names")
            .takes::<Message>()
            .query(&[
                param::text("plugin", "Which plugin, for contracts that several answer: snapshots/overlayfs"),
                param::text("namespace", "On behalf of which namespace"),
            ]),
    ]
}

async fn call(mut request: Request) -> Answer {
    let body: Value = request.json().await?;
    request.ctx.namespace = request.query("namespace").map(Namespace::new).transpose()?;
    let plugin = request.query("plugin").map(PluginId::new).transpose()?;
    let answer = Methods::default()
        .call(
            request.bus(),
            plugin.as_ref(),
            &request.ctx,
            request.text("method"),
            &body.to_string(),
        )
        .await?;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .body(answer))
}
