//! A node that is told to stop stops in order and leaves nothing but its data and its running containers.

use std::fs;
use std::time::Duration;

use integration::Outcome;
use integration::image::sample;
use integration::node::Node;
use integration::process::{Daemon, until};
use integration::registry::Registry;
use nix::sys::signal::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const WAITING: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done";

async fn with_image() -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    Ok((registry, node, name))
}

#[actix_rt::test]
async fn an_idle_node_ends_without_a_trace() -> Outcome {
    Node::start().await?.stop_clean().await
}

#[actix_rt::test]
async fn a_node_that_ran_containers_ends_without_a_trace() -> Outcome {
    for runtime in ["", "runc", "io.containerd.runc.v2"] {
        let (_registry, node, name) = with_image().await?;
        let options = json!({"id": "one", "image": name, "runtime": runtime, "args": ["true"]});
        node.run_with(options).await?;
        node.exit_code("one").await?;
        node.remove("one").await?;
        node.stop_clean().await?;
    }
    Ok(())
}

#[actix_rt::test]
async fn a_running_container_goes_on_and_is_found_again() -> Outcome {
    let (_registry, mut node, name) = with_image().await?;
    let task = node.run("one", &name, &["sh", "-c", WAITING]).await?;
    node.until_logged("one", "ready").await?;
    node.terminate().await?;
    let alive = fs::metadata(format!("/proc/{}/root", task["pid"])).is_ok();
    assert!(alive, "the container ended with the node");
    node.restart().await?;
    assert_eq!(node.task("one").await?["pid"], task["pid"]);
    node.remove("one").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_container_that_ended_leaves_only_its_record_and_logs() -> Outcome {
    for runtime in ["", "runc", "io.containerd.runc.v2"] {
        let (_registry, mut node, name) = with_image().await?;
        let args = ["sh", "-c", "echo words; exit 7"];
        let options = json!({"id": "one", "image": name, "runtime": runtime, "args": args});
        node.run_with(options).await?;
        assert_eq!(node.exit_code("one").await?, 7);
        node.terminate_clean().await?;
        node.restart().await?;
        let task = node.task("one").await?;
        assert_eq!(task["status"], "stopped", "{task}");
        assert_eq!(task["exit_code"], 7, "{task}");
        assert_eq!(node.logs("one").await?, "words\n");
        node.remove("one").await?;
        node.stop_clean().await?;
    }
    Ok(())
}

#[actix_rt::test]
async fn a_second_node_in_the_same_folders_is_refused_and_harms_nothing() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let mut command = std::process::Command::new(integration::node::binary()?);
    let config = node.folder().join("config.toml");
    command.arg("daemon").arg("--config").arg(config);
    let log = node.folder().join("second.log");
    let mut second = Daemon::spawn(&mut command, &log)?;
    until("the second one ends", SOON, async || {
        second.has_ended().then_some(())
    })
    .await?;
    let says = fs::read_to_string(log)?;
    assert!(
        says.contains("already") || says.contains("in use"),
        "{says}"
    );
    node.run("one", &name, &["true"]).await?;
    assert_eq!(node.exit_code("one").await?, 0);
    node.remove("one").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_node_stops_while_work_is_under_way_and_finishes_it_later() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::layers(6, 24 << 20)?;
    let name = registry.push(&image, "layers", "1").await?;
    let mut node = Node::start().await?;
    let body = json!({"ref": name, "plain_http": true});
    let begun = node.post(&node.at("/images:pull"), body).await?.ok()?;
    node.terminate().await?;
    node.restart().await?;
    let id = begun["id"].as_str().unwrap_or_default();
    let done = node
        .get(&format!("/v1/operations/{id}?wait=true"))
        .await?
        .ok()?;
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(done["result"]["snapshot"], image.chain_id());
    node.stop_clean().await
}

#[actix_rt::test]
async fn an_interrupt_from_the_keyboard_stops_it_too() -> Outcome {
    let node = Node::start().await?;
    let pid = node.pid();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT)?;
    // It is this process that reaps it, when told that it stopped.
    until("it ends", SOON, async || {
        (!integration::process::all().contains(&pid)).then_some(())
    })
    .await?;
    node.stop_clean().await
}
