//! A disk that lies: each store is damaged while the node is down. Its plugin says so and nobody else falls, `gantry
//! fsck` names it, `--repair` mends it, and the image still runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use integration::Outcome;
use integration::image::sample;
use integration::node::{Node, binary};
use integration::process::until;
use integration::registry::Registry;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Every store of a node: its plugin, and its file.
fn stores(root: &Path) -> Outcome<Vec<(String, PathBuf)>> {
    let mut stores = Vec::new();
    for service in fs::read_dir(root)? {
        for plugin in fs::read_dir(service?.path())? {
            let folder = plugin?.path();
            for file in fs::read_dir(&folder)? {
                let file = file?.path();
                if file.extension().is_some_and(|end| end == "redb") {
                    let plugin = folder.strip_prefix(root)?.display().to_string();
                    stores.push((plugin, file));
                }
            }
        }
    }
    stores.sort();
    Ok(stores)
}

/// Makes the two commits that a file's header knows unreadable: every record is still there, and no way to any.
fn behead(file: &Path) -> Outcome {
    let mut bytes = fs::read(file)?;
    bytes[64..320].fill(0xff);
    Ok(fs::write(file, bytes)?)
}

fn fsck(node: &Node, repair: bool) -> Outcome<(i32, Value)> {
    let mut command = Command::new(binary()?);
    command.args(["fsck", "-o", "json"]);
    command.arg("--root").arg(node.root());
    command.arg("--state").arg(node.state());
    if repair {
        command.arg("--repair");
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command.output()?;
    let told = serde_json::from_slice(&stdout)
        .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&stderr)))?;
    Ok((status.code().unwrap_or(-1), told))
}

/// Which plugins the findings of a report are about.
fn found(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().into_iter().flatten();
    let mut plugins: Vec<_> = findings.filter_map(|row| row["plugin"].as_str()).collect();
    plugins.dedup();
    plugins
}

async fn with_a_container() -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let image = sample::busybox()?.pack();
    let name = registry.push(&image, "busybox", "1").await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    node.run("before", &name, &["sh", "-c", "echo here"])
        .await?;
    assert_eq!(node.exit_code("before").await?, 0);
    Ok((registry, node, name))
}

async fn runs(node: &Node, id: &str, image: &str) -> Outcome {
    node.run(id, image, &["sh", "-c", "exit 9"]).await?;
    assert_eq!(node.exit_code(id).await?, 9);
    node.remove(id).await
}

#[actix_rt::test]
async fn a_damaged_store_stops_its_plugin_alone_and_is_mended_while_the_node_runs() -> Outcome {
    let (_registry, mut node, image) = with_a_container().await?;
    for plugin in ["images/local", "containers/local", "leases/local"] {
        let stores = stores(&node.root())?;
        let (_, file) = stores
            .iter()
            .find(|(of, _)| of == plugin)
            .ok_or("no store")?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        node.terminate().await?;
        behead(file)?;
        node.begin_again()?;
        let cause = until("the plugin says what is wrong", SOON, async || {
            let info = node.plugin(plugin).await.ok()?;
            let cause = info["cause"].as_str()?.to_owned();
            cause.contains(&*name).then_some(cause)
        });
        let cause = cause.await?;
        assert!(cause.contains("damaged"), "{cause}");
        until("all others are up, with or without it", SOON, async || {
            let plugins = node.plugins().await.ok()?;
            let up = |info: &Value| {
                let state = info["state"].as_str().unwrap_or_default();
                let chain = info["chain"].as_array().into_iter().flatten();
                info["id"] == plugin
                    || state == "ready"
                    || state == "degraded" && chain.last().is_some_and(|last| last == plugin)
            };
            plugins.iter().all(up).then_some(())
        })
        .await?;
        let (code, report) = fsck(&node, false)?;
        assert_eq!((code, found(&report)), (1, vec![plugin]), "{report:#}");
        let (code, report) = fsck(&node, true)?;
        assert_eq!((code, found(&report)), (0, vec![plugin]), "{report:#}");
        node.ready().await?;
        let listed = node.get(&node.at("/images")).await?;
        assert!(listed.text().contains(&image), "{}", listed.text());
        assert_eq!(node.exit_code("before").await?, 0, "{plugin}");
        runs(&node, "after", &image).await?;
    }
    let (code, report) = fsck(&node, false)?;
    assert_eq!(code, 0, "{report:#}");
    node.remove("before").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn all_stores_are_mended_at_once_while_the_node_is_down() -> Outcome {
    let (_registry, mut node, image) = with_a_container().await?;
    node.terminate().await?;
    let (code, report) = fsck(&node, false)?;
    assert_eq!(code, 0, "{report:#}");
    let stores = stores(&node.root())?;
    assert!(stores.len() >= 9, "{stores:?}");
    for (_, file) in &stores {
        behead(file)?;
    }
    let (code, report) = fsck(&node, false)?;
    let plugins: Vec<_> = stores.iter().map(|(plugin, _)| plugin.as_str()).collect();
    let mut told = found(&report);
    told.sort_unstable();
    assert_eq!((code, told), (1, plugins), "{report:#}");
    let (code, report) = fsck(&node, true)?;
    assert_eq!(code, 0, "{report:#}");
    let (code, report) = fsck(&node, false)?;
    assert_eq!(code, 0, "what was mended stays so: {report:#}");
    node.restart().await?;
    let listed = node.get(&node.at("/images")).await?;
    assert!(listed.text().contains(&image), "{}", listed.text());
    runs(&node, "after", &image).await?;
    node.remove("before").await?;
    node.stop_clean().await
}
