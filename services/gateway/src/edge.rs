//! What every connection shares, and the way of one request through it.

use crate::errors::{Answer, Problem};
use crate::keyed::{self, Begun, Key};
use crate::metrics::Metrics;
use crate::news::News;
use crate::path::Path;
use crate::request::Request;
use crate::router::{Route, Table};
use crate::token::Token;
use crate::waits::Waits;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bus::{Bus, server::Busy};
use contracts::Error;
use std::{rc::Rc, time::Duration};

/// Carries the id of what a request did: for logs, and for `/v1/operations/{id}` when it is long work.
pub(crate) const OPERATION: HeaderName = HeaderName::from_static("gantry-operation");

/// What every connection of this process shares. Lives on one thread.
pub(crate) struct Edge {
    /// The only way to anything outside.
    pub(crate) bus: Bus,
    /// Every route.
    pub(crate) table: Table,
    /// What `/metrics` tells about requests.
    pub(crate) metrics: Metrics,
    /// Requests that wait for tasks or follow their logs.
    pub(crate) waits: Waits,
    /// What is in flight in this process, and whether it is to end.
    pub(crate) busy: Rc<Busy>,
    /// Whether the log of events has grown.
    pub(crate) news: News,
    /// How often an idle stream shows that it lives.
    pub(crate) heartbeat: Duration,
}

impl Edge {
    /// Answers one request; whatever goes wrong is a problem document.
    pub(crate) async fn handle(
        self: Rc<Self>,
        http: HttpRequest,
        body: web::Payload,
        token: Option<&Token>,
    ) -> HttpResponse {
        let started = self.metrics.begin();
        let method = http.method().clone();
        let (route, answer) = match self.find(&http) {
            Ok((route, captures)) => {
                let answer = match admitted(&http, &route, token) {
                    Ok(()) => self.clone().run(http, body, &route, captures).await,
                    Err(problem) => Err(problem),
                };
                (Some(route), answer)
            }
            // Who has shown no token does not learn which paths there are.
            Err(problem) => (None, refused(&http, token).and(Err(problem))),
        };
        let response = answer.unwrap_or_else(|problem| problem.response());
        let path = route.map_or_else(|| "unknown".into(), |route| route.path());
        self.metrics.end(started, &method, path, response.status());
        response
    }

    fn find(&self, http: &HttpRequest) -> Result<(Rc<Route>, crate::path::Captures), Problem> {
        let path = Path::parse(http.uri().path())?;
        self.table.find(http.method(), &path)
    }

    async fn run(
        self: Rc<Self>,
        http: HttpRequest,
        body: web::Payload,
        route: &Route,
        captures: crate::path::Captures,
    ) -> Answer {
        let mut request = Request::new(self, http, body, route, captures)?;
        let operation = HeaderValue::from_str(request.ctx.operation.as_str());
        let mut response = match keyed::begin(&mut request, route).await? {
            Begun::Known(response) => response,
            Begun::Fresh(key) => answered(key, request, route).await,
        };
        if let (Ok(operation), false) = (operation, response.headers().contains_key(OPERATION)) {
            response.headers_mut().insert(OPERATION, operation);
        }
        Ok(response)
    }
}

/// Lets the handler answer; what it left for later is done when the answer is kept, as far as it can be.
async fn answered(key: Option<Key>, request: Request, route: &Route) -> HttpResponse {
    let later = request.later.clone();
    let answer = (route.handler)(request).await;
    let response = match key {
        Some(key) => key.settle(answer, later.waits()).await,
        None => answer.unwrap_or_else(|problem| problem.response()),
    };
    later.run().await;
    response
}

fn admitted(http: &HttpRequest, route: &Route, token: Option<&Token>) -> Result<(), Problem> {
    match route.open {
        true => Ok(()),
        false => refused(http, token),
    }
}

fn refused(http: &HttpRequest, token: Option<&Token>) -> Result<(), Problem> {
    let Some(token) = token else { return Ok(()) };
    let shown = http.headers().get(header::AUTHORIZATION);
    if shown.is_some_and(|shown| token.is(shown.as_bytes())) {
        return Ok(());
    }
    let error = Error::unauthenticated(
        "authorization: this listener wants `Authorization: Bearer` and the token in the gateway's token_file",
    );
    Err(Problem::from(error).header(header::WWW_AUTHENTICATE, "Bearer realm=\"gantry\""))
}
