//! Death between any two steps: whoever works on images, layers, bytes and garbage is killed at every fault point there is.
//!
//! The points are read from the source, so none is forgotten; one that no work of this story passes fails here, and so
//! does one whose name no work is known for. Whatever is struck, the work finishes by itself or is undone, a repetition
//! of the request gets the answer, and nothing is left behind. Tasks and shims have a story of their own.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use integration::Outcome;
use integration::chaos::Keyed;
use integration::http::{Body, Response};
use integration::image::{Packed, sample};
use integration::node::{Node, Setup};
use integration::process::until;
use integration::registry::Registry;
use integration::relay::Relay;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
/// Whoever dies is back at once, however often.
const RESTARTS: &str = "[restart]\nfirst_ms = 10\nforgive_seconds = 0";
/// Whose points are struck here.
const PREFIXES: [&str; 7] = [
    "operations.",
    "content.",
    "diff.",
    "snapshots.",
    "transfer.",
    "images.",
    "gc.",
];

/// The work that passes a point. The first line that a point's name begins with counts.
const WORK: [(&str, Work); 26] = [
    ("operations.resume.", Work::Resume),
    ("operations.abandon.", Work::Cancel),
    ("operations.import.", Work::Import),
    ("operations.export.", Work::Export),
    ("operations.push.", Work::Push),
    ("operations.collect.", Work::Sweep),
    ("operations.create.", Work::Create),
    ("operations.run.", Work::Run),
    ("operations.undo.", Work::Undo),
    ("operations.remove.", Work::Run),
    ("operations.scrub.", Work::Scrub),
    ("operations.", Work::Pull),
    ("content.abort.", Work::Bytes),
    ("content.delete.", Work::Bytes),
    ("content.release.", Work::Sweep),
    ("content.mend.", Work::Scrub),
    ("content.", Work::Pull),
    ("diff.mend.", Work::Scrub),
    ("diff.", Work::Pull),
    ("snapshots.remove.", Work::Run),
    ("snapshots.mend.", Work::Scrub),
    ("snapshots.", Work::Pull),
    ("transfer.push.", Work::Push),
    ("transfer.export.", Work::Export),
    ("transfer.", Work::Pull),
    ("gc.", Work::Sweep),
];

/// What is done while a point is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Pull,
    Resume,
    Cancel,
    Import,
    Export,
    Push,
    Create,
    Run,
    Undo,
    Bytes,
    Sweep,
    Scrub,
}

/// Every point below `services` that is struck here.
fn points() -> Outcome<BTreeSet<String>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services");
    let mut found = BTreeSet::new();
    for file in sources(&top) {
        let text = fs::read_to_string(file)?;
        let names = text.split("faults::point(\"").skip(1);
        let names = names.filter_map(|rest| rest.split('"').next());
        let ours = names.filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
        found.extend(ours.map(str::to_owned));
    }
    Ok(found)
}

fn sources(top: &Path) -> Vec<PathBuf> {
    if top.extension().is_some_and(|end| end == "rs") {
        return vec![top.to_owned()];
    }
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    entries.flat_map(|entry| sources(&entry.path())).collect()
}

struct Story {
    registry: Registry,
    node: Node,
    keyed: Keyed,
    packed: Packed,
    /// Of the image that containers are made from; it stays.
    base: String,
    /// Of the image that comes and goes.
    image: String,
    armed: tempfile::TempDir,
    calm: BTreeSet<String>,
    number: u32,
}

impl Story {
    async fn begin() -> Outcome<Self> {
        let registry = Registry::start().await?;
        let packed = sample::layers(2, 1 << 20)?;
        let image = registry.push(&packed, "layers", "1").await?;
        let base = registry
            .push(&sample::busybox()?.pack(), "busybox", "1")
            .await?;
        let armed = tempfile::tempdir()?;
        // Plugins run under uids of their own, and whoever strikes removes the file.
        fs::set_permissions(armed.path(), Permissions::from_mode(0o777))?;
        let setup = Setup::default()
            .config(RESTARTS)
            .env("GANTRY_FAULTS", &armed.path().display().to_string());
        let node = Node::start_with(setup).await?;
        node.pull(&base).await?;
        let mut story = Self {
            keyed: Keyed::new(node.client(), "points"),
            registry,
            node,
            packed,
            base,
            image,
            armed,
            calm: BTreeSet::new(),
            number: 0,
        };
        story.calm = story.left().await?;
        Ok(story)
    }

