//! Plugins move to another build while the node works: no request fails, no container notices, and what does not run is
//! left again by itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::rc::Rc;
use std::time::Duration;

use integration::Outcome;
use integration::image::sample;
use integration::node::{Node, Setup, binary};
use integration::process::until;
use integration::registry::Registry;
use serde_json::{Value, json};

const COUNTING: &str = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
const SOON: Duration = Duration::from_secs(30);

async fn with_image(setup: Setup) -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start_with(setup).await?;
    node.pull(&name).await?;
    Ok((registry, node, name))
}

/// The same build at another path.
fn another(folder: &Path, name: &str) -> Outcome<PathBuf> {
    let path = folder.join(name);
    if fs::hard_link(binary()?, &path).is_err() {
        fs::copy(binary()?, &path)?;
    }
    Ok(path)
}

fn script(path: &Path, text: &str) -> Outcome {
    fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o755))?)
}

/// Two clients that do what users do, one request after the other, and remember what failed.
#[derive(Clone, Default)]
struct Load {
    stop: Rc<Cell<bool>>,
    done: Rc<Cell<usize>>,
    failed: Rc<RefCell<Vec<String>>>,
}

impl Load {
    fn note(&self, what: &str, answer: Outcome<Value>) {
        match answer {
            Ok(_) => self.done.set(self.done.get() + 1),
            Err(error) => self.failed.borrow_mut().push(format!("{what}: {error}")),
        }
    }

    async fn client(self, node: Rc<Node>, number: usize, image: String) {
        let mut round = 0;
        while !self.stop.get() {
            let id = format!("short-{number}-{round}");
            self.note("run", run(&node, &id, &image).await);
            for resource in ["/images", "/containers", "/tasks", "/content", "/leases"] {
                let listed = node.list(resource).await.map(Value::Array);
                self.note(resource, listed);
            }
            self.note("pull", node.pull(&image).await);
            self.note("remove", node.remove(&id).await.map(|()| Value::Null));
            round += 1;
        }
    }

    fn begin(node: &Rc<Node>, image: &str) -> (Self, Vec<tokio::task::JoinHandle<()>>) {
        let load = Self::default();
        let clients = (0..2).map(|number| {
            let client = load.clone().client(node.clone(), number, image.into());
            actix_rt::spawn(client)
        });
        let clients = clients.collect();
        (load, clients)
    }

    async fn end(self, clients: Vec<tokio::task::JoinHandle<()>>) -> Outcome {
        let done = self.done.get();
        let more = async || (self.done.get() > done + 8).then_some(());
        until("the clients go on", SOON, more).await?;
        self.stop.set(true);
        for client in clients {
            client.await?;
        }
        println!("{} requests, none failed", self.done.get());
        assert_eq!(*self.failed.borrow(), Vec::<String>::new());
        Ok(())
    }
}

/// Takes about as long to pull as an upgrade takes.
async fn large(registry: &Registry) -> Outcome<String> {
    let image = sample::layers(6, 24 << 20)?;
    registry.push(&image, "large", "1").await
}

async fn run(node: &Node, id: &str, image: &str) -> Outcome<Value> {
    let body = json!({"id": id, "image": image, "args": ["true"]});
    let path = node.at("/containers:run?wait=true");
    node.post(&path, body).await?.ok()
}

/// Runs the command as a user does.
async fn upgrade(node: &Node, binary: &Path, plugins: &[&str]) -> Outcome<Output> {
    let output = tokio::process::Command::new(integration::node::binary()?)
        .arg("upgrade")
        .arg("--host")
        .arg(node.state().join("gantry.sock"))
        .arg("--binary")
        .arg(binary)
        .args(plugins)
        .output();
    Ok(tokio::time::timeout(3 * SOON, output).await??)
}

async fn facts(node: &Node, of: &str) -> Outcome<BTreeMap<String, Value>> {
    let plugins = node.plugins().await?;
    let fact = |plugin: &Value| Some((plugin["id"].as_str()?.to_owned(), plugin[of].clone()));
    let mut facts: BTreeMap<_, _> = plugins.iter().filter_map(fact).collect();
    facts.remove("supervisor/local");
    Ok(facts)
}

