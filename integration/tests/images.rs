//! Images come in as registries and archives have them, and look from inside a container as they were built.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use hyper::Method;
use integration::Outcome;
use integration::http::{Body, Client};
use integration::image::{Compression, Dialect, Entry, Image, Layer, Packed, index, sample};
use integration::node::{Node, Setup};
use integration::registry::Registry;
use integration::relay::Relay;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Runs a command in a fresh container to its end and returns what it wrote.
async fn output(node: &Node, image: &str, id: &str, args: &[&str]) -> Outcome<String> {
    node.run(id, image, args).await?;
    let code = node.exit_code(id).await?;
    let log = node.logs(id).await?;
    node.remove(id).await?;
    match code {
        0 => Ok(log),
        _ => Err(format!("{args:?} ended with {code}: {log}").into()),
    }
}

/// An image that tells itself apart: `/mark` holds `mark`.
fn marked(mark: &str) -> Outcome<Image> {
    let layer = Layer::new().with(&Entry::file("mark", mark));
    Ok(sample::busybox()?.layer(layer.pack(Compression::Gzip)?))
}

/// The lower layer holds what the upper one changes.
fn lower() -> Layer {
    Layer::new()
        .with(&Entry::dir("a").mode(0o750).owner(7, 8))
        .with(&Entry::file("a/keep", "keep"))
        .with(&Entry::file("a/gone", "gone"))
        .with(&Entry::dir("a/tree"))
        .with(&Entry::file("a/tree/leaf", "leaf"))
        .with(&Entry::dir("opaque"))
        .with(&Entry::file("opaque/old", "old"))
        .with(&Entry::dir("opaque/deep"))
        .with(&Entry::file("opaque/deep/old", "old"))
        .with(&Entry::file("becomes-dir", "file"))
        .with(&Entry::dir("becomes-file"))
        .with(&Entry::file("becomes-file/inside", "inside"))
        .with(&Entry::file("changed", "one"))
}

fn upper() -> Layer {
    Layer::new()
        .with(&Entry::whiteout("a/gone"))
        .with(&Entry::whiteout("a/tree"))
        .with(&Entry::dir("opaque"))
        .with(&Entry::opaque("opaque"))
        .with(&Entry::file("opaque/new", "new"))
        .with(&Entry::dir("becomes-dir"))
        .with(&Entry::file("becomes-dir/inside", "inside"))
        .with(&Entry::file("becomes-file", "file"))
        .with(&Entry::file("changed", "two").mode(0o4755).owner(1000, 100))
        .with(&Entry::dir("hard"))
        .with(&Entry::file("hard/one", "linked"))
        .with(&Entry::hard_link("hard/two", "hard/one"))
        .with(&Entry::symlink("soft", "hard/one"))
        .with(&Entry::fifo("pipe"))
        .with(&Entry::char_device("null", 1, 3))
        .with(&Entry::file(
            &format!("hard/{}", "long".repeat(50)),
            "long name",
        ))
        .with(&Entry::file("short", "pax").pax("path", "hard/päx".as_bytes()))
        .with(&Entry::sparse("sparse", 1 << 20, &[(4096, &[1; 512])]))
        .with(&Entry::file("ping", "").capabilities(1 << 13))
}

const LOOK: &str = "
    find /a /opaque /becomes-dir /becomes-file | sort
    cat /a/keep /opaque/new /soft /hard/two /hard/päx /hard/long*; echo
    stat -c '%n %F %a %u:%g' /a
    stat -c '%n %F %a %u:%g %h %s' /changed /hard/one /soft /pipe /null /sparse
    [ /hard/one -ef /hard/two ] && echo one file
    touch /a/gone && ls /a
";

