//! Whatever is killed comes back by itself, and nobody else notices: not the neighbours, not the callers, not the containers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use integration::Outcome;
use integration::http::Response;
use integration::image::sample;
use integration::node::{Node, Setup};
use integration::process::until;
use integration::registry::Registry;
use serde_json::json;

/// From a plugin's death to its successor being ready, as promised to users.
const BACK: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(20);
/// Counts for ever, and ends when told to.
const COUNTING: &str = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";

async fn with_image() -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    Ok((registry, node, name))
}

async fn pids(node: &Node) -> Outcome<BTreeMap<String, i64>> {
    let plugins = node.plugins().await?;
    let pid = |plugin: &serde_json::Value| {
        Some((plugin["id"].as_str()?.to_owned(), plugin["pid"].as_i64()?))
    };
    Ok(plugins.iter().filter_map(pid).collect())
}

/// One request that only this plugin can answer.
async fn request(node: &Node, plugin: &str, image: &str) -> Outcome<Response> {
    let read = |path: &str| node.at(path);
    match plugin {
        "events/log" => node.get("/v1/events?limit=1").await,
        "leases/local" => node.get(&read("/leases")).await,
        "content/local" => node.get(&read("/content")).await,
        "snapshots/overlayfs" => node.get(&read("/snapshots/overlayfs")).await,
        "snapshots/native" => node.get(&read("/snapshots/native")).await,
        "images/local" => node.get(&read("/images")).await,
        "containers/local" => node.get(&read("/containers")).await,
        "tasks/local" => node.get(&read("/tasks/counting/pids")).await,
        "namespaces/local" => node.get("/v1/namespaces").await,
        "operations/local" => node.get("/v1/operations").await,
        "gc/local" => node.post("/v1/gc?dry_run=true", ()).await,
        "gateway/http" => node.get("/v1/version").await,
        // It looks up users in the image's files.
        "diff/local" => {
            let body =
                json!({"id": "looked-up", "image": image, "user": "plain", "args": ["true"]});
            let made = node.post(&read("/containers"), body).await?;
            node.remove("looked-up").await?;
            Ok(made)
        }
        "transfer/local" => {
            let body = json!({"ref": image, "plain_http": true});
            node.post(&read("/images:pull?dry_run=true"), body).await
        }
        other => Err(format!("{other}: which request does only it answer?").into()),
    }
}

/// Kills a plugin, uses it at once, and tells how long it was away.
async fn away(node: &Node, plugin: &str, image: &str) -> Outcome<Duration> {
    let before = pids(node).await?;
    let killed = node.kill(plugin).await?;
    let since = Instant::now();
    // Not one request waits for readiness: what the plugin cannot answer yet is kept for its successor.
    request(node, plugin, image)
        .await?
        .ok()
        .map_err(|error| format!("after {plugin} was killed: {error}"))?;
    node.until_ready_after(killed).await?;
    let away = since.elapsed();
    let mut after = pids(node).await?;
    for (id, pid) in before {
        let now = after.remove(&id);
        assert_eq!(
            now == Some(pid),
            id != plugin,
            "{id} when {plugin} was killed"
        );
    }
    Ok(away)
}

#[actix_rt::test]
async fn any_plugin_is_back_within_a_second_and_nobody_else_notices() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let task = node.run("counting", &name, &["sh", "-c", COUNTING]).await?;
    let mut slow = Vec::new();
    let plugins = pids(&node).await?;
    for plugin in plugins.keys().filter(|id| *id != "supervisor/local") {
        // On a machine that also compiles, one slow return says nothing; three do.
        let mut times = Vec::new();
        while times.iter().all(|time| *time >= BACK) && times.len() < 3 {
            times.push(away(&node, plugin, &name).await?);
        }
        println!("{plugin} was back after {times:?}");
        slow.extend(
            times
                .iter()
                .all(|time| *time >= BACK)
                .then_some(plugin.clone()),
        );
    }
    assert_eq!(slow, Vec::<String>::new(), "took longer than {BACK:?}");

    let now = node.task("counting").await?;
    assert_eq!(
        (&now["pid"], &now["status"]),
        (&task["pid"], &"running".into())
    );
    let last = counted(&node.logs("counting").await?)?;
    node.until_logged("counting", &format!("\n{}\n", last + 5))
        .await?;
    node.remove("counting").await?;
    node.stop_clean().await
}

/// Checks that no number is missing or doubled, and returns the last.
fn counted(log: &str) -> Outcome<usize> {
    let mut last = 0;
    for (wanted, line) in log.lines().enumerate() {
        if line.parse() != Ok(wanted) {
            return Err(format!("expected {wanted}, the log has {line:?}").into());
        }
        last = wanted;
    }
    Ok(last)
}

