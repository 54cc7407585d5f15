//! A request as handlers see it: typed path parts, known query parameters, strict JSON, and on whose behalf it is made.

use crate::edge::Edge;
use crate::errors::Problem;
use crate::param::{self, Kind, Param};
use crate::path::Captures;
use crate::router::Route;
use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use bus::{Bus, Ctx, DEFAULT_DEADLINE};
use contracts::{Error, LeaseId, Namespace, OperationId, Paging, Result, Timestamp};
use futures_util::{StreamExt, future::LocalBoxFuture};
use serde::{Serialize, de::DeserializeOwned};
use std::{cell::RefCell, rc::Rc, time::Duration};

/// Largest JSON body: an OCI spec fits several times, and what fits in no frame is refused further in.
const MAX_JSON: usize = 256 * 1024;
/// How long waits last when nobody said otherwise.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// Longest `Idempotency-Key`.
const MAX_KEY: usize = 255;

/// Understood by every route.
pub(crate) const TIMEOUT: Param = param::of(
    "timeout",
    Kind::Pattern(param::DURATION),
    "How long to try: seconds, or a number with ms, s, m or h; 30 s by default, long waits 24 h",
);
/// For lists.
pub(crate) const LISTED: [Param; 3] = [
    param::text("filter", "A filter expression; repeat it for alternatives"),
    param::count("limit", "At most so many items"),
    param::text("page_token", "next_page_token of the page before"),
];
/// For mutations that offer it.
pub(crate) const DRY_RUN: Param = param::flag("dry_run", "Check and tell, change nothing");

/// What a client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accept {
    /// It did not say, or takes JSON.
    Json,
    /// Server-sent events.
    Sse,
    /// One JSON text per line.
    Ndjson,
    /// Plain text.
    Text,
}

/// One request.
pub(crate) struct Request {
    pub(crate) edge: Rc<Edge>,
    pub(crate) http: HttpRequest,
    pub(crate) ctx: Ctx,
    captures: Captures,
    query: Vec<(String, String)>,
    body: Option<web::Payload>,
    /// The JSON body, when somebody has looked at it before the handler.
    read: Option<Vec<u8>>,
    conditional: bool,
    /// What waits until the answer is kept.
    pub(crate) later: Later,
}

