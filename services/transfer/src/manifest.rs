//! Image documents: manifests, indexes and what they point at, in OCI's and Docker's spelling alike.
//!
//! Pure. Documents come from strangers, so every one is read twice over: what kind its bytes claim must be
//! the kind it was announced as, and one that could be read as both kinds is refused.
//! Source: OCI image-spec, manifest.md, image-index.md, config.md; Docker Image Manifest V2 Schema 2.

use contracts::{Descriptor, Digest, Error, Labels, Platform, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Largest manifest or index that is read, in bytes. Registries themselves refuse more than 4 MiB.
pub const MAX_DOCUMENT: u64 = 8 << 20;

/// What a document of a registry or archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // one at a time, and never for long
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// One image: its configuration and its layers, base first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// As announced.
    pub media_type: String,
    /// The configuration, or an artifact's substitute for one.
    pub config: Descriptor,
    /// Base first; may be empty.
    pub layers: Vec<Descriptor>,
}

/// A choice of manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// As announced.
    pub media_type: String,
    /// In the order of preference; may be empty.
    pub manifests: Vec<Descriptor>,
}

/// A layer with the names that are needed to unpack it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The compressed bytes.
    pub blob: Descriptor,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Names this layer together with all below it.
    pub chain_id: Digest,
}

impl Document {
    /// Reads a document that was announced as `media_type`; an empty or generic type is taken from the document.
    ///
    /// Errors: `DataLoss` when the bytes are not what was announced, or claim to be two things at once;
    /// `Unimplemented` for Docker schema 1.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self> {
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_DOCUMENT {
            return Err(Error::data_loss(format!(
                "manifest: more than {MAX_DOCUMENT} bytes"
            )));
        }
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| {
            Error::data_loss(format!(
                "manifest: is not the JSON of an image document: {error}"
            ))
        })?;
        let media_type = raw.media_type(media_type)?;
        match media_type.as_str() {
            OCI_INDEX | DOCKER_LIST => raw.index(media_type).map(Self::Index),
            _ => raw.manifest(media_type).map(Self::Manifest),
        }
    }

    /// Lists what the document points at, in its own order: what collection and copying follow.
    pub fn children(&self) -> Vec<&Descriptor> {
        match self {
            Self::Manifest(manifest) => std::iter::once(&manifest.config)
                .chain(&manifest.layers)
                .collect(),
            Self::Index(index) => index.manifests.iter().collect(),
        }
    }

    /// Shows the media type it was announced or recognised as.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Manifest(manifest) => &manifest.media_type,
            Self::Index(index) => &index.media_type,
        }
    }
}

impl Manifest {
    /// Pairs the layers with the diff ids of the configuration whose bytes are `config`.
    ///
    /// Errors: `DataLoss` when their numbers differ or the configuration cannot be read.
    pub fn layers(&self, config: &[u8]) -> Result<Vec<Layer>> {
        let diff_ids = ImageConfig::parse(config)?.diff_ids;
        if diff_ids.len() != self.layers.len() {
            return Err(Error::data_loss(format!(
                "image config {}: names {} layers, the manifest has {}",
                self.config.digest,
                diff_ids.len(),
                self.layers.len()
            )));
        }
        let chain = chain_ids(&diff_ids);
        let names = diff_ids.into_iter().zip(chain);
        Ok(self
            .layers
            .iter()
            .zip(names)
            .map(|(blob, (diff_id, chain_id))| Layer {
                blob: blob.clone(),
                diff_id,
                chain_id,
            })
            .collect())
    }
}

/// The few fields of an image configuration that transfer needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// Whom it was built for, normalised.
    pub platform: Platform,
    /// Digests of the uncompressed layers, base first.
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Reads a configuration. Errors: `DataLoss`.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|error| Error::data_loss(format!("image config: {error}")))?;
        let platform = Platform {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant,
            ..Platform::default()
        };
        let diff_ids = raw
            .rootfs
            .and_then(|rootfs| rootfs.diff_ids)
            .unwrap_or_default();
        Ok(Self {
            platform: crate::platform::normalise(&platform),
            diff_ids,
        })
    }
}

/// Names each stack of layers: the first by its diff id, every next by the hash of both names below.
///
/// Source: OCI image-spec, config.md "Layer ChainID".
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => digest_of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// Computes the SHA-256 digest of `bytes`.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::sha256(&Sha256::digest(bytes).into())
}

