//! The plugin over an in-process bus, with real shims below it: records, snapshots and the event log are made up.
#![allow(dead_code, unreachable_pub, missing_docs)]

use bus::testing::{Fake, LocalBus, LocalNode};
use bus::{Bus, Ctx};
use contracts::containers::{self, Container, Containers, Runtime};
use contracts::events::{Append, Entry, Events};
use contracts::snapshots::{self, Snapshots};
use contracts::tasks::{
    Create, Delete, Exec, ExecProcess, Exit, Get, Kill, LogLine, Logs, Start, Stdio, Task, Wait,
};
use contracts::{
    ContainerId, Error, ExecId, Labels, Mount, Namespace, Request, Result, SnapshotKey, Timestamp,
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Long enough for a busy machine; every wait ends earlier.
pub const BOUND: Duration = Duration::from_secs(30);

pub struct Home {
    pub node: LocalNode,
    pub namespace: Namespace,
    pub log: Rc<RefCell<Vec<Entry>>>,
    pub records: Rc<RefCell<HashMap<String, Container>>>,
    pub folder: tempfile::TempDir,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

fn namespace() -> Namespace {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Namespace::new(format!("t{}-{number}", std::process::id())).unwrap()
}

impl Home {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), namespace())
    }

    /// Starts after `before` has filled the plugin's folders.
    pub async fn start_after(before: impl AsyncFnOnce(&Path, &Path, &Namespace)) -> Self {
        let (folder, namespace) = (tempfile::tempdir().unwrap(), namespace());
        let place = |kind: &str| folder.path().join(kind).join("tasks/local");
        for kind in ["root", "state"] {
            fs::create_dir_all(place(kind)).unwrap();
        }
        before(&place("root"), &place("state"), &namespace).await;
        Self::start_in(folder, namespace)
    }

    fn start_in(folder: tempfile::TempDir, namespace: Namespace) -> Self {
        busybox(&folder.path().join("image")).unwrap();
        let (log, records) = (Rc::default(), Rc::default());
        let bus = LocalBus::new()
            .fake(events(&log))
            .fake(keeper(&records))
            .fake(driver(folder.path().join("image")))
            .plugin_with(
                tasks::plugin(),
                &json!({ "shim": shim_program() }).to_string(),
            );
        let node = bus.start(folder.path()).unwrap();
        Self {
            node,
            namespace,
            log,
            records,
            folder,
        }
    }

    pub fn bus(&self) -> Bus {
        self.node.bus()
    }

    pub fn ctx(&self) -> Ctx {
        Ctx::new(Some(self.namespace.clone())).with_deadline(BOUND)
    }

    pub async fn call<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.bus().call(&self.ctx(), request).await
    }

    /// Records a container that runs `args`.
    pub fn container(&self, id: &str, args: &[&str]) {
        self.container_with(id, args, "", |_| {});
    }

    pub fn container_with(
        &self,
        id: &str,
        args: &[&str],
        runtime: &str,
        change: impl FnOnce(&mut Value),
    ) {
        let mut spec = spec(args);
        spec["linux"]["cgroupsPath"] = json!(format!("/gantry/{}/{id}", self.namespace));
        change(&mut spec);
        let made = Container {
            id: container_id(id),
            image: None,
            labels: Labels::new(),
            runtime: Runtime {
                name: runtime.into(),
                options: String::new(),
            },
            snapshotter: "overlayfs".into(),
            snapshot_key: Some(SnapshotKey::new(id).unwrap()),
            spec: spec.to_string(),
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
            version: 1,
        };
        self.records.borrow_mut().insert(id.into(), made);
    }

    pub async fn create(&self, id: &str) -> Result<Task> {
        self.create_with(id, Stdio::default()).await
    }

    pub async fn create_with(&self, id: &str, stdio: Stdio) -> Result<Task> {
        let create = Create {
            id: container_id(id),
            rootfs: None,
            stdio,
        };
        self.call(create).await
    }

    /// Records a container, sets up its task and starts it.
    pub async fn run(&self, id: &str, args: &[&str]) -> Task {
        self.container(id, args);
        self.create(id).await.unwrap();
        self.go(id).await.unwrap()
    }

    pub async fn go(&self, id: &str) -> Result<Task> {
        let id = container_id(id);
        self.call(Start { id, exec: None }).await
    }

    pub async fn get(&self, id: &str) -> Result<Task> {
        self.call(Get {
            id: container_id(id),
        })
        .await
    }

    pub async fn wait(&self, id: &str) -> Result<Exit> {
        let id = container_id(id);
        self.call(Wait { id, exec: None }).await
    }

    pub async fn kill(&self, id: &str, signal: u32) -> Result<()> {
        let kill = Kill {
            id: container_id(id),
            exec: None,
            signal,
            all: false,
        };
        self.call(kill).await
    }

    pub async fn delete(&self, id: &str, force: bool) -> Result<Exit> {
        let id = container_id(id);
        self.call(Delete {
            id,
            exec: None,
            force,
        })
        .await
    }

    pub async fn exec(
        &self,
        id: &str,
        exec: &str,
        process: ExecProcess,
        stdio: Stdio,
    ) -> Result<()> {
        let exec = Exec {
            id: container_id(id),
            exec: exec_id(exec),
            process,
            stdio,
        };
        self.call(exec).await
    }

    /// Adds a process, starts it, waits for its end; answers code and output.
    pub async fn execute(&self, id: &str, exec: &str, args: &[&str]) -> (u32, String) {
        self.exec(id, exec, process(args), Stdio::default())
            .await
            .unwrap();
        let (container, added) = (container_id(id), exec_id(exec));
        let start = Start {
            id: container.clone(),
            exec: Some(added.clone()),
        };
        self.call(start).await.unwrap();
        let wait = Wait {
            id: container.clone(),
            exec: Some(added.clone()),
        };
        let exit = self.call(wait).await.unwrap();
        let lines = self.lines(logs(id, Some(exec))).await;
        (exit.exit_code, text(&lines, false))
    }

    pub async fn lines(&self, logs: Logs) -> Vec<LogLine> {
        self.try_lines(logs).await.unwrap()
    }

    pub async fn try_lines(&self, logs: Logs) -> Result<Vec<LogLine>> {
        let mut stream = self.bus().open(&self.ctx(), logs).await?;
        let mut lines = Vec::new();
        while let Some(batch) = stream.next().await {
            lines.extend(batch?.lines);
        }
        Ok(lines)
    }

    pub async fn out(&self, id: &str) -> String {
        text(&self.lines(logs(id, None)).await, false)
    }

    /// Waits until a task has written this, and nothing else.
    pub async fn until_out(&self, id: &str, wanted: &str) {
        let written = async { while self.out(id).await != wanted {} };
        let bounded = tokio::time::timeout(BOUND, written).await;
        assert!(bounded.is_ok(), "{id} did not write {wanted:?}");
    }

    /// Topics of the log so far, of one container, as `create`, `exit:<process>`.
    pub fn told(&self, id: &str) -> Vec<String> {
        let log = self.log.borrow();
        let of = |entry: &Entry| {
            let event: Value = serde_json::from_str(&entry.event).unwrap();
            assert_eq!(entry.namespace.as_ref(), Some(&self.namespace));
            (event["container_id"] == id).then(|| {
                let topic = entry.topic.trim_start_matches("/tasks/");
                match (&event["id"], &event["exec_id"]) {
                    (Value::String(process), _) if process != id && !process.is_empty() => {
                        format!("{topic}:{process}")
                    }
                    (_, Value::String(process)) => format!("{topic}:{process}"),
                    _ => topic.to_owned(),
                }
            })
        };
        log.iter().filter_map(of).collect()
    }

    pub async fn until_told(&self, id: &str, wanted: &[&str]) {
        until("the events are told", || {
            self.told(id).len() >= wanted.len()
        })
        .await;
        assert_eq!(self.told(id), wanted);
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state/tasks/local")
    }

    pub fn bundle(&self, id: &str) -> PathBuf {
        self.state()
            .join("bundles")
            .join(self.namespace.as_str())
            .join(id)
    }

    pub fn shim_pid(&self, id: &str) -> i32 {
        let path = self.bundle(id).join("shim.pid");
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    /// The process of a stock shim, by its arguments.
    pub fn stock_shim_pid(&self, id: &str) -> i32 {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let wanted = format!("-namespace\0{}\0-id\0{id}\0", self.namespace);
        let found = pids.find(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains(&wanted)
        });
        found.unwrap()
    }

    /// Fails on anything that is left on the host.
    pub async fn gone(&self) {
        let bundles = self.state().join("bundles");
        until("bundles are gone", || empty(&bundles)).await;
        let gone = self.state().join("gone");
        until("removed bundles are gone", || empty(&gone)).await;
        let sockets = self.state().join("sockets");
        until("sockets are gone", || empty(&sockets)).await;
        until("cgroups are gone", || self.cgroups().is_empty()).await;
        let here = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&here), "mounts are left: {mounts}");
        let ours = || pids_with(&here);
        until("processes are gone", || ours().is_empty()).await;
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let tops = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        tops.map(|top| top.path().join("gantry").join(self.namespace.as_str()))
            .filter(|path| path.exists())
            .collect()
    }
}

