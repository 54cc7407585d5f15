//! Rot: a bit of a file flips while nobody looks, or its end is lost; in a blob, in a layer, in a store.
//!
//! Blobs and layers rot while the node runs, and a scrub must name and mend them. A store rots while the node is down:
//! the node may then refuse what it cannot know, but not end in a panic and not answer wrongly; `gantry fsck --repair`
//! brings it back. Times of files are put back, so that nothing but the bytes tells.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::catalog::Catalog;
use super::soundness::{Patient, finding, short};
use crate::Outcome;
use crate::chaos::Random;
use crate::node::{Node, Setup, binary};
use crate::registry::Registry;

/// What rots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// A blob of the content store.
    Blob,
    /// A file of an unpacked layer.
    Layer,
    /// The database of a plugin.
    Store,
}

struct Scene {
    node: Node,
    registry: Registry,
    catalog: Catalog,
    look: tempfile::TempDir,
}

impl Scene {
    async fn set(seed: u64, setup: Setup) -> Outcome<Self> {
        let scene = Self {
            catalog: Catalog::new(seed, 2)?,
            registry: Registry::start().await?,
            node: Node::start_with(setup).await?,
            look: tempfile::tempdir()?,
        };
        for sample in scene.catalog.samples.iter().flatten() {
            let pushed = scene.registry.push(&sample.packed, &sample.repository, "1");
            scene.node.pull(&pushed.await?).await?;
        }
        // A scrub looks at layers of images; those of tags that have moved on are nobody's and go first.
        scene.node.collect().await?;
        Ok(scene)
    }

    fn patient(&self) -> Patient<'_> {
        Patient {
            node: &self.node,
            namespace: self.node.namespace(),
            catalog: &self.catalog,
            registry: &self.registry,
            folder: self.look.path(),
        }
    }

    /// Whatever is listed is sound, everything can be pulled again, and all of it can be removed.
    async fn judge(&self, seed: u64) -> Vec<String> {
        let patient = self.patient();
        let mut wrong = finding("pull again", patient.pull_all().await);
        wrong.extend(finding("blobs", patient.blobs().await));
        let gone = patient.heals_and_goes(Random::new(seed, 1));
        wrong.extend(finding("afterwards", gone.await));
        wrong.extend(panics(&self.node));
        wrong
    }
}

/// Lets something rot on a node of its own; returns what the node should not have done. `say` hears what rotted.
///
/// Errors: the node could not be set up.
pub async fn round(
    place: Where,
    seed: u64,
    setup: Setup,
    say: impl Fn(&str),
) -> Outcome<Vec<String>> {
    let mut scene = Scene::set(seed, setup).await?;
    let mut chance = Random::new(seed, 2);
    let mut wrong = match place {
        Where::Blob | Where::Layer => rots_while_running(&scene, place, &mut chance, say).await?,
        Where::Store => rots_while_down(&mut scene, &mut chance, say).await?,
    };
    wrong.extend(scene.judge(seed).await);
    wrong.extend(finding(
        "stop",
        scene.node.stop_clean().await.map(|()| Vec::new()),
    ));
    Ok(wrong)
}

async fn rots_while_running(
    scene: &Scene,
    place: Where,
    chance: &mut Random,
    say: impl Fn(&str),
) -> Outcome<Vec<String>> {
    let below = match place {
        Where::Blob => "content/local/blobs",
        _ => "snapshots/overlayfs/snapshots",
    };
    let files = files(&scene.node.root().join(below), &|about| about.len() > 0);
    let Some(file) = chance.one(&files) else {
        return Err(format!("nothing in {below} could rot").into());
    };
    say(&rot(file, chance)?);
    let mut wrong = Vec::new();
    if place == Where::Blob {
        wrong.extend(silent(scene, file).await?);
    }
    let scrub = scene
        .node
        .post("/v1/scrub?repair=true&wait=true", ())
        .await?;
    let seen = scrub.ok()?;
    if seen["findings"].as_array().is_none_or(Vec::is_empty) {
        wrong.push(format!("the scrub found nothing: {seen}"));
    }
    say(&format!("  the scrub says {}", seen["findings"]));
    Ok(wrong)
}

