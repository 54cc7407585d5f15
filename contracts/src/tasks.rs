//! Tasks: the running instances of containers, behind shims that outlive everything.

use crate::{ContainerId, ExecId, Fd, Mount, Page, Paging, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// Tasks and their processes. A stuck shim delays no call about another container.
    Tasks = "tasks" {
        write create(Create) -> Task;
        write start(Start) -> Task;
        read get(Get) -> Task;
        read list(List) -> Page<Task>;
        write kill(Kill) -> ();
        write pause(Pause) -> ();
        write resume(Resume) -> ();
        write delete(Delete) -> Exit;
        read wait(Wait) -> Exit;
        read pids(Pids) -> Vec<u32>;
        write exec(Exec) -> ();
        read execs(Execs) -> Vec<ExecInfo>;
        write resize(Resize) -> ();
        read stdin(Stdin) -> Fd;
        write close_stdin(CloseStdin) -> ();
        write update(Update) -> ();
        read metrics(Metrics) -> Measured;
        stream logs(Logs) -> LogBatch;
        write checkpoint(Checkpoint) -> ();
        read audit(Audit) -> Audited;
    } emits {
        "/tasks/create" => Created;
        "/tasks/start" => Started;
        "/tasks/exit" => Exited;
        "/tasks/delete" => Deleted;
        "/tasks/exec-added" => ExecAdded;
        "/tasks/exec-started" => ExecStarted;
        "/tasks/paused" => Paused;
        "/tasks/resumed" => Resumed;
        "/tasks/oom" => Oom;
        "/tasks/leak" => Leaked;
    }
}

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Set up, not started.
    Created,
    /// Its first process runs.
    Running,
    /// Frozen.
    Paused,
    /// Its first process ended; exit code and time are kept until delete.
    Stopped,
    /// Its shim does not answer; `reason` says how.
    Unknown,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Same as the container's.
    pub id: ContainerId,
    /// The container it runs.
    pub container: ContainerId,
    /// Host process id of its first process; 0 before create finished.
    pub pid: u32,
    /// What it is doing.
    pub status: Status,
    /// 128 + signal for a signal; set when stopped.
    pub exit_code: Option<u32>,
    /// Set when stopped.
    pub exited_at: Option<Timestamp>,
    /// Why the status is what it is, when that needs saying; may be empty.
    pub reason: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether its process has a terminal.
    pub tty: bool,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128 + signal for a signal; 255 when nobody saw it end.
    pub exit_code: u32,
    /// When it ended.
    pub exited_at: Timestamp,
}

/// Where the bytes of a process come from and go to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stdio {
    /// Whether the process has a terminal; as the spec says for a task.
    pub tty: bool,
    /// Whether stdin stays open for [`Stdin`].
    pub stdin: bool,
    /// Keep no log: output is dropped.
    pub discard: bool,
}

/// Sets up the task of a container: bundle, shim, root file system, namespaces; its first process waits for [`Start`].
///
/// What is done to the host is journaled first; after a crash it is finished or undone.
/// Errors: `NotFound` for the container; `AlreadyExists`; `InvalidArgument` for spec or runtime; `FailedPrecondition`
/// with the runtime's own words when it refuses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    /// The container.
    pub id: ContainerId,
    /// Its root file system; `None` asks the container's snapshot driver.
    #[serde(default)]
    pub rootfs: Option<Vec<Mount>>,
    /// Its stdio.
    #[serde(default)]
    pub stdio: Stdio,
}

/// Starts the first process, or an added one. Errors: `NotFound`; `FailedPrecondition` when it was started before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The task.
    pub id: ContainerId,
    /// The added process.
    #[serde(default)]
    pub exec: Option<ExecId>,
}

/// Looks up one task. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// The task.
    pub id: ContainerId,
}

/// Lists tasks of the caller's namespace, by id. Filter fields: `id`, `container`, `status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Sends a signal. Errors: `NotFound` also when the process has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kill {
    /// The task.
    pub id: ContainerId,
    /// The added process instead of the first.
    #[serde(default)]
    pub exec: Option<ExecId>,
    /// Number.
    pub signal: u32,
    /// Whether every process of the container gets it.
    #[serde(default)]
    pub all: bool,
}

/// Freezes all processes. Errors: `NotFound`; `FailedPrecondition` unless running.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pause {
    /// The task.
    pub id: ContainerId,
}

/// Thaws all processes. Errors: `NotFound`; `FailedPrecondition` unless paused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resume {
    /// The task.
    pub id: ContainerId,
}