#[actix_rt::test]
async fn a_pull_goes_on_when_those_who_do_it_are_killed() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::layers(6, 24 << 20)?;
    let name = registry.push(&image, "layers", "1").await?;
    let node = Node::start().await?;
    for plugin in [
        "transfer/local",
        "content/local",
        "diff/local",
        "snapshots/overlayfs",
        "operations/local",
    ] {
        let body = json!({"ref": name, "plain_http": true});
        let begun = node.post(&node.at("/images:pull"), body).await?.ok()?;
        let operation = format!(
            "/v1/operations/{}",
            begun["id"].as_str().unwrap_or_default()
        );
        until("bytes arrive", SOON, async || {
            let now = node.get(&operation).await.ok()?.ok().ok()?;
            let parts = now["progress"].as_array()?.clone();
            let moves = |part: &serde_json::Value| {
                part["phase"] == "fetching" && part["offset"].as_u64() > Some(0)
            };
            (now["state"] != "running" || parts.iter().any(moves)).then_some(())
        })
        .await?;
        let killed = node.kill(plugin).await?;
        let done = node.get(&format!("{operation}?wait=true")).await?.ok()?;
        assert_eq!(done["state"], "done", "{plugin}: {done}");
        assert_eq!(done["result"]["snapshot"], image.chain_id(), "{plugin}");
        node.until_ready_after(killed).await?;
        node.delete(&node.at(&format!("/images/{name}")))
            .await?
            .ok()?;
        node.collect().await?;
        assert_eq!(
            node.list("/snapshots/overlayfs").await?.len(),
            0,
            "{plugin}"
        );
        assert_eq!(node.list("/content").await?.len(), 0, "{plugin}");
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_run_goes_on_when_those_who_do_it_are_killed() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let plugins = pids(&node).await?;
    // What the gateway was asked dies with its connection; what it had begun goes on.
    let others = plugins.keys().filter(|id| *id != "supervisor/local");
    for (number, plugin) in others.enumerate() {
        let id = format!("run-{number}");
        let body =
            json!({"id": id, "image": name, "user": "plain", "args": ["sh", "-c", "echo once"]});
        let begun = node.post(&node.at("/containers:run"), body).await?.ok()?;
        let killed = node.kill(plugin).await?;
        let operation = begun["id"].as_str().unwrap_or_default();
        let path = format!("/v1/operations/{operation}?wait=true");
        let done = node.get(&path).await?.ok()?;
        assert_eq!(done["state"], "done", "{plugin}: {done}");
        assert_eq!(node.exit_code(&id).await?, 0, "{plugin}");
        assert_eq!(node.logs(&id).await?, "once\n", "{plugin}");
        node.until_ready_after(killed).await?;
        node.remove(&id).await?;
    }
    assert_eq!(node.list("/tasks").await?.len(), 0);
    assert_eq!(node.list("/containers").await?.len(), 0);
    let active = node.list("/snapshots/overlayfs").await?;
    let left = active.iter().filter(|row| row["kind"] != "committed");
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&serde_json::Value>::new());
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_request_with_a_key_takes_effect_once() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let keyed = node
        .client()
        .clone()
        .with_header("idempotency-key", "story-1")?;
    let body = json!({"id": "keyed", "image": name, "args": ["true"]});
    let path = node.at("/containers:run?wait=started");
    let mut pids = Vec::new();
    for killed in [
        None,
        Some("operations/local"),
        Some("tasks/local"),
        Some("gateway/http"),
    ] {
        let killed = match killed {
            Some(plugin) => Some(node.kill(plugin).await?),
            None => None,
        };
        let answer = keyed
            .send(hyper::Method::POST, &path, body.clone())
            .await?
            .ok()?;
        pids.push(answer["pid"].clone());
        if let Some(killed) = killed {
            node.until_ready_after(killed).await?;
        }
    }
    pids.dedup();
    assert_eq!(pids.len(), 1, "{pids:?}");
    let other = node.post(&path, body).await?;
    assert_eq!(other.refusal(409)?, "ALREADY_EXISTS");
    node.remove("keyed").await?;
    node.stop_clean().await
}

fn has_ended(pid: &serde_json::Value) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// A container that ends with code 9 as soon as the file `go` appears in a folder of the host.
async fn waiting_for_a_file(node: &Node, image: &str, folder: &Path) -> Outcome<serde_json::Value> {
    let script = "while [ ! -e /host/go ]; do sleep 0.02; done; echo gone; exit 9";
    node.run_with(json!({
        "id": "ending", "image": image, "args": ["sh", "-c", script],
        "mounts": [{"source": folder, "destination": "/host", "readonly": true}],
    }))
    .await
}

