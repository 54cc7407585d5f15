//! Plugins as facts: what the supervisor knows before any process exists, what it says to a plugin's process over the
//! control link (the child's stdin), and what it answers about all of them.

use crate::{Error, Fd, PluginId, Timestamp};
use serde::{Deserialize, Serialize};

service! {
    /// The supervisor itself, as a plugin that other plugins may require.
    Supervisor = "supervisor" {
        read list(List) -> Vec<PluginInfo>;
        read get(Get) -> PluginInfo;
        read graph(Graph) -> GraphInfo;
        write restart(Restart) -> PluginInfo;
        write stop(Stop) -> PluginInfo;
        write start(Start) -> PluginInfo;
        read node(Node) -> NodeInfo;
        write reload(Reload) -> Reloaded;
        write upgrade(Upgrade) -> UpgradeInfo;
        read upgrading(Upgrading) -> UpgradeInfo;
    }
}

/// What a plugin is and needs: data, known before it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginSpec {
    /// `service/id`.
    pub id: PluginId,
    /// Contracts it answers; the first is its own.
    pub serves: Vec<String>,
    /// Contracts it calls: each starts before it, and a private link is made to every plugin that answers it.
    pub requires: Vec<String>,
    /// What it may do.
    pub privileges: Privileges,
    /// Unix sockets below the state folder that the supervisor opens and keeps for it, so that connections wait while it restarts.
    pub sockets: Vec<Socket>,
    /// Its settings with their defaults, as JSON text of an object: the keys it knows.
    pub defaults: String,
    /// For a plugin that is not built in: the program that answers for it, and its arguments.
    pub exec: Option<Vec<String>>,
}

/// A listening socket of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// File name below the state folder.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
}

/// What a plugin's process may do. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Whether it stays root with every capability, and may start programs that gain privileges.
    pub root: bool,
    /// Capabilities that an unprivileged uid keeps, `CAP_CHOWN`.
    pub capabilities: Vec<String>,
    /// Why it needs more than nothing; shown beside what was granted.
    pub reason: String,
}

impl Privileges {
    /// An unprivileged uid of its own, no capability, `no_new_privs`.
    pub const NONE: Self = Self {
        root: false,
        capabilities: Vec::new(),
        reason: String::new(),
    };

    /// Everything, because of `reason`.
    pub fn root(reason: &str) -> Self {
        Self {
            root: true,
            capabilities: Vec::new(),
            reason: reason.into(),
        }
    }

    /// An unprivileged uid that keeps `capabilities`, because of `reason`.
    pub fn capabilities(capabilities: &[&str], reason: &str) -> Self {
        Self {
            root: false,
            capabilities: capabilities.iter().map(|&name| name.into()).collect(),
            reason: reason.into(),
        }
    }
}

/// How a plugin stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for what it requires.
    Pending,
    /// Its process is starting.
    Starting,
    /// Answers calls, and so does everything that it requires.
    Ready,
    /// Answers calls, but something that it requires does not.
    Degraded,
    /// Ended; starts again after a pause.
    Backoff,
    /// Ended too often or refused to start; is tried again rarely.
    Failed,
    /// Stopped by a user.
    Stopped,
}

/// One plugin as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginInfo {
    /// `service/id`.
    pub id: PluginId,
    /// How it stands.
    pub state: State,
    /// Why, unless ready; may be empty.
    pub cause: String,
    /// From this plugin down to the one that is the cause, unless ready; may be empty.
    pub chain: Vec<PluginId>,
    /// Its process; 0 when there is none. Plugins of one process share it.
    pub pid: u32,
    /// The uid its process runs under.
    pub uid: u32,
    /// Capabilities its process holds.
    pub capabilities: Vec<String>,
    /// Why it holds more than nothing.
    pub privileges_reason: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Plugins it calls.
    pub requires: Vec<PluginId>,
    /// Plugins that call it.
    pub required_by: Vec<PluginId>,
    /// Proportional set size of its process, bytes.
    pub memory: u64,
    /// How its process ended last time; empty when it never did.
    pub last_exit: String,
    /// When its process was started.
    pub started_at: Option<Timestamp>,
    /// Folder with its durable state.
    pub root: String,
    /// The program that its process was started from.
    pub program: String,
    /// What its process may use at most, as far as the kernel enforces it.
    pub limits: Limits,
    /// Why limits that were asked for are not enforced; empty when they are, or when there are none.
    pub unlimited: String,
    /// How its process ended the last few times, oldest first.
    pub exits: Vec<Exit>,
}

