//! List, then watch: a replica kept by events alone is what the server has, whatever dies on the way.
//!
//! Small here; `GANTRY_REPLICA_STEPS=2000` makes it long, `GANTRY_SEED` repeats one.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use integration::Outcome;
use integration::chaos::{Keyed, Random, plugins, seed};
use integration::http::{Body, Record, Records};
use integration::image::sample;
use integration::node::{Node, Setup};
use integration::process::until;
use integration::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// Where a record without a heartbeat counts as none.
const QUIET: Duration = Duration::from_millis(300);
/// Whoever dies is back at once, however often.
const RESTARTS: &str = "[restart]\nfirst_ms = 10\nforgive_seconds = 0";

/// What is known of everything: `kind name` → what a list shows of it.
type Things = BTreeMap<String, Value>;

/// Every collection of a namespace: its path, what names a row, and what a replica keeps of it.
const COLLECTIONS: [(&str, &str, &[&str]); 7] = [
    ("/images", "name", &["labels", "version"]),
    ("/containers", "id", &["labels", "version"]),
    ("/tasks", "id", &["status", "pid"]),
    ("/leases", "id", &["labels"]),
    ("/content", "digest", &["labels", "size"]),
    ("/snapshots/overlayfs", "key", &["labels", "kind"]),
    ("/snapshots/native", "key", &["labels", "kind"]),
];

fn kept(row: &Value, fields: &[&str]) -> Value {
    fields
        .iter()
        .map(|field| ((*field).to_owned(), row[*field].clone()))
        .collect()
}

/// Everything that the server lists, and where a watch goes on.
async fn listed(node: &Node, keyed: &mut Keyed) -> Outcome<(Things, u64)> {
    let (mut things, mut versions) = (Things::new(), Vec::new());
    for (path, name, fields) in COLLECTIONS {
        let (mut token, mut first) = (String::new(), None);
        loop {
            let path = node.at(&format!("{path}?limit=3&page_token={token}"));
            let page = keyed.send(&Method::GET, &path, ()).await?.response.ok()?;
            first = first.or(page["version"].as_u64());
            for row in page["items"].as_array().into_iter().flatten() {
                let key = format!(
                    "{} {}",
                    &path_of(&path),
                    row[name].as_str().unwrap_or_default()
                );
                things.insert(key, kept(row, fields));
            }
            match page["next_page_token"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut token),
                _ => break,
            }
        }
        versions.extend(first);
    }
    Ok((things, versions.into_iter().min().unwrap_or_default()))
}

/// `/v1/namespaces/x/images?limit=3` → `/images`.
fn path_of(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    path.splitn(5, '/')
        .nth(4)
        .map(|rest| format!("/{rest}"))
        .unwrap_or_default()
}

/// A replica of one namespace.
struct Replica {
    namespace: String,
    things: Things,
    seen: u64,
    stream: Option<Records>,
}

impl Replica {
    async fn begin(node: &Node, keyed: &mut Keyed) -> Outcome<Self> {
        let (things, seen) = listed(node, keyed).await?;
        Ok(Self {
            namespace: node.namespace().to_owned(),
            things,
            seen,
            stream: None,
        })
    }

    /// Reads until nothing comes for a moment, or `until` was seen; comes back when the stream breaks.
    async fn follow(&mut self, node: &Node, until_seen: Option<u64>) -> Outcome {
        loop {
            if until_seen.is_some_and(|number| self.seen >= number) {
                return Ok(());
            }
            if self.stream.is_none() {
                self.stream = Some(self.open(node).await?);
            }
            let Some(stream) = &mut self.stream else {
                continue;
            };
            match stream.next(QUIET).await {
                Ok(Some(record)) => self.apply(&record)?,
                Err(error) if error.to_string().starts_with("no record in") => {
                    // A stream that gave up in the middle of a record begins anew.
                    self.stream = None;
                    if until_seen.is_none() {
                        return Ok(());
                    }
                }
                _ => self.stream = None,
            }
        }
    }

    async fn open(&self, node: &Node) -> Outcome<Records> {
        let path = format!("/v1/events?since={}", self.seen);
        until("events can be read", SOON, async || {
            let stream = node
                .client()
                .stream(Method::GET, &path, "text/event-stream", ());
            stream.await.ok()
        })
        .await
    }

