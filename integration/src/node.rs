//! A whole gantry node of the story's own: real processes, a private root, state and namespace.
//!
//! ```text
//! <folder>/config.toml   daemon.log   root/   state/gantry.sock
//! ```
//!
//! The folder's path is short, for a socket address holds 108 bytes. Containers of a story live in
//! the namespace [`Node::namespace`], so that two nodes never meet in a cgroup.

mod calls;
mod leaks;

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::Outcome;
use crate::http::{Body, Client, Records, Response};
use crate::process::{Daemon, until};
use leaks::Leaks;

/// From start to ready, on a machine that also compiles.
const READY: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of the last process.
const STOP: Duration = Duration::from_secs(30);
/// From the end of the daemon to the end of shims that were told to end: they are nobody's children.
const GONE: Duration = Duration::from_secs(2);
/// From the end of the last request about a container to the end of its last trace.
const BARE: Duration = Duration::from_secs(10);
/// From a plugin's death to its successor being ready.
const BACK: Duration = Duration::from_secs(10);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What a node is started with, beyond its folders.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    config: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    program: Option<PathBuf>,
}

impl Setup {
    /// Appends TOML to the configuration, such as `[plugins."gateway/http"]` with its keys.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Adds an argument behind `gantry daemon --config …`.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Runs another program than [`binary`] finds.
    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    /// Sets an environment variable of the daemon.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// One life of a plugin's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// `service/id`.
    pub id: String,
    /// Its process.
    pub pid: i32,
    /// How often the plugin had been started again before this life.
    pub restarts: u64,
}

/// A running node. Dropping it kills and removes everything; [`Node::stop_clean`] is the polite end.
pub struct Node {
    daemon: Daemon,
    client: Client,
    namespace: String,
    setup: Setup,
    leaks: Leaks,
    folder: TempDir,
    stopped: bool,
}

impl Node {
    /// Starts a node and waits until it is ready. Errors: the program is missing, ends, or is not ready in time;
    /// the end of its log is in the message.
    pub async fn start() -> Outcome<Self> {
        Self::start_with(Setup::default()).await
    }

    /// Starts a node with more configuration, arguments or environment. Errors: as [`Node::start`].
    pub async fn start_with(setup: Setup) -> Outcome<Self> {
        let mut node = Self::spawn(setup)?;
        node.ready().await?;
        Ok(node)
    }

    /// Starts a node and does not wait. Errors: the program is missing.
    pub fn spawn(setup: Setup) -> Outcome<Self> {
        let folder = tempfile::Builder::new()
            .prefix("g-")
            .rand_bytes(8)
            .tempdir_in(base())?;
        // Plugins run under uids of their own and walk through it.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        let namespace = format!(
            "story-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        write_config(folder.path(), &setup)?;
        Ok(Self {
            daemon: spawn(folder.path(), &setup)?,
            client: Client::unix(&folder.path().join("state/gantry.sock")),
            leaks: Leaks::new(folder.path(), &namespace),
            namespace,
            setup,
            folder,
            stopped: false,
        })
    }