/// Removes a stopped task with its shim, or a stopped added process; answers how it ended. Logs stay until the container goes.
///
/// Errors: `NotFound`; `FailedPrecondition` while it runs, unless `force` kills it first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delete {
    /// The task.
    pub id: ContainerId,
    /// The added process instead of the task.
    #[serde(default)]
    pub exec: Option<ExecId>,
    /// Whether a running one is killed first.
    #[serde(default)]
    pub force: bool,
}

/// Answers when the process has ended; everything that it wrote is in the log by then. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wait {
    /// The task.
    pub id: ContainerId,
    /// The added process instead of the first.
    #[serde(default)]
    pub exec: Option<ExecId>,
}

/// Lists the host process ids of the container. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pids {
    /// The task.
    pub id: ContainerId,
}

/// Adds a process, which waits for [`Start`]. Errors: `NotFound`; `AlreadyExists`; `FailedPrecondition` unless running.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// The task.
    pub id: ContainerId,
    /// Its id.
    pub exec: ExecId,
    /// What to run; what is empty comes from the container's own process.
    pub process: ExecProcess,
    /// Its stdio.
    #[serde(default)]
    pub stdio: Stdio,
}

/// An added process, either by fields or as a whole OCI `process` object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecProcess {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Added to the container's.
    pub env: Vec<String>,
    /// Absolute; empty for the container's.
    pub cwd: String,
    /// `uid` or `uid:gid`, or a name of the container's passwd; empty for the container's.
    pub user: String,
    /// OCI runtime-spec `process` as JSON text, taken whole; the other fields are then ignored.
    pub spec: String,
}

/// Lists the added processes of a task. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Execs {
    /// The task.
    pub id: ContainerId,
}

/// One added process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecInfo {
    /// Its id.
    pub id: ExecId,
    /// Host process id; 0 before start.
    pub pid: u32,
    /// What it is doing.
    pub status: Status,
    /// Set when stopped.
    pub exit_code: Option<u32>,
    /// Set when stopped.
    pub exited_at: Option<Timestamp>,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// Tells the terminal its size. Errors: `NotFound`; `FailedPrecondition` without a terminal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resize {
    /// The task.
    pub id: ContainerId,
    /// The added process instead of the first.
    #[serde(default)]
    pub exec: Option<ExecId>,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Hands out the writing end of stdin. Writers may come and go. Errors: `NotFound`; `FailedPrecondition` without stdin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stdin {
    /// The task.
    pub id: ContainerId,
    /// The added process instead of the first.
    #[serde(default)]
    pub exec: Option<ExecId>,
}

/// Ends stdin: the process reads end-of-file after what was written. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloseStdin {
    /// The task.
    pub id: ContainerId,
    /// The added process instead of the first.
    #[serde(default)]
    pub exec: Option<ExecId>,
}

/// Changes the limits of a running container. Errors: `NotFound`; `InvalidArgument` with the runtime's own words.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// The task.
    pub id: ContainerId,
    /// OCI runtime-spec `linux.resources` as JSON text.
    pub resources: String,
}

/// Measures a container. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// The task.
    pub id: ContainerId,
}

/// What a container uses now, from its cgroup (v1 or v2). Zero where the kernel does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// When.
    pub time: Timestamp,
    /// Nanoseconds of processor time since start.
    pub cpu_total: u64,
    /// Of it in user mode.
    pub cpu_user: u64,
    /// Of it in the kernel.
    pub cpu_kernel: u64,
    /// Periods in which it was held back.
    pub cpu_throttled_periods: u64,
    /// Nanoseconds it was held back.
    pub cpu_throttled_time: u64,
    /// Bytes.
    pub memory_usage: u64,
    /// Bytes; 0 for none.
    pub memory_limit: u64,
    /// Highest usage seen, bytes.
    pub memory_peak: u64,
    /// Page cache, bytes.
    pub memory_cache: u64,
    /// Anonymous memory, bytes.
    pub memory_anon: u64,
    /// Processes and threads.
    pub pids: u64,
    /// 0 for none.
    pub pids_limit: u64,
    /// Bytes read from block devices.
    pub io_read: u64,
    /// Bytes written to block devices.
    pub io_write: u64,
    /// Times the kernel killed for lack of memory.
    pub oom_kills: u64,
    /// The shim's own message, for edges that pass it on: type URL, and its bytes in lowercase hex.
    pub raw: (String, String),
}

