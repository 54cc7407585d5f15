//! A real node of real processes: what happens to them when one crashes, refuses, is stopped, or all are.

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// Far more than anything here takes, even on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

struct Node {
    daemon: Child,
    folder: tempfile::TempDir,
}

/// Waits for a state, with a bound.
fn until<T>(what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = state() {
            return found;
        }
        assert!(begun.elapsed() < BOUND, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn program() -> PathBuf {
    let mut folder = std::env::current_exe().unwrap();
    folder.pop();
    folder.pop();
    folder.join("examples/sample-node")
}

fn command(folder: &Path, manifest: &str) -> Command {
    let mut command = Command::new(program());
    command
        .arg("daemon")
        .args([folder.join("root"), folder.join("state")])
        .arg(manifest)
        .env("RUST_LOG", "info")
        .stdin(Stdio::null());
    command
}

impl Node {
    /// A node with a configuration file that says this and its version.
    fn configured(toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, format!("version = 1\n{toml}")).unwrap();
        let mut command = command(folder.path(), "default");
        Self::spawn(folder, command.arg(file))
    }

    fn start(manifest: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self::start_in(folder, manifest)
    }

    fn start_in(folder: tempfile::TempDir, manifest: &str) -> Self {
        let mut command = command(folder.path(), manifest);
        Self::spawn(folder, &mut command)
    }

    fn spawn(folder: tempfile::TempDir, command: &mut Command) -> Self {
        let daemon = command.spawn().unwrap();
        let node = Self { daemon, folder };
        until("the node is up", || {
            let stands =
                |id: &str| Some(node.try_ask(&format!("get {id}"))?["ok"]["state"].clone());
            let up = stands("store/local")? == "ready" && stands("front/local")? == "degraded";
            (up && stands("broken/local")? == "failed").then_some(())
        });
        node
    }

    fn try_ask(&self, line: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.folder.path().join("state/front.sock")).ok()?;
        stream.set_read_timeout(Some(BOUND)).unwrap();
        writeln!(stream, "{line}").ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
    }

    /// Says a line whose answer may never come.
    fn say(&self, line: &str) -> UnixStream {
        let path = self.folder.path().join("state/front.sock");
        let mut stream = UnixStream::connect(path).unwrap();
        writeln!(stream, "{line}").unwrap();
        stream
    }

    fn ask(&self, line: &str) -> Value {
        let answer = until(line, || self.try_ask(line));
        assert!(answer["error"].is_null(), "{line}: {answer}");
        answer["ok"].clone()
    }

    fn pid(&self, plugin: &str) -> i32 {
        self.ask(&format!("get {plugin}"))["pid"].as_i64().unwrap() as i32
    }

    fn pids(&self) -> Vec<i32> {
        let list = self.ask("list");
        let infos = list.as_array().unwrap().iter();
        infos
            .map(|info| info["pid"].as_i64().unwrap() as i32)
            .filter(|&pid| pid > 0)
            .collect()
    }

    fn signal(&self, name: nix::sys::signal::Signal) {
        kill(self.daemon.id() as i32, name);
    }

    fn stopped(&mut self) -> ExitStatus {
        until("the supervisor ends", || self.daemon.try_wait().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Orderly, so that no process is left for a slow init to reap.
        if self.daemon.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(TERM);
        }
        let begun = Instant::now();
        while matches!(self.daemon.try_wait(), Ok(None)) {
            if begun.elapsed() > BOUND {
                let _ = self.daemon.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

const STOP: nix::sys::signal::Signal = nix::sys::signal::Signal::SIGSTOP;
const CONT: nix::sys::signal::Signal = nix::sys::signal::Signal::SIGCONT;
const KILL: nix::sys::signal::Signal = nix::sys::signal::Signal::SIGKILL;
const TERM: nix::sys::signal::Signal = nix::sys::signal::Signal::SIGTERM;

/// A process that nobody has waited for yet is gone as well.
fn is_gone(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.map_or(true, |status| status.contains("State:\tZ"))
}

#[test]
fn a_killed_plugin_is_back_within_a_second_rewired_and_its_neighbours_never_noticed() {
    let node = Node::start("default");
    let (store, front, upset) = (
        node.pid("store/local"),
        node.pid("front/local"),
        node.pid("upset/local"),
    );
    let begun = Instant::now();
    kill(store, KILL);
    // The call waits for the successor.
    let successor = node.ask("store").as_i64().unwrap() as i32;
    let took = begun.elapsed();
    assert!(
        successor != store && took < Duration::from_secs(1),
        "{took:?}"
    );
    let info = until("ready again", || {
        let info = node.ask("get store/local");
        (info["state"] == "ready").then_some(info)
    });
    assert_eq!(info["restarts"], 1);
    assert_eq!(info["last_exit"], "signal 9 (SIGKILL)");
    assert_eq!(node.pid("front/local"), front);
    assert_eq!(node.pid("upset/local"), upset);
    println!("killed and answered by the successor in {took:?}");
}

#[test]
fn what_does_not_start_leaves_others_ready_and_is_named_to_who_needs_it() {
    let node = Node::start("default");
    let broken = node.ask("get broken/local");
    assert_eq!(broken["state"], "failed");
    assert_eq!(
        broken["cause"],
        "it does not start: broken store: out of order"
    );
    let upset = node.ask("get upset/local");
    assert_eq!(upset["state"], "degraded");
    let chain = serde_json::json!(["upset/local", "broken/local"]);
    assert_eq!(upset["chain"], chain);
    assert_eq!(node.ask("get store/local")["state"], "ready");
    // A retry of the broken plugin may be under way, during which calls wait.
    let error = until("unavailable", || {
        Some(node.try_ask("broken")?["error"].clone())
    });
    assert_eq!(error["code"], "UNAVAILABLE", "{error}");
    assert_eq!(error["plugin"], "broken/local");
    assert!(
        error["message"].as_str().unwrap().contains("out of order"),
        "{error}"
    );
}

#[test]
fn privileges_are_what_proc_says() {
    let node = Node::start("default");
    let info = node.ask("get store/local");
    let status = fs::read_to_string(format!("/proc/{}/status", info["pid"])).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert!(info["memory"].as_u64().unwrap() > 0);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("CapBnd:"), "0000000000000000");
    assert_eq!(info["uid"].as_u64().unwrap().to_string(), field("Uid:"));
    assert!(info["uid"].as_u64().unwrap() >= 700_000);
    assert_ne!(info["uid"], node.ask("get front/local")["uid"]);
    let own = Path::new(info["root"].as_str().unwrap());
    let facts = fs::metadata(own).unwrap();
    assert_eq!(u64::from(facts.uid()), info["uid"].as_u64().unwrap());
    assert_eq!(facts.mode() & 0o7777, 0o700);
    let root = fs::metadata(node.folder.path().join("root")).unwrap();
    assert_eq!((root.uid(), root.mode() & 0o7777), (0, 0o710));
}

#[test]
fn a_user_stops_starts_and_restarts_plugins_but_not_the_supervisor() {
    let node = Node::start("default");
    let before = node.pid("store/local");
    let stopped = node.ask("stop store/local");
    assert_eq!(
        (&stopped["state"], &stopped["pid"]),
        (&"stopped".into(), &0.into())
    );
    assert!(is_gone(before));
    let error = node.try_ask("store").unwrap()["error"].clone();
    assert_eq!(error["code"], "UNAVAILABLE", "{error}");
    assert_eq!(node.ask("start store/local")["state"], "ready");
    let between = node.pid("store/local");
    assert_eq!(node.ask("restart store/local")["state"], "ready");
    let after = node.pid("store/local");
    assert!(after != between && node.ask("store") == after);
    let error = node.try_ask("restart supervisor/local").unwrap()["error"].clone();
    assert_eq!(error["code"], "FAILED_PRECONDITION");
    let error = node.try_ask("get store/locl").unwrap()["error"].clone();
    assert_eq!(error["code"], "NOT_FOUND");
    // The asker itself: its successor answers the repeated question.
    let front = node.pid("front/local");
    node.try_ask("restart front/local");
    until("another front", || {
        (node.pid("front/local") != front).then_some(())
    });
}

#[test]
fn the_graph_names_nodes_and_edges() {
    let node = Node::start("default");
    let graph = node.ask("graph");
    assert_eq!(graph["nodes"].as_array().unwrap().len(), 5);
    let edge = serde_json::json!(["front/local", "supervisor/local"]);
    assert!(graph["edges"].as_array().unwrap().contains(&edge));
    assert_eq!(node.ask("node")["manifest"], "default");
}

#[test]
fn plugins_that_share_a_process_work_the_same() {
    let node = Node::start("minimal");
    let shared = node.pid("front/local");
    assert_eq!(node.pid("store/local"), shared);
    assert_eq!(node.ask("store"), shared);
    let sharing = node.pids().into_iter().filter(|&pid| pid == shared);
    assert_eq!(sharing.count(), 3);
    kill(shared, KILL);
    until("all back", || {
        let pid = node.try_ask("store")?["ok"].as_i64()?;
        (pid as i32 != shared).then_some(())
    });
}

#[test]
fn a_change_of_manifest_keeps_what_plugins_own() {
    let mut node = Node::start("default");
    node.signal(TERM);
    node.stopped();
    let folder = std::mem::replace(&mut node.folder, tempfile::tempdir().unwrap());
    let node = Node::start_in(folder, "minimal");
    let info = node.ask("get store/local");
    let mine = Path::new(info["root"].as_str().unwrap()).join("mine");
    let owner = u64::from(fs::metadata(mine).unwrap().uid());
    assert_eq!(owner, info["uid"].as_u64().unwrap());
}

#[test]
fn sigterm_stops_everything_and_leaves_nothing() {
    let mut node = Node::start("default");
    let pids = node.pids();
    node.signal(TERM);
    assert!(node.stopped().success());
    assert!(pids.iter().all(|&pid| is_gone(pid)));
    let left: Vec<_> = fs::read_dir(node.folder.path().join("state"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn plugins_die_with_a_killed_supervisor_and_the_next_one_takes_over() {
    let mut node = Node::start("default");
    let pids = node.pids();
    node.signal(KILL);
    node.stopped();
    until("all gone", || {
        pids.iter().all(|&pid| is_gone(pid)).then_some(())
    });
    let folder = std::mem::replace(&mut node.folder, tempfile::tempdir().unwrap());
    let next = Node::start_in(folder, "default");
    assert!(next.ask("store").as_i64().is_some());
}

#[test]
fn a_second_supervisor_is_refused_with_the_pid_of_the_first() {
    let node = Node::start("default");
    let second = command(node.folder.path(), "default").output().unwrap();
    let error = String::from_utf8(second.stderr).unwrap();
    let pid = node.daemon.id();
    assert!(
        !second.status.success() && error.contains(&format!("pid {pid};")),
        "{error}"
    );
    assert!(node.ask("store").as_i64().is_some());
}

#[test]
fn a_sighup_without_a_change_touches_nobody() {
    let node = Node::start("default");
    let pids = node.pids();
    node.signal(nix::sys::signal::Signal::SIGHUP);
    assert!(node.ask("store").as_i64().is_some());
    assert_eq!(node.pids(), pids);
}

/// Waits until a plugin stands so, and returns it.
fn stands(node: &Node, plugin: &str, state: &str) -> Value {
    until(&format!("{plugin} is {state}"), || {
        let info = node.ask(&format!("get {plugin}"));
        (info["state"] == state).then_some(info)
    })
}

#[test]
fn a_stopped_plugin_is_degraded_with_its_cause_and_ready_again_when_it_goes_on() {
    let node = Node::configured("");
    let (store, upset) = (node.pid("store/local"), node.pid("upset/local"));
    kill(store, STOP);
    let info = stands(&node, "store/local", "degraded");
    let cause = info["cause"].as_str().unwrap();
    assert!(cause.starts_with("it does not answer since 20"), "{cause}");
    assert_eq!(info["chain"], serde_json::json!(["store/local"]));
    let front = node.ask("get front/local");
    assert_eq!(front["state"], "degraded");
    // A call that waits is answered when it goes on.
    let waiting = node.say("store");
    kill(store, CONT);
    let info = stands(&node, "store/local", "ready");
    assert_eq!(
        (&info["restarts"], &info["pid"]),
        (&0.into(), &store.into())
    );
    let mut answer = String::new();
    BufReader::new(waiting).read_line(&mut answer).unwrap();
    assert!(answer.contains(&store.to_string()), "{answer}");
    assert_eq!(node.pid("upset/local"), upset);
}

#[test]
fn a_plugin_that_hangs_is_killed_and_its_successor_answers_what_waited() {
    let node = Node::configured("[probe]\nevery_ms = 100\nlate_ms = 300\nkill_seconds = 1");
    let (store, front) = (node.pid("store/local"), node.pid("front/local"));
    let _hanging = node.say("hang");
    stands(&node, "store/local", "degraded");
    // What hung the first hangs its successor too, for it was not answered either: until its caller gives up.
    let after = until("another store", || {
        let info = node.ask("get store/local");
        (info["restarts"].as_u64() > Some(0)).then_some(info)
    });
    assert_eq!(
        after["last_exit"],
        "it did not answer for 1 s and was killed"
    );
    assert_ne!(after["pid"], store);
    assert_eq!(node.pid("front/local"), front);
    let exits = after["exits"].as_array().unwrap();
    assert!(
        exits
            .iter()
            .all(|exit| exit["at"].as_str().is_some_and(|at| at.starts_with("20"))),
        "{after}"
    );
}

#[test]
fn a_panic_is_the_cause_that_users_see() {
    let node = Node::start("default");
    let _answered = node.say("panic");
    let info = until("it has panicked", || {
        let info = node.ask("get store/local");
        (info["last_exit"] != "").then_some(info)
    });
    let last = info["last_exit"].as_str().unwrap();
    assert!(
        last.starts_with("panicked at supervisor/examples/sample-node.rs:"),
        "{last}"
    );
    assert!(last.ends_with(": it was told to"), "{last}");
}

#[test]
fn bytes_that_are_no_frames_cost_a_link_and_nothing_else() {
    let node = Node::start("default");
    let pids = node.pids();
    for _ in 0..3 {
        let spoiled = node.ask("spoil").as_u64().unwrap();
        assert!(spoiled >= 2, "{spoiled} links");
        // Over a link that is made anew, as is the one to the supervisor.
        assert!(node.ask("store").as_i64().is_some());
        assert_eq!(node.ask("get front/local")["restarts"], 0);
    }
    assert_eq!(node.pids(), pids);
}

#[test]
fn a_plugin_beyond_its_memory_is_killed_comes_back_and_says_so() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut node = Node::configured("[limits.'store/local']\nmemory = '64MiB'\ncpu = 800");
    let info = node.ask("get store/local");
    assert_eq!(info["unlimited"], "", "{info}");
    let limits = serde_json::json!({"memory": 64 << 20, "cpu": 800});
    assert_eq!(info["limits"], limits);
    assert!(node.ask("eat 20").as_u64().is_some());
    let front = node.pid("front/local");
    let _eating = node.say("eat 200");
    let info = until("it is killed", || {
        let info = node.ask("get store/local");
        (info["last_exit"] != "").then_some(info)
    });
    assert_eq!(info["last_exit"], "out of memory: limit 64.0 MiB");
    assert_eq!(node.pid("front/local"), front);
    let cgroups = cgroups(&node);
    assert!(!cgroups.is_empty());
    node.signal(TERM);
    assert!(node.stopped().success());
    assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
}

/// The cgroup folders of a node.
fn cgroups(node: &Node) -> Vec<PathBuf> {
    let name = node.folder.path().file_name().unwrap().to_str().unwrap();
    let name = name.trim_start_matches('.').to_owned();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if !path.is_dir() || path.is_symlink() {
                continue;
            }
            let is_ours = entry.file_name().to_string_lossy().contains(&name);
            match is_ours {
                true => found.push(path),
                false => open.push(path),
            }
        }
    }
    found
}

#[test]
fn what_dies_as_soon_as_it_is_ready_fails_alone_and_a_user_can_start_it() {
    let node = Node::configured("[restart]\nfailures = 3\nfirst_ms = 10");
    let (front, upset) = (node.pid("front/local"), node.pid("upset/local"));
    let mut last = 0;
    until("it has failed", || {
        let info = node.ask("get store/local");
        let pid = info["pid"].as_i64().unwrap() as i32;
        if info["state"] == "ready" && pid != last {
            last = pid;
            kill(pid, KILL);
        }
        (info["state"] == "failed").then_some(())
    });
    let error = node.try_ask("store").unwrap()["error"].clone();
    assert_eq!(
        (&error["code"], &error["plugin"]),
        (&"UNAVAILABLE".into(), &"store/local".into())
    );
    assert_eq!(
        (node.pid("front/local"), node.pid("upset/local")),
        (front, upset)
    );
    assert_eq!(node.ask("start store/local")["state"], "ready");
    assert!(node.ask("store").as_i64().is_some());
}

#[test]
fn plugins_answer_while_the_supervisor_is_stopped_and_it_blames_nobody_afterwards() {
    let node = Node::configured("[probe]\nevery_ms = 50\nlate_ms = 300\nkill_seconds = 1");
    let pids = node.pids();
    let begun = Instant::now();
    node.signal(STOP);
    // Longer than silence is allowed to be.
    until("many answers", || {
        assert!(node.ask("store").as_i64().is_some());
        (begun.elapsed() > Duration::from_secs(2)).then_some(())
    });
    node.signal(CONT);
    for _ in 0..50 {
        let store = node.ask("get store/local");
        assert_eq!(
            (&store["state"], &store["restarts"]),
            (&"ready".into(), &0.into())
        );
    }
    assert_eq!(node.pids(), pids);
}