    fn apply(&mut self, record: &Record) -> Outcome {
        let number: u64 = record
            .id
            .parse()
            .map_err(|_| format!("no number: {record:?}"))?;
        if number != self.seen + 1 {
            return Err(format!("event {number} came after {}", self.seen).into());
        }
        self.seen = number;
        if record.data["namespace"] == self.namespace {
            self.learn(&record.event, &record.data["event"]);
        }
        Ok(())
    }

    fn learn(&mut self, topic: &str, event: &Value) {
        let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let driver = || format!("/snapshots/{}", text("snapshotter"));
        match topic {
            "/images/create" | "/images/update" => {
                self.put("/images", &text("name"), event, &["labels", "version"])
            }
            "/images/delete" => self.drop("/images", &text("name")),
            "/containers/create" | "/containers/update" => {
                self.put("/containers", &text("id"), event, &["labels", "version"])
            }
            "/containers/delete" => self.drop("/containers", &text("id")),
            "/leases/create" | "/leases/update" => {
                self.put("/leases", &text("id"), event, &["labels"])
            }
            "/leases/delete" => self.drop("/leases", &text("id")),
            "/content/create" | "/content/update" => {
                self.put("/content", &text("digest"), event, &["labels", "size"])
            }
            "/content/delete" => self.drop("/content", &text("digest")),
            "/snapshot/prepare" => self.put(&driver(), &text("key"), event, &["labels", "kind"]),
            "/snapshot/update" => self.put(&driver(), &text("key"), event, &["labels", "kind"]),
            "/snapshot/remove" => self.drop(&driver(), &text("key")),
            "/snapshot/commit" => {
                self.drop(&driver(), &text("key"));
                self.put(&driver(), &text("name"), event, &["labels", "kind"]);
                let key = format!("{} {}", driver(), text("name"));
                self.things
                    .entry(key)
                    .and_modify(|thing| thing["kind"] = json!("committed"));
            }
            "/tasks/create" => self.task(event, "created"),
            "/tasks/start" | "/tasks/resumed" => self.task(event, "running"),
            "/tasks/paused" => self.task(event, "paused"),
            "/tasks/exit" if event["id"] == event["container_id"] => self.task(event, "stopped"),
            "/tasks/delete" if text("id").is_empty() => self.drop("/tasks", &text("container_id")),
            _ => {}
        }
    }

    /// Takes what an event says; what it does not say stays.
    fn put(&mut self, kind: &str, name: &str, event: &Value, fields: &[&str]) {
        let thing = self
            .things
            .entry(format!("{kind} {name}"))
            .or_insert_with(|| kept(&Value::Null, fields));
        for field in fields {
            if let Some(said) = event.get(*field) {
                thing[*field] = said.clone();
            }
        }
    }

    fn drop(&mut self, kind: &str, name: &str) {
        self.things.remove(&format!("{kind} {name}"));
    }

