//! One container, any runtime: gantry's own shim, the same with runc inside, and containerd's stock shim.

use std::fs;

use integration::Outcome;
use integration::image::sample;
use integration::node::Node;
use integration::process::until;
use integration::registry::Registry;
use serde_json::json;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// Says that it is there, and ends when told to.
const WAITING: &str = "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.02; done";

/// Everything that a user does with a container, from start to end, with one runtime.
async fn a_whole_life_with(runtime: &str) -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    let options = json!({
        "id": "one", "image": name, "runtime": runtime, "args": ["sh", "-c", WAITING],
        "resources": {"memory": 64 << 20, "pids": 50},
    });
    let task = node.run_with(options).await?;
    assert_eq!(task["status"], "running", "{task}");
    node.until_logged("one", "ready\n").await?;

    let (code, output) = node.exec("one", &["sh", "-c", "hostname; exit 3"]).await?;
    assert_eq!((code, output.as_str()), (3, "one\n"));
    let pids = node.get(&node.at("/tasks/one/pids")).await?.ok()?;
    assert!(
        pids.to_string().contains(&task["pid"].to_string()),
        "{pids}"
    );
    let used = node.get(&node.at("/tasks/one/metrics")).await?.ok()?;
    assert_eq!(used["memory"]["limit"], 64 << 20, "{used}");

    paused_and_resumed(&node).await?;
    node.post(&node.at("/tasks/one:kill"), json!({"signal": "SIGTERM"}))
        .await?
        .ok()?;
    assert_eq!(node.exit_code("one").await?, 7);
    assert_eq!(node.logs("one").await?, "ready\ntold\n");
    node.remove("one").await?;
    let gone = node.get(&node.at("/containers/one")).await?;
    assert_eq!(gone.refusal(404)?, "NOT_FOUND");
    node.stop_clean().await
}

async fn paused_and_resumed(node: &Node) -> Outcome {
    node.post(&node.at("/tasks/one:pause"), ()).await?.ok()?;
    assert_eq!(node.task("one").await?["status"], "paused");
    node.post(&node.at("/tasks/one:resume"), ()).await?.ok()?;
    until("it runs again", SOON, async || {
        let task = node.task("one").await.ok()?;
        (task["status"] == "running").then_some(())
    })
    .await
}

#[actix_rt::test]
async fn the_own_shim_needs_nothing_else_installed() -> Outcome {
    a_whole_life_with("").await
}

#[actix_rt::test]
async fn runc_by_name_runs_inside_the_own_shim() -> Outcome {
    a_whole_life_with("runc").await
}

#[actix_rt::test]
async fn the_stock_shim_of_containerd_runs_unmodified() -> Outcome {
    a_whole_life_with("io.containerd.runc.v2").await
}

#[actix_rt::test]
async fn a_container_is_confined_unless_it_asks_not_to_be() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    let task = node.run("one", &name, &["sh", "-c", WAITING]).await?;
    node.until_logged("one", "ready").await?;
    let status = fs::read_to_string(format!("/proc/{}/status", task["pid"]))?;
    assert!(status.contains("Seccomp:\t2"), "{status}");
    assert!(status.contains("CapEff:\t00000000a80425fb"), "{status}");
    let options =
        json!({"id": "two", "image": name, "args": ["sh", "-c", WAITING], "privileged": true});
    let task = node.run_with(options).await?;
    node.until_logged("two", "ready").await?;
    let status = fs::read_to_string(format!("/proc/{}/status", task["pid"]))?;
    assert!(status.contains("Seccomp:\t0"), "{status}");
    node.remove("one").await?;
    node.remove("two").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn an_unknown_runtime_is_named_and_leaves_nothing() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    let body =
        json!({"id": "one", "image": name, "runtime": "io.nobody.knows.v9", "args": ["true"]});
    let answer = node
        .post(&node.at("/containers:run?wait=started"), body)
        .await?;
    assert!(answer.status.is_client_error(), "{}", answer.text());
    assert!(
        answer.text().contains("io.nobody.knows.v9"),
        "{}",
        answer.text()
    );
    assert_eq!(node.list("/containers").await?.len(), 0);
    assert_eq!(node.list("/tasks").await?.len(), 0);
    node.stop_clean().await
}
