//! Blobs, found by digest, and the ingests that become blobs.
//!
//! Bytes never travel in messages. A writer gets the writing end of a pipe whose reading end the store
//! holds, so the store alone hashes, counts and decides; a reader gets a read-only descriptor.

use crate::{Digest, Fd, LabelPatch, Labels, Page, Paging, Ref, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// Immutable blobs, found by digest. A blob is visible only after its ingest is committed.
    Content = "content" {
        read stat(Stat) -> Blob;
        read list(List) -> Page<Blob>;
        read open(Open) -> Opened;
        write update(Update) -> Blob;
        write delete(Delete) -> ();
        read write(Write) -> Writer;
        write commit(Commit) -> Blob;
        read ingest(Status) -> Ingest;
        read ingests(Ingests) -> Page<Ingest>;
        write abort(Abort) -> ();
        stream follow(Follow) -> Growth;
        read verify(Verify) -> Blob;
    } emits {
        "/content/create" => Created;
        "/content/delete" => Deleted;
        "/content/update" => Updated;
    }
}

/// One committed blob of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Names the bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Carry gc references among others.
    pub labels: Labels,
    /// When it was committed in this namespace.
    pub created_at: Timestamp,
    /// When its labels last changed.
    pub updated_at: Timestamp,
}

/// One unfinished write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingest {
    /// The caller's name for it.
    pub r#ref: Ref,
    /// Bytes stored so far.
    pub offset: u64,
    /// Bytes expected in all; 0 when unknown.
    pub total: u64,
    /// Digest expected at commit.
    pub expected: Option<Digest>,
    /// When it was opened first.
    pub started_at: Timestamp,
    /// When bytes last arrived.
    pub updated_at: Timestamp,
}

/// Looks up one committed blob of the caller's namespace.
///
/// Errors: `NotFound`. Cost: one read transaction. Source: OCI image-spec, descriptor.md "Digests".
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stat {
    /// Which blob.
    pub digest: Digest,
}

/// Lists the committed blobs of the caller's namespace, by digest.
///
/// Filter fields: `digest`, `size`, `labels`. Errors: `InvalidArgument` for a bad filter or token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Opens a committed blob for reading.
///
/// What is handed out has hashed to its digest since this content store was started, and its file was not touched since;
/// the first open may therefore take as long as reading the blob once. Bytes that rot on the device afterwards are found
/// by the next scrub. Errors: `NotFound`; `DataLoss` when the bytes are gone, cut, or not those of the digest: the way
/// out is a pull of an image that has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// Which blob.
    pub digest: Digest,
}

/// An open blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// Its record.
    pub blob: Blob,
    /// Read-only, at offset 0, not shared with any other reader.
    pub fd: Fd,
}

/// Changes the labels of a blob. Errors: `NotFound`, `InvalidArgument`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Which blob.
    pub digest: Digest,
    /// The change.
    pub labels: LabelPatch,
}

/// Deletes a blob's record in the caller's namespace; the bytes follow when no namespace names them.
///
/// Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delete {
    /// Which blob.
    pub digest: Digest,
}

/// Opens or resumes the ingest `ref` and hands out a pipe; bytes go on at the offset that is returned.
///
/// There is one writer per ref. Writing ends when the last copy of the pipe is closed.
/// Errors: `Aborted` while another writer holds the ref; `AlreadyExists` when `expected` is committed in this
/// namespace and its bytes are right (damaged ones are written again); `InvalidArgument` when `expected` or `total` differ from those of the ingest; `ResourceExhausted`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Write {
    /// The caller's name for the write.
    pub r#ref: Ref,
    /// Digest expected at commit.
    #[serde(default)]
    pub expected: Option<Digest>,
    /// Bytes expected in all; 0 when unknown.
    #[serde(default)]
    pub total: u64,
    /// Whether to drop what is stored and start at 0.
    #[serde(default)]
    pub restart: bool,
}

/// A write that may begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Writer {
    /// The pipe's bytes are stored from here on.
    pub offset: u64,
    /// The writing end. Close it when done or when giving up; a broken pipe means: call `write` again.
    pub pipe: Fd,
}

/// Turns the ingest `ref` into a blob, after everything in its pipe has arrived.
///
/// Size and digest are checked, file and folder are synced, then the record becomes visible. A mismatch drops the
/// stored bytes, for they can never become right. Committing under a digest that is already there succeeds and
/// merges the labels. Errors: `NotFound` for the ref; `FailedPrecondition` while the pipe stays open past the deadline
/// or the size differs; `DataLoss` when the digest differs; `ResourceExhausted` when the disk is full.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Commit {
    /// The ingest.
    pub r#ref: Ref,
    /// Bytes expected; `None` accepts any.
    #[serde(default)]
    pub size: Option<u64>,
    /// Digest expected; `None` accepts any. The algorithm of the result is always SHA-256 unless this says otherwise.
    #[serde(default)]
    pub expected: Option<Digest>,
    /// Labels of the new blob.
    #[serde(default)]
    pub labels: Labels,
}

/// Looks up one ingest. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The ingest.
    pub r#ref: Ref,
}

/// Lists the ingests of the caller's namespace, by ref. Filter field: `ref`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ingests {
    /// Which part.
    pub paging: Paging,
}

/// Drops an ingest and its bytes; a writer that is still there gets a broken pipe. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Abort {
    /// The ingest.
    pub r#ref: Ref,
}

/// Follows a blob while it is being written, or opens it at once when it is committed.
///
/// The first item carries the descriptor. The stream ends after an item with `complete`, and fails with `Aborted` when
/// the ingest is dropped. It outlasts pauses of the writer and waits for an ingest that does not exist yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Follow {
    /// The ingest that writes it.
    pub r#ref: Ref,
    /// The blob it will become.
    pub digest: Digest,
}

/// How far a followed blob has grown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Growth {
    /// Read-only descriptor at offset 0; in the first item, and again whenever the writer started over.
    pub fd: Option<Fd>,
    /// Bytes that may be read now.
    pub offset: u64,
    /// Whether the blob is committed, and `offset` is its size.
    pub complete: bool,
}

/// A blob became visible.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// Which blob.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Its labels.
    pub labels: Labels,
}

/// A blob's record went away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Which blob.
    pub digest: Digest,
}

/// Looks whether the bytes of a blob are those of its digest, and says so from then on.
///
/// Bytes that were seen to be right since this content store was started, and whose file was not touched since, are not
/// read again unless there is `doubt`. A blob that is found damaged stays marked, over restarts, until it is written
/// again. Errors: `NotFound`; `DataLoss` as [`Open`]. Cost: reading the blob, when it is not known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verify {
    /// Which blob.
    pub digest: Digest,
    /// Whether somebody found bytes that do not fit: they are read whatever is known of them.
    #[serde(default)]
    pub doubt: bool,
}

/// A blob's labels changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Updated {
    /// Which blob.
    pub digest: Digest,
    /// Its labels.
    pub labels: Labels,
}