/// One end of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When.
    pub at: Timestamp,
    /// How: `exit code 0`, `signal 9 (SIGKILL)`, `panicked at src/x.rs:1:2: why`, `out of memory: limit 64.0 MiB`.
    pub how: String,
}

/// What a plugin's process may use at most. 0 leaves it to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory; beyond, the kernel ends the process and it starts again.
    pub memory: u64,
    /// Thousandths of one CPU.
    pub cpu: u32,
}

/// Lists all plugins, by id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct List {}

/// Looks up one plugin. Errors: `NotFound` listing those there are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Get {
    /// Which.
    pub id: PluginId,
}

/// Asks for nodes and edges.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Graph {}

/// The wiring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphInfo {
    /// Every plugin, by id.
    pub nodes: Vec<PluginInfo>,
    /// Who requires whom.
    pub edges: Vec<(PluginId, PluginId)>,
}

/// Ends a plugin's process and starts it anew. Errors: `NotFound`; `FailedPrecondition` for the supervisor itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restart {
    /// Which.
    pub id: PluginId,
}

/// Ends a plugin's process and leaves it so. Errors: as [`Restart`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stop {
    /// Which.
    pub id: PluginId,
}

/// Starts a stopped or failed plugin now. Errors: as [`Restart`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Which.
    pub id: PluginId,
}

/// Asks about the node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Node {}

/// The node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Of the build.
    pub version: String,
    /// Of the supervisor.
    pub pid: u32,
    /// Folder of durable state.
    pub root: String,
    /// Folder of run-time state.
    pub state: String,
    /// `default`, `minimal`, or a path.
    pub manifest: String,
    /// When the supervisor started.
    pub started_at: Timestamp,
}

/// Reads configuration and manifest again and restarts only what they change: all of it, or nothing.
///
/// Errors: `InvalidArgument` with every mistake of the files, and nothing is changed; `FailedPrecondition` for what only
/// a restart of the daemon can change (`root`, `state`, `uid_base`), or while an upgrade runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reload {
    /// Only answer what would be done.
    pub dry_run: bool,
}

/// What a reload did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// What becomes of each plugin that is not left alone.
    pub changes: Vec<Change>,
}

/// What becomes of one plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which.
    pub plugin: PluginId,
    /// `add`, `remove`, `restart`, or `apply`: at once, without a restart.
    pub action: String,
    /// Which settings, for people: `listen: [] → ["127.0.0.1:7171"]`.
    pub why: String,
}

/// Moves plugins to another build, one process after another, callees first; each is drained before it ends. When the
/// new one does not become ready, or does not stay so, that process and those before it go back to the old build.
///
/// Answers at once; [`Upgrading`] tells how it goes. Errors: `NotFound` for the file or a plugin; `InvalidArgument` for
/// a file that is no build of gantry; `PermissionDenied` for one that others can have written; `FailedPrecondition` while
/// another upgrade runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Upgrade {
    /// Path of the build.
    pub binary: String,
    /// Which plugins; empty for all.
    pub plugins: Vec<PluginId>,
}

/// Asks how the last upgrade goes or went. Errors: `NotFound` when there was none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Upgrading {}

