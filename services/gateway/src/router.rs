//! One table of routes: what is matched, what is described at `/openapi.json`, and what `/metrics` counts by.

use crate::convert::DryView;
use crate::convert::operation::OperationView;
use crate::errors::{Answer, Problem};
use crate::param::Param;
use crate::path::{Captures, Path, pattern_verb};
use crate::request::{LISTED, Request};
use actix_web::http::{Method, StatusCode, header};
use contracts::Error;
use futures_util::future::LocalBoxFuture;
use std::rc::Rc;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};

/// Answers a request of one route.
pub(crate) type Handler = Rc<dyn Fn(Request) -> LocalBoxFuture<'static, Answer>>;
/// Schemas by name, as `utoipa` collects them.
pub(crate) type Schemas = Vec<(String, RefOr<Schema>)>;

/// A body in the description: its schema, and the schemas that it refers to.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) schema: fn() -> RefOr<Schema>,
    pub(crate) collect: fn(&mut Schemas),
}

impl Shape {
    /// One object.
    pub(crate) fn of<T: ToSchema>() -> Self {
        Self {
            schema: || Ref::from_schema_name(T::name()).into(),
            collect: |all| {
                all.push((T::name().into_owned(), T::schema()));
                T::schemas(all);
            },
        }
    }

    /// Several objects.
    fn many<T: ToSchema>() -> Self {
        Self {
            schema: || {
                Schema::from(ArrayBuilder::new().items(Ref::from_schema_name(T::name()))).into()
            },
            ..Self::of::<T>()
        }
    }

    /// A page of a list.
    fn page<T: ToSchema>() -> Self {
        Self {
            schema: || page(Ref::from_schema_name(T::name())).into(),
            ..Self::of::<T>()
        }
    }
}

/// What [`crate::convert::PageView`] is in JSON.
fn page(item: Ref) -> Schema {
    let text = ObjectBuilder::new().schema_type(Type::String);
    let number = ObjectBuilder::new().schema_type(Type::Integer);
    let fields = ObjectBuilder::new()
        .property("items", ArrayBuilder::new().items(item))
        .property("next_page_token", text)
        .property("version", number);
    ["items", "next_page_token", "version"]
        .into_iter()
        .fold(fields, ObjectBuilder::required)
        .into()
}

/// What a route takes or answers besides JSON of a known shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Media {
    /// JSON.
    #[default]
    Json,
    /// The raw bytes of a blob or archive.
    Bytes,
    /// Text.
    Text,
    /// JSON, or a drawing of it as text.
    Drawing,
    /// JSON, or a stream of records by `Accept`.
    Records,
}

/// One method of one path.
pub(crate) struct Route {
    pub(crate) method: Method,
    /// Without the action.
    pub(crate) pattern: &'static str,
    pub(crate) verb: Option<&'static str>,
    pub(crate) handler: Handler,
    pub(crate) summary: &'static str,
    pub(crate) query: Vec<Param>,
    pub(crate) takes: Option<Shape>,
    pub(crate) takes_bytes: bool,
    pub(crate) answers: Option<Shape>,
    /// What else it answers when all goes well, by status.
    pub(crate) others: Vec<(u16, Shape)>,
    pub(crate) status: u16,
    pub(crate) media: Media,
    /// Honours `If-Match`.
    pub(crate) conditional: bool,
    /// Honours `?dry_run=true`.
    pub(crate) dry: bool,
    /// Is answered before anybody has shown a token.
    pub(crate) open: bool,
}

