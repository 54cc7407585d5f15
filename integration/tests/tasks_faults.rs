//! Death between any two steps: tasks, shims and the work on containers are killed at every fault point there is.
//!
//! The points are read from the source, so none is forgotten, and one that no story passes fails here. Whatever is
//! struck, the client's request ends; what it asked for was done, or not at all; and when the container is deleted, no
//! process, mount, cgroup, bundle, socket, snapshot, lease or record is left.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use integration::Outcome;
use integration::http::Response;
use integration::image::sample;
use integration::node::{Node, Setup};
use integration::process::until;
use integration::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const LASTING: [&str; 3] = ["sh", "-c", "echo here; read x < /dev/null; sleep 1000"];

/// All points below a place in the source whose names begin so.
fn points(place: &str, prefix: &str) -> Outcome<Vec<String>> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(place);
    let mut found = Vec::new();
    for file in sources(&top) {
        let text = fs::read_to_string(file)?;
        let names = text.split("faults::point(\"").skip(1);
        let names = names.filter_map(|rest| rest.split('"').next());
        found.extend(
            names
                .filter(|name| name.starts_with(prefix))
                .map(str::to_owned),
        );
    }
    found.sort();
    let count = found.len();
    found.dedup();
    assert_eq!(found.len(), count, "a name is used twice: {found:?}");
    assert!(!found.is_empty(), "no points in {place}");
    Ok(found)
}

fn sources(top: &Path) -> Vec<PathBuf> {
    if top.is_file() {
        return vec![top.to_owned()];
    }
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    entries.flat_map(|entry| sources(&entry.path())).collect()
}

struct Story {
    _registry: Registry,
    node: Node,
    image: String,
    armed: tempfile::TempDir,
}

impl Story {
    async fn begin() -> Outcome<Self> {
        let registry = Registry::start().await?;
        let image = registry
            .push(&sample::busybox()?.pack(), "busybox", "1")
            .await?;
        let armed = tempfile::tempdir()?;
        // Plugins run under uids of their own, and whoever strikes removes the file.
        fs::set_permissions(armed.path(), Permissions::from_mode(0o777))?;
        // So many deaths would count as flapping.
        let setup = Setup::default()
            .config("[restart]\nlongest_seconds = 1\nfailures = 1000")
            .env("GANTRY_FAULTS", &armed.path().display().to_string());
        let node = Node::start_with(setup).await?;
        node.pull(&image).await?;
        Ok(Self {
            _registry: registry,
            node,
            image,
            armed,
        })
    }

    fn arm(&self, point: &str) -> Outcome {
        Ok(fs::write(self.armed.path().join(point), "kill")?)
    }

    fn struck(&self, point: &str) -> bool {
        !self.armed.path().join(point).exists()
    }

    /// A request as a careful client makes it: with a key, and again when the connection broke.
    async fn ask(&self, method: Method, path: &str, body: Value, key: &str) -> Outcome<Response> {
        let client = self.node.client().clone();
        let client = client.with_header("idempotency-key", key)?;
        until("an answer", SOON, async || {
            client
                .send(method.clone(), &self.node.at(path), body.clone())
                .await
                .ok()
        })
        .await
    }

    async fn run(&self, id: &str, args: &[&str]) -> Outcome<Response> {
        let body = json!({"id": id, "image": self.image, "args": args});
        let path = "/containers:run?wait=started";
        self.ask(Method::POST, path, body, &format!("run-{id}"))
            .await
    }

    async fn remove(&self, id: &str) -> Outcome<Response> {
        let path = format!("/containers/{id}?force=true");
        let key = format!("remove-{id}");
        self.ask(Method::DELETE, &path, json!({}), &key).await
    }

    /// All that can be asked of a container that works; each request must succeed.
    async fn lives(&self, id: &str) -> Outcome {
        self.run(id, &LASTING).await?.ok()?;
        let task = |action: &str| format!("/tasks/{id}{action}");
        let post = async |action: &str, body: Value| {
            let key = format!("{id}-{}", action.len());
            let answer = self.ask(Method::POST, &task(action), body, &key).await?;
            let answer = answer.ok();
            answer.map_err(|error| integration::Error::from(format!("{action}: {error}")))
        };
        let exec = json!({"args": ["echo", "hi"]});
        let done = post(":exec?wait=true", exec).await?;
        assert_eq!(done["stdout"], "hi\n", "{done}");
        post(":pause", json!({})).await?;
        post(":resume", json!({})).await?;
        self.node.until_logged(id, "here\n").await?;
        post(":kill", json!({"signal": "KILL"})).await?;
        assert_eq!(self.node.exit_code(id).await?, 137);
        self.remove(id).await?.ok()?;
        Ok(())
    }

    /// A container that is deleted while it runs.
    async fn goes(&self, id: &str) -> Outcome {
        self.run(id, &LASTING).await?.ok()?;
        self.remove(id).await?.ok()?;
        Ok(())
    }

