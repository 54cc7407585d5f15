//! Mounts a container's root file system, option strings longer than a page included.
//!
//! `mount(2)` copies at most one page of options. An overlay of many layers has more: its layers are
//! then named relative to their common folder, from inside that folder; where even that is too long,
//! they are handed over one by one through the newer mount interface (`lowerdir+`, Linux 6.8).
//! Runs in a helper only: it changes the working directory.

use std::env;
use std::ffi::CString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
    mount_change, mount_remount, move_mount, unmount,
};

use crate::error::{About, Error, Result};

/// What `mount(2)` copies of its options: one page, with the closing zero.
const OPTIONS_MAX: usize = 4095;

/// One mount of a `Create` request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mount {
    pub(crate) kind: String,
    pub(crate) source: String,
    /// Below the root file system; empty: the root itself.
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
}

/// Mounts all, in order; takes back those already made when one fails.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<()> {
    fs::create_dir_all(rootfs).about(rootfs.display())?;
    for (done, one) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(one, rootfs) {
            unmount_all(rootfs, done);
            return Err(error);
        }
    }
    Ok(())
}

/// Unmounts at most `count` mounts stacked on the root file system.
pub(crate) fn unmount_all(rootfs: &Path, count: usize) {
    for _ in 0..count {
        if unmount(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_err() {
            return;
        }
    }
}

fn mount_one(request: &Mount, rootfs: &Path) -> Result<()> {
    let target = target(request, rootfs)?;
    let wanted = Wanted::parse(&request.options);
    let result = if request.kind == "bind" || wanted.flags.contains(MountFlags::BIND) {
        bind(request, &target, &wanted)
    } else {
        fresh(request, &target, &wanted)
    };
    result.about(format_args!(
        "mount {} {} on {}",
        request.kind,
        request.source,
        target.display()
    ))
}

fn target(request: &Mount, rootfs: &Path) -> Result<PathBuf> {
    let below = Path::new(request.target.trim_start_matches('/'));
    if below
        .components()
        .any(|part| matches!(part, Component::ParentDir))
    {
        return Err(Error::invalid(format!(
            "mount target {} leaves the rootfs",
            request.target
        )));
    }
    Ok(if below.as_os_str().is_empty() {
        rootfs.to_path_buf()
    } else {
        rootfs.join(below)
    })
}

/// Options sorted into what the kernel takes as flags, as propagation, and as text.
struct Wanted {
    flags: MountFlags,
    recursive: bool,
    propagation: Option<MountPropagationFlags>,
    data: Vec<String>,
}

impl Wanted {
    fn parse(options: &[String]) -> Self {
        let mut wanted = Self {
            flags: MountFlags::empty(),
            recursive: false,
            propagation: None,
            data: vec![],
        };
        for option in options {
            wanted.add(option);
        }
        wanted
    }

    fn add(&mut self, option: &str) {
        if let Some((flag, on)) = flag(option) {
            self.flags.set(flag, on);
        } else if let Some(kind) = propagation(option) {
            self.propagation = Some(kind);
        } else if option == "rbind" {
            self.flags |= MountFlags::BIND;
            self.recursive = true;
        } else if !matches!(option, "rw" | "defaults" | "") {
            self.data.push(option.to_owned());
        }
    }
}

fn flag(option: &str) -> Option<(MountFlags, bool)> {
    let (name, on) = match option {
        "ro" => ("ro", true),
        "rw" => ("ro", false),
        "suid" | "dev" | "exec" | "atime" | "diratime" => (option, false),
        "async" => ("sync", false),
        _ => match option.strip_prefix("no") {
            Some(name @ ("suid" | "dev" | "exec" | "atime" | "diratime")) => (name, true),
            _ => (option, true),
        },
    };
    let flag = match name {
        "ro" => MountFlags::RDONLY,
        "suid" => MountFlags::NOSUID,
        "dev" => MountFlags::NODEV,
        "exec" => MountFlags::NOEXEC,
        "atime" => MountFlags::NOATIME,
        "diratime" => MountFlags::NODIRATIME,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "relatime" => MountFlags::RELATIME,
        "strictatime" => MountFlags::STRICTATIME,
        "bind" => MountFlags::BIND,
        _ => return None,
    };
    Some((flag, on))
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (kind, deep) = match option.strip_prefix('r') {
        Some(kind @ ("private" | "shared" | "slave" | "unbindable")) => (kind, true),
        _ => (option, false),
    };
    let kind = match kind {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if deep {
        kind | MountPropagationFlags::REC
    } else {
        kind
    })
}

fn bind(request: &Mount, target: &Path, wanted: &Wanted) -> rustix::io::Result<()> {
    let deep = if wanted.recursive {
        MountFlags::REC
    } else {
        MountFlags::empty()
    };
    let source = request.source.as_str();
    mount(source, target, "", MountFlags::BIND | deep, None)?;
    let rest = wanted.flags - MountFlags::BIND;
    if !rest.is_empty() {
        // The kernel ignores every other flag while binding: they take a second call.
        mount_remount(target, MountFlags::BIND | rest, "")?;
    }
    propagate(target, wanted)
}

fn fresh(request: &Mount, target: &Path, wanted: &Wanted) -> rustix::io::Result<()> {
    let data = wanted.data.join(",");
    if data.len() <= OPTIONS_MAX {
        classic(request, target, wanted, &data)?;
    } else {
        long(request, target, wanted)?;
    }
    propagate(target, wanted)
}

fn propagate(target: &Path, wanted: &Wanted) -> rustix::io::Result<()> {
    wanted
        .propagation
        .map_or(Ok(()), |kind| mount_change(target, kind))
}

fn classic(request: &Mount, target: &Path, wanted: &Wanted, data: &str) -> rustix::io::Result<()> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let source = request.source.as_str();
    mount(
        source,
        target,
        request.kind.as_str(),
        wanted.flags,
        Some(data.as_c_str()),
    )
}

