//! A shim that is stuck says so of its own task, and costs nobody else anything.
//!
//! Shown by order, not by clocks: calls about the others are answered while calls about the stuck ones still wait.

use std::fs;
use std::time::Duration;

use integration::Outcome;
use integration::image::sample;
use integration::node::Node;
use integration::process::until;
use integration::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const LASTING: [&str; 3] = ["sh", "-c", "echo here; read x < /dev/null; sleep 1000"];
/// Containers of the story with many: half of them get stuck.
const MANY: usize = 12;

async fn with_containers(count: usize) -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    node.pull(&image).await?;
    for number in 0..count {
        node.run(&format!("c{number}"), &image, &LASTING).await?;
    }
    Ok((registry, node, image))
}

fn shim(node: &Node, id: &str) -> Outcome<Pid> {
    let bundles = node.state().join("tasks/local/bundles");
    let bundle = bundles.join(node.namespace()).join(id);
    let pid = fs::read_to_string(bundle.join("shim.pid"))?
        .trim()
        .parse()?;
    Ok(Pid::from_raw(pid))
}

/// Stops a shim, and waits until it is: a signal is delivered when its process is next given a turn.
async fn stop(node: &Node, id: &str) -> Outcome {
    let pid = shim(node, id)?;
    kill(pid, Signal::SIGSTOP)?;
    until(&format!("the shim of {id} is stopped"), SOON, async || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let state = stat.rsplit_once(')')?.1.trim_start().to_owned();
        state.starts_with('T').then_some(())
    })
    .await
}

async fn until_status(node: &Node, id: &str, status: &str) -> Outcome<Value> {
    until(&format!("{id} is {status}"), SOON, async || {
        let task = node.task(id).await.ok()?;
        (task["status"] == status).then_some(task)
    })
    .await
}

fn status(rows: &[Value], id: &str) -> Value {
    let row = rows.iter().find(|row| row["id"] == id);
    row.map_or(Value::Null, |row| row["status"].clone())
}

/// Whether calls about the others are answered while those about a stuck shim still wait, for it to be found so.
async fn others_come_first(node: &Node, stuck: usize) -> Outcome<bool> {
    let metrics = |number: usize| node.at(&format!("/tasks/c{number}/metrics"));
    let (theirs, last) = (metrics(0), MANY - 1);
    let waiting = futures_util::future::join_all((0..4).map(|_| node.get(&theirs)));
    let others = async {
        let rows = node.list("/tasks").await?;
        assert_eq!(rows.len(), MANY);
        for number in 0..MANY {
            let wanted = if number < stuck { "unknown" } else { "running" };
            assert_eq!(status(&rows, &format!("c{number}")), wanted, "{number}");
        }
        assert_eq!(node.task(&format!("c{last}")).await?["status"], "running");
        node.get(&metrics(last)).await?.ok()
    };
    match futures_util::future::select(Box::pin(others), Box::pin(waiting)).await {
        futures_util::future::Either::Left((done, waiting)) => {
            done?;
            waiting.await;
            Ok(true)
        }
        futures_util::future::Either::Right((_, others)) => others.await.map(|_| false),
    }
}

