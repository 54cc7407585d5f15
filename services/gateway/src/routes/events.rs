//! The event log, as pages and as streams that outlive a restart of the log's plugin.

use crate::convert::event::{EventPage, EventView, GapBounds, GapView};
use crate::convert::text;
use crate::edge::Edge;
use crate::errors::{Answer, Problem};
use crate::news::BREATH;
use crate::param;
use crate::request::{Accept, LISTED, Request, ok, with};
use crate::router::{Media, Route, get, post};
use crate::stream::{self, Local, Record};
use actix_web::http::StatusCode;
use bus::Ctx;
use contracts::events::{Batch, Info, List, Publish};
use contracts::{Code, Error, Namespace, Result};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{rc::Rc, time::Duration};
use tokio::sync::watch;
use utoipa::ToSchema;

/// How long to wait for the log's first word before the headers go out without it.
const FIRST: Duration = Duration::from_millis(250);
/// Events that wait for one reader, at most: all that a reader who stalls costs.
const PAGE: u32 = 64;

pub(super) fn routes() -> Vec<Route> {
    vec![
        get("/v1/events", events)
            .says("What happened and what happens: a page, or a stream by Accept (text/event-stream, application/x-ndjson) that Last-Event-ID resumes")
            .query(&LISTED)
            .query(&[param::count("since", "Only what came after this number; 0 for everything that is kept")])
            .media(Media::Records)
            .answers::<EventPage>(),
        post("/v1/events", publish)
            .says("Appends an event of a user")
            .takes::<PublishBody>()
            .answers::<PublishedView>()
            .status(201),
    ]
}

async fn events(request: Request) -> Answer {
    match request.accept() {
        Accept::Sse | Accept::Ndjson => follow(request).await,
        Accept::Json | Accept::Text => page(request).await,
    }
}

async fn page(request: Request) -> Answer {
    let since = match request.number("page_token")? {
        Some(token) => token,
        None => request.number("since")?.unwrap_or(0),
    };
    let list = List {
        since,
        filters: request.queries("filter"),
        limit: request.number("limit")?.unwrap_or(0),
    };
    let batch = request.call(list).await?;
    ok(EventPage {
        next_page_token: match batch.end {
            true => String::new(),
            false => batch.seen.to_string(),
        },
        version: batch.seen,
        gap: batch.gap.map(|(first, last)| GapBounds { first, last }),
        items: batch.events.into_iter().map(Into::into).collect(),
    })
}

async fn follow(request: Request) -> Answer {
    let since = match request.header("last-event-id").filter(|id| !id.is_empty()) {
        Some(id) => Some(id.parse().map_err(|_| {
            Error::invalid(format!("Last-Event-ID {id:?}: must be a sequence number"))
        })?),
        None => request.number("since")?,
    };
    let filters = request.queries("filter");
    let mut batches = batches(&request, since, filters).peekable();
    // A bad filter is still an ordinary answer; a log that is merely busy holds no header back.
    let first = std::pin::Pin::new(&mut batches).peek();
    if let Ok(Some(Err(error))) = tokio::time::timeout(FIRST, first).await {
        return Err(error.clone().into());
    }
    let records = batches.flat_map(|batch| futures_util::stream::iter(records(batch)));
    // It never ends by itself; a reader goes on at the successor, behind the last number it has seen.
    let busy = request.edge.busy.clone();
    let records = records.take_until(async move { busy.ending().await });
    Ok(stream::records(
        request.accept(),
        request.edge.heartbeat,
        records,
    ))
}

/// A reader's place in the log.
struct Place {
    edge: Rc<Edge>,
    ctx: Ctx,
    news: watch::Receiver<u64>,
    filters: Vec<String>,
    since: Option<u64>,
    /// Whether anything was read yet.
    heard: bool,
    /// Whether there was nothing more the last time.
    is_at_end: bool,
}

