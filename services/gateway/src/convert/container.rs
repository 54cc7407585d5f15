//! Containers, and everything that a user may ask of one.

use super::image::{AuthBody, access};
use super::{json, text};
use contracts::containers::{Caps, Container, Options, Resources, Rlimit, Runtime, UserMount};
use contracts::operations::CreateContainer;
use contracts::{ContainerId, Error, ImageName, Result, SnapshotKey, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One container.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Container)]
pub(crate) struct ContainerView {
    /// Its id.
    #[schema(value_type = String)]
    pub(crate) id: ContainerId,
    /// The image it was made from.
    #[schema(value_type = Option<String>)]
    image: Option<ImageName>,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// Which shim runs it.
    runtime: RuntimeView,
    /// Snapshot driver; empty for none.
    snapshotter: String,
    /// Its writable snapshot.
    #[schema(value_type = Option<String>)]
    snapshot_key: Option<SnapshotKey>,
    /// OCI runtime spec; not in lists.
    #[serde(skip_serializing_if = "Value::is_null")]
    #[schema(value_type = Option<Object>)]
    spec: Value,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// What `If-Match` compares.
    version: u64,
}

/// Which shim runs a container.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Runtime)]
pub(crate) struct RuntimeView {
    /// Empty or `io.gantry.v1` for gantry's own shim.
    name: String,
    /// Options for the shim; null for none.
    #[schema(value_type = Option<Object>)]
    options: Value,
}

impl From<Container> for ContainerView {
    fn from(container: Container) -> Self {
        Self {
            id: container.id,
            image: container.image,
            labels: container.labels,
            runtime: RuntimeView {
                name: container.runtime.name,
                options: json(&container.runtime.options),
            },
            snapshotter: container.snapshotter,
            snapshot_key: container.snapshot_key,
            spec: json(&container.spec),
            created_at: container.created_at,
            updated_at: container.updated_at,
            version: container.version,
        }
    }
}

/// A container to be made: from an image and options, or from a whole OCI spec.
#[derive(Clone, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = NewContainer)]
pub(crate) struct ContainerBody {
    /// Its id; made up when absent.
    #[schema(pattern = "^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$", max_length = 76)]
    id: Option<String>,
    /// As a user types it, `busybox:1.36`.
    image: String,
    /// Replaces the image's entrypoint and command together.
    args: Vec<String>,
    /// Replaces only the image's command; may not stand beside `args`.
    command: Vec<String>,
    /// `K=V` sets or overrides; `K` alone removes.
    env: Vec<String>,
    /// Absolute; empty keeps the image's, or `/`.
    cwd: String,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty keeps the image's, or root.
    user: String,
    /// Supplementary groups by name or id.
    groups: Vec<String>,
    /// Whether the process has a terminal.
    tty: bool,
    /// Whether stdin stays open for writers that come later.
    stdin: bool,
    /// Empty for the container's id.
    hostname: String,
    /// Besides the usual `/proc`, `/dev`, `/sys`.
    mounts: Vec<MountBody>,
    /// Changes to the default capabilities.
    caps: CapsBody,
    /// Limits.
    resources: ResourcesBody,
    /// Host devices, `/dev/fuse` or `/dev/sda:/dev/xvda:rw`.
    devices: Vec<String>,
    /// Per-process limits.
    rlimits: Vec<RlimitBody>,
    /// Whether the root file system is mounted read-only.
    readonly: bool,
    /// All capabilities and devices, no masked paths, no seccomp.
    privileged: bool,
    /// `none` or `host`; empty is `none`.
    network: String,
    /// `host` shares the host's process ids.
    pid: String,
    /// `host` shares.
    ipc: String,
    /// Kernel settings of the container's namespaces.
    sysctls: BTreeMap<String, String>,
    /// OCI annotations.
    annotations: BTreeMap<String, String>,
    /// `"unconfined"`, or a seccomp profile as an object; absent for the default profile.
    #[schema(value_type = Option<Object>)]
    seccomp: Value,
    /// Path below the cgroup root; empty for `/gantry/<namespace>/<id>`.
    cgroup: String,
    /// Whether set-uid files give privileges; true when absent.
    new_privileges: Option<bool>,
    /// Wanted `oom_score_adj`.
    oom_score_adj: Option<i32>,
    /// Its labels.
    labels: BTreeMap<String, String>,
    /// Which shim runs it: a name, or `{name, options}`.
    #[schema(value_type = Object)]
    runtime: RuntimeBody,
    /// Snapshot driver; empty for the node's default.
    snapshotter: String,
    /// `linux/arm64/v8`; empty for this machine's.
    platform: String,
    /// `missing` (the default), `always` or `never`.
    pull: String,
    /// Speak plain HTTP when the image must be pulled.
    plain_http: bool,
    /// Credentials when the image must be pulled.
    auth: Option<AuthBody>,
    /// A whole OCI runtime spec instead of options.
    #[schema(value_type = Option<Object>)]
    spec: Value,
    /// Not offered yet.
    #[schema(value_type = Option<Object>)]
    restart: Value,
}

