//! A registry of the story's own: Debian's `docker-registry` on a loopback port, in a private folder.
//!
//! ```text
//! <folder>/config.yml  htpasswd  registry.log
//! <folder>/docker/registry/v2/blobs/sha256/<2 digits>/<hex>/data     what `damage` writes to
//! ```

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hyper::Method;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::Outcome;
use crate::http::Client;
use crate::image::{Login, Packed};
use crate::process::{Daemon, run, until};

/// From start to the first answer; the program needs some ten milliseconds.
const READY: Duration = Duration::from_secs(10);

/// A running registry. It is stopped and its folder removed when it is dropped.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    address: SocketAddr,
    folder: TempDir,
    login: Option<(String, String)>,
}

impl Registry {
    /// Starts a registry that is open to everybody. Errors: `docker-registry` is missing or does not answer.
    pub async fn start() -> Outcome<Self> {
        Self::start_with(None).await
    }

    /// Starts an open registry where an earlier one listened. Errors: the port is taken, or as [`Registry::start`].
    pub async fn start_at(address: SocketAddr) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("registry-").tempdir()?;
        let daemon = spawn(&folder, address, false)?;
        let mut registry = Self {
            daemon,
            address,
            folder,
            login: None,
        };
        registry.ready().await.map(|()| registry)
    }

    /// Starts a registry that wants this user and password for everything.
    ///
    /// Errors: `docker-registry` or `htpasswd` is missing, or the registry does not answer.
    pub async fn start_private(user: &str, password: &str) -> Outcome<Self> {
        Self::start_with(Some((user.to_owned(), password.to_owned()))).await
    }

    async fn start_with(login: Option<(String, String)>) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("registry-").tempdir()?;
        if let Some((user, password)) = &login {
            let line = run(Command::new("htpasswd").args(["-Bbn", user, password]))?;
            fs::write(folder.path().join("htpasswd"), line)?;
        }
        let address = free_address()?;
        let daemon = spawn(&folder, address, login.is_some())?;
        let mut registry = Self {
            daemon,
            address,
            folder,
            login,
        };
        // Between finding a free port and using it somebody else may take it: then another one.
        for _ in 0..4 {
            if registry.ready().await.is_ok() {
                return Ok(registry);
            }
            registry.address = free_address()?;
            registry.resume_unchecked()?;
        }
        registry.ready().await.map(|()| registry)
    }

    async fn ready(&mut self) -> Outcome {
        let client = Client::tcp(self.address);
        let answered = until("the registry answers", READY, async || {
            if self.daemon.has_ended() {
                return Some(false);
            }
            let answer = client.send(Method::GET, "/v2/", ()).await.ok()?;
            matches!(answer.status.as_u16(), 200 | 401).then_some(true)
        });
        if answered.await? {
            return Ok(());
        }
        let log = fs::read_to_string(self.folder.path().join("registry.log")).unwrap_or_default();
        Err(format!("docker-registry ended: {log}").into())
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the name under which a node pulls: `127.0.0.1:<port>/<repository>:<tag>`.
    pub fn name(&self, repository_and_tag: &str) -> String {
        format!("{}/{repository_and_tag}", self.address)
    }

    /// Uploads an image and returns the name under which a node pulls it. Errors: the registry refuses.
    pub async fn push(&self, image: &Packed, repository: &str, tag: &str) -> Outcome<String> {
        let login = self
            .login
            .as_ref()
            .map(|(user, password)| Login { user, password });
        image.push(self.address, repository, tag, login).await?;
        Ok(self.name(&format!("{repository}:{tag}")))
    }

    /// Replaces the stored bytes of a blob, so that they no longer fit their digest. Errors: no such blob.
    pub fn damage(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) -> Outcome {
        let path = self.blob(digest);
        let mut bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        change(&mut bytes);
        Ok(fs::write(path, bytes)?)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let short = hex.get(..2).unwrap_or_default();
        self.folder.path().join(format!(
            "docker/registry/v2/blobs/sha256/{short}/{hex}/data"
        ))
    }

    /// Stops answering: connections are refused until [`Registry::resume`]. Errors: the process does not end.
    pub async fn stop(&mut self) -> Outcome {
        self.daemon.end(Signal::SIGKILL, READY).await
    }

    /// Answers again at the same address, with the same content. Errors: the port is taken by now.
    pub async fn resume(&mut self) -> Outcome {
        self.resume_unchecked()?;
        self.ready().await
    }

    fn resume_unchecked(&mut self) -> Outcome {
        self.daemon = spawn(&self.folder, self.address, self.login.is_some())?;
        Ok(())
    }
}

fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn spawn(folder: &TempDir, address: SocketAddr, private: bool) -> Outcome<Daemon> {
    let home = folder.path().display();
    let mut config = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\nhttp: {{addr: '{address}'}}\n\
         storage: {{filesystem: {{rootdirectory: '{home}'}}, delete: {{enabled: true}}}}\n"
    );
    if private {
        config.push_str(&format!(
            "auth: {{htpasswd: {{realm: story, path: '{home}/htpasswd'}}}}\n"
        ));
    }
    let path = folder.path().join("config.yml");
    fs::write(&path, config)?;
    let mut command = Command::new("docker-registry");
    Daemon::spawn(
        command.arg("serve").arg(path),
        &folder.path().join("registry.log"),
    )
}
