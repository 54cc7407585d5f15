//! Images that are in the content store: which manifest suits, which layers it has, what it all refers to.

use crate::{
    manifest::{Document, ImageConfig, Manifest, is_config},
    platform,
    store::Store,
};
use contracts::{
    Code, Descriptor, Error, Platform, Result,
    transfer::{ImagePlan, Layer},
};

/// How deep indexes may refer to indexes; real ones do not at all.
const MAX_DEPTH: usize = 8;
/// Longest config text of an answer, in bytes, so that it fits into a frame beside the layers.
const MAX_CONFIG: usize = 24 << 10;

/// Chooses the platform and lists what must be unpacked. With `shallow` a missing configuration is no error.
///
/// Errors: `NotFound` naming the missing blob or the platforms that there are; `InvalidArgument`.
pub(crate) async fn plan(
    store: &Store,
    target: &Descriptor,
    wanted: &str,
    shallow: bool,
) -> Result<ImagePlan> {
    let wanted = if wanted.is_empty() {
        platform::host()
    } else {
        platform::parse(wanted)?
    };
    let (chosen, manifest) = match follow(store, target, &wanted).await? {
        Chosen::Here(chosen, manifest) => (chosen, manifest),
        Chosen::Absent(chosen, _) if shallow => return Ok(only_chosen(chosen, wanted)),
        Chosen::Absent(_, error) => return Err(error),
    };
    if !is_config(&manifest.config.media_type) {
        return Err(Error::invalid(format!(
            "content {}: is not an image but an artifact with config {:?}",
            chosen.digest, manifest.config.media_type
        )));
    }
    let offered = chosen.platform.as_ref().map(platform::normalise);
    if shallow && store.intact(&manifest.config.digest).await?.is_none() {
        let layers = manifest.layers.iter().map(|blob| Layer {
            blob: blob.clone(),
            diff_id: None,
            chain_id: None,
        });
        return Ok(ImagePlan {
            manifest: chosen,
            config: manifest.config.clone(),
            config_json: String::new(),
            layers: layers.collect(),
            platform: offered.unwrap_or(wanted),
        });
    }
    complete(store, chosen, &manifest, offered).await
}

async fn complete(
    store: &Store,
    chosen: Descriptor,
    manifest: &Manifest,
    offered: Option<Platform>,
) -> Result<ImagePlan> {
    let bytes = store.read(&manifest.config.digest).await?;
    let malformed = |mut error: Error| {
        error.code = contracts::Code::InvalidArgument;
        error
    };
    let layers = manifest.layers(&bytes).map_err(malformed)?;
    let built_for = ImageConfig::parse(&bytes).map_err(malformed)?.platform;
    let layers = layers.into_iter().map(|layer| Layer {
        blob: layer.blob,
        diff_id: Some(layer.diff_id),
        chain_id: Some(layer.chain_id),
    });
    Ok(ImagePlan {
        manifest: chosen,
        config: manifest.config.clone(),
        config_json: config_text(&bytes, manifest)?,
        layers: layers.collect(),
        platform: offered.unwrap_or(built_for),
    })
}

/// The configuration as text; a long one goes without its history, which nothing that runs it reads.
fn config_text(bytes: &[u8], manifest: &Manifest) -> Result<String> {
    let digest = &manifest.config.digest;
    let malformed =
        |error: &dyn std::fmt::Display| Error::invalid(format!("image config {digest}: {error}"));
    let text = std::str::from_utf8(bytes).map_err(|error| malformed(&error))?;
    if text.len() <= MAX_CONFIG {
        return Ok(text.to_owned());
    }
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| malformed(&error))?;
    config.remove("history");
    let text = serde_json::to_string(&config).map_err(|error| malformed(&error))?;
    if text.len() > MAX_CONFIG {
        return Err(malformed(&format!(
            "{} bytes without history are too many",
            text.len()
        )));
    }
    Ok(text)
}

