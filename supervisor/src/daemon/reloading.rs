//! Reloads: another plan is read, compared, and made to count, or the old one comes back.

use super::{Daemon, Hosted, Slot, upgrading::Answer};
use crate::{
    folders::FolderError,
    lifecycle::{Condition, Input},
    options::Plan,
    reload::{self, Output, Placement, Turnover, Which},
};
use contracts::{
    Error, PluginId, Result,
    plugin::{Change, Reload, Reloaded},
};
use std::{collections::BTreeMap, time::Duration};

/// A reload that changes processes.
pub(super) struct ReloadRun {
    machine: Turnover,
    /// The plan that does not count at present, with what each process hosts in it.
    other: Option<(Plan, Vec<Vec<PluginId>>)>,
    changes: Vec<Change>,
    /// Nobody waits for the answer to a signal.
    reply: Option<Answer<Reloaded>>,
}

impl ReloadRun {
    pub(super) fn touches(&self, process: usize) -> bool {
        self.machine.touches(process)
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.machine.due()
    }
}

impl Daemon {
    /// Reads the files again and does what they say. Without `reply` the log tells how it went.
    pub(super) fn reload(&mut self, asked: &Reload, reply: Option<Answer<Reloaded>>) {
        let (plan, changes) = match self.another() {
            Ok(found) => found,
            Err(error) => return told(reply, Err(error)),
        };
        let names_plugins = changes.iter().any(|change| change.action != "apply");
        match (asked.dry_run, names_plugins) {
            (true, _) => answer(reply, Ok(Reloaded { changes })),
            (false, true) => {
                self.begin_reload(plan, changes, reply);
                self.turn();
            }
            (false, false) => {
                let processes = self.processes();
                let applied = self.apply(plan, &processes).map(drop);
                let applied = applied.map_err(|e| Error::internal(e.to_string()));
                told(reply, applied.map(|()| Reloaded { changes }));
            }
        }
    }

    fn another(&self) -> Result<(Plan, Vec<Change>)> {
        self.refuse_when_changing()?;
        let plan = self
            .options
            .plan()
            .map_err(|e| Error::invalid(e.to_string()).context("reload: nothing was changed"))?;
        let changes = reload::changes(&self.plan(), &plan).map_err(|e| e.context("reload"))?;
        Ok((plan, changes))
    }

    fn plan(&self) -> Plan {
        Plan {
            config: self.config.clone(),
            registry: self.registry.clone(),
            graph: self.graph.clone(),
        }
    }

    fn processes(&self) -> Vec<Vec<PluginId>> {
        self.slots.iter().map(|slot| slot.hosts.clone()).collect()
    }

    fn begin_reload(&mut self, plan: Plan, changes: Vec<Change>, reply: Option<Answer<Reloaded>>) {
        let changed = changes.iter().map(|change| change.plugin.clone()).collect();
        let wanted = plan.registry.processes();
        let placement = reload::place(&self.processes(), wanted, &changed);
        let Placement {
            processes,
            hold,
            release,
        } = placement;
        let must = release.iter().copied();
        let must = must.filter(|&process| self.must_come_up(processes.get(process)));
        let machine = Turnover::new(
            hold.iter().map(|&p| (p, self.halt(p))).collect(),
            release.clone(),
            must.collect(),
            self.config.timing().patience,
        );
        for change in &changes {
            let Change {
                plugin,
                action,
                why,
            } = change;
            tracing::info!(%plugin, action, why, "reload");
        }
        self.reload = Some(ReloadRun {
            machine,
            other: Some((plan, processes)),
            changes,
            reply,
        });
    }

    /// Whoever was up must be so again; who was not cannot make things worse.
    fn must_come_up(&self, hosts: Option<&Vec<PluginId>>) -> bool {
        let was_up = |id: &PluginId| {
            let process = self.lifecycle.process_of(id);
            process.is_none_or(|p| self.lifecycle.condition(p) == Condition::Up)
        };
        hosts.is_some_and(|hosts| hosts.iter().all(was_up))
    }

    /// Lets a running reload go one step; says whether it did.
    pub(super) fn turn_reload(&mut self) -> bool {
        let now = self.began.elapsed();
        let Some(run) = self.reload.as_mut() else {
            return false;
        };
        let before = run.machine.place();
        let outputs = run.machine.advance(&self.lifecycle, now);
        let went = !outputs.is_empty() || run.machine.place() != before;
        self.obey_reload(outputs);
        if self.reload.as_ref().is_some_and(|r| r.machine.is_over()) {
            self.end_reload();
        }
        went
    }

