//! Layers in and out of snapshots: the only plugin that touches files of a root file system.

use crate::{Descriptor, Digest, Fd, Labels, Mount, Ref};
use serde::{Deserialize, Serialize};

service! {
    /// Applies layers to mounts, and makes layers from the difference of mounts.
    Diff = "diff" {
        stream apply(Apply) -> Applying;
        read settle(Settle) -> ();
        stream compare(Compare) -> Comparing;
        read lookup(Lookup) -> Found;
        read sync(Sync) -> ();
        stream verify(Verify) -> Verifying;
    }
}

/// Extracts one layer into the snapshot that `mounts` describe, while the layer is still arriving.
///
/// Follows the ingest `ref` when the blob is not committed yet. Every path is resolved beneath the snapshot's root.
/// Dropping the stream stops the extraction. Errors: `InvalidArgument` for a media type or mounts that it does not
/// know; `DataLoss` for a truncated layer or when the diff id differs; `ResourceExhausted` when the disk is full.
/// Source: OCI image-spec, layer.md.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Apply {
    /// The layer.
    pub layer: Descriptor,
    /// The ingest that is bringing it, when it may not be committed yet.
    pub r#ref: Option<Ref>,
    /// Where to, as the snapshot driver gave them.
    pub mounts: Vec<Mount>,
    /// What the uncompressed layer must hash to, when the image config says so.
    pub diff_id: Option<Digest>,
}

/// How far a layer's extraction is; the last item carries `applied`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applying {
    /// Compressed bytes consumed.
    pub offset: u64,
    /// The result, in the last item.
    pub applied: Option<Applied>,
}

/// What a layer turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub size: u64,
    /// Directories the archive implied without an entry of their own; [`Settle`] gives them their parents' look.
    pub implied: Vec<String>,
}

/// Gives implied directories owner, mode, times and xattrs of the same directory in the layers below.
///
/// Layers are extracted before their parents are known; this is done when they are. Errors: `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settle {
    /// The snapshot whose directories are settled.
    pub mounts: Vec<Mount>,
    /// A view of the snapshot below it.
    pub parent: Vec<Mount>,
    /// As [`Applied::implied`].
    pub implied: Vec<String>,
}

/// Writes the difference from `lower` to `upper` as a layer into the content store.
///
/// Errors: `InvalidArgument` for mounts or a media type that it does not know; those of the content store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compare {
    /// The older view; empty for nothing.
    pub lower: Vec<Mount>,
    /// The newer view.
    pub upper: Vec<Mount>,
    /// `application/vnd.oci.image.layer.v1.tar`, `…+gzip` or `…+zstd`.
    pub media_type: String,
    /// Ingest to write through; made up when absent.
    #[serde(default)]
    pub r#ref: Option<Ref>,
    /// Labels of the new blob; `containerd.io/uncompressed` is added.
    #[serde(default)]
    pub labels: Labels,
}

/// How far a comparison is; the last item carries the layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparing {
    /// Uncompressed bytes written.
    pub offset: u64,
    /// The result, in the last item.
    pub layer: Option<Descriptor>,
    /// Its diff id, in the last item.
    pub diff_id: Option<Digest>,
}

/// Reads one small file of the root file system that `mounts` describe, resolved as the container would see it.
///
/// Errors: `NotFound`; `InvalidArgument` when it is not a regular file; `ResourceExhausted` past `limit`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lookup {
    /// The snapshot.
    pub mounts: Vec<Mount>,
    /// Absolute path in the container.
    pub path: String,
    /// Most bytes the caller accepts.
    pub limit: u64,
}

/// A file of a root file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Bytes.
    pub size: u64,
    /// Sealed in-memory copy, read-only, at offset 0.
    pub fd: Fd,
}

/// Makes everything that was extracted into these mounts survive power loss: one `syncfs` per file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sync {
    /// Any snapshot on that file system.
    pub mounts: Vec<Mount>,
}

/// Compares the files of a committed snapshot with what its layers say, entry by entry.
///
/// Compared are kind, mode, owner, modification time, extended attributes, link target, device numbers, hard links and
/// every byte of content; deletions as the driver's format has them; and that nothing else is there. What a layer only
/// implies (directories without an entry) must be a directory with the look it has below. Paths are resolved beneath the
/// snapshot's root, and the bytes that speak are hashed: a layer whose diff id differs proves nothing. Dropping the
/// stream stops it. Errors: as [`Apply`]; `DataLoss` when a layer itself is damaged: fetch it again first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verify {
    /// The layers whose files the topmost directory of `mounts` holds, lowest first: one where directories are stacked,
    /// the whole chain where each is a copy.
    pub layers: Vec<Proof>,
    /// A view of the snapshot.
    pub mounts: Vec<Mount>,
    /// Whether what differs is put right from the layers, file by file: a new one beside, then a rename.
    #[serde(default)]
    pub mend: bool,
}

/// A layer and what proves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The layer's blob.
    pub layer: Descriptor,
    /// What it must hash to when it is uncompressed.
    pub diff_id: Digest,
}

/// How far a comparison with layers is; the last item carries `verified`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifying {
    /// Uncompressed bytes of the layers that were compared.
    pub offset: u64,
    /// The result, in the last item.
    pub verified: Option<Verified>,
}

/// What a comparison with layers found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Files, directories and all else that was looked at.
    pub entries: u64,
    /// Uncompressed bytes of the layers.
    pub bytes: u64,
    /// What differed before anything was mended, by path; at most 100.
    pub differences: Vec<Difference>,
    /// How many differed in all.
    pub different: u64,
    /// How many of them were put right; what was not differs still.
    pub mended: u64,
}

/// One path whose file is not what its layer says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Beneath the snapshot's root; `%XX` stands for bytes that are not UTF-8 and for `%`, and a long one is cut.
    pub path: String,
    /// For people: `mode 0644, expected 0755`.
    pub what: String,
}
