//! Running a shim's program: `start`, and `delete` for what a shim that died could not do itself.
//!
//! Three generations of answers to `start` are understood: a `BootstrapResult` as protobuf, the same as JSON, and the
//! bare address. Flags, environment and the runtime's options on stdin are what shims before 2.3 know; later ones take
//! them too, or else are started again with `BootstrapParams` on stdin, which the older ones refuse.
//! Source: containerd, `core/runtime/v2/README.md` and `api/runtime/bootstrap/v1/bootstrap.proto`.

use crate::layout::Layout;
use crate::record::{Name, Program};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use contracts::tasks::Exit;
use contracts::{Error, Result, Timestamp};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long `start` may take: it makes a socket and forks.
const START: Duration = Duration::from_secs(10);
/// How long `delete` may take: it kills, and waits for the kernel.
const DELETE: Duration = Duration::from_secs(15);
/// The build that runs here, whatever has become of its path since: a shim is of the same build as the plugin.
pub(crate) const THIS: &str = "/proc/self/exe";
/// Most of a shim's own words that go into an error.
const WORDS: usize = 1024;

/// A shim's program with what it needs to know about one task.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: Program,
    pub(crate) name: Name,
    pub(crate) bundle: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) events: PathBuf,
    /// Path of its cgroup below each hierarchy; empty when the runtime chooses.
    pub(crate) cgroup: String,
    /// Most bytes of one log; 0 for no bound.
    pub(crate) log_bytes: u64,
}

/// Where a started shim listens, and which version of the task API it speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listening {
    pub(crate) address: String,
    pub(crate) api: u32,
}

impl Launch {
    pub(crate) fn new(program: Program, name: &Name, made: Timestamp, layout: &Layout) -> Self {
        Self {
            program,
            name: name.clone(),
            bundle: layout.bundle(name),
            socket: layout.socket(name, made),
            events: layout.events(),
            cgroup: String::new(),
            log_bytes: layout.log_bytes,
        }
    }

    /// Starts the shim. Errors: `FailedPrecondition` with its own words.
    pub(crate) async fn start(&self, options: Option<&Any>) -> Result<Listening> {
        let legacy = options.and_then(|options| options.write_to_bytes().ok());
        let output = match self.run("start", &legacy.unwrap_or_default(), START).await {
            Err(error) if !self.program.own => {
                let params = self.params(options);
                let again = self.run("start", &params, START).await;
                again.map_err(|_| error)?
            }
            output => output?,
        };
        listening(&output.stdout).ok_or_else(|| {
            Error::precondition(format!(
                "shim {}: start answered {:?}, which is no address",
                self.program.path,
                String::from_utf8_lossy(&output.stdout)
            ))
        })
    }

    /// Ends what is left of the task, also a shim that still listens; answers how it ended.
    pub(crate) async fn delete(&self) -> Result<Exit> {
        let output = self.run("delete", &[], DELETE).await?;
        let answer = DeleteResponse::parse_from_bytes(&output.stdout).unwrap_or_default();
        Ok(Exit {
            exit_code: answer.exit_status,
            exited_at: time(answer.exited_at.as_ref()),
        })
    }

    /// As [`Launch::delete`], for who cannot wait otherwise. Blocks.
    pub(crate) fn delete_blocking(&self) -> std::io::Result<()> {
        self.command("delete")
            .as_std_mut()
            .stdin(Stdio::null())
            .output()
            .map(drop)
    }

