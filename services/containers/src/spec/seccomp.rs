//! Which system calls a container may make.
//!
//! Everything that is not allowed fails with `EPERM`. What else a call needs beside its name, a capability or certain
//! arguments, stands in [`rules`]. Source: OCI runtime-spec, config-linux.md "Seccomp"; Docker's default profile.

use super::caps::CapSet;
use super::error::{Result, SpecError};
use super::seccomp_calls as calls;
use contracts::containers::Options;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator as Op,
    LinuxSyscall,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// `CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET`: all that make namespaces.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Personalities that change nothing dangerous: Linux, Linux32, both with `UNAME26`, and the question.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `AF_ALG` talks to the kernel's crypto, a source of holes that containers seldom need.
const AF_ALG: u64 = 38;

/// `AF_VSOCK` (40) talks to the hypervisor behind the host's back; families that stand beside it one by one, for a
/// comparison with "more than 40" would let through a family with bits above the 32 that the kernel looks at.
const SOCKET_FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// Chooses the profile: the user's, none, or the default one.
pub(super) fn choose(
    options: &Options,
    caps: CapSet,
    machine: &str,
) -> Result<Option<LinuxSeccomp>> {
    match options.seccomp.as_str() {
        "unconfined" => Ok(None),
        "" if options.privileged => Ok(None),
        "" => default(caps, machine).map(Some),
        text => parse(text).map(Some),
    }
}

/// Reads a profile in the form of the runtime spec.
///
/// One in Docker's form has conditions that this form lacks; read without them it would allow too much.
fn parse(text: &str) -> Result<LinuxSeccomp> {
    let refuse = |problem: String| SpecError::new("seccomp", text, problem);
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
        refuse(format!(
            "must be unconfined, or a profile as JSON text: {error}"
        ))
    })?;
    let conditional =
        |call: &serde_json::Value| call.get("includes").is_some() || call.get("excludes").is_some();
    let calls = value.get("syscalls").and_then(|calls| calls.as_array());
    if value.get("archMap").is_some() || calls.is_some_and(|calls| calls.iter().any(conditional)) {
        let problem = "is in Docker's form (archMap, includes, excludes), write it as linux.seccomp of the runtime spec";
        return Err(refuse(problem.to_owned()));
    }
    serde_json::from_value(value)
        .map_err(|error| refuse(format!("not a linux.seccomp of the runtime spec: {error}")))
}

/// Makes the default profile for what the container may do and the machine it runs on.
fn default(caps: CapSet, machine: &str) -> Result<LinuxSeccomp> {
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures(machine)))
        .set_syscalls(Some(rules(caps, machine)?));
    Ok(profile)
}

fn architectures(machine: &str) -> Vec<Arch> {
    match machine {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    }
}

fn rules(caps: CapSet, machine: &str) -> Result<Vec<LinuxSyscall>> {
    let mut names: Vec<&str> = calls::ALWAYS.split_whitespace().collect();
    for (_, calls) in calls::ON_MACHINE.iter().filter(|(on, _)| *on == machine) {
        names.extend(calls.split_whitespace());
    }
    for (_, calls) in calls::WITH_CAPABILITY
        .iter()
        .filter(|(cap, _)| caps.has(cap))
    {
        names.extend(calls.split_whitespace());
    }
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![rule(&names)];
    for one in PERSONALITIES {
        rules.push(rule_if("personality", Op::ScmpCmpEq, one, None)?);
    }
    rules.push(rule_if("socket", Op::ScmpCmpLt, AF_ALG, None)?);
    for one in SOCKET_FAMILIES {
        rules.push(rule_if("socket", Op::ScmpCmpEq, one, None)?);
    }
    if !caps.has("SYS_ADMIN") {
        rules.extend(without_namespaces()?);
    }
    Ok(rules)
}