/// Whatever a failed test left: killed and removed.
impl Drop for Home {
    fn drop(&mut self) {
        let bundles = self.state().join("bundles").join(self.namespace.as_str());
        for bundle in fs::read_dir(bundles).into_iter().flatten().flatten() {
            let mut command = Command::new(shim_program());
            command.args(["-namespace", self.namespace.as_str()]);
            command.arg("-id").arg(bundle.file_name());
            command.arg("-bundle").arg(bundle.path());
            let _ = command.arg("delete").output();
            let _ = nix::mount::umount(&bundle.path().join("rootfs"));
        }
        for cgroup in self.cgroups() {
            for task in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                let left = fs::read_to_string(task.path().join("cgroup.procs"));
                for pid in left.unwrap_or_default().lines() {
                    let _ = Command::new("kill").args(["-9", pid]).status();
                }
                let _ = fs::remove_dir(task.path());
            }
            let _ = fs::remove_dir(cgroup);
        }
        for pid in pids_with(&self.folder.path().display().to_string()) {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
    }
}

fn empty(folder: &Path) -> bool {
    fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

/// Processes whose command line has `text`.
fn pids_with(text: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| {
        fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains(text))
    })
    .map(|entry| entry.file_name().to_string_lossy().into_owned())
    .filter(|name| name.parse::<u32>().is_ok())
    .collect()
}