/// Reads the log from `since` on, a page whenever the last one is taken. When its plugin is started again, goes on behind
/// the last number that was looked at.
fn batches(request: &Request, since: Option<u64>, filters: Vec<String>) -> Local<Result<Batch>> {
    let place = Place {
        edge: request.edge.clone(),
        ctx: request.ctx.clone(),
        news: request.edge.news.follow(request.bus()),
        filters,
        since,
        heard: false,
        is_at_end: false,
    };
    let pages = futures_util::stream::unfold(Some(place), |place| async move {
        let mut place = place?;
        let batch = place.next().await;
        let next = batch.is_ok().then_some(place);
        Some((batch, next))
    });
    pages.boxed_local()
}

impl Place {
    /// The next page with something in it; the first one comes at once, and may be empty.
    async fn next(&mut self) -> Result<Batch> {
        loop {
            if self.is_at_end {
                self.grown().await?;
            }
            match self.read().await {
                Ok(batch) => {
                    let first = !self.heard;
                    (self.since, self.heard, self.is_at_end) = (Some(batch.seen), true, batch.end);
                    if first || !batch.events.is_empty() || batch.gap.is_some() {
                        return Ok(batch);
                    }
                }
                Err(error) if self.heard && is_away(&error) => tokio::time::sleep(BREATH).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn grown(&mut self) -> Result<()> {
        let since = self.since.unwrap_or_default();
        let grown = self.news.wait_for(|newest| *newest > since).await;
        grown
            .map(drop)
            .map_err(|_| Error::unavailable("events: this gateway is stopping"))
    }

    async fn read(&self) -> Result<Batch> {
        let ctx = self.ctx.clone().with_deadline(bus::DEFAULT_DEADLINE);
        let bus = &self.edge.bus;
        let since = match self.since {
            Some(since) => since,
            None => bus.call(&ctx, Info {}).await?.last,
        };
        let list = List {
            since,
            filters: self.filters.clone(),
            limit: PAGE,
        };
        bus.call(&ctx, list).await
    }
}

/// Whether the log is only away for a while.
fn is_away(error: &Error) -> bool {
    error.is(Code::Unavailable) || error.is(Code::DeadlineExceeded)
}

fn records(batch: Result<Batch>) -> Vec<Record> {
    let batch = match batch {
        Ok(batch) => batch,
        Err(error) => {
            let problem = Problem::from(error).view();
            return vec![record(
                None,
                "error",
                &serde_json::json!({ "error": problem }),
            )];
        }
    };
    let gap = batch.gap.map(|(first, last)| {
        let view = GapView {
            gap: GapBounds { first, last },
        };
        record(None, "gap", &view)
    });
    let events = batch.events.into_iter().map(|event| {
        let view = EventView::from(event);
        record(Some(view.seq), &view.topic.clone(), &view)
    });
    gap.into_iter().chain(events).collect()
}

fn record(id: Option<u64>, event: &str, data: &impl Serialize) -> Record {
    Record {
        id,
        event: event.into(),
        data: serde_json::to_string(data).unwrap_or_default(),
    }
}

/// An event of a user.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewEvent)]
struct PublishBody {
    /// Slash path.
    topic: String,
    /// What it carries.
    #[serde(default)]
    #[schema(value_type = Object)]
    event: Value,
    /// In which namespace; absent for the node itself.
    #[serde(default)]
    namespace: Option<String>,
}

/// Where an event went.
#[derive(Serialize, ToSchema)]
#[schema(as = Published)]
struct PublishedView {
    /// Its number.
    seq: u64,
}

async fn publish(mut request: Request) -> Answer {
    let body: PublishBody = request.json().await?;
    request.ctx.namespace = body.namespace.map(Namespace::new).transpose()?;
    let event = match &body.event {
        Value::Null => "{}".into(),
        event => text("event", event)?,
    };
    let publish = Publish {
        topic: body.topic,
        event,
    };
    let seq = request.call(publish).await?;
    with(StatusCode::CREATED, PublishedView { seq })
}
