//! Blobs and ingests.

use contracts::content::{Blob, Ingest};
use contracts::{Digest, Ref, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One blob.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Blob)]
pub(crate) struct BlobView {
    /// `sha256:…`.
    #[schema(value_type = String)]
    digest: Digest,
    /// Bytes.
    size: u64,
    /// Carry gc references among others.
    labels: BTreeMap<String, String>,
    /// When it was committed in this namespace.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When its labels last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Blob> for BlobView {
    fn from(blob: Blob) -> Self {
        Self {
            digest: blob.digest,
            size: blob.size,
            labels: blob.labels,
            created_at: blob.created_at,
            updated_at: blob.updated_at,
        }
    }
}

/// One unfinished write.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Ingest)]
pub(crate) struct IngestView {
    /// The caller's name for it.
    #[schema(value_type = String)]
    r#ref: Ref,
    /// Bytes stored so far.
    offset: u64,
    /// Bytes expected in all; 0 when unknown.
    total: u64,
    /// Digest expected at commit.
    #[schema(value_type = Option<String>)]
    expected: Option<Digest>,
    /// When it was opened first.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When bytes last arrived.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Ingest> for IngestView {
    fn from(ingest: Ingest) -> Self {
        Self {
            r#ref: ingest.r#ref,
            offset: ingest.offset,
            total: ingest.total,
            expected: ingest.expected,
            started_at: ingest.started_at,
            updated_at: ingest.updated_at,
        }
    }
}
