//! A request with an `Idempotency-Key` takes effect once and has one answer, whatever dies on the way.
//!
//! Each request of the table is sent to a gateway that dies twice: when the work is done and its answer is not kept, and
//! when it is kept and not sent. The client repeats, and gets the first answer; the log has each effect once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use integration::Outcome;
use integration::chaos::{Keyed, told};
use integration::http::Body;
use integration::image::sample;
use integration::node::{Node, Setup};
use integration::process::until;
use integration::registry::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);
/// Where the gateway dies: before the answer is kept, and before it is sent.
const POINTS: [&str; 2] = ["gateway.keyed.done", "gateway.keyed.settled"];
/// Whoever dies is back at once, however often.
const RESTARTS: &str = "[restart]\nfirst_ms = 10\nforgive_seconds = 0";

/// One request that changes something, and the event that must be told once because of it.
struct Row {
    method: Method,
    path: String,
    body: Body,
    told: &'static str,
}

fn row(method: &str, path: &str, body: impl Into<Body>, told: &'static str) -> Row {
    Row {
        method: method.parse().unwrap_or(Method::POST),
        path: path.into(),
        body: body.into(),
        told,
    }
}

fn faults() -> Outcome<TempDir> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}

async fn with_image(faults: &Path) -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let image = sample::busybox()?.pack();
    let name = registry.push(&image, "busybox", "1").await?;
    let setup = Setup::default()
        .config(RESTARTS)
        .env("GANTRY_FAULTS", &faults.to_string_lossy());
    let node = Node::start_with(setup).await?;
    node.pull(&name).await?;
    Ok((registry, node, name))
}

/// Every family of routes that changes something, in an order in which each finds what it needs.
fn table(image: &str, target: &Value) -> Vec<Row> {
    let blob = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let bytes = || Body::of("application/octet-stream", "abc");
    let long = json!({"id": "long", "image": image, "args": ["sleep", "1000"]});
    let pulled = json!({"ref": image, "plain_http": true});
    let labels = json!({"labels": {"a": "b"}});
    let name = "/images/example.org/a:1";
    let blob_path = format!("/content/{blob}");
    let held = json!({"resources": [{"type": "content", "id": blob}]});
    vec![
        row("POST", "/images:pull?wait=true", pulled, ""),
        row(
            "PUT",
            name,
            json!({"target": target}),
            "/images/create example.org/a:1",
        ),
        row(
            "PATCH",
            name,
            labels.clone(),
            "/images/update example.org/a:1",
        ),
        row(
            "POST",
            "/images/example.org/a:1:tag",
            json!({"name": "example.org/b:1"}),
            "/images/create example.org/b:1",
        ),
        row(
            "DELETE",
            "/images/example.org/b:1",
            (),
            "/images/delete example.org/b:1",
        ),
        row(
            "POST",
            &format!("/images/{image}:unpack?wait=true"),
            json!({"snapshotter": "native"}),
            "",
        ),
        row(
            "POST",
            "/images:push?wait=true",
            json!({"image": image, "plain_http": true}),
            "",
        ),
        row("POST", "/containers", long, "/containers/create long"),
        row(
            "PATCH",
            "/containers/long",
            labels.clone(),
            "/containers/update long",
        ),
        row(
            "POST",
            "/tasks",
            json!({"id": "long"}),
            "/tasks/create long",
        ),
        row("POST", "/tasks/long:start", (), "/tasks/start long"),
        row("POST", "/tasks/long:pause", (), "/tasks/paused long"),
        row("POST", "/tasks/long:resume", (), "/tasks/resumed long"),
        row(
            "POST",
            "/tasks/long:update",
            json!({"resources": {"pids": {"limit": 77}}}),
            "",
        ),
        row(
            "POST",
            "/tasks/long:exec?wait=true",
            json!({"id": "once", "args": ["echo", "once"]}),
            "/tasks/exec-started once",
        ),
        row(
            "POST",
            "/tasks/long:exec",
            json!({"id": "later", "args": ["sleep", "1000"]}),
            "/tasks/exec-started later",
        ),
        row(
            "POST",
            "/tasks/long/execs/later:kill",
            json!({"signal": "KILL"}),
            "",
        ),
        row(
            "DELETE",
            "/tasks/long/execs/later?force=true",
            (),
            "/tasks/exit later",
        ),
        row("POST", "/tasks/long:kill", json!({"signal": "KILL"}), ""),
        row("DELETE", "/tasks/long?force=true", (), "/tasks/delete long"),
        row("DELETE", "/containers/long", (), "/containers/delete long"),
        row(
            "POST",
            "/containers:run?wait=exit",
            json!({"id": "ran", "image": image, "args": ["true"]}),
            "/tasks/exit ran",
        ),
        row(
            "DELETE",
            "/containers/ran?force=true",
            (),
            "/containers/delete ran",
        ),
        row(
            "POST",
            "/snapshots/overlayfs",
            json!({"key": "work"}),
            "/snapshot/prepare work",
        ),
        row("PATCH", "/snapshots/overlayfs/work", labels.clone(), ""),
        row(
            "POST",
            "/snapshots/overlayfs/work:commit",
            json!({"name": "done"}),
            "/snapshot/commit done",
        ),
        row(
            "DELETE",
            "/snapshots/overlayfs/done",
            (),
            "/snapshot/remove done",
        ),
        row("POST", "/leases", json!({"id": "held"}), ""),
        row("PUT", "/ingests/one", bytes(), ""),
        row(
            "POST",
            "/ingests/one:commit",
            json!({"digest": blob}),
            "/content/create",
        ),
        row("POST", "/leases/held/resources", held.clone(), ""),
        row("DELETE", "/leases/held/resources", held, ""),
        row("PATCH", "/leases/held", labels.clone(), ""),
        row("DELETE", "/leases/held", (), ""),
        row("PATCH", &blob_path, labels.clone(), ""),
        row("DELETE", &blob_path, (), "/content/delete"),
        row("PUT", "/ingests/two", bytes(), ""),
        row("DELETE", "/ingests/two", (), ""),
        row("PUT", "", json!({"labels": {"a": "b"}}), ""),
        row("PATCH", "", labels, ""),
        row("POST", "/v1/gc", (), ""),
        row(
            "POST",
            "/v1/events",
            json!({"topic": "/story/once", "event": {"name": "only"}}),
            "",
        ),
        row(
            "POST",
            "/v1/call/events.publish",
            json!({"topic": "/story/once", "event": "{}"}),
            "",
        ),
    ]
}

