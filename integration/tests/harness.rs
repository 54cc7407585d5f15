//! The harness itself: what it builds is what other programs understand.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use integration::Outcome;
use integration::containerd::Containerd;
use integration::http::Client;
use integration::image::{
    Compression, Dialect, Entry, Image, Layer, Packed, index, sample, sha256,
};
use integration::process::{run, until};
use integration::registry::Registry;
use integration::relay::Relay;

/// A layer with one member of each kind that tar knows.
fn everything() -> Layer {
    usual().with(&Entry::sparse(
        "d/holes",
        1 << 20,
        &[(4096, &[1; 512]), (1 << 19, &[2; 512])],
    ))
}

/// A layer with one member of each kind that containerd knows.
fn usual() -> Layer {
    Layer::new()
        .with(&Entry::dir("d").mode(0o2750).owner(7, 8))
        .with(
            &Entry::file("d/file", "hello")
                .mode(0o4755)
                .owner(1000, 100)
                .mtime(1_000_000_000),
        )
        .with(&Entry::hard_link("d/hard", "d/file"))
        .with(&Entry::symlink("d/soft", "../nowhere"))
        .with(&Entry::fifo("d/fifo"))
        .with(&Entry::char_device("d/null", 1, 3))
        .with(&Entry::block_device("d/loop", 7, 300))
        .with(&Entry::file(&format!("d/{}", "long".repeat(50)), "long"))
        .with(&Entry::file("short", "pax").pax("path", "d/päx".as_bytes()))
        .with(
            &Entry::file("d/ping", "")
                .xattr("user.colour", b"blue")
                .capabilities(1 << 13),
        )
        .with(&Entry::whiteout("d/gone"))
        .with(&Entry::opaque("d"))
}

/// Unpacks with the system's tar, which understands all of it.
fn unpack(layer: &[u8], folder: &Path) -> Outcome {
    let archive = folder.join("layer.tar");
    fs::write(&archive, layer)?;
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-C"])
        .arg(folder)
        .arg("-xf")
        .arg(&archive))?;
    Ok(())
}

#[test]
fn a_layer_holds_every_kind_of_entry_as_tar_understands_it() -> Outcome {
    let folder = tempfile::tempdir()?;
    let layer = everything().pack(Compression::Plain)?;
    assert_eq!(layer.diff_id, sha256(&layer.bytes));
    unpack(&layer.bytes, folder.path())?;
    let format = "%n %F %a %u:%g %s %h";
    let files = [
        "d",
        "d/file",
        "d/fifo",
        "d/null",
        "d/loop",
        "d/päx",
        "d/holes",
        "d/.wh.gone",
        "d/.wh..wh..opq",
    ];
    let seen = run(Command::new("stat")
        .args(["-c", format])
        .args(files)
        .current_dir(&folder))?;
    let seen = String::from_utf8(seen)?;
    for line in [
        "d directory 2750 7:8",
        "d/file regular file 4755 1000:100 5 2",
        "d/fifo fifo 644",
        "d/null character special file 666",
        "d/loop block special file 660",
        "d/päx regular file 644 0:0 3",
        "d/holes regular file 644 0:0 1048576",
        "d/.wh.gone regular empty file",
        "d/.wh..wh..opq regular empty file",
    ] {
        assert!(seen.contains(line), "{line} is missing in\n{seen}");
    }
    assert_eq!(
        fs::read_link(folder.path().join("d/soft"))?,
        Path::new("../nowhere")
    );
    assert_eq!(
        fs::read(folder.path().join("d").join("long".repeat(50)))?,
        b"long"
    );
    let holes = fs::read(folder.path().join("d/holes"))?;
    assert_eq!(
        (
            holes[4095],
            holes[4096],
            holes[1 << 19],
            holes[(1 << 19) + 512]
        ),
        (0, 1, 2, 0)
    );
    let attributes = run(Command::new("getfattr")
        .args(["-d", "-m", "-", "d/ping"])
        .current_dir(&folder))?;
    let attributes = String::from_utf8(attributes)?;
    assert!(attributes.contains("user.colour=\"blue\""), "{attributes}");
    assert!(
        attributes.contains("security.capability=0sAQAAAgAgAAA"),
        "{attributes}"
    );
    Ok(())
}

/// Asks skopeo, a stranger, what it finds under a name.
fn inspect(name: &str, more: &[&str]) -> Outcome<serde_json::Value> {
    let mut command = Command::new("skopeo");
    command
        .args(["inspect", "--tls-verify=false"])
        .args(more)
        .arg(format!("docker://{name}"));
    Ok(serde_json::from_slice(&run(&mut command)?)?)
}

#[actix_rt::test]
async fn a_pushed_image_is_understood_by_a_stranger() -> Outcome {
    let registry = Registry::start().await?;
    for (tag, dialect) in [("oci", Dialect::Oci), ("docker", Dialect::Docker)] {
        let image = sample::busybox()?
            .layer(everything().pack(Compression::Gzip)?)
            .dialect(dialect)
            .pack();
        let name = registry.push(&image, "library/busybox", tag).await?;
        let seen = inspect(&name, &[])?;
        assert_eq!(seen["Digest"], image.root.digest);
        assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(2));
        assert_eq!(seen["Env"][0], "PATH=/bin");
    }
    Ok(())
}

