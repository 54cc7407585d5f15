//! What is mounted over the root file system, in order.
//!
//! The usual ones are those of Docker: `/run` is the image's own, cgroups are visible and read-only.
//! Source: OCI runtime-spec, config.md "Mounts", config-linux.md "Default Filesystems".

use super::error::{Result, SpecError};
use super::paths;
use crate::host::Host;
use contracts::containers::{Options, UserMount};
use oci_spec::runtime::Mount;

const PROPAGATIONS: [&str; 8] = [
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// Lists the mounts of a container: the usual ones that the user did not replace, then the user's.
pub(super) fn all(options: &Options, host: &impl Host) -> Result<Vec<Mount>> {
    let mut wanted: Vec<Mount> = Vec::new();
    for asked in &options.mounts {
        let mount = user(asked)?;
        if wanted
            .iter()
            .any(|have| have.destination() == mount.destination())
        {
            let problem = "is asked for twice, name each destination once";
            return Err(SpecError::new("mounts", &asked.destination, problem));
        }
        wanted.push(mount);
    }
    let mut mounts = usual(options);
    if options.network == "host" {
        mounts.extend(name_files(host));
    }
    mounts.retain(|usual| {
        wanted
            .iter()
            .all(|one| one.destination() != usual.destination())
    });
    mounts.extend(wanted);
    Ok(mounts)
}

fn usual(options: &Options) -> Vec<Mount> {
    let system: &[&str] = if options.privileged { &[] } else { &["ro"] };
    let quiet = ["nosuid", "noexec", "nodev"];
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    vec![
        mount("/proc", "proc", "proc", &quiet),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        if options.ipc == "host" {
            mount(
                "/dev/shm",
                "bind",
                "/dev/shm",
                &["rbind", "rprivate", "nosuid", "noexec", "nodev"],
            )
        } else {
            mount("/dev/shm", "tmpfs", "shm", &shm)
        },
        mount("/dev/mqueue", "mqueue", "mqueue", &quiet),
        mount("/sys", "sysfs", "sysfs", &[&quiet[..], system].concat()),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &[&quiet[..], &["relatime"], system].concat(),
        ),
    ]
}

/// On the host's network the host's resolver and names are the right ones.
fn name_files(host: &impl Host) -> impl Iterator<Item = Mount> {
    ["/etc/resolv.conf", "/etc/hosts"]
        .into_iter()
        .filter(|path| host.has(path))
        .map(|path| mount(path, "bind", path, &["rbind", "rprivate", "ro"]))
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(|&one| one.to_owned()).collect()));
    mount
}

fn user(asked: &UserMount) -> Result<Mount> {
    let destination = paths::absolute("mounts.destination", &asked.destination)?;
    if destination == "/" {
        let problem = "the root file system is the container's snapshot, mount below it";
        return Err(SpecError::new(
            "mounts.destination",
            &asked.destination,
            problem,
        ));
    }
    let given: Vec<&str> = asked.options.iter().map(String::as_str).collect();
    if given.contains(&"") {
        return Err(SpecError::new(
            "mounts.options",
            &asked.destination,
            "has an empty option, leave it out",
        ));
    }
    if asked.readonly && given.contains(&"rw") {
        return Err(SpecError::new(
            "mounts.readonly",
            &asked.destination,
            "contradicts the option rw, keep one of them",
        ));
    }
    let (typ, source, mut options) = match asked.r#type.as_str() {
        "" | "bind" => ("bind", bind_source(asked)?, bind_options(&given)),
        "tmpfs" if given.is_empty() => (
            "tmpfs",
            named_source(asked),
            vec!["nosuid", "noexec", "nodev"],
        ),
        other => (other, named_source(asked), given.clone()),
    };
    if asked.readonly && !given.contains(&"ro") {
        options.push("ro");
    }
    Ok(mount(&destination, typ, source, &options))
}

fn bind_source(asked: &UserMount) -> Result<&str> {
    if asked.source.starts_with('/') {
        return Ok(&asked.source);
    }
    let problem = format!(
        "a bind to {} needs an absolute path of the host",
        asked.destination
    );
    Err(SpecError::new("mounts.source", &asked.source, problem))
}

