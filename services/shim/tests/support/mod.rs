//! Starts the real shim on a bundle made of busybox, and speaks to it as a daemon would.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::error::Error;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use ttrpc::context::{self, Context};

pub type Outcome = Result<(), Box<dyn Error>>;

/// Long enough for a busy machine; every wait ends earlier.
pub const BOUND: Duration = Duration::from_secs(30);

pub fn bound() -> Context {
    context::with_duration(BOUND)
}

/// A bundle, its shim, and a connection to it.
pub struct Shim {
    pub folder: tempfile::TempDir,
    pub id: String,
    pub address: String,
    pub client: TaskClient,
    pub raw: Client,
    pub binary: bool,
}

/// What to run and how; `Default` is `true` on the embedded runtime.
pub struct Setup {
    pub spec: Value,
    pub runtime: &'static str,
    pub env: Vec<(&'static str, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            spec: spec(&["true"]),
            runtime: "",
            env: Vec::new(),
        }
    }
}

impl Setup {
    pub fn run(args: &[&str]) -> Self {
        Self {
            spec: spec(args),
            ..Self::default()
        }
    }

    pub fn sh(script: &str) -> Self {
        Self::run(&["sh", "-c", script])
    }

    pub fn on(mut self, runtime: &'static str) -> Self {
        self.runtime = runtime;
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    pub fn env(mut self, key: &'static str, value: String) -> Self {
        self.env.push((key, value));
        self
    }

    pub async fn start(self) -> Result<Shim, Box<dyn Error>> {
        Shim::start(self).await
    }
}

pub fn spec(args: &[&str]) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_MKNOD",
    ];
    let ns = |kind: &str| json!({ "type": kind });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs" },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        ],
        "linux": {
            "cgroupsPath": "",
            "namespaces": [ns("pid"), ns("ipc"), ns("uts"), ns("mount"), ns("network")],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    })
}

static NEXT: AtomicU32 = AtomicU32::new(0);

