//! Kernel settings that belong to the container's own namespaces.
//!
//! Others would change the whole host; no runtime sets them, so they are refused here, privileged or not.
//! Source: Linux, `sysctl` tables of the ipc and network namespaces.

use super::error::{Result, SpecError};

use contracts::containers::Options;
use std::collections::HashMap;

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Checks every key against the namespaces that the container has of its own.
pub(super) fn all(options: &Options) -> Result<Option<HashMap<String, String>>> {
    for key in options.sysctls.keys() {
        check(key, options)?;
    }
    let settings: HashMap<_, _> = options.sysctls.clone().into_iter().collect();
    Ok(Some(settings).filter(|settings| !settings.is_empty()))
}

fn check(key: &str, options: &Options) -> Result<()> {
    let refuse = |problem: &str| Err(SpecError::new("sysctls", key, problem));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-' | ':');
    let climbs = key.split(['.', '/']).any(str::is_empty);
    if !key.chars().all(plain) || climbs {
        return refuse("must be names with dots between them, as in net.ipv4.ip_forward");
    }
    let dotted = key.replace('/', ".");
    let ipc = IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.");
    let net = dotted.starts_with("net.");
    match (ipc, net) {
        (true, _) if options.ipc == "host" => {
            refuse("would change the host's ipc, leave it out or give the container its own")
        }
        (_, true) if options.network == "host" => {
            refuse("would change the host's network, leave it out or use network none")
        }
        (true, _) | (_, true) => Ok(()),
        _ if dotted == "kernel.domainname" => Ok(()),
        _ if dotted == "kernel.hostname" => refuse("is set by the option hostname"),
        _ => refuse("belongs to the whole host and not to a container, set it there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::Labels;

    fn options(key: &str) -> Options {
        Options {
            sysctls: Labels::from([(key.to_owned(), "1".to_owned())]),
            ..Options::default()
        }
    }

    #[test]
    fn settings_of_own_namespaces_pass() {
        for key in [
            "net.ipv4.ip_forward",
            "net/ipv4/conf/eth0.1/forwarding",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
            "kernel.sem",
        ] {
            assert!(all(&options(key)).unwrap().is_some(), "{key}");
        }
        assert_eq!(all(&Options::default()).unwrap(), None);
    }

    #[test]
    fn settings_of_the_host_are_refused_even_when_privileged() {
        for key in [
            "kernel.core_pattern",
            "vm.swappiness",
            "kernel.hostname",
            "net",
            "",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "net.a b",
        ] {
            let asked = Options {
                privileged: true,
                ..options(key)
            };
            assert_eq!(all(&asked).unwrap_err().option, "sysctls", "{key}");
        }
    }

    #[test]
    fn a_shared_namespace_is_the_hosts() {
        let net = Options {
            network: "host".into(),
            ..options("net.core.somaxconn")
        };
        let ipc = Options {
            ipc: "host".into(),
            ..options("fs.mqueue.msg_max")
        };
        assert!(all(&net).is_err() && all(&ipc).is_err());
    }
}