/// Reads what a process wrote, oldest first, and with `follow` goes on until it ends. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Logs {
    /// The task; also after it was deleted, until the container is.
    pub id: ContainerId,
    /// The added process instead of the first.
    #[serde(default)]
    pub exec: Option<ExecId>,
    /// Whether to wait for more.
    #[serde(default)]
    pub follow: bool,
    /// Only what was written at or after this.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Only what was written before this.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// Only the last so many lines of what is there.
    #[serde(default)]
    pub tail: Option<u64>,
}

/// Some consecutive lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// In the order in which they were read from the process.
    pub lines: Vec<LogLine>,
}

/// One line of output, or a part of a long or unfinished one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was read from the process.
    pub time: Timestamp,
    /// Whether it came by stderr.
    pub stderr: bool,
    /// Whether a newline followed it; it is not part of `bytes`.
    pub newline: bool,
    /// Exactly what was written.
    pub bytes: Vec<u8>,
    /// Not 0 for no line, but a gap: so many bytes of log, about, were written here and are not kept.
    #[serde(default)]
    pub lost: u64,
}

/// Saves a running container's state for a later restore. Errors: `Unimplemented` where CRIU is missing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The task.
    pub id: ContainerId,
    /// Absolute host folder that receives the image.
    pub path: String,
    /// Whether the task ends.
    #[serde(default)]
    pub exit: bool,
}

/// Compares what is on the host with the records. What is ours and belongs to no task in two looks in a row is cleaned.
///
/// It is done without being asked, too, when tasks starts and then again and again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    /// Answer the last look instead of taking one.
    pub last: bool,
}

/// What one look saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audited {
    /// When; 0 before the first look.
    pub time: Timestamp,
    /// Microseconds it took.
    pub micros: u64,
    /// Looks since tasks was started.
    pub looks: u64,
    /// Tasks on record, in all namespaces.
    pub tasks: u64,
    /// Tasks whose shim does not answer.
    pub unknown: u64,
    /// Processes of our shims.
    pub shims: u64,
    /// Bundles.
    pub bundles: u64,
    /// Sockets of our shims.
    pub sockets: u64,
    /// What belongs to no task, at most 200.
    pub leaks: Vec<Leak>,
    /// How many of each kind were cleaned since tasks was started.
    pub cleaned: Vec<(LeakKind, u64)>,
}

/// Something of ours on the host that belongs to no task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    /// What it is.
    pub kind: LeakKind,
    /// Its path, or `process <number> of <namespace>/<task>`.
    pub what: String,
    /// Whether it is gone now; otherwise the next look cleans it, or tries again.
    pub cleaned: bool,
}

/// Kinds of leaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeakKind {
    /// A process of a shim.
    Shim,
    /// A bundle folder.
    Bundle,
    /// A shim's socket.
    Socket,
    /// A mount in a bundle.
    Mount,
    /// A container's cgroup with what runs in it.
    Cgroup,
}

/// A task was set up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// The container.
    pub container_id: String,
    /// Its bundle folder.
    pub bundle: String,
    /// Its first process.
    pub pid: u32,
}

/// A task's first process started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    /// The container.
    pub container_id: String,
    /// Its first process.
    pub pid: u32,
}

/// A process ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exited {
    /// The container.
    pub container_id: String,
    /// The exec id, or the container's for its first process.
    pub id: String,
    /// Its process id.
    pub pid: u32,
    /// 128 + signal for a signal.
    pub exit_status: u32,
    /// When.
    pub exited_at: Timestamp,
}

/// A task or added process was removed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// The container.
    pub container_id: String,
    /// The exec id; empty for the task.
    pub id: String,
    /// Its process id.
    pub pid: u32,
    /// How it ended.
    pub exit_status: u32,
    /// When it ended.
    pub exited_at: Timestamp,
}

/// A process was added.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecAdded {
    /// The container.
    pub container_id: String,
    /// Its id.
    pub exec_id: String,
}

/// An added process started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecStarted {
    /// The container.
    pub container_id: String,
    /// Its id.
    pub exec_id: String,
    /// Its process id.
    pub pid: u32,
}

/// A task was frozen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Paused {
    /// The container.
    pub container_id: String,
}

/// A task was thawed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resumed {
    /// The container.
    pub container_id: String,
}

/// The kernel killed a process for lack of memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Oom {
    /// The container.
    pub container_id: String,
}

/// Something of ours that belonged to no task was cleaned from the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leaked {
    /// `shim`, `bundle`, `socket`, `mount` or `cgroup`.
    pub kind: LeakKind,
    /// As [`Leak::what`].
    pub what: String,
}