    async fn run(&self, action: &str, input: &[u8], bound: Duration) -> Result<Output> {
        let program = &self.program.path;
        let failed = |why: String| Error::precondition(format!("shim {program}: {why}"));
        let mut child = self
            .command(action)
            .spawn()
            .map_err(|e| failed(format!("exec: {e}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Who does not want it does not read it.
            let _ = tokio::time::timeout(bound, stdin.write_all(input)).await;
        }
        let output = tokio::time::timeout(bound, child.wait_with_output())
            .await
            .map_err(|_| failed(format!("{action} did not end within {} s", bound.as_secs())))?
            .map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(failed(words(&output)))
    }

    fn command(&self, action: &str) -> Command {
        let mut command = Command::new(&self.program.path);
        if self.program.path == THIS
            && let Ok(path) = std::env::current_exe()
        {
            // For people who look at processes.
            command.arg0(path);
        }
        command.args(&self.program.first);
        command.args(["-namespace", self.name.namespace.as_str()]);
        command.args(["-id", self.name.id.as_str()]);
        command.arg("-address").arg(&self.events);
        if self.program.own {
            command.arg("-socket").arg(&self.socket);
            command.env("GANTRY_SHIM_LOG", self.bundle.join("shim.log"));
            command.stdin(Stdio::null());
        } else {
            command.arg("-publish-binary").arg(&self.program.path);
            command.env("MAX_SHIM_VERSION", "3");
            command.stdin(Stdio::piped());
        }
        if self.program.own || action == "delete" {
            command.arg("-bundle").arg(&self.bundle);
        }
        command
            .arg(action)
            .env("TTRPC_ADDRESS", &self.events)
            .current_dir(&self.bundle)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn params(&self, options: Option<&Any>) -> Vec<u8> {
        let extension = |options: &Any| Extension {
            value: Some(options.clone()).into(),
            ..Extension::default()
        };
        let params = BootstrapParams {
            instance_id: self.name.id.to_string(),
            namespace: self.name.namespace.to_string(),
            containerd_version: env!("CARGO_PKG_VERSION").into(),
            containerd_ttrpc_address: format!("unix://{}", self.events.display()),
            containerd_grpc_address: self.events.display().to_string(),
            containerd_binary: self.program.path.clone(),
            extensions: options.map(extension).into_iter().collect(),
            ..BootstrapParams::default()
        };
        params.write_to_bytes().unwrap_or_default()
    }
}

fn words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let said = if said.is_empty() {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    } else {
        said.to_owned()
    };
    if said.is_empty() {
        return output.status.to_string();
    }
    said.chars().take(WORDS).collect()
}

/// A point in time as protobuf has it; the epoch when there is none.
pub(crate) fn time(time: Option<&protobuf::well_known_types::timestamp::Timestamp>) -> Timestamp {
    time.map_or(Timestamp(0), |time| {
        Timestamp(time.seconds.saturating_mul(1_000_000_000) + i64::from(time.nanos))
    })
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    version: u32,
    address: String,
    #[serde(default)]
    protocol: String,
}

fn listening(output: &[u8]) -> Option<Listening> {
    let protobuf = BootstrapResult::parse_from_bytes(output)
        .ok()
        .filter(|result| is_socket(&result.address))
        .map(|result| Said {
            version: u32::try_from(result.version).unwrap_or(0),
            address: result.address,
            protocol: result.protocol,
        });
    let said = protobuf.or_else(|| serde_json::from_slice::<Said>(output).ok());
    match said {
        Some(said) if matches!(said.protocol.as_str(), "" | "ttrpc") => Some(Listening {
            address: said.address,
            api: said.version.max(2),
        }),
        Some(_) => None,
        None => {
            let text = std::str::from_utf8(output).ok()?.trim();
            is_socket(text).then(|| Listening {
                address: text.to_owned(),
                api: 2,
            })
        }
    }
}

fn is_socket(address: &str) -> bool {
    address
        .strip_prefix("unix://")
        .is_some_and(|path| Path::new(path).is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(api: u32) -> Option<Listening> {
        Some(Listening {
            address: "unix:///run/x.sock".into(),
            api,
        })
    }

    #[test]
    fn all_generations_of_shims_are_understood() {
        assert_eq!(listening(b"unix:///run/x.sock\n"), at(2));
        let json = br#"{"version":3,"address":"unix:///run/x.sock","protocol":"ttrpc"}"#;
        assert_eq!(listening(json), at(3));
        let protobuf = BootstrapResult {
            version: 3,
            address: "unix:///run/x.sock".into(),
            protocol: "ttrpc".into(),
            ..BootstrapResult::default()
        };
        assert_eq!(listening(&protobuf.write_to_bytes().unwrap()), at(3));
    }

    #[test]
    fn what_cannot_be_spoken_to_is_refused() {
        let grpc = br#"{"version":3,"address":"unix:///x","protocol":"grpc"}"#;
        for output in [&b""[..], b"hello", grpc] {
            assert_eq!(listening(output), None);
        }
    }
}