fn unique() -> String {
    format!(
        "shimtest-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A root file system with busybox alone.
pub fn busybox(root: &Path) -> std::io::Result<()> {
    for folder in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let applets = "sh true false cat echo sleep stty id ps yes head dd kill grep trap test seq \
                   printf tty ls touch mkdir rm wc tr";
    for applet in applets.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

impl Shim {
    async fn start(setup: Setup) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let id = unique();
        let bundle = folder.path().join("bundle");
        fs::create_dir(&bundle)?;
        fs::set_permissions(&bundle, fs::Permissions::from_mode(0o700))?;
        busybox(&folder.path().join("image"))?;
        let mut spec = setup.spec;
        if spec["linux"]["cgroupsPath"] == "" {
            spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        }
        fs::write(bundle.join("config.json"), spec.to_string())?;
        let mut command = shim_command(&id, &bundle, "start");
        command.envs(setup.env.iter().map(|(key, value)| (*key, value.as_str())));
        let output = command.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let address = String::from_utf8(output.stdout)?;
        let raw = Client::connect(&address).await?;
        let client = TaskClient::new(raw.clone());
        let binary = !setup.runtime.is_empty();
        let shim = Self {
            folder,
            id,
            address,
            client,
            raw,
            binary,
        };
        fs::write(shim.path("runtime-name"), setup.runtime)?;
        Ok(shim)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn bundle(&self) -> PathBuf {
        self.path("bundle")
    }

    pub fn log_uri(&self) -> String {
        format!("log://{}", self.path("log").display())
    }

    pub async fn connect(&self) -> Result<TaskClient, Box<dyn Error>> {
        Ok(TaskClient::new(Client::connect(&self.address).await?))
    }

    /// The request most tests make: the busybox image bound as root, output to the log.
    pub fn request(&self) -> api::CreateTaskRequest {
        let image = api::Mount {
            type_: "bind".into(),
            source: self.path("image").display().to_string(),
            options: vec!["rbind".into(), "rw".into()],
            ..Default::default()
        };
        let runtime = fs::read_to_string(self.path("runtime-name")).unwrap_or_default();
        let options = json!({ "runtime": runtime }).to_string();
        api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle().display().to_string(),
            rootfs: vec![image],
            stdout: self.log_uri(),
            stderr: self.log_uri(),
            options: Some(any("gantry.shim.v1.Options", options)).into(),
            ..Default::default()
        }
    }

    pub async fn create(&self) -> ttrpc::Result<u32> {
        self.create_with(|_| {}).await
    }

    pub async fn create_with(
        &self,
        change: impl FnOnce(&mut api::CreateTaskRequest),
    ) -> ttrpc::Result<u32> {
        let mut request = self.request();
        change(&mut request);
        Ok(self.client.create(bound(), &request).await?.pid)
    }

    pub async fn go(&self) -> ttrpc::Result<u32> {
        self.go_exec("").await
    }

    pub async fn go_exec(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        Ok(self.client.start(bound(), &request).await?.pid)
    }

    /// Create and start.
    pub async fn up(&self) -> ttrpc::Result<u32> {
        self.create().await?;
        self.go().await
    }

    pub async fn wait(&self) -> ttrpc::Result<u32> {
        self.wait_exec("").await
    }

    pub async fn wait_exec(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        Ok(self.client.wait(bound(), &request).await?.exit_status)
    }

    pub async fn state(&self) -> ttrpc::Result<api::StateResponse> {
        let request = api::StateRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.state(bound(), &request).await
    }

    pub async fn kill(&self, signal: u32, all: bool) -> ttrpc::Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            signal,
            all,
            ..Default::default()
        };
        self.client.kill(bound(), &request).await.map(drop)
    }

    pub async fn delete(&self) -> ttrpc::Result<api::DeleteResponse> {
        self.delete_exec("").await
    }

    pub async fn delete_exec(&self, exec_id: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            ..Default::default()
        };
        self.client.delete(bound(), &request).await
    }

    pub async fn exec(
        &self,
        exec_id: &str,
        args: &[&str],
        change: impl FnOnce(&mut api::ExecProcessRequest),
    ) -> ttrpc::Result<()> {
        let mut process = spec(args)["process"].clone();
        process["env"] = json!(["PATH=/bin", "TERM=xterm"]);
        let mut request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            stdout: format!("file://{}", self.path(exec_id).display()),
            stderr: format!("file://{}", self.path(exec_id).display()),
            ..Default::default()
        };
        change(&mut request);
        process["terminal"] = json!(request.terminal);
        request.spec = Some(any(
            "types.containerd.io/opencontainers/runtime-spec/1/Process",
            process.to_string(),
        ))
        .into();
        self.client.exec(bound(), &request).await.map(drop)
    }

    pub async fn shutdown(&self) {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let _ = self.client.shutdown(bound(), &request).await;
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The bytes one stream of the log is made of.
    pub fn logged(&self, stream: &str) -> Vec<u8> {
        let log = fs::read(self.path("log")).unwrap_or_default();
        let mut bytes = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let mut parts = line[..line.len() - 1].splitn(4, |byte| *byte == b' ');
            let _time = parts.next();
            let of = parts.next().unwrap_or_default();
            let tag = parts.next().unwrap_or_default();
            if of == stream.as_bytes() {
                bytes.extend_from_slice(parts.next().unwrap_or_default());
                bytes.extend_from_slice(if tag == b"F" { b"\n" } else { b"" });
            }
        }
        bytes
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.logged("stdout")).into_owned()
    }

    pub fn server_pid(&self) -> Option<i32> {
        fs::read_to_string(self.bundle().join("shim.pid"))
            .ok()?
            .parse()
            .ok()
    }

    /// Where a cgroup v1 or v2 host keeps this container's `file`.
    pub fn cgroup_file(&self, controller: &str, file: &str) -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup").join(controller).join(&self.id);
        let dir = if v1.exists() {
            v1
        } else {
            Path::new("/sys/fs/cgroup").join(&self.id)
        };
        dir.join(file)
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut places = vec![PathBuf::from("/sys/fs/cgroup")];
        places.extend(
            fs::read_dir("/sys/fs/cgroup")
                .unwrap()
                .flatten()
                .map(|entry| entry.path()),
        );
        places
            .into_iter()
            .map(|place| place.join(&self.id))
            .filter(|path| path.exists())
            .collect()
    }

    /// Runs the `delete` action of the command line.
    pub fn cleanup(&self) -> Result<api::DeleteResponse, Box<dyn Error>> {
        let output = shim_command(&self.id, &self.bundle(), "delete").output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        Ok(protobuf::Message::parse_from_bytes(&output.stdout)?)
    }

    /// Fails on anything the container or the shim left on the host.
    pub async fn gone(&self) -> Outcome {
        let pid = self.server_pid();
        self.shutdown().await;
        let socket = self.address.trim_start_matches("unix://").to_owned();
        until("the socket is gone", || !Path::new(&socket).exists()).await?;
        if let Some(pid) = pid {
            until("the shim has ended", || !alive(pid)).await?;
        }
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new(), "cgroups are left");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let here = self.folder.path().display().to_string();
        assert!(!mounts.contains(&here), "mounts are left: {mounts}");
        let left: Vec<_> = fs::read_dir(self.bundle())?
            .flatten()
            .map(|e| e.file_name())
            .collect();
        let mut left: Vec<_> = left.iter().map(|name| name.to_string_lossy()).collect();
        left.retain(|name| name != "rootfs");
        assert_eq!(left, ["config.json"], "files are left");
        Ok(())
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.cleanup();
    }
}

/// The shim under test; `SHIM="target/release/gantry shim"` takes the product's.
pub fn program() -> Command {
    let given = std::env::var("SHIM").unwrap_or_default();
    let mut words = given.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or(env!("CARGO_BIN_EXE_shim-alone")));
    command.args(words);
    command
}

pub fn shim_command(id: &str, bundle: &Path, action: &str) -> Command {
    let mut command = program();
    command.args(["-namespace", "test", "-id", id, "-address", "/nowhere"]);
    command.args(["-publish-binary", "none", action]);
    command
        .env_remove("TTRPC_ADDRESS")
        .env_remove("MAX_SHIM_VERSION");
    command.current_dir(bundle).stdin(Stdio::null());
    command
}

pub fn any(type_url: &str, value: impl Into<Vec<u8>>) -> Any {
    Any {
        type_url: type_url.into(),
        value: value.into(),
        ..Any::default()
    }
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    !stat.is_empty() && !state.starts_with('Z') && !state.starts_with('X')
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + BOUND;
    while !done() {
        if Instant::now() > end {
            return Err(format!("{what}: not within {BOUND:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

pub fn code(error: &ttrpc::Error) -> ttrpc::Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("not a status: {other}"),
    }
}

pub fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("fifo");
}