fn named_source(asked: &UserMount) -> &str {
    if asked.source.is_empty() {
        &asked.r#type
    } else {
        &asked.source
    }
}

/// Private unless asked otherwise: what the host mounts later below the source does not appear inside.
fn bind_options<'a>(given: &[&'a str]) -> Vec<&'a str> {
    let mut options = Vec::new();
    if !given.iter().any(|one| matches!(*one, "bind" | "rbind")) {
        options.push("rbind");
    }
    if !given.iter().any(|one| PROPAGATIONS.contains(one)) {
        options.push("rprivate");
    }
    options.extend(given);
    options
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    fn options(mounts: &[UserMount]) -> Options {
        Options {
            mounts: mounts.to_vec(),
            ..Options::default()
        }
    }
    fn bind(source: &str, destination: &str) -> UserMount {
        UserMount {
            source: source.into(),
            destination: destination.into(),
            ..UserMount::default()
        }
    }
    fn find<'a>(mounts: &'a [Mount], destination: &str) -> Vec<&'a Mount> {
        mounts
            .iter()
            .filter(|m| m.destination().to_str() == Some(destination))
            .collect()
    }
    fn flags(mount: &Mount) -> Vec<&str> {
        mount
            .options()
            .iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn system_file_systems_are_read_only_unless_privileged() {
        for privileged in [false, true] {
            let mounts = all(
                &Options {
                    privileged,
                    ..Options::default()
                },
                &FakeHost::default(),
            )
            .unwrap();
            for system in ["/sys", "/sys/fs/cgroup"] {
                assert_eq!(flags(find(&mounts, system)[0]).contains(&"ro"), !privileged);
            }
        }
    }

    #[test]
    fn a_users_mount_replaces_a_usual_one() {
        let tmpfs = UserMount {
            r#type: "tmpfs".into(),
            destination: "//dev/shm/".into(),
            options: vec!["size=1g".into()],
            ..UserMount::default()
        };
        let mounts = all(&options(&[tmpfs]), &FakeHost::default()).unwrap();
        let shm = find(&mounts, "/dev/shm");
        assert_eq!(shm.len(), 1);
        assert_eq!(flags(shm[0]), ["size=1g"]);
    }

    #[test]
    fn binds_are_recursive_and_private_unless_asked_otherwise() {
        let mut second = bind("/a", "/c");
        second.options = vec!["bind".into(), "rshared".into()];
        second.readonly = true;
        let mounts = all(&options(&[bind("/a", "/b"), second]), &FakeHost::default()).unwrap();
        assert_eq!(flags(find(&mounts, "/b")[0]), ["rbind", "rprivate"]);
        assert_eq!(flags(find(&mounts, "/c")[0]), ["bind", "rshared", "ro"]);
    }

    #[test]
    fn the_hosts_network_brings_the_hosts_names() {
        let host = FakeHost {
            files: vec!["/etc/resolv.conf".into()],
            ..FakeHost::default()
        };
        let asked = Options {
            network: "host".into(),
            ..Options::default()
        };
        let mounts = all(&asked, &host).unwrap();
        assert_eq!(
            flags(find(&mounts, "/etc/resolv.conf")[0]),
            ["rbind", "rprivate", "ro"]
        );
        assert!(find(&mounts, "/etc/hosts").is_empty());
    }

    #[test]
    fn wrong_mounts_are_refused_by_field() {
        let mut both = bind("/a", "/b");
        both.readonly = true;
        both.options = vec!["rw".into()];
        for (mount, option) in [
            (bind("a", "/b"), "mounts.source"),
            (bind("", "/b"), "mounts.source"),
            (bind("/a", "b"), "mounts.destination"),
            (bind("/a", "/"), "mounts.destination"),
            (bind("/a", "/b/../c"), "mounts.destination"),
            (both, "mounts.readonly"),
        ] {
            let error = all(&options(&[mount]), &FakeHost::default()).unwrap_err();
            assert_eq!(error.option, option);
        }
        let twice = [bind("/a", "/b"), bind("/c", "/b/")];
        assert_eq!(
            all(&options(&twice), &FakeHost::default())
                .unwrap_err()
                .option,
            "mounts"
        );
    }
}
