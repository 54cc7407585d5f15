//! Long work: it goes on after any crash, it can be stopped, and whatever ends early leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use integration::Outcome;
use integration::image::{Compression, Entry, Image, Layer, Packed, sample};
use integration::node::Node;
use integration::process::until;
use integration::registry::Registry;
use integration::relay::Relay;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

const SOON: Duration = Duration::from_secs(30);
/// What a pull needs before its first layer: documents and their headers.
const DOCUMENTS: usize = 1 << 20;

/// An image behind a line that lets through as much as a story wants.
struct Line {
    registry: Registry,
    relay: Relay,
    image: Packed,
    name: String,
}

impl Line {
    async fn start() -> Outcome<Self> {
        let registry = Registry::start().await?;
        let image = sample::layers(5, 80 << 20)?;
        registry.push(&image, "layers", "1").await?;
        let relay = Relay::held(registry.address(), usize::MAX, 0).await?;
        Ok(Self {
            name: format!("{}/layers:1", relay.address()),
            registry,
            relay,
            image,
        })
    }
}

async fn with_image() -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    Ok((registry, node, name))
}

/// Begins work and returns the place of its operation.
async fn begin(node: &Node, path: &str, body: Value) -> Outcome<String> {
    let begun = node.post(&node.at(path), body).await?.ok()?;
    let id = begun["id"].as_str().ok_or("no id")?;
    Ok(format!("/v1/operations/{id}"))
}

async fn ended(node: &Node, operation: &str) -> Outcome<Value> {
    node.get(&format!("{operation}?wait=true")).await?.json()
}

/// Bytes of all parts that came in so far.
async fn moved(node: &Node, operation: &str) -> Option<u64> {
    let now = node.get(operation).await.ok()?.ok().ok()?;
    let parts = now["progress"].as_array()?;
    Some(
        parts
            .iter()
            .filter_map(|part| part["offset"].as_u64())
            .sum(),
    )
}

/// Waits until layers are on their way.
async fn under_way(node: &Node, operation: &str) -> Outcome {
    until("layers are on their way", SOON, async || {
        let ingests = node.list("/ingests").await.ok()?;
        let snapshots = node.list("/snapshots/overlayfs").await.ok()?;
        let some = moved(node, operation).await? > 0;
        (some && !ingests.is_empty() && !snapshots.is_empty()).then_some(())
    })
    .await
}

/// Everything of the node's namespace that work may leave, by kind and name.
async fn left(node: &Node) -> Outcome<BTreeSet<String>> {
    let kinds = [
        ("/leases", "id"),
        ("/ingests", "ref"),
        ("/content", "digest"),
        ("/snapshots/overlayfs", "key"),
        ("/snapshots/native", "key"),
        ("/images", "name"),
        ("/containers", "id"),
        ("/tasks", "id"),
    ];
    let mut left = BTreeSet::new();
    for (kind, name) in kinds {
        for row in node.list(kind).await? {
            left.insert(format!("{kind} {}", row[name].as_str().unwrap_or("?")));
        }
    }
    Ok(left)
}

/// Waits until the driver has no directory but those of its snapshots.
async fn no_trees(node: &Node, snapshots: usize) -> Outcome {
    let root = node.root().join("snapshots/overlayfs");
    let count = |folder: &str| {
        fs::read_dir(root.join(folder))
            .into_iter()
            .flatten()
            .count()
    };
    until("the trees are gone", SOON, async || {
        (count("snapshots") == snapshots && count("removing") == 0).then_some(())
    })
    .await
}

/// One digest over all files that the layers brought, as a container sees them.
async fn seen(node: &Node, id: &str, image: &str, snapshotter: &str) -> Outcome<String> {
    let script = "find /layer* -type f | sort | xargs sha256sum | sha256sum";
    let body = json!({
        "id": id, "image": image, "snapshotter": snapshotter, "args": ["sh", "-c", script],
    });
    node.run_with(body).await?;
    assert_eq!(node.exit_code(id).await?, 0);
    let seen = node.logs(id).await?;
    node.remove(id).await?;
    Ok(seen)
}

