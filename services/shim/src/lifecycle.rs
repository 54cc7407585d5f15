//! Create, start, exec and delete: everything that makes or ends a process record.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest};

use crate::cgroup::Cgroup;
use crate::children::Exit;
use crate::error::{About, Error, Result};
use crate::helper;
use crate::oom;
use crate::options::Options;
use crate::process::{Phase, Process};
use crate::record::{Record, unseen};
use crate::rootfs::{self, Mount};
use crate::runtime::{self, Call, Facts, Place, Runtime};
use crate::shim::{Container, Shim};
use crate::stdio::{Owner, Stdio};
use crate::sys;

/// How long Delete waits for stragglers that still hold a stream.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Shim {
    /// Makes the container; returns the pid of its waiting init.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<i32> {
        let _turn = self.turn.lock().await;
        self.refuse(&request)?;
        let options = Options::decode(request.options.as_ref())?;
        let facts = Facts::read(&self.bundle)?;
        let root = self.state_root(&options);
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let mounts: Vec<Mount> = request.rootfs.iter().map(mount).collect();
        let runtime: Arc<dyn Runtime> =
            runtime::choose(self.place(root.clone()), options.clone(), &facts).into();
        let (child, prepared) = stdio.prepare(&self.owner(pipe_owner(&options, facts.owner())))?;
        let birth = self.children.birth();
        let made = {
            let (runtime, rootfs, mounts) = (runtime.clone(), self.rootfs(), mounts.clone());
            let fds: Vec<RawFd> = child.fds();
            helper::run(&self.children, &fds, move || {
                rootfs::mount_all(&mounts, &rootfs)?;
                runtime
                    .create(child)
                    .inspect_err(|_| rootfs::unmount_all(&rootfs, mounts.len()))
            })
            .await
        };
        let pid = made?;
        let mut init = Process::new("", stdio);
        init.pid = pid;
        init.io = Some(prepared.finish()?);
        let cgroup = Cgroup::of(pid).unwrap_or_default();
        let record = Record {
            pid,
            options,
            root,
            cgroup,
            exit: None,
        };
        record.save(&self.bundle)?;
        oom::watch(self, &record.cgroup);
        let execs = Default::default();
        let mut container = Container {
            runtime,
            facts,
            record,
            mounts: mounts.len(),
            paused: false,
            init,
            execs,
        };
        self.events.create(&self.id, &self.bundle, request, pid);
        if let Some(exit) = birth.early_exit(pid) {
            self.ended(&mut container, "", exit);
        }
        *self.lock() = Some(container);
        Ok(pid)
    }

    fn refuse(&self, request: &CreateTaskRequest) -> Result<()> {
        if request.id != self.id {
            return Err(Error::invalid(format!(
                "this shim is for {}, not {}",
                self.id, request.id
            )));
        }
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(Error::unimplemented(
                "this shim cannot restore a checkpoint",
            ));
        }
        match *self.lock() {
            Some(_) => Err(Error::exists(format!(
                "container {} was created already",
                self.id
            ))),
            None => Ok(()),
        }
    }

    /// Starts init or an exec; returns its pid.
    pub(crate) async fn start(&self, id: &str, exec_id: &str) -> Result<i32> {
        let runtime = self.with(id, |container| {
            if container.paused {
                return Err(Error::precondition(format!(
                    "container {id} is paused: resume it first"
                )));
            }
            let runtime = container.runtime.clone();
            let init = container.init.phase;
            let process = container.process(exec_id)?;
            if process.phase != Phase::Created || (!process.is_init() && init != Phase::Running) {
                return Err(Error::precondition(format!(
                    "{id} {exec_id}: cannot start in this state"
                )));
            }
            process.phase = Phase::Starting;
            Ok(runtime)
        })?;
        let started = if exec_id.is_empty() {
            self.call(runtime, Some(Call::Start), |runtime| runtime.start())
                .await
        } else {
            self.start_exec(runtime, id, exec_id).await
        };
        self.with(id, |container| match started {
            Ok(()) => self.announce(container, exec_id),
            Err(error) => {
                self.stillborn(container, exec_id);
                Err(error)
            }
        })
    }

    async fn start_exec(&self, runtime: Arc<dyn Runtime>, id: &str, exec_id: &str) -> Result<()> {
        let (spec, stdio, owner) = self.with(id, |container| {
            let facts = container.facts.clone();
            let options = container.record.options.clone();
            let process = container.process(exec_id)?;
            let owner = pipe_owner(&options, facts.owner_of(&process.spec)?);
            Ok((process.spec.clone(), process.stdio.clone(), owner))
        })?;
        let (child, prepared) = stdio.prepare(&self.owner(owner))?;
        let birth = self.children.birth();
        let fds = child.fds();
        let work = move || runtime.exec(&spec, child);
        let pid = helper::run(&self.children, &fds, work).await?;
        let io = prepared.finish()?;
        self.with_process(id, exec_id, |process| {
            process.pid = pid;
            process.io = Some(io);
            process.held = birth.early_exit(pid);
            Ok(())
        })
    }

    /// Tells a start, and the exit that may have overtaken it.
    fn announce(&self, container: &mut Container, exec_id: &str) -> Result<i32> {
        let process = container.process(exec_id)?;
        process.phase = Phase::Running;
        let (pid, held) = (process.pid, process.held.take());
        self.events.start(&self.id, exec_id, pid);
        if let Some(exit) = held {
            self.ended(container, exec_id, exit);
        }
        Ok(pid)
    }

    /// An exec that did not start is over; an init that did not may still be deleted.
    fn stillborn(&self, container: &mut Container, exec_id: &str) {
        let Ok(process) = container.process(exec_id) else {
            return;
        };
        process.phase = Phase::Created;
        match process.held.take() {
            Some(exit) => self.ended(container, exec_id, exit),
            None if !exec_id.is_empty() => process.end(unseen()),
            None => {}
        }
    }

    /// Adds a process that can then be started.
    pub(crate) fn exec(&self, request: ExecProcessRequest) -> Result<()> {
        self.with(&request.id, |container| {
            if request.exec_id.is_empty() {
                return Err(Error::invalid("an exec needs an exec_id"));
            }
            if container.execs.contains_key(&request.exec_id) {
                return Err(Error::exists(format!(
                    "exec {} exists already",
                    request.exec_id
                )));
            }
            if container.init.phase != Phase::Running {
                return Err(Error::precondition(format!(
                    "container {} is not running",
                    request.id
                )));
            }
            let stdio = Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            };
            let mut process = Process::new(&request.exec_id, stdio);
            process.spec = request.spec.into_option().unwrap_or_default().value;
            container.facts.owner_of(&process.spec)?;
            container.execs.insert(request.exec_id.clone(), process);
            self.events.exec_added(&request.id, &request.exec_id);
            Ok(())
        })
    }

    /// Forgets a process that has ended; with init the whole container. Returns its pid and exit.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<(i32, Exit)> {
        if exec_id.is_empty() {
            return self.delete_container(id).await;
        }
        let process = self.with(id, |container| {
            let process = container.process(exec_id)?;
            if matches!(process.phase, Phase::Starting | Phase::Running) {
                return Err(Error::precondition(format!(
                    "exec {exec_id} is running: kill it first"
                )));
            }
            container
                .execs
                .remove(exec_id)
                .ok_or_else(|| Error::not_found(exec_id))
        })?;
        let (pid, exit) = (process.pid, process.exited().unwrap_or_else(unseen));
        last_words(process).await;
        Ok((pid, exit))
    }

    async fn delete_container(&self, id: &str) -> Result<(i32, Exit)> {
        let _turn = self.turn.lock().await;
        let exit = self.last_exit(id).await?;
        let (runtime, target, mounts) = self.with(id, |container| {
            Ok((
                container.runtime.clone(),
                container.target(),
                container.mounts,
            ))
        })?;
        self.vanish(runtime, target.cgroup, mounts).await?;
        let Some(container) = self.lock().take() else {
            return Err(Error::not_found(id));
        };
        let pid = container.init.pid;
        for process in container.execs.into_values().chain([container.init]) {
            last_words(process).await;
        }
        self.events.delete(&self.id, pid, exit);
        sys::trim_heap();
        Ok((pid, exit))
    }

    /// The exit of init; one that was never started is ended first.
    async fn last_exit(&self, id: &str) -> Result<Exit> {
        let mut exit = self.with(id, |container| {
            let init = &container.init;
            match init.phase {
                Phase::Starting | Phase::Running => {
                    return Err(Error::precondition(format!(
                        "container {id} is running: kill it first"
                    )));
                }
                Phase::Created if init.alive() => {
                    let _ = sys::kill(init.pid, nix::libc::SIGKILL);
                }
                _ => {}
            }
            Ok(init.exit.subscribe())
        })?;
        let exit = exit.wait_for(Option::is_some).await.about("exit of init")?;
        exit.ok_or_else(|| Error::internal("exit of init is unknown"))
    }

    /// Removes what the container was on the host: cgroups, mounts, the runtime's state.
    async fn vanish(&self, runtime: Arc<dyn Runtime>, cgroup: Cgroup, mounts: usize) -> Result<()> {
        // Usually everything is dead by now and nothing blocks: no helper then.
        if !cgroup.try_remove().unwrap_or(false) {
            let work = move || cgroup.destroy().about("remove the cgroups").map(|()| 0);
            helper::run(&self.children, &[], work).await?;
        }
        self.call(runtime, Some(Call::Delete), |runtime| runtime.delete())
            .await?;
        rootfs::unmount_all(&self.rootfs(), mounts);
        Record::remove(&self.bundle);
        Ok(())
    }

    fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    fn state_root(&self, options: &Options) -> PathBuf {
        if options.root.as_os_str().is_empty() {
            default_root(&self.bundle)
        } else {
            options.root.clone()
        }
    }

    fn place(&self, root: PathBuf) -> Place {
        Place {
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            root,
        }
    }

    fn owner(&self, user: (u32, u32)) -> Owner<'_> {
        Owner {
            namespace: &self.namespace,
            id: &self.id,
            bundle: &self.bundle,
            user,
        }
    }
}

/// Where the runtime's state is unless somebody says otherwise.
pub(crate) fn default_root(bundle: &std::path::Path) -> PathBuf {
    std::env::var_os("GANTRY_SHIM_ROOT").map_or_else(|| bundle.join("runtime"), PathBuf::from)
}

fn pipe_owner(options: &Options, user: (u32, u32)) -> (u32, u32) {
    match (options.io_uid, options.io_gid) {
        (0, 0) => user,
        chosen => chosen,
    }
}

async fn last_words(mut process: Process) {
    if let Some(io) = process.io.take() {
        io.finish(LAST_WORDS).await;
    }
}

fn mount(message: &containerd_shim_protos::api::Mount) -> Mount {
    Mount {
        kind: message.type_.clone(),
        source: message.source.clone(),
        target: message.target.clone(),
        options: message.options.clone(),
    }
}
