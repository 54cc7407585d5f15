//! The minimal manifest hosts the same plugins in fewer processes; nobody can tell by using it.

use std::collections::BTreeSet;

use integration::Outcome;
use integration::image::sample;
use integration::node::{Node, Setup};
use integration::registry::Registry;

fn minimal() -> Setup {
    Setup::default().arg("--manifest").arg("minimal")
}

async fn processes(node: &Node) -> Outcome<(usize, usize)> {
    let plugins = node.plugins().await?;
    let pids: BTreeSet<i64> = plugins
        .iter()
        .filter_map(|plugin| plugin["pid"].as_i64())
        .collect();
    Ok((plugins.len(), pids.len()))
}

#[actix_rt::test]
async fn the_first_run_works_in_fewer_processes() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "library/busybox", "1.36")
        .await?;
    let node = Node::start_with(minimal()).await?;
    let (plugins, pids) = processes(&node).await?;
    assert!(
        plugins >= 14 && pids <= plugins - 7,
        "{plugins} plugins in {pids} processes"
    );
    node.pull(&name).await?;
    node.run("hello", &name, &["echo", "hi"]).await?;
    assert_eq!(node.exit_code("hello").await?, 0);
    assert_eq!(node.logs("hello").await?, "hi\n");
    node.events(0)
        .await?
        .find(std::time::Duration::from_secs(10), |record| {
            record.event == "/tasks/exit"
        })
        .await?;
    node.remove("hello").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn plugins_of_one_process_come_back_together_and_keep_what_they_know() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start_with(minimal()).await?;
    node.pull(&name).await?;
    let (killed, mate) = (
        node.kill("content/local").await?,
        node.plugin("gateway/http").await?,
    );
    // Neither request waits for readiness: they are kept for the successor.
    node.run("hello", &name, &["echo", "hi"]).await?;
    assert_eq!(node.exit_code("hello").await?, 0);
    let back = node.until_ready_after(killed).await?;
    assert_eq!(node.incarnation("images/local").await?.pid, back.pid);
    assert_eq!(node.plugin("gateway/http").await?["pid"], mate["pid"]);
    node.remove("hello").await?;
    node.stop_clean().await
}