/// The blob of the table, as the log names it.
fn subject(told: &str) -> String {
    match told {
        "/content/create" | "/content/delete" => format!(
            "{told} sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        ),
        _ => told.to_owned(),
    }
}

#[actix_rt::test]
async fn every_change_happens_once_and_is_answered_though_the_gateway_dies_twice() -> Outcome {
    let faults = faults()?;
    let (_registry, node, image) = with_image(faults.path()).await?;
    let target = node
        .get(&node.at(&format!("/images/{image}")))
        .await?
        .ok()?["target"]
        .clone();
    let since = told(&node, 0).await?.last;
    let mut wrong = Vec::new();
    let rows = table(&image, &target);
    for (number, row) in rows.iter().enumerate() {
        let path = match row.path.starts_with("/v1/") {
            true => row.path.clone(),
            false => node.at(&row.path),
        };
        let what = format!("{} {path}", row.method);
        for point in POINTS {
            fs::write(faults.path().join(point), "kill")?;
        }
        let (keyed, key) = (Keyed::new(node.client(), ""), format!("row-{number}"));
        let first = keyed
            .repeat(&key, &row.method, &path, row.body.clone())
            .await?;
        let answer = first.response;
        if !answer.status.is_success() || first.broken < 2 {
            wrong.push(format!(
                "{what}: {} breaks, {} {}",
                first.broken,
                answer.status,
                answer.text()
            ));
        }
        for point in POINTS {
            let left = fs::remove_file(faults.path().join(point)).is_ok();
            wrong.extend(left.then(|| format!("{what}: {point} was not passed")));
        }
        let again = keyed
            .repeat(&key, &row.method, &path, row.body.clone())
            .await?
            .response;
        if (again.status, &again.body) != (answer.status, &answer.body) {
            wrong.push(format!(
                "{what}: {} and then {} {}",
                answer.text(),
                again.status,
                again.text()
            ));
        }
    }
    let wanted: Vec<String> = rows
        .iter()
        .map(|row| subject(row.told))
        .filter(|told| !told.is_empty())
        .collect();
    let log = until("all is told", SOON, async || {
        let log = told(&node, since).await.ok()?;
        wanted
            .iter()
            .all(|told| log.counts.contains_key(told))
            .then_some(log)
    });
    let log = match log.await {
        Ok(log) => log,
        Err(_) => told(&node, since).await?,
    };
    for told in wanted {
        let times = log.counts.get(&told).copied().unwrap_or_default();
        wrong.extend((times != 1).then(|| format!("{told} was told {times} times")));
    }
    wrong.extend(log.holes);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_plugin_is_restarted_once_also_when_it_is_the_gateway_that_answers() -> Outcome {
    let node = Node::start_with(Setup::default().config(RESTARTS)).await?;
    let keyed = Keyed::new(node.client(), "");
    for plugin in ["gc/local", "gateway/http"] {
        let before = node.incarnation(plugin).await?;
        let path = format!("/v1/plugins/{plugin}:restart");
        for _ in 0..2 {
            let answer = keyed
                .repeat(plugin, &Method::POST, &path, ())
                .await?
                .response;
            assert_eq!(answer.ok()?["id"], plugin);
        }
        let after = node.until_ready_after(before.clone()).await?;
        assert_eq!(after.restarts, before.restarts + 1, "{plugin}");
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_key_stands_for_one_request_for_as_long_as_it_is_kept() -> Outcome {
    let faults = faults()?;
    let (_registry, mut node, image) = with_image(faults.path()).await?;
    let keyed = Keyed::new(node.client(), "");
    let path = node.at("/containers:run");
    let body = |seconds: &str| json!({"id": "one", "image": image, "args": ["sleep", seconds]});
    let begun = keyed
        .repeat("k", &Method::POST, &path, body("1000"))
        .await?
        .response;
    assert_eq!(begun.status, 202, "{}", begun.text());
    // While it runs it is the same operation, and only that.
    let same = keyed
        .repeat("k", &Method::POST, &path, body("1000"))
        .await?
        .response;
    assert_eq!(same.json()?["id"], begun.json()?["id"]);
    let other = keyed
        .repeat("k", &Method::POST, &path, body("2000"))
        .await?
        .response;
    assert_eq!(other.refusal(422)?, "FAILED_PRECONDITION");
    assert!(other.text().contains("another body"), "{}", other.text());
    let elsewhere = keyed
        .repeat("k", &Method::POST, &node.at("/leases"), json!({}))
        .await?
        .response;
    assert_eq!(elsewhere.refusal(422)?, "FAILED_PRECONDITION");
    assert!(
        elsewhere.text().contains("containers:run"),
        "{}",
        elsewhere.text()
    );

    node.kill_supervisor().await?;
    node.restart().await?;
    let kept = keyed
        .repeat("k", &Method::POST, &path, body("1000"))
        .await?
        .response;
    assert_eq!((kept.status, &kept.body), (begun.status, &begun.body));
    let other = keyed
        .repeat("k", &Method::POST, &path, body("2000"))
        .await?
        .response;
    assert_eq!(other.refusal(422)?, "FAILED_PRECONDITION");

    // What is refused changed nothing: the same key may ask in other words.
    let typo = keyed
        .repeat("t", &Method::POST, &node.at("/leases"), json!({"ids": "x"}))
        .await?
        .response;
    assert_eq!(typo.refusal(400)?, "INVALID_ARGUMENT");
    let mended = keyed
        .repeat("t", &Method::POST, &node.at("/leases"), json!({"id": "x"}))
        .await?
        .response;
    assert_eq!(mended.status, 201, "{}", mended.text());
    let place = begun.header("location").to_owned();
    node.get(&format!("{place}?wait=true")).await?.ok()?;
    node.remove("one").await?;
    node.stop_clean().await
}