async fn survives(runtime: &str) -> Outcome {
    let (_registry, mut node, name) = with_image().await?;
    let folder = tempfile::tempdir()?;
    let options = json!({"id": "counting", "image": name, "runtime": runtime, "args": ["sh", "-c", COUNTING]});
    let counting = node.run_with(options).await?;
    let ending = waiting_for_a_file(&node, &name, folder.path()).await?;
    node.until_logged("counting", "\n3\n").await?;

    node.kill_supervisor().await?;
    assert!(!has_ended(&counting["pid"]) && !has_ended(&ending["pid"]));
    fs::write(folder.path().join("go"), "")?;
    until("one ends while nobody watches", SOON, async || {
        has_ended(&ending["pid"]).then_some(())
    })
    .await?;
    node.restart().await?;

    let now = node.task("counting").await?;
    assert_eq!(
        (&now["pid"], &now["status"]),
        (&counting["pid"], &"running".into())
    );
    let last = counted(&node.logs("counting").await?)?;
    node.until_logged("counting", &format!("\n{}\n", last + 5))
        .await?;
    assert_eq!(node.exit_code("ending").await?, 9);
    assert_eq!(node.logs("ending").await?, "gone\n");
    assert_eq!(
        node.exec("counting", &["echo", "still"]).await?.1,
        "still\n"
    );

    node.post(&node.at("/tasks/counting:kill"), json!({"signal": "TERM"}))
        .await?
        .ok()?;
    assert_eq!(node.exit_code("counting").await?, 7);
    counted(&node.logs("counting").await?)?;
    node.remove("counting").await?;
    node.remove("ending").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn containers_outlive_the_supervisor_with_pid_logs_and_exit_code() -> Outcome {
    survives("").await
}

#[actix_rt::test]
async fn containers_of_the_stock_shim_outlive_the_supervisor_too() -> Outcome {
    survives("io.containerd.runc.v2").await
}

#[actix_rt::test]
async fn a_plugin_that_cannot_start_hurts_only_those_who_need_it() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let store = node.root().join("images/local/images.redb");
    node.post("/v1/plugins/images/local:stop", ()).await?.ok()?;
    let whole = fs::read(&store)?;
    fs::write(&store, b"this is no database")?;
    node.post("/v1/plugins/images/local:start", ()).await?;
    until("it has failed", SOON, async || {
        let plugin = node.plugin("images/local").await.ok()?;
        (plugin["state"] == "failed").then_some(())
    })
    .await?;

    let answer = node.get(&node.at("/images")).await?;
    assert_eq!(answer.refusal(503)?, "UNAVAILABLE");
    let problem = answer.json()?;
    assert_eq!(problem["plugin"], "images/local", "{problem}");
    assert_eq!(problem["chain"], json!(["images/local"]), "{problem}");
    assert!(
        problem["detail"].to_string().contains("images.redb"),
        "{problem}"
    );
    let body = json!({"id": "one", "image": name, "args": ["true"]});
    let through = node
        .post(&node.at("/containers:run?wait=started&timeout=5"), body)
        .await?;
    assert_eq!(
        through.json()?["plugin"],
        "images/local",
        "{}",
        through.text()
    );
    assert!(node.get(&node.at("/content")).await?.status.is_success());
    assert!(node.get(&node.at("/containers")).await?.status.is_success());
    let states: BTreeMap<_, _> = node
        .plugins()
        .await?
        .iter()
        .map(|plugin| (plugin["id"].to_string(), plugin["state"].to_string()))
        .collect();
    for independent in [
        "events/log",
        "leases/local",
        "content/local",
        "diff/local",
        "tasks/local",
    ] {
        assert_eq!(
            states[&format!("{independent:?}")],
            "\"ready\"",
            "{states:?}"
        );
    }

    fs::write(&store, whole)?;
    node.post("/v1/plugins/images/local:start", ())
        .await?
        .ok()?;
    until("all is well again", SOON, async || {
        let ready = node.get("/readyz").await.ok()?;
        ready.status.is_success().then_some(())
    })
    .await?;
    node.run("two", &name, &["true"]).await?;
    assert_eq!(node.exit_code("two").await?, 0);
    node.remove("two").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_mistake_in_the_configuration_is_told_with_its_line() -> Outcome {
    let mut node = Node::spawn(Setup::default().config("[plugins.\"gc/local\"]\nintervall = 5"))?;
    let error = node.ready().await.err().ok_or("it started")?.to_string();
    for part in ["config.toml:5", "intervall", "interval"] {
        assert!(error.contains(part), "{error}");
    }
    node.stop_clean().await
}
