//! The node's one loop: news from processes, questions from plugins, signals and time go into the lifecycle; what it
//! says is done here. Everything that touches the kernel is reached from this file.

mod answers;
mod reloading;
mod retiring;
mod upgrading;

use answers::Waiter;
pub(crate) use answers::{Action, Question};
use reloading::ReloadRun;
use retiring::Retired;
use upgrading::UpgradeRun;

use crate::{
    child::{self, News, Running, What},
    folders::{FolderError, Folders},
    graph::{Graph, SUPERVISOR},
    lifecycle::{Input, Lifecycle, Output},
    limits::{Cgroups, Holding},
    lock::{Lock, LockError},
    options::{Options, Plan, PlanError},
    process,
    program::Program,
    registry::Registry,
    service::{self, SupervisorService},
    sockets::{SocketError, Sockets},
    standing::{self, Standing},
};
use actix::Actor;
use bus::{Dispatch, PROTOCOL, server};
use contracts::{
    Fd, PluginId, Timestamp,
    plugin::{Boot, FromPlugin, PluginBoot, PluginSpec, Reload, State, ToPlugin},
};
use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    rc::Rc,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::Instant,
};

/// Questions that may wait; who asks more waits.
const QUESTIONS: usize = 64;
/// Open files that the node's processes may have: enough for thousands of connections, and not so many that programs
/// which close every possible descriptor stall.
const OPEN_FILES: u64 = 65_536;

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Configuration, manifest or wiring.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Another supervisor.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A listening socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The running build cannot be pinned.
    #[error("own executable: {0}")]
    Program(io::Error),
    /// Signals cannot be watched.
    #[error("signals: {0}")]
    Signals(io::Error),
}

/// Runs a node until SIGTERM or SIGINT, then stops everything, callers first, and leaves nothing behind; a second
/// signal kills. SIGHUP reads the configuration again; the log says what became of it.
///
/// Must run in an actix system on the main thread. Errors: see [`DaemonError`]; nothing runs then.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    let plan = options.plan()?;
    let mut signals = Signals::open().map_err(DaemonError::Signals)?;
    let (mut daemon, mut inbox) = Daemon::open(options, plan)?;
    raise_open_files();
    daemon.feed(Input::Begin);
    while !daemon.finished {
        let due = daemon.due();
        tokio::select! {
            Some(news) = inbox.news.recv() => daemon.hear(news),
            Some(question) = inbox.questions.recv() => daemon.answer(question),
            told = signals.next() => match told {
                Told::Stop => daemon.shut_down(),
                Told::Reload => daemon.reload(&Reload::default(), None),
            },
            () = sleep_until(due) => daemon.feed(Input::Tick),
        }
    }
    daemon.close();
    Ok(())
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit
        .maximum
        .map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < most) {
        let raised = Rlimit {
            current: Some(most),
            maximum: limit.maximum,
        };
        // Within the hard limit this is always allowed; if not, the node runs with fewer.
        let _ = setrlimit(Resource::Nofile, raised);
    }
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn open() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => tracing::info!("SIGTERM: stopping"),
            _ = self.int.recv() => tracing::info!("SIGINT: stopping"),
            _ = self.hup.recv() => {
                tracing::info!("SIGHUP: reading the configuration again");
                return Told::Reload;
            }
        }
        Told::Stop
    }
}

/// What a signal asks for.
enum Told {
    Stop,
    Reload,
}

struct Inbox {
    news: mpsc::UnboundedReceiver<News>,
    questions: mpsc::Receiver<Question>,
}

/// What a plugin is told when it boots and users see.
struct Hosted {
    spec: PluginSpec,
    root: PathBuf,
    state: PathBuf,
}

/// One slot of the manifest: who runs in it, as whom, and the present process.
struct Slot {
    hosts: Vec<PluginId>,
    identity: Option<(u32, u32)>,
    running: Option<Running>,
    started_at: Option<Timestamp>,
    holding: Holding,
    /// The build that it is started from.
    program: Rc<Program>,
}

impl Slot {
    fn new(hosts: Vec<PluginId>, identity: Option<(u32, u32)>, program: Rc<Program>) -> Self {
        Self {
            hosts,
            identity,
            running: None,
            started_at: None,
            holding: Holding::default(),
            program,
        }
    }
}

