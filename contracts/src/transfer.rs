//! Registries and archives: what brings images in and out. Touches untrusted bytes, so it holds no privilege.

use crate::{Descriptor, Digest, Fd, ImageName, Labels, Platform, Ref};
use serde::{Deserialize, Serialize};
use std::fmt;

service! {
    /// Resolves, fetches, pushes, imports and exports.
    Transfer = "transfer" {
        read resolve(Resolve) -> Resolved;
        stream fetch(Fetch) -> Progress;
        read plan(Plan) -> ImagePlan;
        read children(Children) -> Vec<Descriptor>;
        stream push(Push) -> Progress;
        stream import(Import) -> Imported;
        stream export(Export) -> Progress;
        read explain(Explain) -> Explanation;
    }
}

/// How to reach a registry. Credentials live in memory only: never in a store, never in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Access {
    /// Speak plain HTTP; loopback registries are tried so anyway.
    pub plain_http: bool,
    /// Who asks; `None` is anonymous.
    pub auth: Option<Auth>,
}

/// Credentials of one registry.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// User name; empty when only a token is known.
    pub username: String,
    /// Password.
    pub password: String,
    /// Identity or refresh token instead of a password.
    pub identity_token: String,
    /// Ready-made bearer token.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    /// Shows who, never the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({}, secret)", self.username)
    }
}

/// Turns a reference into a full name and the descriptor that the registry has for it.
///
/// Errors: `InvalidArgument` for the reference; `NotFound`; `Unauthenticated`; `PermissionDenied`; `Unavailable` naming host and cause.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolve {
    /// As a user types it: `busybox`, `127.0.0.1:5000/a/b:tag`, `…@sha256:…`.
    pub reference: String,
    /// How to reach the registry.
    #[serde(default)]
    pub access: Access,
}

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Full name, `docker.io/library/busybox:latest`.
    pub name: ImageName,
    /// Manifest or index.
    pub target: Descriptor,
    /// The host that answered.
    pub host: String,
}

/// Brings one blob into the content store, resuming what is there. The last item has `done`.
///
/// Manifests and indexes get their `containerd.io/gc.ref.content.*` labels, layers their
/// `containerd.io/distribution.source.*`. A blob that is there already is done at once.
/// Errors: as [`Resolve`]; `DataLoss` when the registry's bytes do not have the digest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fetch {
    /// Full name: which repository.
    pub name: ImageName,
    /// Which blob.
    pub target: Descriptor,
    /// The ingest it goes through.
    pub r#ref: Ref,
    /// Added to the blob's labels.
    #[serde(default)]
    pub labels: Labels,
    /// How to reach the registry.
    #[serde(default)]
    pub access: Access,
}

/// How far something is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Blob, as its digest, or what else is moving.
    pub name: String,
    /// Bytes done.
    pub offset: u64,
    /// Bytes in all; 0 when unknown.
    pub total: u64,
    /// Whether this one is finished.
    pub done: bool,
}

/// Reads an image that is in the content store: chooses the platform and lists what must be unpacked.
///
/// Errors: `NotFound` naming the missing blob, or the platforms that there are; `InvalidArgument` for a malformed document.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Manifest or index.
    pub target: Descriptor,
    /// `linux/arm64/v8`; empty for this machine's.
    #[serde(default)]
    pub platform: String,
    /// Whether only the manifest is needed yet: `layers[].diff_id` and `config_json` stay empty when the config is
    /// missing. When an index is here and the manifest that it chooses is not, `config` repeats `manifest`.
    #[serde(default)]
    pub shallow: bool,
}

/// One platform's image, ready to be fetched and unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePlan {
    /// The chosen manifest.
    pub manifest: Descriptor,
    /// Its config.
    pub config: Descriptor,
    /// The config's bytes as text; empty when not here yet.
    pub config_json: String,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// For which platform.
    pub platform: Platform,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Compressed, as the registry has it.
    pub blob: Descriptor,
    /// Hash of the uncompressed tar; `None` when the config is not here yet.
    pub diff_id: Option<Digest>,
    /// Names the stack up to and including this layer. Source: OCI image-spec, config.md "Layer ChainID".
    pub chain_id: Option<Digest>,
}

/// Lists what a manifest or index that is in the content store refers to, all platforms. Errors: as [`Plan`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Children {
    /// Manifest or index.
    pub target: Descriptor,
}

/// Sends an image to a registry: blobs before manifests before the index. The last item has `done` and the name.
///
/// Errors: as [`Resolve`]; `NotFound` for content that is not here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Push {
    /// Where to, as a user types it.
    pub reference: String,
    /// What.
    pub target: Descriptor,
    /// Only this platform of an index; empty for all that are here.
    #[serde(default)]
    pub platform: String,
    /// How to reach the registry.
    #[serde(default)]
    pub access: Access,
}

/// Reads an OCI layout or docker-archive tar into the content store.
///
/// Errors: `InvalidArgument` naming the entry; `DataLoss` when bytes do not have their digest; `ResourceExhausted`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Import {
    /// The archive: file or pipe, plain or compressed.
    pub archive: Fd,
    /// Prefix for images that the archive names by tag only; empty for none.
    #[serde(default)]
    pub prefix: String,
}

/// How far an import is; the last item has `done`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Bytes of the archive read.
    pub offset: u64,
    /// What was found, in the last item: name and target. A nameless image has an empty name.
    pub images: Vec<(String, Descriptor)>,
    /// Whether the archive is read.
    pub done: bool,
}

/// Writes images as an OCI layout tar that Docker can load too.
///
/// Errors: `NotFound` for content that is not here; `Cancelled` when the reader went away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// Name and target of each.
    pub images: Vec<(ImageName, Descriptor)>,
    /// Only this platform; empty for all that are here.
    #[serde(default)]
    pub platform: String,
    /// Receives the archive.
    pub archive: Fd,
}

/// Asks how a reference would be fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explain {
    /// As a user types it.
    pub reference: String,
}

/// How a reference would be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Full name.
    pub name: ImageName,
    /// Base URLs in the order they are tried, each with the file and line that says so.
    pub hosts: Vec<(String, String)>,
    /// Files that look meant for this but are not read.
    pub ignored: Vec<String>,
}
