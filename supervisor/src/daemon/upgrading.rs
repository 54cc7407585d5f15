//! Upgrades: the check before anything is touched, and then what the machine says.

use super::{Daemon, answers::Question};
use crate::{
    builds::{self, BuildFacts},
    lifecycle::{Halt, Input},
    program::Program,
    upgrade::{Build, Output, Step, Upgrade},
};
use contracts::{
    Error, PluginId, Result, Timestamp,
    plugin::{self, PluginSpec, UpgradeInfo, UpgradeState},
};
use std::{collections::BTreeMap, fs, io, path::Path, rc::Rc};
use tokio::sync::oneshot;

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T>>;

/// A build that has said what it is.
pub(crate) struct Checked {
    asked: plugin::Upgrade,
    program: Program,
    facts: Result<BuildFacts>,
    reply: Answer<UpgradeInfo>,
}

/// The present upgrade, or the last one.
pub(super) struct UpgradeRun {
    binary: String,
    machine: Upgrade,
    new: Rc<Program>,
    old: BTreeMap<usize, Rc<Program>>,
    /// Whether it is of all plugins: then those that are added later come from it too.
    whole: bool,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
}

impl UpgradeRun {
    pub(super) fn is_over(&self) -> bool {
        self.machine.is_over()
    }

    pub(super) fn present(&self) -> Option<usize> {
        self.machine.present()
    }

    pub(super) fn due(&self) -> Option<std::time::Duration> {
        self.machine.due()
    }

    fn info(&self) -> UpgradeInfo {
        UpgradeInfo {
            binary: self.binary.clone(),
            state: self.machine.state(),
            steps: self.machine.steps(),
            cause: self.machine.cause().into(),
            started_at: self.started_at,
            ended_at: self.ended_at,
        }
    }
}

impl Daemon {
    /// Checks what was asked and begins to ask the build what it is.
    pub(super) fn upgrade(&mut self, asked: plugin::Upgrade, reply: Answer<UpgradeInfo>) {
        let program = match self.may_upgrade(&asked) {
            Ok(program) => program,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.checking = true;
        let ask = self.ask.clone();
        actix::spawn(async move {
            let facts = builds::ask(&program).await;
            let checked = Box::new(Checked {
                asked,
                program,
                facts,
                reply,
            });
            // The daemon may have stopped meanwhile.
            let _ = ask.send(Question::Checked(checked)).await;
        });
    }

    fn may_upgrade(&self, asked: &plugin::Upgrade) -> Result<Program> {
        self.refuse_when_changing()?;
        self.chosen(&asked.plugins)?;
        let path = Path::new(&asked.binary);
        let named = |e: Error| e.context(format!("binary {}", path.display()));
        if !path.is_absolute() {
            return Err(named(Error::invalid("must be an absolute path")));
        }
        let unopened = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Error::not_found(e.to_string()),
            _ => Error::invalid(e.to_string()),
        };
        // The file that is looked at is the one that is started, whatever becomes of its path.
        let program = Program::open(path).map_err(|e| named(unopened(e)))?;
        let facts = fs::metadata(program.exec()).map_err(|e| named(unopened(e)))?;
        builds::executable(&facts).map_err(named)?;
        Ok(program)
    }

    /// Begins, if the build fits.
    pub(super) fn begin_upgrade(&mut self, checked: Checked) {
        self.checking = false;
        let Checked {
            asked,
            program,
            facts,
            reply,
        } = checked;
        let begun = self.fitting(&asked, facts).map(|processes| {
            self.start_upgrade(asked, program, processes);
            self.turn();
        });
        drop(reply.send(begun.and_then(|()| self.upgrading())));
    }

    fn fitting(&self, asked: &plugin::Upgrade, facts: Result<BuildFacts>) -> Result<Vec<usize>> {
        self.refuse_when_changing()?;
        let named = |e: Error| e.context(format!("binary {}", asked.binary));
        let processes = self.chosen(&asked.plugins)?;
        let slots = processes.iter().filter_map(|p| self.slots.get(*p));
        let hosted = slots.flat_map(|slot| &slot.hosts);
        let specs: Vec<&PluginSpec> = hosted
            .filter_map(|id| self.hosted.get(id))
            .map(|hosted| &hosted.spec)
            .collect();
        facts
            .and_then(|facts| facts.fits(&specs))
            .map_err(named)
            .map(|()| processes)
    }