#[actix_rt::test]
async fn one_pull_outlives_the_death_of_everybody_who_works_on_it() -> Outcome {
    let (line, node) = (Line::start().await?, Node::start().await?);
    line.relay.let_pass(DOCUMENTS);
    let body = json!({"ref": line.name, "plain_http": true});
    let operation = begin(&node, "/images:pull", body).await?;
    under_way(&node, &operation).await?;
    for plugin in [
        "operations/local",
        "transfer/local",
        "diff/local",
        "snapshots/overlayfs",
        "content/local",
        "leases/local",
        "gateway/http",
    ] {
        let killed = node.kill(plugin).await?;
        node.until_ready_after(killed).await?;
        let before = moved(&node, &operation).await;
        line.relay.let_pass(2 << 20);
        // A successor begins to count anew.
        let mut looks = 0;
        until("it moves again", SOON, async || {
            looks += 1;
            if looks % 50 == 0 {
                // Every layer's pipe may have died full: what was lost is brought again.
                line.relay.let_pass(2 << 20);
            }
            let now = moved(&node, &operation).await;
            (now > Some(0) && now != before).then_some(())
        })
        .await
        .map_err(|error| format!("{plugin}: {error}"))?;
    }
    line.relay.open();
    let done = ended(&node, &operation).await?;
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(done["result"]["snapshot"], line.image.chain_id(), "{done}");
    let rows = node.list("/snapshots/overlayfs").await?;
    assert!(
        rows.iter().all(|row| row["kind"] == "committed"),
        "{rows:?}"
    );
    no_trees(&node, rows.len()).await?;
    // The other driver unpacks it anew, undisturbed.
    let disturbed = seen(&node, "a", &line.name, "overlayfs").await?;
    assert_eq!(disturbed, seen(&node, "b", &line.name, "native").await?);

    node.delete(&node.at(&format!("/images/{}", line.name)))
        .await?
        .ok()?;
    node.collect().await?;
    assert_eq!(left(&node).await?, BTreeSet::new());
    drop(line.registry);
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_cancelled_pull_leaves_nothing_and_its_watchers_hear_of_it() -> Outcome {
    let (line, node) = (Line::start().await?, Node::start().await?);
    line.relay.let_pass(DOCUMENTS);
    let body = json!({"ref": line.name, "plain_http": true});
    let operation = begin(&node, "/images:pull", body).await?;
    under_way(&node, &operation).await?;
    let watching = node
        .client()
        .stream(Method::GET, &operation, "application/x-ndjson", ())
        .await;
    let mut watching = watching?;
    // Two who cancel both get the end.
    let (one, two) = tokio::join!(node.delete(&operation), node.delete(&operation));
    for cancelled in [one?.ok()?, two?.ok()?] {
        assert_eq!(cancelled["state"], "cancelled", "{cancelled}");
    }
    let last = watching
        .find(SOON, |record| {
            record.data["type"] == "error" || record.event == "error"
        })
        .await?;
    assert!(last.data.to_string().contains("CANCELLED"), "{}", last.data);

    let left_now = left(&node).await?;
    let only_content = left_now.iter().all(|row| row.starts_with("/content "));
    assert!(only_content, "{left_now:?}");
    node.collect().await?;
    assert_eq!(left(&node).await?, BTreeSet::new());
    no_trees(&node, 0).await?;
    line.relay.open();
    node.pull(&line.name).await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_cancelled_pull_does_not_disturb_another_of_the_same_image() -> Outcome {
    let (line, node) = (Line::start().await?, Node::start().await?);
    line.relay.let_pass(DOCUMENTS);
    let body = json!({"ref": line.name, "plain_http": true});
    let first = begin(&node, "/images:pull", body.clone()).await?;
    under_way(&node, &first).await?;
    let second = begin(&node, "/images:pull", body.clone()).await?;
    let third = begin(&node, "/images:pull", body).await?;
    until("the others wait for the same blobs", SOON, async || {
        let leases = node.list("/leases").await.ok()?;
        (leases.len() == 3).then_some(())
    })
    .await?;
    assert_eq!(node.delete(&first).await?.ok()?["state"], "cancelled");
    // What the first committed has no other holder than those who found it.
    node.collect().await?;
    line.relay.open();
    for operation in [second, third] {
        let done = ended(&node, &operation).await?;
        assert_eq!(done["state"], "done", "{done}");
        assert_eq!(done["result"]["snapshot"], line.image.chain_id());
    }
    node.collect().await?;
    let disturbed = seen(&node, "a", &line.name, "overlayfs").await?;
    assert_eq!(disturbed, seen(&node, "b", &line.name, "native").await?);
    node.delete(&node.at(&format!("/images/{}", line.name)))
        .await?
        .ok()?;
    node.collect().await?;
    assert_eq!(left(&node).await?, BTreeSet::new());
    node.stop_clean().await
}

#[actix_rt::test]
async fn an_image_that_goes_while_it_is_pulled_again_is_whole_in_the_end() -> Outcome {
    let (line, node) = (Line::start().await?, Node::start().await?);
    line.relay.open();
    node.pull(&line.name).await?;
    let (image, body) = (
        node.at(&format!("/images/{}", line.name)),
        json!({"ref": line.name, "plain_http": true}),
    );
    for _ in 0..10 {
        let again = begin(&node, "/images:pull", body.clone()).await?;
        // It may be gone when the pull has already named it again and another deleted it.
        let _ = node.delete(&image).await?;
        node.collect().await?;
        let done = ended(&node, &again).await?;
        assert_eq!(done["state"], "done", "{done}");
        if !node.get(&image).await?.status.is_success() {
            node.pull(&line.name).await?;
        }
        let content = node.list("/content").await?.len();
        let snapshots = node.list("/snapshots/overlayfs").await?.len();
        assert_eq!((content, snapshots), (8, 6), "of one image with six layers");
    }
    seen(&node, "a", &line.name, "overlayfs").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_run_that_is_cancelled_at_any_point_leaves_nothing() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let before = left(&node).await?;
    let (mut cancelled, mut done) = (0, 0);
    for delay in 0..24 {
        let body =
            json!({"id": "one", "image": name, "args": ["sh", "-c", "while :; do sleep 1; done"]});
        let run = begin(&node, "/containers:run?wait=false", body).await?;
        for _ in 0..delay {
            node.get("/v1/version").await?;
        }
        let end = node.delete(&run).await?.ok()?;
        match end["state"].as_str() {
            Some("cancelled") => cancelled += 1,
            Some("done") => {
                done += 1;
                node.remove("one").await?;
            }
            _ => return Err(format!("neither cancelled nor done: {end}").into()),
        }
        assert_eq!(left(&node).await?, before, "after {delay} requests");
    }
    println!("{cancelled} cancelled, {done} were faster");
    assert!(cancelled > 0);
    node.run("one", &name, &["true"]).await?;
    node.remove("one").await?;
    node.stop_clean().await
}

/// Paths below a folder that end with a name.
fn found(folder: &Path, name: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries {
        if entry.file_name() == name {
            found.push(entry.path().display().to_string());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(self::found(&entry.path(), name));
        }
    }
    found
}

#[actix_rt::test]
async fn a_run_that_fails_leaves_nothing_and_its_id_is_free() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let before = left(&node).await?;
    for wrong in [
        json!({"id": "odd-one", "image": name, "args": ["/no/such/program"]}),
        json!({"id": "odd-one", "image": name, "args": ["sh"], "user": "nobody-knows"}),
        json!({"id": "odd-one", "image": name, "args": ["sh"], "runtime": "io.no.such.v2"}),
        json!({"id": "odd-one", "image": "127.0.0.1:1/none:1", "args": ["sh"]}),
        json!({"id": "odd-one", "image": name, "args": ["sh"], "snapshotter": "none"}),
    ] {
        let refused = node
            .post(&node.at("/containers:run?wait=started"), wrong)
            .await?;
        assert!(refused.status.is_client_error() || refused.status.is_server_error());
        assert_eq!(left(&node).await?, before, "{}", refused.text());
        let bundles = node.state().join("tasks/local/bundles");
        until("the bundle is gone", SOON, async || {
            found(&bundles, "odd-one").is_empty().then_some(())
        })
        .await?;
        let cgroups = Path::new("/sys/fs/cgroup");
        let of = |kind: &str| {
            cgroups
                .join(kind)
                .join("gantry")
                .join(node.namespace())
                .join("odd-one")
        };
        assert!(
            !of("").exists() && !of("memory").exists(),
            "{}",
            refused.text()
        );
    }
    node.run("odd-one", &name, &["true"]).await?;
    assert_eq!(node.exit_code("odd-one").await?, 0);
    node.remove("odd-one").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn whoever_comes_second_is_refused_and_harms_nothing() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let body =
        json!({"id": "one", "image": name, "args": ["sh", "-c", "while :; do sleep 1; done"]});
    let path = node.at("/containers:run?wait=started");
    for _ in 0..8 {
        let bodies = [body.clone(), body.clone(), body.clone()];
        let [a, b, c] = bodies.map(|body| node.post(&path, body));
        let (a, b, c) = tokio::join!(a, b, c);
        let mut good = 0;
        for answer in [a?, b?, c?] {
            if answer.status.is_success() {
                good += 1;
            } else {
                assert_eq!(answer.refusal(409)?, "ALREADY_EXISTS");
            }
        }
        assert_eq!(good, 1);
        let late = node.post(&path, body.clone()).await?;
        assert_eq!(late.refusal(409)?, "ALREADY_EXISTS");
        let create = node
            .post(&node.at("/containers?wait=true"), body.clone())
            .await?;
        assert_eq!(create.refusal(409)?, "ALREADY_EXISTS");
        // The first has its files, and they are its own.
        assert_eq!(
            node.exec("one", &["sh", "-c", "echo x >/root/x && cat /root/x"])
                .await?,
            (0, "x\n".into())
        );
        let refused = node.delete(&node.at("/containers/one")).await?;
        assert_eq!(refused.refusal(409)?, "FAILED_PRECONDITION");
        assert_eq!(node.task("one").await?["status"], "running");
        node.remove("one").await?;
        assert!(node.list("/leases").await?.is_empty());
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_pull_under_a_lease_of_the_user_is_held_by_it() -> Outcome {
    let (line, node) = (Line::start().await?, Node::start().await?);
    line.relay.open();
    node.post(&node.at("/leases"), json!({"id": "mine"}))
        .await?
        .ok()?;
    let client = node.client().clone().with_header("gantry-lease", "mine")?;
    let body = json!({"ref": line.name, "plain_http": true});
    client
        .send(Method::POST, &node.at("/images:pull?wait=true"), body)
        .await?
        .ok()?;
    node.delete(&node.at(&format!("/images/{}", line.name)))
        .await?
        .ok()?;
    node.collect().await?;
    assert_eq!(node.list("/content").await?.len(), 8);
    assert_eq!(node.list("/snapshots/overlayfs").await?.len(), 6);
    node.delete(&node.at("/leases/mine")).await?.ok()?;
    node.collect().await?;
    assert_eq!(left(&node).await?, BTreeSet::new());
    node.stop_clean().await
}

#[actix_rt::test]
async fn an_image_with_the_same_layer_again_and_again_is_pulled_by_many() -> Outcome {
    let registry = Registry::start().await?;
    let base = sample::busybox_layer()?.pack(Compression::Gzip)?;
    let empty = Layer::new().pack(Compression::Gzip)?;
    let mark = Layer::new()
        .with(&Entry::file("mark", "x"))
        .pack(Compression::Zstd)?;
    let mut image = Image::new().layer(base);
    for _ in 0..4 {
        image = image.layer(empty.clone()).layer(mark.clone());
    }
    let image = image.pack();
    let names = ["one", "two", "three"];
    let mut pulls = Vec::new();
    let node = Node::start().await?;
    for name in names {
        let name = registry.push(&image, name, "1").await?;
        for _ in 0..2 {
            let body = json!({"ref": name, "plain_http": true});
            pulls.push(begin(&node, "/images:pull", body).await?);
        }
    }
    for operation in pulls {
        let done = ended(&node, &operation).await?;
        assert_eq!(done["state"], "done", "{done}");
        assert_eq!(done["result"]["snapshot"], image.chain_id());
    }
    node.collect().await?;
    let name = registry.name("two:1");
    node.run("one", &name, &["cat", "/mark"]).await?;
    assert_eq!(node.exit_code("one").await?, 0);
    node.remove("one").await?;
    for name in names {
        let name = registry.name(&format!("{name}:1"));
        node.delete(&node.at(&format!("/images/{name}")))
            .await?
            .ok()?;
    }
    node.collect().await?;
    assert_eq!(left(&node).await?, BTreeSet::new());
    node.stop_clean().await
}

/// Pulls, runs and deletes names of its own, which share their layers with those of everybody else.
async fn busy(node: &Node, names: &[String], number: usize, until: Instant) -> Outcome<usize> {
    let (drivers, mut turns) = (["overlayfs", "native"], 0);
    while Instant::now() < until {
        let name = &names[(number + turns) % names.len()];
        let (id, own) = (
            format!("box-{number}"),
            format!("docker.io/r/own-{number}:{turns}"),
        );
        node.pull(name).await?;
        // Only its own name is its own: the one that was pulled may go at any time.
        let tag = node.at(&format!("/images/{name}:tag"));
        let tagged = node.post(&tag, json!({"name": own})).await?;
        if tagged.status.is_success() {
            let body = json!({
                "id": id, "image": own, "pull": "never", "args": ["cat", "/mark"],
                "snapshotter": drivers[turns % 2],
            });
            node.run_with(body)
                .await
                .map_err(|error| format!("{own}: {error}"))?;
            node.delete(&node.at(&format!("/images/{own}")))
                .await?
                .ok()?;
            assert_eq!(node.exit_code(&id).await?, 0, "{}", node.logs(&id).await?);
            node.remove(&id).await?;
        }
        let _ = node.delete(&node.at(&format!("/images/{name}"))).await?;
        turns += 1;
    }
    Ok(turns)
}

#[actix_rt::test]
async fn nothing_is_lost_while_many_pull_run_and_delete_against_collections() -> Outcome {
    let (registry, node) = (Registry::start().await?, Node::start().await?);
    let base = sample::busybox_layer()?.pack(Compression::Gzip)?;
    let mark = Layer::new()
        .with(&Entry::file("mark", "x"))
        .pack(Compression::Gzip)?;
    let mut names = Vec::new();
    for number in 0..3 {
        let entry = Entry::file(&format!("only-{number}"), "x");
        let own = Layer::new().with(&entry).pack(Compression::Gzip)?;
        let image = Image::new()
            .layer(base.clone())
            .layer(mark.clone())
            .layer(own);
        names.push(
            registry
                .push(&image.pack(), &format!("image-{number}"), "1")
                .await?,
        );
    }
    let until = Instant::now() + Duration::from_secs(8);
    let collecting = async {
        let mut rounds = 0;
        while Instant::now() < until {
            node.collect().await?;
            rounds += 1;
        }
        Ok::<_, integration::Error>(rounds)
    };
    let busy = |number| busy(&node, &names, number, until);
    let (rounds, a, b, c) = tokio::join!(collecting, busy(0), busy(1), busy(2));
    let (rounds, turns) = (rounds?, a? + b? + c?);
    println!("{turns} turns against {rounds} collections");
    assert!(rounds > 3 && turns > 3);
    for name in names {
        let _ = node.delete(&node.at(&format!("/images/{name}"))).await?;
    }
    node.collect().await?;
    assert_eq!(left(&node).await?, BTreeSet::new());
    node.stop_clean().await
}

#[actix_rt::test]
async fn an_archive_that_breaks_off_leaves_nothing() -> Outcome {
    let node = Node::start().await?;
    let archive = sample::layers(3, 24 << 20)?.oci_layout("r/broken:1");
    let path = node.at("/images:import");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: gantry\r\ncontent-type: application/x-tar\r\ncontent-length: {}\r\n\r\n",
        archive.len()
    );
    let mut line = UnixStream::connect(node.state().join("gantry.sock")).await?;
    line.write_all(head.as_bytes()).await?;
    line.write_all(&archive[..archive.len() * 2 / 3]).await?;
    until("it is being stored", SOON, async || {
        let ingests = node.list("/ingests").await.ok()?;
        (!ingests.is_empty()).then_some(())
    })
    .await?;
    drop(line);
    until("it has failed", SOON, async || {
        let list = node.get("/v1/operations").await.ok()?.ok().ok()?;
        (list["items"][0]["state"] == "failed").then_some(())
    })
    .await?;
    let left_now = left(&node).await?;
    let only_content = left_now.iter().all(|row| row.starts_with("/content "));
    assert!(only_content, "{left_now:?}");
    node.collect().await?;
    assert_eq!(left(&node).await?, BTreeSet::new());
    node.stop_clean().await
}

/// Files below a folder that hold any of some texts.
fn holding(folder: &Path, texts: &[&[u8]]) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut holding = Vec::new();
    for entry in entries {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => holding.extend(self::holding(&path, texts)),
            Ok(kind) if kind.is_file() => {
                let bytes = fs::read(&path).unwrap_or_default();
                let holds = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
                if texts.iter().any(|text| holds(text)) {
                    holding.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
    holding
}

#[actix_rt::test]
async fn a_password_is_nowhere_and_a_crash_with_one_leaves_nothing() -> Outcome {
    let (user, password) = ("alice", "correct-horse-battery-staple");
    let registry = Registry::start_private(user, password).await?;
    let image = sample::layers(2, 8 << 20)?;
    registry.push(&image, "layers", "1").await?;
    let relay = Relay::held(registry.address(), usize::MAX, 0).await?;
    let name = format!("{}/layers:1", relay.address());
    let node = Node::start().await?;
    let with = |password: &str| {
        let auth = json!({"username": user, "password": password});
        json!({"ref": name, "plain_http": true, "auth": auth})
    };
    relay.let_pass(DOCUMENTS);
    let operation = begin(&node, "/images:pull", with(password)).await?;
    under_way(&node, &operation).await?;
    let killed = node.kill("operations/local").await?;
    node.until_ready_after(killed).await?;
    let failed = ended(&node, &operation).await?;
    assert_eq!(failed["state"], "failed", "{failed}");
    assert_eq!(failed["error"]["code"], "ABORTED", "{failed}");
    let left_now = left(&node).await?;
    let harmless = left_now
        .iter()
        .all(|row| row.starts_with("/content ") || row.starts_with("/ingests "));
    assert!(harmless, "{left_now:?}");

    relay.open();
    let pull = node.at("/images:pull?wait=true");
    let wrong = node.post(&pull, with("wrong-horse")).await?;
    assert_eq!(wrong.refusal(401)?, "UNAUTHENTICATED");
    node.post(&pull, with(password)).await?.ok()?;
    node.post(&node.at("/images:push?wait=true"), with(password))
        .await?;

    let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let texts = [
        password.as_bytes(),
        basic.as_bytes(),
        b"wrong-horse".as_slice(),
    ];
    assert_eq!(holding(node.folder(), &texts), Vec::<String>::new());
    let folder = node.stop_and_keep().await?;
    assert_eq!(holding(folder.path(), &texts), Vec::<String>::new());
    Ok(())
}