struct Daemon {
    options: Options,
    config: crate::config::Config,
    registry: Registry,
    graph: Graph,
    lifecycle: Lifecycle,
    /// The build of the supervisor, and the one that new processes are started from.
    own: Rc<Program>,
    program: Rc<Program>,
    hosted: BTreeMap<PluginId, Hosted>,
    slots: Vec<Slot>,
    began: Instant,
    began_at: Timestamp,
    incarnations: u64,
    news: mpsc::UnboundedSender<News>,
    service: Rc<dyn Dispatch>,
    busy: Rc<server::Busy>,
    waiters: Vec<Waiter>,
    ask: mpsc::Sender<Question>,
    reload: Option<ReloadRun>,
    upgrade: Option<UpgradeRun>,
    /// Whether a build is asked what it is.
    checking: bool,
    retired: Vec<Retired>,
    is_up: bool,
    stopping: bool,
    finished: bool,
    cgroups: Cgroups,
    folders: Folders,
    sockets: Sockets,
    lock: Lock,
}

impl Daemon {
    fn open(options: Options, plan: Plan) -> Result<(Self, Inbox), DaemonError> {
        let Plan {
            config,
            registry,
            graph,
        } = plan;
        let is_root = rustix::process::geteuid().is_root();
        let base = is_root.then_some(config.uid_base);
        let folders = Folders::open(&config.root, &config.state, base)?;
        let lock = Lock::take(&folders.state)?;
        let sockets = Sockets::open(&folders.state, registry.specs())?;
        let own = Rc::new(Program::running(&options.exe).map_err(DaemonError::Program)?);
        let (slots, hosted) = occupy(&folders, &registry, &own)?;
        let (news, heard) = mpsc::unbounded_channel();
        let (ask, questions) = mpsc::channel(QUESTIONS);
        let actor = SupervisorService::new(ask.clone()).start();
        let lifecycle = Lifecycle::new(
            graph.clone(),
            registry.processes(),
            config.policy(),
            config.timing(),
            Box::new(rand::random::<f64>),
        );
        let daemon = Self {
            options,
            config,
            registry,
            graph,
            lifecycle,
            program: own.clone(),
            own,
            hosted,
            slots,
            began: Instant::now(),
            began_at: Timestamp::now(),
            incarnations: 0,
            news,
            service: Rc::new(service::routes().to(actor)),
            busy: Rc::default(),
            waiters: Vec::new(),
            ask,
            reload: None,
            upgrade: None,
            checking: false,
            retired: Vec::new(),
            is_up: false,
            stopping: false,
            finished: false,
            cgroups: Cgroups::find(&folders.state),
            folders,
            sockets,
            lock,
        };
        let inbox = Inbox {
            news: heard,
            questions,
        };
        Ok((daemon, inbox))
    }

    /// Leaves nothing: lock and sockets go with their values.
    fn close(self) {
        self.folders.sweep(self.hosted.keys());
        self.cgroups.remove();
        drop(self.sockets);
        drop(self.lock);
        tracing::info!("stopped");
    }

    fn due(&self) -> Option<Instant> {
        let lifecycle = self.lifecycle.next_due().map(|due| self.began + due);
        let waiters = self.waiters.iter().map(|waiter| waiter.until);
        let changes = self.changes_due().map(|due| self.began + due);
        let retired = self.retired.iter().map(|retired| retired.until);
        let all = lifecycle.into_iter().chain(changes);
        all.chain(waiters).chain(retired).min()
    }

    fn feed(&mut self, input: Input) {
        self.take(input);
        self.turn();
        self.end_retired();
        self.answer_settled();
        self.note_up();
    }

    /// Lets a reload or an upgrade go on as far as it can.
    fn turn(&mut self) {
        while !self.stopping && (self.turn_upgrade() || self.turn_reload()) {}
    }

    /// When a reload or an upgrade has something to do at the latest; what is past waits for news instead.
    fn changes_due(&self) -> Option<std::time::Duration> {
        let reload = self.reload.as_ref().and_then(ReloadRun::due);
        let upgrade = self.upgrade.as_ref().and_then(UpgradeRun::due);
        let due = reload.into_iter().chain(upgrade).min();
        due.filter(|due| *due > self.began.elapsed())
    }

