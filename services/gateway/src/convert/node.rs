//! The node and its plugins.

use contracts::plugin::{Exit, GraphInfo, Limits, NodeInfo, PluginInfo, State};
use contracts::{PluginId, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

/// One plugin.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Plugin)]
pub(crate) struct PluginView {
    /// `service/id`.
    #[schema(value_type = String)]
    id: PluginId,
    /// `pending`, `starting`, `ready`, `degraded`, `backoff`, `failed` or `stopped`.
    #[schema(value_type = String)]
    state: State,
    /// Why, unless ready; may be empty.
    cause: String,
    /// From this plugin down to the one that is the cause, unless ready.
    #[schema(value_type = Vec<String>)]
    chain: Vec<PluginId>,
    /// Its process; 0 when there is none.
    pid: u32,
    /// The uid its process runs under.
    uid: u32,
    /// Capabilities its process holds.
    capabilities: Vec<String>,
    /// Why it holds more than nothing.
    privileges_reason: String,
    /// How often it was started again.
    restarts: u32,
    /// Plugins it calls.
    #[schema(value_type = Vec<String>)]
    requires: Vec<PluginId>,
    /// Plugins that call it.
    #[schema(value_type = Vec<String>)]
    required_by: Vec<PluginId>,
    /// Proportional set size of its process, bytes.
    memory: u64,
    /// How its process ended last time; empty when it never did.
    last_exit: String,
    /// When its process was started.
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// Folder with its durable state.
    root: String,
    /// The program that its process was started from.
    program: String,
    /// What its process may use at most, as far as the kernel enforces it.
    limits: LimitsView,
    /// Why limits that were asked for are not enforced; empty when they are, or when there are none.
    unlimited: String,
    /// How its process ended the last few times, oldest first.
    exits: Vec<ExitView>,
}

/// What a process may use at most; 0 leaves it to the machine.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Limits)]
pub(crate) struct LimitsView {
    /// Bytes of memory.
    memory: u64,
    /// Thousandths of one CPU.
    cpu: u32,
}

impl From<Limits> for LimitsView {
    fn from(limits: Limits) -> Self {
        Self {
            memory: limits.memory,
            cpu: limits.cpu,
        }
    }
}

/// One end of a process.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Exit)]
pub(crate) struct ExitView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// How: code, signal, panic or limit.
    how: String,
}

impl From<Exit> for ExitView {
    fn from(exit: Exit) -> Self {
        Self {
            at: exit.at,
            how: exit.how,
        }
    }
}

impl From<PluginInfo> for PluginView {
    fn from(plugin: PluginInfo) -> Self {
        Self {
            id: plugin.id,
            state: plugin.state,
            cause: plugin.cause,
            chain: plugin.chain,
            pid: plugin.pid,
            uid: plugin.uid,
            capabilities: plugin.capabilities,
            privileges_reason: plugin.privileges_reason,
            restarts: plugin.restarts,
            requires: plugin.requires,
            required_by: plugin.required_by,
            memory: plugin.memory,
            last_exit: plugin.last_exit,
            started_at: plugin.started_at,
            root: plugin.root,
            program: plugin.program,
            limits: plugin.limits.into(),
            unlimited: plugin.unlimited,
            exits: plugin.exits.into_iter().map(Into::into).collect(),
        }
    }
}

/// Who requires whom.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Graph)]
pub(crate) struct GraphView {
    /// Every plugin, by id.
    nodes: Vec<PluginView>,
    /// From the plugin that requires to the one that is required.
    edges: Vec<EdgeView>,
}

/// One requirement.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Edge)]
pub(crate) struct EdgeView {
    /// Who requires.
    #[schema(value_type = String)]
    from: PluginId,
    /// Who is required.
    #[schema(value_type = String)]
    to: PluginId,
}

impl From<GraphInfo> for GraphView {
    fn from(graph: GraphInfo) -> Self {
        let edges = graph.edges.into_iter();
        Self {
            nodes: graph.nodes.into_iter().map(Into::into).collect(),
            edges: edges.map(|(from, to)| EdgeView { from, to }).collect(),
        }
    }
}