fn long(request: &Mount, target: &Path, wanted: &Wanted) -> rustix::io::Result<()> {
    let layers = wanted
        .data
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="));
    let layers: Vec<&Path> = layers
        .unwrap_or_default()
        .split(':')
        .map(Path::new)
        .collect();
    let others = wanted
        .data
        .iter()
        .filter(|option| !option.starts_with("lowerdir="));
    let common = common_folder(&layers);
    let short: Vec<_> = layers
        .iter()
        .map(|layer| {
            layer
                .strip_prefix(&common)
                .unwrap_or(layer)
                .to_string_lossy()
        })
        .collect();
    let mut data = format!("lowerdir={}", short.join(":"));
    for option in others.clone() {
        data.extend([",", option]);
    }
    if data.len() > OPTIONS_MAX {
        return one_by_one(request, target, wanted, &layers, others);
    }
    let back = env::current_dir().map_err(|_| Errno::NOENT)?;
    rustix::process::chdir(&common)?;
    let done = classic(request, target, wanted, &data);
    rustix::process::chdir(&back)?;
    done
}

/// The deepest folder above all layers, so that each keeps a non-empty name below it.
fn common_folder(layers: &[&Path]) -> PathBuf {
    let mut common = layers
        .first()
        .and_then(|path| path.parent())
        .unwrap_or(Path::new("/"));
    for layer in layers {
        while !(layer.starts_with(common) && *layer != common) {
            common = common.parent().unwrap_or(Path::new("/"));
        }
    }
    common.to_path_buf()
}

fn one_by_one<'a>(
    request: &Mount,
    target: &Path,
    wanted: &Wanted,
    layers: &[&Path],
    others: impl Iterator<Item = &'a String>,
) -> rustix::io::Result<()> {
    let context = fsopen(request.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", request.source.as_str())?;
    for layer in layers {
        fsconfig_set_string(&context, "lowerdir+", *layer)?;
    }
    for option in others {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, option.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_truncate(wanted.flags.bits() & 0xf);
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(
        &mounted,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(options: &[&str]) -> Wanted {
        Wanted::parse(
            &options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn options_become_flags_propagation_and_text() {
        let it = wanted(&["ro", "nosuid", "rslave", "lowerdir=/a:/b", "index=off"]);
        assert_eq!(it.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(
            it.propagation,
            Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        );
        assert_eq!(it.data, ["lowerdir=/a:/b", "index=off"]);
    }

    #[test]
    fn a_later_option_wins() {
        assert_eq!(
            wanted(&["ro", "rw", "noexec", "exec"]).flags,
            MountFlags::empty()
        );
    }

    #[test]
    fn layers_keep_a_name_below_their_common_folder() {
        let paths = ["/s/1/fs", "/s/2/fs", "/s/20/fs"].map(Path::new);
        assert_eq!(common_folder(&paths), Path::new("/s"));
        assert_eq!(
            common_folder(&["/a", "/a/b"].map(Path::new)),
            Path::new("/")
        );
    }

    #[test]
    fn a_target_outside_is_refused() {
        let request = Mount {
            target: "/../etc".into(),
            ..Mount::default()
        };
        assert!(target(&request, Path::new("/b/rootfs")).is_err());
    }
}
