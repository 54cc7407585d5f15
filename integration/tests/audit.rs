//! The auditor finds what belongs to no task and is this node's, cleans it, counts it, and touches nothing else.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use integration::Outcome;
use integration::image::sample;
use integration::node::{Node, Setup, binary};
use integration::process::until;
use integration::registry::Registry;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const LASTING: [&str; 3] = ["sh", "-c", "read x < /dev/null; sleep 1000"];

fn never_by_itself() -> Setup {
    Setup::default().config("[plugins.\"tasks/local\"]\naudit_seconds = 0")
}

fn tasks(node: &Node) -> PathBuf {
    node.state().join("tasks/local")
}

/// A shim of this node that no task has: started by hand with what tasks would give it.
fn stray_shim(node: &Node, id: &str) -> Outcome<i32> {
    let state = tasks(node);
    let bundle = node.folder().join(format!("stray-{id}"));
    fs::create_dir_all(&bundle)?;
    let made = Command::new(binary()?)
        .args(["shim", "-namespace", node.namespace(), "-id", id])
        .arg("-address")
        .arg(state.join("events.sock"))
        .arg("-socket")
        .arg(state.join("sockets").join(id))
        .arg("-bundle")
        .arg(&bundle)
        .arg("start")
        .stdin(Stdio::null())
        .output()?;
    assert!(made.status.success(), "{made:?}");
    Ok(fs::read_to_string(bundle.join("shim.pid"))?
        .trim()
        .parse()?)
}

fn alive(pid: i32) -> bool {
    integration::process::all().contains(&pid)
}

/// Looks until nothing is found any more, and answers the last look.
async fn audited(node: &Node) -> Outcome<Value> {
    until("the auditor finds nothing", SOON, async || {
        let looked = node.post("/v1/audit", ()).await.ok()?.ok().ok()?;
        let none = looked["leaks"].as_array()?.is_empty();
        none.then_some(looked)
    })
    .await
}

