//! Container records, and the OCI spec that is made for them on the server.

use crate::{ContainerId, ImageName, LabelPatch, Labels, Page, Paging, SnapshotKey, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// Container records. A record is a gc root: its image, snapshot and what its labels name stay.
    Containers = "containers" {
        write create(Create) -> Container;
        read get(Get) -> Container;
        read list(List) -> Page<Container>;
        write update(Update) -> Container;
        write delete(Delete) -> ();
        read generate(Generate) -> String;
    } emits {
        "/containers/create" => Created;
        "/containers/update" => Updated;
        "/containers/delete" => Deleted;
    }
}

/// One container record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// The image it was made from.
    pub image: Option<ImageName>,
    /// Its labels.
    pub labels: Labels,
    /// Which shim runs it, and how.
    pub runtime: Runtime,
    /// Snapshot driver; empty for none.
    pub snapshotter: String,
    /// Its writable snapshot.
    pub snapshot_key: Option<SnapshotKey>,
    /// OCI runtime spec as JSON text; empty in lists.
    pub spec: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Grows with every change of this record.
    pub version: u64,
}

/// Which shim runs a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// Empty or `io.gantry.v1` for gantry's own shim; `runc` for it with runc inside; a runtime-v2 name such as
    /// `io.containerd.runc.v2`, or the absolute path of a shim.
    pub name: String,
    /// Options for the shim as JSON text; empty for none.
    pub options: String,
}

/// Makes a record. Errors: `AlreadyExists`; `InvalidArgument` naming the field.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    /// Its id.
    pub id: ContainerId,
    /// The image it is made from.
    #[serde(default)]
    pub image: Option<ImageName>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Which shim runs it.
    #[serde(default)]
    pub runtime: Runtime,
    /// Snapshot driver; empty for none.
    #[serde(default)]
    pub snapshotter: String,
    /// Its writable snapshot.
    #[serde(default)]
    pub snapshot_key: Option<SnapshotKey>,
    /// OCI runtime spec as JSON text, taken whole (see [`Generate`] for making one).
    pub spec: String,
}

/// Looks up one container. Errors: `NotFound`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// Its id.
    pub id: ContainerId,
}

/// Lists containers of the caller's namespace, by id, without their specs.
///
/// Filter fields: `id`, `image`, `labels`, `runtime.name`, `snapshotter`, `snapshot_key`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct List {
    /// Which part.
    pub paging: Paging,
}

/// Changes labels, and spec or image when given. Errors: `NotFound`, `InvalidArgument`, `Aborted` for a stale `version`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Update {
    /// Its id.
    pub id: ContainerId,
    /// The change of labels.
    #[serde(default)]
    pub labels: LabelPatch,
    /// New spec as JSON text; the task must be made anew to see it.
    #[serde(default)]
    pub spec: Option<String>,
    /// New image name.
    #[serde(default)]
    pub image: Option<ImageName>,
    /// The version the caller saw.
    #[serde(default)]
    pub version: Option<u64>,
}

/// Deletes a record; its snapshot stays until collected. Errors: `NotFound`.
///
/// The caller sees to it that there is no task; `operations` does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Delete {
    /// Its id.
    pub id: ContainerId,
}

/// Makes an OCI runtime spec from an image's config and what the user asked for. Pure: changes nothing.
///
/// Errors: `InvalidArgument` naming option and value (unknown capability, user not in the image's passwd, …).
/// Source: OCI runtime-spec, config.md; OCI image-spec, conversion.md.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generate {
    /// For whom.
    pub id: ContainerId,
    /// The image's config as JSON text; empty for none.
    pub config: String,
    /// The image's `/etc/passwd`; empty when it has none.
    pub passwd: String,
    /// The image's `/etc/group`; empty when it has none.
    pub group: String,
    /// What the user asked for.
    pub options: Options,
}