/// A mount that a user asks for.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = NewMount)]
pub(crate) struct MountBody {
    /// `bind` (the default), `tmpfs`, or any file system the kernel has.
    r#type: String,
    /// Absolute host path for `bind`.
    source: String,
    /// Absolute path in the container.
    destination: String,
    /// fstab-style.
    options: Vec<String>,
    /// Adds `ro`.
    readonly: bool,
}

/// Changes to the default capabilities.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Caps)]
pub(crate) struct CapsBody {
    /// Added.
    add: Vec<String>,
    /// Dropped, before additions.
    drop: Vec<String>,
}

/// Limits of a container; 0 or empty leaves one alone.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Resources)]
pub(crate) struct ResourcesBody {
    /// Bytes.
    memory: u64,
    /// Memory plus swap, bytes; -1 for unlimited.
    memory_swap: i64,
    /// Soft limit, bytes.
    memory_reservation: u64,
    /// Processors, in thousandths.
    cpu_millis: u64,
    /// Relative weight, 2 to 262144.
    cpu_shares: u64,
    /// List of processors, `0-1,3`.
    cpuset_cpus: String,
    /// List of memory nodes.
    cpuset_mems: String,
    /// Most processes; -1 for unlimited.
    pids: i64,
    /// 10 to 1000.
    blkio_weight: u16,
}

/// One per-process limit.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Rlimit)]
pub(crate) struct RlimitBody {
    /// `RLIMIT_NOFILE`, or `nofile`.
    r#type: String,
    /// Soft limit.
    soft: u64,
    /// Hard limit.
    hard: u64,
}

/// A runtime by name alone, or with options.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct RuntimeBody {
    name: String,
    options: Value,
}

impl<'de> Deserialize<'de> for RuntimeBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            name: String,
            #[serde(default)]
            options: Value,
        }
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self::default()),
            Value::String(name) => Ok(Self {
                name,
                options: Value::Null,
            }),
            full => {
                let Full { name, options } = Full::deserialize(full)
                    .map_err(|e| de::Error::custom(format!("runtime: {e}")))?;
                Ok(Self { name, options })
            }
        }
    }
}

impl ContainerBody {
    /// Types the request; `generated` is the id of a nameless container.
    ///
    /// Errors: `InvalidArgument` naming the field; `Unimplemented` for `restart`.
    pub(crate) fn typed(self, generated: &str) -> Result<CreateContainer> {
        if !self.restart.is_null() {
            return Err(Error::unimplemented(
                "restart: policies are not offered yet; watch /v1/events for /tasks/exit and start again",
            ));
        }
        let id = ContainerId::new(self.id.clone().unwrap_or_else(|| generated.to_owned()))?;
        let (spec, runtime) = (text("spec", &self.spec)?, self.runtime.typed()?);
        if self.image.is_empty() && spec.is_empty() {
            return Err(Error::invalid(format!(
                "container {id}: needs an image or a whole spec"
            )));
        }
        Ok(CreateContainer {
            id,
            image: self.image.clone(),
            spec,
            labels: self.labels.clone(),
            runtime,
            snapshotter: self.snapshotter.clone(),
            platform: self.platform.clone(),
            access: access(self.plain_http, self.auth.clone()),
            pull: self.pull.clone(),
            options: self.options()?,
        })
    }