/// Steps that would make a repetition impossible: they wait until the answer is kept. Clones are one list.
#[derive(Clone, Default)]
pub(crate) struct Later(Rc<RefCell<Vec<LocalBoxFuture<'static, ()>>>>);

impl Later {
    /// Whether anything waits.
    pub(crate) fn waits(&self) -> bool {
        !self.0.borrow().is_empty()
    }

    /// Does what has waited.
    pub(crate) async fn run(self) {
        let steps = std::mem::take(&mut *self.0.borrow_mut());
        for step in steps {
            step.await;
        }
    }
}

/// Bytes of the shortest JSON object that says something: `{"a":0}`. Clients often send `{}` or `null` where nothing is asked.
const SAYS_SOMETHING: u64 = 7;

/// Refuses a body that nobody would read: who sends one means something by it.
fn bodiless(http: &HttpRequest, route: &Route) -> Result<()> {
    let length = http.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
    if route.takes.is_some() || route.takes_bytes || length.unwrap_or(0) < SAYS_SOMETHING {
        return Ok(());
    }
    let path = route.path();
    let names: Vec<&str> = route.query.iter().map(|param| param.name).collect();
    let instead = match names.is_empty() {
        true => "send none".to_owned(),
        false => format!("say it in the query: {}", names.join(", ")),
    };
    Err(Error::invalid(format!(
        "body: {path} takes none; {instead}"
    )))
}

impl Request {
    /// Checks what every route checks.
    ///
    /// Errors: `InvalidArgument` for an unknown or bad parameter or header; `Unimplemented` for a condition or dry run
    /// that the route does not offer.
    pub(crate) fn new(
        edge: Rc<Edge>,
        http: HttpRequest,
        body: web::Payload,
        route: &Route,
        captures: Captures,
    ) -> Result<Self> {
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(http.query_string().as_bytes())
                .into_owned()
                .collect();
        known(&query, route)?;
        bodiless(&http, route)?;
        let mut request = Self {
            edge,
            ctx: Ctx::new(None),
            captures,
            query,
            body: Some(body),
            read: None,
            conditional: route.conditional,
            later: Later::default(),
            http,
        };
        request.ctx = request.context()?;
        if !route.conditional && route.mutates() && request.header("if-match").is_some() {
            let path = route.path();
            return Err(Error::unimplemented(format!(
                "If-Match: {path} has no versions to compare"
            )));
        }
        if !route.dry && request.flag("dry_run")? {
            let path = route.path();
            return Err(Error::unimplemented(format!(
                "dry_run: {path} cannot tell beforehand"
            )));
        }
        Ok(request)
    }

    fn context(&self) -> Result<Ctx> {
        let namespace = match self.captures.iter().find(|(name, _)| *name == "ns") {
            Some((_, name)) => Some(Namespace::new(name.as_str())?),
            None => None,
        };
        let lease = self.header("gantry-lease").map(LeaseId::new).transpose()?;
        let mut ctx = Ctx::new(namespace)
            .with_lease(lease)
            .with_deadline(self.timeout()?.unwrap_or(DEFAULT_DEADLINE));
        if let Some(key) = self.header("idempotency-key") {
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(Error::invalid(format!(
                    "Idempotency-Key: must have 1 to {MAX_KEY} characters"
                )));
            }
            let place = format!("{} {}", self.http.method(), self.http.path());
            ctx = ctx.with_operation(OperationId::new(key)?).step(&place);
        }
        Ok(ctx)
    }

    /// What other plugins are called with.
    pub(crate) fn bus(&self) -> &Bus {
        &self.edge.bus
    }

    /// Makes one call on behalf of this request.
    pub(crate) async fn call<R: contracts::Request>(&self, request: R) -> Result<R::Reply> {
        self.edge.bus.call(&self.ctx, request).await
    }

    /// The same context for something that may take long: the deadline is far unless `?timeout=` says otherwise.
    pub(crate) fn long(&self) -> Result<Ctx> {
        Ok(self
            .ctx
            .clone()
            .with_deadline(self.timeout()?.unwrap_or(LONG)))
    }

    fn timeout(&self) -> Result<Option<Duration>> {
        self.query("timeout").map(duration).transpose()
    }

    /// A part of the path, checked by its type.
    pub(crate) fn part<T: TryFrom<String, Error = Error>>(&self, name: &str) -> Result<T> {
        T::try_from(self.text(name).to_owned())
    }

    /// A part of the path as it is.
    pub(crate) fn text(&self, name: &str) -> &str {
        let found = self.captures.iter().find(|(captured, _)| *captured == name);
        found.map_or("", |(_, text)| text)
    }

    /// A query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Every value of a query parameter.
    pub(crate) fn queries(&self, name: &str) -> Vec<String> {
        let given = self.query.iter().filter(|(given, _)| given == name);
        given.map(|(_, value)| value.clone()).collect()
    }

    /// A yes-or-no parameter: `?follow` and `?follow=true` are yes.
    pub(crate) fn flag(&self, name: &str) -> Result<bool> {
        match self.query(name) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(Error::invalid(format!(
                "parameter {name}={other}: must be true or false"
            ))),
        }
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| Error::invalid(format!("parameter {name}={text}: must be a number")))
        };
        self.query(name).map(parse).transpose()
    }

    /// A moment: RFC 3339, or how long ago (`10m`).
    pub(crate) fn moment(&self, name: &str) -> Result<Option<Timestamp>> {
        let parse = |text: &str| match duration(text) {
            Ok(ago) => {
                let ago = i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX);
                Ok(Timestamp(Timestamp::now().0.saturating_sub(ago)))
            }
            Err(_) => text.parse::<Timestamp>().map_err(|e| e.context(name)),
        };
        self.query(name).map(parse).transpose()
    }

    /// Which part of a list is asked for.
    pub(crate) fn paging(&self) -> Result<Paging> {
        Ok(Paging {
            filters: self.queries("filter"),
            limit: self.number("limit")?.unwrap_or(0),
            token: self.query("page_token").unwrap_or_default().into(),
        })
    }

    /// Whether only to check and tell.
    pub(crate) fn dry_run(&self) -> Result<bool> {
        self.flag("dry_run")
    }

    /// A header's text; nothing when it is not ASCII.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.http.headers().get(name)?.to_str().ok()
    }

    /// What the client wants to read.
    pub(crate) fn accept(&self) -> Accept {
        accept(self.header("accept").unwrap_or_default())
    }

    /// The record version that the client saw: `If-Match: "3"`, or `If-None-Match: *` for "must not exist" (0).
    pub(crate) fn version(&self) -> Result<Option<u64>> {
        if self.header("if-none-match") == Some("*") {
            return Ok(Some(0));
        }
        let Some(text) = self.header("if-match").filter(|text| *text != "*") else {
            return Ok(None);
        };
        let number = text.trim_start_matches("W/").trim_matches('"');
        number.parse().map(Some).map_err(|_| {
            Error::invalid(format!(
                "If-Match {text}: must be the version of the record, as in \"3\""
            ))
        })
    }

    /// Turns the failure of a call into a problem; a failed `If-Match` is a 412.
    pub(crate) fn refused(&self, error: Error) -> Problem {
        let conditional = self.header("if-match").or(self.header("if-none-match"));
        Problem::of_precondition(error, self.conditional && conditional.is_some())
    }

    /// Reads the JSON body; an empty one is `{}`. Fields that the type does not have are refused.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let bytes = self.small_body().await?;
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) {
            b"{}"
        } else {
            &bytes
        };
        serde_json::from_slice(text).map_err(|e| Error::invalid(format!("body: {e}")).into())
    }

    /// The client's `Idempotency-Key`; it was checked.
    pub(crate) fn key(&self) -> Option<OperationId> {
        OperationId::new(self.header("idempotency-key")?).ok()
    }

    /// Leaves a step for when the answer is kept, so that a repetition would not miss what it takes away. An answer that
    /// cannot be kept does not stop it: what is asked for once must not stay for ever.
    pub(crate) fn later(&self, step: impl Future<Output = ()> + 'static) {
        self.later.0.borrow_mut().push(Box::pin(step));
    }

    /// Looks at the JSON body, which stays to be read. Errors: as [`Request::json`].
    pub(crate) async fn peeked(&mut self) -> Result<&[u8], Problem> {
        let bytes = self.small_body().await?;
        Ok(self.read.insert(bytes))
    }

    async fn small_body(&mut self) -> Result<Vec<u8>, Problem> {
        if let Some(read) = self.read.take() {
            return Ok(read);
        }
        let mut bytes = Vec::new();
        let Some(mut body) = self.body.take() else {
            return Ok(bytes);
        };
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| Error::invalid(format!("body: {e}")))?;
            if bytes.len() + chunk.len() > MAX_JSON {
                return Err(Problem::with_status(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    Error::exhausted(format!("body: has more than {MAX_JSON} bytes of JSON")),
                ));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Takes the raw body.
    pub(crate) fn bytes(&mut self) -> Option<web::Payload> {
        self.body.take()
    }
}

