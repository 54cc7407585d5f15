//! The description of the surface, made from the table of routes and the shapes that handlers read and write.
//!
//! Source: OpenAPI 3.1.

use crate::errors::ProblemView;
use crate::param::{self, Kind, Param};
use crate::request::{DRY_RUN, TIMEOUT};
use crate::router::{Media, Route, Schemas, Table};
use actix_web::http::Method;
use std::collections::BTreeMap;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, OneOfBuilder, Schema};
use utoipa::openapi::{
    InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr, Required, ResponseBuilder,
    ResponsesBuilder,
};
use utoipa::{PartialSchema, ToSchema};

/// Describes every route.
pub(crate) fn document(table: &Table) -> OpenApi {
    let mut schemas = Schemas::new();
    schemas.push((ProblemView::name().into_owned(), ProblemView::schema()));
    let mut paths = PathsBuilder::new();
    for route in table.routes() {
        let others = route.others.iter().map(|(_, shape)| shape);
        for shape in route.takes.iter().chain(&route.answers).chain(others) {
            (shape.collect)(&mut schemas);
        }
        let item = PathItem::new(method(&route.method), operation(route));
        paths = paths.path(route.path(), item);
    }
    let components = schemas
        .into_iter()
        .fold(ComponentsBuilder::new(), |components, (name, schema)| {
            components.schema(name, schema)
        });
    let info = InfoBuilder::new()
        .title("gantry")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Containers, one plugin per concern, over HTTP and JSON.",
        ));
    OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components.build()))
        .build()
}

fn method(method: &Method) -> HttpMethod {
    match *method {
        Method::HEAD => HttpMethod::Head,
        Method::PUT => HttpMethod::Put,
        Method::POST => HttpMethod::Post,
        Method::PATCH => HttpMethod::Patch,
        Method::DELETE => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

fn operation(route: &Route) -> OperationBuilder {
    let mut operation = OperationBuilder::new()
        .summary(Some(route.summary))
        .operation_id(Some(operation_id(route)))
        .tag(tag(route));
    for (place, param) in parameters(route) {
        let required = match place {
            ParameterIn::Path => Required::True,
            _ => Required::False,
        };
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(param.name)
                .parameter_in(place)
                .required(required)
                .description(Some(param.text))
                .schema(Some(param.schema())),
        );
    }
    if let Some(shape) = &route.takes {
        let body = ContentBuilder::new().schema(Some((shape.schema)())).build();
        let body = RequestBodyBuilder::new().content("application/json", body);
        operation = operation.request_body(Some(body.build()));
    }
    if route.takes_bytes {
        let body = RequestBodyBuilder::new()
            .content("application/octet-stream", ContentBuilder::new().build());
        operation = operation.request_body(Some(body.build()));
    }
    operation.responses(responses(route))
}

/// Understood by every route that changes something.
const LEASE: Param = param::of(
    "Gantry-Lease",
    Kind::Name(1024),
    "A lease that shall hold what this makes",
);
const KEY: Param = param::of(
    "Idempotency-Key",
    Kind::Name(255),
    "A repetition with the same key gets the first answer",
);
const VERSION: Param = param::of(
    "If-Match",
    Kind::Pattern("^\"[0-9]{1,18}\"$"),
    "The version of the record that the client saw",
);

fn parameters(route: &Route) -> Vec<(ParameterIn, Param)> {
    let parts = route.pattern.split('/');
    let path = parts.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let path = path.map(|part| (ParameterIn::Path, Param::in_path(part)));
    let dry = route.dry.then_some(DRY_RUN);
    let query = route.query.iter().copied().chain(dry).chain([TIMEOUT]);
    let lasting = route.mutates().then_some([LEASE, KEY]);
    let header = lasting
        .into_iter()
        .flatten()
        .chain(route.conditional.then_some(VERSION));
    path.chain(query.map(|param| (ParameterIn::Query, param)))
        .chain(header.map(|param| (ParameterIn::Header, param)))
        .collect()
}

fn responses(route: &Route) -> ResponsesBuilder {
    let mut shapes: BTreeMap<u16, Vec<RefOr<Schema>>> = BTreeMap::new();
    shapes.entry(route.status).or_default();
    let own = route.answers.iter().map(|shape| (route.status, *shape));
    for (status, shape) in own.chain(route.others.iter().copied()) {
        shapes.entry(status).or_default().push((shape.schema)());
    }
    let good = shapes
        .into_iter()
        .map(|(status, shapes)| (status.to_string(), good(route, shapes)));
    let problem = ResponseBuilder::new()
        .description("What went wrong, with a code and a sentence that helps")
        .content(
            "application/problem+json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(ProblemView::name())))
                .build(),
        );
    good.fold(ResponsesBuilder::new(), |responses, (status, good)| {
        responses.response(status, good)
    })
    .response("default", problem)
}

/// An answer that is one of several shapes, or that has no JSON at all.
fn good(route: &Route, mut shapes: Vec<RefOr<Schema>>) -> ResponseBuilder {
    let empty = || ContentBuilder::new().build();
    let mut good = ResponseBuilder::new().description(route.summary);
    match (shapes.len(), route.media) {
        (0, Media::Bytes) => good = good.content("application/octet-stream", empty()),
        (0, Media::Text) => good = good.content("text/plain", empty()),
        (0, _) => {}
        (1, _) => {
            let schema = shapes.pop();
            good = good.content(
                "application/json",
                ContentBuilder::new().schema(schema).build(),
            );
        }
        _ => {
            let any = shapes
                .into_iter()
                .fold(OneOfBuilder::new(), OneOfBuilder::item);
            let any = ContentBuilder::new().schema(Some(Schema::from(any)));
            good = good.content("application/json", any.build());
        }
    }
    if route.media == Media::Drawing {
        good = good.content("text/plain", empty());
    }
    if route.media == Media::Records {
        for kind in ["text/event-stream", "application/x-ndjson"] {
            good = good.content(kind, empty());
        }
    }
    good
}

/// The resource that a route belongs to: the first part after the version and the namespace.
fn tag(route: &Route) -> &'static str {
    let parts = route.pattern.split('/').filter(|part| !part.is_empty());
    let mut resources = parts.filter(|part| *part != "v1" && !part.starts_with('{'));
    match (resources.next(), resources.next()) {
        (Some("namespaces"), Some(resource)) => resource,
        (Some(resource), _) => resource,
        (None, _) => "node",
    }
}

fn operation_id(route: &Route) -> String {
    let path = route.path();
    let words = path
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty() && *word != "v1");
    let words: Vec<&str> = words.collect();
    format!(
        "{}_{}",
        route.method.as_str().to_ascii_lowercase(),
        words.join("_")
    )
}
