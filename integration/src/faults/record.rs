//! One recording: a node whose root lies on a remembered disk, and clients that note what they asked and were told.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::catalog::{Catalog, Sample};
use super::disk::{Clock, Disk};
use super::history::{History, State};
use super::image::{Act, Image};
use crate::Outcome;
use crate::chaos::Random;
use crate::http::Client;
use crate::image::sample::Random as Noise;
use crate::image::sha256;
use crate::node::{Node, Setup};
use crate::registry::Registry;

/// Size of the disk. Only what is written takes memory.
const SIZE: u64 = 512 << 20;
/// How many images the clients work with; two clients share none.
pub(super) const IMAGES: usize = 4;

/// The label that keeps a blob from being collected. Source: containerd, docs/garbage-collection.md.
pub(super) const ROOT: &str = "containerd.io/gc.root";

/// How a journaled file system treats data that nobody syncs: written before the metadata that names it, or whenever.
const OPTIONS: [&str; 2] = ["data=ordered", "data=writeback"];

/// What was recorded, and all that a check needs to judge a cut of it.
pub struct Recording {
    /// What decided about the images and the clients.
    pub seed: u64,
    /// What the disk held at first.
    pub start: Image,
    /// What happened to it.
    pub log: Vec<Act>,
    /// What the clients asked and were told.
    pub history: History,
    /// The images that were pulled.
    pub catalog: Catalog,
    /// Where they are pulled from.
    pub registry: Registry,
    /// In which namespace everything happened.
    pub namespace: String,
    /// How the file system was mounted meanwhile.
    pub options: &'static str,
    /// How long the clients worked.
    pub took: Duration,
}

/// Starts a node whose root is the folder `root` of a mounted disk. Errors: it does not become ready.
pub async fn node_on(disk: &Disk, setup: Setup) -> Outcome<Node> {
    let root = disk.point().join("root");
    let root = root.to_string_lossy();
    Node::start_with(setup.arg("--root").arg(&root)).await
}

/// Records clients that each take `steps` steps, chosen by the seed.
///
/// Errors: the node refuses something it should do; what and why is in the message.
pub async fn record(seed: u64, steps: usize, setup: Setup) -> Outcome<Recording> {
    let catalog = Catalog::new(seed, IMAGES)?;
    let registry = Registry::start().await?;
    let base = &catalog.base;
    let base = registry.push(&base.packed, &base.repository, "1").await?;
    for sample in catalog.samples.iter().flatten() {
        registry
            .push(&sample.packed, &sample.repository, "1")
            .await?;
    }
    let mut disk = Disk::new(Image::new(SIZE))?;
    disk.format(&[])?;
    let options = *Random::new(seed, 6).one(&OPTIONS).unwrap_or(&"");
    disk.mount(options)?;
    let node = node_on(&disk, setup).await?;
    node.pull(&base).await?;

    let start = disk.record();
    let began = Instant::now();
    let clients = Clients {
        client: node.client().clone(),
        namespace: node.namespace(),
        registry: &registry,
        catalog: &catalog,
        clock: disk.clock(),
        history: RefCell::default(),
    };
    clients.known(&format!("image {base}"), &catalog.base.packed.root.digest);
    let chance = |client| Random::new(seed, client);
    tokio::try_join!(
        clients.pulls(0, steps, chance(1)),
        clients.pulls(1, steps, chance(2)),
        clients.containers(&base, steps, chance(3)),
        clients.small_things(&base, steps * 2, chance(4)),
        clients.blobs(steps * 2, chance(5)),
    )?;
    let (history, took) = (clients.history.into_inner(), began.elapsed());
    let log = disk.recorded();
    let namespace = node.namespace().to_owned();
    node.stop_clean().await?;
    disk.unmount()?;
    Ok(Recording {
        seed,
        start,
        log,
        history,
        catalog,
        registry,
        namespace,
        options,
        took,
    })
}

struct Clients<'a> {
    client: Client,
    namespace: &'a str,
    registry: &'a Registry,
    catalog: &'a Catalog,
    clock: Clock,
    history: RefCell<History>,
}