/// Reads a rotten blob: wrong bytes must never come with a success.
async fn silent(scene: &Scene, file: &Path) -> Outcome<Option<String>> {
    let hex = file.file_name().unwrap_or_default().to_string_lossy();
    let path = scene.node.at(&format!("/content/sha256:{hex}"));
    let Ok(answer) = scene.node.get(&path).await else {
        return Ok(None); // cut off in the middle: nobody takes that for the blob
    };
    let right = crate::image::sha256(&answer.body).ends_with(&*hex);
    let lied = answer.status.is_success() && !right;
    Ok(lied.then(|| format!("{path} answers {} with wrong bytes", answer.status)))
}

async fn rots_while_down(
    scene: &mut Scene,
    chance: &mut Random,
    say: impl Fn(&str),
) -> Outcome<Vec<String>> {
    scene.node.terminate().await?;
    let stores = files(&scene.node.root(), &|about| about.len() > 0);
    let stores: Vec<PathBuf> = stores
        .into_iter()
        .filter(|path| path.extension().is_some_and(|kind| kind == "redb"))
        .collect();
    let Some(store) = chance.one(&stores) else {
        return Err("no store could rot".into());
    };
    say(&rot(store, chance)?);
    let mut wrong = Vec::new();
    // As it is: degraded perhaps, but neither wrong nor in a panic.
    match scene.node.restart().await {
        Ok(()) => wrong.extend(finding("as it is", scene.patient().blobs().await)),
        Err(error) => say(&format!(
            "  not all is ready: {}",
            short(&error.to_string())
        )),
    }
    wrong.extend(panics(&scene.node));
    scene.node.terminate().await?;
    let (code, text) = fsck(&scene.node)?;
    say(&format!(
        "  fsck --repair ended with {code}: {}",
        text.trim()
    ));
    if code != 0 {
        wrong.push(format!("fsck --repair ended with {code}: {}", short(&text)));
    }
    if let Err(error) = scene.node.restart().await {
        wrong.push(format!(
            "after fsck --repair: {}",
            short(&error.to_string())
        ));
    }
    Ok(wrong)
}

fn fsck(node: &Node) -> Outcome<(i32, String)> {
    let mut command = Command::new(binary()?);
    command
        .args(["fsck", "--repair", "--root"])
        .arg(node.root());
    let done = command.arg("--state").arg(node.state()).output()?;
    let text = [done.stdout, done.stderr].concat();
    let code = done.status.code().unwrap_or(-1);
    Ok((code, String::from_utf8_lossy(&text).into_owned()))
}

fn panics(node: &Node) -> Option<String> {
    let log = node.log();
    let line = log.lines().find(|line| line.contains("panicked"))?;
    Some(format!("a plugin panicked: {line}"))
}

/// Flips one bit of a file, or now and then cuts it short; tells which.
fn rot(path: &Path, chance: &mut Random) -> Outcome<String> {
    let about = fs::metadata(path)?;
    let file = File::options().read(true).write(true).open(path)?;
    let at = chance.below(about.len());
    let what = if chance.below(5) == 0 {
        file.set_len(at)?;
        format!("{} is cut to {at} of {} bytes", path.display(), about.len())
    } else {
        let (mut byte, bit) = ([0], chance.below(8));
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ (1 << bit)], at)?;
        format!("{}: bit {bit} of byte {at} flips", path.display())
    };
    let times = fs::FileTimes::new().set_modified(about.modified()?);
    file.set_times(times.set_accessed(about.accessed()?))?;
    Ok(what)
}

/// All regular files below a folder that `wanted` takes, in order of their names.
fn files(folder: &Path, wanted: &dyn Fn(&fs::Metadata) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.path()) {
        match fs::symlink_metadata(&path) {
            Ok(about) if about.is_dir() => found.extend(files(&path, wanted)),
            // A hard link is met once.
            Ok(about) if about.is_file() && about.nlink() == 1 && wanted(&about) => {
                found.push(path);
            }
            _ => {}
        }
    }
    found.sort();
    found
}
