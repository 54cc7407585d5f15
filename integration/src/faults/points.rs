//! Named fault points: the process that passes one dies there, once, in the middle of work that must survive it.
//!
//! The points are read from the sources, so none is forgotten. For each, one client does a bit of everything with
//! `Idempotency-Key`s and repeats what breaks; afterwards nothing may be refused, wrong, doubled or left. A shim that
//! dies takes its container along, so there an honest refusal is an answer as well.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::soundness::short;
use crate::Outcome;
use crate::chaos::{Keyed, Random};
use crate::image::{sample, sha256};
use crate::node::{Node, Setup};
use crate::registry::Registry;

/// So many deaths would count as flapping.
const RESTART: &str = "[restart]\nlongest_seconds = 1\nfailures = 1000";

/// A second name of the image.
const COPY: &str = "example.org/copy:1";

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Points at which a process died.
    pub struck: usize,
    /// Points that the client's work never passed.
    pub passed_by: Vec<String>,
    /// Findings, each with its point.
    pub wrong: Vec<String>,
}

/// Arms every point once, in an order that the seed decides; tells `say` about each.
///
/// Errors: no sources, or the node could not be set up.
pub async fn run(seed: u64, setup: Setup, say: impl Fn(&str)) -> Outcome<Verdict> {
    let scene = Scene::set(setup).await?;
    let mut verdict = Verdict::default();
    let mut names = named()?;
    let mut chance = Random::new(seed, 0);
    // Once without a fault: what is wrong then is not the fault's.
    verdict.wrong.extend(scene.live("nothing", false).await);
    while !names.is_empty() {
        let name = names.swap_remove(chance.below(names.len() as u64) as usize);
        fs::write(scene.armed.path().join(&name), "kill")?;
        let wrong = scene.live(&name, name.starts_with("shim.")).await;
        let struck = fs::remove_file(scene.armed.path().join(&name)).is_err();
        say(&format!(
            "{name}: {}",
            if struck { "struck" } else { "not passed" }
        ));
        wrong
            .iter()
            .for_each(|line| say(&format!("    WRONG: {line}")));
        verdict.struck += usize::from(struck);
        verdict.passed_by.extend((!struck).then(|| name.clone()));
        let wrong = wrong.iter().map(|line| format!("{name}: {line}"));
        verdict.wrong.extend(wrong);
    }
    let stop = scene.node.stop_clean().await.err();
    verdict
        .wrong
        .extend(stop.map(|error| format!("stop: {error}")));
    Ok(verdict)
}

/// All points that the sources name.
fn named() -> Outcome<Vec<String>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services");
    let mut names = Vec::new();
    for file in sources(&top) {
        let text = fs::read_to_string(file)?;
        let calls = text.split("faults::point(\"").skip(1);
        let found = calls.filter_map(|call| call.split('"').next());
        names.extend(found.map(str::to_owned));
    }
    names.sort();
    names.dedup();
    match names.is_empty() {
        true => Err(format!(
            "{}: no fault points; is this the source tree?",
            top.display()
        )
        .into()),
        false => Ok(names),
    }
}

fn sources(top: &Path) -> Vec<PathBuf> {
    if top.is_file() {
        return Vec::from_iter(
            top.extension()
                .is_some_and(|kind| kind == "rs")
                .then(|| top.to_owned()),
        );
    }
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    entries.flat_map(|entry| sources(&entry.path())).collect()
}

struct Scene {
    node: Node,
    registry: Registry,
    armed: tempfile::TempDir,
}

impl Scene {
    async fn set(setup: Setup) -> Outcome<Self> {
        let armed = tempfile::tempdir()?;
        // Plugins run under uids of their own, and whoever dies removes the file.
        fs::set_permissions(armed.path(), Permissions::from_mode(0o777))?;
        let folder = armed.path().display().to_string();
        let setup = setup.config(RESTART).env("GANTRY_FAULTS", &folder);
        let image = sample::busybox()?.pack();
        let registry = Registry::start().await?;
        registry.push(&image, "busybox", "1").await?;
        Ok(Self {
            node: Node::start_with(setup).await?,
            registry,
            armed,
        })
    }

    /// Does a bit of everything and removes it; says what went wrong.
    async fn live(&self, point: &str, refusals: bool) -> Vec<String> {
        let client = Client {
            scene: self,
            keyed: Keyed::new(self.node.client(), point),
            wrong: Vec::new(),
            refusals,
        };
        client.live(point).await
    }
}

struct Client<'a> {
    scene: &'a Scene,
    keyed: Keyed,
    wrong: Vec<String>,
    refusals: bool,
}

