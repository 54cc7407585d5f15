//! What becomes of every process and plugin: a pure state machine, (input, now) → outputs.
//!
//! All processes are spawned at once. A plugin is told to start when everything it requires is ready *or has had its
//! chance* (failed once, was stopped, or is stuck past [`Timing::patience`]): so the order of the graph holds when all
//! is well, and a broken plugin holds up nobody. Who is ready is asked whether it still answers (`probe.rs`). `now` is the
//! time since the supervisor began.

mod change;
mod edges;
mod exits;
mod probe;
mod telling;
mod wishes;

pub use change::{Condition, Halt};

use crate::{
    graph::{Graph, SUPERVISOR},
    restart::{History, Pause, Policy},
    standing::Standing,
};
use contracts::{Error, PluginId, Timestamp, plugin::Exit};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// How long the supervisor waits for a process.
#[derive(Clone, Debug)]
pub struct Timing {
    /// For its hello; then it is killed. 30 s: dropping privileges takes 1 ms, but a machine may be very busy.
    pub hello: Duration,
    /// For a plugin to become ready before its dependants start without it. 10 s.
    pub patience: Duration,
    /// Between asking it to stop and killing it. 5 s: longer than a process waits for what is in flight.
    pub stop: Duration,
    /// For its exit after it refused to start or hung up. 1 s.
    pub farewell: Duration,
    /// For a plugin to become ready; then its process is killed. 10 min: a large damaged store takes its time.
    pub start: Duration,
    /// Between two questions whether a process answers; zero asks never. 500 ms.
    pub probe: Duration,
    /// For the answer, since the last one, before it and its dependants are degraded. 1.5 s: users are told within 2 s.
    pub late: Duration,
    /// For the answer, since the last one, before it is killed. 10 s: shorter than callers wait.
    pub kill: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(30),
            patience: Duration::from_secs(10),
            stop: Duration::from_secs(5),
            farewell: Duration::from_secs(1),
            start: Duration::from_secs(600),
            probe: Duration::from_millis(500),
            late: Duration::from_millis(1500),
            kill: Duration::from_secs(10),
        }
    }
}

/// Something that happened. Processes are numbered as in the manifest.
#[derive(Clone, Debug)]
pub enum Input {
    /// The supervisor begins.
    Begin,
    /// A process could not be made.
    NotSpawned(usize, String),
    /// A process has dropped its privileges.
    Hello(usize),
    /// A plugin answers calls.
    Ready(PluginId),
    /// A plugin refused to start, or says why its process is about to end.
    Refused(PluginId, Error),
    /// A process hung up its control link, or broke its protocol.
    HungUp(usize, String),
    /// Why a process is about to end, better than its exit will tell.
    LastWords(usize, String),
    /// A process ended, and how.
    Exited(usize, String),
    /// A process answered [`Output::Ping`] of this number.
    Pong(usize, u64),
    /// A plugin cannot use its link to a living peer any more.
    Broken {
        /// Who says so.
        plugin: PluginId,
        /// The other end.
        peer: PluginId,
    },
    /// A user wants a plugin stopped.
    Stop(PluginId),
    /// A user wants a plugin started.
    Start(PluginId),
    /// A user wants a plugin started anew.
    Restart(PluginId),
    /// A process must not go on as it is, and stays held when it has ended.
    Hold {
        /// Which.
        process: usize,
        /// What its callers are told meanwhile.
        why: String,
        /// How.
        halt: Halt,
    },
    /// A held process may try.
    Release(usize),
    /// A process has passed its trial.
    Trust(usize),
    /// All must stop; said twice: at once.
    Shutdown,
    /// Time has passed.
    Tick,
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make the process and tell it who it is.
    Spawn(usize),
    /// Make a socket pair and hand an end to both.
    Wire {
        /// Who calls.
        caller: PluginId,
        /// Who answers; may be the supervisor.
        peer: PluginId,
    },
    /// Tell a plugin to start.
    Start(PluginId),
    /// Tell a caller how its peer stands.
    Notify {
        /// Who calls.
        caller: PluginId,
        /// Who answers.
        peer: PluginId,
        /// How it stands.
        standing: Standing,
    },
    /// Ask a process to stop.
    Stop(usize),
    /// Ask a process to accept nothing new and to finish what is in flight, and forget it: another takes its place.
    Retire(usize),
    /// Ask a process whether it answers, by a number.
    Ping(usize, u64),
    /// Kill a process.
    Kill(usize),
    /// A plugin stands differently: worth a line in the log.
    Changed(PluginId, Standing),
    /// Everything has stopped.
    Finished,
}

