//! Plugins of a daemon that runs, over its API.

use super::{Report, offline};
use crate::client::request;
use bytes::Bytes;
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
    let ours = |plugin: &Plugin| checks.iter().any(|(id, _)| *id == plugin.id);
    let operations = |plugin: &&Plugin| plugin.id.service() == "operations";
    let scrubber = plugins.items.iter().find(operations);
    let scrubber = scrubber.map(|plugin| plugin.id.clone());
    let mut down = Vec::new();
    for plugin in plugins.items.into_iter().filter(ours) {
        match one(socket, &plugin, repair, deep, &mut report).await {
            Ok(true) => {}
            Ok(false) => down.push(plugin),
            Err(error) => report.fail(&plugin.id, error),
        }
    }
    stopped(socket, &down, repair, &mut report).await;
    if let Some(by) = scrubber.filter(|_| deep) {
        layers(socket, &by, repair, &mut report).await;
    }
    Ok(report)
}

/// Has layers compared with their blobs: no plugin can do that alone.
async fn layers(socket: &Path, by: &PluginId, repair: bool, report: &mut Report) {
    let path = format!("/v1/scrub?wait=true&timeout=24h&repair={repair}");
    let answer = request(socket, Method::POST, &path, String::new()).await;
    let understood = |answer: Bytes| serde_json::from_slice(&answer).map_err(|e| e.to_string());
    match answer.and_then(understood) {
        Ok(scrubbed) => super::layers::add(scrubbed, by, repair, report),
        Err(error) => report.fail(by, error),
    }
}

/// Asks a plugin that answers. False when its folder must be looked into while it does not run.
async fn one(
    socket: &Path,
    plugin: &Plugin,
    repair: bool,
    deep: bool,
    report: &mut Report,
) -> Result<bool, String> {
    if !matches!(plugin.state.as_str(), "ready" | "degraded") {
        return Ok(false);
    }
    let found = match ask(socket, &plugin.id, deep).await {
        Ok(found) => found,
        // It runs, and cannot read its store any more.
        Err(error) if error.contains("(DATA_LOSS)") => return Ok(false),
        Err(error) => return Err(error),
    };
    let broken = |finding: &Finding| matches!(finding.damage, Damage::Store | Damage::Record);
    if repair && found.iter().any(broken) {
        return Ok(false);
    }
    report.looked_at.push(plugin.id.clone());
    for finding in found {
        let mended = if repair {
            mend(socket, &plugin.id, &finding).await?
        } else {
            None
        };
        report.add(&plugin.id, finding, mended);
    }
    Ok(true)
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

/// Looks into the folders of plugins while the daemon keeps all of them stopped: some may share a process. They are
/// started again whatever is found.
async fn stopped(socket: &Path, plugins: &[Plugin], repair: bool, report: &mut Report) {
    let mut ended = Vec::new();
    for plugin in plugins {
        match stop(socket, plugin).await {
            Ok(()) => ended.push(plugin),
            Err(error) => report.fail(&plugin.id, error),
        }
    }
    for plugin in ended {
        // The folder is <root>/<plugin>.
        let root = plugin.root.ancestors().nth(2).unwrap_or(Path::new("/"));
        // Not on this thread: a check may wait for a runtime of its own.
        std::thread::scope(|scope| {
            scope.spawn(|| offline::one(&plugin.id, root, repair, report));
        });
    }
    for plugin in plugins.iter().filter(|plugin| plugin.state != "stopped") {
        let path = format!("/v1/plugins/{}:start", plugin.id);
        if let Err(error) = post(socket, &path).await {
            report.fail(&plugin.id, error);
        }
    }
}

/// Stops a plugin and waits for the end of its process.
async fn stop(socket: &Path, plugin: &Plugin) -> Result<(), String> {
    let path = format!("/v1/plugins/{}", plugin.id);
    if plugin.state != "stopped" {
        post(socket, &format!("{path}:stop")).await?;
    }
    let until = Instant::now() + ENDED;
    while get::<Plugin>(socket, &path).await?.pid != 0 {
        if Instant::now() > until {
            return Err(format!("its process does not end; {}", plugin.cause));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
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
