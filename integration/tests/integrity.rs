//! Whatever happens to the files of blobs and layers, a scrub names it, nobody is given wrong bytes, and a pull repairs it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper::Method;
use integration::Outcome;
use integration::image::{Compression, Entry, Layer, Packed, sample, sample::Random};
use integration::node::{Node, Setup};
use integration::registry::Registry;
use serde_json::Value;

/// Layers of the image whose blobs are damaged.
const BLOBS: usize = 16;
/// Faults in the files of layers, in each round.
const FAULTS: usize = 45;
/// The seed, or what the variable of this name says.
const SEED: &str = "GANTRY_SEED";

/// An image of many small blobs, none of which another image has.
fn many_blobs() -> Outcome<Packed> {
    let mut image = integration::image::Image::new();
    for number in 0..BLOBS {
        let content = Random(number as u64 + 1000).content(20_000);
        let layer = Layer::new().with(&Entry::file(&format!("blob{number}"), content));
        image = image.layer(layer.pack(Compression::Gzip)?);
    }
    Ok(image.pack())
}

async fn scrub(node: &Node, query: &str) -> Outcome<Value> {
    let path = format!("/v1/scrub?wait=true&timeout=300{query}");
    node.post(&path, ()).await?.ok()
}

/// What a scrub named: `blob sha256:…`, `layer /path`, `leftover …`.
fn named(scrub: &Value) -> BTreeSet<String> {
    let findings = scrub["findings"].as_array().cloned().unwrap_or_default();
    let name = |finding: &Value| {
        let (damage, subject) = (&finding["damage"], &finding["subject"]);
        let (damage, subject) = (damage.as_str()?, subject.as_str()?);
        Some(match damage {
            "layer" => format!("layer {}", subject.split_once(" /")?.1),
            "missing" | "blob" => format!("blob {subject}"),
            _ => format!("{damage} {subject}"),
        })
    };
    findings.iter().filter_map(name).collect()
}

/// Does something without leaving a trace in the times of the folder around, as rot does.
fn silently(path: &Path, change: impl FnOnce() -> std::io::Result<()>) -> Outcome {
    let parent = path.parent().ok_or("no parent")?;
    let before = parent.metadata()?.modified()?;
    change()?;
    File::open(parent)?.set_modified(before)?;
    Ok(())
}

fn flip(path: &Path, random: &mut Random) -> Outcome {
    let metadata = path.metadata()?;
    let file = File::options().read(true).write(true).open(path)?;
    let at = random.number() % metadata.size();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ (1 << (random.number() % 8))], at)?;
    file.set_modified(metadata.modified()?)?;
    Ok(())
}

/// Damages most blobs of an image; returns what a scrub must name.
fn spoil_blobs(node: &Node, image: &Packed, random: &mut Random) -> Outcome<BTreeSet<String>> {
    let mut expected = BTreeSet::new();
    for (number, digest) in image.blobs.keys().enumerate() {
        let path = blob(node, digest);
        match number % 4 {
            0 => flip(&path, random)?,
            1 => {
                let file = File::options().write(true).open(&path)?;
                file.set_len(path.metadata()?.len() / 2)?;
            }
            2 => fs::remove_file(&path)?,
            _ => continue,
        }
        expected.insert(format!("blob {digest}"));
    }
    Ok(expected)
}

fn blob(node: &Node, digest: &str) -> PathBuf {
    let blobs = node.root().join("content/local/blobs");
    blobs.join(digest.replacen(':', "/", 1))
}

/// Files, folders and links of the layers that `sample::layers` made: where they are, and their paths in the layer.
fn of_layers(node: &Node) -> Outcome<Vec<(PathBuf, String)>> {
    let mut all = Vec::new();
    for snapshot in fs::read_dir(node.root().join("snapshots/overlayfs/snapshots"))? {
        let root = snapshot?.path().join("fs");
        let mut ahead = vec![root.clone()];
        while let Some(folder) = ahead.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
                if !name.starts_with("layer") {
                    continue;
                }
                if path.symlink_metadata()?.is_dir() {
                    ahead.push(path.clone());
                }
                all.push((path, name));
            }
        }
    }
    all.sort();
    Ok(all)
}

