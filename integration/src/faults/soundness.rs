//! Looks at a node after a fault: what it lists, whether that is sound, and whether it still works.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use super::catalog::{Catalog, Sample};
use super::history::History;
use super::record::ROOT;
use super::tree::Tree;
use crate::chaos::Random;
use crate::image::sha256;
use crate::node::Node;
use crate::process::until;
use crate::registry::Registry;
use crate::{Error, Outcome};

/// Until work that a cut interrupted has gone on and ended.
const SETTLED: Duration = Duration::from_secs(30);

/// What clients own and must remove themselves, and what names it; all else is collected.
const OWNED: [(&str, &str); 5] = [
    ("/containers", "id"),
    ("/images", "name"),
    ("/leases", "id"),
    ("/ingests", "ref"),
    ("/content", "digest"),
];

/// A node after a fault, and what it should look like.
pub(super) struct Patient<'a> {
    pub(super) node: &'a Node,
    pub(super) namespace: &'a str,
    pub(super) catalog: &'a Catalog,
    pub(super) registry: &'a Registry,
    /// Where layers are mounted to be looked at.
    pub(super) folder: &'a Path,
}

impl Patient<'_> {
    fn at(&self, resource: &str) -> String {
        format!("/v1/namespaces/{}{resource}", self.namespace)
    }

    async fn list(&self, resource: &str) -> Outcome<Vec<Value>> {
        let (mut items, mut token) = (Vec::new(), String::new());
        loop {
            let page = format!("{}?limit=1000&page_token={token}", self.at(resource));
            let page = self.node.get(&page).await?.ok()?;
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["next_page_token"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut token),
                _ => return Ok(items),
            }
        }
    }

    /// Waits until everything that the cut interrupted has ended. Errors: it does not.
    pub(super) async fn settle(&self) -> Outcome {
        until("interrupted work ends", SETTLED, async || {
            let list = self.node.get("/v1/operations?limit=1000").await.ok()?;
            let list = list.ok().ok()?;
            let running = list["items"].as_array()?.iter();
            let mut running = running.filter(|one| one["state"] == "running");
            running.next().is_none().then_some(())
        })
        .await
    }

    /// Returns the state of every object that a client of the recording knows.
    pub(super) async fn found(&self) -> Outcome<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for image in self.list("/images").await? {
            let name = text(&image["name"]);
            found.insert(format!("image {name}"), text(&image["target"]["digest"]));
            if let Some(number) = image["labels"]["number"].as_str() {
                found.insert("label number".into(), number.into());
            }
        }
        for container in self.list("/containers").await? {
            let id = text(&container["id"]);
            found.insert(format!("container {id}"), text(&container["image"]));
        }
        for lease in self.list("/leases").await? {
            let id = text(&lease["id"]);
            if id.starts_with("cut-") {
                found.insert(format!("lease {id}"), "held".into());
            }
        }
        for ingest in self.list("/ingests").await? {
            let name = text(&ingest["ref"]);
            if name.starts_with("cut-") {
                found.insert(format!("ingest {name}"), "there".into());
            }
        }
        for blob in self.list("/content").await? {
            if !blob["labels"][ROOT].is_null() {
                found.insert(format!("blob {}", text(&blob["digest"])), "here".into());
            }
        }
        Ok(found)
    }

    /// Reads all events: adds the marks of clients to what was found, and says where numbers are missing or doubled.
    pub(super) async fn events(
        &self,
        history: &History,
        found: &mut BTreeMap<String, String>,
    ) -> Outcome<Vec<String>> {
        let (mut wrong, mut last, mut since) = (Vec::new(), 0, 0);
        loop {
            let path = format!("/v1/events?since={since}&limit=1000");
            let page = self.node.get(&path).await?.ok()?;
            if !page["gap"].is_null() {
                wrong.push(format!("events: a gap {}", page["gap"]));
            }
            for event in page["items"].as_array().into_iter().flatten() {
                let seq = event["seq"].as_u64().unwrap_or_default();
                if seq != last + 1 {
                    wrong.push(format!("events: {seq} comes after {last}"));
                }
                last = seq;
                mark(event, history, found);
            }
            if page["next_page_token"].as_str().is_none_or(str::is_empty) {
                return Ok(wrong);
            }
            since = last;
        }
    }

    /// Reads every blob that is listed and every blob of a listed image; says which are not what their digest names.
    pub(super) async fn blobs(&self) -> Outcome<Vec<String>> {
        let mut digests: BTreeSet<String> = BTreeSet::new();
        for blob in self.list("/content").await? {
            digests.insert(text(&blob["digest"]));
        }
        for image in self.list("/images").await? {
            if let Some(sample) = self.catalog.by_digest(&text(&image["target"]["digest"])) {
                digests.extend(sample.packed.blobs.keys().cloned());
                digests.insert(sample.packed.root.digest.clone());
            }
        }
        let mut wrong = Vec::new();
        for digest in digests {
            let path = self.at(&format!("/content/{digest}"));
            let answer = self.node.get(&path).await?;
            let real = sha256(&answer.body);
            if !answer.status.is_success() {
                wrong.push(format!("blob {digest}: {}", answer.text()));
            } else if real != digest {
                let length = answer.body.len();
                wrong.push(format!("blob {digest}: {length} bytes are {real}"));
            }
        }
        Ok(wrong)
    }

    /// Compares every committed snapshot with what its layers make; says what is different.
    pub(super) async fn snapshots(&self) -> Outcome<Vec<String>> {
        let mut wrong = Vec::new();
        for snapshot in self.list("/snapshots/overlayfs").await? {
            let key = text(&snapshot["key"]);
            if snapshot["kind"] != "committed" {
                continue;
            }
            match self.catalog.chains.get(&key) {
                Some(tree) => wrong.extend(self.compare(&key, tree).await?),
                None => wrong.push(format!("snapshot {key}: committed, and nobody's")),
            }
        }
        Ok(wrong)
    }

    /// Says which listed images are not unpacked, although that was answered with their names.
    pub(super) async fn unpacked(&self) -> Outcome<Vec<String>> {
        let keys: BTreeSet<String> = self
            .list("/snapshots/overlayfs")
            .await?
            .iter()
            .map(|snapshot| text(&snapshot["key"]))
            .collect();
        let mut wrong = Vec::new();
        for image in self.list("/images").await? {
            let digest = text(&image["target"]["digest"]);
            let sample = self.catalog.by_digest(&digest);
            let chain = sample
                .map(|sample| sample.packed.chain_id())
                .unwrap_or_default();
            if !keys.contains(&chain) {
                let name = text(&image["name"]);
                wrong.push(format!(
                    "image {name} is listed, its snapshot {chain} is not"
                ));
            }
        }
        Ok(wrong)
    }

    async fn compare(&self, key: &str, expected: &Tree) -> Outcome<Vec<String>> {
        let view = format!("look-{}", &key[key.len().saturating_sub(12)..]);
        let body = json!({"key": view, "parent": key, "kind": "view"});
        let all = self.at("/snapshots/overlayfs");
        let mounts = self.node.post(&all, body).await?.ok()?;
        let found = self.look(&mounts["mounts"][0]);
        let path = self.at(&format!("/snapshots/overlayfs/{view}"));
        self.node.delete(&path).await?.ok()?;
        let lines = match found {
            Ok(found) => expected.differences(&found),
            Err(error) => vec![error.to_string()],
        };
        Ok(lines
            .iter()
            .map(|line| format!("snapshot {key}: {line}"))
            .collect())
    }

    /// Mounts what the snapshot driver describes, and looks at it.
    fn look(&self, described: &Value) -> Outcome<Tree> {
        let options: Vec<&str> = described["options"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let (kind, source) = (text(&described["fs_type"]), text(&described["source"]));
        let (flags, data) = match kind.as_str() {
            "overlay" => (MsFlags::MS_RDONLY, options.join(",")),
            _ => (MsFlags::MS_BIND, String::new()),
        };
        mount(
            Some(source.as_str()),
            self.folder,
            Some(kind.as_str()),
            flags,
            Some(data.as_str()),
        )
        .map_err(|error| format!("{described}: {error}"))?;
        let tree = Tree::of(self.folder);
        umount2(self.folder, MntFlags::empty())?;
        tree
    }

    /// Pulls a version of each image again, whatever is here of it, and looks again; then removes everything.
    pub(super) async fn heals_and_goes(&self, mut chance: Random) -> Outcome<Vec<String>> {
        let samples = self.catalog.samples.iter();
        let pulls = samples.filter_map(|versions| Some(self.pull(chance.one(versions)?)));
        let mut wrong = join_all(pulls.collect::<Vec<_>>()).await.concat();
        wrong.extend(self.snapshots().await?);
        wrong.extend(self.unpacked().await?);
        wrong.extend(self.remove_all().await?);
        Ok(wrong)
    }

    /// Pulls every version of every image. Says what was refused.
    pub(super) async fn pull_all(&self) -> Outcome<Vec<String>> {
        let mut wrong = Vec::new();
        for sample in self.catalog.samples.iter().flatten() {
            wrong.extend(self.pull(sample).await);
        }
        Ok(wrong)
    }

    async fn pull(&self, sample: &Sample) -> Vec<String> {
        let digest = &sample.packed.root.digest;
        let name = format!("{}@{digest}", sample.repository);
        let body = json!({"ref": self.registry.name(&name), "plain_http": true});
        let path = self.at("/images:pull?wait=true");
        let answer = self.node.post(&path, body).await;
        let refused = answer.and_then(|answer| answer.ok()).err();
        let line = refused.map(|error| format!("pull of {name}: {error}"));
        line.into_iter().collect()
    }

    async fn remove_all(&self) -> Outcome<Vec<String>> {
        let mut wrong = Vec::new();
        for (kind, name) in OWNED {
            for row in self.list(kind).await? {
                if kind == "/content" && row["labels"][ROOT].is_null() {
                    continue;
                }
                let path = format!("{kind}/{}", text(&row[name]));
                let gone = self.node.delete(&self.at(&path)).await?;
                if let Err(error) = gone.ok() {
                    wrong.push(format!("delete of {path}: {error}"));
                }
            }
        }
        self.node.collect().await?;
        for kind in ["content", "ingests", "snapshots/overlayfs", "tasks"] {
            let left = self.list(&format!("/{kind}")).await?;
            if !left.is_empty() {
                wrong.push(format!(
                    "{kind} left after everything was removed: {}",
                    keys(&left)
                ));
            }
        }
        Ok(wrong)
    }
}

