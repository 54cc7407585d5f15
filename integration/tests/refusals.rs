//! A wrong request gets the right status, the right code, and a sentence that helps.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hyper::Method;
use integration::Outcome;
use integration::http::{Body, Response};
use integration::image::{Compression, Entry, Layer, Packed, PackedLayer, sample};
use integration::node::{Node, Setup};
use integration::registry::Registry;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Checks a problem document: status and code, and that its sentence has what helps.
fn assert_refused(what: &str, answer: &Response, wanted: (u16, &str), says: &[&str]) {
    let text = answer.text();
    let code = answer
        .refusal(wanted.0)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(code, wanted.1, "{what}: {text}");
    let problem: Value = answer.json().unwrap_or_default();
    let detail = problem["detail"].as_str().unwrap_or_default();
    for part in says {
        assert!(
            detail.contains(part),
            "{what}: {part:?} is missing in: {detail}"
        );
    }
    assert!(
        !detail.ends_with('.') && !detail.contains('\n'),
        "{what}: {detail}"
    );
    assert_eq!(problem["status"], wanted.0, "{what}");
}

const INVALID: (u16, &str) = (400, "INVALID_ARGUMENT");
const MISSING: (u16, &str) = (404, "NOT_FOUND");
const EXISTS: (u16, &str) = (409, "ALREADY_EXISTS");
const PRECONDITION: (u16, &str) = (409, "FAILED_PRECONDITION");
const RANGE: (u16, &str) = (416, "OUT_OF_RANGE");

