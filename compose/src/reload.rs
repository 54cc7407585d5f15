//! `gantry reload`: configuration and manifest are read again.

use crate::client::request;
use hyper::Method;
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Reloaded {
    changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Change {
    plugin: String,
    action: String,
    why: String,
}

/// Asks for a reload and prints what it did, or would do. Errors: nothing was changed, or all of it came back.
pub(crate) async fn reload(socket: &Path, dry_run: bool) -> Result<(), String> {
    let path = format!("/v1/reload?dry_run={dry_run}");
    let body = request(socket, Method::POST, &path, String::new()).await?;
    let reloaded: Reloaded =
        serde_json::from_slice(&body).map_err(|e| format!("the node's answer: {e}"))?;
    for Change {
        plugin,
        action,
        why,
    } in &reloaded.changes
    {
        println!("{action:<8} {plugin:<22} {why}");
    }
    match (reloaded.changes.is_empty(), dry_run) {
        (true, _) => println!("nothing has changed"),
        (false, true) => println!("nothing was done: dry run"),
        (false, false) => println!("done"),
    }
    Ok(())
}
