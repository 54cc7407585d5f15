//! Answers to what plugins ask: how everybody stands, and what users want done.

use super::{Daemon, Hosted, Slot, upgrading::Checked};
use crate::{facts, graph::SUPERVISOR, lifecycle::Input};
use contracts::{
    Error, PluginId, Result,
    plugin::{
        GraphInfo, Limits, NodeInfo, PluginInfo, PluginSpec, Reload, Reloaded, State, Upgrade,
        UpgradeInfo,
    },
};
use std::time::Duration;
use tokio::{sync::oneshot, time::Instant};

/// How long an action waits for the plugin to settle before it is answered. Short, for who asks may itself be what stops.
const SETTLING: Duration = Duration::from_secs(2);

/// What a plugin asks the supervisor, with where the answer goes.
pub(crate) enum Question {
    List(oneshot::Sender<Result<Vec<PluginInfo>>>),
    Get(PluginId, oneshot::Sender<Result<PluginInfo>>),
    Graph(oneshot::Sender<Result<GraphInfo>>),
    Node(oneshot::Sender<Result<NodeInfo>>),
    Act {
        action: Action,
        plugin: PluginId,
        reply: oneshot::Sender<Result<PluginInfo>>,
    },
    Reload(Reload, oneshot::Sender<Result<Reloaded>>),
    Upgrade(Upgrade, oneshot::Sender<Result<UpgradeInfo>>),
    Upgrading(oneshot::Sender<Result<UpgradeInfo>>),
    /// A build has said what it is.
    Checked(Box<Checked>),
}

/// What a user wants done with a plugin.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Restart,
    Stop,
    Start,
}

/// An action that waits for its plugin to settle.
pub(super) struct Waiter {
    plugin: PluginId,
    pub(super) until: Instant,
    reply: oneshot::Sender<Result<PluginInfo>>,
}

impl Daemon {
    pub(super) fn answer(&mut self, question: Question) {
        // Who asked may have gone meanwhile.
        match question {
            Question::List(reply) => drop(reply.send(Ok(self.list()))),
            Question::Get(plugin, reply) => drop(reply.send(self.get(&plugin))),
            Question::Graph(reply) => drop(reply.send(Ok(self.graph_info()))),
            Question::Node(reply) => drop(reply.send(Ok(self.node()))),
            Question::Act {
                action,
                plugin,
                reply,
            } => self.act(action, plugin, reply),
            Question::Reload(asked, reply) => self.reload(&asked, Some(reply)),
            Question::Upgrade(asked, reply) => self.upgrade(asked, reply),
            Question::Upgrading(reply) => drop(reply.send(self.upgrading())),
            Question::Checked(checked) => self.begin_upgrade(*checked),
        }
    }

    fn act(
        &mut self,
        action: Action,
        plugin: PluginId,
        reply: oneshot::Sender<Result<PluginInfo>>,
    ) {
        if let Err(error) = self.check(&plugin).and_then(|()| self.at_rest(&plugin)) {
            return drop(reply.send(Err(error)));
        }
        tracing::info!(%plugin, ?action, "asked by a user");
        let until = Instant::now() + SETTLING;
        self.waiters.push(Waiter {
            plugin: plugin.clone(),
            until,
            reply,
        });
        self.feed(match action {
            Action::Restart => Input::Restart(plugin),
            Action::Stop => Input::Stop(plugin),
            Action::Start => Input::Start(plugin),
        });
    }

    /// Refuses what would cross a reload or an upgrade.
    fn at_rest(&self, plugin: &PluginId) -> Result<()> {
        let process = self.lifecycle.process_of(plugin);
        match process.is_some_and(|process| self.is_changing(process)) {
            true => Err(Error::precondition(format!(
                "plugin {plugin}: is being replaced by a reload or an upgrade; try again when that is over"
            ))),
            false => Ok(()),
        }
    }

    pub(super) fn check(&self, plugin: &PluginId) -> Result<()> {
        if plugin.as_str() == SUPERVISOR {
            return Err(Error::precondition(format!(
                "plugin {plugin}: is the node itself; send SIGTERM to pid {} to stop it",
                std::process::id()
            )));
        }
        match self.hosted.contains_key(plugin) {
            true => Ok(()),
            false => Err(self.unknown(plugin)),
        }
    }

    fn unknown(&self, plugin: &PluginId) -> Error {
        let known = self.hosted.keys().map(PluginId::as_str);
        let known: Vec<_> = known.chain([SUPERVISOR]).collect();
        Error::not_found(format!(
            "plugin {plugin}: not of this node; there are {}",
            known.join(", ")
        ))
    }