    /// Everything of the namespace, by kind and name.
    async fn left(&self) -> Outcome<BTreeSet<String>> {
        let kinds = [
            ("/leases", "id"),
            ("/ingests", "ref"),
            ("/content", "digest"),
            ("/snapshots/overlayfs", "key"),
            ("/images", "name"),
            ("/containers", "id"),
            ("/tasks", "id"),
        ];
        let mut left = BTreeSet::new();
        for (kind, name) in kinds {
            for row in self.node.list(kind).await? {
                left.insert(format!("{kind} {}", row[name].as_str().unwrap_or("?")));
            }
        }
        Ok(left)
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Outcome<Response> {
        let path = match path.starts_with("/v1/") {
            true => path.to_owned(),
            false => self.node.at(path),
        };
        Ok(self.keyed.send(&method, &path, body).await?.response)
    }

    async fn post(&mut self, path: &str, body: impl Into<Body>) -> Outcome<Response> {
        self.send(Method::POST, path, body).await
    }

    async fn delete(&mut self, path: &str) -> Outcome<Response> {
        self.send(Method::DELETE, path, ()).await
    }

    /// Arms a point, does its work, and looks at what came of it.
    async fn strike(&mut self, point: &str, work: Work) -> Outcome {
        self.number += 1;
        if work == Work::Sweep {
            self.pulled().await?;
        }
        let arm = self.armed.path().join(point);
        fs::write(&arm, "kill")?;
        match work {
            Work::Pull => self.pulled().await?,
            Work::Resume => self.resumed().await?,
            Work::Cancel => self.cancelled().await?,
            Work::Import => self.imported().await?,
            Work::Export => self.exported().await?,
            Work::Push => self.pushed().await?,
            Work::Create => self.created().await?,
            Work::Run => self.ran().await?,
            Work::Undo => self.undone().await?,
            Work::Bytes => self.bytes().await?,
            Work::Sweep => {}
            Work::Scrub => self.scrubbed().await?,
        }
        let image = self.image.clone();
        for name in [image.as_str(), "example.org/imported:1"] {
            let gone = self.delete(&format!("/images/{name}")).await?;
            if !matches!(gone.status.as_u16(), 204 | 404) {
                return Err(gone.text().into());
            }
        }
        self.post("/v1/gc", ()).await?.ok()?;
        if arm.exists() {
            fs::remove_file(&arm)?;
            return Err(format!("{work:?} did not pass it").into());
        }
        let calm = self.calm.clone();
        let same = until("nothing is left", SOON, async || {
            // A collector or an operation that was struck at its very end is still at it.
            let left = self.left().await.ok()?;
            if left != calm {
                self.post("/v1/gc", ()).await.ok()?;
            }
            (left == calm).then_some(())
        });
        if same.await.is_err() {
            let left = self.left().await?;
            let more: Vec<&String> = left.difference(&self.calm).collect();
            let less: Vec<&String> = self.calm.difference(&left).collect();
            return Err(format!("left behind {more:?}, missing {less:?}").into());
        }
        Ok(())
    }

    async fn pulled(&mut self) -> Outcome {
        let body = json!({"ref": self.image, "plain_http": true});
        let pulled = self.post("/images:pull?wait=true", body).await?.ok()?;
        match pulled["snapshot"] == self.packed.chain_id() {
            true => Ok(()),
            false => Err(format!("pulled {pulled}").into()),
        }
    }

    /// Dies when it has begun, and again when it is picked up.
    async fn resumed(&mut self) -> Outcome {
        fs::write(self.armed.path().join("operations.start.journaled"), "kill")?;
        self.pulled().await
    }

    /// Is cancelled in the middle.
    async fn cancelled(&mut self) -> Outcome {
        let relay = Relay::held(self.registry.address(), usize::MAX, 0).await?;
        let body = json!({"ref": format!("{}/layers:1", relay.address()), "plain_http": true});
        let begun = self.post("/images:pull", body).await?.ok()?;
        let place = format!(
            "/v1/operations/{}",
            begun["id"].as_str().unwrap_or_default()
        );
        let ended = self.delete(&place).await?.ok()?;
        // A successor that finds it interrupted does not know that it was to be cancelled: the client asks again.
        let ended = match ended["state"].as_str() {
            Some("running") => self.delete(&place).await?.ok()?,
            _ => ended,
        };
        match ended["state"].as_str() {
            Some("cancelled") => Ok(()),
            _ => Err(format!("cancelled, and is {ended}").into()),
        }
    }

    /// A live archive cannot be read twice: it is taken in, or refused and leaves nothing.
    async fn imported(&mut self) -> Outcome {
        let archive = self.packed.oci_layout("example.org/imported:1");
        let body = Body::of("application/x-tar", archive);
        let answer = self.post("/images:import?wait=true", body).await?;
        match answer.status.as_u16() {
            200 => Ok(()),
            409 if answer
                .text()
                .contains("neither its credentials nor its archive") =>
            {
                Ok(())
            }
            _ => Err(answer.text().into()),
        }
    }

    /// As an import; a reader that got some bytes already sees the connection break, and repeats.
    async fn exported(&mut self) -> Outcome {
        let path = self.node.at("/images:export");
        let body = json!({"images": [self.base]});
        let mut tries = 0;
        until("an archive is written", SOON, async || {
            tries += 1;
            let key = format!("export-{}-{tries}", self.number);
            let answer = self
                .keyed
                .repeat(&key, &Method::POST, &path, body.clone())
                .await
                .ok()?;
            answer.response.status.is_success().then_some(())
        })
        .await
    }

    async fn pushed(&mut self) -> Outcome {
        let body = json!({"image": self.base, "plain_http": true});
        self.post("/images:push?wait=true", body)
            .await?
            .ok()
            .map(drop)
    }

    async fn created(&mut self) -> Outcome {
        let body = json!({"id": "one", "image": self.base, "args": ["true"]});
        let made = self.post("/containers", body).await?.ok()?;
        assert_eq!(made["id"], "one");
        self.delete("/containers/one").await?.ok().map(drop)
    }

    async fn ran(&mut self) -> Outcome {
        let body =
            json!({"id": "one", "image": self.base, "args": ["sh", "-c", "echo once; exit 3"]});
        let ran = self.post("/containers:run?wait=exit", body).await?.ok()?;
        let said = self.node.logs("one").await?;
        if ran["exit_code"] != 3 || said != "once\n" {
            return Err(format!("ran {ran}, said {said:?}").into());
        }
        self.delete("/containers/one").await?.ok().map(drop)
    }

    async fn undone(&mut self) -> Outcome {
        let body = json!({"id": "one", "image": self.base, "args": ["/no/such/program"]});
        let refused = self.post("/containers:run?wait=exit", body).await?;
        match refused.status.is_client_error() || refused.status.is_server_error() {
            true => Ok(()),
            false => Err(format!("ran {}", refused.text()).into()),
        }
    }

    async fn bytes(&mut self) -> Outcome {
        let bytes = format!("bytes {}", self.number);
        for name in ["kept", "dropped"] {
            let whole = Body::of("application/octet-stream", bytes.clone());
            self.send(Method::PUT, &format!("/ingests/{name}"), whole)
                .await?
                .ok()?;
        }
        let blob = self.post("/ingests/kept:commit", ()).await?.ok()?;
        self.delete("/ingests/dropped").await?.ok()?;
        let digest = blob["digest"].as_str().unwrap_or_default().to_owned();
        self.delete(&format!("/content/{digest}"))
            .await?
            .ok()
            .map(drop)
    }

    /// Everything that a scrub can mend is wrong, and is right afterwards.
    async fn scrubbed(&mut self) -> Outcome {
        let root = self.node.root();
        fs::write(root.join("content/local/blobs/sha256/junk"), "nobody's")?;
        let folders = root.join("snapshots/overlayfs/snapshots");
        fs::create_dir_all(folders.join("999999/fs"))?;
        for folder in fs::read_dir(&folders)? {
            let tool = folder?.path().join("fs/bin/busybox");
            if tool.exists() {
                fs::write(tool, "no program")?;
            }
        }
        let mended = self
            .post("/v1/scrub?wait=true&repair=true", ())
            .await?
            .ok()?;
        let clean = self.post("/v1/scrub?wait=true", ()).await?.ok()?;
        match clean["found"] == 0 {
            true => Ok(()),
            false => Err(format!("{mended} and then {clean}").into()),
        }
    }
}

#[actix_rt::test]
async fn work_finishes_or_is_undone_wherever_its_plugin_dies() -> Outcome {
    let mut story = Story::begin().await?;
    let only = std::env::var("GANTRY_POINT").unwrap_or_default();
    let mut wrong = Vec::new();
    for point in points()?.iter().filter(|point| point.contains(&only)) {
        let Some((_, work)) = WORK.iter().find(|(prefix, _)| point.starts_with(prefix)) else {
            wrong.push(format!("{point}: which work passes it?"));
            continue;
        };
        if let Err(error) = story.strike(point, *work).await {
            wrong.push(format!("{point}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    story.node.stop_clean().await
}