/// The machine.
pub struct Lifecycle {
    graph: Graph,
    policy: Policy,
    timing: Timing,
    jitter: Box<dyn FnMut() -> f64>,
    processes: Vec<Process>,
    plugins: BTreeMap<PluginId, Plugin>,
    standings: BTreeMap<PluginId, Standing>,
    /// What each caller was last told about each peer.
    told: BTreeMap<(PluginId, PluginId), Standing>,
    edges: BTreeMap<(PluginId, PluginId), edges::Edge>,
    rounds: probe::Rounds,
    /// What the clock on the wall says when `now` is zero.
    epoch: Timestamp,
    shutdown: bool,
    finished: bool,
    out: Vec<Output>,
}

struct Process {
    hosts: Vec<PluginId>,
    phase: Phase,
    history: History,
    spawned: u32,
    exits: VecDeque<Exit>,
    /// Why it is about to end, if that is known better than from its exit.
    last_words: Option<String>,
    pulse: Option<probe::Pulse>,
    /// Why it is down or resting, and which plugin of it is to blame.
    cause: String,
    culprit: Option<PluginId>,
    /// Whether it counts as failed. It stays so while it is tried again, lest its callers hope with every attempt.
    failed: bool,
    /// Whether a failure makes it held: who let it try decides what comes next.
    trial: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// There is no process, and none is wanted.
    Down,
    /// There is a process; `hello` came.
    Live { since: Duration, hello: bool },
    /// There is a process, which shall end.
    Ending { deadline: Duration, then: Then },
    /// There is no process until then.
    Resting { until: Duration },
    /// There is no process until it is released.
    Held,
}

/// What follows the end of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Stay,
    Again,
    Hold,
    /// A failure, which was `refused` when the plugin had said so.
    Rest {
        refused: bool,
    },
}

struct Plugin {
    process: usize,
    progress: Progress,
    had_chance: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Progress {
    Waiting,
    Starting(Duration),
    Answering(Duration),
}

impl Lifecycle {
    /// Prepares the machine for `processes`, each with what it hosts. `jitter` gives numbers in 0..1.
    pub fn new(
        graph: Graph,
        processes: &[Vec<PluginId>],
        policy: Policy,
        timing: Timing,
        jitter: Box<dyn FnMut() -> f64>,
    ) -> Self {
        let hosted = |(process, hosts): (usize, &Vec<PluginId>)| {
            let plugin = move |id: PluginId| (id, Plugin::new(process));
            hosts.clone().into_iter().map(plugin).collect::<Vec<_>>()
        };
        Self {
            plugins: processes.iter().enumerate().flat_map(hosted).collect(),
            processes: processes.iter().cloned().map(Process::new).collect(),
            standings: BTreeMap::new(),
            told: BTreeMap::new(),
            edges: BTreeMap::new(),
            rounds: probe::Rounds::default(),
            epoch: Timestamp(0),
            shutdown: false,
            finished: false,
            out: Vec::new(),
            graph,
            policy,
            timing,
            jitter,
        }
    }