/// Damages files of layers, each another one; returns what a scrub must name.
fn spoil_layers(node: &Node, random: &mut Random) -> Outcome<BTreeSet<String>> {
    let mut expected = BTreeSet::new();
    let all = of_layers(node)?;
    while expected.len() < FAULTS {
        let (path, name) = &all[random.number() as usize % all.len()];
        if expected.contains(&format!("layer {name}")) {
            continue;
        }
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        let mut named = name.clone();
        match random.number() % 6 {
            0 | 1 if metadata.is_file() => flip(path, random)?,
            2 if metadata.is_file() => silently(path, || fs::remove_file(path))?,
            3 => {
                let mode = metadata.mode() ^ 0o022;
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            }
            4 => lchown(path, Some(1234), None)?,
            5 if metadata.is_file() => {
                let extra = path.with_extension("extra");
                silently(path, || fs::write(&extra, "nobody's"))?;
                named.push_str(".extra");
            }
            _ => continue,
        }
        expected.insert(format!("layer {named}"));
    }
    Ok(expected)
}

/// Leaves things that belong to nobody.
fn leave(node: &Node) -> Outcome<BTreeSet<String>> {
    let strange = "0".repeat(64);
    fs::write(blob(node, &format!("sha256:{strange}")), "nobody's")?;
    fs::create_dir_all(node.root().join("snapshots/overlayfs/snapshots/999999/fs"))?;
    fs::create_dir(node.root().join("content/local/ingests/junk"))?;
    Ok([
        format!("leftover blobs/sha256/{strange}"),
        "leftover snapshots/999999".to_owned(),
        "leftover ingests/junk".to_owned(),
    ]
    .into())
}

/// Nobody gets the bytes of a damaged blob: neither whole nor in part.
async fn refused(node: &Node, expected: &BTreeSet<String>) -> Outcome {
    for digest in expected
        .iter()
        .filter_map(|name| name.strip_prefix("blob "))
    {
        let path = node.at(&format!("/content/{digest}"));
        let whole = node.get(&path).await?;
        assert!(whole.text().contains(digest), "{}", whole.text());
        let ranged = node.client().clone().with_header("range", "bytes=0-9")?;
        let part = ranged.send(Method::GET, &path, ()).await?;
        for answer in [whole, part] {
            assert_eq!(answer.refusal(500)?, "DATA_LOSS");
        }
    }
    Ok(())
}

/// One scrub names all of it; pulls repair it; what is nobody's is removed; then nothing is found.
async fn found_and_repaired(node: &Node, expected: &BTreeSet<String>, images: &[&str]) -> Outcome {
    let began = Instant::now();
    let first = scrub(node, "").await?;
    let took = began.elapsed();
    let seen = named(&first);
    let missed: Vec<_> = expected.difference(&seen).collect();
    assert!(missed.is_empty(), "not found: {missed:?} in {first}");
    assert_eq!(first["found"], expected.len(), "nothing else: {first}");
    refused(node, expected).await?;
    eprintln!(
        "{} faults found among {} things, {} bytes, {} layers in {took:?}",
        seen.len(),
        first["things"],
        first["bytes"],
        first["layers"]
    );
    for image in images {
        node.pull(image).await?;
    }
    let mended = scrub(node, "&repair=true").await?;
    assert!(
        named(&mended)
            .iter()
            .all(|name| name.starts_with("leftover")),
        "{mended}"
    );
    let clean = scrub(node, "").await?;
    assert_eq!(
        (&clean["found"], &clean["unchecked"]),
        (&0.into(), &Value::Array(vec![])),
        "{clean}"
    );
    Ok(())
}

