//! The live graph: a plugin that is stuck, late, flapping or too large hurts exactly those who need it, everybody is
//! told who it is, and nobody has to do anything about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hyper::Method;
use integration::Outcome;
use integration::http::Client;
use integration::node::{Incarnation, Node, Setup};
use integration::process::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// From the moment that a plugin no longer answers until everybody is told, as promised to users.
const TOLD: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(20);
/// Probes that judge quicker, so that a story about every plugin is short.
const QUICK: &str = "[probe]\nevery_ms = 200\nlate_ms = 700\n";

/// A plugin's process that is stopped, and goes on when this is dropped.
struct Stopped(Incarnation);

impl Stopped {
    async fn stop(node: &Node, plugin: &str) -> Outcome<Self> {
        let life = node.incarnation(plugin).await?;
        kill(Pid::from_raw(life.pid), Signal::SIGSTOP)?;
        Ok(Self(life))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = kill(Pid::from_raw(self.0.pid), Signal::SIGCONT);
    }
}

async fn plugins(client: &Client) -> Outcome<BTreeMap<String, Value>> {
    let list = client.send(Method::GET, "/v1/plugins", ()).await?.ok()?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let named = |item: Value| Some((item["id"].as_str()?.to_owned(), item));
    Ok(items.into_iter().filter_map(named).collect())
}

/// Everybody who requires `plugin`, directly or through others, by the graph that users see.
async fn dependants(node: &Node, plugin: &str) -> Outcome<BTreeSet<String>> {
    let graph = node.get("/v1/graph").await?.ok()?;
    let edges = graph["edges"].as_array().cloned().unwrap_or_default();
    let ends = |edge: &Value| {
        Some((
            edge["from"].as_str()?.to_owned(),
            edge["to"].as_str()?.to_owned(),
        ))
    };
    let edges: Vec<_> = edges.iter().filter_map(ends).collect();
    let (mut found, mut open) = (BTreeSet::new(), vec![plugin.to_owned()]);
    while let Some(next) = open.pop() {
        let callers = edges.iter().filter(|(_, to)| *to == next);
        for (caller, _) in callers {
            if found.insert(caller.clone()) {
                open.push(caller.clone());
            }
        }
    }
    Ok(found)
}

/// A read that only this plugin can answer, if there is one without an image.
fn read(node: &Node, plugin: &str) -> Option<String> {
    Some(match plugin {
        "events/log" => "/v1/events?limit=1".into(),
        "operations/local" => "/v1/operations?limit=1".into(),
        "leases/local" => node.at("/leases?limit=1"),
        "content/local" => node.at("/content?limit=1"),
        "snapshots/overlayfs" => node.at("/snapshots/overlayfs?limit=1"),
        "snapshots/native" => node.at("/snapshots/native?limit=1"),
        "images/local" => node.at("/images?limit=1"),
        "containers/local" => node.at("/containers?limit=1"),
        "tasks/local" => node.at("/tasks?limit=1"),
        _ => return None,
    })
}

/// Stops a plugin until all that depend on it are told, and tells how long that took.
async fn stopped_and_told(node: &Node, plugin: &str) -> Outcome<(Stopped, Duration)> {
    let stopped = Stopped::stop(node, plugin).await?;
    let since = Instant::now();
    let dependants = dependants(node, plugin).await?;
    let all = until(&format!("all are told of {plugin}"), SOON, async || {
        let all = plugins(node.client()).await.ok()?;
        let suffers = |id: &String| id == plugin || dependants.contains(id);
        let expected = |id| if suffers(id) { "degraded" } else { "ready" };
        let told = all.iter().all(|(id, info)| info["state"] == expected(id));
        told.then_some(all)
    })
    .await?;
    let took = since.elapsed();
    for (id, info) in &all {
        let suffers = id == plugin || dependants.contains(id);
        let chain = info["chain"]
            .as_array()
            .and_then(|chain| chain.last().cloned());
        assert_eq!(chain, suffers.then(|| json!(plugin)), "{info}");
        let cause = info["cause"].as_str().unwrap_or_default();
        assert_eq!(
            cause.contains("it does not answer since"),
            suffers,
            "{info}"
        );
    }
    Ok((stopped, took))
}

/// The gateway itself is left out: whoever asks, asks it.
async fn all_but_the_edge(node: &Node) -> Outcome<Vec<String>> {
    let mut ids: Vec<_> = plugins(node.client()).await?.into_keys().collect();
    ids.retain(|id| id != "gateway/http" && id != "supervisor/local");
    Ok(ids)
}

async fn until_all_ready(node: &Node) -> Outcome {
    until("all is well again", SOON, async || {
        let ready = node.get("/readyz").await.ok()?;
        ready.status.is_success().then_some(())
    })
    .await
}

