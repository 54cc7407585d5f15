//! Plugins and how they are wired.

mod changes;

use super::node::text;
use crate::convert::node::{GraphView, PluginView, dot, mermaid};
use crate::errors::Answer;
use crate::lists;
use crate::param::{self, Kind};
use crate::request::{Request, ok};
use crate::router::{Media, Route, get, post};
use contracts::Error;
use contracts::plugin::{Get, Graph, List, Restart, Start, Stop};

pub(super) fn routes() -> Vec<Route> {
    let mut routes = vec![
        get("/v1/plugins", list)
            .says("All plugins, by id")
            .lists::<PluginView>(),
        get("/v1/plugins/{id*}", show)
            .says("One plugin: state, process, what it was granted, why it ended last time")
            .answers::<PluginView>(),
        post("/v1/plugins/{id*}:restart", restart)
            .says("Ends a plugin's process and starts it anew")
            .answers::<PluginView>(),
        post("/v1/plugins/{id*}:stop", stop)
            .says("Ends a plugin's process and leaves it so")
            .answers::<PluginView>(),
        post("/v1/plugins/{id*}:start", start)
            .says("Starts a stopped or failed plugin now")
            .answers::<PluginView>(),
        get("/v1/graph", graph)
            .says("Which plugin requires which")
            .query(&[param::of(
                "format",
                Kind::Choice(&["json", "dot", "mermaid"]),
                "json (the default), dot or mermaid",
            )])
            .media(Media::Drawing)
            .answers::<GraphView>(),
    ];
    routes.extend(changes::routes());
    routes
}

async fn list(request: Request) -> Answer {
    let plugins = request.call(List {}).await?;
    let views: Vec<PluginView> = plugins.into_iter().map(Into::into).collect();
    lists::part(&request, views)
}

async fn show(request: Request) -> Answer {
    let id = request.part("id")?;
    ok(PluginView::from(request.call(Get { id }).await?))
}

async fn restart(request: Request) -> Answer {
    let id = request.part("id")?;
    ok(PluginView::from(request.call(Restart { id }).await?))
}

async fn stop(request: Request) -> Answer {
    let id = request.part("id")?;
    ok(PluginView::from(request.call(Stop { id }).await?))
}

async fn start(request: Request) -> Answer {
    let id = request.part("id")?;
    ok(PluginView::from(request.call(Start { id }).await?))
}

async fn graph(request: Request) -> Answer {
    let graph = request.call(Graph {}).await?;
    match request.query("format") {
        None | Some("json") => ok(GraphView::from(graph)),
        Some("dot") => Ok(text(dot(&graph))),
        Some("mermaid") => Ok(text(mermaid(&graph))),
        Some(other) => Err(Error::invalid(format!(
            "parameter format={other}: must be json, dot or mermaid"
        ))
        .into()),
    }
}
