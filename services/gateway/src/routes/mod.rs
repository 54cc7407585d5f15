//! Every route, one file per resource. A file lists its rows first, then the handlers.

mod audit;
mod call;
mod containers;
mod content;
mod events;
mod gc;
mod images;
mod images_archive;
mod images_names;
mod images_usage;
mod ingests;
mod later;
mod leases;
mod logs;
mod namespaces;
mod node;
mod operations;
mod plugins;
mod scrub;
mod snapshots;
mod tasks;
mod tasks_exec;

use crate::router::Route;

/// The table, more specific paths before more general ones.
pub(crate) fn all() -> Vec<Route> {
    [
        node::routes(),
        plugins::routes(),
        events::routes(),
        operations::routes(),
        call::routes(),
        gc::routes(),
        scrub::routes(),
        audit::routes(),
        namespaces::routes(),
        ingests::routes(),
        content::routes(),
        snapshots::routes(),
        images_archive::routes(),
        images_usage::routes(),
        images::routes(),
        containers::routes(),
        logs::routes(),
        tasks_exec::routes(),
        tasks::routes(),
        leases::routes(),
        later::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
