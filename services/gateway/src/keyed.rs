//! Requests with an `Idempotency-Key`: one effect and one answer, also when this very process dies in between.
//!
//! The key is bound to the request before anything is done, and the answer is kept before it is sent; both belong to
//! `operations`, for an edge owns no state. Between the two every owner knows the calls by their operation ids, which are
//! derived from the key, so a repetition meets what its first has done. A refusal frees the key: nothing was changed. Where
//! that is not sure, for something ran out or was cancelled on the way, the key stays bound. Where the request leaves
//! nothing behind that a repetition could collect, and its answer is too large, a refusal that says so is kept instead.
//!
//! Source: IETF draft-ietf-httpapi-idempotency-key-header.

use crate::edge::{Edge, OPERATION};
use crate::errors::{Answer as Answered, Problem};
use crate::request::{Accept, Request};
use crate::router::Route;
use actix_web::HttpResponse;
use actix_web::body::MessageBody;
use actix_web::http::{StatusCode, header};
use bus::Ctx;
use contracts::operations::{Answer, Claim, Settle};
use contracts::{Code, Error, OperationId};
use std::rc::Rc;

/// Largest answer that is kept, in bytes: with its headers it must fit a frame.
const KEPT: usize = 48 * 1024;
/// Headers that belong to an answer.
const BELONGING: [header::HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::LOCATION,
    header::ETAG,
    OPERATION,
];
/// What proxies write for a client that gave up, and we for work that was cancelled.
const CANCELLED: u16 = 499;

/// A key that is bound to the request under way.
pub(crate) struct Key {
    edge: Rc<Edge>,
    ctx: Ctx,
    key: OperationId,
}

/// How a request with or without a key goes on.
pub(crate) enum Begun {
    /// Nobody has answered it yet.
    Fresh(Option<Key>),
    /// It was answered before.
    Known(HttpResponse),
}

/// Binds the key of a request that changes something.
///
/// Errors: 422 when the key stands for another request; those of `operations`.
pub(crate) async fn begin(request: &mut Request, route: &Route) -> Result<Begun, Problem> {
    let Some(key) = request.key().filter(|_| route.mutates()) else {
        return Ok(Begun::Fresh(None));
    };
    if request.dry_run()? {
        return Ok(Begun::Fresh(None));
    }
    let claim = Claim {
        key: key.clone(),
        place: format!("{} {}", request.http.method(), request.http.path()),
        print: print(request, route).await?,
    };
    let bound = Key {
        edge: request.edge.clone(),
        ctx: request.ctx.clone(),
        key,
    };
    match request.call(claim).await {
        // What streams is shown anew: it goes on, or shows the same end.
        Ok(claimed) => Ok(match claimed.answer.filter(|_| !streams(request)) {
            Some(answer) => Begun::Known(again(&answer)),
            None => Begun::Fresh(Some(bound)),
        }),
        Err(error) if error.is(Code::FailedPrecondition) => Err(Problem::with_status(
            StatusCode::UNPROCESSABLE_ENTITY,
            error,
        )),
        // A full disk must not keep anybody from deleting; owners still know the operation.
        Err(error) if error.is(Code::ResourceExhausted) => Ok(Begun::Fresh(None)),
        Err(error) => Err(error.into()),
    }
}

fn streams(request: &Request) -> bool {
    matches!(request.accept(), Accept::Sse | Accept::Ndjson)
}

/// Everything that makes two requests the same. Raw bytes go by unread: their length and place stand for them.
async fn print(request: &mut Request, route: &Route) -> Result<OperationId, Problem> {
    let mut parts = vec![
        request.http.method().to_string(),
        request.http.path().to_owned(),
        request.http.query_string().to_owned(),
    ];
    for name in ["gantry-lease", "if-match", "if-none-match"] {
        parts.push(request.header(name).unwrap_or_default().to_owned());
    }
    match route.takes_bytes {
        true => {
            for name in ["content-range", "content-length"] {
                parts.push(request.header(name).unwrap_or_default().to_owned());
            }
        }
        false => {
            let body = request.peeked().await?;
            parts.push(String::from_utf8_lossy(body).into_owned());
        }
    }
    Ok(request.ctx.step(&parts.join("\0")).operation)
}

fn again(answer: &Answer) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = HttpResponse::build(status);
    for (name, value) in &answer.headers {
        response.insert_header((name.as_str(), value.as_str()));
    }
    response.insert_header(("gantry-repeated", "true"));
    match answer.body.is_empty() {
        true => response.finish(),
        false => response.body(answer.body.clone()),
    }
}

