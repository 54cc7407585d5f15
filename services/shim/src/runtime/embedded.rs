//! libcontainer, inside the shim's helpers.
//!
//! It reads its spec from a folder of its own below the state, because some values must be changed
//! first: the root file system made absolute, the OOM score taken over by us, and
//! `noNewPrivileges: false` left out, which libcontainer takes for "load seccomp after the
//! capabilities are gone", and the cgroups (see `cgroup_v1`). The container's init is cloned as a
//! sibling of the helper.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{LinuxCapabilities, LinuxResources, LinuxSeccomp};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use super::cgroup_v1::{self, Folders};
use super::executor::{Confinement, Launch};
use super::{Call, ChildIo, Facts, Place, Runtime, Target, oom_score};
use crate::error::{About, Error, Result};
use crate::options::Options;
use crate::stdio::reach;
use crate::sys;

pub(super) struct Embedded {
    place: Place,
    options: Options,
    facts: Facts,
}

impl Embedded {
    pub(super) fn new(place: Place, options: Options, facts: &Facts) -> Self {
        Self {
            place,
            options,
            facts: facts.clone(),
        }
    }

    /// libcontainer's folder of this container.
    fn state(&self) -> PathBuf {
        self.place.root.join(&self.place.id)
    }

    /// Where the adapted `config.json` is.
    fn spec_folder(&self) -> PathBuf {
        self.place.root.join(format!("{}.spec", self.place.id))
    }

    fn builder(&self, launch: Launch, io: ChildIo) -> Result<ContainerBuilder> {
        let mut builder = ContainerBuilder::new(self.place.id.clone(), SyscallType::Linux)
            .with_root_path(&self.place.root)
            .map_err(chain)?
            .with_executor(launch)
            .with_console_socket(io.console);
        if let Some([stdin, stdout, stderr]) = io.stdio {
            builder = builder
                .with_stdin(stdin)
                .with_stdout(stdout)
                .with_stderr(stderr);
        }
        Ok(builder)
    }

    /// Reads the container's own spec and changes what libcontainer must not see.
    fn adapted(&self) -> Result<Value> {
        let mut spec = read_json(&self.place.bundle.join("config.json"))?;
        let root = Path::new(spec["root"]["path"].as_str().unwrap_or("rootfs"));
        spec["root"]["path"] = json!(self.place.bundle.join(root));
        relax_privileges(&mut spec["process"]);
        oom_score::take_over(&mut spec["process"])?;
        spec["linux"]["cgroupsPath"] = json!(self.cgroup_path());
        Ok(spec)
    }

    fn build(&self, spec: &Value, io: ChildIo) -> Result<i32> {
        let folder = self.spec_folder();
        fs::create_dir_all(&folder).about(folder.display())?;
        let file = folder.join("config.json");
        fs::write(&file, spec.to_string()).about(file.display())?;
        let container = self
            .builder(Launch::default(), io)?
            .as_init(folder)
            .with_systemd(false)
            .with_detach(true)
            .with_no_pivot(self.options.no_pivot_root)
            .as_sibling(true)
            .build()
            .map_err(chain)?;
        let pid = container.pid().map(|pid| pid.as_raw());
        pid.ok_or_else(|| Error::internal("init has no pid"))
    }

    /// Builds inside cgroups of our own making. The number of processes is limited in the end, or
    /// libcontainer's own would count.
    fn build_v1(&self, mut spec: Value, io: ChildIo, folders: &Folders) -> Result<i32> {
        folders.make()?;
        let resources = spec["linux"]["resources"].as_object_mut();
        let pids = resources.and_then(|resources| resources.remove("pids"));
        let made = folders.within(|| self.build(&spec, io)).and_then(|pid| {
            folders.limit_pids(pids.and_then(|pids| pids["limit"].as_i64()))?;
            Ok(pid)
        });
        match made {
            Ok(pid) => {
                // Without it the container sees an empty list of processes, which is no harm.
                let _ = folders.reveal(pid);
                Ok(pid)
            }
            Err(error) => {
                folders.remove()?;
                Err(error)
            }
        }
    }

    fn apply(&self, resources: &LinuxResources) -> Result<()> {
        cgroup_v1::apply(&self.cgroup_path(), &self.place.id, resources)
    }

    fn cgroup_path(&self) -> String {
        self.facts
            .cgroup_path_or(&self.place.namespace, &self.place.id)
    }

    fn load(&self) -> Result<Container> {
        Container::load(self.state()).map_err(chain)
    }

    /// Takes what libcontainer's exec leaves out of the container's own spec.
    fn confinement(&self, process: &mut Value) -> Result<Confinement> {
        let spec = read_json(&self.spec_folder().join("config.json"))?;
        let own = process
            .as_object_mut()
            .and_then(|process| process.remove("capabilities"));
        let capabilities = own.unwrap_or_else(|| spec["process"]["capabilities"].clone());
        Ok(Confinement {
            seccomp: typed::<Option<LinuxSeccomp>>("seccomp", &spec["linux"]["seccomp"])?,
            capabilities: typed::<Option<LinuxCapabilities>>("capabilities", &capabilities)?,
            no_new_privileges: process["noNewPrivileges"].as_bool().unwrap_or(false),
        })
    }