impl Clients<'_> {
    /// Notes something that was there before the recording began.
    fn known(&self, object: &str, state: &str) {
        let mut history = self.history.borrow_mut();
        history.begin(object, Some(state.into()), 0);
        history.answered(object, 0);
    }

    /// Sends a request that brings an object into a state, and notes when it was sent and when answered.
    async fn change(
        &self,
        object: &str,
        state: State,
        method: Method,
        path: &str,
        body: Value,
    ) -> Outcome<Value> {
        let begun = self.clock.now();
        self.history.borrow_mut().begin(object, state, begun);
        let path = format!("/v1/namespaces/{}{path}", self.namespace);
        let answer = self.ask(method, &path, body).await?;
        let now = self.clock.now();
        self.history.borrow_mut().answered(object, now);
        Ok(answer)
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Outcome<Value> {
        let text = format!("{method} {path}");
        let answer = match body {
            Value::Null => self.client.send(method, path, ()).await?,
            body => self.client.send(method, path, body).await?,
        };
        answer
            .ok()
            .map_err(|error| format!("while recording, {text}: {error}").into())
    }

    /// Pulls, moves, tags and deletes every second image, from `first` on.
    async fn pulls(&self, first: usize, steps: usize, mut chance: Random) -> Outcome {
        let mine: Vec<_> = self.catalog.samples.iter().skip(first).step_by(2).collect();
        for _ in 0..steps {
            let Some(versions) = chance.one(&mine) else {
                return Ok(());
            };
            let [one, two] = versions;
            let (sample, other) = match chance.below(2) {
                0 => (one, two),
                _ => (two, one),
            };
            let name = self.registry.name(&format!("{}:1", sample.repository));
            let copy = self.registry.name(&format!("{}:copy", sample.repository));
            let object = format!("image {name}");
            let now = self.now(&object);
            match (chance.below(6), &now) {
                (0, Some(_)) => self.delete_image(&name).await?,
                (1, Some(digest)) => self.tag(&name, &copy, digest).await?,
                (2, _) => drop(self.ask(Method::POST, "/v1/gc", Value::Null).await?),
                _ => {
                    self.registry
                        .push(&sample.packed, &sample.repository, "1")
                        .await?;
                    self.pull(&name, sample, other).await?;
                }
            }
        }
        Ok(())
    }

    /// A pull that is interrupted asks the registry again when it goes on, and then the tag may have moved to `other`.
    async fn pull(&self, name: &str, sample: &Sample, other: &Sample) -> Outcome {
        let object = format!("image {name}");
        let digest = |sample: &Sample| Some(sample.packed.root.digest.clone());
        let begun = self.clock.now();
        self.history
            .borrow_mut()
            .begin(&object, digest(sample), begun);
        self.history.borrow_mut().or(&object, digest(other));
        let path = format!("/v1/namespaces/{}/images:pull?wait=true", self.namespace);
        let body = json!({"ref": name, "plain_http": true});
        self.ask(Method::POST, &path, body).await?;
        let now = self.clock.now();
        self.history.borrow_mut().answered(&object, now);
        Ok(())
    }

    async fn delete_image(&self, name: &str) -> Outcome {
        let (object, path) = (format!("image {name}"), format!("/images/{name}"));
        self.change(&object, None, Method::DELETE, &path, Value::Null)
            .await?;
        self.ask(Method::POST, "/v1/gc", Value::Null).await?;
        Ok(())
    }

    async fn tag(&self, name: &str, copy: &str, digest: &str) -> Outcome {
        let body = json!({"name": copy, "force": true});
        let (object, path) = (format!("image {copy}"), format!("/images/{name}:tag"));
        self.change(&object, Some(digest.into()), Method::POST, &path, body)
            .await?;
        Ok(())
    }

    /// The state of an object that no request is changing.
    fn now(&self, object: &str) -> State {
        let allowed = self.history.borrow().allowed(object, usize::MAX);
        allowed.into_iter().next().flatten()
    }

    /// Makes, runs and removes containers.
    async fn containers(&self, image: &str, steps: usize, mut chance: Random) -> Outcome {
        for number in 0..steps {
            let id = format!("c{number}");
            let object = format!("container {id}");
            let body = json!({"id": id, "image": image, "args": ["true"]});
            let path = match chance.below(2) {
                0 => "/containers",
                _ => "/containers:run?wait=true",
            };
            let state = Some(image.to_owned());
            self.change(&object, state, Method::POST, path, body)
                .await?;
            if chance.below(3) > 0 {
                let path = format!("/containers/{id}?force=true");
                self.change(&object, None, Method::DELETE, &path, Value::Null)
                    .await?;
            }
        }
        Ok(())
    }

    /// Writes blobs that belong to no image, which nothing but their own commit makes durable, and deletes some.
    async fn blobs(&self, steps: usize, mut chance: Random) -> Outcome {
        for number in 0..steps {
            let bytes = Noise(chance.number() | 1).content(1 + chance.below(40_000) as usize);
            let digest = sha256(&bytes);
            let (object, here) = (format!("blob {digest}"), Some("here".to_owned()));
            let ingest = format!("/ingests/cut-{number}");
            let path = format!("/v1/namespaces/{}{ingest}", self.namespace);
            let unfinished = format!("ingest cut-{number}");
            let (there, begun) = (Some("there".to_owned()), self.clock.now());
            self.history.borrow_mut().begin(&unfinished, there, begun);
            let sent = self.client.send(Method::PUT, &path, Bytes::from(bytes));
            sent.await?.ok()?;
            let body = json!({"digest": digest, "labels": {ROOT: "cut"}});
            let commit = format!("{ingest}:commit");
            self.change(&object, here, Method::POST, &commit, body)
                .await?;
            let now = self.clock.now();
            self.history.borrow_mut().begin(&unfinished, None, begun);
            self.history.borrow_mut().answered(&unfinished, now);
            if chance.below(4) == 0 {
                let path = format!("/content/{digest}");
                self.change(&object, None, Method::DELETE, &path, Value::Null)
                    .await?;
            }
        }
        Ok(())
    }

    /// Publishes events, makes and releases leases, and labels an image again and again.
    async fn small_things(&self, image: &str, steps: usize, mut chance: Random) -> Outcome {
        for number in 0..steps {
            match chance.below(4) {
                0 => self.lease(&format!("cut-{number}"), &mut chance).await?,
                1 => {
                    let body = json!({"labels": {"number": number.to_string()}});
                    let path = format!("/images/{image}");
                    let state = Some(number.to_string());
                    self.change("label number", state, Method::PATCH, &path, body)
                        .await?;
                }
                _ => self.publish(number).await?,
            }
        }
        Ok(())
    }

    async fn lease(&self, id: &str, chance: &mut Random) -> Outcome {
        let object = format!("lease {id}");
        let body = json!({"id": id});
        self.change(&object, Some("held".into()), Method::POST, "/leases", body)
            .await?;
        if chance.below(2) == 0 {
            let path = format!("/leases/{id}");
            self.change(&object, None, Method::DELETE, &path, Value::Null)
                .await?;
        }
        Ok(())
    }

    /// Publishes an event; afterwards its number is fixed as well.
    async fn publish(&self, number: usize) -> Outcome {
        let object = format!("event {number}");
        let begun = self.clock.now();
        let state = Some("once".to_owned());
        self.history.borrow_mut().begin(&object, state, begun);
        let body =
            json!({"topic": "/power/mark", "event": {"n": number}, "namespace": self.namespace});
        let answer = self.ask(Method::POST, "/v1/events", body).await?;
        let now = self.clock.now();
        let mut history = self.history.borrow_mut();
        history.answered(&object, now);
        let place = format!("number of event {number}");
        history.begin(&place, Some(answer["seq"].to_string()), begun);
        history.answered(&place, now);
        Ok(())
    }
}