    /// Errors: `FailedPrecondition` while a reload or an upgrade runs.
    fn refuse_when_changing(&self) -> contracts::Result<()> {
        let upgrading = self.upgrade.as_ref().is_some_and(|run| !run.is_over());
        let what = match (self.reload.is_some(), upgrading || self.checking) {
            (true, _) => "a reload",
            (_, true) => "an upgrade",
            _ => return Ok(()),
        };
        Err(contracts::Error::precondition(format!(
            "{what} is under way; wait until it is over"
        )))
    }

    /// Whether a reload or an upgrade is busy with `process`.
    fn is_changing(&self, process: usize) -> bool {
        let reload = self.reload.as_ref();
        let upgrade = self.upgrade.as_ref();
        reload.is_some_and(|run| run.touches(process))
            || upgrade.is_some_and(|run| run.present() == Some(process))
    }

    fn shut_down(&mut self) {
        self.stopping = true;
        self.kill_retired();
        self.feed(Input::Shutdown);
    }

    fn take(&mut self, input: Input) {
        let mut inputs = vec![input];
        self.lifecycle
            .set_clock(Timestamp::now(), self.began.elapsed());
        while let Some(input) = inputs.pop() {
            for output in self.lifecycle.handle(input, self.began.elapsed()) {
                inputs.extend(self.obey(output));
            }
        }
    }

    fn hear(&mut self, news: News) {
        if self.hear_retired(&news) {
            return;
        }
        let slot = self.slots.get_mut(news.process);
        let current = |slot: &&mut Slot| {
            let running = slot.running.as_ref();
            running.is_some_and(|running| running.incarnation == news.incarnation)
        };
        let Some(slot) = slot.filter(current) else {
            return;
        };
        let input = match news.what {
            What::Said(FromPlugin::Hello { protocol }) if protocol != PROTOCOL => Input::HungUp(
                news.process,
                format!("it speaks protocol {protocol}, this build {PROTOCOL}"),
            ),
            What::Said(FromPlugin::Hello { .. }) => Input::Hello(news.process),
            // Nobody may speak for the plugin of another process.
            What::Said(
                FromPlugin::Ready { plugin }
                | FromPlugin::Failed { plugin, .. }
                | FromPlugin::Broken { plugin, .. },
            ) if !slot.hosts.contains(&plugin) => {
                Input::HungUp(news.process, format!("it spoke for {plugin}"))
            }
            What::Said(FromPlugin::Ready { plugin }) => Input::Ready(plugin),
            What::Said(FromPlugin::Failed { plugin, error }) => Input::Refused(plugin, error),
            What::Said(FromPlugin::Pong { number }) => Input::Pong(news.process, number),
            What::Said(FromPlugin::Broken { plugin, peer, why }) => {
                tracing::warn!(%plugin, %peer, why, "link broke: made anew");
                Input::Broken { plugin, peer }
            }
            What::Said(FromPlugin::Panicked { what }) => {
                Input::LastWords(news.process, format!("panicked at {what}"))
            }
            What::Held(held) => return slot.holding.is_held(held),
            What::HungUp(why) => Input::HungUp(news.process, why),
            What::Exited(reason) => {
                slot.running = None;
                if let Some(why) = slot.holding.kill() {
                    self.feed(Input::LastWords(news.process, why));
                }
                Input::Exited(news.process, reason)
            }
        };
        self.feed(input);
    }

