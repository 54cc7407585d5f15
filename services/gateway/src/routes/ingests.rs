//! Unfinished writes: bytes arrive in as many requests as it takes, then the ingest is committed.

use crate::convert::content::{BlobView, IngestView};
use crate::errors::{Answer, Problem};
use crate::lists;
use crate::param::{self, Kind};
use crate::pipe;
use crate::range::{Placed, placed};
use crate::request::{Request, created, nothing, ok};
use crate::router::{Route, delete, get, post, put};
use actix_web::http::{StatusCode, header};
use contracts::content::{Abort, Commit, Ingest, Ingests, Status, Write};
use contracts::{Code, Digest, Error, Ref, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use utoipa::ToSchema;

/// How often to look whether the store has taken in what is still in the pipe. It holds 64 KiB at most.
const LOOK: Duration = Duration::from_millis(2);
/// How long the store may take in nothing of what waits for it before it is asked why.
const STILL: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/namespaces/{ns}/ingests", list)
            .says("Unfinished writes, by ref")
            .lists::<IngestView>(),
        get("/v1/namespaces/{ns}/ingests/{ref*}", show)
            .says("One unfinished write: its offset is where to go on")
            .answers::<IngestView>(),
        put("/v1/namespaces/{ns}/ingests/{ref*}", write)
            .says("Writes bytes: from the start, or where Content-Range says, which must be the current offset (416 tells it)")
            .query(&[param::of("expected", Kind::Pattern(param::DIGEST), "Digest expected at commit"), param::count("total", "Bytes expected in all")])
            .takes_bytes()
            .answers::<IngestView>(),
        delete("/v1/namespaces/{ns}/ingests/{ref*}", abort)
            .says("Drops an unfinished write and its bytes")
            .status(204),
        post("/v1/namespaces/{ns}/ingests/{ref*}:commit", commit)
            .says("Checks size and digest and turns the write into a blob")
            .takes::<CommitBody>()
            .answers::<BlobView>()
            .status(201),
    ]
}

async fn list(request: Request) -> Answer {
    let paging = request.paging()?;
    lists::listed::<IngestView, _, _>(&request, Ingests { paging }).await
}

async fn status(request: &Request, name: &Ref) -> Result<Ingest> {
    let status = Status {
        r#ref: name.clone(),
    };
    request.call(status).await
}

async fn show(request: Request) -> Answer {
    let name = request.part("ref")?;
    ok(IngestView::from(status(&request, &name).await?))
}

async fn write(mut request: Request) -> Answer {
    let name: Ref = request.part("ref")?;
    let place = request.header("content-range").map(placed).transpose()?;
    let body = request.bytes();
    let start = place.as_ref().map_or(0, |place| place.start);
    if start > 0 {
        let offset = offset(&request, &name).await?;
        if offset != start {
            return Err(misplaced(&name, start, offset));
        }
    }
    let write = Write {
        r#ref: name.clone(),
        expected: request.query("expected").map(Digest::new).transpose()?,
        total: total(&request, place.as_ref())?,
        restart: start == 0,
    };
    let writer = request.call(write).await?;
    if writer.offset != start {
        return Err(misplaced(&name, start, writer.offset));
    }
    let pipe = writer
        .pipe
        .into_owned()
        .map_err(|e| Error::exhausted(format!("pipe: {e}")))?;
    let written = match body {
        Some(body) => match pipe::pump(body, pipe).await {
            Err(error) if error.is(Code::Cancelled) => {
                return Err(stopped(&request, &name).await.into());
            }
            pumped => pumped?,
        },
        None => 0,
    };
    match place {
        Some(place) if place.length != written => Err(Error::invalid(format!(
            "ingest {name}: Content-Range announces {} bytes, {written} came",
            place.length
        ))
        .into()),
        _ => ok(IngestView::from(
            settled(&request, &name, start + written).await?,
        )),
    }
}

fn total(request: &Request, place: Option<&Placed>) -> Result<u64> {
    let announced = place.map_or(0, |place| place.total);
    Ok(request.number("total")?.unwrap_or(announced))
}

async fn offset(request: &Request, name: &Ref) -> Result<u64> {
    match status(request, name).await {
        Err(error) if error.is(Code::NotFound) => Ok(0),
        found => Ok(found?.offset),
    }
}

fn misplaced(name: &Ref, start: u64, offset: u64) -> Problem {
    let error = Error::out_of_range(format!(
        "ingest {name}: Content-Range begins at {start}, the store has {offset} bytes: go on there"
    ));
    let problem = Problem::with_status(StatusCode::RANGE_NOT_SATISFIABLE, error);
    match offset {
        0 => problem,
        // As upload protocols of registries tell it.
        offset => problem.header(header::RANGE, format!("0-{}", offset - 1)),
    }
}

/// Asks the store why it takes no more bytes: it says so when the write is opened again.
async fn stopped(request: &Request, name: &Ref) -> Error {
    let write = Write {
        r#ref: name.clone(),
        expected: None,
        total: 0,
        restart: false,
    };
    match request.call(write).await {
        Err(error) => error,
        Ok(writer) => Error::aborted(format!(
            "ingest {name}: the store stopped taking bytes, go on at {}",
            writer.offset
        )),
    }
}

/// Waits until the store has everything that went into the pipe. What is little lies in the pipe, and no write of ours
/// fails when the store stops: it is asked when nothing has moved for a while.
async fn settled(request: &Request, name: &Ref, offset: u64) -> Result<Ingest> {
    let (mut seen, mut since) = (None, tokio::time::Instant::now());
    loop {
        let ingest = status(request, name).await?;
        if ingest.offset >= offset {
            return Ok(ingest);
        }
        let now = tokio::time::Instant::now();
        if now >= request.ctx.deadline {
            return Err(Error::deadline(format!(
                "ingest {name}: has {} of {offset} bytes",
                ingest.offset
            )));
        }
        if seen.replace(ingest.offset) != Some(ingest.offset) {
            since = now;
        } else if now - since >= STILL {
            let why = stopped(request, name).await;
            let ingest = status(request, name).await?;
            return (ingest.offset >= offset).then_some(ingest).ok_or(why);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn abort(request: Request) -> Answer {
    let name = request.part("ref")?;
    request.call(Abort { r#ref: name }).await?;
    nothing()
}

/// What must be right for a commit.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Commit)]
struct CommitBody {
    /// Bytes expected; absent accepts any.
    size: Option<u64>,
    /// Digest expected; absent accepts any.
    #[serde(alias = "expected")]
    #[schema(pattern = "^(sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128})$")]
    digest: Option<String>,
    /// Labels of the new blob.
    labels: BTreeMap<String, String>,
}

async fn commit(mut request: Request) -> Answer {
    let body: CommitBody = request.json().await?;
    let commit = Commit {
        r#ref: request.part("ref")?,
        size: body.size,
        expected: body.digest.map(Digest::new).transpose()?,
        labels: body.labels,
    };
    let blob = request.call(commit).await.map_err(mismatched)?;
    let place = format!(
        "/v1/namespaces/{}/content/{}",
        request.text("ns"),
        blob.digest
    );
    created(&place, BlobView::from(blob))
}

/// Bytes that are not what the client said are the client's mistake here, not a loss of ours.
fn mismatched(error: Error) -> Error {
    match error.is(Code::DataLoss) {
        true => Error {
            code: Code::FailedPrecondition,
            ..error
        },
        false => error,
    }
}
