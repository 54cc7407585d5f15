//! What a spec needs to know of the machine that it is for.
//!
//! The generator asks only through [`Host`], so it stays pure and is tested against a machine made up of values.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A machine that containers run on.
pub trait Host {
    /// Says what does not change while it runs.
    fn facts(&self) -> &Facts;
    /// Looks up a device node. Errors: as the system reports them; `InvalidInput` for what is no device.
    fn device(&self, path: &str) -> io::Result<Device>;
    /// Lists the device nodes that a privileged container gets, by path.
    fn devices(&self) -> io::Result<Vec<Device>>;
    /// Says whether `path` is there.
    fn has(&self, path: &str) -> bool;
}

/// What does not change while a machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Bit `n` is set when containers may have capability number `n`.
    pub capabilities: u64,
    /// Whether all of cgroups is version 2; a hybrid set-up is not.
    pub cgroup2: bool,
    /// As `uname -m` says it.
    pub machine: String,
    /// Most descriptors that a process may be allowed (the hard limit).
    pub open_files: u64,
    /// Lowest `oom_score_adj` that we may set.
    pub lowest_oom_score_adj: i32,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it is.
    pub path: String,
    /// Block device, or character device.
    pub block: bool,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
}

const SYS_RESOURCE: u32 = 24;

/// The machine that this process runs on, as it was when asked first.
#[derive(Clone, Debug)]
pub struct ThisHost(Facts);

impl ThisHost {
    /// Reads the facts from `/proc` and `/sys`; what cannot be read is taken at its most careful.
    pub fn look() -> Self {
        let capabilities = capabilities();
        Self(Facts {
            capabilities,
            cgroup2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            machine: std::env::consts::ARCH.to_owned(),
            open_files: hard_open_files().unwrap_or(1024),
            lowest_oom_score_adj: lowest_oom_score_adj(capabilities),
        })
    }
}

impl Host for ThisHost {
    fn facts(&self) -> &Facts {
        &self.0
    }
    fn device(&self, path: &str) -> io::Result<Device> {
        device(path, &fs::metadata(path)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a device"))
    }
    fn devices(&self) -> io::Result<Vec<Device>> {
        walk(Path::new("/dev"))
    }
    fn has(&self, path: &str) -> bool {
        Path::new(path).exists()
    }
}

/// Takes the bounding set of pid 1: this process may have given its own away.
fn capabilities() -> u64 {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok())
        .unwrap_or(40)
        .min(62);
    let known = (1u64 << (last + 1)) - 1;
    let bounding = fs::read_to_string("/proc/1/status").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    bounding.unwrap_or(u64::MAX) & known
}

fn hard_open_files() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn lowest_oom_score_adj(capabilities: u64) -> i32 {
    if capabilities & (1 << SYS_RESOURCE) != 0 {
        return -1000;
    }
    fs::read_to_string("/proc/self/oom_score_adj")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Splits the number as Linux packs it: 12 + 20 bits of major, 8 + 24 bits of minor. Source: glibc, `makedev(3)`.
fn device(path: &str, metadata: &fs::Metadata) -> Option<Device> {
    let block = metadata.file_type().is_block_device();
    if !block && !metadata.file_type().is_char_device() {
        return None;
    }
    let number = metadata.rdev();
    let major = ((number >> 8) & 0xfff) | ((number >> 32) & 0xffff_f000);
    let minor = (number & 0xff) | ((number >> 12) & 0xffff_ff00);
    Some(Device {
        path: path.to_owned(),
        block,
        major: i64::try_from(major).ok()?,
        minor: i64::try_from(minor).ok()?,
        mode: metadata.mode() & 0o777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// Names below `/dev` that a container has of its own, or that are no devices.
const OWN: [&str; 14] = [
    "pts", "shm", "mqueue", "fd", "console", "ptmx", "null", "zero", "full", "tty", "random",
    "urandom", ".udev", "core",
];

fn walk(root: &Path) -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    let mut folders = VecDeque::from([PathBuf::from(root)]);
    while let Some(folder) = folders.pop_front() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            let own = folder == root && OWN.iter().any(|name| entry.file_name() == *name);
            let Some(metadata) = entry.metadata().ok().filter(|_| !own) else {
                continue;
            };
            if metadata.is_dir() {
                folders.push_back(entry.path());
            } else if let Some(path) = entry.path().to_str() {
                found.extend(device(path, &metadata));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_knows_its_null_device() {
        let host = ThisHost::look();
        let null = host.device("/dev/null").unwrap();
        assert_eq!((null.block, null.major, null.minor), (false, 1, 3));
        assert_eq!(
            host.device("/proc").unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(host.facts().open_files > 0);
    }

    #[test]
    fn devices_of_the_runtime_are_not_listed_again() {
        let devices = ThisHost::look().devices().unwrap();
        assert!(devices.iter().all(|device| device.path != "/dev/null"));
        assert!(devices.is_sorted_by(|a, b| a.path < b.path));
    }
}