const SEEN: &str = "/a
/a/keep
/becomes-dir
/becomes-dir/inside
/becomes-file
/opaque
/opaque/new
keepnewlinkedlinkedpaxlong name
/a directory 750 7:8
/changed regular file 4755 1000:100 1 3
/hard/one regular file 644 0:0 2 6
/soft symbolic link 777 0:0 1 8
/pipe fifo 644 0:0 1 0
/null character special file 666 0:0 1 0
/sparse regular file 644 0:0 1 1048576
one file
gone
keep
";

#[actix_rt::test]
async fn layers_add_change_hide_and_link_as_they_say() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::busybox()?
        .layer(lower().pack(Compression::Zstd)?)
        .layer(upper().pack(Compression::Plain)?)
        .pack();
    let name = registry.push(&image, "layers", "1").await?;
    let node = Node::start().await?;
    for driver in ["overlayfs", "native"] {
        let body = json!({"ref": name, "snapshotter": driver});
        let pulled = node
            .post(&node.at("/images:pull?wait=true"), body)
            .await?
            .ok()?;
        assert_eq!(pulled["snapshot"], image.chain_id());
        let options =
            json!({"id": driver, "image": name, "snapshotter": driver, "args": ["sh", "-c", LOOK]});
        node.run_with(options).await?;
        node.exit_code(driver).await?;
        assert_eq!(node.logs(driver).await?, SEEN, "{driver}");
        node.remove(driver).await?;
    }
    node.stop_clean().await
}

async fn pull_with(node: &Node, name: &str, auth: Value) -> Outcome<(u16, Value)> {
    let body = json!({"ref": name, "plain_http": true, "auth": auth});
    let answer = node.post(&node.at("/images:pull?wait=true"), body).await?;
    Ok((answer.status.as_u16(), answer.json()?))
}

#[actix_rt::test]
async fn a_private_registry_opens_to_the_right_password_only() -> Outcome {
    let registry = Registry::start_private("anna", "geheim").await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "private/busybox", "1")
        .await?;
    let node = Node::start().await?;
    for (auth, says) in [
        (Value::Null, "password"),
        (json!({"username": "anna", "password": "falsch"}), "anna"),
    ] {
        let (status, problem) = pull_with(&node, &name, auth).await?;
        assert_eq!((status, &problem["code"]), (401, &"UNAUTHENTICATED".into()));
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            detail.contains(says) && !detail.contains("falsch"),
            "{detail}"
        );
    }
    let (status, pulled) = pull_with(
        &node,
        &name,
        json!({"username": "anna", "password": "geheim"}),
    )
    .await?;
    assert_eq!(status, 200, "{pulled}");
    assert_eq!(output(&node, &name, "one", &["echo", "hi"]).await?, "hi\n");
    assert!(!node.log().contains("geheim") && !node.log().contains("falsch"));
    assert_eq!(files_with(&node.root(), b"geheim")?, Vec::<String>::new());
    node.stop_clean().await
}