/// Checks that `bytes` are what `digest` names. Errors: `DataLoss` naming both digests.
pub fn verify(bytes: &[u8], digest: &Digest) -> Result<()> {
    use sha2::{Sha384, Sha512};
    let hex = match digest.algorithm() {
        "sha512" => hex(&Sha512::digest(bytes)),
        "sha384" => hex(&Sha384::digest(bytes)),
        _ => hex(&Sha256::digest(bytes)),
    };
    if hex == digest.hex() {
        return Ok(());
    }
    Err(Error::data_loss(format!(
        "content {digest}: the bytes received hash to {hex}"
    )))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Tells whether `media_type` is a manifest or an index, that is, has children.
pub fn is_document(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_MANIFEST | OCI_INDEX | DOCKER_MANIFEST | DOCKER_LIST
    )
}

/// Tells whether `media_type` is an image configuration.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Tells whether `media_type` is a layer of a root file system.
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with(DOCKER_LAYER)
        || is_foreign(media_type)
}

/// Tells whether registries must not be given the layer: it is fetched from its own URLs and never pushed.
pub fn is_foreign(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// Writes the labels by which the collector finds `children` from their parent.
///
/// Source: containerd, `ChildGCLabels`: `m.N` for manifests, `config`, `l.N` for layers, `N` for others.
pub fn gc_labels(children: &[&Descriptor]) -> Labels {
    let mut counters: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels = Labels::new();
    for child in children {
        let kind = match child.media_type.as_str() {
            media_type if is_config(media_type) => "config",
            media_type if is_document(media_type) => "m.",
            media_type if is_layer(media_type) => "l.",
            _ => "",
        };
        let number = counters.entry(kind).or_insert(0);
        // The only configuration goes without a number, as containerd's clients expect it.
        let suffix = if kind == "config" && *number == 0 {
            String::new()
        } else {
            number.to_string()
        };
        labels.insert(
            format!("containerd.io/gc.ref.content.{kind}{suffix}"),
            child.digest.to_string(),
        );
        *number += 1;
    }
    labels
}

/// A descriptor as it stands in a document. Fields that the house does not carry are left unread.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<Labels>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<RawPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    urls: Option<Vec<String>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "String::is_empty"
    )]
    os_version: String,
    #[serde(
        default,
        rename = "os.features",
        skip_serializing_if = "Option::is_none"
    )]
    os_features: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    variant: String,
}

/// The fields of every kind of document at once, so that one which mixes kinds is seen.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl RawDocument {
    /// Settles what the document is. Source: OCI distribution-spec "Pulling manifests"; GHSA-5j5w-g665-5m35.
    fn media_type(&self, announced: &str) -> Result<String> {
        if self.schema_version == 1 || self.fs_layers.is_some() {
            return Err(Error::unimplemented(
                "manifest: docker schema 1 is not read; push the image again with a current client",
            ));
        }
        let is_index = self.manifests.is_some();
        if is_index && (self.config.is_some() || self.layers.is_some()) {
            return Err(Error::data_loss(
                "manifest: claims to be both an image and an index; refused",
            ));
        }
        let announced = essence(announced);
        let media_type = match (known(announced), self.media_type.as_deref()) {
            (true, Some(own)) if own != announced => {
                return Err(Error::data_loss(format!(
                    "manifest: was sent as {announced} but says it is {own:?}; refused"
                )));
            }
            (true, _) => announced,
            (false, Some(own)) if known(own) => own,
            (false, None) if is_index => OCI_INDEX,
            (false, None) if self.config.is_some() => OCI_MANIFEST,
            (false, own) => {
                return Err(Error::unimplemented(format!(
                    "manifest: media type {:?} is not an image or index",
                    own.unwrap_or(announced)
                )));
            }
        };
        let says_index = matches!(media_type, OCI_INDEX | DOCKER_LIST);
        if says_index != is_index {
            return Err(Error::data_loss(format!(
                "manifest: was sent as {media_type} but has other content; refused"
            )));
        }
        Ok(media_type.to_owned())
    }

    fn index(self, media_type: String) -> Result<Index> {
        let manifests = self
            .manifests
            .unwrap_or_default()
            .into_iter()
            .map(Into::into)
            .collect();
        Ok(Index {
            media_type,
            manifests,
        })
    }

    fn manifest(self, media_type: String) -> Result<Manifest> {
        let config = self
            .config
            .ok_or_else(|| Error::data_loss("manifest: has no config"))?
            .into();
        let layers = self
            .layers
            .unwrap_or_default()
            .into_iter()
            .map(Into::into)
            .collect();
        Ok(Manifest {
            media_type,
            config,
            layers,
        })
    }
}