#[actix_rt::test]
async fn stuck_shims_delay_nobody_and_say_what_they_are() -> Outcome {
    let (_registry, node, image) = with_containers(MANY).await?;
    let name = |number: usize| format!("c{number}");
    for stuck in [1, MANY / 2] {
        for number in 0..stuck {
            node.until_logged(&name(number), "here\n").await?;
            stop(&node, &name(number)).await?;
        }
        // On a machine that also compiles, once says nothing; three times do.
        let mut first = false;
        for _ in 0..3 {
            first = first || others_come_first(&node, stuck).await?;
        }
        assert!(first, "the others waited for the stuck ones");
        let last = name(MANY - 1);
        assert_eq!(node.exec(&last, &["echo", "well"]).await?.1, "well\n");
        node.run("new", &image, &LASTING).await?;
        let kill = json!({"signal": "KILL"});
        node.post(&node.at("/tasks/new:kill"), kill).await?.ok()?;
        assert_eq!(node.exit_code("new").await?, 137);
        node.remove("new").await?;

        let task = node.task("c0").await?;
        assert_eq!(task["status"], "unknown", "{task}");
        let reason = task["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("is stopped"), "{task}");
        assert_eq!(node.logs("c0").await?, "here\n");
        for number in 0..stuck {
            self::kill(shim(&node, &name(number))?, Signal::SIGCONT)?;
        }
        for number in 0..stuck {
            until_status(&node, &name(number), "running").await?;
        }
        assert_eq!(node.exec("c0", &["echo", "back"]).await?.1, "back\n");
    }
    for number in 0..MANY {
        node.remove(&name(number)).await?;
    }
    node.until_bare().await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn what_a_stuck_shim_has_can_be_killed_and_deleted_for_good() -> Outcome {
    let (_registry, node, _) = with_containers(3).await?;
    for id in ["c0", "c1", "c2"] {
        stop(&node, id).await?;
    }
    let pid = node.task("c0").await?["pid"].clone();
    let signal = json!({"signal": "KILL"});
    node.post(&node.at("/tasks/c0:kill"), signal).await?.ok()?;
    let task = until_status(&node, "c0", "stopped").await?;
    assert_eq!(task["exit_code"], 137, "{task}");
    let reason = task["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("did not answer"), "{task}");
    assert!(fs::metadata(format!("/proc/{pid}/root/bin")).is_err());
    node.remove("c0").await?;
    let force = node.at("/tasks/c1?force=true");
    node.delete(&force).await?.ok()?;
    node.remove("c1").await?;
    node.remove("c2").await?;
    node.until_bare().await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_container_that_is_stopped_is_no_stuck_shim() -> Outcome {
    let (_registry, node, _) = with_containers(1).await?;
    let pid = node.task("c0").await?["pid"].as_i64().unwrap_or_default();
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGSTOP)?;
    assert_eq!(node.task("c0").await?["status"], "running");
    assert_eq!(node.exec("c0", &["echo", "well"]).await?.1, "well\n");
    node.remove("c0").await?;
    node.until_bare().await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_start_that_waits_for_a_stopped_shim_can_be_given_up() -> Outcome {
    let (_registry, node, image) = with_containers(0).await?;
    let body = json!({"id": "one", "image": image, "args": LASTING});
    node.post(&node.at("/containers"), body).await?.ok()?;
    node.post(&node.at("/tasks"), json!({"id": "one"}))
        .await?
        .ok()?;
    stop(&node, "one").await?;
    let start = node.post(&node.at("/tasks/one:start"), ()).await?;
    assert!(!start.status.is_success(), "{}", start.text());
    assert!(start.text().contains("is stopped"), "{}", start.text());
    node.remove("one").await?;
    node.until_bare().await?;
    node.stop_clean().await
}

/// A shim of another make, which accepts every connection and answers nothing that anybody could read.
const GARBLER: &str = r#"#!/usr/bin/python3
import os, socket, sys, threading
if sys.argv[-1] != "start":
    sys.exit(0)
path = os.path.join(os.getcwd(), "garbler.sock")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(64)
if os.fork() == 0:
    os.setsid()
    for fd in (0, 1, 2):
        os.dup2(os.open("/dev/null", os.O_RDWR), fd)
    listener.settimeout(60)
    def answer(peer):
        try:
            while peer.recv(4096):
                peer.sendall(b"\xff" * 64)
        except OSError:
            pass
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            os._exit(0)
        threading.Thread(target=answer, args=(peer,), daemon=True).start()
sys.stdout.write("unix://" + path)
"#;

#[actix_rt::test]
async fn a_shim_that_talks_nonsense_fails_its_own_container_alone() -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let (_registry, node, image) = with_containers(1).await?;
    let program = node.folder().join("containerd-shim-garbler-v1");
    fs::write(&program, GARBLER)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let body = json!({"id": "bad", "image": image, "args": LASTING, "runtime": program});
    let answer = node
        .post(&node.at("/containers:run?wait=started"), body)
        .await?;
    assert!(!answer.status.is_success(), "{}", answer.text());
    assert_eq!(node.exec("c0", &["echo", "well"]).await?.1, "well\n");
    node.remove("c0").await?;
    node.until_bare().await?;
    node.stop_clean().await
}
