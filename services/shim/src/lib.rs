//! gantry's own shim: the small process that parents one container and outlives everybody else.
//!
//! It speaks containerd's runtime-v2 task service over ttrpc and carries its OCI runtime inside
//! (libcontainer), so nothing else must be installed. It is single-threaded; whatever blocks or
//! changes the process (mounting, building a container, entering namespaces) happens in a forked
//! *helper*, so the shim itself stays small, answers at all times, and never catches a container's
//! settings. Sources: containerd `core/runtime/v2/README.md`, `api/runtime/task/v3/shim.proto`.
//!
//! # Command line
//! `gantry shim [flags] start | delete`, Go style flags (`-id x`, `--id x`, `-id=x`):
//!
//! | flag | means |
//! |---|---|
//! | `-namespace NS` `-id ID` | whose container; both required |
//! | `-bundle DIR` | folder with `config.json`; default: the working directory |
//! | `-socket PATH` | where to listen; default `<bundle>/shim.sock`; at most 107 bytes |
//! | `-address A`, `-publish-binary B`, `-debug` | accepted for containerd's sake, unused |
//!
//! **`start`** makes the socket (a path, never an abstract name; its folder must be 0700 and ours,
//! and is created so when missing), forks the server into a session and mount namespace of its own,
//! waits until that stands, prints one line and ends with 0. The line is `unix://PATH`, or with
//! `MAX_SHIM_VERSION` ≥ 3 in the environment `{"version":3,"address":"unix://PATH","protocol":"ttrpc"}`.
//! Started again while that server lives, it prints the same address. On failure: a sentence on
//! stderr, status 1, nothing left behind.
//!
//! **`delete`** is for when the shim itself was killed: it ends a server that still listens, kills
//! what is left in the container's cgroups, removes them, the runtime's state, a mounted `rootfs` and
//! the socket, and prints a `containerd.task.v3.DeleteResponse` (protobuf) with the recorded exit
//! status, or 137 when nobody saw it. It may be repeated. The bundle folder itself stays.
//!
//! | environment | means |
//! |---|---|
//! | `TTRPC_ADDRESS` | where events go (`[unix://]PATH`); none: events are dropped |
//! | `MAX_SHIM_VERSION` | what `start` prints, see above |
//! | `GANTRY_SHIM_ROOT` | folder of the OCI runtime's state; default `<bundle>/runtime` |
//! | `GANTRY_SHIM_LOG` | file for what the server says on stderr (a panic); default: `/dev/null` |
//!
//! # In the bundle
//! ```text
//! config.json   read; with runc and no CAP_SYS_RESOURCE an oom_score_adj that cannot be set is dropped
//! rootfs/       made when missing; the mounts of `Create` go here, in the shim's own mount namespace
//!               (nothing shows on the host; look through /proc/PID/root; a killed shim leaves no mount)
//! shim.sock     the socket, unless `-socket`      address, shim.pid   what `start` printed, the server
//! shim.json     what `delete` needs: runtime, pid, cgroups, exit status
//! runtime/      the OCI runtime's state, gone after Delete
//! ```
//!
//! # The service
//! `containerd.task.v2.Task` and `containerd.task.v3.Task`, same messages. Unknown ids are `NOT_FOUND`,
//! a call in the wrong state is `FAILED_PRECONDITION`, `Checkpoint` is `UNIMPLEMENTED`.
//! - One container per shim. `Wait` may be asked by many, before start and after exit, until `Delete`.
//! - When `Wait` returns, all that the process had written is in its log. `Delete` waits for the
//!   rest (a forgotten background process) at most two seconds.
//! - `Shutdown` is ignored while a container is there, unless `now`; waiting events are sent first.
//! - A request goes on when its caller vanishes: ask `State` after reconnecting.
//!
//! **`Create.options`** is `containerd.runc.v1.Options` (protobuf) or `gantry.shim.v1.Options` (JSON:
//! `runtime`, `root`, `systemd_cgroup`, `no_pivot_root`, `io_uid`, `io_gid`, all optional).
//! `binary_name`/`runtime` empty or `libcontainer` is the embedded runtime; everything else is an
//! OCI runtime binary, by name or absolute path. `Exec.spec` is an OCI `Process`, `Update.resources`
//! an OCI `LinuxResources`, both JSON. `Stats` answers `io.containerd.cgroups.v1.Metrics` or `…v2.Metrics`.
//!
//! **`stdout`, `stderr`** (`terminal`: stdout alone):
//!
//! | value | goes to |
//! |---|---|
//! | empty | `/dev/null` |
//! | `file://PATH` | appended as is; both may name one file |
//! | `log://PATH` | appended as `RFC3339Nano-UTC stdout\|stderr F\|P bytes\n`, the CRI log line: `F` ended with a newline, `P` did not (16 KiB reached, 200 ms silent, or exit); joining the bytes, and one newline per `F`, gives the stream back exactly. One `write` per line or more, `O_APPEND`; `?bound=BYTES` keeps it within that, see crate `logfile` |
//! | `PATH` of a fifo | written there; a reader may come and go, the container waits for one when the fifo is full |
//! | `binary://PATH?k=v` | a logging process: stdout on 3, stderr on 4, closes 5 when ready; arguments `k v`; `CONTAINER_ID`, `CONTAINER_NAMESPACE` |
//!
//! **`stdin`** is empty or the path of a fifo (a writer may come and go; `CloseIO` delivers what is in
//! it and closes the container's end) or of a plain file. Paths in URIs are percent-decoded.
//!
//! **Events** (`/tasks/create`, `start`, `exit`, `delete`, `exec-added`, `exec-started`, `paused`,
//! `resumed`, `oom`; `containerd.events.Task…`) leave in order, at least once. While nobody listens
//! they wait, up to 4096; no call waits for them.
//!
//! # Cgroups
//! The spec's `cgroupsPath` (`/a/b`, no `..`) is honoured, `/<namespace>/<id>` without one. One that
//! somebody lives in already is refused, for it is killed and removed in the end. Folders above it stay.
//!
//! # Limits of the embedded runtime
//! No systemd cgroup driver, no checkpoints, no exec into a container with a user namespace (it would
//! stay outside of it): name `runc` for those. On a pure cgroup v2 host device rules are not enforced.

mod args;
mod bootstrap;
mod cgroup;
mod children;
mod cleanup;
mod control;
mod error;
mod events;
mod helper;
mod lifecycle;
mod oom;
mod options;
mod process;
mod record;
mod rootfs;
mod runtime;
mod server;
mod shim;
mod stats;
mod stdio;
mod sys;
mod task;

pub use args::ShimArgs;

use std::process::ExitCode;

/// Runs `gantry shim …`: call it from `main` before any thread exists, it forks.
///
/// Returns in the process that was started; the server it leaves behind never returns.
pub fn run(args: &ShimArgs) -> ExitCode {
    let done = match args.action {
        args::Action::Start => bootstrap::start(args),
        args::Action::Delete => cleanup::delete(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim {}/{}: {error}", args.namespace, args.id);
            ExitCode::FAILURE
        }
    }
}
