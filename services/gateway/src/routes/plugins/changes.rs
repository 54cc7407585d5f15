//! Another configuration, another build.

use crate::convert::change::{ReloadedView, UpgradeBody, UpgradeView};
use crate::errors::Answer;
use crate::request::{Request, ok};
use crate::router::{Route, get, post};
use actix_web::HttpResponse;
use actix_web::http::header;
use contracts::plugin::{Reload, Upgrade, Upgrading};

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/reload", reload)
            .says("Reads configuration and manifest again and restarts only what they change: all of it, or nothing")
            .dry()
            .answers::<ReloadedView>(),
        post("/v1/upgrade", upgrade)
            .says("Moves plugins to another build, one process after another, and back when one does not become ready")
            .takes::<UpgradeBody>()
            .status(202)
            .answers::<UpgradeView>(),
        get("/v1/upgrade", upgrading)
            .says("How the last upgrade goes or went; 404 when there was none since the daemon started")
            .answers::<UpgradeView>(),
    ]
}

async fn reload(request: Request) -> Answer {
    let dry_run = request.dry_run()?;
    // It waits for those that restart, which has bounds of its own.
    let reload = Reload { dry_run };
    let reloaded = request.bus().call(&request.long()?, reload).await?;
    ok(ReloadedView::of(dry_run, reloaded))
}

async fn upgrade(mut request: Request) -> Answer {
    let body: UpgradeBody = request.json().await?;
    let upgrade = request.call(Upgrade::from(body)).await?;
    Ok(HttpResponse::Accepted()
        .insert_header((header::LOCATION, "/v1/upgrade"))
        .json(UpgradeView::from(upgrade)))
}

async fn upgrading(request: Request) -> Answer {
    ok(UpgradeView::from(request.call(Upgrading {}).await?))
}
