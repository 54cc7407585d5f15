//! Garbage collection.

use crate::convert::operation::CollectedView;
use crate::errors::Answer;
use crate::request::{Request, ok};
use crate::router::{Route, get, post};
use crate::work::{self, WAIT, When};
use contracts::gc::{Last, Plan};
use contracts::operations::{Collect, Outcome, Work};

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/gc", collect)
            .says("Collects garbage; answers when it is gone unless wait=false. A dry run answers the plan with reasons")
            .works(WAIT)
            .dry()
            .answers::<CollectedView>(),
        get("/v1/gc", last)
            .says("The last finished collection; null before the first")
            .answers::<CollectedView>(),
    ]
}

async fn collect(request: Request) -> Answer {
    if request.dry_run()? {
        let plan = request.bus().call(&request.long()?, Plan {}).await?;
        return ok(CollectedView::from(plan));
    }
    let finished = |outcome| match outcome {
        Outcome::Collected(collected) => ok(CollectedView::from(collected)),
        other => Err(work::unexpected(&other)),
    };
    work::answer(
        &request,
        Work::Collect(Collect {}),
        When::Finished,
        finished,
    )
    .await
}

async fn last(request: Request) -> Answer {
    ok(request.call(Last {}).await?.map(CollectedView::from))
}
