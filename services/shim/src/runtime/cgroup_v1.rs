//! Cgroups of version 1, made and entered by ourselves before libcontainer forks.
//!
//! libcontainer writes a pid into `cgroup.procs`, which makes the kernel stop every fork on the host
//! for an RCU grace period: 5 to 35 ms for each create and each exec (seen on Linux 6.18). Writing `0`
//! into `tasks` moves only the calling thread and takes no such lock (since Linux 5.5): half a
//! millisecond. So the helper, which is one thread, enters the cgroups, libcontainer's processes are
//! born there, and the helper leaves again. What libcontainer then writes goes to `/dev/null`, which the
//! helper has mounted over each `cgroup.procs`, in a mount namespace of its own.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use libcgroups::common::{CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::LinuxResources;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::cgroup::{Cgroup, controllers_v1};
use crate::error::{About, Error, Result};

/// The folders of one container, in all hierarchies; none on a host of version 2 alone.
pub(super) struct Folders {
    theirs: Vec<PathBuf>,
    ours: Vec<PathBuf>,
}

impl Folders {
    /// Finds where `path`, a spec's `cgroupsPath`, leads to.
    pub(super) fn of(path: &str) -> Result<Self> {
        let up = |part: Component<'_>| matches!(part, Component::ParentDir);
        if Path::new(path).components().any(up) || path.contains(':') {
            return Err(Error::invalid(format!(
                "cgroupsPath {path}: must be a path without .. such as /namespace/id"
            )));
        }
        Ok(Self {
            theirs: controllers_v1(Some(path)).about("find the cgroups")?,
            ours: controllers_v1(None).about("find our cgroups")?,
        })
    }

    /// Whether this host has such hierarchies.
    pub(super) fn exist(&self) -> bool {
        !self.theirs.is_empty()
    }

    /// Makes the folders; refuses those somebody else lives in, since we remove them in the end.
    pub(super) fn make(&self) -> Result<()> {
        for folder in &self.theirs {
            let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            if !inside.is_empty() {
                return Err(Error::precondition(format!(
                    "cgroup {} is in use: end what runs in it or choose another cgroupsPath",
                    folder.display()
                )));
            }
        }
        for folder in &self.theirs {
            fs::create_dir_all(folder).about(folder.display())?;
            inherit_cpuset(folder)?;
        }
        Ok(())
    }

    /// Runs `work` inside the cgroups; nothing it does moves a process.
    pub(super) fn within<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.hide()?;
        let entered = enter(&self.theirs);
        let done = entered.and_then(|()| work());
        enter(&self.ours)?;
        done
    }

    /// Lets the helper (it ends soon) and whoever it forks write pids to nowhere.
    fn hide(&self) -> Result<()> {
        if !self.exist() {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNS).about("mount namespace of the helper")?;
        for folder in &self.theirs {
            let file = folder.join("cgroup.procs");
            mount_bind("/dev/null", &file).about(file.display())?;
        }
        Ok(())
    }

    /// Takes `/dev/null` away again where the container's own mounts caught it: one that is shown its
    /// cgroups gets a recursive bind of them. Leaves this process in the container's mount namespace.
    pub(super) fn reveal(&self, pid: i32) -> Result<()> {
        let mounts =
            fs::read_to_string(format!("/proc/{pid}/mountinfo")).about("mounts of init")?;
        let hidden = hidden_files(&mounts);
        if hidden.is_empty() {
            return Ok(());
        }
        let place = File::open(format!("/proc/{pid}/ns/mnt")).about("mount namespace of init")?;
        setns(place, CloneFlags::CLONE_NEWNS).about("mount namespace of init")?;
        for file in hidden {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            unmount(file, flags).about(format_args!("show {file}"))?;
        }
        Ok(())
    }

    /// Limits how many processes there may be; 0, -1 and nothing mean no limit.
    pub(super) fn limit_pids(&self, limit: Option<i64>) -> Result<()> {
        let file = self
            .theirs
            .iter()
            .map(|folder| folder.join("pids.max"))
            .find(|file| file.exists());
        match (file, limit.filter(|limit| *limit > 0)) {
            (Some(file), Some(limit)) => fs::write(&file, limit.to_string()).about(file.display()),
            (None, Some(_)) => Err(Error::precondition("this host has no pids cgroup to limit")),
            _ => Ok(()),
        }
    }

    pub(super) fn remove(&self) -> Result<()> {
        Cgroup::at(self.theirs.clone())
            .destroy()
            .about("remove the cgroups")
    }
}

/// Where a mount table has the file `/null` over a `cgroup.procs`.
fn hidden_files(mountinfo: &str) -> Vec<&str> {
    let places = mountinfo.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(3);
        let (root, place) = (words.next()?, words.next()?);
        (root.ends_with("/null") && place.ends_with("/cgroup.procs")).then_some(place)
    });
    places.collect()
}

fn enter(folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        let tasks = folder.join("tasks");
        fs::write(&tasks, "0").about(tasks.display())?;
    }
    Ok(())
}

/// A new cpuset is empty, and nothing can live in it until it has what its parent has.
fn inherit_cpuset(folder: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = folder.join(name);
        let Ok(now) = fs::read_to_string(&file) else {
            return Ok(());
        };
        if !now.trim().is_empty() {
            continue;
        }
        let Some(parent) = folder.parent() else {
            return Ok(());
        };
        inherit_cpuset(parent)?;
        let wanted = fs::read_to_string(parent.join(name)).about(parent.display())?;
        fs::write(&file, wanted.trim()).about(file.display())?;
    }
    Ok(())
}

/// Applies limits to the cgroups at `path`, on hosts of both versions.
pub(super) fn apply(path: &str, id: &str, resources: &LinuxResources) -> Result<()> {
    let config = CgroupConfig {
        cgroup_path: path.into(),
        systemd_cgroup: false,
        container_name: id.to_owned(),
    };
    let wanted = ControllerOpt {
        resources,
        disable_oom_killer: false,
        oom_score_adj: None,
        freezer_state: None,
    };
    let manager = create_cgroup_manager(config).about("cgroups")?;
    manager.apply(&wanted).about("apply resources")
}
