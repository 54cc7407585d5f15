//! Capabilities by name, number and set.

use super::error::{Result, SpecError};
use contracts::containers::Caps;
use oci_spec::runtime::{Capabilities, Capability};

/// Every capability at its number, 0 to 40. Source: Linux 6.x, `uapi/linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless asked otherwise. Source: containerd, default spec.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities: bit `n` is number `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CapSet(u64);

impl CapSet {
    /// Says whether `name`, without `CAP_`, is in it.
    pub(super) fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }
    /// As the runtime spec's library has it.
    pub(super) fn to_oci(self) -> Capabilities {
        let have = NAMES.iter().filter(|name| self.has(name));
        have.filter_map(|name| name.parse::<Capability>().ok())
            .collect()
    }
}

fn bit(name: &str) -> Option<u64> {
    let number = NAMES.iter().position(|known| *known == name)?;
    Some(1 << number)
}

fn every() -> u64 {
    (1 << NAMES.len()) - 1
}

/// Applies what the user asked to the default set, or to all of `host` when `privileged`.
///
/// `all` under `add` starts from everything, and `drop` still takes away from that. A name in both stays.
/// Errors: an unknown name; one under `add` that this host does not have.
pub(super) fn choose(asked: &Caps, privileged: bool, host: u64) -> Result<CapSet> {
    let host = host & every();
    let everything = privileged || asked.add.iter().any(|name| is_all(name));
    let mut set = if everything {
        host
    } else {
        DEFAULT.iter().filter_map(|name| bit(name)).sum::<u64>() & host
    };
    for name in &asked.drop {
        set &= !parse("caps.drop", name)?;
    }
    for name in asked.add.iter().filter(|name| !is_all(name)) {
        let wanted = parse("caps.add", name)?;
        if wanted & host == 0 {
            let problem = "this host does not have it to give, leave it out";
            return Err(SpecError::new("caps.add", name, problem));
        }
        set |= wanted;
    }
    Ok(CapSet(set))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case("cap_all")
}

fn parse(option: &str, name: &str) -> Result<u64> {
    if is_all(name) {
        return Ok(every());
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bit(bare).ok_or_else(|| {
        let problem = "unknown capability, capabilities(7) lists them, as in NET_ADMIN";
        SpecError::new(option, name, problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(add: &[&str], drop: &[&str]) -> Caps {
        let own = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Caps {
            add: own(add),
            drop: own(drop),
        }
    }

    #[test]
    fn every_name_is_one_that_runtimes_know() {
        assert_eq!(CapSet(every()).to_oci().len(), NAMES.len());
        assert_eq!(NAMES[21], "SYS_ADMIN");
        assert_eq!(NAMES[40], "CHECKPOINT_RESTORE");
    }

    #[test]
    fn fourteen_are_given_by_default() {
        let set = choose(&Caps::default(), false, u64::MAX).unwrap();
        assert_eq!(set.to_oci().len(), 14);
        assert!(set.has("CHOWN") && !set.has("SYS_ADMIN"));
    }

    #[test]
    fn names_come_with_and_without_prefix_in_any_case() {
        let set = choose(
            &caps(&["cap_net_admin", "Sys_Ptrace"], &["CAP_CHOWN"]),
            false,
            u64::MAX,
        )
        .unwrap();
        assert!(set.has("NET_ADMIN") && set.has("SYS_PTRACE") && !set.has("CHOWN"));
    }

    #[test]
    fn drops_come_before_additions() {
        let only = choose(&caps(&["KILL"], &["all"]), false, u64::MAX).unwrap();
        assert_eq!(only, CapSet(1 << 5));
        let but_one = choose(&caps(&["ALL"], &["SYS_ADMIN"]), false, u64::MAX).unwrap();
        assert_eq!(but_one, CapSet(every() & !(1 << 21)));
    }

    #[test]
    fn a_host_gives_only_what_it_has() {
        let host = !(1 << 24);
        assert!(
            !choose(&Caps::default(), true, host)
                .unwrap()
                .has("SYS_RESOURCE")
        );
        let error = choose(&caps(&["SYS_RESOURCE"], &[]), false, host).unwrap_err();
        assert_eq!(
            (error.option.as_str(), error.value.as_str()),
            ("caps.add", "SYS_RESOURCE")
        );
    }

    #[test]
    fn unknown_names_are_refused() {
        for bad in ["CAP_", "", "CAP_CAP_KILL", "ROOT"] {
            assert!(
                choose(&caps(&[bad], &[]), false, u64::MAX).is_err(),
                "{bad}"
            );
            assert!(
                choose(&caps(&[], &[bad]), false, u64::MAX).is_err(),
                "{bad}"
            );
        }
    }
}
