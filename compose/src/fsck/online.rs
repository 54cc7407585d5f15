//! Plugins of a daemon that runs, over its API.

use super::{Report, offline};
use crate::client::request;
use contracts::PluginId;
use contracts::integrity::{Check, Checked, Damage, Finding, Mend, Mended};
use hyper::Method;
use serde::{Deserialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a plugin may take to end.
const ENDED: Duration = Duration::from_secs(20);

/// What is asked of a plugin.
#[derive(Deserialize)]
struct Plugin {
    id: PluginId,
    state: String,
    cause: String,
    pid: u32,
    root: PathBuf,
}

#[derive(Deserialize)]
struct Plugins {
    items: Vec<Plugin>,
}

/// Looks at every plugin that says how it is checked.
///
/// Errors: the daemon has the lock but does not answer.
pub(super) async fn all(socket: &Path, repair: bool, deep: bool) -> Result<Report, String> {
    let mut report = Report::default();
    let checks = offline::checks();
    let plugins: Plugins = get(socket, "/v1/plugins").await?;
    let mut plugins = plugins.items.into_iter();
    let of_ours = |plugin: &Plugin| checks.iter().any(|(id, _)| *id == plugin.id);
    for plugin in plugins.by_ref().filter(of_ours) {
        let done = one(socket, &plugin, repair, deep, &mut report).await;
        if let Err(error) = done {
            report.fail(&plugin.id, error);
        }
    }
    Ok(report)
}

async fn one(
    socket: &Path,
    plugin: &Plugin,
    repair: bool,
    deep: bool,
    report: &mut Report,
) -> Result<(), String> {
    if !matches!(plugin.state.as_str(), "ready" | "degraded") {
        return stopped(socket, plugin, repair, report).await;
    }
    let found = match ask(socket, &plugin.id, deep).await {
        Ok(found) => found,
        // It runs, and cannot read its store any more.
        Err(error) if error.contains("(DATA_LOSS)") => {
            return stopped(socket, plugin, repair, report).await;
        }
        Err(error) => return Err(error),
    };
    let broken = |finding: &Finding| matches!(finding.damage, Damage::Store | Damage::Record);
    if repair && found.iter().any(broken) {
        return stopped(socket, plugin, repair, report).await;
    }
    for finding in found {
        let mended = if repair {
            mend(socket, &plugin.id, &finding).await?
        } else {
            None
        };
        report.add(&plugin.id, finding, mended);
    }
    Ok(())
}

/// Asks a plugin for everything it finds.
async fn ask(socket: &Path, plugin: &PluginId, deep: bool) -> Result<Vec<Finding>, String> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let check = Check { deep, token };
        let checked: Checked = call(socket, plugin, "integrity.check", &check).await?;
        found.extend(checked.findings);
        if checked.next.is_empty() {
            return Ok(found);
        }
        token = checked.next;
    }
}

/// Has a plugin mend a finding; `None` when that is in nobody's hands here.
async fn mend(
    socket: &Path,
    plugin: &PluginId,
    finding: &Finding,
) -> Result<Option<Mended>, String> {
    let finding = finding.clone();
    match call(socket, plugin, "integrity.mend", &Mend { finding }).await {
        Ok(mended) => Ok(Some(mended)),
        Err(error) if error.contains("(FAILED_PRECONDITION)") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks into the folder of a plugin while the daemon keeps it stopped.
async fn stopped(
    socket: &Path,
    plugin: &Plugin,
    repair: bool,
    report: &mut Report,
) -> Result<(), String> {
    let path = format!("/v1/plugins/{}", plugin.id);
    let was_stopped = plugin.state == "stopped";
    if !was_stopped {
        post(socket, &format!("{path}:stop")).await?;
    }
    let until = Instant::now() + ENDED;
    while get::<Plugin>(socket, &path).await?.pid != 0 {
        if Instant::now() > until {
            return Err(format!("its process does not end; {}", plugin.cause));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The folder is <root>/<plugin>.
    let root = plugin.root.ancestors().nth(2).unwrap_or(Path::new("/"));
    offline::one(&plugin.id, root, repair, report);
    if !was_stopped {
        post(socket, &format!("{path}:start")).await?;
    }
    Ok(())
}

async fn call<R: DeserializeOwned>(
    socket: &Path,
    plugin: &PluginId,
    method: &str,
    message: &impl serde::Serialize,
) -> Result<R, String> {
    let body = serde_json::to_string(message).map_err(|e| e.to_string())?;
    let path = format!("/v1/call/{method}?plugin={plugin}");
    let answer = request(socket, Method::POST, &path, body).await?;
    serde_json::from_slice(&answer).map_err(|e| format!("the answer to {method}: {e}"))
}

async fn get<R: DeserializeOwned>(socket: &Path, path: &str) -> Result<R, String> {
    let answer = request(socket, Method::GET, path, String::new()).await?;
    serde_json::from_slice(&answer).map_err(|e| format!("the answer to {path}: {e}"))
}

async fn post(socket: &Path, path: &str) -> Result<(), String> {
    let asked = request(socket, Method::POST, path, String::new());
    asked.await.map(drop)
}