fn events(log: &Rc<RefCell<Vec<Entry>>>) -> Fake<Events> {
    let log = log.clone();
    // As the real log: rows that it has are skipped.
    let seen = RefCell::new((0, 0));
    Fake::new("log").on(move |_, append: Append| {
        let (epoch, last) = *seen.borrow();
        let last = if epoch == append.epoch { last } else { 0 };
        for (number, entry) in (append.first..).zip(append.entries) {
            if number > last {
                log.borrow_mut().push(entry);
                *seen.borrow_mut() = (append.epoch, number);
            }
        }
        Ok(seen.borrow().1)
    })
}

fn keeper(records: &Rc<RefCell<HashMap<String, Container>>>) -> Fake<Containers> {
    let records = records.clone();
    Fake::new("local").on(move |_, get: containers::Get| {
        let records = records.borrow();
        let found = records.get(get.id.as_str()).cloned();
        found.ok_or_else(|| Error::not_found(format!("container {}: not found", get.id)))
    })
}

fn driver(image: PathBuf) -> Fake<Snapshots> {
    Fake::new("overlayfs").on(move |_, _: snapshots::Mounts| {
        Ok(vec![Mount {
            fs_type: "bind".into(),
            source: image.to_string_lossy().into_owned(),
            target: String::new(),
            options: vec!["rbind".into(), "rw".into()],
        }])
    })
}

/// gantry's own shim, beside this test's program; built when it is not there.
pub fn shim_program() -> PathBuf {
    static BUILT: Once = Once::new();
    let this = std::env::current_exe().unwrap();
    let program = this.ancestors().nth(2).unwrap().join("shim-alone");
    BUILT.call_once(|| {
        if !program.exists() {
            let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
            let args = ["build", "--offline", "-p", "shim", "--bin", "shim-alone"];
            assert!(Command::new(cargo).args(args).status().unwrap().success());
        }
    });
    program
}

pub fn container_id(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

pub fn exec_id(id: &str) -> ExecId {
    ExecId::new(id).unwrap()
}

pub fn process(args: &[&str]) -> ExecProcess {
    ExecProcess {
        args: args.iter().map(ToString::to_string).collect(),
        ..ExecProcess::default()
    }
}

pub fn logs(id: &str, exec: Option<&str>) -> Logs {
    Logs {
        id: container_id(id),
        exec: exec.map(exec_id),
        follow: false,
        since: None,
        until: None,
        tail: None,
    }
}

pub fn text(lines: &[LogLine], stderr: bool) -> String {
    let mut bytes = Vec::new();
    for line in lines.iter().filter(|line| line.stderr == stderr) {
        bytes.extend_from_slice(&line.bytes);
        bytes.extend_from_slice(if line.newline { b"\n" } else { b"" });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + BOUND;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {BOUND:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().unwrap_or_default();
    !stat.is_empty() && !state.starts_with('Z') && !state.starts_with('X')
}

pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

pub fn spec(args: &[&str]) -> Value {
    let caps = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
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
            "namespaces": [ns("pid"), ns("ipc"), ns("uts"), ns("mount"), ns("network")],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    })
}

/// A root file system with busybox alone.
fn busybox(root: &Path) -> std::io::Result<()> {
    for folder in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:\nweb:x:33:34::/srv:\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nweb:x:34:\nlogs:x:50:web\n",
    )?;
    let applets = "sh true false cat echo sleep stty id ps yes head dd kill grep trap test seq \
                   printf tty ls touch mkdir rm wc tr mkfifo";
    for applet in applets.split_whitespace() {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}