    /// A container whose program is not there: nothing of it is left by the answer.
    async fn fails(&self, id: &str) -> Outcome {
        let answer = self.run(id, &["nothing-here"]).await?;
        assert!(answer.status.is_client_error(), "{}", answer.text());
        Ok(())
    }

    /// A container whose shim is killed has ended, and says why.
    async fn dies(&self, id: &str) -> Outcome {
        self.run(id, &LASTING).await?.ok()?;
        kill(Pid::from_raw(self.shim(id)?), Signal::SIGKILL)?;
        assert_eq!(self.node.exit_code(id).await?, 137);
        let task = self.node.task(id).await?;
        assert_eq!(task["status"], "stopped", "{task}");
        self.remove(id).await?.ok()?;
        Ok(())
    }

    /// A container that is made, and its task by itself.
    async fn made(&self, id: &str) -> Outcome {
        let body = json!({"id": id, "image": self.image, "args": LASTING});
        let key = format!("create-{id}");
        self.ask(Method::POST, "/containers", body, &key)
            .await?
            .ok()?;
        self.remove(id).await?.ok()?;
        Ok(())
    }

    /// A container while tasks is started again, which takes it up.
    async fn taken_up(&self, id: &str) -> Outcome {
        self.run(id, &LASTING).await?.ok()?;
        let killed = self.node.kill("tasks/local").await?;
        self.node.until_ready_after(killed).await?;
        assert_eq!(self.node.task(id).await?["status"], "running");
        self.remove(id).await?.ok()?;
        Ok(())
    }

    /// A shim that dies takes its container with it: the request may fail, and then nothing is left of it.
    async fn survives_its_shim(&self, id: &str) -> Outcome {
        let lived = self.lives(id).await;
        if let Err(error) = lived {
            println!("  {error}");
            let there = self
                .node
                .get(&self.node.at(&format!("/containers/{id}")))
                .await?;
            if there.status.is_success() {
                until("its task has ended", SOON, async || {
                    let task = self.node.task(id).await.ok()?;
                    (task["status"] == "stopped").then_some(())
                })
                .await?;
                self.remove(id).await?.ok()?;
            }
        }
        Ok(())
    }

    fn shim(&self, id: &str) -> Outcome<i32> {
        let bundles = self.node.state().join("tasks/local/bundles");
        let bundle = bundles.join(self.node.namespace()).join(id);
        Ok(fs::read_to_string(bundle.join("shim.pid"))?
            .trim()
            .parse()?)
    }

    /// Strikes at each point once, in the story that passes it.
    async fn strike_all(self, points: &[String]) -> Outcome {
        for (number, point) in points.iter().enumerate() {
            let id = format!("c{number}");
            self.arm(point)?;
            let told = match point.split('.').take(2).collect::<Vec<_>>()[..] {
                ["tasks", "undo"] | ["operations", "undo"] => self.fails(&id).await,
                ["tasks", "clear" | "lost"] | ["shim", "cleanup"] => self.dies(&id).await,
                ["tasks", "recover"] => self.taken_up(&id).await,
                ["tasks", "delete" | "set-aside"] => self.goes(&id).await,
                ["operations", "create"] => self.made(&id).await,
                ["shim", _] => self.survives_its_shim(&id).await,
                _ => self.lives(&id).await,
            };
            let log = || {
                self.node
                    .log()
                    .lines()
                    .rev()
                    .take(40)
                    .collect::<Vec<_>>()
                    .join("\n")
            };
            told.map_err(|error| format!("{point}: {error}\n{}", log()))?;
            // What runs aside may come to the point a little later.
            until(&format!("{point} is struck"), SOON, async || {
                self.struck(point).then_some(())
            })
            .await?;
            let bare = self.node.until_bare().await;
            bare.map_err(|error| format!("{point}: {error}\n{}", log()))?;
            println!("{point}");
        }
        self.node.stop_clean().await
    }
}

#[actix_rt::test]
async fn tasks_dies_while_it_makes_a_container() -> Outcome {
    let points = points("services/tasks/src", "tasks.create")?;
    Story::begin().await?.strike_all(&points).await
}

#[actix_rt::test]
async fn tasks_dies_while_a_container_runs_and_goes() -> Outcome {
    let mut points = points("services/tasks/src", "tasks.")?;
    points.retain(|point| !point.starts_with("tasks.create"));
    Story::begin().await?.strike_all(&points).await
}

#[actix_rt::test]
async fn a_shim_dies_at_any_step() -> Outcome {
    let points = points("services/shim/src", "shim.")?;
    Story::begin().await?.strike_all(&points).await
}

#[actix_rt::test]
async fn the_work_on_containers_dies_at_any_step() -> Outcome {
    let mut points = points("services/operations/src/work/container.rs", "operations.")?;
    points.extend(self::points(
        "services/operations/src/work/remove.rs",
        "operations.",
    )?);
    Story::begin().await?.strike_all(&points).await
}