    fn options(self) -> Result<Options> {
        let seccomp = match &self.seccomp {
            Value::String(name) => name.clone(),
            profile => text("seccomp", profile)?,
        };
        Ok(Options {
            args: self.args,
            command: self.command,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            groups: self.groups,
            tty: self.tty,
            stdin: self.stdin,
            hostname: self.hostname,
            mounts: self.mounts.into_iter().map(Into::into).collect(),
            caps: self.caps.into(),
            resources: self.resources.into(),
            devices: self.devices,
            rlimits: self.rlimits.into_iter().map(Into::into).collect(),
            readonly: self.readonly,
            privileged: self.privileged,
            network: self.network,
            pid: self.pid,
            ipc: self.ipc,
            sysctls: self.sysctls,
            annotations: self.annotations,
            seccomp,
            cgroup: self.cgroup,
            new_privileges: self.new_privileges,
            oom_score_adj: self.oom_score_adj,
        })
    }
}

impl RuntimeBody {
    fn typed(&self) -> Result<Runtime> {
        Ok(Runtime {
            name: self.name.clone(),
            options: text("runtime.options", &self.options)?,
        })
    }
}

impl From<MountBody> for UserMount {
    fn from(body: MountBody) -> Self {
        Self {
            r#type: body.r#type,
            source: body.source,
            destination: body.destination,
            options: body.options,
            readonly: body.readonly,
        }
    }
}

impl From<CapsBody> for Caps {
    fn from(body: CapsBody) -> Self {
        Self {
            add: body.add,
            drop: body.drop,
        }
    }
}

impl From<ResourcesBody> for Resources {
    fn from(body: ResourcesBody) -> Self {
        Self {
            memory: body.memory,
            memory_swap: body.memory_swap,
            memory_reservation: body.memory_reservation,
            cpu_millis: body.cpu_millis,
            cpu_shares: body.cpu_shares,
            cpuset_cpus: body.cpuset_cpus,
            cpuset_mems: body.cpuset_mems,
            pids: body.pids,
            blkio_weight: body.blkio_weight,
        }
    }
}

impl From<RlimitBody> for Rlimit {
    fn from(body: RlimitBody) -> Self {
        Self {
            r#type: body.r#type,
            soft: body.soft,
            hard: body.hard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(json: &str) -> Result<CreateContainer, String> {
        let body: ContainerBody = serde_json::from_str(json).map_err(|e| e.to_string())?;
        body.typed("abc").map_err(|e| e.to_string())
    }

    #[test]
    fn every_option_that_containers_knows_can_be_asked_for() {
        let Value::Object(options) = serde_json::to_value(Options::default()).unwrap() else {
            panic!("options are an object");
        };
        for (name, value) in options {
            let value = if name == "seccomp" {
                "unconfined".into()
            } else {
                value
            };
            let body = serde_json::json!({"image": "a", name.clone(): value}).to_string();
            assert!(typed(&body).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_runtime_is_a_name_or_a_name_with_options() {
        assert_eq!(
            typed(r#"{"image":"a","runtime":"runc"}"#)
                .unwrap()
                .runtime
                .name,
            "runc"
        );
        let full = typed(r#"{"image":"a","runtime":{"name":"x","options":{"a":1}}}"#).unwrap();
        assert_eq!(full.runtime.options, r#"{"a":1}"#);
        let wrong = typed(r#"{"image":"a","runtime":{"nam":"x"}}"#).unwrap_err();
        assert!(wrong.contains("nam"), "{wrong}");
    }

    #[test]
    fn an_unknown_field_is_named() {
        let wrong = typed(r#"{"image":"a","memory":5}"#).unwrap_err();
        assert!(wrong.contains("unknown field `memory`"), "{wrong}");
    }

    #[test]
    fn a_nameless_container_gets_the_generated_id_and_an_empty_one_is_refused() {
        assert_eq!(typed(r#"{"image":"a"}"#).unwrap().id.as_str(), "abc");
        assert!(typed("{}").unwrap_err().contains("needs an image"));
    }

    #[test]
    fn a_spec_travels_as_text() {
        assert_eq!(
            typed(r#"{"spec":{"ociVersion":"1.2.0"}}"#).unwrap().spec,
            r#"{"ociVersion":"1.2.0"}"#
        );
        assert!(
            typed(r#"{"spec":"{}"}"#)
                .unwrap_err()
                .contains("JSON object")
        );
    }
}