/// Adds an event of a client to what was found.
fn mark(event: &Value, history: &History, found: &mut BTreeMap<String, String>) {
    if event["topic"] != "/power/mark" {
        return;
    }
    let object = format!("event {}", event["event"]["n"]);
    let times = match found.get(&object) {
        None => "once",
        Some(_) => "more than once",
    };
    // The number is fixed only for those who were told it.
    let place = format!("number of {object}");
    if history.allowed(&place, usize::MAX) != [None] {
        found.insert(place, event["seq"].to_string());
    }
    found.insert(object, times.into());
}

/// Returns what names each row.
fn keys(rows: &[Value]) -> String {
    let names = ["digest", "key", "ref", "id"];
    let key = |row: &Value| {
        names
            .iter()
            .find_map(|name| row[*name].as_str().map(str::to_owned))
    };
    rows.iter().filter_map(key).collect::<Vec<_>>().join(", ")
}

/// Returns the text of a JSON string; the empty string for anything else.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Makes a finding of what could not even be looked at.
pub(super) fn finding(what: &str, result: Result<Vec<String>, Error>) -> Vec<String> {
    result.unwrap_or_else(|error| vec![format!("{what}: {}", short(&error.to_string()))])
}

/// Returns as much of a text as fits a line of a report.
pub(super) fn short(text: &str) -> String {
    let line = text.lines().find(|line| !line.is_empty());
    line.unwrap_or_default().chars().take(400).collect()
}