impl Client<'_> {
    async fn live(mut self, point: &str) -> Vec<String> {
        let name = self.scene.registry.name("busybox:1");
        let pull = json!({"ref": name, "plain_http": true});
        self.post("/images:pull?wait=true", pull).await;
        self.contain(&name).await;
        self.refuse(&name).await;
        self.store(point.as_bytes()).await;
        self.small(point).await;
        self.post(&format!("/images/{name}:tag"), json!({"name": COPY}))
            .await;
        self.post(&format!("/images/{COPY}:unpack?wait=true"), json!({}))
            .await;
        let push = json!({"image": name, "plain_http": true});
        self.post("/images:push?wait=true", push).await;
        self.post("/v1/scrub?repair=true&wait=true", json!({}))
            .await;
        for image in [COPY, &name] {
            self.delete(&format!("/images/{image}")).await;
        }
        self.post("/v1/gc", json!({})).await;
        self.nothing_left().await;
        self.wrong
    }

    /// A container that ends by itself, and one that is asked for all that can be asked and deleted while it runs.
    async fn contain(&mut self, image: &str) {
        let body = json!({"id": "short", "image": image, "args": ["sh", "-c", "exit 3"]});
        let exit = self.post("/containers:run?wait=true", body).await;
        self.expect(&exit["exit_code"], &json!(3), "exit code");
        self.delete("/containers/short").await;
        self.post("/containers", json!({"id": "made", "image": image}))
            .await;
        self.delete("/containers/made").await;
        let body = json!({"id": "long", "image": image, "args": ["sleep", "1000"]});
        self.post("/containers:run?wait=started", body).await;
        let exec = json!({"args": ["echo", "hi"]});
        let done = self.post("/tasks/long:exec?wait=true", exec).await;
        self.expect(&done["stdout"], &json!("hi\n"), "output");
        self.post("/tasks/long:pause", json!({})).await;
        self.post("/tasks/long:resume", json!({})).await;
        self.post("/tasks/long:kill", json!({"signal": "KILL"}))
            .await;
        self.delete("/containers/long?force=true").await;
    }

    /// A container whose program does not exist leaves nothing of itself.
    async fn refuse(&mut self, image: &str) {
        let body = json!({"id": "none", "image": image, "args": ["/no/such/program"]});
        let path = self.scene.node.at("/containers:run?wait=started");
        if let Ok(answer) = self.keyed.send(&Method::POST, &path, body).await
            && answer.response.status.is_success()
        {
            self.wrong
                .push("a program that is not there was started".into());
        }
    }

    /// A blob that is written, read and deleted, and a write that is given up.
    async fn store(&mut self, bytes: &[u8]) {
        let digest = sha256(bytes);
        let bytes = Bytes::copy_from_slice(bytes);
        self.send(Method::PUT, "/ingests/whole", bytes.clone())
            .await;
        self.post("/ingests/whole:commit", json!({"digest": digest}))
            .await;
        let blob = format!("/content/{digest}");
        self.send(Method::GET, &format!("{blob}/info"), ()).await;
        self.delete(&blob).await;
        self.send(Method::PUT, "/ingests/given-up", bytes).await;
        self.delete("/ingests/given-up").await;
    }

    /// A lease, a snapshot, a namespace's event.
    async fn small(&mut self, point: &str) {
        self.post("/leases", json!({"id": "held"})).await;
        self.delete("/leases/held").await;
        let snapshots = "/snapshots/overlayfs";
        self.post(snapshots, json!({"key": "made"})).await;
        self.post(&format!("{snapshots}/made:commit"), json!({"name": "kept"}))
            .await;
        self.delete(&format!("{snapshots}/kept")).await;
        let namespace = self.scene.node.namespace();
        let event =
            json!({"topic": "/points/passed", "event": {"point": point}, "namespace": namespace});
        self.post("/v1/events", event).await;
    }

    async fn nothing_left(&mut self) {
        for list in [
            "/images",
            "/containers",
            "/tasks",
            "/content",
            "/ingests",
            "/snapshots/overlayfs",
            "/leases",
        ] {
            match self.scene.node.list(list).await {
                Ok(rows) if rows.is_empty() => {}
                Ok(rows) => self.wrong.push(format!("{} of {list} left", rows.len())),
                Err(error) => self
                    .wrong
                    .push(format!("{list}: {}", short(&error.to_string()))),
            }
        }
    }

    async fn post(&mut self, path: &str, body: Value) -> Value {
        self.send(Method::POST, path, body).await
    }

    async fn delete(&mut self, path: &str) {
        self.send(Method::DELETE, path, ()).await;
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<crate::http::Body>,
    ) -> Value {
        let whole = match path.starts_with("/v1/") {
            true => path.to_owned(),
            false => self.scene.node.at(path),
        };
        let answered = self.keyed.send(&method, &whole, body).await;
        match answered.and_then(|answered| answered.response.ok()) {
            Ok(value) => value,
            Err(error) => {
                let line = format!("{method} {path}: {}", short(&error.to_string()));
                self.wrong.extend((!self.refusals).then_some(line));
                Value::Null
            }
        }
    }

    fn expect(&mut self, found: &Value, expected: &Value, what: &str) {
        if found != expected && !self.refusals {
            self.wrong
                .push(format!("{what} {found}, expected {expected}"));
        }
    }
}