/// How an upgrade goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeInfo {
    /// Path of the build.
    pub binary: String,
    /// How it goes as a whole.
    pub state: UpgradeState,
    /// Every plugin of it, in order.
    pub steps: Vec<UpgradeStep>,
    /// Why it was rolled back; empty otherwise.
    pub cause: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// How an upgrade goes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeState {
    /// Some plugins are still to come.
    Running,
    /// All plugins run the new build.
    Done,
    /// On its way back.
    RollingBack,
    /// All plugins run what they ran before.
    RolledBack,
}

/// One plugin of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStep {
    /// Which.
    pub plugin: PluginId,
    /// `waiting`, `draining`, `starting`, `ready`, `rolled_back`; `prepared` when it was not running before: it starts
    /// from the new build whenever it starts.
    pub phase: String,
    /// From the end of the old process to the readiness of the new one, microseconds; 0 until then.
    pub away: u64,
}

/// What the supervisor says to a process that hosts plugins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToPlugin {
    /// First of all: who you are and what you may do.
    Boot(Box<Boot>),
    /// A new socket to a peer, replacing any older one: you call the peer (`client`), or the peer calls you.
    Wire {
        /// Which of the hosted plugins.
        plugin: PluginId,
        /// The other end.
        peer: PluginId,
        /// Whether `plugin` is the caller.
        client: bool,
        /// The socket.
        socket: Fd,
    },
    /// A peer that you call came, went or failed.
    Peer {
        /// Which of the hosted plugins.
        plugin: PluginId,
        /// The peer.
        peer: PluginId,
        /// How it stands.
        state: State,
        /// Why, unless ready.
        cause: String,
        /// From the peer down to the cause.
        chain: Vec<PluginId>,
    },
    /// Everything that you require had its chance: open your store and begin.
    Start {
        /// Which of the hosted plugins.
        plugin: PluginId,
    },
    /// Finish what is in flight, then exit.
    Stop,
    /// Answer this with [`FromPlugin::Pong`] from where calls are answered: who cannot is stuck.
    Ping {
        /// Counts up.
        number: u64,
    },
    /// Somebody else takes your place: accept nothing new, finish what is in flight, then exit.
    Retire,
}

/// What a process must know to host its plugins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Version of the control protocol and the bus.
    pub protocol: u32,
    /// Uid and gid to change to; `None` keeps them.
    pub uid: Option<(u32, u32)>,
    /// Capabilities to keep.
    pub capabilities: Vec<String>,
    /// Whether privileges may be gained by the programs it starts.
    pub new_privileges: bool,
    /// The plugins it hosts.
    pub plugins: Vec<PluginBoot>,
}

/// What one hosted plugin must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PluginBoot {
    /// Who it is.
    pub id: PluginId,
    /// As [`PluginSpec::exec`].
    pub exec: Option<Vec<String>>,
    /// Its folder of durable state; exists and is its own.
    pub root: String,
    /// Its folder of run-time state; exists and is its own.
    pub state: String,
    /// Its settings as JSON text.
    pub config: String,
    /// Its listening sockets, in the order of [`PluginSpec::sockets`].
    pub sockets: Vec<Fd>,
    /// Whom it may call: contract name and plugin.
    pub peers: Vec<(String, PluginId)>,
}

/// What a process says to the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromPlugin {
    /// Privileges are dropped; the hosted plugins may be started.
    Hello {
        /// As [`Boot::protocol`].
        protocol: u32,
    },
    /// The plugin answers calls.
    Ready {
        /// Which.
        plugin: PluginId,
    },
    /// The plugin could not start, or panicked; its process will exit.
    Failed {
        /// Which.
        plugin: PluginId,
        /// Why.
        error: Error,
    },
    /// The answer to [`ToPlugin::Ping`].
    Pong {
        /// As asked.
        number: u64,
    },
    /// A link to a living peer is of no more use: make it anew.
    Broken {
        /// Which of the hosted plugins.
        plugin: PluginId,
        /// The other end.
        peer: PluginId,
        /// What was received, for the log.
        why: String,
    },
    /// The process is about to end by a panic: its last words.
    Panicked {
        /// Place and message: `src/x.rs:1:2: why`.
        what: String,
    },
}