/// What is known of an image whose index is here and whose manifest is not: which manifest suits.
fn only_chosen(chosen: Descriptor, wanted: Platform) -> ImagePlan {
    let offered = chosen.platform.as_ref().map(platform::normalise);
    ImagePlan {
        config: chosen.clone(),
        manifest: chosen,
        config_json: String::new(),
        layers: Vec::new(),
        platform: offered.unwrap_or(wanted),
    }
}

/// Where following indexes down led to.
pub(crate) enum Chosen {
    /// A manifest that is here.
    Here(Descriptor, Manifest),
    /// A manifest, or an index on the way to it, that an index names and that is not here; how the store says so.
    Absent(Descriptor, Error),
}

/// Follows indexes down to one manifest.
pub(crate) async fn follow(
    store: &Store,
    target: &Descriptor,
    wanted: &Platform,
) -> Result<Chosen> {
    let mut target = target.clone();
    for depth in 0..MAX_DEPTH {
        match store.document(&target).await {
            Ok((Document::Manifest(manifest), _)) => return Ok(Chosen::Here(target, manifest)),
            Ok((Document::Index(index), _)) => {
                target = platform::choose(&index.manifests, wanted)?.clone();
            }
            // Damaged ones are fetched like missing ones.
            Err(error) if depth > 0 && matches!(error.code, Code::NotFound | Code::DataLoss) => {
                return Ok(Chosen::Absent(target, error));
            }
            Err(error) => return Err(error),
        }
    }
    Err(too_deep(&target))
}

/// The manifest that suits, which must be here. Errors: as [`plan`].
pub(crate) async fn choose(
    store: &Store,
    target: &Descriptor,
    wanted: &Platform,
) -> Result<(Descriptor, Manifest)> {
    match follow(store, target, wanted).await? {
        Chosen::Here(chosen, manifest) => Ok((chosen, manifest)),
        Chosen::Absent(_, error) => Err(error),
    }
}

/// Says that indexes refer to indexes without an end.
pub(crate) fn too_deep(target: &Descriptor) -> Error {
    Error::invalid(format!(
        "content {}: index within index, more than {MAX_DEPTH} deep",
        target.digest
    ))
}

/// One document of an image with everything below it, in the order in which it must be sent or written.
pub(crate) struct Tree {
    /// Configurations and layers, each once, in the order in which they are met.
    pub(crate) blobs: Vec<Descriptor>,
    /// Children before parents; the target is the last.
    pub(crate) documents: Vec<(Descriptor, bytes::Bytes)>,
    /// What an index lists but is not here.
    pub(crate) missing: Vec<Descriptor>,
}

/// Collects what `target` refers to. Parts of an index that are not here are noted, not followed.
///
/// Errors: `NotFound` when `target` or a part of a manifest is not here; `InvalidArgument`.
pub(crate) async fn tree(store: &Store, target: &Descriptor) -> Result<Tree> {
    let mut tree = Tree {
        blobs: Vec::new(),
        documents: Vec::new(),
        missing: Vec::new(),
    };
    let mut seen = std::collections::HashSet::new();
    // Depth first without recursion: a document is written when it is met for the second time.
    let mut stack = vec![(target.clone(), 0, None)];
    while let Some((next, depth, opened)) = stack.pop() {
        if let Some(bytes) = opened {
            tree.documents.push((next, bytes));
            continue;
        }
        if !seen.insert(next.digest.clone()) {
            continue;
        }
        if depth >= MAX_DEPTH {
            return Err(too_deep(&next));
        }
        let (document, bytes) = match store.document(&next).await {
            Err(error) if error.is(contracts::Code::NotFound) && depth > 0 => {
                tree.missing.push(next);
                continue;
            }
            read => read?,
        };
        stack.push((next, depth, Some(bytes)));
        match document {
            Document::Index(index) => {
                stack.extend(
                    index
                        .manifests
                        .into_iter()
                        .rev()
                        .map(|child| (child, depth + 1, None)),
                );
            }
            Document::Manifest(manifest) => {
                let parts = std::iter::once(manifest.config).chain(manifest.layers);
                tree.blobs
                    .extend(parts.filter(|part| seen.insert(part.digest.clone())));
            }
        }
    }
    Ok(tree)
}
