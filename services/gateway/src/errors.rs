//! Errors as `application/problem+json`. Source: RFC 9457.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, HttpResponseBuilder};
use contracts::{Code, Error, PluginId};
use serde::Serialize;
use utoipa::ToSchema;

/// What a handler answers.
pub(crate) type Answer = Result<HttpResponse, Problem>;

/// An error with the status it gets, and headers that belong to it.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) error: Error,
    headers: Vec<(header::HeaderName, String)>,
}

/// A problem as users see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemView {
    /// Names the class as a URN.
    r#type: String,
    /// The class, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The object, what was observed, and the way out.
    detail: String,
    /// The class, one of containerd's: `NOT_FOUND`, `ALREADY_EXISTS`, …
    #[schema(value_type = String)]
    code: Code,
    /// The plugin that is the cause, when one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    plugin: Option<PluginId>,
    /// From the called plugin down to the cause, when a plugin is the cause.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, required = false)]
    chain: Vec<PluginId>,
}

impl Problem {
    /// A problem whose status is not the usual one of its class.
    pub(crate) fn with_status(status: StatusCode, error: Error) -> Self {
        Self {
            status,
            error,
            headers: Vec::new(),
        }
    }

    /// The same with a header.
    pub(crate) fn header(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A failed `If-Match`: 412 where the class alone would say 409.
    pub(crate) fn of_precondition(error: Error, conditional: bool) -> Self {
        match (error.code, conditional) {
            (Code::Aborted, true) => Self::with_status(StatusCode::PRECONDITION_FAILED, error),
            _ => error.into(),
        }
    }

    /// What users see.
    pub(crate) fn view(&self) -> ProblemView {
        let (_, title, slug) = class(self.error.code);
        ProblemView {
            r#type: format!("urn:gantry:problem:{slug}"),
            title,
            status: self.status.as_u16(),
            detail: self.error.message.clone(),
            code: self.error.code,
            plugin: self.error.plugin.clone(),
            chain: self.error.chain.clone(),
        }
    }

    /// The whole answer.
    pub(crate) fn response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status);
        for (name, value) in &self.headers {
            response.insert_header((name.clone(), value.as_str()));
        }
        response
            .content_type("application/problem+json")
            .body(serde_json::to_vec(&self.view()).unwrap_or_default())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = class(error.code).0;
        Self::with_status(
            StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            error,
        )
    }
}

/// Status, title and slug of a class. 499 is what proxies write for a client that gave up; no RFC has one.
fn class(code: Code) -> (u16, &'static str, &'static str) {
    match code {
        Code::InvalidArgument => (400, "Invalid argument", "invalid-argument"),
        Code::Unauthenticated => (401, "Unauthenticated", "unauthenticated"),
        Code::PermissionDenied => (403, "Permission denied", "permission-denied"),
        Code::NotFound => (404, "Not found", "not-found"),
        Code::AlreadyExists => (409, "Already exists", "already-exists"),
        Code::FailedPrecondition => (409, "Failed precondition", "failed-precondition"),
        Code::Aborted => (409, "Aborted", "aborted"),
        Code::OutOfRange => (416, "Out of range", "out-of-range"),
        Code::ResourceExhausted => (429, "Resource exhausted", "resource-exhausted"),
        Code::Cancelled => (499, "Cancelled", "cancelled"),
        Code::Internal => (500, "Internal", "internal"),
        Code::DataLoss => (500, "Data loss", "data-loss"),
        Code::Unknown => (500, "Unknown", "unknown"),
        Code::Unimplemented => (501, "Unimplemented", "unimplemented"),
        Code::Unavailable => (503, "Unavailable", "unavailable"),
        Code::DeadlineExceeded => (504, "Deadline exceeded", "deadline-exceeded"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_plugin_and_chain_only_when_a_plugin_is_the_cause() {
        let plain = serde_json::to_value(Problem::from(Error::not_found("image a: no")).view());
        let plain = plain.unwrap();
        assert_eq!(plain["status"], 404);
        assert_eq!(plain["code"], "NOT_FOUND");
        assert_eq!(plain["type"], "urn:gantry:problem:not-found");
        assert!(plain.get("plugin").is_none() && plain.get("chain").is_none());

        let plugin = PluginId::new("content/local").unwrap();
        let error = Error::unavailable("gone").caused_by(plugin.clone(), vec![plugin]);
        let caused = serde_json::to_value(Problem::from(error).view()).unwrap();
        assert_eq!(caused["plugin"], "content/local");
        assert_eq!(caused["chain"][0], "content/local");
    }

    #[test]
    fn only_a_conditional_request_turns_aborted_into_412() {
        let status = |conditional| {
            Problem::of_precondition(Error::aborted("version 2"), conditional)
                .status
                .as_u16()
        };
        assert_eq!((status(true), status(false)), (412, 409));
    }
}