/// Makes the route of `method` and `pattern` (`/v1/images/{name*}:tag`).
fn route<F, Fut>(method: Method, pattern: &'static str, handler: F) -> Route
where
    F: Fn(Request) -> Fut + 'static,
    Fut: Future<Output = Answer> + 'static,
{
    let (pattern, verb) = pattern_verb(pattern);
    Route {
        method,
        pattern,
        verb,
        handler: Rc::new(move |request| Box::pin(handler(request))),
        summary: "",
        query: Vec::new(),
        takes: None,
        takes_bytes: false,
        answers: None,
        others: Vec::new(),
        status: 200,
        media: Media::Json,
        conditional: false,
        dry: false,
        open: false,
    }
}

macro_rules! methods {
    ($( $name:ident => $method:ident; )*) => { $(
        pub(crate) fn $name<F, Fut>(pattern: &'static str, handler: F) -> Route
        where
            F: Fn(Request) -> Fut + 'static,
            Fut: Future<Output = Answer> + 'static,
        {
            route(Method::$method, pattern, handler)
        }
    )* };
}
methods! { get => GET; head => HEAD; put => PUT; post => POST; patch => PATCH; delete => DELETE; }

impl Route {
    /// Says in one sentence what it does.
    pub(crate) fn says(mut self, summary: &'static str) -> Self {
        self.summary = summary;
        self
    }

    /// Adds query parameters.
    pub(crate) fn query(mut self, params: &[Param]) -> Self {
        self.query.extend(params);
        self
    }

    /// Takes a JSON body.
    pub(crate) fn takes<T: ToSchema>(mut self) -> Self {
        self.takes = Some(Shape::of::<T>());
        self
    }

    /// Takes raw bytes.
    pub(crate) fn takes_bytes(mut self) -> Self {
        self.takes_bytes = true;
        self
    }

    /// Answers JSON.
    pub(crate) fn answers<T: ToSchema>(mut self) -> Self {
        self.answers = Some(Shape::of::<T>());
        self
    }

    /// Answers an array.
    pub(crate) fn many<T: ToSchema>(mut self) -> Self {
        self.answers = Some(Shape::many::<T>());
        self
    }

    /// Answers a page of a list, whose parameters it takes.
    pub(crate) fn lists<T: ToSchema>(mut self) -> Self {
        self.answers = Some(Shape::page::<T>());
        self.query(&LISTED)
    }

    /// May answer something else with another status.
    pub(crate) fn or<T: ToSchema>(mut self, status: u16) -> Self {
        self.others.push((status, Shape::of::<T>()));
        self
    }

    /// Begins long work: takes `wait`, may answer 202, and streams progress by `Accept`.
    pub(crate) fn works(self, wait: Param) -> Self {
        self.media(Media::Records)
            .query(&[wait])
            .or::<OperationView>(202)
    }

    /// Answers with this status when all goes well.
    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Answers something else than JSON.
    pub(crate) fn media(mut self, media: Media) -> Self {
        self.media = media;
        self
    }

    /// Honours `If-Match`.
    pub(crate) fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    /// Honours `?dry_run=true`.
    pub(crate) fn dry(mut self) -> Self {
        self.dry = true;
        self.or::<DryView>(200)
    }

    /// Needs no token.
    pub(crate) fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// Whether it answers this method. A HEAD is answered as a GET whose body is left out, unless that may be endless.
    fn offers(&self, method: &Method) -> bool {
        let short = *method == Method::HEAD && self.method == Method::GET;
        self.method == *method || (short && matches!(self.media, Media::Json | Media::Drawing))
    }

    /// Whether it changes anything.
    pub(crate) fn mutates(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD)
    }

    /// The path as documents and metrics show it.
    pub(crate) fn path(&self) -> String {
        let path = self.pattern.replace("*}", "}");
        match self.verb {
            Some(verb) => format!("{path}:{verb}"),
            None => path,
        }
    }
}

/// Every route there is, more specific ones before more general ones.
pub(crate) struct Table {
    routes: Vec<Rc<Route>>,
}

impl Table {
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        Self {
            routes: routes.into_iter().map(Rc::new).collect(),
        }
    }

    pub(crate) fn routes(&self) -> impl Iterator<Item = &Rc<Route>> {
        self.routes.iter()
    }

    /// Finds the route of a request.
    ///
    /// Errors: 405 with `Allow` when the path is another method's; 404 naming what is near otherwise.
    pub(crate) fn find(
        &self,
        method: &Method,
        path: &Path,
    ) -> Result<(Rc<Route>, Captures), Problem> {
        if *method == Method::POST
            && let Some(found) = self.acting(path)
        {
            return Ok(found);
        }
        let plain = || self.routes.iter().filter(|route| route.verb.is_none());
        let Some(first) = plain().find(|route| path.matches(route.pattern).is_some()) else {
            return Err(match self.acting(path) {
                Some((route, _)) => not_allowed(method, &route.path(), &["POST".into()], &[]),
                None => self.unknown(path),
            });
        };
        let same = || plain().filter(|route| route.pattern == first.pattern);
        match same().find(|route| route.offers(method)) {
            Some(route) => Ok((
                route.clone(),
                path.matches(route.pattern).unwrap_or_default(),
            )),
            None => {
                let allowed: Vec<String> = same().map(|route| route.method.to_string()).collect();
                let actions = self.actions(first.pattern);
                Err(not_allowed(method, &first.path(), &allowed, &actions))
            }
        }
    }

    fn acting(&self, path: &Path) -> Option<(Rc<Route>, Captures)> {
        let verb = path.verb()?;
        let mut acting = self.routes.iter().filter(|route| route.verb == Some(verb));
        acting.find_map(|route| Some((route.clone(), path.matches_without_verb(route.pattern)?)))
    }

    fn actions(&self, pattern: &str) -> Vec<&'static str> {
        self.routes
            .iter()
            .filter(|route| route.pattern == pattern)
            .filter_map(|route| route.verb)
            .collect()
    }

    fn unknown(&self, path: &Path) -> Problem {
        let near = |route: &Rc<Route>| path.nearness(route.pattern);
        let best = self.routes().map(near).max().unwrap_or(0);
        let mut there: Vec<&str> = Vec::new();
        let mut place = "";
        for route in self.routes().filter(|route| near(route) == best) {
            let (before, next) = step(route.pattern, best);
            if !next.is_empty() && !there.contains(&next) {
                there.push(next);
                place = before;
            }
        }
        let place = if place.is_empty() { "/" } else { place };
        Error::not_found(format!(
            "path: no such resource; below {} there is {}",
            place.replace("*}", "}"),
            there.join(", ").replace("*}", "}")
        ))
        .into()
    }
}

/// Cuts a pattern before its part number `at`: what leads there, and that part.
fn step(pattern: &'static str, at: usize) -> (&'static str, &'static str) {
    let mut rest = pattern;
    for _ in 0..=at {
        match rest.strip_prefix('/') {
            Some(part) => rest = &part[part.find('/').unwrap_or(part.len())..],
            None => return (pattern, ""),
        }
    }
    let upto = &pattern[..pattern.len() - rest.len()];
    upto.rsplit_once('/').unwrap_or((upto, ""))
}

fn not_allowed(method: &Method, path: &str, allowed: &[String], actions: &[&str]) -> Problem {
    let allow = allowed.join(", ");
    let mut text = format!("{path}: {method} is not offered, use {allow}");
    if !actions.is_empty() && *method == Method::POST {
        text = format!("{text}, or POST an action: :{}", actions.join(", :"));
    }
    Problem::with_status(StatusCode::METHOD_NOT_ALLOWED, Error::unimplemented(text))
        .header(header::ALLOW, allow)
}
