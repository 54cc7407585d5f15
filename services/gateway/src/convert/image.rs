//! Images and descriptors.

use super::PlatformView;
use contracts::images::Image;
use contracts::operations::PulledImage;
use contracts::transfer::{Access, Auth};
use contracts::{Descriptor, Digest, ImageName, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Media type, digest and size of a blob.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Descriptor)]
pub(crate) struct DescriptorView {
    /// For example `application/vnd.oci.image.manifest.v1+json`.
    media_type: String,
    /// `sha256:…`.
    #[schema(value_type = String, pattern = "^(sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128})$")]
    digest: Digest,
    /// Bytes.
    size: u64,
    /// May be empty.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// For which platform, when an index says so.
    #[serde(default)]
    platform: Option<PlatformView>,
    /// Where else the bytes may be fetched.
    #[serde(default)]
    urls: Vec<String>,
}

impl From<Descriptor> for DescriptorView {
    fn from(descriptor: Descriptor) -> Self {
        Self {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            annotations: descriptor.annotations,
            platform: descriptor.platform.map(Into::into),
            urls: descriptor.urls,
        }
    }
}

impl From<DescriptorView> for Descriptor {
    fn from(view: DescriptorView) -> Self {
        Self {
            media_type: view.media_type,
            digest: view.digest,
            size: view.size,
            annotations: view.annotations,
            platform: view.platform.map(Into::into),
            urls: view.urls,
        }
    }
}

/// One image.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Image)]
pub(crate) struct ImageView {
    /// Full name.
    #[schema(value_type = String)]
    pub(crate) name: ImageName,
    /// What it stands for: a manifest or an index.
    target: DescriptorView,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// When the name was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When target or labels last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// What `If-Match` compares.
    version: u64,
}

impl From<Image> for ImageView {
    fn from(image: Image) -> Self {
        Self {
            name: image.name,
            target: image.target.into(),
            labels: image.labels,
            created_at: image.created_at,
            updated_at: image.updated_at,
            version: image.version,
        }
    }
}

/// An image that work has dealt with.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = PulledImage)]
pub(crate) struct PulledView {
    /// Full name.
    #[schema(value_type = String)]
    pub(crate) name: ImageName,
    /// Manifest or index.
    target: DescriptorView,
    /// For which platform it was unpacked.
    platform: Option<PlatformView>,
    /// Name of the committed snapshot of its top layer; empty when not unpacked.
    snapshot: String,
    /// Driver that holds it; empty when not unpacked.
    snapshotter: String,
}

impl From<PulledImage> for PulledView {
    fn from(image: PulledImage) -> Self {
        Self {
            name: image.name,
            target: image.target.into(),
            platform: image.platform.map(Into::into),
            snapshot: image.snapshot,
            snapshotter: image.snapshotter,
        }
    }
}

/// Credentials of a registry. They pass through memory only.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Auth)]
pub(crate) struct AuthBody {
    /// User name; empty when only a token is known.
    username: String,
    /// Password.
    password: String,
    /// Identity or refresh token instead of a password.
    identity_token: String,
    /// Ready-made bearer token.
    registry_token: String,
}

impl Serialize for AuthBody {
    /// Writes nothing: the description of the surface asks for default values, and must never get a secret.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

/// How to reach a registry, from the fields of a body.
pub(crate) fn access(plain_http: bool, auth: Option<AuthBody>) -> Access {
    let auth = auth.map(|auth| Auth {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    });
    Access { plain_http, auth }
}
