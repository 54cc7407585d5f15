//! What is designed and not there yet: says so, and what to use instead.

use crate::errors::Answer;
use crate::request::Request;
use crate::router::{Route, get};
use contracts::Error;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces/{ns}/tasks/{id}/attach", attach)
            .says("Not offered yet: a WebSocket to a task's stdio")
            .status(501),
        get("/v1/namespaces/{ns}/tasks/{id}/exec", exec)
            .says("Not offered yet: a WebSocket to an added process")
            .status(501),
        get("/docs", docs)
            .says("Not offered yet: a page that shows /openapi.json")
            .status(501),
        get("/", dashboard)
            .says("Not offered yet: a dashboard")
            .status(501),
    ]
}

async fn attach(_: Request) -> Answer {
    Err(Error::unimplemented(
        "attach: is not offered yet, use /logs?follow=true to read and :exec?wait=true to run something",
    )
    .into())
}

async fn exec(_: Request) -> Answer {
    Err(Error::unimplemented(
        "exec: is not offered as a WebSocket yet, use POST :exec?wait=true, which runs and collects",
    )
    .into())
}

async fn docs(_: Request) -> Answer {
    Err(Error::unimplemented("docs: are not offered yet, use /openapi.json").into())
}

async fn dashboard(_: Request) -> Answer {
    Err(Error::unimplemented(
        "dashboard: is not offered yet, use /v1/plugins, /v1/graph?format=mermaid and /v1/events",
    )
    .into())
}
