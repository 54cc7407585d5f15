//! gantry: one binary, many processes.
//!
//! `daemon` is the supervisor; it starts this same file again as `plugin ID…` for every process of the manifest.
//! `shim` parents one container and outlives them all. The others are thin clients of the HTTP API.

mod builtin;
mod client;
mod explained;
mod fsck;
mod reload;
mod status;
mod upgrade;

use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Where the API is when nobody says otherwise.
const SOCKET: &str = "/run/gantry/gantry.sock";

#[derive(Parser)]
#[command(
    name = "gantry",
    about = "containerd taken apart: every plugin a supervised process, every capability one curl away",
    disable_version_flag = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the node in the foreground: supervisor, plugins and HTTP API. SIGTERM stops it, containers go on; SIGHUP
    /// reloads it
    Daemon {
        /// Configuration in TOML; `gantry config default` prints one
        #[arg(long)]
        config: Option<PathBuf>,
        /// Folder of durable state
        #[arg(long)]
        root: Option<PathBuf>,
        /// Folder of run-time state, with the API's socket gantry.sock
        #[arg(long)]
        state: Option<PathBuf>,
        /// `default`, `minimal`, or the path of a manifest
        #[arg(long)]
        manifest: Option<String>,
        /// Serves the API on TCP too, 127.0.0.1:7171; callers need the bearer token
        #[arg(long)]
        listen: Vec<String>,
    },
    /// Hosts plugins; started by the supervisor with the control link as its stdin
    #[command(hide = true)]
    Plugin {
        /// Which
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Parents one container; speaks containerd's runtime-v2 protocol (`gantry shim -namespace NS -id ID start`)
    Shim,
    /// Shows every plugin: state, process, user, memory, restarts
    Status {
        #[command(flatten)]
        node: Node,
        /// Prints the API's JSON
        #[arg(long)]
        json: bool,
    },
    /// Calls one method of one plugin: `gantry call content.stat '{"digest":"sha256:…"}'`
    Call {
        #[command(flatten)]
        node: Node,
        /// `service.method`
        method: String,
        /// The request as JSON
        #[arg(default_value = "{}")]
        request: String,
        /// On whose behalf
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// Which plugin, where several answer the service: `snapshots/overlayfs`
        #[arg(long)]
        plugin: Option<String>,
    },
    /// Reads configuration and manifest again and restarts only what they change: all of it, or nothing
    Reload {
        #[command(flatten)]
        node: Node,
        /// Only says what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Moves running plugins to another build, one after another, and all back when one does not become ready.
    ///
    /// Each is drained first; calls wait for its successor, containers are not touched. The supervisor itself is not
    /// replaced: a restart of the daemon runs whatever build it is started from, so install the new one there too.
    Upgrade {
        #[command(flatten)]
        node: Node,
        /// The build: a gantry with the same plugins that speaks the same protocol
        #[arg(long)]
        binary: PathBuf,
        /// Which; all when none is named
        plugins: Vec<String>,
    },
    /// Looks for damage on the disk; exit code 0: none left, 1: some left, 2: something could not be looked at
    Fsck(fsck::Fsck),
    /// Prints what this build is, as JSON: version, protocol, plugins
    #[command(hide = true)]
    Facts,
    /// Prints configuration
    Config {
        #[command(subcommand)]
        which: Which,
    },
    /// Prints the version
    Version,
}

#[derive(Subcommand)]
enum Which {
    /// Every key with its default
    Default,
}

/// Which node is asked.
#[derive(clap::Args)]
struct Node {
    /// `unix:///run/gantry/gantry.sock` or the path of the socket; GANTRY_HOST says it too
    #[arg(long)]
    host: Option<String>,
}

impl Node {
    fn socket(&self) -> PathBuf {
        let host = self
            .host
            .clone()
            .or_else(|| std::env::var("GANTRY_HOST").ok());
        let host = host.unwrap_or_else(|| SOCKET.into());
        host.strip_prefix("unix://").unwrap_or(&host).into()
    }
}

fn main() -> ExitCode {
    // The shim's flags are containerd's, in Go's style: they are not for this parser.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == "shim")
    {
        return shim();
    }
    match Arguments::parse().command {
        Command::Daemon {
            config,
            root,
            state,
            manifest,
            listen,
        } => daemon(config, root, state, manifest, listen),
        Command::Plugin { .. } => {
            logs();
            bus::host(builtin::plugins())
        }
        Command::Shim => shim(),
        Command::Status { node, json } => {
            answered(client::block_on(status::status(&node.socket(), json)))
        }
        Command::Call {
            node,
            method,
            request,
            namespace,
            plugin,
        } => answered(client::block_on(client::call(
            &node.socket(),
            &method,
            request,
            &namespace,
            plugin.as_deref(),
        ))),
        Command::Reload { node, dry_run } => {
            answered(client::block_on(reload::reload(&node.socket(), dry_run)))
        }
        Command::Upgrade {
            node,
            binary,
            plugins,
        } => answered(client::block_on(upgrade::upgrade(
            &node.socket(),
            &binary,
            &plugins,
        ))),
        Command::Fsck(fsck) => fsck::run(&fsck),
        Command::Facts => answered(facts()),
        Command::Config {
            which: Which::Default,
        } => {
            print!(
                "{}",
                supervisor::default_file(&specs(), explained::explained)
            );
            ExitCode::SUCCESS
        }
        Command::Version => {
            println!("gantry {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn facts() -> Result<(), String> {
    let facts = supervisor::BuildFacts::new(env!("CARGO_PKG_VERSION"), specs());
    println!(
        "{}",
        serde_json::to_string(&facts).map_err(|e| e.to_string())?
    );
    Ok(())
}

fn specs() -> Vec<contracts::plugin::PluginSpec> {
    builtin::plugins()
        .iter()
        .map(|registration| registration.spec().clone())
        .collect()
}

fn daemon(
    config: Option<PathBuf>,
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    manifest: Option<String>,
    listen: Vec<String>,
) -> ExitCode {
    logs();
    let exe = match std::env::current_exe() {
        Ok(exe) => exe,
        Err(error) => return failed(&format!("own executable: {error}")),
    };
    let settings = if listen.is_empty() {
        Vec::new()
    } else {
        vec![(
            "gateway/http".to_owned(),
            "listen".to_owned(),
            listen.into(),
        )]
    };
    let options = supervisor::Options {
        specs: specs(),
        manifests: builtin::manifests(),
        config,
        overrides: supervisor::Overrides {
            root,
            state,
            manifest,
            settings,
        },
        exe,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    answered(
        actix_rt::System::new()
            .block_on(supervisor::run(options))
            .map_err(|error| error.to_string()),
    )
}

fn shim() -> ExitCode {
    match shim::ShimArgs::parse(std::env::args_os().skip(2)) {
        Ok(args) => shim::run(&args),
        Err(error) => failed(&format!("shim: {error}")),
    }
}

/// One line per record on stderr; RUST_LOG chooses what.
fn logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}

fn answered(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("gantry: {error}");
    ExitCode::FAILURE
}