async fn stop(node: Rc<Node>) -> Outcome {
    let node = Rc::try_unwrap(node).map_err(|_| "a client still holds the node")?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn all_plugins_move_to_another_build_under_load_and_no_request_fails() -> Outcome {
    let (registry, node, image) = with_image(Setup::default()).await?;
    let task = node
        .run("counting", &image, &["sh", "-c", COUNTING])
        .await?;
    let build = another(node.folder(), "another")?;
    let node = Rc::new(node);
    let mut events = node.events(0).await?;
    let waiting = node.clone();
    let waiting = actix_rt::spawn(async move { waiting.exit_code("counting").await });
    let pulling = (node.clone(), large(&registry).await?);
    let pulling = actix_rt::spawn(async move { pulling.0.pull(&pulling.1).await });
    let (load, clients) = Load::begin(&node, &image);

    let output = upgrade(&node, &build, &[]).await?;
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{output:?}");
    load.end(clients).await?;
    pulling.await??;

    let steps = node.get("/v1/upgrade").await?.ok()?;
    assert_eq!(
        (&steps["state"], &steps["cause"]),
        (&"done".into(), &"".into())
    );
    let programs = facts(&node, "program").await?;
    assert_eq!(programs.len(), 14);
    assert!(
        programs.values().all(|path| *path == json!(build)),
        "{programs:?}"
    );
    for pid in facts(&node, "pid").await?.into_values() {
        assert_eq!(fs::read_link(format!("/proc/{pid}/exe"))?, build);
    }
    let now = node.task("counting").await?;
    assert_eq!(
        (&now["pid"], &now["status"]),
        (&task["pid"], &"running".into())
    );
    let log = node.logs("counting").await?;
    let lines: Vec<usize> = log.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert!(
        lines.iter().copied().eq(0..lines.len()),
        "gaps in {lines:?}"
    );
    // A reader of events is cut off with the gateway it was connected to, and goes on behind the last it has seen.
    let mut last = 0;
    while let Some(record) = events.next(SOON).await? {
        last = record.id.parse().unwrap_or(last);
    }
    assert!(last > 0);
    node.events(last).await?;
    // Who waited all the time is answered by the process that was asked, also when its own peers go on changing.
    let killed = node.kill("tasks/local").await?;
    node.until_ready_after(killed).await?;
    node.remove("counting").await?;
    waiting.await??;
    stop(node).await
}

#[actix_rt::test]
async fn who_is_killed_meanwhile_for_another_reason_confuses_nobody() -> Outcome {
    let setup = Setup::default().arg("--manifest").arg("minimal");
    let node = Node::start_with(setup).await?;
    let build = another(node.folder(), "another")?;
    let body = json!({"binary": build, "plugins": []});
    let begun = node.post("/v1/upgrade", body).await?;
    assert_eq!(begun.status.as_u16(), 202);
    assert_eq!(begun.ok()?["state"], "running");
    let again = node.post("/v1/upgrade", json!({"binary": build})).await?;
    assert!(
        again.text().contains("an upgrade is under way"),
        "{}",
        again.text()
    );

    let mut killed = Vec::new();
    let over = async || {
        let upgrade = node.get("/v1/upgrade").await.ok()?.ok().ok()?;
        // Each of those that share a process, once while it is new and once while it is old, and the last but one.
        for (plugin, phase) in [
            ("images/local", "ready"),
            ("transfer/local", "waiting"),
            ("tasks/local", "starting"),
        ] {
            let steps = upgrade["steps"].as_array()?;
            let is_there = steps
                .iter()
                .any(|s| s["plugin"] == plugin && s["phase"] == phase);
            if is_there && !killed.contains(&plugin) && node.kill(plugin).await.is_ok() {
                killed.push(plugin);
            }
        }
        (upgrade["state"] != "running").then_some(upgrade)
    };
    let upgrade = until("the upgrade is over", SOON, over).await?;
    assert_eq!(
        (&upgrade["state"], killed.len()),
        (&"done".into(), 3),
        "{upgrade}"
    );
    let programs = facts(&node, "program").await?;
    assert!(
        programs.values().all(|path| *path == json!(build)),
        "{programs:?}"
    );
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_build_that_does_not_run_is_left_again_by_itself_and_no_request_fails() -> Outcome {
    // What hangs is given up after the patience of the node.
    let setup = Setup::default().config("[probe]\npatience_seconds = 3");
    let (_registry, node, image) = with_image(setup).await?;
    let (broken, hanging) = (node.folder().join("broken"), node.folder().join("hanging"));
    let real = binary()?.display().to_string();
    let falls = |does: &str| {
        format!("case \"$1 $2\" in 'plugin images/local') {does};; esac\nexec {real} \"$@\"")
    };
    script(&broken, &falls("exit 1"))?;
    script(&hanging, &falls("exec sleep 1000"))?;
    let before = facts(&node, "program").await?;
    let node = Rc::new(node);
    let (load, clients) = Load::begin(&node, &image);

    for (build, why) in [(&broken, "exit code 1"), (&hanging, "within 3 s")] {
        // The transfer plugin is not moved, and not restarted.
        let moved = ["images/local", "events/log", "leases/local"];
        let transfer = node.incarnation("transfer/local").await?;
        let output = upgrade(&node, build, &moved).await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{output:?}");
        assert!(said.contains("plugin images/local"), "{said}");
        let upgrade = node.get("/v1/upgrade").await?.ok()?;
        assert_eq!(upgrade["state"], "rolled_back");
        assert_eq!(facts(&node, "program").await?, before);
        assert_eq!(node.incarnation("transfer/local").await?, transfer);
    }
    load.end(clients).await?;
    let ready = async || {
        let states = facts(&node, "state").await.ok()?;
        states.values().all(|state| state == "ready").then_some(())
    };
    until("all are ready", SOON, ready).await?;
    stop(node).await
}

#[actix_rt::test]
async fn a_daemon_that_dies_in_an_upgrade_comes_back_on_its_own_build() -> Outcome {
    let mut node = Node::start().await?;
    let before = facts(&node, "program").await?;
    let build = another(node.folder(), "another")?;
    let begun = node.post("/v1/upgrade", json!({"binary": build})).await?;
    begun.ok()?;
    let moved = async || {
        let steps = node.get("/v1/upgrade").await.ok()?.ok().ok()?["steps"].clone();
        let ready = steps.as_array()?.iter().filter(|s| s["phase"] == "ready");
        (ready.count() > 1).then_some(())
    };
    until("two plugins have moved", SOON, moved).await?;
    node.kill_supervisor().await?;
    node.restart().await?;
    assert_eq!(facts(&node, "program").await?, before);
    assert_eq!(node.get("/v1/upgrade").await?.status.as_u16(), 404);
    node.stop_clean().await
}

#[actix_rt::test]
async fn what_is_no_build_of_gantry_is_refused_by_name_and_nothing_is_touched() -> Outcome {
    let node = Node::start().await?;
    let before = facts(&node, "pid").await?;
    let folder = node.folder().to_owned();
    let (silent, old, small) = (
        folder.join("silent"),
        folder.join("old"),
        folder.join("small"),
    );
    script(&silent, "exit 0")?;
    script(&old, r#"echo '{"version":"9","protocol":99,"plugins":[]}'"#)?;
    let protocol = node.get("/v1/version").await?.ok()?["protocol"].clone();
    let facts_of = format!(r#"echo '{{"version":"9","protocol":{protocol},"plugins":[]}}'"#);
    script(&small, &facts_of)?;
    for (binary, plugins, status, why) in [
        (folder.join("nowhere"), json!([]), 404, "nowhere: "),
        (folder.clone(), json!([]), 400, "is not an executable file"),
        (
            folder.join("config.toml"),
            json!([]),
            400,
            "is not an executable file",
        ),
        ("gantry".into(), json!([]), 400, "must be an absolute path"),
        (silent, json!([]), 400, "silent: is no build of gantry"),
        (old, json!([]), 400, "old: speaks protocol 99"),
        (small, json!([]), 400, "small: has no plugin "),
        (binary()?, json!(["images/remote"]), 404, "images/local"),
    ] {
        let body = json!({"binary": binary, "plugins": plugins});
        let answer = node.post("/v1/upgrade", body).await?;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
        assert!(answer.text().contains(why), "{}", answer.text());
    }
    assert_eq!(node.get("/v1/upgrade").await?.status.as_u16(), 404);
    assert_eq!(facts(&node, "pid").await?, before);
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_running_build_stays_what_it_is_when_its_file_is_replaced() -> Outcome {
    let home = tempfile::tempdir_in(integration::node::base())?;
    fs::set_permissions(home.path(), Permissions::from_mode(0o711))?;
    let program = another(home.path(), "gantry")?;
    let (_registry, node, image) = with_image(Setup::default().program(&program)).await?;
    // As a package manager or a compiler does it.
    let next = home.path().join("next");
    script(&next, "echo this is another build; exit 1")?;
    fs::rename(&next, &program)?;
    for plugin in ["images/local", "tasks/local", "gateway/http"] {
        let killed = node.kill(plugin).await?;
        node.until_ready_after(killed).await?;
        assert_eq!(node.plugin(plugin).await?["program"], json!(program));
    }
    // The shim too is of the build that runs.
    run(&node, "short", &image).await?;
    node.remove("short").await?;
    node.stop_clean().await
}