impl Key {
    /// Keeps the answer before it is sent; `once` says that nobody could make it again.
    pub(crate) async fn settle(self, answer: Answered, once: bool) -> HttpResponse {
        faults::point("gateway.keyed.done");
        let response = answer.unwrap_or_else(|problem| problem.response());
        let (response, kept) = whole(response);
        let kept = kept.or_else(|| once.then(instead).flatten());
        match (kept, response.status()) {
            (Some(kept), status) if status.is_success() => self.keep(Some(kept)).await,
            (_, status) if is_refusal(status) => self.keep(None).await,
            _ => {}
        }
        faults::point("gateway.keyed.settled");
        response
    }

    async fn keep(&self, answer: Option<Answer>) {
        let settle = Settle {
            key: self.key.clone(),
            answer,
        };
        // The time that was allowed may have gone into the work.
        let ctx = self.ctx.clone().with_deadline(bus::DEFAULT_DEADLINE);
        let settled = self.edge.bus.call(&ctx, settle).await;
        if let Err(error) = settled {
            tracing::warn!(key = %self.key, %error, "an answer is not kept; owners still know the operation");
        }
    }
}

/// Whether a status says that nothing was changed, not even half of it.
fn is_refusal(status: StatusCode) -> bool {
    let unsure = [StatusCode::TOO_MANY_REQUESTS, StatusCode::GONE];
    status.is_client_error() && status.as_u16() != CANCELLED && !unsure.contains(&status)
}

/// The answer to a repetition of what was done and cannot be told again.
pub(crate) fn done_before(why: impl std::fmt::Display) -> Problem {
    let error = Error::not_found(format!(
        "{why}; what was asked for HAS been done: send it under another key to have it done once more"
    ));
    Problem::with_status(StatusCode::GONE, error)
}

/// What is kept in place of an answer that is too large.
fn instead() -> Option<Answer> {
    let problem = done_before(format_args!(
        "answer: was larger than the {KEPT} bytes that are kept for a repetition"
    ));
    whole(problem.response()).1
}

/// The answer as it is kept, when all of it is here and not too large.
fn whole(response: HttpResponse) -> (HttpResponse, Option<Answer>) {
    let (head, body) = response.into_parts();
    let bytes = match body.try_into_bytes() {
        Ok(bytes) => bytes,
        Err(body) => return (head.set_body(body), None),
    };
    let headers = BELONGING.into_iter().filter_map(|name| {
        let value = head.headers().get(&name)?.to_str().ok()?;
        Some((name.to_string(), value.to_owned()))
    });
    let kept = std::str::from_utf8(&bytes)
        .ok()
        .filter(|text| text.len() <= KEPT);
    let kept = kept.map(|text| Answer {
        status: head.status().as_u16(),
        headers: headers.collect(),
        body: text.to_owned(),
    });
    (head.set_body(bytes).map_into_boxed_body(), kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_again_with_what_belongs_to_it() {
        let first = HttpResponse::Created()
            .insert_header((header::LOCATION, "/v1/things/1"))
            .insert_header(("x-other", "1"))
            .insert_header((OPERATION, "0123"))
            .json(serde_json::json!({"id": 1}));
        let (first, kept) = whole(first);
        let kept = kept.unwrap();
        assert_eq!(
            (first.status().as_u16(), kept.body.as_str()),
            (201, "{\"id\":1}")
        );
        let (second, again) = whole(again(&kept));
        assert_eq!(second.headers().get("location").unwrap(), "/v1/things/1");
        assert!(second.headers().get("x-other").is_none());
        assert_eq!(second.headers().get(OPERATION).unwrap(), "0123");
        assert_eq!(again.unwrap(), kept);
    }

    #[test]
    fn a_key_stays_bound_unless_its_request_was_refused_for_sure() {
        let frees = |status| is_refusal(StatusCode::from_u16(status).unwrap());
        assert!([400, 404, 409, 412, 416].into_iter().all(frees));
        assert!(
            ![200, 202, 410, 429, 499, 500, 503, 504]
                .into_iter()
                .any(frees)
        );
    }

    #[test]
    fn what_streams_or_is_large_is_not_kept() {
        let endless =
            futures_util::stream::pending::<Result<actix_web::web::Bytes, actix_web::Error>>();
        assert!(whole(HttpResponse::Ok().streaming(endless)).1.is_none());
        assert!(
            whole(HttpResponse::Ok().body("x".repeat(KEPT + 1)))
                .1
                .is_none()
        );
        assert!(whole(HttpResponse::NoContent().finish()).1.is_some());
    }
}
