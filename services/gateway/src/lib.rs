//! The HTTP/JSON edge: everything that gantry can do, one `curl` away.
//!
//! Owns nothing: no state, and on disk only the token of its TCP listeners, if it has any. It must not know what a
//! request means, only whom to ask: what takes several steps is an operation of `operations`, and everything else is one
//! call. A restart of this process loses no work, for operations go on without it.
//!
//! From the outside in:
//!
//! | file | what it knows |
//! |---|---|
//! | `service.rs` `config.rs` `token.rs` `tls.rs` | which listeners there are, and who may use the TCP ones |
//! | `serve.rs` `visit.rs` | connections → requests, on the plugin's one thread; when a connection may be closed |
//! | `edge.rs` | the way of one request: route, token, handler, problem |
//! | `path.rs` `router.rs` | paths with slashes and actions → one table of routes |
//! | `request.rs` | parameters, headers, strict JSON; the context that the bus carries |
//! | `routes/` | one file per resource: the table's rows and their handlers of a few lines |
//! | `keyed.rs` | requests with an `Idempotency-Key`: one effect, one answer |
//! | `work.rs` | long work: start, wait, stream progress |
//! | `news.rs` | whether the log of events has grown, for all of its readers |
//! | `waits.rs` | how many requests may wait for tasks at a time |
//! | `stream.rs` | server-sent events, JSON lines, heartbeat |
//! | `range.rs` `pipe.rs` `signal.rs` | parts of blobs; bodies ↔ descriptors; signals by name |
//! | `convert/` | contracts ↔ the JSON that users see |
//! | `lists.rs` | where a watch goes on from a list; filters and pages for lists whose owner has none |
//! | `errors.rs` | error classes → status and problem documents |
//! | `openapi.rs` `param.rs` `metrics.rs` | the table and its traffic, described |
//!
//! To find the line that handles a request, search `routes/` for its path.
//!
//! **Waiting.** Long work answers `202` with `Location: /v1/operations/{id}`; `?wait=true` answers when it is finished.
//! Making a container, deleting one and collecting garbage wait unless `?wait=false`. `containers:run?wait=true` waits
//! for the end of the container's process, as `docker run` does, and `?wait=started` only for its start.
//!
//! **Repeating.** A client whose connection breaks repeats its request with the same `Idempotency-Key`, for up to 24 h, and
//! gets the first answer; whatever was killed meanwhile, the effect happens once. The same key with another body,
//! parameters or path is a 422. A refusal frees the key. What streams is shown anew: progress records show the whole
//! operation each, so a reader that comes back, by the same request or by `/v1/operations/{id}`, misses nothing.
//!
//! **Watching.** Every list has a `version`: `GET /v1/events?since=<version>` tells what comes after what it shows.
//!
//! **Ending.** When another build or other settings take its place, this process retires: it accepts nothing new,
//! finishes the requests in flight (for up to a minute) while its successor already answers, and ends endless streams,
//! whose readers go on at the successor by `Last-Event-ID` or `since=`. On Unix sockets nobody notices; TCP listeners are
//! closed and opened again, so that for some milliseconds connections are refused. SIGTERM does the same within 3 s.

mod config;
mod convert;
mod edge;
mod errors;
mod keyed;
mod lists;
mod metrics;
mod news;
mod openapi;
mod param;
mod path;
mod pipe;
mod range;
mod request;
mod router;
mod routes;
mod serve;
mod service;
mod signal;
mod stream;
mod tls;
mod token;
mod visit;
mod waits;
mod work;

use bus::Registration;
use contracts::gateway::Gateway;
use contracts::plugin::{Privileges, Supervisor};
use contracts::{
    containers::Containers, content::Content, diff::Diff, events::Events, gc::Gc, images::Images,
    leases::Leases, namespaces::Namespaces, operations::Operations, snapshots::Snapshots,
    tasks::Tasks, transfer::Transfer,
};

/// The facts the supervisor needs before any process exists, then the one function that starts it.
pub fn plugin() -> Registration {
    Registration::new::<Gateway>("http")
        .requires::<Supervisor>()
        .requires::<Events>()
        .requires::<Leases>()
        .requires::<Content>()
        .requires::<Snapshots>()
        .requires::<Images>()
        .requires::<Transfer>()
        .requires::<Diff>()
        .requires::<Containers>()
        .requires::<Tasks>()
        .requires::<Gc>()
        .requires::<Namespaces>()
        .requires::<Operations>()
        .privileges(Privileges::NONE)
        .socket("gantry.sock", 0o660)
        .start(service::routes, service::GatewayService::start)
}
