//! Operations: work of several steps, journaled, so that it goes on after any crash and anybody may watch it.

use crate::{
    Code, ContainerId, Descriptor, Error, Fd, ImageName, Labels, Namespace, OperationId, Page,
    Paging, Platform, Timestamp,
    containers::{Container, Options, Runtime},
    tasks::{Exit, Task},
    transfer::Access,
};
use serde::{Deserialize, Serialize};

service! {
    /// Long work. The operation id of a [`Start`] call is the operation's id, so starting twice starts once.
    Operations = "operations" {
        write start(Start) -> Operation;
        read get(Get) -> Operation;
        read list(List) -> Page<Operation>;
        stream watch(Watch) -> Operation;
        write cancel(Cancel) -> Operation;
        write claim(Claim) -> Claimed;
        write settle(Settle) -> ();
    } emits {
        "/operations/start" => Started;
        "/operations/end" => Ended;
    }
}

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Brings an image in and unpacks it.
    Pull(Pull),
    /// Sends an image to a registry.
    Push(Push),
    /// Reads an archive.
    Import(Import),
    /// Writes an archive.
    Export(Export),
    /// Unpacks an image that is here.
    Unpack(Unpack),
    /// Makes a container from an image or a spec.
    Create(CreateContainer),
    /// Pulls if missing, makes a container, creates and starts its task.
    Run(CreateContainer),
    /// Deletes a container, its task first when forced, and its snapshot.
    Remove(Remove),
    /// Collects garbage.
    Collect(Collect),
    /// Looks at everything that is on disk.
    Scrub(Scrub),
}

/// Brings an image in: resolve, fetch, unpack while fetching, make one durable, name it. Result: [`Outcome::Image`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pull {
    /// As a user types it.
    pub reference: String,
    /// `linux/arm64/v8`; empty for this machine's.
    pub platform: String,
    /// Fetch every platform of an index; this machine's (or `platform`) is unpacked.
    pub all_platforms: bool,
    /// Snapshot driver; empty for the node's default.
    pub snapshotter: String,
    /// Only fetch.
    pub no_unpack: bool,
    /// Labels of the image record.
    pub labels: Labels,
    /// How to reach the registry. Never journaled.
    pub access: Access,
}

/// Sends an image. Result: [`Outcome::Image`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Push {
    /// The image that is here, as a user types it.
    pub image: String,
    /// Where to; empty for the image's own name.
    pub reference: String,
    /// Only this platform; empty for all that are here.
    pub platform: String,
    /// How to reach the registry. Never journaled.
    pub access: Access,
}

/// Reads an archive. Result: [`Outcome::Images`]. The archive is a live stream: after a crash the work fails and says so.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Import {
    /// The archive.
    pub archive: Fd,
    /// Prefix for images that the archive names by tag only.
    pub prefix: String,
    /// Snapshot driver; empty for the node's default.
    pub snapshotter: String,
    /// Only store.
    pub no_unpack: bool,
}

/// Writes an archive. Result: [`Outcome::Images`]. After a crash the work fails and says so.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Export {
    /// Image names as a user types them.
    pub images: Vec<String>,
    /// Only this platform; empty for all that are here.
    pub platform: String,
    /// Receives the archive.
    pub archive: Fd,
}

/// Unpacks an image that is here. Result: [`Outcome::Image`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Unpack {
    /// As a user types it.
    pub image: String,
    /// Empty for this machine's.
    pub platform: String,
    /// Snapshot driver; empty for the node's default.
    pub snapshotter: String,
}

/// Makes a container. Result: [`Outcome::Container`], with [`Work::Run`] [`Outcome::Task`].
///
/// A failure leaves nothing of it. The record and its snapshot carry the label `gantry.io/operation`, which says whose
/// they are while the work goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateContainer {
    /// Its id.
    pub id: ContainerId,
    /// As a user types it; empty together with a whole `spec` and no root file system of ours.
    pub image: String,
    /// What the user asks for; ignored parts are refused when `spec` is given.
    pub options: Options,
    /// A whole OCI spec as JSON text instead of `options`.
    pub spec: String,
    /// Its labels.
    pub labels: Labels,
    /// Which shim runs it.
    pub runtime: Runtime,
    /// Snapshot driver; empty for the node's default.
    pub snapshotter: String,
    /// Empty for this machine's.
    pub platform: String,
    /// How to reach the registry when the image must be pulled. Never journaled.
    pub access: Access,
    /// Pull even when the name is here: `missing` (default, empty), `always`, `never`.
    pub pull: String,
}

/// Deletes a container. Result: [`Outcome::Exit`] when a task was deleted too, else [`Outcome::None`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Remove {
    /// Its id.
    pub id: ContainerId,
    /// Whether a running task is killed first. A stopped one is deleted anyway.
    pub force: bool,
    /// Whether the snapshot stays.
    pub keep_snapshot: bool,
}

/// Collects garbage. Result: [`Outcome::Collected`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Collect {}