/// Threads and processes, but no namespaces. `clone3` hides its flags in memory, so it is said not to exist: libraries
/// then use `clone`.
fn without_namespaces() -> Result<[LinuxSyscall; 2]> {
    let clone = rule_if("clone", Op::ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0))?;
    let mut clone3 = rule(&["clone3"]);
    clone3
        .set_action(LinuxSeccompAction::ScmpActErrno)
        .set_errno_ret(Some(ENOSYS));
    Ok([clone, clone3])
}

fn rule(names: &[&str]) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names.iter().map(|&name| name.to_owned()).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow);
    call
}

/// Allows a call when its first argument compares well.
fn rule_if(name: &str, op: Op, value: u64, second: Option<u64>) -> Result<LinuxSyscall> {
    let mut argument = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(op);
    if let Some(second) = second {
        argument = argument.value_two(second);
    }
    let mut call = rule(&[name]);
    call.set_args(Some(vec![argument.build()?]));
    Ok(call)
}

#[cfg(test)]
mod tests {
    use super::super::caps;
    use super::*;
    use contracts::containers::Caps;

    fn set(add: &[&str]) -> CapSet {
        let add = add.iter().map(|&name| name.to_owned()).collect();
        caps::choose(
            &Caps {
                add,
                drop: Vec::new(),
            },
            false,
            u64::MAX,
        )
        .unwrap()
    }
    fn allowed(profile: &LinuxSeccomp, name: &str) -> bool {
        let calls = profile.syscalls().iter().flatten();
        calls.clone().any(|call| {
            call.action() == LinuxSeccompAction::ScmpActAllow
                && call.args().is_none()
                && call.names().iter().any(|one| one == name)
        })
    }

    #[test]
    fn calls_that_reach_the_host_are_not_allowed() {
        let profile = default(set(&[]), "x86_64").unwrap();
        for name in [
            "mount",
            "bpf",
            "keyctl",
            "add_key",
            "unshare",
            "setns",
            "kexec_load",
            "init_module",
            "reboot",
            "clone",
            "clone3",
            "userfaultfd",
            "io_uring_setup",
            "open_by_handle_at",
            "perf_event_open",
            "swapon",
            "ptrace_x",
            "socket",
            "personality",
            "iopl",
            "syslog",
            "quotactl",
            "settimeofday",
            "pivot_root",
        ] {
            assert!(!allowed(&profile, name), "{name}");
        }
        for name in [
            "read",
            "openat2",
            "execve",
            "futex",
            "chroot",
            "arch_prctl",
            "rseq",
            "pidfd_open",
        ] {
            assert!(allowed(&profile, name), "{name}");
        }
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let profile = default(set(&["SYS_ADMIN", "SYS_TIME"]), "x86_64").unwrap();
        for name in ["mount", "unshare", "clone", "clone3", "settimeofday"] {
            assert!(allowed(&profile, name), "{name}");
        }
        assert!(!allowed(
            &default(set(&[]), "aarch64").unwrap(),
            "arch_prctl"
        ));
    }

    #[test]
    fn no_name_is_written_twice() {
        let mut names: Vec<&str> = calls::ALWAYS.split_whitespace().collect();
        let machine = calls::ON_MACHINE.iter().map(|(_, calls)| *calls);
        names.extend(machine.flat_map(str::split_whitespace));
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }

    #[test]
    fn a_profile_of_the_user_is_taken_and_docker_form_is_refused() {
        let options = |seccomp: &str| Options {
            seccomp: seccomp.into(),
            ..Options::default()
        };
        let chosen = |seccomp: &str| choose(&options(seccomp), set(&[]), "x86_64");
        assert_eq!(chosen("unconfined").unwrap(), None);
        let own = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}"#;
        assert_eq!(
            chosen(own).unwrap().unwrap().default_action(),
            LinuxSeccompAction::ScmpActAllow
        );
        for bad in [
            "none",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#,
        ] {
            assert_eq!(chosen(bad).unwrap_err().option, "seccomp", "{bad}");
        }
    }
}
