//! Device nodes, and who may use which.
//!
//! Source: OCI runtime-spec, config-linux.md "Devices", "Default Devices"; containerd's default rules.

use super::error::{Result, SpecError};
use super::paths;
use crate::host::{Device, Host};
use contracts::containers::Options;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// Nodes to make, and the rules that go with them.
pub(super) struct Devices {
    pub(super) nodes: Vec<LinuxDevice>,
    pub(super) rules: Vec<LinuxDeviceCgroup>,
}

/// Character devices of every container: null, zero, full, random, urandom, tty, console, ptmx, all of pts.
const USUAL: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Chooses nodes and rules: the usual ones and those asked for, or all of the host when privileged.
pub(super) fn all(options: &Options, host: &impl Host) -> Result<Devices> {
    let asked = options.devices.iter().map(|text| asked(text, host));
    let asked: Vec<(Device, String)> = asked.collect::<Result<_>>()?;
    let mut devices = Devices {
        nodes: Vec::new(),
        rules: Vec::new(),
    };
    if options.privileged {
        devices.rules.push(rule(true, None, None, None, "rwm"));
        let all = host.devices().map_err(|error| {
            SpecError::new(
                "privileged",
                "",
                format!("cannot list the host's /dev: {error}"),
            )
        })?;
        let others = all
            .iter()
            .filter(|one| asked.iter().all(|(device, _)| device.path != one.path));
        devices.nodes.extend(others.map(node));
    } else {
        devices.rules = usual();
        devices.rules.extend(asked.iter().map(|(device, access)| {
            rule(
                true,
                Some(kind(device)),
                Some(device.major),
                Some(device.minor),
                access,
            )
        }));
    }
    devices
        .nodes
        .extend(asked.iter().map(|(device, _)| node(device)));
    Ok(devices)
}

/// Everything is denied first; any node may be made (`m`), for making one gives no access.
fn usual() -> Vec<LinuxDeviceCgroup> {
    let mut rules = vec![
        rule(false, None, None, None, "rwm"),
        rule(true, Some(LinuxDeviceType::C), None, None, "m"),
        rule(true, Some(LinuxDeviceType::B), None, None, "m"),
    ];
    rules.extend(
        USUAL.map(|(major, minor)| rule(true, Some(LinuxDeviceType::C), Some(major), minor, "rwm")),
    );
    rules
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(kind)
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    rule
}

fn kind(device: &Device) -> LinuxDeviceType {
    if device.block {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    }
}

fn node(device: &Device) -> LinuxDevice {
    let mut node = LinuxDevice::default();
    node.set_path(device.path.clone().into())
        .set_typ(kind(device))
        .set_major(device.major)
        .set_minor(device.minor)
        .set_file_mode(Some(device.mode))
        .set_uid(Some(device.uid))
        .set_gid(Some(device.gid));
    node
}

/// Reads `host[:inside][:access]` and looks the device up.
fn asked(text: &str, host: &impl Host) -> Result<(Device, String)> {
    let refuse = |problem: &str| SpecError::new("devices", text, problem);
    let parts: Vec<&str> = text.split(':').collect();
    let (source, inside, access) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, access] if !access.starts_with('/') => (source, source, access),
        [source, inside] => (source, inside, "rwm"),
        [source, inside, access] => (source, inside, access),
        _ => {
            return Err(refuse(
                "must be host path, path inside, access, as in /dev/sda:/dev/xvda:rw",
            ));
        }
    };
    let repeated = access.chars().any(|c| access.matches(c).count() > 1);
    if access.is_empty() || repeated || !access.chars().all(|c| "rwm".contains(c)) {
        return Err(refuse("access must be one or more of r, w and m"));
    }
    let source = paths::absolute("devices", source)?;
    let inside = paths::absolute("devices", inside)?;
    if !inside.starts_with("/dev/") {
        return Err(refuse("the path inside must be below /dev/"));
    }
    let mut device = host
        .device(&source)
        .map_err(|error| refuse(&format!("not usable on this host: {error}")))?;
    device.path = inside;
    Ok((device, access.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    fn options(devices: &[&str]) -> Options {
        Options {
            devices: devices.iter().map(|&one| one.to_owned()).collect(),
            ..Options::default()
        }
    }
    fn last_rule(devices: &Devices) -> String {
        devices.rules.last().unwrap().to_string()
    }

    #[test]
    fn everything_is_denied_before_anything_is_allowed() {
        let devices = all(&options(&[]), &FakeHost::default()).unwrap();
        assert_eq!(devices.rules[0].to_string(), "a *:* rwm");
        assert!(!devices.rules[0].allow() && devices.rules[1..].iter().all(|rule| rule.allow()));
        assert!(devices.nodes.is_empty());
    }

    #[test]
    fn a_device_is_handed_in_under_its_path_or_another() {
        for (asked, path, rule) in [
            ("/dev/fuse", "/dev/fuse", "c 10:229 rwm"),
            ("/dev/fuse:rw", "/dev/fuse", "c 10:229 rw"),
            ("/dev/sda:/dev/xvda", "/dev/xvda", "b 8:0 rwm"),
            ("/dev/sda:/dev/disk/root:r", "/dev/disk/root", "b 8:0 r"),
        ] {
            let devices = all(&options(&[asked]), &FakeHost::default()).unwrap();
            assert_eq!(devices.nodes[0].path().to_str(), Some(path));
            assert_eq!(last_rule(&devices), rule);
        }
    }

    #[test]
    fn a_privileged_container_has_every_device_once() {
        let asked = Options {
            privileged: true,
            ..options(&["/dev/fuse:r"])
        };
        let devices = all(&asked, &FakeHost::default()).unwrap();
        assert_eq!(devices.nodes.len(), 2);
        assert_eq!(last_rule(&devices), "a *:* rwm");
        assert_eq!(devices.rules.len(), 1);
    }

    #[test]
    fn a_wrong_device_is_refused_with_what_was_written() {
        for bad in [
            "",
            "fuse",
            "/dev/none",
            "/dev/fuse:x",
            "/dev/fuse:rr",
            "/dev/fuse:",
            "/dev/fuse:/etc/x",
            "/dev/fuse:/dev/../etc",
            "/dev/fuse:/dev/f:rw:more",
            "/dev/fuse:/dev",
        ] {
            let error = all(&options(&[bad]), &FakeHost::default()).err().unwrap();
            assert_eq!(error.option, "devices", "{bad}");
        }
    }
}
