//! Debian's containerd in a private folder: the peer of the benches.
//!
//! Only what gantry has a counterpart for is loaded: no CRI, no snapshotters but overlayfs and native.

mod grpc;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub use grpc::{Grpc, Recipe, Refused};

use crate::Outcome;
use crate::process::{self, Daemon, run, until};

const READY: Duration = Duration::from_secs(20);

/// A running containerd. Dropping it kills and removes everything.
#[derive(Debug)]
pub struct Containerd {
    daemon: Daemon,
    folder: TempDir,
}

impl Containerd {
    /// Starts containerd in a new folder below `base`, and waits until it answers. Errors: it is missing or does not answer.
    pub async fn start(base: &Path) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("c-").tempdir_in(base)?;
        write_config(folder.path())?;
        let daemon = spawn(folder.path())?;
        let mut containerd = Self { daemon, folder };
        containerd.ready().await?;
        Ok(containerd)
    }

    /// Stops the daemon and starts it again in the same folder. Errors: as [`Containerd::start`].
    pub async fn restart(&mut self) -> Outcome {
        self.daemon.end(Signal::SIGTERM, READY).await?;
        self.daemon = spawn(self.folder.path())?;
        self.ready().await
    }

    /// Kills the daemon and starts it again in the same folder. Errors: as [`Containerd::start`].
    pub async fn kill_and_restart(&mut self) -> Outcome {
        self.daemon.end(Signal::SIGKILL, READY).await?;
        self.daemon = spawn(self.folder.path())?;
        self.ready().await
    }

    async fn ready(&mut self) -> Outcome {
        until("containerd serves", READY, async || {
            self.grpc().await.ok()?.version().await.ok()
        })
        .await
    }

    /// Ends the daemon and returns its folder, which is removed only when that is dropped. Errors: it does not end.
    pub async fn stop_and_keep(mut self) -> Outcome<TempDir> {
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir()?);
        self.daemon.end(Signal::SIGTERM, READY).await?;
        Ok(folder)
    }

    /// Returns its gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("state/containerd.sock")
    }

    /// Returns the process id of the daemon.
    pub fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// Returns a `ctr` command for it, in the namespace `bench`.
    pub fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "bench"])
            .args(args);
        command
    }

    /// Runs `ctr` to its end and returns what it wrote. Errors: it failed; its stderr is in the message.
    pub fn run(&self, args: &[&str]) -> Outcome<String> {
        Ok(String::from_utf8(run(&mut self.ctr(args))?)?)
    }

    /// Lets `ctr` make the spec for running `args`, for [`Grpc::run`] to use it often. Errors: `ctr` fails.
    pub fn recipe(&self, image: &str, parent: &str, args: &[&str]) -> Outcome<Recipe> {
        self.run(&["containers", "create", "--seccomp", image, "recipe"])?;
        let mut record: Value =
            serde_json::from_str(&self.run(&["containers", "info", "recipe"])?)?;
        self.run(&["containers", "delete", "recipe"])?;
        record["Spec"]["process"]["args"] = args.into();
        Ok(Recipe {
            image: image.to_owned(),
            parent: parent.to_owned(),
            spec: record["Spec"].to_string(),
            log: self
                .folder
                .path()
                .join("container.log")
                .display()
                .to_string(),
        })
    }

    /// Lists the shims that belong to it.
    pub fn shims(&self) -> Vec<i32> {
        let socket = self.socket();
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut args = line.split(|byte| *byte == 0);
            args.any(|arg| arg == socket.as_os_str().as_encoded_bytes())
        };
        process::all()
            .into_iter()
            .filter(|pid| *pid != self.pid())
            .filter(ours)
            .collect()
    }
}

impl Drop for Containerd {
    /// Shims outlive the daemon, and keep mounts.
    fn drop(&mut self) {
        let shims: Vec<i32> = self.shims().into_iter().flat_map(process::tree).collect();
        let _ = self.daemon.signal(Signal::SIGKILL);
        for pid in shims {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points: Vec<&str> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .collect();
        for point in points
            .iter()
            .rev()
            .filter(|point| Path::new(point).starts_with(self.folder.path()))
        {
            let _ = umount2(*point, MntFlags::MNT_DETACH);
        }
    }
}

fn write_config(folder: &Path) -> Outcome {
    let home = folder.display();
    let disabled = [
        "grpc.v1.cri",
        "snapshotter.v1.aufs",
        "snapshotter.v1.btrfs",
        "snapshotter.v1.devmapper",
        "snapshotter.v1.zfs",
    ];
    let disabled: Vec<String> = disabled
        .iter()
        .map(|name| format!("\"io.containerd.{name}\""))
        .collect();
    let config = format!(
        "version = 2\nroot = '{home}/root'\nstate = '{home}/state'\ndisabled_plugins = [{}]\n\
         [grpc]\naddress = '{home}/state/containerd.sock'\n[plugins.'io.containerd.internal.v1.opt']\npath = '{home}/opt'\n",
        disabled.join(", ")
    );
    Ok(fs::write(folder.join("config.toml"), config)?)
}

fn spawn(folder: &Path) -> Outcome<Daemon> {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(folder.join("config.toml"));
    Daemon::spawn(&mut command, &folder.join("containerd.log"))
}