#[actix_rt::test]
async fn a_stuck_plugin_is_named_to_exactly_those_who_need_it_and_others_answer() -> Outcome {
    let node = Node::start_with(Setup::default().config(QUICK)).await?;
    let all = all_but_the_edge(&node).await?;
    let before = plugins(node.client()).await?;
    for plugin in &all {
        let (stopped, _) = stopped_and_told(&node, plugin).await?;
        for other in &all {
            let Some(path) = read(&node, other) else {
                continue;
            };
            if other != plugin {
                let answer = node.get(&format!("{path}&timeout=5s")).await?;
                answer
                    .ok()
                    .map_err(|e| format!("{path} while {plugin} is stuck: {e}"))?;
                continue;
            }
            let answer = node.get(&format!("{path}&timeout=100ms")).await?;
            assert_eq!(answer.refusal(504)?, "DEADLINE_EXCEEDED");
            let problem = answer.json()?;
            assert_eq!(
                (&problem["plugin"], &problem["chain"]),
                (&json!(plugin), &json!([plugin]))
            );
            let detail = problem["detail"].as_str().unwrap_or_default();
            assert!(detail.contains("it does not answer since"), "{problem}");
        }
        drop(stopped);
        until_all_ready(&node).await?;
    }
    for (id, now) in plugins(node.client()).await? {
        assert_eq!(
            now["pid"], before[&id]["pid"],
            "{id} goes on, it is not replaced"
        );
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn everybody_is_told_of_a_stuck_plugin_within_two_seconds() -> Outcome {
    let node = Node::start().await?;
    // On a machine that also compiles, one slow time says nothing; three do.
    let mut times = Vec::new();
    while times.iter().all(|time| *time > TOLD) && times.len() < 3 {
        let (_stopped, took) = stopped_and_told(&node, "content/local").await?;
        times.push(took);
    }
    println!("told after {times:?}");
    assert!(times.iter().any(|time| *time <= TOLD), "{times:?}");
    until_all_ready(&node).await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_plugin_that_stays_stuck_is_replaced_and_its_successor_answers_who_waited() -> Outcome {
    let setup = Setup::default().config(&format!("{QUICK}kill_seconds = 2"));
    let node = Node::start_with(setup).await?;
    let before = plugins(node.client()).await?;
    for plugin in ["images/local", "gateway/http", "events/log"] {
        let stopped = Stopped::stop(&node, plugin).await?;
        let path = read(&node, plugin).unwrap_or_else(|| "/v1/version".into());
        // A connection that the gateway held dies with it; one that waited in its socket is answered.
        let answer = node.get(&path).await?;
        answer.ok().map_err(|e| format!("{plugin}: {e}"))?;
        let next = node.until_ready_after(stopped.0.clone()).await?;
        assert_eq!(next.restarts, 1, "{plugin}");
        let info = node.plugin(plugin).await?;
        let last = "it did not answer for 2 s and was killed";
        assert_eq!(info["last_exit"], last, "{info}");
        assert_eq!(info["exits"][0]["how"], last, "{info}");
    }
    for (id, now) in plugins(node.client()).await? {
        let replaced = ["images/local", "gateway/http", "events/log"].contains(&id.as_str());
        assert_eq!(now["pid"] != before[&id]["pid"], replaced, "{id}");
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn hundreds_that_wait_for_a_stuck_plugin_are_in_nobodys_way() -> Outcome {
    let node = Node::start_with(Setup::default().config(QUICK)).await?;
    let all = all_but_the_edge(&node).await?;
    let (stopped, _) = stopped_and_told(&node, "content/local").await?;
    let path = node.at("/content?limit=1&timeout=4s");
    let waiting = join_all((0..300).map(|_| node.get(&path)));
    let others = async {
        let begun = Instant::now();
        for other in all.iter().filter(|id| *id != "content/local") {
            if let Some(path) = read(&node, other) {
                node.get(&path)
                    .await?
                    .ok()
                    .map_err(|e| format!("{path}: {e}"))?;
            }
        }
        Outcome::Ok(begun.elapsed())
    };
    // Who is first tells who waited for whom.
    let mut waiting = Box::pin(waiting);
    let took = tokio::select! {
        biased;
        took = others => took?,
        _ = &mut waiting => return Err("others were not answered before those who wait".into()),
    };
    println!("reads beside 300 that wait: {took:?}");
    for answer in waiting.as_mut().await {
        let answer = answer?;
        assert_eq!(answer.refusal(504)?, "DEADLINE_EXCEEDED");
        assert_eq!(answer.json()?["plugin"], "content/local");
    }
    drop((stopped, waiting));
    until_all_ready(&node).await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn what_needs_a_stuck_plugin_through_another_is_told_the_whole_chain() -> Outcome {
    let node = Node::start_with(Setup::default().config(QUICK)).await?;
    let (stopped, _) = stopped_and_told(&node, "images/local").await?;
    // Which namespaces there are is asked of those who hold something.
    let answer = node.get("/v1/namespaces?timeout=1s").await?;
    assert_eq!(answer.refusal(504)?, "DEADLINE_EXCEEDED");
    let problem = answer.json()?;
    let chain = json!(["namespaces/local", "images/local"]);
    assert_eq!(
        (&problem["plugin"], &problem["chain"]),
        (&chain[1], &chain),
        "{problem}"
    );
    // Long work goes on without its client, who is told what holds it up.
    let body = json!({"id": "one", "image": "busybox:1", "args": ["true"]});
    let path = node.at("/containers:run?wait=started&timeout=1s");
    let problem = node.post(&path, body).await?.json()?;
    assert_eq!(problem["plugin"], "images/local", "{problem}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains("is not finished yet and goes on"),
        "{problem}"
    );
    assert!(detail.contains("it does not answer since"), "{problem}");
    drop(stopped);
    until_all_ready(&node).await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_plugin_that_comes_late_holds_up_nobody_who_does_not_need_it() -> Outcome {
    let setup = Setup::default().config("[probe]\npatience_seconds = 1\n");
    let mut node = Node::start_with(setup).await?;
    node.terminate().await?;
    let lock = File::open(node.root().join("images/local/images.redb"))?;
    lock.lock()?;
    let (client, content) = (node.client().clone(), node.at("/content?limit=1"));
    let looked = async {
        let all = until("the others are there", SOON, async || {
            let all = plugins(&client).await.ok()?;
            (all["operations/local"]["state"] == "degraded").then_some(all)
        })
        .await?;
        assert_eq!(all["images/local"]["state"], "starting");
        assert_eq!(all["content/local"]["state"], "ready");
        let late = &all["operations/local"];
        assert_eq!(late["cause"], "images/local is starting", "{late}");
        client.send(Method::GET, &content, ()).await?.ok()?;
        drop(lock);
        Outcome::Ok(())
    };
    let (restarted, looked) = tokio::join!(node.restart(), looked);
    looked?;
    restarted?;
    for (id, info) in plugins(node.client()).await? {
        assert_eq!(info["restarts"], 0, "{id}");
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_plugin_that_dies_as_soon_as_it_is_ready_is_left_alone_until_a_user_starts_it() -> Outcome
{
    let setup = Setup::default().config("[restart]\nfailures = 3\nfirst_ms = 20\n");
    let node = Node::start_with(setup).await?;
    let before = plugins(node.client()).await?;
    let mut last = 0;
    let failed = until("it has failed", SOON, async || {
        let info = node.plugin("leases/local").await.ok()?;
        let pid = i32::try_from(info["pid"].as_i64()?).ok()?;
        if info["state"] == "ready" && pid != last {
            last = pid;
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok()?;
        }
        (info["state"] == "failed").then_some(info)
    })
    .await?;
    assert_eq!(failed["restarts"], 3, "{failed}");
    let exits = failed["exits"].as_array().cloned().unwrap_or_default();
    assert_eq!(exits.len(), 4, "{failed}");
    assert!(exits.iter().all(|exit| exit["how"] == "signal 9 (SIGKILL)"));
    let dependants = dependants(&node, "leases/local").await?;
    for (id, info) in plugins(node.client()).await? {
        if id == "leases/local" {
            continue;
        }
        assert_eq!(info["pid"], before[&id]["pid"], "{id} was restarted");
        let expected = if dependants.contains(&id) {
            "degraded"
        } else {
            "ready"
        };
        assert_eq!(info["state"], expected, "{info}");
    }
    let answer = node.get(&node.at("/leases")).await?;
    assert_eq!(answer.refusal(503)?, "UNAVAILABLE");
    node.post("/v1/plugins/leases/local:start", ())
        .await?
        .ok()?;
    until_all_ready(&node).await?;
    node.get(&node.at("/leases")).await?.ok()?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_plugin_with_limits_is_held_by_the_kernel_and_leaves_no_cgroup() -> Outcome {
    let limits = "[limits.\"images/local\"]\nmemory = \"64MiB\"\ncpu = 500\n";
    let node = Node::start_with(Setup::default().config(limits)).await?;
    let info = node.plugin("images/local").await?;
    assert_eq!(info["unlimited"], "", "{info}");
    assert_eq!(info["limits"], json!({"memory": 64 << 20, "cpu": 500}));
    let place = fs::read_to_string(format!("/proc/{}/cgroup", info["pid"]))?;
    assert!(place.contains("/images-local\n"), "{place}");
    node.get(&node.at("/images")).await?.ok()?;
    let other = node.plugin("content/local").await?;
    assert_eq!(other["limits"], json!({"memory": 0, "cpu": 0}));
    let place = fs::read_to_string(format!("/proc/{}/cgroup", other["pid"]))?;
    assert!(!place.contains("gantry-plugins"), "{place}");
    let killed = node.kill("images/local").await?;
    let next = node.until_ready_after(killed).await?;
    let place = fs::read_to_string(format!("/proc/{}/cgroup", next.pid))?;
    assert!(place.contains("/images-local\n"), "{place}");
    let folder = node
        .folder()
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let folder = folder.ok_or("no name")?;
    node.stop_clean().await?;
    let left = fs::read_to_string("/proc/self/mountinfo")?;
    let tops = left.lines().filter(|line| line.contains(" - cgroup"));
    for top in tops.filter_map(|line| line.split(' ').nth(4)) {
        let found = integration::process::run(std::process::Command::new("find").args([
            top,
            "-name",
            &format!("*{folder}*"),
        ]))?;
        assert_eq!(String::from_utf8_lossy(&found), "");
    }
    Ok(())
}
