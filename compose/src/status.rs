//! `gantry status`: one line per plugin.

use crate::client::request;
use hyper::Method;
use serde::Deserialize;
use std::path::Path;

/// What the table needs of a plugin.
#[derive(Deserialize)]
struct Plugin {
    id: String,
    state: String,
    pid: u32,
    uid: u32,
    restarts: u32,
    memory: u64,
    cause: String,
    capabilities: Vec<String>,
}

#[derive(Deserialize)]
struct Plugins {
    items: Vec<Plugin>,
}

/// Prints the plugins. Errors: the node does not answer.
pub(crate) async fn status(socket: &Path, json: bool) -> Result<(), String> {
    let body = request(socket, Method::GET, "/v1/plugins", String::new()).await?;
    if json {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let plugins: Plugins =
        serde_json::from_slice(&body).map_err(|e| format!("the node's answer: {e}"))?;
    println!(
        "{:<22} {:<9} {:>7} {:>7} {:>5} {:>9} {:>8}  CAUSE",
        "PLUGIN", "STATE", "PID", "UID", "CAPS", "MEMORY", "RESTARTS"
    );
    for plugin in &plugins.items {
        let Plugin {
            id,
            state,
            pid,
            uid,
            restarts,
            cause,
            ..
        } = plugin;
        let (caps, memory) = (
            plugin.capabilities.len(),
            format!("{:.1} MiB", plugin.memory as f64 / 1_048_576.0),
        );
        println!(
            "{id:<22} {state:<9} {pid:>7} {uid:>7} {caps:>5} {memory:>9} {restarts:>8}  {cause}"
        );
    }
    let sum: u64 = plugins.items.iter().map(|plugin| plugin.memory).sum();
    println!(
        "{} plugins, {:.1} MiB",
        plugins.items.len(),
        sum as f64 / 1_048_576.0
    );
    Ok(())
}
