//! What is on the host, compared with the records of tasks.

use crate::convert::audit::AuditView;
use crate::errors::Answer;
use crate::request::{Request, ok};
use crate::router::{Route, get, post};
use contracts::tasks::Audit;

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/audit", look)
            .says("Compares the host with the records of tasks now; what is ours and belongs to no task in two looks, two seconds apart or more, is cleaned")
            .answers::<AuditView>(),
        get("/v1/audit", last)
            .says("What the last look saw; they are taken by themselves, too")
            .answers::<AuditView>(),
    ]
}

async fn look(request: Request) -> Answer {
    let audited = request.call(Audit { last: false }).await?;
    ok(AuditView::from(audited))
}

async fn last(request: Request) -> Answer {
    let audited = request.call(Audit { last: true }).await?;
    ok(AuditView::from(audited))
}