/// Lists the files below a folder that contain some bytes.
fn files_with(folder: &std::path::Path, wanted: &[u8]) -> Outcome<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            found.extend(files_with(&path, wanted)?);
        } else if kind.is_file()
            && fs::read(&path)?
                .windows(wanted.len())
                .any(|part| part == wanted)
        {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

fn two_platforms() -> Outcome<(Packed, Packed, Packed)> {
    let here = marked("here")?.pack();
    let there = marked("there")?.platform("linux/arm/v7").pack();
    let both = index(Dialect::Oci, vec![there.clone(), here.clone()]);
    Ok((both, here, there))
}

#[actix_rt::test]
async fn an_index_yields_the_platform_of_this_machine_or_the_one_asked_for() -> Outcome {
    let registry = Registry::start().await?;
    let (both, here, there) = two_platforms()?;
    let name = registry.push(&both, "two", "1").await?;
    let node = Node::start().await?;
    let pulled = node.pull(&name).await?;
    assert_eq!(pulled["target"]["digest"], both.root.digest);
    assert_eq!(pulled["snapshot"], here.chain_id());
    assert_eq!(
        output(&node, &name, "one", &["cat", "/mark"]).await?,
        "here"
    );

    let lacking = node
        .get(&node.at(&format!("/content/{}", there.root.digest)))
        .await?;
    assert_eq!(lacking.refusal(404)?, "NOT_FOUND");
    let body = json!({"ref": name, "platform": "linux/arm/v7"});
    let pulled = node
        .post(&node.at("/images:pull?wait=true"), body)
        .await?
        .ok()?;
    assert_eq!(pulled["snapshot"], there.chain_id());

    let body = json!({"ref": name, "platform": "linux/s390x"});
    let missing = node.post(&node.at("/images:pull?wait=true"), body).await?;
    assert_eq!(missing.refusal(404)?, "NOT_FOUND");
    assert!(
        missing.text().contains("linux/arm/v7"),
        "{}",
        missing.text()
    );
    node.stop_clean().await
}

#[actix_rt::test]
async fn an_image_of_docker_is_an_image() -> Outcome {
    let registry = Registry::start().await?;
    let image = marked("docker")?.dialect(Dialect::Docker).pack();
    let list = index(Dialect::Docker, vec![image.clone()]);
    let node = Node::start().await?;
    for (tag, packed) in [("manifest", &image), ("list", &list)] {
        let name = registry.push(packed, "docker", tag).await?;
        let pulled = node.pull(&name).await?;
        assert_eq!(pulled["target"]["digest"], packed.root.digest);
        assert_eq!(
            output(&node, &name, tag, &["cat", "/mark"]).await?,
            "docker"
        );
    }
    node.stop_clean().await
}

/// A folder with rules for registries, and a node that reads it.
async fn with_rules() -> Outcome<(TempDir, Node)> {
    let rules = tempfile::tempdir()?;
    fs::set_permissions(rules.path(), Permissions::from_mode(0o755))?;
    let config = format!(
        "[plugins.\"transfer/local\"]\nconfig_path = {:?}",
        rules.path()
    );
    let node = Node::start_with(Setup::default().config(&config)).await?;
    Ok((rules, node))
}

fn mirror(rules: &TempDir, registry: &str, mirror: SocketAddr) -> Outcome {
    let folder = rules.path().join(registry);
    fs::create_dir_all(&folder)?;
    let text = format!(
        "server = \"https://{registry}\"\n\n[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    Ok(fs::write(folder.join("hosts.toml"), text)?)
}

#[actix_rt::test]
async fn mirrors_are_read_anew_without_a_restart() -> Outcome {
    let (first, second) = (Registry::start().await?, Registry::start().await?);
    let (one, two) = (marked("first")?.pack(), marked("second")?.pack());
    first.push(&one, "library/busybox", "1").await?;
    second.push(&two, "library/busybox", "1").await?;
    let (rules, node) = with_rules().await?;
    let name = "registry.invalid/library/busybox:1";
    for (registry, image) in [(&first, &one), (&second, &two)] {
        mirror(&rules, "registry.invalid", registry.address())?;
        let pulled = node.pull(name).await?;
        assert_eq!(pulled["target"]["digest"], image.root.digest);
        assert_eq!(pulled["name"], name);
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_download_that_is_cut_again_and_again_goes_on_where_it_was() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::busybox()?.pack();
    registry.push(&image, "cut", "1").await?;
    let largest = image.blobs.values().map(|blob| blob.len()).max();
    // Whoever began anew after each cut would never see the end of the largest layer.
    let every = largest.unwrap_or_default() / 4;
    let relay = Relay::start(registry.address(), every, 1000).await?;
    let config = "[plugins.\"transfer/local\"]\nretry_pause_ms = 5";
    let node = Node::start_with(Setup::default().config(config)).await?;
    let name = format!("{}/cut:1", relay.address());
    node.pull(&name).await?;
    assert!(relay.cuts() >= 3, "{} cuts", relay.cuts());
    assert_eq!(output(&node, &name, "one", &["echo", "hi"]).await?, "hi\n");
    node.stop_clean().await
}

async fn import(node: &Node, archive: Vec<u8>) -> Outcome<Value> {
    let body = Body::of("application/x-tar", archive);
    node.post(&node.at("/images:import?wait=true"), body)
        .await?
        .ok()
}

#[actix_rt::test]
async fn an_archive_of_either_kind_is_imported_and_runs() -> Outcome {
    let node = Node::start().await?;
    let image = marked("archive")?.pack();
    for (id, archive) in [
        ("oci", image.oci_layout("example.org/oci:1")),
        ("docker", image.docker_archive("example.org/docker:1")?),
    ] {
        let name = format!("example.org/{id}:1");
        let imported = import(&node, archive).await?;
        assert_eq!(imported[0]["name"], name, "{imported}");
        assert_eq!(
            output(&node, &name, id, &["cat", "/mark"]).await?,
            "archive"
        );
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn what_is_exported_can_be_imported_after_everything_else_is_gone() -> Outcome {
    let registry = Registry::start().await?;
    let (both, ..) = two_platforms()?;
    let name = registry.push(&both, "two", "1").await?;
    let node = Node::start().await?;
    let body = json!({"ref": name, "all_platforms": true});
    node.post(&node.at("/images:pull?wait=true"), body)
        .await?
        .ok()?;
    let exported = node
        .post(&node.at("/images:export"), json!({"images": [name]}))
        .await?;
    assert_eq!(exported.header("content-type"), "application/x-tar");

    node.delete(&node.at(&format!("/images/{name}")))
        .await?
        .ok()?;
    node.collect().await?;
    assert_eq!(node.list("/content").await?.len(), 0);

    let imported = import(&node, exported.body.to_vec()).await?;
    assert_eq!(imported[0]["name"], name);
    assert_eq!(imported[0]["target"]["digest"], both.root.digest);
    assert_eq!(
        output(&node, &name, "one", &["cat", "/mark"]).await?,
        "here"
    );
    node.stop_clean().await
}

async fn push(node: &Node, image: &str, auth: Value) -> Outcome<Value> {
    let body = json!({"image": image, "plain_http": true, "auth": auth});
    node.post(&node.at("/images:push?wait=true"), body)
        .await?
        .ok()
}

#[actix_rt::test]
async fn a_tagged_image_is_pushed_to_another_registry() -> Outcome {
    let (open, private) = (
        Registry::start().await?,
        Registry::start_private("anna", "geheim").await?,
    );
    let image = marked("pushed")?.pack();
    let name = open.push(&image, "busybox", "1").await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    let target = private.name("team/busybox:2");
    node.post(
        &node.at(&format!("/images/{name}:tag")),
        json!({"name": target}),
    )
    .await?
    .ok()?;
    let refused = push(&node, &target, Value::Null).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("UNAUTHENTICATED")));
    push(
        &node,
        &target,
        json!({"username": "anna", "password": "geheim"}),
    )
    .await?;
    let stored = Client::tcp(private.address())
        .with_header("authorization", "Basic YW5uYTpnZWhlaW0=")?
        .with_header("accept", &image.root.media_type)?
        .send(Method::GET, "/v2/team/busybox/manifests/2", ())
        .await?;
    assert_eq!(
        stored.header("docker-content-digest"),
        image.root.digest,
        "{}",
        stored.text()
    );
    node.stop_clean().await
}

/// A short name that a client made before names were read as users type them.
async fn put_raw(node: &Node, name: &str, target: &Value) -> Outcome {
    let path = format!("/v1/call/images.put?namespace={}", node.namespace());
    let body = json!({"name": name, "target": target, "labels": {}});
    node.post(&path, body).await?.ok().map(drop)
}

#[actix_rt::test]
async fn a_short_name_means_the_same_image_everywhere() -> Outcome {
    let registry = Registry::start().await?;
    let image = marked("short")?.pack();
    let name = registry.push(&image, "busybox", "1").await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    let tag = node.at(&format!("/images/{name}:tag"));
    let tagged = node.post(&tag, json!({"name": "copy"})).await?.ok()?;
    let full = "docker.io/library/copy:latest";
    assert_eq!(tagged["name"], full);
    let again = node.post(&tag, json!({"name": "copy"})).await?;
    assert_eq!(again.refusal(409)?, "ALREADY_EXISTS");

    let at = |rest: &str| node.at(&format!("/images/{rest}"));
    assert_eq!(node.get(&at("copy")).await?.ok()?["name"], full);
    assert!(node.get(&at("copy/usage")).await?.ok()?["content"].is_u64());
    assert!(node.get(&at("copy/config")).await?.ok()?["rootfs"].is_object());
    let unpacked = node.post(&at("copy:unpack?wait=true"), json!({})).await?;
    assert_eq!(unpacked.ok()?["name"], full);
    let labels = json!({"labels": {"a": "b"}});
    assert_eq!(node.patch(&at("copy"), labels).await?.ok()?["name"], full);
    let run = json!({"id": "one", "image": "copy", "pull": "never", "args": ["cat", "/mark"]});
    node.run_with(run).await?;
    assert_eq!(node.exit_code("one").await?, 0);
    node.remove("one").await?;
    let body = json!({"target": tagged["target"], "labels": {"put": "yes"}});
    let put = node.put(&at("copy"), body.clone()).await?.ok()?;
    assert_eq!(
        (&put["name"], &put["labels"]["put"]),
        (&full.into(), &"yes".into())
    );
    let fresh = node.put(&at("fresh:2"), body.clone()).await?.ok()?;
    assert_eq!(fresh["name"], "docker.io/library/fresh:2");
    node.delete(&at("copy")).await?.ok()?;
    assert_eq!(node.get(&at(full)).await?.refusal(404)?, "NOT_FOUND");
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_name_that_is_there_as_it_was_given_comes_before_its_full_form() -> Outcome {
    let registry = Registry::start().await?;
    let (raw, other) = (marked("raw")?.pack(), marked("other")?.pack());
    let node = Node::start().await?;
    let raw_name = registry.push(&raw, "raw", "1").await?;
    let target = node.pull(&raw_name).await?["target"].clone();
    put_raw(&node, "copy", &target).await?;
    let other_name = registry.push(&other, "other", "1").await?;
    let second = node.pull(&other_name).await?["target"].clone();
    put_raw(&node, "docker.io/library/copy:latest", &second).await?;

    let at = |rest: &str| node.at(&format!("/images/{rest}"));
    let shown = node.get(&at("copy")).await?.ok()?;
    assert_eq!(
        (&shown["name"], &shown["target"]),
        (&"copy".into(), &target)
    );
    let unpacked = node
        .post(&at("copy:unpack?wait=true"), json!({}))
        .await?
        .ok()?;
    assert_eq!(
        (&unpacked["name"], &unpacked["target"]),
        (&"copy".into(), &target)
    );
    assert_eq!(
        output(&node, "copy", "one", &["cat", "/mark"]).await?,
        "raw"
    );
    let labels = json!({"labels": {"a": "b"}});
    assert_eq!(node.patch(&at("copy"), labels).await?.ok()?["name"], "copy");
    let body = json!({"target": second});
    assert_eq!(node.put(&at("copy"), body).await?.ok()?["name"], "copy");
    node.delete(&at("copy")).await?.ok()?;
    let left = node.get(&at("copy")).await?.ok()?;
    assert_eq!(left["name"], "docker.io/library/copy:latest");
    put_raw(&node, "An Image", &target).await?;
    assert_eq!(node.get(&at("An%20Image")).await?.ok()?["name"], "An Image");
    node.stop_clean().await
}
