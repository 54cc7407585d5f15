//! Tasks, added processes and how they ended.

use contracts::tasks::{ExecInfo, Exit, Measured, Status, Task};
use contracts::{ContainerId, ExecId, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

/// One task.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Task)]
pub(crate) struct TaskView {
    /// Same as the container's.
    #[schema(value_type = String)]
    id: ContainerId,
    /// The container it runs.
    #[schema(value_type = String)]
    container: ContainerId,
    /// Host process id of its first process; 0 before create finished.
    pid: u32,
    /// `created`, `running`, `paused`, `stopped` or `unknown`.
    #[schema(value_type = String)]
    status: Status,
    /// 128 + signal for a signal; set when stopped.
    exit_code: Option<u32>,
    /// Set when stopped.
    #[schema(value_type = Option<String>, format = DateTime)]
    exited_at: Option<Timestamp>,
    /// Why the status is what it is, when that needs saying; may be empty.
    reason: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Whether its process has a terminal.
    tty: bool,
}

impl From<Task> for TaskView {
    fn from(task: Task) -> Self {
        Self {
            id: task.id,
            container: task.container,
            pid: task.pid,
            status: task.status,
            exit_code: task.exit_code,
            exited_at: task.exited_at,
            reason: task.reason,
            created_at: task.created_at,
            tty: task.tty,
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Exit)]
pub(crate) struct ExitView {
    /// 128 + signal for a signal; 255 when nobody saw it end.
    exit_code: u32,
    /// When it ended.
    #[schema(value_type = String, format = DateTime)]
    exited_at: Timestamp,
}

impl From<Exit> for ExitView {
    fn from(exit: Exit) -> Self {
        Self {
            exit_code: exit.exit_code,
            exited_at: exit.exited_at,
        }
    }
}

/// One added process.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Exec)]
pub(crate) struct ExecView {
    /// Its id.
    #[schema(value_type = String)]
    id: ExecId,
    /// Host process id; 0 before start.
    pid: u32,
    /// As a task's.
    #[schema(value_type = String)]
    status: Status,
    /// Set when stopped.
    exit_code: Option<u32>,
    /// Set when stopped.
    #[schema(value_type = Option<String>, format = DateTime)]
    exited_at: Option<Timestamp>,
    /// Whether it has a terminal.
    tty: bool,
}

impl From<ExecInfo> for ExecView {
    fn from(exec: ExecInfo) -> Self {
        Self {
            id: exec.id,
            pid: exec.pid,
            status: exec.status,
            exit_code: exec.exit_code,
            exited_at: exec.exited_at,
            tty: exec.tty,
        }
    }
}

/// What an added process that was run to its end left behind.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Collected)]
pub(crate) struct RanView {
    /// 128 + signal for a signal.
    pub(crate) exit_code: u32,
    /// What it wrote; bytes that are not UTF-8 are replaced.
    pub(crate) stdout: String,
    /// What it wrote to stderr; empty with a terminal, which has one stream.
    pub(crate) stderr: String,
    /// Whether it wrote more than is shown.
    pub(crate) truncated: bool,
}

/// What a container uses now. Zero where the kernel does not tell.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Metrics)]
pub(crate) struct MetricsView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    time: Timestamp,
    /// Processor time.
    cpu: CpuView,
    /// Bytes of memory.
    memory: MemoryView,
    /// Processes and threads.
    pids: PidsView,
    /// Block devices.
    io: IoView,
}

/// Nanoseconds of processor time since start.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Cpu)]
pub(crate) struct CpuView {
    /// All.
    total: u64,
    /// In user mode.
    user: u64,
    /// In the kernel.
    kernel: u64,
    /// Periods in which it was held back.
    throttled_periods: u64,
    /// Time it was held back.
    throttled_time: u64,
}

/// Bytes of memory.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Memory)]
pub(crate) struct MemoryView {
    /// In use.
    usage: u64,
    /// 0 for none.
    limit: u64,
    /// Highest usage seen.
    peak: u64,
    /// Page cache.
    cache: u64,
    /// Anonymous.
    anon: u64,
    /// Times the kernel killed for lack of it.
    oom_kills: u64,
}

/// Processes and threads.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = PidCount)]
pub(crate) struct PidsView {
    /// Now.
    current: u64,
    /// 0 for none.
    limit: u64,
}

/// Bytes read from and written to block devices.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Io)]
pub(crate) struct IoView {
    /// Read.
    read: u64,
    /// Written.
    write: u64,
}

impl From<Measured> for MetricsView {
    fn from(measured: Measured) -> Self {
        Self {
            time: measured.time,
            cpu: CpuView {
                total: measured.cpu_total,
                user: measured.cpu_user,
                kernel: measured.cpu_kernel,
                throttled_periods: measured.cpu_throttled_periods,
                throttled_time: measured.cpu_throttled_time,
            },
            memory: MemoryView {
                usage: measured.memory_usage,
                limit: measured.memory_limit,
                peak: measured.memory_peak,
                cache: measured.memory_cache,
                anon: measured.memory_anon,
                oom_kills: measured.oom_kills,
            },
            pids: PidsView {
                current: measured.pids,
                limit: measured.pids_limit,
            },
            io: IoView {
                read: measured.io_read,
                write: measured.io_write,
            },
        }
    }
}