    /// Takes one input and says what to do.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Output> {
        if let Input::Pong(process, number) = input
            && self.is_well(process)
        {
            // By far the most inputs of an idle node, and nobody stands differently after them.
            self.pong(process, number, now);
            return Vec::new();
        }
        match input {
            Input::Begin => (0..self.processes.len()).for_each(|p| self.spawn(p, now)),
            Input::NotSpawned(process, why) => self.exited(process, why, now),
            Input::Hello(process) => self.hello(process),
            Input::Ready(plugin) => self.ready(&plugin, now),
            Input::Refused(plugin, error) => self.refused(plugin, &error, now),
            Input::HungUp(process, why) => self.hung_up(process, why, now),
            Input::LastWords(process, why) => self.last_words(process, why),
            Input::Pong(process, number) => self.pong(process, number, now),
            Input::Broken { plugin, peer } => self.broken(plugin, peer, now),
            Input::Exited(process, reason) => self.exited(process, reason, now),
            Input::Stop(plugin) => self.on_user(&plugin, |me, p| me.stop(p, now)),
            Input::Start(plugin) => self.on_user(&plugin, |me, p| me.start(p, now)),
            Input::Restart(plugin) => self.on_user(&plugin, |me, p| me.restart(p, now)),
            Input::Hold { process, why, halt } => self.hold(process, now, why, halt),
            Input::Release(process) => self.release(process, now),
            Input::Trust(process) => self.trust(process),
            Input::Shutdown => self.begin_shutdown(now),
            Input::Tick => {}
        }
        self.due(now);
        let finished = self.stop_next(now);
        self.start_ready(now);
        self.tell();
        if finished {
            self.out.push(Output::Finished);
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Tick`] is due at the latest.
    pub fn next_due(&self) -> Option<Duration> {
        let processes = self.processes.iter().filter_map(|p| match p.phase {
            Phase::Live {
                since,
                hello: false,
            } => Some(since + self.timing.hello),
            Phase::Ending { deadline, .. } => Some(deadline),
            Phase::Resting { until, .. } => Some(until),
            _ => None,
        });
        let live = |p: &Plugin| self.has_phase(p.process, |p| matches!(p, Phase::Live { .. }));
        let plugins = self.plugins.values().filter_map(|p| match p.progress {
            Progress::Starting(since) if !p.had_chance => Some(since + self.timing.patience),
            Progress::Starting(since) if live(p) => Some(since + self.timing.start),
            _ => None,
        });
        let others = [self.probe_due(), self.edges_due()];
        let others = others.into_iter().flatten();
        processes.chain(plugins).chain(others).min()
    }

    /// How `plugin` stands; the supervisor and what is unknown count as ready.
    pub fn standing(&self, plugin: &PluginId) -> Standing {
        let known = self.standings.get(plugin).cloned();
        known.unwrap_or_else(Standing::ready)
    }

    /// Which process hosts `plugin`.
    pub fn process_of(&self, plugin: &PluginId) -> Option<usize> {
        self.plugins.get(plugin).map(|p| p.process)
    }

    /// How often the process of `plugin` was started again.
    pub fn restarts(&self, plugin: &PluginId) -> u32 {
        self.of(plugin).map_or(0, |p| p.spawned.saturating_sub(1))
    }

    /// Whether the process of `plugin` is on its way up or down.
    pub fn is_settling(&self, plugin: &PluginId) -> bool {
        let answering = |id: &PluginId| {
            let plugin = self.plugins.get(id);
            plugin.is_some_and(|p| matches!(p.progress, Progress::Answering(_)))
        };
        self.of(plugin).is_some_and(|process| match process.phase {
            Phase::Ending { .. } | Phase::Held => true,
            Phase::Live { .. } => !process.hosts.iter().all(answering),
            Phase::Down | Phase::Resting { .. } => false,
        })
    }

    fn of(&self, plugin: &PluginId) -> Option<&Process> {
        self.processes.get(self.process_of(plugin)?)
    }

    fn spawn(&mut self, index: usize, now: Duration) {
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        process.phase = Phase::Live {
            since: now,
            hello: false,
        };
        process.spawned += 1;
        process.pulse = None;
        process.last_words = None;
        let hosts: BTreeSet<_> = process.hosts.iter().cloned().collect();
        for (id, plugin) in &mut self.plugins {
            if hosts.contains(id) {
                plugin.progress = Progress::Waiting;
            }
        }
        self.told.retain(|(caller, _), _| !hosts.contains(caller));
        self.out.push(Output::Spawn(index));
        self.wire(&hosts);
    }

    /// Makes a fresh pair for every edge of `hosts` whose other end has a process.
    fn wire(&mut self, hosts: &BTreeSet<PluginId>) {
        let touched = self
            .graph
            .edges()
            .filter(|(from, to)| hosts.contains(*from) || hosts.contains(*to))
            .filter(|(from, to)| self.is_live(from) && self.is_live(to));
        let touched: Vec<_> = touched.map(|(a, b)| (a.clone(), b.clone())).collect();
        for (caller, peer) in touched {
            self.is_wired(&caller, &peer);
            self.out.push(Output::Wire { caller, peer });
        }
    }

    fn is_live(&self, plugin: &PluginId) -> bool {
        plugin.as_str() == SUPERVISOR
            || self
                .of(plugin)
                .is_some_and(|p| matches!(p.phase, Phase::Live { .. }))
    }

    fn hello(&mut self, index: usize) {
        if let Some(Process {
            phase: Phase::Live { hello, .. },
            ..
        }) = self.processes.get_mut(index)
        {
            *hello = true;
        }
    }

    fn ready(&mut self, id: &PluginId, now: Duration) {
        let live = self.is_live(id);
        let Some(plugin) = self.plugins.get_mut(id).filter(|_| live) else {
            return;
        };
        plugin.progress = Progress::Answering(now);
        plugin.had_chance = true;
        let index = plugin.process;
        let answers = |p: &Plugin| matches!(p.progress, Progress::Answering(_));
        let mut hosted = self.plugins.values().filter(|p| p.process == index);
        if hosted.all(answers)
            && let Some(process) = self.processes.get_mut(index)
        {
            process.failed = false;
            self.feel(index, now);
        }
    }

    fn refused(&mut self, id: PluginId, error: &Error, now: Duration) {
        let Some(index) = self.process_of(&id).filter(|_| self.is_live(&id)) else {
            return;
        };
        self.last_words(index, error.to_string());
        let answering = self.plugins.get(&id).map(|p| p.progress);
        let refused = !matches!(answering, Some(Progress::Answering(_)));
        let cause = match refused {
            true => format!("it does not start: {error}"),
            false => format!("it ended: {error}"),
        };
        self.end(index, now, cause, Some(id), Then::Rest { refused });
    }

    fn hung_up(&mut self, index: usize, why: String, now: Duration) {
        if self.has_phase(index, |phase| matches!(phase, Phase::Live { .. })) {
            self.end(index, now, why, None, Then::Rest { refused: false });
        }
    }

    /// Waits a moment for a process that goes by itself.
    fn end(
        &mut self,
        index: usize,
        now: Duration,
        cause: String,
        culprit: Option<PluginId>,
        then: Then,
    ) {
        let deadline = now + self.timing.farewell;
        if let Some(process) = self.processes.get_mut(index) {
            process.phase = Phase::Ending { deadline, then };
            process.cause = cause;
            process.culprit = culprit;
        }
        self.gave_chance(index);
    }

    fn exited(&mut self, index: usize, reason: String, now: Duration) {
        let ready = self.ready_for(index, now);
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        let reason = process.ended(self.epoch, now, reason);
        let then = match process.phase {
            Phase::Ending { then, .. } => then,
            _ => {
                process.cause = format!("it ended: {reason}");
                process.culprit = None;
                Then::Rest { refused: false }
            }
        };
        match then {
            _ if self.shutdown => process.phase = Phase::Down,
            Then::Stay => process.phase = Phase::Down,
            Then::Hold => process.phase = Phase::Held,
            Then::Rest { .. } if process.trial => process.phase = Phase::Held,
            Then::Again => self.spawn(index, now),
            Then::Rest { refused } => {
                let jitter = (self.jitter)();
                let Pause { length, failed } = match refused {
                    true => process.history.refused(&self.policy, jitter),
                    false => process.history.ended(&self.policy, ready, jitter),
                };
                let until = now + length;
                process.phase = Phase::Resting { until };
                process.failed = failed;
            }
        }
        self.gave_chance(index);
    }

    /// How long all plugins of a process have answered.
    fn ready_for(&self, index: usize, now: Duration) -> Duration {
        let pulse = self.processes.get(index).and_then(|p| p.pulse);
        // Who was stuck did not answer.
        let now = pulse.filter(|p| p.silent).map_or(now, |p| p.heard);
        let mut shortest = None;
        for plugin in self.plugins.values().filter(|p| p.process == index) {
            let answered = match plugin.progress {
                Progress::Answering(since) => now.saturating_sub(since),
                _ => Duration::ZERO,
            };
            shortest = Some(shortest.map_or(answered, |s: Duration| s.min(answered)));
        }
        shortest.unwrap_or_default()
    }

    fn gave_chance(&mut self, index: usize) {
        for plugin in self.plugins.values_mut().filter(|p| p.process == index) {
            plugin.had_chance = true;
        }
    }

    fn has_phase(&self, index: usize, is: impl Fn(&Phase) -> bool) -> bool {
        self.processes.get(index).is_some_and(|p| is(&p.phase))
    }

    /// Does what time has made due.
    fn due(&mut self, now: Duration) {
        self.probe(now);
        self.mend(now);
        if let Some(index) = self.too_long_in_start(now) {
            let seconds = self.timing.start.as_secs_f64();
            let why = format!("it was not ready after {seconds} s and was killed");
            self.kill(index, now, why);
        }
        for index in 0..self.processes.len() {
            match self.processes.get(index).map(|p| p.phase.clone()) {
                Some(Phase::Resting { until, .. }) if until <= now && !self.shutdown => {
                    self.spawn(index, now);
                }
                Some(Phase::Live {
                    since,
                    hello: false,
                }) if since + self.timing.hello <= now => {
                    let cause = "it never said hello on its control link".to_owned();
                    self.end(index, now, cause, None, Then::Rest { refused: false });
                    self.out.push(Output::Kill(index));
                }
                Some(Phase::Ending { deadline, then }) if deadline <= now => {
                    let deadline = now + self.timing.stop;
                    if let Some(process) = self.processes.get_mut(index) {
                        process.phase = Phase::Ending { deadline, then };
                    }
                    self.out.push(Output::Kill(index));
                }
                _ => {}
            }
        }
        for plugin in self.plugins.values_mut() {
            if matches!(plugin.progress, Progress::Starting(since) if since + self.timing.patience <= now)
            {
                plugin.had_chance = true;
            }
        }
    }

    /// Starts every plugin whose requirements had their chance.
    fn start_ready(&mut self, now: Duration) {
        if self.shutdown {
            return;
        }
        let said_hello = |phase: &Phase| matches!(phase, Phase::Live { hello: true, .. });
        let ready: Vec<PluginId> = self
            .plugins
            .iter()
            .filter(|(_, plugin)| plugin.progress == Progress::Waiting)
            .filter(|(_, plugin)| self.has_phase(plugin.process, said_hello))
            .filter(|(id, _)| self.waits_for(id).is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in ready {
            if let Some(plugin) = self.plugins.get_mut(&id) {
                plugin.progress = Progress::Starting(now);
            }
            self.out.push(Output::Start(id));
        }
    }

    fn waits_for(&self, plugin: &PluginId) -> Option<&PluginId> {
        let had_chance = |id: &PluginId| self.plugins.get(id).is_none_or(|p| p.had_chance);
        self.graph.awaits(plugin).find(|id| !had_chance(id))
    }
}

impl Process {
    fn new(hosts: Vec<PluginId>) -> Self {
        Self {
            hosts,
            phase: Phase::Down,
            history: History::default(),
            spawned: 0,
            exits: VecDeque::new(),
            last_words: None,
            pulse: None,
            cause: String::new(),
            culprit: None,
            failed: false,
            trial: false,
        }
    }
}

impl Plugin {
    fn new(process: usize) -> Self {
        Self {
            process,
            progress: Progress::Waiting,
            had_chance: false,
        }
    }
}

#[cfg(test)]
mod tests;