    fn obey_reload(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Hold(process, halt, why) => {
                    self.take(Input::Hold { process, why, halt });
                }
                Output::Release(process) => self.take(Input::Release(process)),
                Output::Trust(process) => self.take(Input::Trust(process)),
                Output::Apply(which) => {
                    let Err(error) = self.exchange() else {
                        continue;
                    };
                    tracing::error!(%error, "a plan cannot be applied");
                    if which == Which::New {
                        return self.take_back(error.to_string());
                    }
                }
            }
        }
    }

    fn take_back(&mut self, why: String) {
        let now = self.began.elapsed();
        let run = self.reload.as_mut();
        let outputs = run.map(|run| run.machine.not_applied(why, now));
        self.obey_reload(outputs.unwrap_or_default());
    }

    /// Makes the other plan of a reload count.
    fn exchange(&mut self) -> Result<(), FolderOrSocket> {
        let other = self.reload.as_mut().and_then(|run| run.other.take());
        let Some((plan, processes)) = other else {
            return Ok(());
        };
        let mut before = self.processes();
        let former = self.apply(plan, &processes)?;
        before.resize(self.slots.len(), Vec::new());
        if let Some(run) = &mut self.reload {
            run.other = Some((former, before));
        }
        Ok(())
    }

    fn end_reload(&mut self) {
        let Some(run) = self.reload.take() else {
            return;
        };
        let answer = match run.machine.cause() {
            None => Ok(Reloaded {
                changes: run.changes,
            }),
            Some(cause) => Err(Error::precondition(format!(
                "reload: a plugin does not run with the new configuration, and the former one is back: {cause}"
            ))),
        };
        told(run.reply, answer);
    }

    /// Makes `plan` count. What hosts something else than before must be held. Answers the former plan.
    fn apply(&mut self, plan: Plan, processes: &[Vec<PluginId>]) -> Result<Plan, FolderOrSocket> {
        let (slots, hosted) = self.occupy_again(&plan, processes)?;
        // Last of what can fail.
        self.sockets.add(plan.registry.specs())?;
        for (index, slot) in slots {
            match self.slots.get_mut(index) {
                Some(old) => *old = slot,
                None => self.slots.push(slot),
            }
        }
        self.sockets.retain(plan.registry.specs());
        let former = std::mem::replace(&mut self.hosted, hosted);
        let gone = former.keys().filter(|id| !self.hosted.contains_key(*id));
        self.folders.sweep(gone);
        let (policy, timing) = (plan.config.policy(), plan.config.timing());
        let graph = plan.graph.clone();
        self.lifecycle.replan(graph, processes, policy, timing);
        Ok(Plan {
            config: std::mem::replace(&mut self.config, plan.config),
            registry: std::mem::replace(&mut self.registry, plan.registry),
            graph: std::mem::replace(&mut self.graph, plan.graph),
        })
    }

    /// Prepares uid and folders of every process that hosts something else than before. Answers those, by number, and
    /// all plugins.
    fn occupy_again(
        &self,
        plan: &Plan,
        processes: &[Vec<PluginId>],
    ) -> Result<Occupied, FolderError> {
        let identities = self.identities(plan, processes);
        let (mut slots, mut hosted) = (Vec::new(), BTreeMap::new());
        for (index, hosts) in processes.iter().enumerate() {
            let identity = identities.get(hosts.as_slice()).copied().flatten();
            let same = self.slots.get(index).is_some_and(|s| s.hosts == *hosts);
            for id in hosts {
                let (root, state) = match self.hosted.get(id).filter(|_| same) {
                    Some(former) => (former.root.clone(), former.state.clone()),
                    None => self.folders.prepare(id, identity)?,
                };
                if let Some(spec) = plan.registry.get(id).cloned() {
                    hosted.insert(id.clone(), Hosted { spec, root, state });
                }
            }
            if !same {
                let program = self.program.clone();
                slots.push((index, Slot::new(hosts.clone(), identity, program)));
            }
        }
        Ok((slots, hosted))
    }

    fn identities<'a>(&self, plan: &Plan, processes: &'a [Vec<PluginId>]) -> Identities<'a> {
        let is_root = |id: &PluginId| plan.registry.get(id).is_some_and(|s| s.privileges.root);
        let taken = processes.iter().filter(|hosts| !hosts.is_empty());
        let taken: Vec<(&[PluginId], bool)> = taken
            .map(|hosts| (hosts.as_slice(), hosts.iter().any(is_root)))
            .collect();
        let identities = self.folders.identities(&taken);
        let hosts = taken.into_iter().map(|(hosts, _)| hosts);
        hosts.zip(identities).collect()
    }
}

/// Processes that host something else, by number, and every plugin.
type Occupied = (Vec<(usize, Slot)>, BTreeMap<PluginId, Hosted>);
/// Uid and gid by what a process hosts.
type Identities<'a> = BTreeMap<&'a [PluginId], Option<(u32, u32)>>;

/// Why a plan cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderOrSocket {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Socket(#[from] crate::sockets::SocketError),
}

/// Answers who asked, and the log.
fn told(reply: Option<Answer<Reloaded>>, told: Result<Reloaded>) {
    match &told {
        Ok(reloaded) => tracing::info!(changes = reloaded.changes.len(), "reloaded"),
        Err(error) => tracing::error!(%error, "not reloaded"),
    }
    answer(reply, told);
}

fn answer(reply: Option<Answer<Reloaded>>, answer: Result<Reloaded>) {
    if let Some(reply) = reply {
        // Who asked may have gone meanwhile.
        let _ = reply.send(answer);
    }
}