/// Draws the graph for Graphviz.
pub(crate) fn dot(graph: &GraphInfo) -> String {
    let nodes = graph.nodes.iter().map(|node| {
        let color = match node.state {
            State::Ready => "palegreen",
            State::Pending | State::Starting | State::Backoff => "khaki",
            State::Degraded => "orange",
            State::Failed => "tomato",
            State::Stopped => "lightgray",
        };
        format!("  \"{}\" [style=filled, fillcolor={color}];\n", node.id)
    });
    let edges = graph
        .edges
        .iter()
        .map(|(from, to)| format!("  \"{from}\" -> \"{to}\";\n"));
    let lines: String = nodes.chain(edges).collect();
    format!("digraph gantry {{\n  rankdir=LR;\n{lines}}}\n")
}

/// Draws the graph for Mermaid, whose node names allow no slash.
pub(crate) fn mermaid(graph: &GraphInfo) -> String {
    let name = |id: &PluginId| id.as_str().replace(['/', '-'], "_");
    let nodes = graph
        .nodes
        .iter()
        .map(|node| format!("  {}[\"{}\"]\n", name(&node.id), node.id));
    let edges = graph
        .edges
        .iter()
        .map(|(from, to)| format!("  {} --> {}\n", name(from), name(to)));
    let lines: String = nodes.chain(edges).collect();
    format!("graph LR\n{lines}")
}

/// Which build answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Version)]
pub(crate) struct VersionView {
    /// `gantry`.
    pub(crate) name: &'static str,
    /// Of the build.
    pub(crate) version: &'static str,
    /// Of this HTTP surface.
    pub(crate) api: &'static str,
    /// Of the bus between plugins.
    pub(crate) protocol: u32,
}

/// The node.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Info)]
pub(crate) struct InfoView {
    /// Of the build.
    version: String,
    /// Of the supervisor.
    pid: u32,
    /// Folder of durable state.
    root: String,
    /// Folder of run-time state.
    state: String,
    /// `default`, `minimal`, or a path.
    manifest: String,
    /// When the supervisor started.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// Snapshot drivers, by name.
    snapshotters: Vec<String>,
    /// The machine.
    host: HostView,
}

/// The machine.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Host)]
pub(crate) struct HostView {
    /// Its name.
    hostname: String,
    /// Kernel release.
    kernel: String,
    /// `x86_64`, `aarch64`, …
    architecture: String,
    /// Processors.
    cpus: usize,
    /// Bytes of memory.
    memory: u64,
}

impl InfoView {
    /// Shows the node and the machine it runs on.
    pub(crate) fn of(node: NodeInfo, snapshotters: Vec<String>) -> Self {
        Self {
            version: node.version,
            pid: node.pid,
            root: node.root,
            state: node.state,
            manifest: node.manifest,
            started_at: node.started_at,
            snapshotters,
            host: HostView::here(),
        }
    }
}

impl HostView {
    fn here() -> Self {
        let name = rustix::system::uname();
        let text = |field: &std::ffi::CStr| field.to_string_lossy().into_owned();
        let info = rustix::system::sysinfo();
        Self {
            hostname: text(name.nodename()),
            kernel: text(name.release()),
            architecture: text(name.machine()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: info.totalram.saturating_mul(u64::from(info.mem_unit)),
        }
    }
}

/// Whether the whole node is ready.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
pub(crate) struct ReadinessView {
    /// Whether every plugin is.
    pub(crate) ready: bool,
    /// Those that are not.
    pub(crate) waiting: Vec<WaitingView>,
}

/// A plugin that is not ready.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Waiting)]
pub(crate) struct WaitingView {
    /// Which.
    #[schema(value_type = String)]
    id: PluginId,
    /// How it stands.
    #[schema(value_type = String)]
    state: State,
    /// Why; may be empty.
    cause: String,
}

impl ReadinessView {
    /// Looks for plugins that are not ready.
    pub(crate) fn of(plugins: Vec<PluginInfo>) -> Self {
        let waiting: Vec<WaitingView> = plugins
            .into_iter()
            .filter(|plugin| plugin.state != State::Ready)
            .map(|plugin| WaitingView {
                id: plugin.id,
                state: plugin.state,
                cause: plugin.cause,
            })
            .collect();
        Self {
            ready: waiting.is_empty(),
            waiting,
        }
    }
}
