//! `gantry fsck`: what is wrong with the disk, and `--repair`.
//!
//! Without a daemon it takes the daemon's lock, so that none begins meanwhile, and looks into the folder of each plugin.
//! With one it asks each plugin that answers. A plugin that cannot read its own store is stopped for as long as its
//! folder is looked into, and started again.

mod offline;
mod online;

use contracts::PluginId;
use contracts::integrity::{Finding, Mended};
use serde::Serialize;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use supervisor::{Lock, LockError};

/// Where state is when nobody says otherwise.
const STATE: &str = "/run/gantry";

/// What is looked at, and how it is told.
#[derive(clap::Args)]
pub(crate) struct Fsck {
    /// Mends what it finds, as far as the disk still proves how it was
    #[arg(long)]
    repair: bool,
    /// Reads and hashes all blobs and layers too, where a daemon runs
    #[arg(long)]
    deep: bool,
    /// Folder of durable state, where no daemon runs
    #[arg(long, default_value = "/var/lib/gantry")]
    root: PathBuf,
    /// Folder of run-time state: says whether a daemon runs
    #[arg(long, default_value = STATE)]
    state: PathBuf,
    /// The daemon's socket, where one runs: <state>/gantry.sock
    #[arg(long)]
    host: Option<PathBuf>,
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
            "{} findings, {} mended",
            self.findings.len(),
            mended.count()
        );
    }
}

/// Looks, mends when told so, prints, and answers the exit code.
pub(crate) fn run(fsck: &Fsck) -> ExitCode {
    let named = fsck.host.clone();
    let socket = named.unwrap_or_else(|| fsck.state.join("gantry.sock"));
    // After a reboot it is not there.
    let made = DirBuilder::new().mode(0o700).create(&fsck.state).is_ok();
    let report = match Lock::take(&fsck.state) {
        Ok(_lock) => Ok(offline::all(&fsck.root, fsck.repair)),
        Err(LockError::Held { .. }) => {
            crate::client::block_on(online::all(&socket, fsck.repair, fsck.deep))
        }
        Err(error) => Err(error.to_string()),
    };
    if made {
        let _ = std::fs::remove_dir(&fsck.state);
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