#[actix_rt::test]
async fn damaged_blobs_and_layers_are_named_by_one_scrub_and_repaired_by_a_pull() -> Outcome {
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) * 77 + 1);
    eprintln!("{SEED}={seed}");
    let mut random = Random(seed);
    let registry = Registry::start().await?;
    let (many, large) = (many_blobs()?, sample::layers(4, 6 << 20)?);
    let many_name = registry.name("many:1");
    let large_name = registry.name("large:1");
    registry.push(&many, "many", "1").await?;
    registry.push(&large, "large", "1").await?;
    let setup = Setup::default().config("[plugins.\"operations/local\"]\nscrub_share = 100\n");
    let mut node = Node::start_with(setup).await?;
    node.pull(&many_name).await?;
    node.pull(&large_name).await?;
    assert_eq!(scrub(&node, "").await?["found"], 0);
    let images = [many_name.as_str(), large_name.as_str()];

    for stopped in [false, true] {
        if stopped {
            node.terminate_clean().await?;
        }
        let mut expected = spoil_layers(&node, &mut random)?;
        expected.extend(spoil_blobs(&node, &many, &mut random)?);
        if stopped {
            node.restart().await?;
        }
        expected.extend(leave(&node)?);
        found_and_repaired(&node, &expected, &images).await?;
    }
    node.run("c", &large_name, &["true"]).await?;
    assert_eq!(node.exit_code("c").await?, 0);
    node.remove("c").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_pull_after_a_restart_repairs_without_any_scrub() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::layers(2, 2 << 20)?;
    registry.push(&image, "app", "1").await?;
    let name = registry.name("app:1");
    let mut node = Node::start().await?;
    node.pull(&name).await?;
    node.terminate_clean().await?;
    // As a power cut leaves it where nothing was synced: an empty file, a layer without its files, and a cut blob.
    let files = of_layers(&node)?;
    let (file, path) = files
        .iter()
        .find(|(file, _)| file.is_file())
        .ok_or("no file")?;
    File::options().write(true).open(file)?.set_len(0)?;
    let digest = image.blobs.keys().next().ok_or("no blob")?;
    File::options()
        .write(true)
        .open(blob(&node, digest))?
        .set_len(7)?;
    let (gone, _) = files
        .iter()
        .find(|(file, name)| file.is_dir() && name == "layer1")
        .ok_or("no folder")?;
    fs::remove_dir_all(gone.ancestors().nth(2).ok_or("no snapshot")?)?;
    node.restart().await?;
    node.pull(&name).await?;
    let clean = scrub(&node, "").await?;
    assert_eq!(clean["found"], 0, "{path}: {clean}");
    node.run("c", &name, &["test", "-s", "/layer1/large"])
        .await?;
    assert_eq!(node.exit_code("c").await?, 0);
    node.remove("c").await?;
    node.stop_clean().await
}

/// Two images that share their lower layer.
fn sharing(seed: u64) -> Outcome<[Packed; 2]> {
    let content = Random(seed).content(50_000);
    let shared = Layer::new().with(&Entry::file("layer-shared", content));
    let shared = shared.pack(Compression::Gzip)?;
    let image = |own: &str| -> Outcome<Packed> {
        let own = Layer::new().with(&Entry::file("own", own));
        let image = integration::image::Image::new().layer(shared.clone());
        Ok(image.layer(own.pack(Compression::Gzip)?).pack())
    };
    Ok([image("one")?, image("two")?])
}

