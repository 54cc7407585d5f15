//! `gantry upgrade`: plugins move to another build, and this follows until the end.

use crate::client::request;
use hyper::Method;
use serde::Deserialize;
use serde_json::json;
use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

/// How often it is asked how it goes. A step takes half a second at least.
const LOOK: Duration = Duration::from_millis(100);
/// How long the node may leave questions unanswered before this gives up: the upgrade goes on without it.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Upgrade {
    state: String,
    steps: Vec<Step>,
    cause: String,
}

#[derive(Deserialize)]
struct Step {
    plugin: String,
    phase: String,
    away_us: u64,
}

/// Begins an upgrade and prints each plugin as it comes up on the new build.
///
/// Errors: the build was refused and nothing was touched, or all went back to the build before; the sentence says why.
pub(crate) async fn upgrade(
    socket: &Path,
    binary: &Path,
    plugins: &[String],
) -> Result<(), String> {
    let binary =
        std::path::absolute(binary).map_err(|e| format!("binary {}: {e}", binary.display()))?;
    let body = json!({ "binary": binary, "plugins": plugins }).to_string();
    let begun = request(socket, Method::POST, "/v1/upgrade", body).await?;
    let mut seen = HashMap::new();
    let mut upgrade = read(&begun)?;
    let mut heard = Instant::now();
    loop {
        show(&upgrade, &mut seen);
        match upgrade.state.as_str() {
            "done" => return Ok(()),
            "rolled_back" => return Err(format!("rolled back: {}", upgrade.cause)),
            _ => tokio::time::sleep(LOOK).await,
        }
        match request(socket, Method::GET, "/v1/upgrade", String::new()).await {
            Ok(body) => (upgrade, heard) = (read(&body)?, Instant::now()),
            Err(error) if heard.elapsed() > PATIENCE => return Err(error),
            // The gateway is itself one of those that move.
            Err(_) => {}
        }
    }
}

fn read(body: &[u8]) -> Result<Upgrade, String> {
    serde_json::from_slice(body).map_err(|e| format!("the node's answer: {e}"))
}

fn show(upgrade: &Upgrade, seen: &mut HashMap<String, String>) {
    for Step {
        plugin,
        phase,
        away_us,
    } in &upgrade.steps
    {
        let known = seen.insert(plugin.clone(), phase.clone());
        let settled = matches!(phase.as_str(), "ready" | "prepared" | "rolled_back");
        if !settled || known.as_ref() == Some(phase) {
            continue;
        }
        let away = Duration::from_micros(*away_us);
        match phase.as_str() {
            "ready" => println!("{plugin:<22} ready, was away for {away:.1?}"),
            "prepared" => println!("{plugin:<22} was not running, will start from the new build"),
            _ => println!("{plugin:<22} is back on the build before"),
        }
    }
}
