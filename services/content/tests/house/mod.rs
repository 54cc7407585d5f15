//! A node with the real content store and fakes around it.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use bus::Bus;
use bus::testing::{Fake, LocalBus, LocalNode};
use conformance::content::Desk;
use contracts::Digest;
use contracts::collect::Resource;
use contracts::events::{Append, Events};
use contracts::leases::{Add, Leases};
use std::{cell::RefCell, path::PathBuf, rc::Rc};

/// A node with the real store, and what it told others.
pub struct House {
    pub dir: tempfile::TempDir,
    pub node: LocalNode,
    pub topics: Rc<RefCell<Vec<String>>>,
    pub held: Rc<RefCell<Vec<Resource>>>,
}

impl House {
    pub fn new() -> Self {
        Self::with("{}")
    }

    pub fn with(config: &str) -> Self {
        Self::at(tempfile::tempdir().unwrap(), config)
    }

    pub fn at(dir: tempfile::TempDir, config: &str) -> Self {
        let topics = Rc::<RefCell<Vec<String>>>::default();
        let held = Rc::<RefCell<Vec<Resource>>>::default();
        let (told, holds) = (topics.clone(), held.clone());
        let events = Fake::<Events>::new("log").on(move |_, append: Append| {
            let topics = append.entries.into_iter().map(|entry| entry.topic);
            told.borrow_mut().extend(topics);
            Ok(0)
        });
        let leases = Fake::<Leases>::new("local").on(move |_, add: Add| {
            holds.borrow_mut().extend(add.resources);
            Ok(())
        });
        let node = LocalBus::new()
            .fake(events)
            .fake(leases)
            .plugin_with(content::plugin(), config)
            .start(dir.path())
            .unwrap();
        Self {
            dir,
            node,
            topics,
            held,
        }
    }

    pub fn bus(&self) -> Bus {
        self.node.bus()
    }

    pub fn desk(&self, namespace: &str) -> Desk {
        Desk::new(&self.bus(), namespace)
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root/content/local")
    }

    pub fn file(&self, digest: &Digest) -> PathBuf {
        let blobs = self.root().join("blobs");
        blobs.join(digest.algorithm()).join(digest.hex())
    }

    pub async fn restart(&mut self) {
        self.node.restart("content/local").await.unwrap();
    }

    pub async fn told(&self, topic: &str) {
        for _ in 0..10_000 {
            if self.topics.borrow().iter().any(|told| told == topic) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("{topic} was not told");
    }
}