    /// Waits until every plugin is ready. Errors: the daemon ended, or the bound passed; the end of its log is in the message.
    pub async fn ready(&mut self) -> Outcome {
        let client = self.client.clone();
        let ready = until("the node is ready", READY, async || {
            if self.daemon.has_ended() {
                return Some(false);
            }
            let answer = client.send(Method::GET, "/readyz", ()).await.ok()?;
            answer.status.is_success().then_some(true)
        });
        match ready.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("the daemon ended\n{}", self.log_tail()).into()),
            Err(error) => {
                Err(format!("{error}\n{}\n{}", self.unready().await, self.log_tail()).into())
            }
        }
    }

    async fn unready(&self) -> String {
        match self.get("/readyz").await {
            Ok(answer) => format!("/readyz says {} {}", answer.status, answer.text()),
            Err(error) => format!("/readyz: {error}"),
        }
    }

    /// Returns the namespace that belongs to this node alone.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the path of a resource of the node's namespace: `/containers/x` → `/v1/namespaces/…/containers/x`.
    pub fn at(&self, resource: &str) -> String {
        format!("/v1/namespaces/{}{resource}", self.namespace)
    }

    /// Returns the folder with `root/`, `state/`, `config.toml` and `daemon.log`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the durable folder of the node.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Returns the folder of the node that a reboot empties.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Returns the process id of the supervisor.
    pub fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// Returns a client of the node's socket, for headers of its own or a lasting connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns what the daemon and its plugins have logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines
            .iter()
            .skip(lines.len().saturating_sub(60))
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Sends GET. Errors: no connection or no answer; any status is an answer.
    pub async fn get(&self, path: &str) -> Outcome<Response> {
        self.client.send(Method::GET, path, ()).await
    }

    /// Sends POST. Errors: as [`Node::get`].
    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Outcome<Response> {
        self.client.send(Method::POST, path, body).await
    }

    /// Sends PUT. Errors: as [`Node::get`].
    pub async fn put(&self, path: &str, body: impl Into<Body>) -> Outcome<Response> {
        self.client.send(Method::PUT, path, body).await
    }

    /// Sends PATCH. Errors: as [`Node::get`].
    pub async fn patch(&self, path: &str, body: impl Into<Body>) -> Outcome<Response> {
        self.client.send(Method::PATCH, path, body).await
    }

    /// Sends DELETE. Errors: as [`Node::get`].
    pub async fn delete(&self, path: &str) -> Outcome<Response> {
        self.client.send(Method::DELETE, path, ()).await
    }

    /// Opens the node's events from a sequence number on, as SSE. Errors: the stream is refused.
    pub async fn events(&self, since: u64) -> Outcome<Records> {
        let path = format!("/v1/events?since={since}");
        self.client
            .stream(Method::GET, &path, "text/event-stream", ())
            .await
    }

    /// Lists the plugins. Errors: the list is refused.
    pub async fn plugins(&self) -> Outcome<Vec<Value>> {
        let list = self.get("/v1/plugins").await?.ok()?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Looks up one plugin. Errors: there is none of that id.
    pub async fn plugin(&self, id: &str) -> Outcome<Value> {
        self.get(&format!("/v1/plugins/{id}")).await?.ok()
    }

    /// Tells which life of a plugin's process runs now. Errors: there is no such plugin, or it has no process.
    pub async fn incarnation(&self, id: &str) -> Outcome<Incarnation> {
        let plugin = self.plugin(id).await?;
        let pid = plugin["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok())
            .filter(|pid| *pid > 0);
        let pid = pid.ok_or_else(|| format!("{id} has no process: {plugin}"))?;
        let restarts = plugin["restarts"].as_u64().unwrap_or_default();
        Ok(Incarnation {
            id: id.to_owned(),
            pid,
            restarts,
        })
    }

    /// Kills a plugin's process with SIGKILL and tells which life that ended. Errors: as [`Node::incarnation`].
    pub async fn kill(&self, id: &str) -> Outcome<Incarnation> {
        let life = self.incarnation(id).await?;
        kill(Pid::from_raw(life.pid), Signal::SIGKILL)?;
        Ok(life)
    }

    /// Waits until a plugin is ready in another life than the one that ended. Errors: the bound passed.
    pub async fn until_ready_after(&self, ended: Incarnation) -> Outcome<Incarnation> {
        let what = format!("{} is ready again after pid {} ended", ended.id, ended.pid);
        until(&what, BACK, async || {
            let plugin = self.plugin(&ended.id).await.ok()?;
            let next = self.incarnation(&ended.id).await.ok()?;
            (plugin["state"] == "ready" && next.pid != ended.pid).then_some(next)
        })
        .await
    }

    /// Lists what there is of containers, on the host and in the node's namespace: nothing when all were deleted, but for
    /// what is on its way out.
    pub async fn of_containers(&self) -> Outcome<Vec<String>> {
        let mut left = self.leaks.of_containers(self.daemon.pid());
        for resource in ["/tasks", "/containers", "/leases"] {
            let rows = self.list(resource).await?;
            left.extend(rows.iter().map(|row| format!("{resource} {}", row["id"])));
        }
        let rows = self.list("/snapshots/overlayfs").await?;
        let active = rows.iter().filter(|row| row["kind"] != "committed");
        left.extend(active.map(|row| format!("snapshot {}", row["key"])));
        Ok(left)
    }

    /// Waits until nothing is there of containers. Errors: something stays; all of it is in the message.
    pub async fn until_bare(&self) -> Outcome {
        let bare = until("nothing is left of containers", BARE, async || {
            let left = self.of_containers().await.ok()?;
            left.is_empty().then_some(())
        });
        match bare.await {
            Ok(()) => Ok(()),
            Err(error) => {
                let left = self.of_containers().await?;
                Err(format!("{error}:\n{}", left.join("\n")).into())
            }
        }
    }

    /// Kills the supervisor with SIGKILL, and waits until it is gone. Errors: it does not go.
    pub async fn kill_supervisor(&mut self) -> Outcome {
        self.leaks.remember(self.daemon.pid());
        self.daemon.end(Signal::SIGKILL, STOP).await
    }

    /// Starts the daemon again in the same folders, and waits until it is ready. Errors: as [`Node::start`].
    pub async fn restart(&mut self) -> Outcome {
        self.begin_again()?;
        self.ready().await
    }

    /// Starts the daemon again in the same folders, and does not wait. Errors: the program is missing.
    pub fn begin_again(&mut self) -> Outcome {
        self.daemon = spawn(self.folder.path(), &self.setup)?;
        Ok(())
    }

    /// Ends the daemon with SIGTERM and leaves the folders for [`Node::restart`]. Errors: it does not end.
    pub async fn terminate(&mut self) -> Outcome {
        self.leaks.remember(self.daemon.pid());
        self.daemon.end(Signal::SIGTERM, STOP).await
    }

    /// Ends as [`Node::stop_clean`] does, and returns the folder, which is removed only when that is dropped.
    ///
    /// Errors: as [`Node::stop_clean`].
    pub async fn stop_and_keep(mut self) -> Outcome<TempDir> {
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir()?);
        self.stop_clean().await?;
        Ok(folder)
    }

    /// Ends the daemon with SIGTERM and looks for what is left.
    ///
    /// Errors: it does not end, or left a process, mount, socket or cgroup; all of them are in the message.
    pub async fn stop_clean(mut self) -> Outcome {
        self.terminate_clean().await?;
        self.stopped = true;
        Ok(())
    }

    /// Ends and looks as [`Node::stop_clean`] does, and leaves the folders for [`Node::restart`].
    ///
    /// Errors: as [`Node::stop_clean`].
    pub async fn terminate_clean(&mut self) -> Outcome {
        self.terminate().await?;
        let gone = until("nothing is left", GONE, async || {
            self.leaks.left().is_empty().then_some(())
        });
        let left = match gone.await {
            Ok(()) => Vec::new(),
            Err(_) => self.leaks.left(),
        };
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left behind:\n{}", left.join("\n")).into())
        }
    }
}