#[actix_rt::test]
async fn everything_that_belongs_to_no_task_goes_and_is_counted() -> Outcome {
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start_with(never_by_itself()).await?;
    node.pull(&image).await?;
    let kept = node.run("kept", &image, &LASTING).await?;
    let looked = node.post("/v1/audit", ()).await?.ok()?;
    assert_eq!(looked["leaks"], json!([]), "{looked}");
    assert_eq!((&looked["shims"], &looked["tasks"]), (&json!(1), &json!(1)));

    let state = tasks(&node);
    let stray = stray_shim(&node, "stray")?;
    let bundle = state.join("bundles").join(node.namespace()).join("left");
    fs::create_dir_all(bundle.join("rootfs"))?;
    let none: Option<&str> = None;
    mount(
        Some("none"),
        &bundle.join("rootfs"),
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )?;
    fs::create_dir_all(state.join("gone/0123"))?;
    let dead = UnixListener::bind(state.join("sockets/dead"))?;
    drop(dead);

    let looked = node.post("/v1/audit", ()).await?.ok()?;
    let mut kinds: Vec<_> = looked["leaks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|leak| leak["kind"].as_str().unwrap_or_default().to_owned())
        .collect();
    kinds.sort();
    let wanted = ["bundle", "bundle", "mount", "shim", "socket", "socket"];
    assert_eq!(kinds, wanted, "{looked}");
    assert!(alive(stray), "one look proves nothing");

    let looked = audited(&node).await?;
    assert!(!alive(stray));
    assert_eq!(looked["cleaned"]["shim"], 1, "{looked}");
    let metrics = node.get("/metrics").await?.text();
    assert!(
        metrics.contains("gantry_tasks_leaks_total{kind=\"shim\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("gantry_tasks_leaks 0"), "{metrics}");
    let told = node
        .get("/v1/events?filter=topic==%22/tasks/leak%22")
        .await?
        .text();
    assert!(told.contains("stray"), "{told}");
    assert_eq!(node.task("kept").await?["pid"], kept["pid"]);
    assert_eq!(node.exec("kept", &["echo", "well"]).await?.1, "well\n");
    node.remove("kept").await?;
    node.until_bare().await?;
    node.stop_clean().await
}

/// A process whose arguments are those of a shim of this node, and which is none.
fn decoy(node: &Node) -> Outcome<Child> {
    let state = tasks(node);
    let child = Command::new("/bin/sh")
        .args([
            "-c",
            "read x",
            "sh",
            "-namespace",
            node.namespace(),
            "-id",
            "x",
        ])
        .arg("-address")
        .arg(state.join("events.sock"))
        .arg("-socket")
        .arg(state.join("sockets/x"))
        .stdin(Stdio::piped())
        .spawn()?;
    Ok(child)
}

#[actix_rt::test]
async fn another_node_and_whoever_only_looks_alike_are_left_alone() -> Outcome {
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let one = Node::start_with(never_by_itself()).await?;
    let other = Node::start_with(never_by_itself()).await?;
    for node in [&one, &other] {
        node.pull(&image).await?;
    }
    let theirs = other.run("theirs", &image, &LASTING).await?;
    let mut decoy = decoy(&one)?;
    let stray = stray_shim(&one, "stray")?;
    until("the stray shim is cleaned", SOON, async || {
        one.post("/v1/audit", ()).await.ok()?;
        (!alive(stray)).then_some(())
    })
    .await?;
    assert!(decoy.try_wait()?.is_none(), "the decoy was killed");
    assert_eq!(other.task("theirs").await?["pid"], theirs["pid"]);
    assert_eq!(other.exec("theirs", &["echo", "well"]).await?.1, "well\n");
    if let Some(mut stdin) = decoy.stdin.take() {
        let _ = stdin.write_all(b"\n");
    }
    decoy.wait()?;
    other.remove("theirs").await?;
    one.stop_clean().await?;
    other.stop_clean().await
}

#[actix_rt::test]
async fn a_machine_that_was_started_anew_says_so_and_keeps_what_is_on_disk() -> Outcome {
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let mut node = Node::start().await?;
    node.pull(&image).await?;
    let script = "echo words; echo kept > /file; read x < /dev/null; sleep 1000";
    let task = node.run("one", &image, &["sh", "-c", script]).await?;
    node.until_logged("one", "words\n").await?;

    // As a machine that loses power: everything ends at once, and what is in memory is gone.
    node.kill_supervisor().await?;
    until("the plugins are gone", SOON, async || {
        let shims = integration::process::all().into_iter();
        let plugins = shims.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains("plugin tasks/local") && folder_of(*pid, &node)
        });
        (plugins.count() == 0).then_some(())
    })
    .await?;
    let bundle = tasks(&node)
        .join("bundles")
        .join(node.namespace())
        .join("one");
    let shim: i32 = fs::read_to_string(bundle.join("shim.pid"))?
        .trim()
        .parse()?;
    for pid in [i64::from(shim), task["pid"].as_i64().unwrap_or_default()] {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    }
    fs::remove_dir_all(node.state())?;
    fs::write(node.root().join("tasks/local/boot"), "another\n")?;
    node.restart().await?;

    let now = until("it is known to have ended", SOON, async || {
        let now = node.task("one").await.ok()?;
        (now["status"] == "stopped").then_some(now)
    })
    .await?;
    let reason = now["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("started anew"), "{now}");
    assert_eq!(node.logs("one").await?, "words\n");
    node.delete(&node.at("/tasks/one")).await?.ok()?;
    let again = json!({"id": "one"});
    node.post(&node.at("/tasks"), again).await?.ok()?;
    node.remove("one").await?;
    node.until_bare().await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn the_logs_of_a_container_go_when_it_does() -> Outcome {
    let registry = Registry::start().await?;
    let image = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    node.pull(&image).await?;
    let logs = node.root().join("tasks/local/logs").join(node.namespace());
    for id in ["one", "two", "three"] {
        node.run(id, &image, &["echo", "words"]).await?;
        assert_eq!(node.exit_code(id).await?, 0);
    }
    let gone = async |id: &str| {
        let folder = logs.join(id);
        until(&format!("the logs of {id} are gone"), SOON, async || {
            (!folder.exists()).then_some(())
        })
        .await
    };
    node.remove("one").await?;
    gone("one").await?;
    let killed = node.kill("events/log").await?;
    node.until_ready_after(killed).await?;
    node.remove("two").await?;
    gone("two").await?;
    assert!(logs.join("three").exists());
    node.remove("three").await?;
    gone("three").await?;
    node.stop_clean().await
}

/// Whether a process has a file of this node open.
fn folder_of(pid: i32, node: &Node) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    let mut links = open.into_iter().flatten().flatten();
    links.any(|link| fs::read_link(link.path()).is_ok_and(|path| path.starts_with(node.folder())))
}
