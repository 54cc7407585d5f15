//! `gantry fsck`: what is wrong with the disk, and `--repair`.
//!
//! Without a daemon it takes the daemon's lock, so that none begins meanwhile, and looks into the folder of each plugin.
//! With one it asks each plugin that answers. A plugin that cannot read its own store is stopped for as long as its
//! folder is looked into, and started again.

mod layers;
mod offline;
mod online;

use contracts::PluginId;
use contracts::integrity::{Cure, Finding, Mended};
use serde::Serialize;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use supervisor::{Lock, LockError};

/// Where things are when nobody says otherwise.
const ROOT: &str = "/var/lib/gantry";
const STATE: &str = "/run/gantry";

/// What is looked at, and how it is told.
#[derive(clap::Args)]
pub(crate) struct Fsck {
    /// Mends what it finds, as far as the disk still proves how it was
    #[arg(long)]
    repair: bool,
    /// Reads all bytes too, where a daemon runs: hashes blobs, compares layers with them
    #[arg(long)]
    deep: bool,
    /// Folder of durable state, where no daemon runs: /var/lib/gantry
    #[arg(long)]
    root: Option<PathBuf>,
    /// Folder of run-time state, says whether a daemon runs: the folder of its socket, or /run/gantry
    #[arg(long)]
    state: Option<PathBuf>,
    /// The daemon's socket, where one runs: <state>/gantry.sock; GANTRY_HOST says it too
    #[arg(long)]
    host: Option<String>,
    /// `text` or `json`
    #[arg(long, short, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

impl std::str::FromStr for Output {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other}: must be text or json")),
        }
    }
}

/// All that was seen.
#[derive(Default, Serialize)]
struct Report {
    findings: Vec<Row>,
    /// Plugins whose folders were looked at.
    looked_at: Vec<PluginId>,
    /// Plugins that nobody could look at.
    failed: Vec<Failure>,
}

/// One finding and what became of it.
#[derive(Serialize)]
struct Row {
    plugin: PluginId,
    #[serde(flatten)]
    finding: Finding,
    mended: Option<String>,
}

#[derive(Serialize)]
struct Failure {
    plugin: PluginId,
    error: String,
}

impl Report {
    fn add(&mut self, plugin: &PluginId, finding: Finding, mended: Option<Mended>) {
        self.findings.push(Row {
            plugin: plugin.clone(),
            finding,
            mended: mended.map(|mended| mended.how),
        });
    }

    fn fail(&mut self, plugin: &PluginId, error: impl Into<String>) {
        let (plugin, error) = (plugin.clone(), error.into());
        self.failed.push(Failure { plugin, error });
    }

    /// 0 when nothing is left, 1 for findings that are left, 2 when something could not be looked at.
    fn code(&self) -> ExitCode {
        if !self.failed.is_empty() {
            return ExitCode::from(2);
        }
        let left = self.findings.iter().any(|row| row.mended.is_none());
        ExitCode::from(u8::from(left))
    }

    fn print(&self, output: Output) {
        if output == Output::Json {
            let text = serde_json::to_string_pretty(self);
            return println!(
                "{}",
                text.unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
            );
        }
        if !self.findings.is_empty() {
            println!(
                "{:<20} {:<9} {:<28} {:<8} WHAT",
                "PLUGIN", "DAMAGE", "SUBJECT", "CURE"
            );
        }
        for row in &self.findings {
            let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
            let finding = &row.finding;
            let (damage, cure) = (word(&finding.damage), word(&finding.cure));
            println!(
                "{:<20} {damage:<9} {:<28} {cure:<8} {}",
                row.plugin.as_str(),
                finding.subject,
                finding.what
            );
            if let Some(how) = &row.mended {
                println!("{:<20} mended    {how}", "");
            }
        }
        for failure in &self.failed {
            eprintln!("gantry: {}: {}", failure.plugin, failure.error);
        }
        let mended = self.findings.iter().filter(|row| row.mended.is_some());
        println!(
            "{} findings, {} mended, {} plugins looked at",
            self.findings.len(),
            mended.count(),
            self.looked_at.len()
        );
        for line in self.advice() {
            println!("{line}");
        }
    }

    /// What is to be done about what is left.
    fn advice(&self) -> impl Iterator<Item = &'static str> {
        let left = |cure: Cure| {
            let mut rows = self.findings.iter();
            rows.any(|row| row.mended.is_none() && row.finding.cure == cure)
        };
        let all = [
            (Cure::Fetch, "fetch: pull the images that have it again"),
            (Cure::Rebuild, "rebuild: gantry fsck --repair"),
            (
                Cure::Remove,
                "remove: gantry fsck --repair; where records were lost, pull their images first",
            ),
        ];
        all.into_iter()
            .filter_map(move |(cure, line)| left(cure).then_some(line))
    }
}

impl Fsck {
    /// The folder of run-time state, and the daemon's socket.
    fn places(&self, environment: Option<String>) -> (PathBuf, PathBuf) {
        // Who names folders means another node than the one of the environment.
        let named = self.root.is_some() || self.state.is_some();
        let host = self.host.clone().or(environment.filter(|_| !named));
        let host = host.map(|host| PathBuf::from(host.strip_prefix("unix://").unwrap_or(&host)));
        let beside = host
            .as_deref()
            .and_then(Path::parent)
            .map(Path::to_path_buf);
        let state = self
            .state
            .clone()
            .or(beside.filter(|_| self.root.is_none()));
        let state = state.unwrap_or_else(|| STATE.into());
        let socket = host.unwrap_or_else(|| state.join("gantry.sock"));
        (state, socket)
    }

    /// The folder to look into while no daemon runs. Errors: nobody says which, or it is none of a node.
    fn folder(&self, state: &Path) -> Result<PathBuf, String> {
        let usual = || (state == Path::new(STATE)).then(|| PathBuf::from(ROOT));
        let Some(root) = self.root.clone().or_else(usual) else {
            let state = state.display();
            return Err(format!(
                "state folder {state}: no daemon runs on it; name its folder of durable state with --root"
            ));
        };
        if offline::folders(&root) == 0 {
            let root = root.display();
            return Err(format!(
                "root {root}: is no folder of a node; name it with --root, or the daemon's socket with --host"
            ));
        }
        Ok(root)
    }
}

/// Looks, mends when told so, prints, and answers the exit code.
pub(crate) fn run(fsck: &Fsck) -> ExitCode {
    let (state, socket) = fsck.places(std::env::var("GANTRY_HOST").ok());
    // After a reboot it is not there.
    let made = DirBuilder::new().mode(0o700).create(&state).is_ok();
    let report = match Lock::take(&state) {
        Ok(_lock) => fsck
            .folder(&state)
            .map(|root| offline::all(&root, fsck.repair)),
        Err(LockError::Held { .. }) => {
            crate::client::block_on(online::all(&socket, fsck.repair, fsck.deep))
        }
        Err(error) => Err(error.to_string()),
    };
    if made {
        let _ = std::fs::remove_dir(&state);
    }
    match report {
        Ok(report) => {
            report.print(fsck.output);
            report.code()
        }
        Err(error) => {
            eprintln!("gantry: {error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests;
