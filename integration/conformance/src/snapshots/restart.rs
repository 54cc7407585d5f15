//! What holds across the end of the plugin's process.

use super::{Mounted, Subject, can_mount, labels, refused};
use bus::Bus;
use contracts::snapshots::{Info, List, REBASE};
use contracts::{Code, Mount};
use std::fs;

/// What was there before.
#[derive(Debug)]
pub struct Kept {
    infos: Vec<Info>,
    mounts: Vec<Mount>,
}

/// Makes snapshots of every kind, one of them in the middle of being written. Then end the process, and start it again.
pub async fn before_a_restart(bus: &Bus, driver: &str) -> Kept {
    let t = Subject::new(bus, driver, "restart");
    t.committed("base", None).await;
    let own = labels(&[("a", "1"), (REBASE, "true")]);
    t.prepare_with("layer", None, own).await.unwrap();
    t.view("v", Some("base")).await.unwrap();
    let mounts = t.prepare("x", Some("base")).await.unwrap();
    if can_mount() {
        let files = Mounted::new(&mounts).unwrap();
        fs::write(files.at("before"), "1").unwrap();
    }
    t.prepare("gone", Some("base")).await.unwrap();
    t.remove("gone").await.unwrap();
    let infos = t.call(List::default()).await.unwrap().items;
    Kept { infos, mounts }
}

/// Finds all of it again, and goes on with it.
pub async fn after_a_restart(bus: &Bus, driver: &str, kept: Kept) {
    let t = Subject::new(bus, driver, "restart");
    assert_eq!(t.call(List::default()).await.unwrap().items, kept.infos);
    assert_eq!(t.mounts("x").await.unwrap(), kept.mounts);
    refused(t.remove("base").await, Code::FailedPrecondition, "base");
    if can_mount() {
        let files = Mounted::new(&kept.mounts).unwrap();
        assert_eq!(fs::read_to_string(files.at("before")).unwrap(), "1");
        fs::write(files.at("after"), "2").unwrap();
    }
    t.commit("done", "x").await.unwrap();
    let mounts = t.view("of done", Some("done")).await.unwrap();
    if can_mount() {
        let files = Mounted::new(&mounts).unwrap();
        assert!(files.at("before").exists() && files.at("after").exists());
    }
    // New directories are nobody else's.
    let fresh = t.prepare("gone", None).await.unwrap();
    if can_mount() {
        let files = Mounted::new(&fresh).unwrap();
        assert_eq!(fs::read_dir(files.at(".")).unwrap().count(), 0);
    }
    if t.rebases().await {
        t.commit_on("on done", "layer", Some("done")).await.unwrap();
    }
}