    fn start_upgrade(&mut self, asked: plugin::Upgrade, program: Program, processes: Vec<usize>) {
        let old = processes.iter().filter_map(|&process| {
            let slot = self.slots.get(process)?;
            Some((process, slot.program.clone()))
        });
        let old = old.collect();
        let steps = processes.iter().map(|&process| {
            let slot = self.slots.get(process);
            let hosts = slot.map(|slot| slot.hosts.clone()).unwrap_or_default();
            Step::new(process, hosts, self.halt(process))
        });
        let ready = self.config.timing().patience;
        let machine = Upgrade::new(steps.collect(), ready, self.began.elapsed());
        tracing::info!(binary = asked.binary, "upgrade begins");
        self.upgrade = Some(UpgradeRun {
            binary: asked.binary,
            machine,
            new: Rc::new(program),
            old,
            whole: asked.plugins.is_empty(),
            started_at: Timestamp::now(),
            ended_at: None,
        });
    }

    /// The processes of these plugins, or of all, callees first. Errors: `NotFound`.
    fn chosen(&self, plugins: &[PluginId]) -> Result<Vec<usize>> {
        plugins.iter().try_for_each(|plugin| self.check(plugin))?;
        let wanted = |id: &&PluginId| {
            let process = self.lifecycle.process_of(id);
            let together = |plugin: &PluginId| self.lifecycle.process_of(plugin) == process;
            plugins.is_empty() || plugins.iter().any(together)
        };
        let mut processes = Vec::new();
        for id in self.graph.start_order().filter(wanted) {
            if let Some(process) = self.lifecycle.process_of(id)
                && !processes.contains(&process)
            {
                processes.push(process);
            }
        }
        Ok(processes)
    }

    /// How a process is brought to a halt: an edge owns nothing that its successor needs, so both may run for a while.
    pub(super) fn halt(&self, process: usize) -> Halt {
        let hosts = self.slots.get(process).map(|slot| slot.hosts.as_slice());
        let is_edge = |id: &PluginId| {
            let uncalled = self.graph.required_by(id).next().is_none();
            let listens = self.hosted.get(id).map(|h| !h.spec.sockets.is_empty());
            uncalled && listens.unwrap_or_default()
        };
        match hosts.unwrap_or_default().iter().all(is_edge) {
            true => Halt::Retire,
            false => Halt::Drain,
        }
    }

    /// How the upgrade goes. Errors: `NotFound` when there was none.
    pub(super) fn upgrading(&self) -> Result<UpgradeInfo> {
        let run = self.upgrade.as_ref().map(UpgradeRun::info);
        run.ok_or_else(|| Error::not_found("upgrade: there was none since the daemon started"))
    }

    /// Lets a running upgrade go one step; says whether it did.
    pub(super) fn turn_upgrade(&mut self) -> bool {
        let now = self.began.elapsed();
        let Some(run) = self.upgrade.as_mut().filter(|run| !run.is_over()) else {
            return false;
        };
        let before = run.machine.place();
        let outputs = run.machine.advance(&self.lifecycle, now);
        let went = !outputs.is_empty() || run.machine.place() != before;
        let is_over = run.is_over();
        for output in outputs {
            self.obey_upgrade(output);
        }
        if is_over {
            self.end_upgrade();
        }
        went
    }

    fn obey_upgrade(&mut self, output: Output) {
        match output {
            Output::Hold(process, halt, why) => self.take(Input::Hold { process, why, halt }),
            Output::Release(process) => self.take(Input::Release(process)),
            Output::Trust(process) => self.take(Input::Trust(process)),
            Output::Assign(process, build) => {
                let run = self.upgrade.as_ref();
                let program = run.and_then(|run| match build {
                    Build::New => Some(run.new.clone()),
                    Build::Old => run.old.get(&process).cloned(),
                });
                if let (Some(slot), Some(program)) = (self.slots.get_mut(process), program) {
                    slot.program = program;
                }
            }
        }
    }

    fn end_upgrade(&mut self) {
        let Some(run) = self.upgrade.as_mut() else {
            return;
        };
        run.ended_at = Some(Timestamp::now());
        run.old.clear();
        let (binary, cause) = (run.binary.as_str(), run.machine.cause());
        match run.machine.state() {
            UpgradeState::Done => {
                tracing::info!(binary, "upgrade is done");
                if run.whole {
                    self.program = run.new.clone();
                }
            }
            _ => tracing::error!(binary, cause, "upgrade was rolled back"),
        }
    }
}
