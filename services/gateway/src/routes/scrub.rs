//! Looking at everything that is on disk.

use crate::convert::operation::ScrubbedView;
use crate::errors::Answer;
use crate::param::{self, Param};
use crate::request::{Request, ok};
use crate::router::{Route, post};
use crate::work::{self, WAIT, When};
use contracts::Namespace;
use contracts::operations::{Outcome, Scrub, Work};

const REPAIR: Param = param::flag(
    "repair",
    "true: remove leftovers, put layers right from their blobs; damaged blobs are fetched by the next pull",
);
const SHALLOW: Param = param::flag(
    "shallow",
    "true: look at records, names and sizes only, and read no bytes",
);
const NAMESPACE: Param = param::text("namespace", "Only layers of this namespace's images");

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/scrub", scrub)
            .says("Looks at records, blobs and unpacked layers, gently; answers 202 at once unless wait=true")
            .works(WAIT)
            .query(&[REPAIR, SHALLOW, NAMESPACE])
            .answers::<ScrubbedView>(),
    ]
}

async fn scrub(request: Request) -> Answer {
    let namespace = request.query("namespace").map(Namespace::new).transpose()?;
    let scrub = Scrub {
        repair: request.flag("repair")?,
        deep: !request.flag("shallow")?,
        namespace,
    };
    let finished = |outcome| match outcome {
        Outcome::Scrubbed(scrubbed) => ok(ScrubbedView::from(scrubbed)),
        other => Err(work::unexpected(&other)),
    };
    work::answer(&request, Work::Scrub(scrub), When::Begun, finished).await
}
