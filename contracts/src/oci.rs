//! The few OCI shapes that cross the bus. Whole documents travel as the bytes that were hashed.

use crate::{Digest, Labels};
use serde::{Deserialize, Serialize};

/// Media type, digest and size of a blob, with what an index says about it.
///
/// `size` is in bytes. Source: OCI image-spec, descriptor.md.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// For example `application/vnd.oci.image.manifest.v1+json`.
    pub media_type: String,
    /// Names the bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// May be empty.
    #[serde(default)]
    pub annotations: Labels,
    /// For which platform, when an index says so.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Where else the bytes may be fetched (foreign layers).
    #[serde(default)]
    pub urls: Vec<String>,
}

/// An operating system and processor, normalised (`amd64`, `arm64`, variant `v8`).
///
/// Source: OCI image-spec, image-index.md "platform".
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`, or empty.
    pub variant: String,
    /// Empty on Linux.
    pub os_version: String,
    /// Empty on Linux.
    pub os_features: Vec<String>,
}

/// A mount as data: what `mount(2)` would be told. Nothing here performs it.
///
/// Source: containerd, mount package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// `overlay`, `bind`, …
    pub fs_type: String,
    /// Path or device.
    pub source: String,
    /// Sub-path below the root file system; usually empty.
    #[serde(default)]
    pub target: String,
    /// fstab-style: `ro`, `rbind`, `lowerdir=/a:/b`.
    #[serde(default)]
    pub options: Vec<String>,
}