impl Drop for Node {
    /// A story that failed half-way still leaves nothing; its log tells why.
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        eprintln!(
            "--- the node was not stopped cleanly; its log ends with\n{}---",
            self.log_tail()
        );
        self.leaks.remember(self.daemon.pid());
        let _ = self.daemon.signal(Signal::SIGKILL);
        self.leaks.remove();
    }
}

/// Returns the folder for nodes: `GANTRY_TEST_DIR`, or the system's folder for temporary files.
pub fn base() -> PathBuf {
    env::var_os("GANTRY_TEST_DIR").map_or_else(env::temp_dir, PathBuf::from)
}

/// Finds the program: `GANTRY_BIN`, or `gantry` beside or above this executable.
///
/// Errors: it has not been built; the message says how.
pub fn binary() -> Outcome<PathBuf> {
    if let Some(path) = env::var_os("GANTRY_BIN") {
        return Ok(path.into());
    }
    let here = env::current_exe()?;
    let near = here
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("gantry"));
    let found = near.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| "the program gantry has not been built; cargo build -p compose".into())
}

fn write_config(folder: &Path, setup: &Setup) -> Outcome {
    let home = folder.display();
    let config = format!(
        "version = 1\nroot = \"{home}/root\"\nstate = \"{home}/state\"\n{}",
        setup.config
    );
    Ok(fs::write(folder.join("config.toml"), config)?)
}

fn spawn(folder: &Path, setup: &Setup) -> Outcome<Daemon> {
    let program = setup.program.clone().map_or_else(binary, Ok)?;
    let mut command = Command::new(program);
    command
        .arg("daemon")
        .arg("--config")
        .arg(folder.join("config.toml"))
        .args(&setup.args);
    command.envs(setup.env.iter().map(|(name, value)| (name, value)));
    command.current_dir("/");
    Daemon::spawn(&mut command, &folder.join("daemon.log"))
}
