//! The description of the surface, made from the table of routes and the shapes that handlers read and write.
//!
//! Source: OpenAPI 3.1.

use crate::errors::ProblemView;
use crate::request::TIMEOUT;
use crate::router::{Media, Route, Schemas, Shape, Table};
use actix_web::http::Method;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Ref, Type};
use utoipa::openapi::{
    InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Required, ResponseBuilder, ResponsesBuilder,
};
use utoipa::{PartialSchema, ToSchema};

/// Describes every route.
pub(crate) fn document(table: &Table) -> OpenApi {
    let mut schemas = Schemas::new();
    schemas.push((ProblemView::name().into_owned(), ProblemView::schema()));
    let mut paths = PathsBuilder::new();
    for route in table.routes() {
        for shape in route.takes.iter().chain(&route.answers) {
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
    for (name, place, text) in parameters(route) {
        let required = match place {
            ParameterIn::Path => Required::True,
            _ => Required::False,
        };
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(place)
                .required(required)
                .description(Some(text))
                .schema(Some(ObjectBuilder::new().schema_type(Type::String))),
        );
    }
    if let Some(shape) = &route.takes {
        let body = ContentBuilder::new().schema(Some(reference(shape))).build();
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

fn parameters(route: &Route) -> Vec<(&'static str, ParameterIn, &'static str)> {
    let path = route
        .pattern
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| match name.strip_suffix('*') {
            Some(name) => (name, ParameterIn::Path, "May have slashes, raw or encoded"),
            None => (name, ParameterIn::Path, "One part of the path"),
        });
    let dry = route.dry.then_some(crate::request::DRY_RUN);
    let query = route.query.iter().copied().chain(dry).chain([TIMEOUT]);
    let query = query.map(|(name, text)| (name, ParameterIn::Query, text));
    let header = |name, text| (name, ParameterIn::Header, text);
    let lease = header("Gantry-Lease", "A lease that shall hold what this makes");
    let key = header(
        "Idempotency-Key",
        "A repetition with the same key gets the first answer",
    );
    let version = header("If-Match", "The version of the record that the client saw");
    path.chain(query)
        .chain(route.mutates().then_some(lease))
        .chain(route.mutates().then_some(key))
        .chain(route.conditional.then_some(version))
        .collect()
}

fn responses(route: &Route) -> ResponsesBuilder {
    let mut good = ResponseBuilder::new().description(route.summary);
    match (&route.answers, route.media) {
        (Some(shape), media) => {
            let content = || ContentBuilder::new().schema(Some(reference(shape))).build();
            good = good.content("application/json", content());
            if media == Media::Records {
                for kind in ["text/event-stream", "application/x-ndjson"] {
                    good = good.content(kind, ContentBuilder::new().build());
                }
            }
        }
        (None, Media::Bytes) => {
            good = good.content("application/octet-stream", ContentBuilder::new().build());
        }
        (None, Media::Text) => good = good.content("text/plain", ContentBuilder::new().build()),
        (None, _) => {}
    }
    let problem = ResponseBuilder::new()
        .description("What went wrong, with a code and a sentence that helps")
        .content(
            "application/problem+json",
            ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(ProblemView::name())))
                .build(),
        );
    ResponsesBuilder::new()
        .response(route.status.to_string(), good)
        .response("default", problem)
}

fn reference(shape: &Shape) -> Ref {
    Ref::from_schema_name((shape.name)())
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