/// What a user may ask of a container beyond its image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Replaces the image's `Entrypoint` and `Cmd` together, as `docker run --entrypoint` with arguments would; empty keeps them.
    pub args: Vec<String>,
    /// Replaces only the image's `Cmd`; may not stand beside `args`.
    pub command: Vec<String>,
    /// `K=V` sets or overrides; `K` alone removes.
    pub env: Vec<String>,
    /// Absolute; empty keeps the image's, or `/`.
    pub cwd: String,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty keeps the image's, or root.
    pub user: String,
    /// Supplementary groups by name or id, besides those of the image's group file.
    pub groups: Vec<String>,
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether stdin stays open for writers that come later.
    pub stdin: bool,
    /// Empty for the container's id.
    pub hostname: String,
    /// Besides the usual `/proc`, `/dev`, `/sys`, ….
    pub mounts: Vec<UserMount>,
    /// Capabilities.
    pub caps: Caps,
    /// Limits.
    pub resources: Resources,
    /// Host devices to hand in, `/dev/fuse` or `/dev/sda:/dev/xvda:rw`.
    pub devices: Vec<String>,
    /// Per-process limits.
    pub rlimits: Vec<Rlimit>,
    /// Whether the root file system is mounted read-only.
    pub readonly: bool,
    /// All capabilities and devices, no masked paths, no seccomp, writable cgroup and sysfs.
    pub privileged: bool,
    /// `none` (own namespace, loopback up) or `host`; empty is `none`.
    pub network: String,
    /// `host` shares the host's process ids; empty is private.
    pub pid: String,
    /// `host` shares; empty is private.
    pub ipc: String,
    /// Kernel settings of the container's namespaces.
    pub sysctls: Labels,
    /// OCI annotations.
    pub annotations: Labels,
    /// `unconfined`, or a seccomp profile (OCI runtime-spec `linux.seccomp`) as JSON text; empty for the default profile.
    pub seccomp: String,
    /// Path below the cgroup root; empty for `/gantry/<namespace>/<id>`.
    pub cgroup: String,
    /// Lets processes gain privileges through set-uid files; `None` is true, as Docker has it.
    pub new_privileges: Option<bool>,
    /// Wanted `oom_score_adj`; clamped to what this host lets us set.
    pub oom_score_adj: Option<i32>,
}

/// A mount that a user asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserMount {
    /// `bind` (the default), `tmpfs`, or any file system the kernel has.
    pub r#type: String,
    /// Absolute host path for `bind`.
    pub source: String,
    /// Absolute path in the container.
    pub destination: String,
    /// fstab-style options; `rbind` or `bind` is added to binds.
    pub options: Vec<String>,
    /// Adds `ro`.
    pub readonly: bool,
}

/// Changes to the default capability set. Names with or without `CAP_`, any case; `all` is understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caps {
    /// Added.
    pub add: Vec<String>,
    /// Dropped, before additions.
    pub drop: Vec<String>,
}

/// Limits of a container; 0 or empty leaves one alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resources {
    /// Bytes.
    pub memory: u64,
    /// Memory plus swap, bytes; `-1` for unlimited.
    pub memory_swap: i64,
    /// Soft limit, bytes.
    pub memory_reservation: u64,
    /// Processors, in thousandths: 1500 is one and a half.
    pub cpu_millis: u64,
    /// Relative weight (v1 shares: 2 to 262144).
    pub cpu_shares: u64,
    /// List of processors, `0-1,3`.
    pub cpuset_cpus: String,
    /// List of memory nodes.
    pub cpuset_mems: String,
    /// Most processes; `-1` for unlimited.
    pub pids: i64,
    /// 10 to 1000.
    pub blkio_weight: u16,
}

/// One per-process limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, or `nofile`.
    pub r#type: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A record was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// Its id.
    pub id: ContainerId,
    /// Image name; empty for none.
    pub image: String,
    /// Shim name.
    pub runtime: String,
    /// Its labels.
    pub labels: Labels,
    /// Its snapshot; empty for none.
    pub snapshot_key: String,
    /// As [`Container::version`].
    pub version: u64,
}

/// A record changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Updated {
    /// Its id.
    pub id: ContainerId,
    /// Image name; empty for none.
    pub image: String,
    /// Its labels.
    pub labels: Labels,
    /// Its snapshot; empty for none.
    pub snapshot_key: String,
    /// As [`Container::version`].
    pub version: u64,
}

/// A record went away.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Its id.
    pub id: ContainerId,
}
