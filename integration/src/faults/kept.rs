//! A cut that a node did not survive, kept so that exactly it can be looked at and tried again.
//!
//! ```text
//! <folder>/cut-17.img    the disk: `mount -o loop` shows it (a copy of it: mounting replays the journal)
//! <folder>/cut-17.json   what clients had been told, and what else a check must know
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::history::History;
use super::image::{Cut, Image};
use super::record::{IMAGES, Recording};
use crate::Outcome;
use crate::registry::Registry;

/// Everything about a cut but the disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) cut: Cut,
    seed: u64,
    namespace: String,
    registry: SocketAddr,
    history: History,
}

/// Keeps a cut in a folder and returns the file that repeats it. Errors: the folder cannot be written to.
pub(super) fn keep(
    folder: &Path,
    name: &str,
    recording: &Recording,
    cut: Cut,
    image: &Image,
) -> Outcome<PathBuf> {
    let about = Kept {
        cut,
        seed: recording.seed,
        namespace: recording.namespace.clone(),
        registry: recording.registry.address(),
        history: recording.history.clone(),
    };
    fs::create_dir_all(folder)?;
    image.save(&folder.join(format!("{name}.img")))?;
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec(&about)?)?;
    Ok(path)
}

/// Loads what was kept: a recording without its log, the cut, and the disk after it.
///
/// Errors: it is not a kept cut, or somebody else listens where its registry did.
pub(super) async fn load(path: &Path) -> Outcome<(Recording, Cut, Image)> {
    let kept: Kept = serde_json::from_slice(&fs::read(path)?)?;
    let image = Image::load(&path.with_extension("img"))?;
    let catalog = Catalog::new(kept.seed, IMAGES)?;
    let registry = Registry::start_at(kept.registry).await?;
    for sample in catalog.samples.iter().flatten().chain([&catalog.base]) {
        registry
            .push(&sample.packed, &sample.repository, "1")
            .await?;
    }
    let recording = Recording {
        seed: kept.seed,
        start: Image::new(0),
        log: Vec::new(),
        history: kept.history,
        catalog,
        registry,
        namespace: kept.namespace,
        options: "",
        took: Duration::ZERO,
    };
    Ok((recording, kept.cut, image))
}