/// Strips parameters: `application/json; charset=utf-8` is `application/json`.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

fn known(media_type: &str) -> bool {
    is_document(media_type)
}

impl From<RawDescriptor> for Descriptor {
    fn from(raw: RawDescriptor) -> Self {
        Self {
            media_type: raw.media_type,
            digest: raw.digest,
            size: raw.size,
            annotations: raw.annotations.unwrap_or_default(),
            platform: raw.platform.map(Into::into),
            urls: raw.urls.unwrap_or_default(),
        }
    }
}

impl From<RawPlatform> for Platform {
    fn from(raw: RawPlatform) -> Self {
        Self {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant,
            os_version: raw.os_version,
            os_features: raw.os_features.unwrap_or_default(),
        }
    }
}

impl From<&Descriptor> for RawDescriptor {
    fn from(descriptor: &Descriptor) -> Self {
        let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
        Self {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            annotations: (!descriptor.annotations.is_empty())
                .then(|| descriptor.annotations.clone()),
            platform: descriptor.platform.as_ref().map(|platform| RawPlatform {
                architecture: platform.architecture.clone(),
                os: platform.os.clone(),
                os_version: platform.os_version.clone(),
                os_features: some(&platform.os_features),
                variant: platform.variant.clone(),
            }),
            urls: some(&descriptor.urls),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenManifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenIndex<'a> {
    schema_version: u32,
    media_type: &'a str,
    manifests: Vec<RawDescriptor>,
}

/// Writes a manifest; equal input gives equal bytes.
pub fn write_manifest(media_type: &str, config: &Descriptor, layers: &[Descriptor]) -> Vec<u8> {
    let layers = layers.iter().map(Into::into).collect();
    json(&WrittenManifest {
        schema_version: 2,
        media_type,
        config: config.into(),
        layers,
    })
}

/// Writes an OCI index; equal input gives equal bytes.
pub fn write_index(manifests: &[Descriptor]) -> Vec<u8> {
    let manifests = manifests.iter().map(Into::into).collect();
    json(&WrittenIndex {
        schema_version: 2,
        media_type: OCI_INDEX,
        manifests,
    })
}

/// Turns one of our own shapes into JSON; these have no maps with odd keys, so it cannot fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(number: u8, media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest: Digest::sha256(&[number; 32]),
            size: u64::from(number),
            annotations: Labels::new(),
            platform: None,
            urls: Vec::new(),
        }
    }

    fn two_layers(media_type: &str) -> Vec<u8> {
        write_manifest(
            media_type,
            &blob(1, OCI_CONFIG),
            &[blob(2, DOCKER_LAYER_GZIP), blob(3, DOCKER_LAYER)],
        )
    }

    #[test]
    fn oci_and_docker_manifests_are_read_alike() -> Result<()> {
        for media_type in [OCI_MANIFEST, DOCKER_MANIFEST] {
            let Document::Manifest(manifest) =
                Document::parse(media_type, &two_layers(media_type))?
            else {
                return Err(Error::internal("read as an index"));
            };
            assert_eq!(manifest.config, blob(1, OCI_CONFIG));
            assert_eq!(
                manifest.layers,
                [blob(2, DOCKER_LAYER_GZIP), blob(3, DOCKER_LAYER)]
            );
        }
        Ok(())
    }

    #[test]
    fn an_index_keeps_platforms_and_annotations() -> Result<()> {
        let mut entry = blob(1, OCI_MANIFEST);
        entry.platform = Some(crate::platform::parse("linux/arm/v6")?);
        entry.annotations.insert("a".into(), "b".into());
        let bytes = write_index(&[entry.clone()]);
        let document = Document::parse(OCI_INDEX, &bytes)?;
        assert_eq!(document.children(), [&entry]);
        assert_eq!(
            bytes,
            write_index(&[entry]),
            "equal input gives equal bytes"
        );
        Ok(())
    }

    #[test]
    fn a_generic_content_type_is_replaced_by_what_the_document_says() -> Result<()> {
        for announced in ["", "application/json", "text/plain; charset=utf-8"] {
            assert_eq!(
                Document::parse(announced, &two_layers(DOCKER_MANIFEST))?.media_type(),
                DOCKER_MANIFEST
            );
        }
        let bare = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":1}}]}}"#,
            blob(1, "").digest
        );
        assert_eq!(
            Document::parse("text/plain", bare.as_bytes())?.media_type(),
            OCI_INDEX
        );
        assert_eq!(
            Document::parse(&format!("{OCI_INDEX}; charset=utf-8"), bare.as_bytes())?.media_type(),
            OCI_INDEX
        );
        Ok(())
    }

    #[test]
    fn a_document_that_is_not_what_it_was_sent_as_is_refused() {
        let ambiguous = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{0}","size":1}},"layers":[],"manifests":[]}}"#,
            blob(1, "").digest
        );
        let cases: [(&str, &[u8], &str); 8] = [
            (
                OCI_MANIFEST,
                ambiguous.as_bytes(),
                "both an image and an index",
            ),
            (
                OCI_INDEX,
                ambiguous.as_bytes(),
                "both an image and an index",
            ),
            (OCI_MANIFEST, &two_layers(DOCKER_MANIFEST), "but says it is"),
            (
                OCI_INDEX,
                br#"{"schemaVersion":2,"layers":[]}"#,
                "but has other content",
            ),
            (
                OCI_MANIFEST,
                br#"{"schemaVersion":2,"manifests":[]}"#,
                "but has other content",
            ),
            (
                OCI_MANIFEST,
                br#"{"schemaVersion":1,"fsLayers":[]}"#,
                "schema 1",
            ),
            (OCI_MANIFEST, b"<html>", "is not the JSON"),
            (
                "application/vnd.example",
                br#"{"schemaVersion":2}"#,
                "is not an image or index",
            ),
        ];
        for (announced, bytes, expected) in cases {
            let message = Document::parse(announced, bytes)
                .map_or_else(|error| error.message, |_| String::new());
            assert!(
                message.contains(expected),
                "{announced}: {message:?}, expected {expected:?}"
            );
        }
    }

    #[test]
    fn layers_carry_diff_ids_and_chain_ids() -> Result<()> {
        let Document::Manifest(manifest) =
            Document::parse(OCI_MANIFEST, &two_layers(OCI_MANIFEST))?
        else {
            return Err(Error::internal("read as an index"));
        };
        let (a, b) = (digest_of(b"a"), digest_of(b"b"));
        let config = format!(
            r#"{{"architecture":"x86_64","os":"linux","rootfs":{{"diff_ids":["{a}","{b}"]}}}}"#
        );
        let layers = manifest.layers(config.as_bytes())?;
        assert_eq!((&layers[0].diff_id, &layers[0].chain_id), (&a, &a));
        assert_eq!(layers[1].chain_id, digest_of(format!("{a} {b}").as_bytes()));
        assert_eq!(
            ImageConfig::parse(config.as_bytes())?.platform.architecture,
            "amd64"
        );

        let short = format!(r#"{{"rootfs":{{"diff_ids":["{a}"]}}}}"#);
        let message = manifest
            .layers(short.as_bytes())
            .map_or_else(|error| error.message, |_| String::new());
        assert!(
            message.contains("names 1 layers, the manifest has 2"),
            "{message}"
        );
        Ok(())
    }

    #[test]
    fn gc_labels_are_spelled_as_containerd_does() {
        let children = [
            blob(1, DOCKER_CONFIG),
            blob(2, DOCKER_LAYER_GZIP),
            blob(3, DOCKER_LAYER),
            blob(4, "text/x"),
        ];
        let keys: Vec<String> = gc_labels(&children.iter().collect::<Vec<_>>())
            .into_keys()
            .collect();
        let expected = ["0", "config", "l.0", "l.1"]
            .map(|suffix| format!("containerd.io/gc.ref.content.{suffix}"));
        assert_eq!(keys, expected);
        let index = [blob(1, OCI_MANIFEST), blob(2, DOCKER_MANIFEST)];
        let keys: Vec<String> = gc_labels(&index.iter().collect::<Vec<_>>())
            .into_keys()
            .collect();
        assert_eq!(
            keys,
            ["m.0", "m.1"].map(|suffix| format!("containerd.io/gc.ref.content.{suffix}"))
        );
    }

    #[test]
    fn bytes_are_checked_against_every_digest_algorithm() -> Result<()> {
        verify(b"a", &digest_of(b"a"))?;
        assert!(verify(b"b", &digest_of(b"a")).is_err());
        let sha512 = Digest::new(format!("sha512:{}", hex(&sha2::Sha512::digest(b"a"))))?;
        verify(b"a", &sha512)?;
        assert!(verify(b"b", &sha512).is_err());
        Ok(())
    }
}