    fn task(&mut self, event: &Value, status: &str) {
        let id = event["container_id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut event = event.clone();
        event["status"] = json!(status);
        self.put("/tasks", &id, &event, &["status", "pid"]);
    }
}

/// One random change. What it meets does not matter: a refusal changes nothing.
async fn change(
    node: &Node,
    keyed: &mut Keyed,
    random: &mut Random,
    image: &str,
    target: &Value,
) -> Outcome {
    let number = random.below(4);
    let labels = json!({"labels": {"n": random.below(9).to_string()}});
    let name = format!("/images/example.org/r:{number}");
    let id = format!("c-{number}");
    let key = format!("k-{number}");
    let bytes = format!("blob {number}");
    let (post, put, patch, delete) = (Method::POST, Method::PUT, Method::PATCH, Method::DELETE);
    let (method, path, body): (Method, String, Body) = match random.below(20) {
        0 => (
            put,
            name,
            json!({"target": target, "labels": labels["labels"]}).into(),
        ),
        1 => (patch, name, labels.into()),
        2 => (delete, name, ().into()),
        3 => (
            post,
            format!("/images/{image}:tag"),
            json!({"name": &name[8..], "force": true}).into(),
        ),
        4 => (
            post,
            "/containers".into(),
            json!({"id": id, "image": image, "args": ["sleep", "1000"]}).into(),
        ),
        5 => (patch, format!("/containers/{id}"), labels.into()),
        6 => (delete, format!("/containers/{id}?force=true"), ().into()),
        7 => (post, "/tasks".into(), json!({"id": id}).into()),
        8 => (post, format!("/tasks/{id}:start"), ().into()),
        9 => (post, format!("/tasks/{id}:pause"), ().into()),
        10 => (post, format!("/tasks/{id}:resume"), ().into()),
        11 => (
            post,
            format!("/tasks/{id}:kill"),
            json!({"signal": "KILL"}).into(),
        ),
        12 => (delete, format!("/tasks/{id}"), ().into()),
        13 => (
            post,
            "/snapshots/overlayfs".into(),
            json!({"key": key, "labels": labels["labels"]}).into(),
        ),
        14 => (
            post,
            format!("/snapshots/overlayfs/{key}:commit"),
            json!({"name": format!("n-{number}")}).into(),
        ),
        15 => (
            patch,
            format!("/snapshots/overlayfs/n-{number}"),
            labels.into(),
        ),
        16 => (
            delete,
            format!("/snapshots/overlayfs/n-{number}"),
            ().into(),
        ),
        17 => (
            post,
            "/leases".into(),
            json!({"id": key, "labels": labels["labels"]}).into(),
        ),
        18 => (delete, format!("/leases/{key}"), ().into()),
        _ => {
            let whole = Body::of("application/octet-stream", bytes);
            keyed
                .send(&put, &node.at(&format!("/ingests/{key}")), whole)
                .await?;
            (post, format!("/ingests/{key}:commit"), labels.into())
        }
    };
    let answer = keyed.send(&method, &node.at(&path), body).await?.response;
    match answer.status.as_u16() {
        200..300 | 404 | 409 => Ok(()),
        _ => Err(format!("{method} {path}: {} {}", answer.status, answer.text()).into()),
    }
}

/// Describes where two maps differ.
fn difference(replica: &Things, server: &Things) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = replica.keys().chain(server.keys()).collect();
    let differ = keys
        .into_iter()
        .filter(|key| replica.get(*key) != server.get(*key));
    differ
        .map(|key| {
            format!(
                "{key}: replica {:?}, server {:?}",
                replica.get(key),
                server.get(key)
            )
        })
        .collect()
}

async fn hit(node: &Node, random: &mut Random) {
    if let Some((_, pid)) = random.one(&plugins(node.pid())) {
        // It may have ended by itself meanwhile.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

#[actix_rt::test]
async fn a_replica_built_by_list_and_watch_equals_the_server() -> Outcome {
    let seed = seed();
    let steps = std::env::var("GANTRY_REPLICA_STEPS")
        .ok()
        .and_then(|text| text.parse().ok());
    println!("seed {seed}, GANTRY_SEED repeats it");
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start_with(Setup::default().config(RESTARTS)).await?;
    node.pull(&image).await?;
    let target = node
        .get(&node.at(&format!("/images/{image}")))
        .await?
        .ok()?["target"]
        .clone();
    let mut random = Random::new(seed, 1);
    let mut keyed = Keyed::new(node.client(), "replica");
    let mut early = Replica::begin(&node, &mut keyed).await?;
    let mut late = None;
    for step in 0..steps.unwrap_or(160) {
        change(&node, &mut keyed, &mut random, &image, &target).await?;
        match random.below(16) {
            0 => hit(&node, &mut random).await,
            1 => early.follow(&node, None).await?,
            2 => early.stream = None,
            _ => {}
        }
        if step == 80 {
            late = Some(Replica::begin(&node, &mut keyed).await?);
        }
    }
    // A last event after everything that was acknowledged; then what the owners have not handed over yet.
    let server = until("both replicas are what the server has", SOON, async || {
        let body = json!({"topic": "/story/end"});
        let end = keyed.send(&Method::POST, "/v1/events", body).await.ok()?;
        let end = end.response.ok().ok()?["seq"].as_u64()?;
        early.follow(&node, Some(end)).await.ok()?;
        if let Some(late) = &mut late {
            late.follow(&node, Some(end)).await.ok()?;
        }
        let (server, _) = listed(&node, &mut keyed).await.ok()?;
        let same = early.things == server && late.as_ref().is_none_or(|late| late.things == server);
        same.then_some(server)
    });
    if let Err(error) = server.await {
        let (server, _) = listed(&node, &mut keyed).await?;
        let mut lines = difference(&early.things, &server);
        lines.extend(
            late.map(|late| difference(&late.things, &server))
                .unwrap_or_default(),
        );
        return Err(format!("seed {seed}: {error}\n{}", lines.join("\n")).into());
    }
    for id in node.list("/containers").await? {
        node.remove(id["id"].as_str().unwrap_or_default()).await?;
    }
    node.stop_clean().await
}
