//! Images as tar archives, in and out. The archive is a live stream: it is never kept here.

use crate::convert::image::PulledView;
use crate::errors::{Answer, Problem};
use crate::param::{self, Param};
use crate::pipe;
use crate::request::{Accept, Request, ok};
use crate::router::{Media, Route, post};
use crate::stream;
use crate::work::{self, WAIT, When};
use contracts::operations::{Export, Import, Operation, Outcome, Work};
use contracts::{Code, Error, Fd, OperationId, Result};
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use utoipa::ToSchema;

const PREFIX: Param = param::text(
    "prefix",
    "Prefix for images that the archive names by tag only",
);

pub(super) fn routes() -> Vec<Route> {
    vec![
        post("/v1/namespaces/{ns}/images:import", import)
            .says("Reads an OCI layout or docker-archive tar from the body")
            .works(WAIT)
            .query(&[
                PREFIX,
                param::text(
                    "snapshotter",
                    "Snapshot driver; the node's default when absent",
                ),
                param::flag("no_unpack", "Only store"),
            ])
            .takes_bytes()
            .many::<PulledView>(),
        post("/v1/namespaces/{ns}/images:export", export)
            .says("Answers an OCI layout tar that Docker can load too")
            .takes::<ExportBody>()
            .media(Media::Bytes),
    ]
}

async fn import(mut request: Request) -> Answer {
    let (reading, writing) = pipe::pair()?;
    let import = Import {
        archive: Fd::from(reading),
        prefix: request.query("prefix").unwrap_or_default().into(),
        snapshotter: request.query("snapshotter").unwrap_or_default().into(),
        no_unpack: request.flag("no_unpack")?,
    };
    let body = request
        .bytes()
        .ok_or_else(|| Error::invalid("body: must be a tar archive"))?;
    let begun = work::begin(&request, Work::Import(import)).await?;
    let pump = pipe::pump(body, writing);
    if matches!(request.accept(), Accept::Sse | Accept::Ndjson) {
        return work::progress_while(&request, begun.id, pump.map(drop));
    }
    let response = match request.when(When::Begun)? {
        When::Begun => {
            let pumped = pump.await;
            if pumped.as_ref().is_err_and(|e| e.is(Code::Cancelled)) {
                // The reader has closed its end early: only the operation knows whether it has seen enough.
                work::end(&request, &begun.id).await?;
            } else {
                pumped?;
            }
            work::accepted(&begun)
        }
        When::Finished => {
            // A reader that has seen enough closes its end early: the operation says whether it was content.
            let (pumped, ended) = tokio::join!(pump, work::end(&request, &begun.id));
            imported(told(pumped, ended)?)?
        }
    };
    Ok(work::marked(response, &begun.id))
}

/// Prefers what the operation says, unless it failed because the client's body broke off.
fn told(pumped: Result<u64>, ended: Result<Outcome, Problem>) -> Result<Outcome, Problem> {
    match (pumped, ended) {
        (Err(broken), Err(_)) if broken.is(Code::Aborted) => Err(broken.into()),
        (_, ended) => ended,
    }
}

fn imported(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Images(images) => {
            let images: Vec<PulledView> = images.into_iter().map(Into::into).collect();
            ok(images)
        }
        other => Err(work::unexpected(&other)),
    }
}

/// What to export.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Export)]
struct ExportBody {
    /// Image names as a user types them.
    images: Vec<String>,
    /// Only this platform; empty for all that are here.
    #[serde(default)]
    platform: String,
}

async fn export(mut request: Request) -> Answer {
    let body: ExportBody = request.json().await?;
    let (reading, writing) = pipe::pair()?;
    let export = Export {
        images: body.images,
        platform: body.platform,
        archive: Fd::from(writing),
    };
    let begun = work::begin(&request, Work::Export(export)).await?;
    let mut archive = pipe::drain(reading)?;
    // The status can still say what is wrong as long as not one byte has gone.
    let Some(first) = archive.next().await.transpose()? else {
        return Err(empty(&request, &begun).await);
    };
    let end = ending(&request, begun.id.clone())?;
    let body = futures_util::stream::iter([Ok(first)])
        .chain(archive)
        .chain(end);
    let response = stream::streaming("application/x-tar", body);
    Ok(work::marked(response, &begun.id))
}

async fn empty(request: &Request, begun: &Operation) -> Problem {
    match work::end(request, &begun.id).await {
        Err(problem) => problem,
        Ok(_) => Error::precondition(format!(
            "operation {}: was exported before under this Idempotency-Key, use a fresh one",
            begun.id
        ))
        .into(),
    }
}

/// Nothing when the export went well; otherwise an error, which cuts the connection instead of ending the archive.
fn ending(
    request: &Request,
    id: OperationId,
) -> Result<impl futures_util::Stream<Item = Result<actix_web::web::Bytes>> + use<>> {
    let steps = work::watch(request.bus().clone(), request.long()?, id);
    Ok(steps.filter_map(|step| async move {
        match step {
            Ok(step) => step.error.map(Err),
            Err(error) => Some(Err(error)),
        }
    }))
}
