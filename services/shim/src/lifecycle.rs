//! Create, start, exec and delete: everything that makes or ends a process record.

use std::collections::HashMap;
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
use crate::stdio::{Io, Owner, Stdio};
use crate::sys;

/// How long Delete waits for stragglers that still hold a stream.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a `Create` request comes to, before anything is done.
struct Plan {
    runtime: Arc<dyn Runtime>,
    facts: Facts,
    record: Record,
    mounts: Vec<Mount>,
    stdio: Stdio,
}

impl Shim {
    /// Makes the container; returns the pid of its waiting init.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<i32> {
        let _turn = self.turn.lock().await;
        self.refuse(&request)?;
        let mut plan = self.plan(&request)?;
        // Known before anything is done, so that `delete` finds it should we be killed meanwhile.
        plan.record.save(&self.bundle)?;
        faults::point("shim.create.recorded");
        let birth = self.children.birth();
        let made = self.build(&plan).await;
        let (pid, io) = made.inspect_err(|_| Record::remove(&self.bundle))?;
        faults::point("shim.create.made");
        plan.record.pid = pid;
        plan.record.cgroup = Cgroup::of(pid).unwrap_or(plan.record.cgroup);
        if let Err(error) = plan.record.save(&self.bundle) {
            let _ = sys::kill(pid, nix::libc::SIGKILL);
            self.vanish(plan.runtime, plan.record.cgroup, plan.mounts.len())
                .await?;
            return Err(error);
        }
        faults::point("shim.create.kept");
        self.adopt(plan, io, request, birth.early_exit(pid));
        faults::point("shim.create.adopted");
        Ok(pid)
    }

    fn plan(&self, request: &CreateTaskRequest) -> Result<Plan> {
        let options = Options::decode(request.options.as_ref())?;
        let facts = Facts::read(&self.bundle)?;
        let root = match options.root.as_os_str().is_empty() {
            true => default_root(&self.bundle),
            false => options.root.clone(),
        };
        let place = Place {
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            root: root.clone(),
        };
        let cgroup = Cgroup::to_come(&facts.cgroup_path_or(&self.namespace, &self.id));
        Ok(Plan {
            runtime: runtime::choose(place, options.clone(), &facts).into(),
            record: Record {
                pid: 0,
                options,
                root,
                cgroup,
                exit: None,
            },
            mounts: request.rootfs.iter().map(mount).collect(),
            stdio: Stdio {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            },
            facts,
        })
    }

    /// Mounts and makes the container in a helper; returns the pid of init and our side of its stdio.
    async fn build(&self, plan: &Plan) -> Result<(i32, Io)> {
        let user = pipe_owner(&plan.record.options, plan.facts.owner());
        let (child, prepared) = plan.stdio.prepare(&self.owner(user))?;
        let fds = child.fds();
        let (runtime, mounts) = (plan.runtime.clone(), plan.mounts.clone());
        let rootfs = self.rootfs();
        let work = move || {
            rootfs::mount_all(&mounts, &rootfs)?;
            faults::point("shim.create.mounted");
            let made = runtime.create(child);
            made.inspect_err(|_| rootfs::unmount_all(&rootfs, mounts.len()))
        };
        let pid = helper::run(&self.children, &fds, work).await?;
        match prepared.finish() {
            Ok(io) => Ok((pid, io)),
            Err(error) => {
                let _ = sys::kill(pid, nix::libc::SIGKILL);
                let cgroup = plan.record.cgroup.clone();
                self.vanish(plan.runtime.clone(), cgroup, plan.mounts.len())
                    .await?;
                Err(error)
            }
        }
    }

    /// The container is there from now on.
    fn adopt(
        self: &Arc<Self>,
        plan: Plan,
        io: Io,
        request: CreateTaskRequest,
        early: Option<Exit>,
    ) {
        let mut init = Process::new("", plan.stdio);
        init.pid = plan.record.pid;
        init.io = Some(io);
        oom::watch(self, &plan.record.cgroup);
        self.events
            .create(&self.id, &self.bundle, request, init.pid);
        let mut container = Container {
            runtime: plan.runtime,
            facts: plan.facts,
            record: plan.record,
            mounts: plan.mounts.len(),
            paused: false,
            init,
            execs: HashMap::new(),
        };
        if let Some(exit) = early {
            self.ended(&mut container, "", exit);
        }
        *self.lock() = Some(container);
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
            faults::point("shim.start.asked");
            let started = self
                .call(runtime, Some(Call::Start), |runtime| runtime.start())
                .await;
            faults::point("shim.start.started");
            started
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
        faults::point("shim.exec.born");
        let io = prepared.finish().inspect_err(|_| {
            let _ = sys::kill(pid, nix::libc::SIGKILL);
        })?;
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
            faults::point("shim.exec.added");
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
        faults::point("shim.delete.ended");
        let (runtime, target, mounts) = self.with(id, |container| {
            Ok((
                container.runtime.clone(),
                container.target(),
                container.mounts,
            ))
        })?;
        self.vanish(runtime, target.cgroup, mounts).await?;
        faults::point("shim.delete.vanished");
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
        faults::point("shim.delete.cgroups-removed");
        self.call(runtime, Some(Call::Delete), |runtime| runtime.delete())
            .await?;
        faults::point("shim.delete.runtime-removed");
        rootfs::unmount_all(&self.rootfs(), mounts);
        Record::remove(&self.bundle);
        Ok(())
    }

    fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
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