    fn obey(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Spawn(process) => return self.spawn(process),
            Output::Wire { caller, peer } => self.wire(&caller, &peer),
            Output::Start(plugin) => self.send(&plugin.clone(), ToPlugin::Start { plugin }),
            Output::Notify {
                caller,
                peer,
                standing,
            } => self.notify(&caller, &peer, &standing),
            Output::Stop(process) => self.with_running(process, |r| r.send(ToPlugin::Stop)),
            Output::Retire(process) => self.retire(process),
            Output::Ping(process, number) => {
                self.with_running(process, |r| r.send(ToPlugin::Ping { number }));
            }
            Output::Kill(process) => self.with_running(process, Running::kill),
            Output::Changed(plugin, standing) => self.log(&plugin, &standing),
            Output::Finished => self.finished = true,
        }
        None
    }

    fn with_running(&self, process: usize, act: impl FnOnce(&Running)) {
        let slot = self.slots.get(process);
        if let Some(running) = slot.and_then(|slot| slot.running.as_ref()) {
            act(running);
        }
    }

    fn send(&self, plugin: &PluginId, message: ToPlugin) {
        if let Some(process) = self.lifecycle.process_of(plugin) {
            self.with_running(process, |running| running.send(message));
        }
    }

    fn spawn(&mut self, process: usize) -> Option<Input> {
        self.incarnations += 1;
        let boot = self.boot(process)?;
        let slot = self.slots.get_mut(process)?;
        let limits = slot.hosts.iter().map(|p| self.config.limits(p.as_str()));
        let limits: Vec<_> = limits.collect();
        let cage = slot.holding.prepare(&self.cgroups, &slot.hosts, &limits);
        let spawned = process::spawn(&slot.program, &slot.hosts).and_then(|(child, control)| {
            let news = self.news.clone();
            child::watch(process, self.incarnations, child, control, cage, news)
        });
        match spawned {
            Ok(running) => {
                running.send(ToPlugin::Boot(Box::new(boot)));
                slot.running = Some(running);
                slot.started_at = Some(Timestamp::now());
                None
            }
            Err(e) => {
                let exe = slot.program.path().display();
                Some(Input::NotSpawned(
                    process,
                    format!("no process: {exe}: {e}"),
                ))
            }
        }
    }

    fn boot(&self, process: usize) -> Option<Boot> {
        let slot = self.slots.get(process)?;
        let plugins: Vec<_> = slot
            .hosts
            .iter()
            .filter_map(|p| self.plugin_boot(p))
            .collect();
        // Plugins that share a process have equal privileges.
        let privileges = &self.hosted.get(slot.hosts.first()?)?.spec.privileges;
        Some(Boot {
            protocol: PROTOCOL,
            uid: slot.identity,
            capabilities: privileges.capabilities.clone(),
            new_privileges: privileges.root,
            plugins,
        })
    }

    fn plugin_boot(&self, plugin: &PluginId) -> Option<PluginBoot> {
        let hosted = self.hosted.get(plugin)?;
        Some(PluginBoot {
            id: plugin.clone(),
            exec: hosted.spec.exec.clone(),
            root: hosted.root.to_string_lossy().into_owned(),
            state: hosted.state.to_string_lossy().into_owned(),
            config: self.config.settings(plugin.as_str()),
            sockets: self.sockets.of(&hosted.spec),
            peers: self.graph.peers(plugin).to_vec(),
        })
    }

    /// Makes a fresh pair for one edge. Without descriptors left the callee is missing, and its callers are told.
    fn wire(&self, caller: &PluginId, peer: &PluginId) {
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            // It is tried again after a pause.
            Err(e) => return self.broken(caller, peer)(format!("no socket pair: {e}")),
        };
        self.send(caller, wire(caller, peer, true, ours));
        self.serve_end(caller, peer, theirs);
        self.wire_retired(caller, peer);
    }

    /// Hands the end of a callee over.
    fn serve_end(&self, caller: &PluginId, peer: &PluginId, theirs: UnixStream) {
        match peer.as_str() == SUPERVISOR {
            true => self.serve(caller, peer, theirs),
            false => self.send(peer, wire(peer, caller, false, theirs)),
        }
    }

    /// Answers a caller until it has gone. When its link is of no more use that is told as any callee tells it.
    fn serve(&self, caller: &PluginId, peer: &PluginId, socket: UnixStream) {
        let adopt = || {
            socket.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(socket)
        };
        match adopt() {
            Ok(stream) => {
                let (service, busy) = (self.service.clone(), self.busy.clone());
                let broken = self.broken(caller, peer);
                actix::spawn(async move {
                    if let Err(why) = server::serve(stream, service, busy).await {
                        broken(why);
                    }
                });
            }
            Err(e) => tracing::error!(error = %e, "own end of a socket pair"),
        }
    }

    /// How the caller of the supervisor would tell that their link is of no more use.
    fn broken(&self, caller: &PluginId, peer: &PluginId) -> impl FnOnce(String) + use<> {
        let (plugin, peer, news) = (caller.clone(), peer.clone(), self.news.clone());
        let process = self.lifecycle.process_of(caller).unwrap_or_default();
        let slot = self.slots.get(process);
        let running = slot.and_then(|slot| slot.running.as_ref());
        let incarnation = running.map_or(0, |running| running.incarnation);
        move |why| {
            let what = What::Said(FromPlugin::Broken { plugin, peer, why });
            // The receiver lives as long as the supervisor.
            let _ = news.send(News {
                process,
                incarnation,
                what,
            });
        }
    }

    fn notify(&self, caller: &PluginId, peer: &PluginId, standing: &Standing) {
        self.send(caller, news(caller, peer, standing));
        self.notify_retired(caller, peer, standing);
    }

    fn log(&self, plugin: &PluginId, standing: &Standing) {
        let (state, cause) = (standing::word(standing.state), standing.cause.as_str());
        let pid = self.pid(plugin);
        match standing.state {
            State::Failed => tracing::error!(%plugin, pid, state, cause),
            // Meant to be, and soon over.
            State::Degraded if self.refuse_when_changing().is_err() => {
                tracing::debug!(%plugin, pid, state, cause);
            }
            State::Backoff | State::Degraded => tracing::warn!(%plugin, pid, state, cause),
            State::Stopped | State::Ready if cause.is_empty() => {
                tracing::info!(%plugin, pid, state);
            }
            State::Stopped | State::Ready => tracing::info!(%plugin, pid, state, cause),
            State::Pending | State::Starting => tracing::debug!(%plugin, pid, state, cause),
        }
    }

    fn slot(&self, plugin: &PluginId) -> Option<&Slot> {
        self.slots.get(self.lifecycle.process_of(plugin)?)
    }

    fn pid(&self, plugin: &PluginId) -> u32 {
        let running = self.slot(plugin).and_then(|slot| slot.running.as_ref());
        running.map_or(0, |running| running.pid)
    }

    /// Says once that everybody has settled.
    fn note_up(&mut self) {
        if self.is_up || self.hosted.keys().any(|p| self.lifecycle.is_settling(p)) {
            return;
        }
        self.is_up = true;
        let ready = |plugin: &&PluginId| self.lifecycle.standing(plugin).state == State::Ready;
        let ready = self.hosted.keys().filter(ready).count();
        let took_ms = self.began.elapsed().as_millis() as u64;
        tracing::info!(ready, plugins = self.hosted.len(), took_ms, "node is up");
    }
}