#[actix_rt::test]
async fn rot_in_a_layer_that_no_image_names_is_found_and_reaches_no_other_image() -> Outcome {
    let registry = Registry::start().await?;
    let [one, two] = sharing(7)?;
    registry.push(&one, "one", "1").await?;
    registry.push(&two, "two", "1").await?;
    let config =
        "[plugins.\"gc/local\"]\ninterval = 0\n[plugins.\"operations/local\"]\nscrub_share = 100\n";
    for driver in ["overlayfs", "native"] {
        let node = Node::start_with(Setup::default().config(config)).await?;
        let pull = async |image: &str| {
            let body = serde_json::json!({"ref": registry.name(image), "snapshotter": driver});
            let path = node.at("/images:pull?wait=true");
            node.post(&path, body).await?.ok()
        };
        pull("one:1").await?;
        let path = node.at(&format!("/images/{}", registry.name("one:1")));
        node.delete(&path).await?.ok()?;
        let copies = shared_files(&node, driver)?;
        let sound = fs::read(copies.first().ok_or("no file")?)?;
        for (number, copy) in copies.iter().enumerate() {
            flip(copy, &mut Random(number as u64 + 1))?;
        }
        let found = scrub(&node, "").await?;
        assert_eq!(found["found"], copies.len(), "{driver}: {found}");
        assert_eq!(named(&found), ["layer layer-shared".to_owned()].into());
        pull("two:1").await?;
        let (mut right, mut of_two) = (0, 0);
        for file in shared_files(&node, driver)? {
            of_two += 1;
            right += usize::from(fs::read(&file)? == sound);
        }
        // Where each snapshot is a copy, the top of the image that nobody named is not the other's.
        let wrong = if driver == "native" { 1 } else { 0 };
        assert_eq!(right, of_two - wrong, "{driver}");
        scrub(&node, "&repair=true").await?;
        let clean = scrub(&node, "").await?;
        assert_eq!(clean["found"], 0, "{driver}: {clean}");
        assert_eq!(
            clean["unchecked"],
            Value::Array(vec![]),
            "{driver}: {clean}"
        );
        node.stop_clean().await?;
    }
    Ok(())
}

/// Where a driver has the file of the shared layer.
fn shared_files(node: &Node, driver: &str) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let folder = node.root().join(format!("snapshots/{driver}/snapshots"));
    for snapshot in fs::read_dir(folder)? {
        let file = snapshot?.path().join("fs/layer-shared");
        if file.exists() {
            found.push(file);
        }
    }
    Ok(found)
}

/// What it costs to pull what is here: run with `--ignored --nocapture`.
#[actix_rt::test]
#[ignore = "measures, and proves nothing"]
async fn figures() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::layers(8, 256 << 20)?;
    registry.push(&image, "app", "1").await?;
    let name = registry.name("app:1");
    for sync in [true, false] {
        let toml: String = ["content/local", "diff/local", "snapshots/overlayfs"]
            .iter()
            .map(|plugin| format!("[plugins.\"{plugin}\"]\nsync = {sync}\n"))
            .collect();
        let share = "[plugins.\"operations/local\"]\nscrub_share = 100\n";
        let setup = Setup::default().config(&toml).config(share);
        let mut node = Node::start_with(setup).await?;
        let pull = timed(async || node.pull(&name).await.map(drop)).await?;
        let again = timed(async || node.pull(&name).await.map(drop)).await?;
        node.terminate_clean().await?;
        node.restart().await?;
        let first = timed(async || node.pull(&name).await.map(drop)).await?;
        let second = timed(async || node.pull(&name).await.map(drop)).await?;
        let began = Instant::now();
        let scrubbed = scrub(&node, "").await?;
        eprintln!(
            "sync {sync}: pull {pull:?}, again {again:?}; after a restart {first:?}, again {second:?}; \
             scrub {:?}: {} bytes, {} things, {} layers, found {}",
            began.elapsed(),
            scrubbed["bytes"],
            scrubbed["things"],
            scrubbed["layers"],
            scrubbed["found"]
        );
        node.stop_clean().await?;
    }
    Ok(())
}

async fn timed(work: impl AsyncFnOnce() -> Outcome) -> Outcome<Duration> {
    let began = Instant::now();
    work().await?;
    Ok(began.elapsed())
}
