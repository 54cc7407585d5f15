//! Kills or stops plugins, one after the other, and measures how long they are away.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Blow, Plan, Random};
use crate::Outcome;
use crate::node::Node;
use crate::process::{self, until};

/// From a blow to a plugin that answers again; far beyond what is promised, so that a slow machine is only slow.
const BACK: Duration = Duration::from_secs(30);

/// One blow and its end.
#[derive(Clone, Debug)]
pub struct Away {
    /// Who was hit.
    pub plugin: String,
    /// From the blow until it was ready again.
    pub time: Duration,
}

/// The plugins of a node that have a process now, read from the process table: it asks nobody who may be dead.
pub fn plugins(supervisor: i32) -> Vec<(String, i32)> {
    let family = process::tree(supervisor).into_iter().skip(1);
    let mut found: Vec<(String, i32)> = family
        .filter(|pid| process::parent(*pid) == Some(supervisor))
        .filter_map(|pid| Some((hosted(pid)?, pid)))
        .collect();
    found.sort();
    found
}

/// The plugin that a process hosts: `gantry plugin content/local`.
fn hosted(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    match words.as_slice() {
        [_, b"plugin", id, ..] => String::from_utf8(id.to_vec()).ok(),
        _ => None,
    }
}

/// Strikes until the time is over. Answers how long each was away. Errors: one did not come back.
pub(super) async fn strike(node: &mut Node, plan: &Plan) -> Outcome<Vec<Away>> {
    let mut random = Random::new(plan.seed, 0);
    let (begun, mut away) = (Instant::now(), Vec::new());
    let mut beat = tokio::time::interval(plan.every);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.tick().await;
    while begun.elapsed() < plan.length {
        beat.tick().await;
        match plan.blow {
            Blow::Nothing => {}
            Blow::Kill => away.extend(killed(node, &mut random).await?),
            Blow::Stop => away.extend(stopped(node, &mut random).await?),
            Blow::Supervisor => away.push(restarted(node).await?),
        }
    }
    Ok(away)
}

fn chosen(node: &Node, random: &mut Random) -> Option<(String, i32)> {
    random.one(&plugins(node.pid())).cloned()
}

async fn killed(node: &Node, random: &mut Random) -> Outcome<Option<Away>> {
    let Some((plugin, pid)) = chosen(node, random) else {
        return Ok(None);
    };
    let hit = Instant::now();
    if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
        return Ok(None);
    }
    back(node, &plugin, |now| now != pid).await?;
    Ok(Some(Away {
        plugin,
        time: hit.elapsed(),
    }))
}

async fn stopped(node: &Node, random: &mut Random) -> Outcome<Option<Away>> {
    let Some((plugin, pid)) = chosen(node, random) else {
        return Ok(None);
    };
    let hit = Instant::now();
    if kill(Pid::from_raw(pid), Signal::SIGSTOP).is_err() {
        return Ok(None);
    }
    let asleep = Duration::from_millis(500 + random.below(2500));
    // Until it is woken, or somebody has lost patience with it.
    let _ = until("it is time", asleep, async || {
        process::parent(pid).is_none().then_some(())
    })
    .await;
    if process::parent(pid) == Some(node.pid()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
    }
    back(node, &plugin, |_| true).await?;
    Ok(Some(Away {
        plugin,
        time: hit.elapsed(),
    }))
}

async fn restarted(node: &mut Node) -> Outcome<Away> {
    let hit = Instant::now();
    node.kill_supervisor().await?;
    node.restart().await?;
    Ok(Away {
        plugin: "supervisor".into(),
        time: hit.elapsed(),
    })
}

/// Waits until the node itself calls the plugin ready, in a process that fits.
async fn back(node: &Node, plugin: &str, fits: impl Fn(i32) -> bool) -> Outcome {
    until(&format!("{plugin} is back"), BACK, async || {
        let now = node.plugin(plugin).await.ok()?;
        let pid = now["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())?;
        (matches!(now["state"].as_str(), Some("ready" | "degraded")) && fits(pid)).then_some(())
    })
    .await
}