fn news(caller: &PluginId, peer: &PluginId, standing: &Standing) -> ToPlugin {
    let standing = standing.clone();
    ToPlugin::Peer {
        plugin: caller.clone(),
        peer: peer.clone(),
        state: standing.state,
        cause: standing.cause,
        chain: standing.chain,
    }
}

fn wire(plugin: &PluginId, peer: &PluginId, client: bool, socket: UnixStream) -> ToPlugin {
    ToPlugin::Wire {
        plugin: plugin.clone(),
        peer: peer.clone(),
        client,
        socket: Fd::from(OwnedFd::from(socket)),
    }
}

/// Gives every process its uid and every plugin its folders.
fn occupy(
    folders: &Folders,
    registry: &Registry,
    program: &Rc<Program>,
) -> Result<(Vec<Slot>, BTreeMap<PluginId, Hosted>), FolderError> {
    let is_root = |plugin: &PluginId| registry.get(plugin).is_some_and(|s| s.privileges.root);
    let processes = registry.processes().iter();
    let processes: Vec<(&[PluginId], bool)> = processes
        .map(|hosts| (hosts.as_slice(), hosts.iter().any(is_root)))
        .collect();
    let (mut slots, mut hosted) = (Vec::new(), BTreeMap::new());
    for ((hosts, _), identity) in processes.iter().zip(folders.identities(&processes)) {
        for plugin in *hosts {
            let (root, state) = folders.prepare(plugin, identity)?;
            if let Some(spec) = registry.get(plugin).cloned() {
                hosted.insert(plugin.clone(), Hosted { spec, root, state });
            }
        }
        slots.push(Slot::new(hosts.to_vec(), identity, program.clone()));
    }
    Ok((slots, hosted))
}