    pub(super) fn answer_settled(&mut self) {
        let now = Instant::now();
        let waiters = std::mem::take(&mut self.waiters);
        let waits = |w: &Waiter| self.lifecycle.is_settling(&w.plugin) && w.until > now;
        let (waiting, settled): (Vec<_>, Vec<_>) = waiters.into_iter().partition(waits);
        self.waiters = waiting;
        for waiter in settled {
            let _ = waiter.reply.send(self.get(&waiter.plugin));
        }
    }

    fn list(&self) -> Vec<PluginInfo> {
        let mut all: Vec<_> = self.hosted.keys().filter_map(|p| self.info(p)).collect();
        all.extend(self.myself());
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    fn get(&self, plugin: &PluginId) -> Result<PluginInfo> {
        if plugin.as_str() == SUPERVISOR
            && let Some(info) = self.myself()
        {
            return Ok(info);
        }
        self.info(plugin).ok_or_else(|| self.unknown(plugin))
    }

    fn graph_info(&self) -> GraphInfo {
        let edges = self.graph.edges();
        GraphInfo {
            nodes: self.list(),
            edges: edges.map(|(a, b)| (a.clone(), b.clone())).collect(),
        }
    }

    fn node(&self) -> NodeInfo {
        NodeInfo {
            version: self.options.version.clone(),
            pid: std::process::id(),
            root: self.folders.root.to_string_lossy().into_owned(),
            state: self.folders.state.to_string_lossy().into_owned(),
            manifest: self.config.manifest.clone(),
            started_at: self.began_at,
        }
    }

    fn info(&self, plugin: &PluginId) -> Option<PluginInfo> {
        let (hosted, slot) = (self.hosted.get(plugin)?, self.slot(plugin)?);
        let standing = self.lifecycle.standing(plugin);
        let pid = self.pid(plugin);
        let facts = facts::of(pid).unwrap_or_default();
        Some(PluginInfo {
            id: plugin.clone(),
            state: standing.state,
            cause: standing.cause,
            chain: standing.chain,
            pid,
            uid: facts.uid,
            capabilities: facts.capabilities,
            privileges_reason: hosted.spec.privileges.reason.clone(),
            restarts: self.lifecycle.restarts(plugin),
            requires: self.graph.requires(plugin).cloned().collect(),
            required_by: self.graph.required_by(plugin).cloned().collect(),
            memory: facts.memory + self.below(hosted, pid),
            last_exit: self.lifecycle.last_exit(plugin).to_owned(),
            started_at: slot.running.as_ref().and(slot.started_at),
            root: hosted.root.to_string_lossy().into_owned(),
            program: program(slot, &hosted.spec),
            limits: slot.holding.limits(),
            unlimited: slot.holding.unlimited(),
            exits: self.lifecycle.exits(plugin),
        })
    }

    /// A foreign program counts with its host; what others start, as tasks does with shims, has a life of its own.
    fn below(&self, hosted: &Hosted, pid: u32) -> u64 {
        hosted.spec.exec.as_ref().map_or(0, |_| facts::below(pid))
    }

    fn myself(&self) -> Option<PluginInfo> {
        let id = PluginId::new(SUPERVISOR).ok()?;
        let facts = facts::of(std::process::id()).unwrap_or_default();
        Some(PluginInfo {
            state: State::Ready,
            cause: String::new(),
            chain: Vec::new(),
            pid: std::process::id(),
            uid: facts.uid,
            capabilities: facts.capabilities,
            privileges_reason: "starts every plugin with its own uid and privileges".into(),
            restarts: 0,
            requires: Vec::new(),
            required_by: self.graph.required_by(&id).cloned().collect(),
            memory: facts.memory,
            last_exit: String::new(),
            started_at: Some(self.began_at),
            root: self.folders.root.to_string_lossy().into_owned(),
            program: self.own.path().to_string_lossy().into_owned(),
            limits: Limits::default(),
            unlimited: String::new(),
            exits: Vec::new(),
            id,
        })
    }
}

/// What answers for a plugin.
fn program(slot: &Slot, spec: &PluginSpec) -> String {
    let foreign = spec.exec.as_ref().and_then(|command| command.first());
    let own = || slot.program.path().to_string_lossy().into_owned();
    foreign.cloned().unwrap_or_else(own)
}
