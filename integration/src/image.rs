//! Images built from nothing.
//!
//! ```text
//! Entry ──▶ Layer ──pack──▶ Image ──pack──▶ Packed ──▶ push(registry) · oci_layout() · docker_archive()
//!                                   index([Packed…]) ──▶ Packed
//! ```
//!
//! [`Entry`] writes any tar header, hostile ones too: nothing here checks a path. [`sample`] has
//! images that are ready to use. The same calls always make the same bytes and digests.
//! Source: OCI image-spec 1.1 (`manifest.md`, `layer.md`, `image-index.md`), Docker image manifest v2 schema 2.

mod archive;
mod entry;
mod layer;
mod push;
pub mod sample;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

pub use entry::Entry;
pub use layer::{Compression, Layer, PackedLayer};
pub use push::Login;

/// Names content: media type, digest, size in bytes. The root of an image, or one node below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What the bytes are.
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
}

impl Descriptor {
    fn of(media_type: &str, bytes: &[u8]) -> Self {
        let digest = sha256(bytes);
        Self {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len() as u64,
        }
    }

    fn json(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.size})
    }
}

/// Returns the digest of some bytes, as `sha256:…`.
pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// Which family of media types an image speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `application/vnd.oci.image.…`
    Oci,
    /// `application/vnd.docker.distribution.…`, schema 2. Knows no zstd layers.
    Docker,
}

impl Dialect {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn layer(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Compression::Gzip) => {
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            }
            (Self::Docker, Compression::Plain | Compression::Zstd) => {
                "application/vnd.docker.image.rootfs.diff.tar"
            }
        }
    }
}

/// An image for one platform: layers from the lowest up, and a config.
#[derive(Clone, Debug)]
pub struct Image {
    dialect: Dialect,
    platform: String,
    layers: Vec<PackedLayer>,
    config: Map<String, Value>,
}

impl Image {
    /// Starts an OCI image for this machine without layers and settings.
    pub fn new() -> Self {
        let architecture = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        Self {
            dialect: Dialect::Oci,
            platform: format!("linux/{architecture}"),
            layers: Vec::new(),
            config: Map::new(),
        }
    }

    /// Uses another family of media types.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Names the platform as `os/architecture[/variant]`.
    pub fn platform(mut self, platform: &str) -> Self {
        platform.clone_into(&mut self.platform);
        self
    }

    /// Puts a layer on top.
    pub fn layer(mut self, layer: PackedLayer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets a field of the `config` object, under its OCI name: `Env`, `Cmd`, `Entrypoint`, `User`, `WorkingDir`…
    pub fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.config.insert(field.to_owned(), value.into());
        self
    }

    /// Makes config and manifest.
    pub fn pack(self) -> Packed {
        let mut packed = Packed::empty();
        let config = packed.blob(self.dialect.config(), self.config().to_string());
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let media_type = self.dialect.layer(layer.compression);
                packed.blob(media_type, layer.bytes.clone()).json()
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": self.dialect.manifest(), "config": config.json(), "layers": layers,
        });
        packed.root = packed.manifest(self.dialect.manifest(), manifest.to_string());
        packed.platform = self.platform;
        packed.diff_ids = self.layers.into_iter().map(|layer| layer.diff_id).collect();
        packed
    }

    fn config(&self) -> Value {
        let mut parts = self.platform.split('/').map(str::to_owned);
        let mut config = json!({"os": parts.next(), "architecture": parts.next(), "created": "2024-01-01T00:00:00Z"});
        if let Some(variant) = parts.next() {
            config["variant"] = variant.into();
        }
        let diff_ids: Vec<&str> = self
            .layers
            .iter()
            .map(|layer| layer.diff_id.as_str())
            .collect();
        config["config"] = Value::Object(self.config.clone());
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        config
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts images for several platforms under one index.
pub fn index(dialect: Dialect, images: Vec<Packed>) -> Packed {
    let mut packed = Packed::empty();
    let mut manifests = Vec::new();
    for image in images {
        let mut parts = image.platform.split('/').map(str::to_owned);
        let mut entry = image.root.json();
        entry["platform"] = json!({"os": parts.next(), "architecture": parts.next()});
        if let Some(variant) = parts.next() {
            entry["platform"]["variant"] = variant.into();
        }
        manifests.push(entry);
        packed.blobs.extend(image.blobs);
        packed.manifests.extend(image.manifests);
    }
    let document =
        json!({"schemaVersion": 2, "mediaType": dialect.index(), "manifests": manifests});
    packed.root = packed.manifest(dialect.index(), document.to_string());
    packed
}

/// A finished image or index: every blob and document by digest, and the root that names them.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The manifest or index that a tag points to.
    pub root: Descriptor,
    /// `os/architecture[/variant]`; empty for an index.
    pub platform: String,
    /// Digests of the uncompressed layers, lowest first; empty for an index.
    pub diff_ids: Vec<String>,
    /// Configs and layers.
    pub blobs: BTreeMap<String, Bytes>,
    /// Manifests and indexes with their descriptors, children before parents.
    pub manifests: Vec<(Descriptor, Bytes)>,
}

impl Packed {
    fn empty() -> Self {
        Self {
            root: Descriptor::of("", b""),
            platform: String::new(),
            diff_ids: Vec::new(),
            blobs: BTreeMap::new(),
            manifests: Vec::new(),
        }
    }

    fn blob(&mut self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        self.blobs.insert(descriptor.digest.clone(), bytes);
        descriptor
    }

    fn manifest(&mut self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        self.manifests.push((descriptor.clone(), bytes));
        descriptor
    }

    /// Returns the digest of the topmost snapshot when the image is unpacked. Source: OCI image-spec, `config.md` "ChainID".
    pub fn chain_id(&self) -> String {
        let mut ids = self.diff_ids.iter();
        let lowest = ids.next().cloned().unwrap_or_default();
        ids.fold(lowest, |chain, diff| {
            sha256(format!("{chain} {diff}").as_bytes())
        })
    }

    /// Returns the sum of all blobs and documents, in bytes.
    pub fn size(&self) -> u64 {
        let documents = self.manifests.iter().map(|(_, bytes)| bytes.len());
        self.blobs
            .values()
            .map(Bytes::len)
            .chain(documents)
            .map(|length| length as u64)
            .sum()
    }
}
