//! Long work: begin it, then answer at once, at its end, or with its progress. What goes on belongs to `operations`.

use crate::convert::operation::OperationView;
use crate::edge::OPERATION;
use crate::errors::{Answer, Problem};
use crate::param::{self, Param};
use crate::request::{Accept, Request};
use crate::stream::{self, Local, Record, produce};
use actix_web::HttpResponse;
use actix_web::http::{StatusCode, header};
use bus::{Bus, Ctx};
use contracts::operations::{Operation, Operations, Outcome, Start, State, Watch, Work};
use contracts::{Code, Error, OperationId, Result};
use futures_util::StreamExt;
use std::time::Duration;

/// For long work.
pub(crate) const WAIT: Param = param::flag(
    "wait",
    "true: answer when it is finished; false: answer 202 at once",
);
/// How long to wait before watching again what broke off twice in a row.
const BREATH: Duration = Duration::from_millis(100);

/// When to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// At once, with 202.
    Begun,
    /// When it is finished.
    Finished,
}

impl Request {
    /// When the client wants its answer: as `?wait=` says, else `default`.
    pub(crate) fn when(&self, default: When) -> Result<When> {
        Ok(match (self.query("wait"), self.flag("wait")?) {
            (None, _) => default,
            (_, true) => When::Finished,
            (_, false) => When::Begun,
        })
    }
}

/// Begins work and answers: 202 with its place, its progress as a stream, or what `finished` makes of its outcome.
pub(crate) async fn answer(
    request: &Request,
    work: Work,
    default: When,
    finished: impl FnOnce(Outcome) -> Answer,
) -> Answer {
    let begun = begin(request, work).await?;
    if matches!(request.accept(), Accept::Sse | Accept::Ndjson) {
        return progress(request, begun.id);
    }
    let response = match request.when(default)? {
        When::Begun => accepted(&begun),
        When::Finished => finished(end(request, &begun.id).await?)?,
    };
    Ok(marked(response, &begun.id))
}

/// Begins work.
pub(crate) async fn begin(request: &Request, work: Work) -> Result<Operation> {
    request.call(Start { work }).await
}

/// Answers 202 with where the operation is.
pub(crate) fn accepted(operation: &Operation) -> HttpResponse {
    HttpResponse::Accepted()
        .insert_header((header::LOCATION, place(&operation.id)))
        .json(OperationView::from(operation.clone()))
}

/// Names the operation in the answer's headers.
pub(crate) fn marked(mut response: HttpResponse, id: &OperationId) -> HttpResponse {
    if let Ok(id) = header::HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(OPERATION, id);
    }
    response
}

/// Waits for the end. Errors: the failure's own; `DeadlineExceeded` with the operation's place when it takes longer.
pub(crate) async fn end(request: &Request, id: &OperationId) -> Result<Outcome, Problem> {
    let ended = last(request, id).await?;
    Ok(outcome(ended)?)
}

/// Waits for the last step. Errors: those of watching, and `DeadlineExceeded` as in [`end`].
pub(crate) async fn last(request: &Request, id: &OperationId) -> Result<Operation, Problem> {
    let ctx = request.long()?;
    let deadline = ctx.deadline;
    let mut steps = watch(request.bus().clone(), ctx, id.clone());
    let ended = async {
        while let Some(step) = steps.next().await {
            match step {
                Err(error) if error.is(Code::DeadlineExceeded) => return Ok(None),
                Err(error) => return Err(error),
                Ok(step) if step.state != State::Running => return Ok(Some(step)),
                Ok(_) => {}
            }
        }
        Ok(None)
    };
    match tokio::time::timeout_at(deadline, ended).await {
        Ok(Ok(Some(ended))) => Ok(ended),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(None)) | Err(_) => {
            Err(Problem::from(unfinished(request, id)).header(header::LOCATION, place(id)))
        }
    }
}

/// Says where an operation goes on, and what holds it up, if that is known.
fn unfinished(request: &Request, id: &OperationId) -> Error {
    let error = Error::deadline(format!(
        "operation {id}: is not finished yet and goes on, watch {}",
        place(id)
    ));
    request.bus().explain::<Operations>(error)
}

/// What an ended operation came to.
fn outcome(operation: Operation) -> Result<Outcome> {
    let id = operation.id;
    match operation.state {
        State::Done => Ok(operation.result.unwrap_or(Outcome::None)),
        State::Cancelled => Err(Error::cancelled(format!("operation {id}: was cancelled"))),
        State::Failed | State::Running => Err(operation
            .error
            .unwrap_or_else(|| Error::new(Code::Unknown, format!("operation {id}: failed")))),
    }
}

/// Answers with progress until the end, in the form that the client accepts.
pub(crate) fn progress(request: &Request, id: OperationId) -> Answer {
    let steps = watch(request.bus().clone(), request.long()?, id.clone());
    let records = steps.map(record);
    let response = stream::records(request.accept(), request.edge.heartbeat, records);
    Ok(marked(response, &id))
}

/// The same, and does `work` meanwhile: both go on only while the answer is read.
pub(crate) fn progress_while(
    request: &Request,
    id: OperationId,
    work: impl Future<Output = ()> + 'static,
) -> Answer {
    let steps = watch(request.bus().clone(), request.long()?, id.clone());
    let working = futures_util::stream::once(work).filter_map(|()| async { None });
    let records = futures_util::stream::select(steps.map(record), working);
    let response = stream::records(request.accept(), request.edge.heartbeat, records);
    Ok(marked(response, &id))
}

fn record(step: Result<Operation>) -> Record {
    let (event, data) = match step {
        Ok(operation) => {
            let event = match operation.state {
                State::Running => "progress",
                State::Done => "done",
                State::Failed | State::Cancelled => "error",
            };
            (event, OperationView::from(operation).record(event))
        }
        Err(error) => {
            let problem = Problem::from(error).view();
            let data = serde_json::json!({"type": "error", "error": problem});
            ("error", data.to_string())
        }
    };
    Record {
        id: None,
        event: event.into(),
        data,
    }
}

/// Shows an operation at every step until its end. When the plugin is started again meanwhile, goes on with its successor.
pub(crate) fn watch(bus: Bus, ctx: Ctx, id: OperationId) -> Local<Result<Operation>> {
    produce(|feed| async move {
        loop {
            let mut steps = match bus.open(&ctx, Watch { id: id.clone() }).await {
                Ok(steps) => steps,
                Err(error) => return feed.send(Err(error)).await,
            };
            while let Some(step) = steps.next().await {
                match step {
                    Ok(step) => {
                        let ended = step.state != State::Running;
                        feed.send(Ok(step)).await;
                        if ended {
                            return;
                        }
                    }
                    Err(error) if error.is(Code::Unavailable) => break,
                    Err(error) => return feed.send(Err(error)).await,
                }
            }
            tokio::time::sleep(BREATH).await;
        }
    })
}

fn place(id: &OperationId) -> String {
    format!("/v1/operations/{}", crate::request::encode(id.as_str()))
}

/// Answers an unexpected outcome: the operation did its work, and says something else than the route knows.
pub(crate) fn unexpected(outcome: &Outcome) -> Problem {
    Problem::with_status(
        StatusCode::INTERNAL_SERVER_ERROR,
        Error::internal(format!("operation: unexpected outcome {outcome:?}")),
    )
}
