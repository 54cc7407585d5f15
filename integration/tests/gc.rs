//! Nothing that somebody needs is collected, and nothing that nobody needs stays.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use integration::Outcome;
use integration::http::Body;
use integration::image::{sample, sha256};
use integration::node::{Node, Setup};
use integration::process::until;
use integration::registry::Registry;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// Every kind of resource that takes room.
const KINDS: [&str; 4] = [
    "/content",
    "/snapshots/overlayfs",
    "/snapshots/native",
    "/ingests",
];

async fn with_image() -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let image = sample::layers(3, 3 << 20)?;
    let name = registry.push(&image, "layers", "1").await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    Ok((registry, node, name))
}

async fn counts(node: &Node) -> Outcome<Vec<usize>> {
    let mut counts = Vec::new();
    for kind in KINDS {
        counts.push(node.list(kind).await?.len());
    }
    Ok(counts)
}

/// Lists what is below a folder, but for databases and the marks beside them.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => files(&path),
                _ => vec![path.display().to_string()],
            }
        })
        .filter(|path| !path.contains(".redb"))
        .collect()
}

#[actix_rt::test]
async fn after_delete_and_collect_the_store_is_empty() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    node.run("one", &name, &["sh", "-c", "echo x >/root/file"])
        .await?;
    node.exit_code("one").await?;
    node.remove("one").await?;
    let full = counts(&node).await?;
    assert!(full[0] >= 6 && full[1] >= 4, "{full:?}");

    node.delete(&node.at(&format!("/images/{name}")))
        .await?
        .ok()?;
    let collected = node.collect().await?;
    assert!(collected["bytes"].as_u64() > Some(1 << 20), "{collected}");
    assert_eq!(counts(&node).await?, [0, 0, 0, 0]);
    let blobs = node.root().join("content/local");
    assert_eq!(files(&blobs), Vec::<String>::new());
    // The driver removes trees behind its answer.
    let trees = node.root().join("snapshots/overlayfs/snapshots");
    until("the trees are gone", SOON, async || {
        let left = fs::read_dir(&trees).into_iter().flatten().count();
        (left == 0).then_some(())
    })
    .await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_dry_run_names_each_row_with_its_reason_and_removes_nothing() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let nothing = node.post("/v1/gc?dry_run=true", ()).await?.ok()?;
    assert_eq!(nothing["total"], 0, "{nothing}");
    node.delete(&node.at(&format!("/images/{name}")))
        .await?
        .ok()?;
    let before = counts(&node).await?;
    let plan = node.post("/v1/gc?dry_run=true", ()).await?.ok()?;
    let rows = plan["removed"].as_array().cloned().unwrap_or_default();
    assert_eq!(rows.len(), before.iter().sum::<usize>(), "{plan}");
    for row in &rows {
        let reason = row["reason"].as_str().unwrap_or_default();
        assert!(
            !reason.is_empty() && row["namespace"] == node.namespace(),
            "{row}"
        );
    }
    assert_eq!(counts(&node).await?, before);
    let done = node.collect().await?;
    assert_eq!(done["total"], plan["total"]);
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_container_keeps_its_image_until_it_is_deleted() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let before = counts(&node).await?;
    node.run("one", &name, &["sh", "-c", "while :; do sleep 1; done"])
        .await?;
    node.delete(&node.at(&format!("/images/{name}")))
        .await?
        .ok()?;
    node.collect().await?;
    let kept = counts(&node).await?;
    assert!(kept[1] > before[1], "{before:?} {kept:?}");
    assert_eq!(node.exec("one", &["ls", "/layer2"]).await?.0, 0);
    node.remove("one").await?;
    node.collect().await?;
    assert_eq!(counts(&node).await?, [0, 0, 0, 0]);
    node.stop_clean().await
}

/// Writes a blob that nothing refers to, under a lease or not, and returns its path.
async fn blob(node: &Node, bytes: &'static [u8], lease: Option<&str>) -> Outcome<String> {
    let mut client = node.client().clone();
    if let Some(lease) = lease {
        client = client.with_header("gantry-lease", lease)?;
    }
    let digest = sha256(bytes);
    let range = format!("bytes 0-{}/{}", bytes.len() - 1, bytes.len());
    let path = node.at(&format!("/ingests/{}", &digest[7..19]));
    let body = Body::of("application/octet-stream", bytes);
    client
        .clone()
        .with_header("content-range", &range)?
        .send(Method::PUT, &path, body)
        .await?
        .ok()?;
    let expected = json!({"digest": digest, "size": bytes.len()});
    client
        .send(Method::POST, &format!("{path}:commit"), expected)
        .await?
        .ok()?;
    Ok(node.at(&format!("/content/{digest}")))
}

async fn lease(node: &Node, body: Value) -> Outcome {
    node.post(&node.at("/leases"), body).await?.ok()?;
    Ok(())
}

async fn is_there(node: &Node, path: &str) -> Outcome<bool> {
    Ok(node.get(&format!("{path}/info")).await?.status.is_success())
}

#[actix_rt::test]
async fn a_lease_keeps_what_it_holds_until_it_is_released() -> Outcome {
    let node = Node::start().await?;
    lease(&node, json!({"id": "mine"})).await?;
    let (held, loose) = (
        blob(&node, b"held", Some("mine")).await?,
        blob(&node, b"loose", None).await?,
    );
    node.collect().await?;
    assert!(is_there(&node, &held).await? && !is_there(&node, &loose).await?);
    let resources = node.list("/leases/mine/resources").await?;
    let content = resources.iter().filter(|row| row["type"] == "content");
    assert_eq!(content.count(), 1, "{resources:?}");
    node.delete(&node.at("/leases/mine")).await?.ok()?;
    node.collect().await?;
    assert!(!is_there(&node, &held).await?);
    node.stop_clean().await
}

#[actix_rt::test]
async fn an_expired_lease_goes_with_what_it_held_though_nobody_asks() -> Outcome {
    let config = Setup::default().config("[plugins.\"gc/local\"]\ninterval = 1");
    let node = Node::start_with(config).await?;
    lease(&node, json!({"id": "short", "expires_in": 2})).await?;
    lease(&node, json!({"id": "long", "expires_in": 3600})).await?;
    let (short, long) = (
        blob(&node, b"short", Some("short")).await?,
        blob(&node, b"long", Some("long")).await?,
    );
    // Asking again and again would be work, and the collector rests the longer the busier the node is.
    let mut events = node.events(0).await?;
    events
        .find(SOON, |record| record.event == "/content/delete")
        .await?;
    let gone = node.get(&node.at("/leases/short")).await?;
    assert_eq!(gone.refusal(404)?, "NOT_FOUND");
    assert!(is_there(&node, &long).await? && !is_there(&node, &short).await?);
    node.stop_clean().await
}