    fn forget(&self) -> Result<()> {
        for folder in [self.state(), self.spec_folder()] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).about(folder.display());
                }
                _ => {}
            }
        }
        let _ = fs::remove_dir(&self.place.root);
        Ok(())
    }
}

impl Runtime for Embedded {
    fn create(&self, io: ChildIo) -> Result<i32> {
        if self.options.systemd_cgroup {
            return Err(Error::unimplemented(
                "the embedded runtime has no systemd cgroup driver: choose runtime runc",
            ));
        }
        fs::create_dir_all(&self.place.root).about(self.place.root.display())?;
        let made = self.adapted().and_then(|spec| {
            let folders = Folders::of(&self.cgroup_path())?;
            // Hooks of the runtime must not be born into the container's cgroups.
            if folders.exist() && !self.facts.has_create_hooks() {
                self.build_v1(spec, io, &folders)
            } else {
                self.build(&spec, io)
            }
        });
        if made.is_err() {
            let _ = self.forget();
        }
        made
    }

    fn start(&self) -> Result<()> {
        if self.facts.has_poststart() {
            return self.load()?.start().map_err(chain);
        }
        let path = self.state().join("notify.sock");
        let (_folder, short) = reach(&path)?;
        let mut socket = UnixStream::connect(short).about("the container's init is gone")?;
        socket
            .write_all(b"start container")
            .about("the container's init is gone")
    }

    fn exec(&self, process: &[u8], io: ChildIo) -> Result<i32> {
        if self.facts.has_user_namespace() {
            return Err(Error::unimplemented(
                "the embedded runtime cannot exec into a user namespace: choose runtime runc",
            ));
        }
        let mut process: Value = serde_json::from_slice(process)
            .map_err(|error| Error::invalid(format!("exec spec is not JSON: {error}")))?;
        let confine = self.confinement(&mut process)?;
        relax_privileges(&mut process);
        oom_score::take_over(&mut process)?;
        // libcontainer wants a file with the process and a container that it saw running.
        let file = memfd_create("process", MemfdFlags::CLOEXEC).about("memfd")?;
        rustix::io::write(&file, process.to_string().as_bytes()).about("memfd")?;
        let mut container = self.load()?;
        if container.status() == ContainerStatus::Created {
            container
                .set_status(ContainerStatus::Running)
                .save()
                .map_err(chain)?;
        }
        let run = || {
            let launch = Launch {
                confine: Some(confine),
            };
            self.builder(launch, io)?
                .as_tenant()
                .with_process(Some(format!("/proc/self/fd/{}", file.as_raw_fd())))
                .with_detach(true)
                .as_sibling(true)
                .build()
                .map_err(chain)
        };
        Ok(Folders::of(&self.cgroup_path())?.within(run)?.as_raw())
    }

    fn kill(&self, target: &Target, signal: i32, all: bool) -> Result<()> {
        if all {
            return target.cgroup.signal(signal).about("signal all");
        }
        sys::kill(target.pid, signal).about(format_args!("signal {signal} to {}", target.pid))
    }

    fn pause(&self, target: &Target) -> Result<()> {
        target.cgroup.freeze(true).about("freeze")
    }

    fn resume(&self, target: &Target) -> Result<()> {
        target.cgroup.freeze(false).about("thaw")
    }

    fn update(&self, resources: &[u8]) -> Result<()> {
        let resources: LinuxResources = serde_json::from_slice(resources)
            .map_err(|error| Error::invalid(format!("resources: {error}")))?;
        self.apply(&resources)
    }

    fn delete(&self) -> Result<()> {
        if self.facts.has_poststop() && self.state().exists() {
            self.load()?.delete(true).map_err(chain)?;
        }
        self.forget()
    }

    fn is_light(&self, call: Call) -> bool {
        match call {
            Call::Start => !self.facts.has_poststart(),
            Call::Kill => true,
            Call::Delete => !self.facts.has_poststop(),
        }
    }
}

fn relax_privileges(process: &mut Value) {
    if process["noNewPrivileges"] == Value::Bool(false)
        && let Some(process) = process.as_object_mut()
    {
        process.remove("noNewPrivileges");
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).about(path.display())?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))
}

fn typed<T: serde::de::DeserializeOwned>(what: &str, value: &Value) -> Result<T> {
    serde_json::from_value(value.clone())
        .map_err(|error| Error::invalid(format!("{what} of the container: {error}")))
}

/// An error with all its causes: libcontainer's outermost ones say little.
fn chain(error: impl std::error::Error) -> Error {
    let mut text = error.to_string();
    // It cannot remove cgroups we are in; we do, see `build_v1`.
    if let Some(end) = text.find(". error during cleanup") {
        text.truncate(end);
    }
    let mut cause = error.source();
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = inner.source();
    }
    Error::internal(text)
}
