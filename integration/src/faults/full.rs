//! A full disk: no bytes left, or no names left, and what a node can still do then.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::catalog::Catalog;
use super::disk::Disk;
use super::history::History;
use super::image::Image;
use super::record::node_on;
use super::soundness::{Patient, finding};
use crate::Outcome;
use crate::chaos::Random;
use crate::node::{Node, Setup};
use crate::registry::Registry;

/// Size of the disk: a node's stores, some images, and little more.
const SIZE: u64 = 192 << 20;

/// What runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// Blocks.
    Bytes,
    /// Inodes.
    Names,
}

/// Fills a node's disk, uses the node, makes room and uses it again; returns what it should not have done.
///
/// Errors: the disk or the node could not be set up.
pub async fn round(scarce: Scarce, seed: u64, setup: Setup) -> Outcome<Vec<String>> {
    let catalog = Catalog::new(seed, 2)?;
    let registry = Registry::start().await?;
    let mut disk = Disk::new(Image::new(SIZE))?;
    // No blocks are kept for root: the plugins that run as root shall meet the end as all others do.
    disk.format(&["-m", "0", "-N", "4096"])?;
    let point = disk.mount("")?;
    let node = node_on(&disk, setup).await?;
    let folder = disk.folder().join("look");
    fs::create_dir(&folder)?;
    let patient = Patient {
        node: &node,
        namespace: node.namespace(),
        catalog: &catalog,
        registry: &registry,
        folder: &folder,
    };
    let mut names = Vec::new();
    for [sample, other] in &catalog.samples {
        registry.push(&other.packed, &other.repository, "1").await?;
        names.push(
            registry
                .push(&sample.packed, &sample.repository, "1")
                .await?,
        );
    }
    node.pull(&names[0]).await?;
    fill(&point.join("filler"), scarce)?;
    let mut wrong = while_full(&node, &names).await?;
    fs::remove_dir_all(point.join("filler"))?;
    wrong.extend(afterwards(&patient, &names[1], seed).await);
    wrong.extend(finding(
        "stop",
        node.stop_clean().await.map(|()| Vec::new()),
    ));
    wrong.extend(finding("unmount", disk.unmount().map(|()| Vec::new())));
    Ok(wrong)
}

/// Takes everything that is left, to the last byte or name.
fn fill(folder: &Path, scarce: Scarce) -> Outcome {
    fs::create_dir(folder)?;
    let mut file = File::create(folder.join("bytes"))?;
    if scarce == Scarce::Bytes {
        for piece in [1 << 20, 4096, 1] {
            while file.write_all(&vec![7; piece]).is_ok() {}
        }
        // What was only promised to the file takes its blocks now.
        let _ = file.sync_all();
        while file.write_all(&[7; 4096]).is_ok() {}
        return Ok(());
    }
    let mut number = 0;
    while File::create(folder.join(number.to_string())).is_ok() {
        number += 1;
    }
    Ok(())
}

/// What must work on a full disk, and what must be refused clearly.
async fn while_full(node: &Node, names: &[String]) -> Outcome<Vec<String>> {
    let mut wrong = Vec::new();
    let body = json!({"ref": names[1], "plain_http": true});
    let pull = node.post(&node.at("/images:pull?wait=true"), body).await?;
    let code = pull.json().unwrap_or_default()["code"].clone();
    if code != "RESOURCE_EXHAUSTED" {
        let (status, text) = (pull.status, pull.text());
        wrong.push(format!("pull on a full disk: {status} {text}"));
    }
    for list in [
        "/images",
        "/content",
        "/containers",
        "/snapshots/overlayfs",
        "/leases",
    ] {
        wrong.extend(refused(list, node.list(list).await.map(drop)));
    }
    let image = node.at(&format!("/images/{}", names[0]));
    let deleted = node.delete(&image).await?.ok().map(drop);
    wrong.extend(refused("delete of an image", deleted));
    wrong.extend(refused("collection", node.collect().await.map(drop)));
    let left = node.list("/content").await?;
    if !left.is_empty() {
        wrong.push(format!(
            "{} blobs left after delete and collection",
            left.len()
        ));
    }
    Ok(wrong)
}

fn refused(what: &str, result: Outcome) -> Option<String> {
    result
        .err()
        .map(|error| format!("{what} on a full disk: {error}"))
}

/// When there is room again everything works, and nobody was started anew for it.
async fn afterwards(patient: &Patient<'_>, name: &str, seed: u64) -> Vec<String> {
    let mut wrong = finding(
        "pull afterwards",
        patient.node.pull(name).await.map(|_| Vec::new()),
    );
    wrong.extend(finding("plugins", restarted(patient.node).await));
    wrong.extend(finding("blobs", patient.blobs().await));
    let (nobody, mut found) = (History::default(), BTreeMap::new());
    wrong.extend(finding("events", patient.events(&nobody, &mut found).await));
    let gone = patient.heals_and_goes(Random::new(seed, 1));
    wrong.extend(finding("afterwards", gone.await));
    wrong
}

async fn restarted(node: &Node) -> Outcome<Vec<String>> {
    let plugins = node.plugins().await?;
    let again = plugins
        .iter()
        .filter(|plugin| plugin["restarts"].as_u64() > Some(0));
    Ok(again
        .map(|plugin| {
            format!(
                "{} was started again: {}",
                plugin["id"], plugin["last_exit"]
            )
        })
        .collect())
}