/// Whoever asks for something that can have no meaning is told which part of it.
#[actix_rt::test]
async fn what_has_no_meaning_is_named() -> Outcome {
    let node = Node::start().await?;
    let post = async |path: &str, body: Value| node.post(&node.at(path), body).await;
    for (path, body, says) in [
        (
            "/images:pull",
            json!({"ref": "a", "plane_http": true}),
            vec!["plane_http", "plain_http"],
        ),
        ("/images:pull", json!({"plain_http": true}), vec!["ref"]),
        ("/images:pull", json!({"ref": 7}), vec!["string"]),
        (
            "/images:pull?wait=true",
            json!({"ref": "UPPER/Case"}),
            vec!["UPPER/Case", "lowercase"],
        ),
        (
            "/images:pull?wait=true",
            json!({"ref": "a@sha256:12"}),
            vec!["sha256:12"],
        ),
        (
            "/images:pull?wait=maybe",
            json!({"ref": "a"}),
            vec!["wait=maybe", "true"],
        ),
        (
            "/images:pull?wiat=true",
            json!({"ref": "a"}),
            vec!["wiat", "wait"],
        ),
        (
            "/containers:run",
            json!({"id": "a b", "image": "a"}),
            vec!["a b", "letters"],
        ),
        (
            "/containers:run",
            json!({"id": "a", "image": "a", "memory": 5}),
            vec!["memory"],
        ),
        ("/containers:run", json!({"id": "a"}), vec!["image"]),
        (
            "/leases",
            json!({"id": "a", "expires_in": "soon"}),
            vec!["soon", "u64"],
        ),
    ] {
        let answer = post(path, body.clone()).await?;
        assert_refused(&format!("{path} {body}"), &answer, INVALID, &says);
    }
    let broken = Body::of("application/json", "{\"ref\": ");
    let answer = node.post(&node.at("/images:pull"), broken).await?;
    assert_refused("half a body", &answer, INVALID, &["body", "EOF"]);
    for (path, says) in [
        (node.at("/content/sha256:xyz"), vec!["sha256:xyz", "hex"]),
        (node.at("/content/md5:00"), vec!["md5", "sha256"]),
        (node.at("/content?limit=many"), vec!["limit=many", "number"]),
        (node.at("/images?filter=name=="), vec!["name=="]),
        ("/v1/namespaces/a..b/images".into(), vec!["a..b"]),
        ("/v1/plugins/Nobody".into(), vec!["Nobody", "service/id"]),
        ("/v1/events?since=yesterday".into(), vec!["since=yesterday"]),
    ] {
        assert_refused(&path, &node.get(&path).await?, INVALID, &says);
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn what_is_not_there_is_named() -> Outcome {
    let node = Node::start().await?;
    let digest = format!("sha256:{}", "0".repeat(64));
    for (path, says) in [
        (
            node.at("/images/docker.io/library/nothing:1"),
            "docker.io/library/nothing:1",
        ),
        (node.at("/containers/nobody"), "nobody"),
        (node.at("/tasks/nobody"), "nobody"),
        (node.at("/tasks/nobody/logs"), "nobody"),
        (node.at("/leases/nobody"), "nobody"),
        (node.at("/snapshots/overlayfs/nobody"), "nobody"),
        (node.at("/snapshots/zfs"), "overlayfs"),
        (node.at("/ingests/nobody"), "nobody"),
        (node.at(&format!("/content/{digest}")), &digest),
        ("/v1/plugins/content/remote".into(), "content/local"),
        ("/v1/operations/nothing".into(), "nothing"),
        ("/v1/nothing".into(), "/v1"),
    ] {
        assert_refused(&path, &node.get(&path).await?, MISSING, &[says]);
    }
    let body = json!({"id": "one", "image": "docker.io/library/nothing:1", "pull": "never"});
    let answer = node
        .post(&node.at("/containers:run?wait=true"), body)
        .await?;
    assert_refused(
        "run without an image",
        &answer,
        MISSING,
        &["nothing:1", "pull"],
    );
    let wrong = node
        .client()
        .send(Method::DELETE, "/v1/version", ())
        .await?;
    assert_eq!(wrong.status.as_u16(), 405, "{}", wrong.text());
    assert!(wrong.header("allow").contains("GET"));
    node.stop_clean().await
}

#[actix_rt::test]
async fn what_does_not_fit_what_is_there_is_a_conflict() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    node.run("one", &name, &["sh", "-c", "while :; do sleep 1; done"])
        .await?;
    let run = async |body: Value| {
        node.post(&node.at("/containers:run?wait=started"), body)
            .await
    };
    let taken = run(json!({"id": "one", "image": name, "args": ["true"]})).await?;
    assert_refused("a taken id", &taken, EXISTS, &["one"]);
    let running = node.delete(&node.at("/containers/one")).await?;
    assert_refused(
        "deleting what runs",
        &running,
        PRECONDITION,
        &["one", "force"],
    );
    let space = format!("/v1/namespaces/{}", node.namespace());
    let full = node.delete(&space).await?;
    assert_refused("a full namespace", &full, PRECONDITION, &["container"]);

    let unknown = json!({"id": "two", "image": name, "args": ["no-such-program"]});
    assert_refused(
        "no program",
        &run(unknown).await?,
        PRECONDITION,
        &["no-such-program"],
    );
    let user = json!({"id": "two", "image": name, "user": "nobody-here"});
    assert_refused(
        "no user",
        &run(user).await?,
        INVALID,
        &["nobody-here", "passwd"],
    );
    let caps = json!({"id": "two", "image": name, "caps": {"add": ["FLY"]}});
    assert_refused("no capability", &run(caps).await?, INVALID, &["FLY"]);
    let mount = json!({"id": "two", "image": name, "args": ["true"],
        "mounts": [{"source": "/no/such/folder", "destination": "/x"}]});
    let answer = run(mount).await?;
    assert!(answer.status.is_client_error(), "{}", answer.text());
    assert!(
        answer.text().contains("/no/such/folder"),
        "{}",
        answer.text()
    );
    // What could not be run left nothing: the id is free.
    run(json!({"id": "two", "image": name, "args": ["true"]}))
        .await?
        .ok()?;

    let stale = node
        .client()
        .clone()
        .with_header("if-match", "\"99\"")?
        .send(Method::DELETE, &node.at(&format!("/images/{name}")), ())
        .await?;
    assert_refused("a stale version", &stale, (412, "ABORTED"), &["99"]);
    node.remove("one").await?;
    node.remove("two").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn bytes_that_are_not_what_they_should_be_are_not_taken() -> Outcome {
    let node = Node::start().await?;
    let put = async |range: &str| {
        let client = node.client().clone().with_header("content-range", range)?;
        let body = Body::of("application/octet-stream", "hello");
        client
            .send(Method::PUT, &node.at("/ingests/one"), body)
            .await
    };
    put("bytes 0-4/*").await?.ok()?;
    let late = put("bytes 7-11/12").await?;
    assert_refused("a hole", &late, RANGE, &["7", "5 bytes"]);
    let commit = async |body: Value| node.post(&node.at("/ingests/one:commit"), body).await;
    let short = commit(json!({"size": 10})).await?;
    assert_refused("a wrong size", &short, PRECONDITION, &["size", "5", "10"]);
    let digest = format!("sha256:{}", "0".repeat(64));
    let other = commit(json!({"digest": digest})).await?;
    assert_refused(
        "a wrong digest",
        &other,
        PRECONDITION,
        &[&digest, "2cf24dba"],
    );
    // They could never become right, so they are gone.
    put("bytes 0-4/*").await?.ok()?;
    commit(json!({"size": 5})).await?.ok()?;
    let blob = node.list("/content").await?[0]["digest"].to_string();
    let path = node.at(&format!("/content/{}", blob.trim_matches('"')));
    let beyond = node.client().clone().with_header("range", "bytes=9-")?;
    let answer = beyond.send(Method::GET, &path, ()).await?;
    assert_refused("a range beyond", &answer, RANGE, &["5 bytes"]);
    node.stop_clean().await
}

async fn pull(node: &Node, name: &str) -> Outcome<Response> {
    let body = json!({"ref": name, "plain_http": true});
    node.post(&node.at("/images:pull?wait=true"), body).await
}

/// A node that is not patient, so that its refusals come soon.
async fn impatient() -> Outcome<Node> {
    let config = "[plugins.\"transfer/local\"]\ntries = 2\nretry_pause_ms = 5";
    Node::start_with(Setup::default().config(config)).await
}

#[actix_rt::test]
async fn a_registry_that_does_not_help_is_named_with_what_it_did() -> Outcome {
    let registry = Registry::start_private("anna", "geheim").await?;
    let image = sample::busybox()?.pack();
    let private = registry.push(&image, "busybox", "1").await?;
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let node = impatient().await?;
    let answer = pull(&node, &format!("{closed}/busybox:1")).await?;
    let says = [closed.to_string(), "refused".to_owned()];
    let says: Vec<&str> = says.iter().map(String::as_str).collect();
    assert_refused("nobody listens", &answer, (503, "UNAVAILABLE"), &says);
    let answer = pull(&node, &private).await?;
    assert_refused(
        "no password",
        &answer,
        (401, "UNAUTHENTICATED"),
        &["password", "none were given"],
    );
    let auth = json!({"username": "anna", "password": "geheim"});
    let body = json!({"ref": registry.name("busybox:2"), "plain_http": true, "auth": auth});
    let answer = node.post(&node.at("/images:pull?wait=true"), body).await?;
    assert_refused("no such tag", &answer, MISSING, &["busybox", "\"2\""]);
    let answer = pull(&node, "no-such-host.invalid/busybox:1").await?;
    assert_refused(
        "no such host",
        &answer,
        (503, "UNAVAILABLE"),
        &["no-such-host.invalid"],
    );
    node.stop_clean().await
}

/// An image of busybox and one more layer, whose digest is returned too.
fn with_layer(layer: PackedLayer) -> Outcome<(Packed, String)> {
    let digest = integration::image::sha256(&layer.bytes);
    Ok((sample::busybox()?.layer(layer).pack(), digest))
}

/// What happens to the bytes that a registry stores.
type Change = fn(&mut Vec<u8>);

#[actix_rt::test]
async fn a_damaged_layer_is_refused_and_a_later_pull_is_whole() -> Outcome {
    let layer = || {
        let content = sample::Random(1).content(1 << 20);
        Layer::new()
            .with(&Entry::file("file", content))
            .pack(Compression::Gzip)
    };
    let node = impatient().await?;
    let changes: [(&str, Change); 2] = [
        ("changed", |bytes| bytes[1000] ^= 1),
        ("truncated", |bytes| bytes.truncate(1000)),
    ];
    for (what, change) in changes {
        let registry = Registry::start().await?;
        let (image, digest) = with_layer(layer()?)?;
        let name = registry.push(&image, what, "1").await?;
        let whole = image.blobs[&digest].clone();
        registry.damage(&digest, change)?;
        let answer = pull(&node, &name).await?;
        assert_refused(
            what,
            &answer,
            (500, "DATA_LOSS"),
            &[&digest, &registry.address().to_string()],
        );
        let missing = node.get(&node.at(&format!("/images/{name}"))).await?;
        assert_eq!(missing.refusal(404)?, "NOT_FOUND", "{what}");

        registry.damage(&digest, |bytes| *bytes = whole.to_vec())?;
        assert_eq!(
            pull(&node, &name).await?.ok()?["snapshot"],
            image.chain_id()
        );
        node.delete(&node.at(&format!("/images/{name}")))
            .await?
            .ok()?;
        node.collect().await?;
        assert_eq!(node.list("/content").await?.len(), 0, "{what}");
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_layer_that_is_no_archive_or_not_the_one_of_the_config_is_refused() -> Outcome {
    let registry = Registry::start().await?;
    let node = impatient().await?;
    let good = Layer::new()
        .with(&Entry::file("file", "x"))
        .pack(Compression::Gzip)?;
    let (mut garbage, mut cut, mut other) = (good.clone(), good.clone(), good.clone());
    garbage.bytes = b"this is neither gzip nor tar".as_slice().into();
    cut.bytes = good.bytes.slice(..good.bytes.len() / 2);
    other.diff_id = format!("sha256:{}", "0".repeat(64));
    for (what, layer) in [("garbage", garbage), ("cut", cut), ("other", other)] {
        let (image, digest) = with_layer(layer)?;
        let name = registry.push(&image, what, "1").await?;
        let answer = pull(&node, &name).await?;
        let status = answer.status.as_u16();
        assert!(
            [400, 409, 500].contains(&status),
            "{what}: {}",
            answer.text()
        );
        assert!(answer.text().contains(&digest), "{what}: {}", answer.text());
    }
    node.collect().await?;
    assert_eq!(node.list("/snapshots/overlayfs").await?.len(), 0);
    node.stop_clean().await
}

/// A file system of a few megabytes, unmounted at the end.
struct Small(TempDir);

impl Small {
    fn new(size: &str) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("g-small-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let options = format!("size={size},mode=0755");
        let none = MsFlags::empty();
        mount(
            Some("none"),
            folder.path(),
            Some("tmpfs"),
            none,
            Some(options.as_str()),
        )?;
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[actix_rt::test]
async fn a_full_disk_is_told_and_the_node_goes_on_when_there_is_room() -> Outcome {
    let registry = Registry::start().await?;
    let zeros = Layer::new().with(&Entry::file("zeros", vec![0; 80 << 20]));
    // The first one does not fit as it comes, the second one only when it is unpacked.
    let (stored, _) = with_layer(zeros.clone().pack(Compression::Plain)?)?;
    let (unpacked, _) = with_layer(zeros.pack(Compression::Zstd)?)?;
    let small = Small::new("64m")?;
    let root = small.path().join("root");
    let setup = Setup::default().arg("--root").arg(&root.to_string_lossy());
    let node = Node::start_with(setup).await?;
    for (what, image) in [("stored", stored), ("unpacked", unpacked)] {
        let name = registry.push(&image, what, "1").await?;
        let answer = pull(&node, &name).await?;
        assert_refused(what, &answer, (429, "RESOURCE_EXHAUSTED"), &["space"]);
        node.collect().await?;
    }
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    pull(&node, &name).await?.ok()?;
    node.run("one", &name, &["echo", "hi"]).await?;
    assert_eq!(node.exit_code("one").await?, 0);
    node.remove("one").await?;
    node.stop_clean().await
}