/// Answers 200 with JSON.
pub(crate) fn ok<T: Serialize>(value: T) -> Result<HttpResponse, Problem> {
    with(StatusCode::OK, value)
}

/// Answers with JSON and a status.
pub(crate) fn with<T: Serialize>(status: StatusCode, value: T) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::build(status).json(value))
}

/// Answers 200 with JSON, and the record's version as its `ETag`.
pub(crate) fn versioned<T: Serialize>(version: u64, value: T) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok()
        .insert_header((header::ETAG, format!("\"{version}\"")))
        .json(value))
}

/// Answers 201 with JSON and where it is from now on.
pub(crate) fn created<T: Serialize>(location: &str, value: T) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Created()
        .insert_header((header::LOCATION, location))
        .json(value))
}

/// Answers 204.
pub(crate) fn nothing() -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::NoContent().finish())
}

/// What stays as it is in the path of a name: its slashes too, for names may be written raw.
const RAW: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'/')
    .remove(b':')
    .remove(b'@');

/// Writes a name as a part of a path.
pub(crate) fn encode(name: &str) -> String {
    percent_encoding::utf8_percent_encode(name, RAW).to_string()
}

fn known(query: &[(String, String)], route: &Route) -> Result<()> {
    let dry = route.mutates().then_some(DRY_RUN);
    let offered: Vec<Param> = route.query.iter().copied().chain([TIMEOUT]).collect();
    for (name, _) in query {
        let known = offered.iter().chain(&dry).any(|known| known.name == name);
        if !known {
            let names: Vec<&str> = offered.iter().map(|param| param.name).collect();
            return Err(Error::invalid(format!(
                "unknown parameter {name:?}: {} {} knows {}",
                route.method,
                route.path(),
                names.join(", ")
            )));
        }
    }
    Ok(())
}

/// The first media type of an `Accept` header that we know.
fn accept(header: &str) -> Accept {
    header
        .split(',')
        .filter_map(|part| match part.split(';').next().unwrap_or("").trim() {
            "text/event-stream" => Some(Accept::Sse),
            "application/x-ndjson" | "application/ndjson" => Some(Accept::Ndjson),
            "text/plain" => Some(Accept::Text),
            "application/json" => Some(Accept::Json),
            _ => None,
        })
        .next()
        .unwrap_or(Accept::Json)
}

/// Reads `30`, `1.5s`, `200ms`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(
        text.find(|c: char| c != '.' && !c.is_ascii_digit())
            .unwrap_or(text.len()),
    );
    let scale = match unit {
        "ms" => Some(0.001),
        "" | "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    let seconds = number.parse::<f64>().ok().zip(scale);
    seconds
        // Nobody waits longer, and clocks overflow far beyond.
        .and_then(|(number, scale)| Duration::try_from_secs_f64(number * scale).ok())
        .map(|duration| duration.min(LONG * 365))
        .ok_or_else(|| {
            Error::invalid(format!(
                "duration {text:?}: must be seconds, or a number with ms, s, m or h"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("30", 30_000),
            ("1.5s", 1500),
            ("200ms", 200),
            ("5m", 300_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                duration(text).unwrap(),
                Duration::from_millis(millis),
                "{text}"
            );
        }
        for bad in ["", "s", "1d", "-1", "1e99", "2026-01-31T12:00:00Z"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_known_media_type_wins() {
        assert_eq!(accept("*/*"), Accept::Json);
        assert_eq!(
            accept("text/html, text/event-stream;q=0.9, application/json"),
            Accept::Sse
        );
        assert_eq!(accept("application/x-ndjson"), Accept::Ndjson);
        assert_eq!(accept("text/plain"), Accept::Text);
    }
}