#[actix_rt::test]
async fn a_private_registry_wants_its_password() -> Outcome {
    let registry = Registry::start_private("anna", "geheim").await?;
    let image = sample::busybox()?.pack();
    let name = registry.push(&image, "private/busybox", "1").await?;
    assert!(inspect(&name, &["--no-creds"]).is_err());
    assert!(inspect(&name, &["--creds", "anna:falsch"]).is_err());
    assert_eq!(
        inspect(&name, &["--creds", "anna:geheim"])?["Digest"],
        image.root.digest
    );
    Ok(())
}

fn two_platforms() -> Outcome<Packed> {
    let one = |platform| -> Outcome<Packed> {
        let layer = Layer::new()
            .with(&Entry::file("platform", platform))
            .pack(Compression::Zstd)?;
        Ok(Image::new().platform(platform).layer(layer).pack())
    };
    Ok(index(
        Dialect::Oci,
        vec![one("linux/amd64")?, one("linux/arm/v7")?],
    ))
}

#[actix_rt::test]
async fn an_index_offers_its_platforms() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry.push(&two_platforms()?, "two", "1").await?;
    let arm = [
        "--override-os=linux",
        "--override-arch=arm",
        "--override-variant=v7",
    ];
    assert_eq!(inspect(&name, &arm)?["Architecture"], "arm");
    assert_eq!(
        inspect(&name, &["--override-arch=amd64"])?["Architecture"],
        "amd64"
    );
    assert!(inspect(&name, &["--override-arch=s390x"]).is_err());
    Ok(())
}

#[actix_rt::test]
async fn a_stopped_registry_refuses_and_comes_back_with_its_content() -> Outcome {
    let mut registry = Registry::start().await?;
    let name = registry.push(&two_platforms()?, "two", "1").await?;
    registry.stop().await?;
    assert!(
        Client::tcp(registry.address())
            .send(hyper::Method::GET, "/v2/", ())
            .await
            .is_err()
    );
    registry.resume().await?;
    assert_eq!(
        inspect(&name, &["--override-arch=amd64"])?["Architecture"],
        "amd64"
    );
    Ok(())
}

#[test]
fn archives_are_understood_by_a_stranger() -> Outcome {
    let folder = tempfile::tempdir()?;
    let image = sample::busybox()?.pack();
    let name = "example.org/busybox:1";
    for (kind, archive) in [
        ("oci-archive", image.oci_layout(name)),
        ("docker-archive", image.docker_archive(name)?),
    ] {
        let path = folder.path().join(kind);
        fs::write(&path, archive)?;
        let seen = run(Command::new("skopeo")
            .arg("inspect")
            .arg(format!("{kind}:{}", path.display())))?;
        let seen: serde_json::Value = serde_json::from_slice(&seen)?;
        assert_eq!(seen["Env"][0], "PATH=/bin", "{kind}");
    }
    Ok(())
}

#[test]
fn a_filled_image_is_the_same_every_time_and_compresses_to_about_a_third() -> Outcome {
    let (one, two) = (sample::layers(3, 3 << 20)?, sample::layers(3, 3 << 20)?);
    assert_eq!(one.root, two.root);
    assert_eq!(one.diff_ids.len(), 4);
    let busybox = sample::busybox()?.pack().size();
    let share = (one.size() - busybox) * 100 / (3 << 20);
    assert!((25..45).contains(&share), "{share} %");
    Ok(())
}

#[actix_rt::test]
async fn a_wait_ends_with_an_error_that_names_what_did_not_come() -> Outcome {
    let missed = until("the moon answers", Duration::from_millis(1), async || {
        None::<()>
    })
    .await;
    let error = missed.expect_err("nothing came").to_string();
    assert!(error.starts_with("the moon answers: not within"), "{error}");
    Ok(())
}

#[actix_rt::test]
async fn the_peer_pulls_and_runs_a_built_image() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::busybox()?
        .layer(usual().pack(Compression::Zstd)?)
        .pack();
    let name = registry.push(&image, "library/busybox", "1").await?;
    let mut peer = Containerd::start(&std::env::temp_dir()).await?;
    peer.run(&["images", "pull", "--plain-http", &name])?;
    assert_eq!(
        peer.run(&["run", "--rm", &name, "one", "/bin/echo", "hi"])?,
        "hi\n"
    );
    assert!(
        peer.run(&["snapshots", "list"])?
            .contains(&image.chain_id())
    );
    let recipe = peer.recipe(&name, &image.chain_id(), &["/bin/sh", "-c", "exit 7"])?;
    let mut grpc = peer.grpc().await?;
    assert_eq!(
        (
            grpc.run("two", &recipe).await?,
            grpc.run("three", &recipe).await?
        ),
        (7, 7)
    );
    peer.restart().await?;
    assert!(peer.run(&["images", "list", "--quiet"])?.contains(&name));
    Ok(())
}

#[actix_rt::test]
async fn a_relay_cuts_a_download_as_often_as_told() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::busybox()?.pack();
    registry.push(&image, "cut", "1").await?;
    let (digest, bytes) = image
        .blobs
        .iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .ok_or("no blob")?;
    let relay = Relay::start(registry.address(), bytes.len() / 2, 2).await?;
    let client = Client::tcp(relay.address());
    let path = format!("/v2/cut/blobs/{digest}");
    for cuts in 1..=2 {
        assert!(client.send(hyper::Method::GET, &path, ()).await.is_err());
        assert_eq!(relay.cuts(), cuts);
    }
    assert_eq!(
        client.send(hyper::Method::GET, &path, ()).await?.body,
        bytes
    );
    Ok(())
}
