//! Namespaces, cgroup, what is hidden, and the rest of the spec's `linux` part.

use super::caps::CapSet;
use super::devices;
use super::error::{Result, SpecError};
use super::{paths, resources, seccomp, sysctl};
use crate::host::Host;
use contracts::containers::{Generate, Options};
use contracts::{ContainerId, Namespace};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};

/// Files that tell a container about its host, or let it talk to firmware. Source: Docker's default list.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Files that would change the host. Source: Docker's default list.
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Assembles the `linux` part.
pub(super) fn make(
    namespace: &Namespace,
    request: &Generate,
    caps: CapSet,
    host: &impl Host,
) -> Result<Linux> {
    let options = &request.options;
    let devices = devices::all(options, host)?;
    let paths = |list: &[&str]| {
        let hidden = list.iter().map(|&path| path.to_owned());
        Some(hidden.collect::<Vec<_>>()).filter(|_| !options.privileged)
    };
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(options, host.facts().cgroup2)?))
        .set_cgroups_path(Some(cgroup(namespace, &request.id, options)?.into()))
        .set_resources(Some(resources::all(&options.resources, devices.rules)?))
        .set_devices(Some(devices.nodes).filter(|nodes| !nodes.is_empty()))
        .set_sysctl(sysctl::all(options)?)
        .set_masked_paths(paths(&MASKED))
        .set_readonly_paths(paths(&READONLY))
        .set_seccomp(seccomp::choose(options, caps, &host.facts().machine)?);
    Ok(linux)
}

/// A cgroup namespace comes with version 2 only, as Docker has it: on version 1 the runtime shows the container's part.
fn namespaces(options: &Options, cgroup2: bool) -> Result<Vec<LinuxNamespace>> {
    let own_network = match options.network.as_str() {
        "" | "none" => true,
        "host" => false,
        other => return Err(SpecError::new("network", other, "must be none or host")),
    };
    let wanted = [
        (LinuxNamespaceType::Pid, private("pid", &options.pid)?),
        (LinuxNamespaceType::Ipc, private("ipc", &options.ipc)?),
        (LinuxNamespaceType::Uts, true),
        (LinuxNamespaceType::Mount, true),
        (LinuxNamespaceType::Network, own_network),
        (LinuxNamespaceType::Cgroup, cgroup2),
    ];
    let own = wanted.into_iter().filter(|(_, own)| *own);
    Ok(own
        .map(|(typ, _)| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(typ);
            namespace
        })
        .collect())
}

fn private(option: &str, asked: &str) -> Result<bool> {
    match asked {
        "" => Ok(true),
        "host" => Ok(false),
        other => Err(SpecError::new(
            option,
            other,
            "must be host, or empty for private",
        )),
    }
}

fn cgroup(namespace: &Namespace, id: &ContainerId, options: &Options) -> Result<String> {
    if options.cgroup.is_empty() {
        return Ok(format!("/gantry/{namespace}/{id}"));
    }
    let path = paths::below("cgroup", &options.cgroup)?;
    if path.is_empty() {
        let problem = "must name a cgroup below the root";
        return Err(SpecError::new("cgroup", &options.cgroup, problem));
    }
    Ok(format!("/{path}"))
}