/// Looks at everything that is on disk, gently: records, files, bytes of blobs, and the files of every image's unpacked
/// layers against their blobs. Result: [`Outcome::Scrubbed`]. After a crash it begins again. Events: `/integrity/found`
/// for each finding, `/integrity/mended` for each that was mended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Scrub {
    /// Whether what is found is mended: what belongs to nobody is removed, layers are put right from their blobs, lost
    /// directories made again. Damaged blobs are marked in any case, and fetched by the next pull of an image that has
    /// them.
    pub repair: bool,
    /// Whether bytes are read and hashed, not only names and sizes looked at.
    pub deep: bool,
    /// Only layers of this namespace's images; blobs and records are those of the node. `None` for all.
    pub namespace: Option<Namespace>,
}

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// What is not as it should be, mended or not; at most 100 with some 32 KiB of text. The events have all.
    pub findings: Vec<crate::integrity::Finding>,
    /// How many findings there were.
    pub found: u64,
    /// How many of them were mended.
    pub mended: u64,
    /// Records, files and blobs that were looked at.
    pub things: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Layers that were compared with their blobs.
    pub layers: u64,
    /// What could not be checked, and why; at most 20.
    pub unchecked: Vec<String>,
    /// Microseconds it took.
    pub micros: u64,
}

/// Begins work, or finds what this operation id began before. Answers at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The work.
    pub work: Work,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Under way.
    Running,
    /// Finished; `result` is set.
    Done,
    /// Ended with `error`.
    Failed,
    /// Ended by a user.
    Cancelled,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// `pull`, `push`, `import`, `export`, `unpack`, `create`, `run`, `remove`, `collect`, `scrub`.
    pub kind: String,
    /// What it is about, for people: an image or container name.
    pub subject: String,
    /// Running, done, failed or cancelled.
    pub state: State,
    /// Part by part, in the order the parts were met.
    pub progress: Vec<Part>,
    /// Set when done.
    pub result: Option<Outcome>,
    /// Set when failed.
    pub error: Option<Error>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it last moved.
    pub updated_at: Timestamp,
    /// How often it was picked up again after a crash.
    pub resumed: u32,
}

/// How far one part is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// A digest, or a step's name.
    pub name: String,
    /// `waiting`, `resolving`, `fetching`, `unpacking`, `committing`, `exists`, `done`, …
    pub phase: String,
    /// Bytes done in this phase.
    pub offset: u64,
    /// Bytes in all; 0 when unknown.
    pub total: u64,
}

/// What finished work answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing to say.
    None,
    /// An image, with the platform that was unpacked and the name of its snapshot.
    Image(PulledImage),
    /// Several images.
    Images(Vec<PulledImage>),
    /// A container.
    Container(Container),
    /// A started task.
    Task(Task),
    /// How a task ended.
    Exit(Exit),
    /// What was collected.
    Collected(crate::gc::Collected),
    /// What a scrub found.
    Scrubbed(Scrubbed),
}

/// An image that work has dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledImage {
    /// Full name.
    pub name: ImageName,
    /// Manifest or index.
    pub target: Descriptor,
    /// For which platform it was unpacked.
    pub platform: Option<Platform>,
    /// Name of the committed snapshot of its top layer; empty when not unpacked.
    pub snapshot: String,
    /// Driver that holds it; empty when not unpacked.
    pub snapshotter: String,
}

/// Looks up one operation. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// Its id.
    pub id: OperationId,
}

/// Lists operations of the caller's namespace, newest first. Filter fields: `id`, `kind`, `state`, `subject`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Shows an operation now, at every step (at most every 100 ms) and when it ends. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Watch {
    /// Its id.
    pub id: OperationId,
}

/// Stops running work and undoes what was not finished. An ended operation stays as it is. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cancel {
    /// Its id.
    pub id: OperationId,
}

/// Work began.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// The operation.
    pub id: OperationId,
    /// `pull`, …
    pub kind: String,
    /// Image or container name.
    pub subject: String,
}

/// Work ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// The operation.
    pub id: OperationId,
    /// `pull`, …
    pub kind: String,
    /// Image or container name.
    pub subject: String,
    /// Done, failed or cancelled.
    pub state: State,
    /// Class of the failure.
    pub code: Option<Code>,
}

/// Binds a client's `Idempotency-Key` to one request, for 24 h. The same request again answers what the first came to.
///
/// Errors: `FailedPrecondition` naming the first request when the key is bound to another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// The key as the client gave it; keys of different namespaces have nothing to do with each other.
    pub key: OperationId,
    /// Method and path, for people: `POST /v1/namespaces/a/containers:run`.
    pub place: String,
    /// Derived from everything that makes it the same request: key, method, path, query, body.
    pub print: OperationId,
}

/// What a key stands for already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claimed {
    /// The first answer, when there was one.
    pub answer: Option<Answer>,
}

/// An answer that is given again, byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers that belong to it: `location`, `etag`, `content-type`.
    pub headers: Vec<(String, String)>,
    /// The body, at most 48 KiB of text.
    pub body: String,
}

/// Keeps the answer to a claimed request, or frees the key of one that was refused. A key that is not claimed is ignored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settle {
    /// As claimed.
    pub key: OperationId,
    /// `None` frees the key: what was refused changed nothing, and may be asked in other words.
    pub answer: Option<Answer>,
}
