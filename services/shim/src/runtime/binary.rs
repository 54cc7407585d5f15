//! An OCI runtime binary (runc, crun, youki …), run as a child of the shim's helpers.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

use super::{Call, ChildIo, Place, Runtime, Target, oom_score};
use crate::error::{About, Error, Result};
use crate::options::Options;

pub(super) struct Binary {
    place: Place,
    options: Options,
}

impl Binary {
    pub(super) fn new(place: Place, options: Options) -> Self {
        Self { place, options }
    }

    /// A file of this helper alone: several execs may be under way.
    fn own(&self, name: &str) -> PathBuf {
        self.place
            .root
            .join(format!("{}-{name}", std::process::id()))
    }

    fn log(&self) -> PathBuf {
        self.own("log.json")
    }

    fn command(&self, action: &str) -> Command {
        let mut command = Command::new(&self.options.runtime);
        command
            .arg("--root")
            .arg(&self.place.root)
            .arg("--log")
            .arg(self.log());
        command.args(["--log-format", "json"]);
        if self.options.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(action).current_dir(&self.place.bundle);
        command
    }

    /// Runs it to its end; its log's last error becomes ours.
    fn run(&self, command: &mut Command) -> Result<()> {
        let _ = fs::remove_file(self.log());
        let status = command.status().map_err(|error| self.missing(error))?;
        let said = fs::read_to_string(self.log()).unwrap_or_default();
        let _ = fs::remove_file(self.log());
        if status.success() {
            return Ok(());
        }
        let said = last_error(&said).unwrap_or_else(|| status.to_string());
        Err(Error::internal(format!("{}: {said}", self.options.runtime)))
    }

    fn missing(&self, error: std::io::Error) -> Error {
        let name = &self.options.runtime;
        match error.kind() {
            ErrorKind::NotFound => Error::not_found(format!(
                "runtime {name} is not installed: install it or use the embedded one"
            )),
            _ => Error::internal(format!("{name}: {error}")),
        }
    }

    fn simple(&self, action: &str, args: &[&str]) -> Result<()> {
        self.run(self.command(action).args(args).arg(&self.place.id))
    }

    /// Runs create or exec with the container's stdio; returns the pid it wrote.
    fn birth(&self, command: &mut Command, io: ChildIo) -> Result<i32> {
        let pid_file = self.own("pid");
        command.arg("--pid-file").arg(&pid_file);
        if let Some(console) = &io.console {
            command.arg("--console-socket").arg(console);
        }
        let [stdin, stdout, stderr] = io.stdio.map_or_else(
            || [Stdio::null(), Stdio::null(), Stdio::null()],
            |fds: [OwnedFd; 3]| fds.map(Stdio::from),
        );
        self.run(
            command
                .arg(&self.place.id)
                .stdin(stdin)
                .stdout(stdout)
                .stderr(stderr),
        )?;
        let text = fs::read_to_string(&pid_file).about(pid_file.display())?;
        let _ = fs::remove_file(&pid_file);
        text.trim().parse().about(pid_file.display())
    }

    /// Rewrites `config.json` without an OOM score the kernel would refuse.
    fn spare_oom_score(&self) -> Result<()> {
        let path = self.place.bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path).about(path.display())?)
            .about(path.display())?;
        let wanted = spec["process"]["oomScoreAdj"].as_i64();
        if wanted.is_none_or(|wanted| !matches!(oom_score::set(wanted), Ok(false))) {
            return Ok(());
        }
        if let Some(process) = spec["process"].as_object_mut() {
            process.remove("oomScoreAdj");
        }
        fs::write(&path, spec.to_string()).about(path.display())
    }
}

impl Runtime for Binary {
    fn create(&self, io: ChildIo) -> Result<i32> {
        fs::create_dir_all(&self.place.root).about(self.place.root.display())?;
        self.spare_oom_score()?;
        let mut command = self.command("create");
        command.arg("--bundle").arg(&self.place.bundle);
        if self.options.no_pivot_root {
            command.arg("--no-pivot");
        }
        let made = self.birth(&mut command, io);
        if made.is_err() {
            let _ = self.delete();
        }
        made
    }

    fn start(&self) -> Result<()> {
        self.simple("start", &[])
    }

    fn exec(&self, process: &[u8], io: ChildIo) -> Result<i32> {
        let path = self.own("exec.json");
        File::create(&path)
            .and_then(|mut file| file.write_all(process))
            .about(path.display())?;
        let mut command = self.command("exec");
        command.args(["--detach", "--process"]).arg(&path);
        let made = self.birth(&mut command, io);
        let _ = fs::remove_file(&path);
        made
    }

    fn kill(&self, target: &Target, signal: i32, all: bool) -> Result<()> {
        let signal = signal.to_string();
        let all: &[&str] = if all { &["--all"] } else { &[] };
        let mut command = self.command("kill");
        let done = self.run(command.args(all).arg(&self.place.id).arg(signal));
        match done {
            Err(error) if error.message.contains("process already finished") => Err(
                Error::not_found(format!("process {} has already ended", target.pid)),
            ),
            done => done,
        }
    }

    fn pause(&self, _: &Target) -> Result<()> {
        self.simple("pause", &[])
    }

    fn resume(&self, _: &Target) -> Result<()> {
        self.simple("resume", &[])
    }

    fn update(&self, resources: &[u8]) -> Result<()> {
        let path = self.own("resources.json");
        fs::write(&path, resources).about(path.display())?;
        let mut command = self.command("update");
        let done = self.run(command.arg("--resources").arg(&path).arg(&self.place.id));
        let _ = fs::remove_file(&path);
        done
    }

    fn delete(&self) -> Result<()> {
        let done = match self.simple("delete", &["--force"]) {
            Err(error) if error.message.contains("does not exist") => Ok(()),
            done => done,
        };
        // A folder of the caller's choice is shared with others; ours is not.
        if self.place.root.starts_with(&self.place.bundle) {
            let _ = fs::remove_dir_all(&self.place.root);
        }
        done
    }

    fn is_light(&self, _: Call) -> bool {
        false
    }
}

#[derive(Deserialize)]
struct LogLine {
    level: String,
    msg: String,
}

fn last_error(log: &str) -> Option<String> {
    let lines = log
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    lines
        .filter(|line| line.level == "error")
        .map(|line| line.msg)
        .next()
}
