//! A program in another language is a plugin like any other: it is asked over HTTP, calls others, is supervised, dies
//! and comes back, and nobody else notices.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyper::Method;
use integration::Outcome;
use integration::http::{Body, Response};
use integration::image::{sample, sha256};
use integration::node::{Incarnation, Node, Setup, base, binary};
use integration::process::{run, tree, until};
use integration::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);
const GREETER: &str = "greeter/python";

/// Speaks as much of the protocol as its first argument says.
const SHELL: &str = r#"
read -r start; echo '{"ready": true}'
while read -r line; do
  case $line in
    *'"ping"'*) echo "$line" | sed s/ping/pong/ ;;
    *'"stop"'*) exit 0 ;;
    *) id=$(echo "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
       case $line in
         *garbage*) echo 'Hello, world' ;;
         *bye*) echo 'no more bread' >&2; exit 3 ;;
         *deaf*) exec >&- ;;
         *) echo "{\"id\": $id, \"answer\": \"fine\"}" ;;
       esac ;;
  esac
done
"#;

/// A driver that never has a snapshot.
const DRIVER: &str = r#"
import json, sys
answers = {"snapshots.driver": {"name": "empty", "rebase": False},
           "snapshots.list": {"items": [], "next": "", "version": 0},
           "snapshots.stat": {"key": "no such shape"},
           "collect.begin": None, "collect.mark": None, "collect.references": [], "collect.tally": [],
           "collect.roots": {"items": [], "next": ""},
           "collect.sweep": {"removed": [], "late": [], "done": True, "next": ""}}
for line in map(json.loads, sys.stdin):
    if "start" in line: line = {"ready": True}
    elif "ping" in line: line = {"pong": line["ping"]}
    elif "stop" in line: break
    elif "cancel" in line: continue
    elif line["call"] in answers: line = {"id": line["id"], "answer": answers[line["call"]]}
    else: line = {"id": line["id"], "error": {"code": "NOT_FOUND", "message": line["call"] + ": this driver is empty"}}
    print(json.dumps(line), flush=True)
"#;

/// Keeps blobs that it is told to, for as long as it lives.
const KEEPER: &str = r#"
import json, sys
kept = {}
def node(digest): return {"namespace": kept[digest], "resource": {"content": digest}}
def answer(call, request, namespace):
    if call == "keeper.keep": kept[request["digest"]] = namespace
    if call == "keeper.forget": kept.pop(request["digest"])
    if call == "collect.roots":
        edges = [{"from": node(d), "to": node(d), "reason": "kept by keeper", "flat": False} for d in kept]
        return {"items": edges, "next": ""}
    if call == "collect.sweep": return {"removed": [], "late": [], "done": True, "next": ""}
    if call in ("collect.references", "collect.tally"): return []
for line in map(json.loads, sys.stdin):
    if "start" in line: line = {"ready": True}
    elif "ping" in line: line = {"pong": line["ping"]}
    elif "stop" in line: break
    elif "cancel" in line: continue
    else: line = {"id": line["id"], "answer": answer(line["call"], line["request"], line["namespace"])}
    print(json.dumps(line), flush=True)
"#;

/// Answers every call but one, of which it dies.
const POISONED: &str = r#"
import json, sys
for line in map(json.loads, sys.stdin):
    if "start" in line: line = {"ready": True}
    elif "ping" in line: line = {"pong": line["ping"]}
    elif "stop" in line: break
    elif "cancel" in line: continue
    elif line["call"] == "cook.poison": sys.exit("this mushroom is not for eating")
    else: line = {"id": line["id"], "answer": "fine"}
    print(json.dumps(line), flush=True)
"#;

/// A node whose manifest names programs, and the folder in which they and it are.
struct Foreign {
    node: Node,
    folder: TempDir,
}

/// Makes a folder that every plugin may enter.
fn folder() -> Outcome<TempDir> {
    let folder = tempfile::Builder::new().prefix("f-").tempdir_in(base())?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    Ok(folder)
}

fn program(path: &Path, text: &str) -> Outcome<PathBuf> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(path.to_owned())
}

/// The default manifest, and `more`.
fn manifest(folder: &Path, more: &str) -> Outcome<Setup> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let default = fs::read_to_string(here.join("../compose/manifests/default.toml"))?;
    let path = folder.join("manifest.toml");
    fs::write(&path, format!("{default}\n{more}"))?;
    Ok(Setup::default()
        .arg("--manifest")
        .arg(&path.to_string_lossy()))
}

impl Foreign {
    async fn start(id: &str, interpreter: &str, text: &str, more: &str) -> Outcome<Self> {
        let folder = folder()?;
        let path = program(&folder.path().join("program"), text)?;
        let more = format!("[[exec]]\nid = '{id}'\ncommand = ['{interpreter}', {path:?}]\n{more}");
        let setup = manifest(folder.path(), &more)?;
        Ok(Self {
            node: Node::start_with(setup).await?,
            folder,
        })
    }

    /// A node with the sample as its documentation says.
    async fn greeter(config: &str) -> Outcome<Self> {
        let folder = folder()?;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(here.join("samples/greeter.py"))?;
        assert!(text.lines().count() < 120, "a sample is read in one go");
        let path = program(&folder.path().join("greeter.py"), &text)?;
        let more = format!(
            "[[exec]]\nid = '{GREETER}'\ncommand = [{path:?}]\nrequires = ['images', 'events']\n[exec.settings]\ngreeting = 'hello'"
        );
        let setup = manifest(folder.path(), &more)?.config(config);
        Ok(Self {
            node: Node::start_with(setup).await?,
            folder,
        })
    }

    async fn call(&self, method: &str, request: Value) -> Outcome<Response> {
        let path = format!("/v1/call/{method}?namespace={}", self.node.namespace());
        self.node.post(&path, request).await
    }

    async fn hello(&self, name: &str) -> Outcome<Value> {
        self.call("greeter.hello", json!({"name": name}))
            .await?
            .ok()
    }

    /// The process of the program itself.
    async fn pid(&self, id: &str) -> Outcome<i32> {
        let host = self.node.incarnation(id).await?.pid;
        let programs = tree(host).into_iter().nth(1);
        programs.ok_or_else(|| format!("{id} has no program").into())
    }

    /// Waits for a plugin to stand in a way.
    async fn until(&self, id: &str, what: &str, is: impl Fn(&Value) -> bool) -> Outcome<Value> {
        let what = format!("{id} {what}");
        let found = until(&what, SOON, async || {
            self.node.plugin(id).await.ok().filter(|plugin| is(plugin))
        });
        match found.await {
            Ok(plugin) => Ok(plugin),
            Err(error) => Err(format!("{error}: {}", self.node.plugin(id).await?).into()),
        }
    }
}

fn signal(pid: i32, signal: Signal) -> Outcome {
    Ok(kill(Pid::from_raw(pid), signal)?)
}

#[actix_rt::test]
async fn the_sample_answers_calls_others_and_has_settings_of_its_own() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let foreign = Foreign::greeter("[plugins.'greeter/python']\ngreeting = 'ahoj'").await?;
    let node = &foreign.node;
    assert_eq!(
        foreign.hello("you").await?,
        json!({"text": "ahoj, you", "count": 1})
    );
    assert_eq!(foreign.hello("you").await?["count"], 2);
    let images = foreign.call("greeter.images", json!({})).await?.ok()?;
    assert_eq!(images["names"], json!([]));
    node.pull(&name).await?;
    let images = foreign.call("greeter.images", json!({})).await?.ok()?;
    assert_eq!(images["names"], json!([name]));

    let mut events = node.events(0).await?;
    let seen = events
        .find(SOON, |record| record.event == "/greeter/hello")
        .await?;
    assert!(seen.data.to_string().contains("you"), "{:?}", seen.data);

    for (method, request, status, words) in [
        (
            "greeter.hello",
            json!({}),
            400,
            "greeter.hello needs a name",
        ),
        ("greeter.hello", json!([]), 500, "AttributeError"),
        ("greeter.paint", json!({}), 501, "there is greeter.hello"),
        ("greetr.hello", json!({}), 404, "greeter"),
    ] {
        let answer = foreign.call(method, request).await?;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method}: {}",
            answer.text()
        );
        assert!(answer.text().contains(words), "{}", answer.text());
    }
    let socket = node.state().join("gantry.sock");
    let mut client = Command::new(binary()?);
    client
        .args(["call", "greeter.hello", "{\"name\": \"cli\"}", "--host"])
        .arg(socket);
    assert!(String::from_utf8_lossy(&run(&mut client)?).contains("ahoj, cli"));
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn a_program_is_shown_and_limited_as_any_plugin() -> Outcome {
    let foreign = Foreign::greeter("").await?;
    let node = &foreign.node;
    let plugin = node.plugin(GREETER).await?;
    assert!(
        plugin["program"]
            .as_str()
            .is_some_and(|path| path.ends_with("/greeter.py")),
        "{plugin}"
    );
    assert_eq!(plugin["requires"], json!(["events/log", "images/local"]));
    assert_eq!(plugin["required_by"], json!(["gateway/http"]));
    let pid = foreign.pid(GREETER).await?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        value.unwrap_or_default().to_owned()
    };
    let uid = plugin["uid"].to_string();
    assert_ne!(uid, "0");
    assert_eq!(field("Uid"), [uid.as_str(); 4].join("\t"));
    for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0".repeat(16), "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    let root = node.root().join(GREETER);
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd"))?,
        root.canonicalize()?
    );
    assert_eq!(fs::metadata(&root)?.permissions().mode() & 0o777, 0o700);
    let others: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect();
    assert_eq!(
        others,
        Vec::<PathBuf>::new(),
        "it was left a socket of its host"
    );
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn a_killed_program_or_host_is_replaced_and_no_call_is_lost_or_doubled() -> Outcome {
    const CLIENTS: usize = 4;
    const CALLS: usize = 25;
    let foreign = Foreign::greeter("").await?;
    let client = |number: usize| {
        let (node, foreign) = (&foreign.node, &foreign);
        async move {
            let mut counts = Vec::new();
            for call in 0..CALLS {
                let key = format!("{number}-{call}");
                let client = node.client().clone().with_header("idempotency-key", &key)?;
                let path = format!(
                    "/v1/call/greeter.hello?namespace={}",
                    foreign.node.namespace()
                );
                let answer = client
                    .send(Method::POST, &path, json!({"name": "you"}))
                    .await?;
                counts.push(answer.ok()?["count"].as_u64().unwrap_or_default());
            }
            Ok(counts)
        }
    };
    let killer = async {
        for round in 0..6 {
            let life = foreign.node.incarnation(GREETER).await?;
            let victim = match round % 2 {
                0 => foreign.pid(GREETER).await?,
                _ => life.pid,
            };
            signal(victim, Signal::SIGKILL)?;
            foreign.node.until_ready_after(life).await?;
        }
        Ok(Vec::new())
    };
    let clients = futures_util::future::join_all((0..CLIENTS).map(client));
    let (killed, answered) = futures_util::join!(killer, clients);
    let killed: Outcome<Vec<u64>> = killed;
    killed?;
    let mut counts = BTreeSet::new();
    for answers in answered {
        let answers: Outcome<Vec<u64>> = answers;
        counts.extend(answers?);
    }
    let all = (CLIENTS * CALLS) as u64;
    assert_eq!(
        counts.into_iter().collect::<Vec<_>>(),
        (1..=all).collect::<Vec<_>>()
    );
    assert_eq!(foreign.hello("you").await?["count"], all + 1);
    let events = foreign.node.get("/v1/events?limit=1000").await?.text();
    assert_eq!(events.matches("/greeter/hello").count() as u64, all + 1);
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn what_a_program_does_wrong_is_its_cause_and_nobody_elses() -> Outcome {
    let foreign = Foreign::start("shell/sh", "/bin/sh", SHELL, "").await?;
    let fine = foreign.call("shell.any", json!({})).await?.ok()?;
    assert_eq!(fine, "fine");
    for (method, cause) in [
        (
            "shell.garbage",
            "its stdout is for JSON lines of the protocol",
        ),
        (
            "shell.bye",
            "its program ended with exit code 3; last it logged \"no more bread\"",
        ),
        ("shell.deaf", "its program closed its stdout"),
    ] {
        let before = foreign.node.incarnation("shell/sh").await?;
        // Every life of it dies of this call, until nobody waits any more.
        let path = format!("/v1/call/{method}?timeout=300ms");
        let refused = foreign.node.post(&path, json!({})).await?;
        assert!(refused.status.is_server_error(), "{}", refused.text());
        foreign.node.until_ready_after(before).await?;
        let log = foreign.node.log();
        assert!(log.contains(cause), "{method}: {log}");
        let plugin = foreign.node.plugin("shell/sh").await?;
        let last = plugin["last_exit"].as_str().unwrap_or_default();
        assert!(last.contains(cause), "{plugin}");
        assert_eq!(foreign.call("shell.any", json!({})).await?.ok()?, "fine");
    }
    let plugins = foreign.node.plugins().await?;
    let others = plugins.iter().filter(|plugin| plugin["id"] != "shell/sh");
    for plugin in others {
        assert_eq!(plugin["restarts"], 0, "{plugin}");
    }
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn a_request_that_kills_its_plugin_each_time_is_refused_and_nobody_else_notices() -> Outcome {
    const COOK: &str = "cook/python";
    const CLIENTS: usize = 4;
    let foreign = Foreign::start(COOK, "/usr/bin/python3", POISONED, "").await?;
    let done = Cell::new(false);
    let hello = async || -> Outcome<usize> {
        let mut answered = 0;
        while !done.get() {
            let answer = foreign.call("cook.hello", json!({})).await?.ok()?;
            assert_eq!(answer, "fine");
            answered += 1;
        }
        Ok(answered)
    };
    let poison = async || -> Outcome {
        let refused = foreign.call("cook.poison", json!({})).await;
        done.set(true);
        let refused = refused?;
        assert_eq!(refused.status.as_u16(), 500, "{}", refused.text());
        for part in [
            "cook.poison: plugin cook/python crashed 4 times in a row",
            "its program ended with exit code 1",
            "this mushroom is not for eating",
            "GET /v1/plugins/cook/python",
        ] {
            assert!(refused.text().contains(part), "{}", refused.text());
        }
        Ok(())
    };
    let clients = futures_util::future::join_all((0..CLIENTS).map(|_| hello()));
    let (poisoned, answered) = futures_util::join!(poison(), clients);
    poisoned?;
    for answered in answered {
        println!("a client was answered {} times", answered?);
    }
    let is_ready = |plugin: &Value| plugin["state"] == "ready";
    let plugin = foreign.until(COOK, "is ready again", is_ready).await?;
    assert_eq!(plugin["restarts"], 4, "{plugin}");
    assert_eq!(foreign.call("cook.hello", json!({})).await?.ok()?, "fine");
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn a_stopped_program_is_shown_as_stuck_and_replaced() -> Outcome {
    let probe = "[probe]\nevery_ms = 100\nlate_ms = 300\nkill_seconds = 2";
    let foreign = Foreign::greeter(probe).await?;
    assert_eq!(foreign.hello("you").await?["count"], 1);
    let life = foreign.node.incarnation(GREETER).await?;
    signal(foreign.pid(GREETER).await?, Signal::SIGSTOP)?;
    let asked = foreign.hello("you");
    let watched = async {
        let is_late = |plugin: &Value| plugin["state"] == "degraded";
        let stuck = foreign.until(GREETER, "is degraded", is_late).await?;
        assert!(
            stuck["cause"]
                .as_str()
                .is_some_and(|cause| !cause.is_empty()),
            "{stuck}"
        );
        let of_edge = foreign.node.plugin("gateway/http").await?;
        assert_eq!(
            of_edge["chain"],
            json!(["gateway/http", GREETER]),
            "{of_edge}"
        );
        foreign.node.until_ready_after(life).await
    };
    let (answered, watched) = futures_util::join!(asked, watched);
    let next: Incarnation = watched?;
    // The call that was waiting in the pipe of a stopped program is answered by the next.
    assert_eq!(answered?["count"], 2);
    assert_eq!(next.restarts, 1);
    let last = foreign.node.plugin(GREETER).await?;
    assert!(
        !last["last_exit"].as_str().unwrap_or_default().is_empty(),
        "{last}"
    );
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn a_program_that_does_not_start_is_shown_and_keeps_nobody_from_working() -> Outcome {
    let folder = folder()?;
    let more =
        "[[exec]]\nid = 'broken/sh'\ncommand = ['/bin/sh', '-c', 'echo out of order >&2; exit 7']";
    let node = Node::spawn(manifest(folder.path(), more)?)?;
    let seen = until("its failure is shown", SOON, async || {
        let plugin = node.plugin("broken/sh").await.ok()?;
        (plugin["state"] == "failed").then_some(plugin)
    });
    let seen = seen.await?;
    let cause = seen["cause"].as_str().unwrap_or_default();
    let expected =
        "it does not start: its program ended with exit code 7; last it logged \"out of order\"";
    assert!(cause.contains(expected), "{seen}");
    let refused = node.post("/v1/call/broken.any", json!({})).await?;
    assert_eq!(refused.status.as_u16(), 503);
    assert!(
        refused.text().contains("out of order"),
        "{}",
        refused.text()
    );
    node.get(&node.at("/images")).await?.ok()?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_program_that_is_not_there_is_refused_before_anything_starts() -> Outcome {
    let folder = folder()?;
    let refused = async |more: &str| -> Outcome<String> {
        let mut node = Node::spawn(manifest(folder.path(), more)?)?;
        let error = node.ready().await.err().ok_or("it started")?;
        Ok(error.to_string())
    };
    let error = refused("[[exec]]\nid = 'a/x'\ncommand = ['/no/where']").await?;
    assert!(
        error.contains("manifest.toml:")
            && error.contains("exec a/x: program /no/where: No such file"),
        "{error}"
    );
    let error = refused("[[exec]]\nid = 'images/local'\ncommand = ['/bin/true']").await?;
    assert!(error.contains("a plugin of this id is built in"), "{error}");
    let error =
        refused("[[exec]]\nid = 'a/x'\ncommand = ['/bin/true']\nrequires = ['bakery']").await?;
    assert!(
        error.contains("a/x requires `bakery`, which no plugin of this manifest answers"),
        "{error}"
    );
    Ok(())
}

#[actix_rt::test]
async fn a_program_speaks_a_contract_of_the_house() -> Outcome {
    let foreign = Foreign::start(
        "snapshots/empty",
        "/usr/bin/python3",
        DRIVER,
        "also = ['collect']",
    )
    .await?;
    let node = &foreign.node;
    let path = "/v1/call/snapshots.driver?plugin=snapshots/empty";
    assert_eq!(node.post(path, json!({})).await?.ok()?["name"], "empty");
    let list = node.get(&node.at("/snapshots/empty")).await?.ok()?;
    assert_eq!(list["items"], json!([]));
    let removed = node.delete(&node.at("/snapshots/empty/some")).await?;
    assert_eq!(removed.status.as_u16(), 404, "{}", removed.text());
    assert!(
        removed.text().contains("this driver is empty"),
        "{}",
        removed.text()
    );
    let wrong = node.get(&node.at("/snapshots/empty/some")).await?;
    assert_eq!(wrong.status.as_u16(), 500, "{}", wrong.text());
    assert!(
        wrong.text().contains("the answer is not the contract's"),
        "{}",
        wrong.text()
    );
    node.collect().await?;
    node.get("/v1/namespaces").await?.ok()?;
    foreign.node.stop_clean().await
}

/// Writes a blob that nothing refers to.
async fn blob(node: &Node, bytes: &'static [u8]) -> Outcome<String> {
    let digest = sha256(bytes);
    let range = format!("bytes 0-{}/{}", bytes.len() - 1, bytes.len());
    let path = node.at(&format!("/ingests/{}", &digest[7..19]));
    let body = Body::of("application/octet-stream", bytes);
    let client = node.client().clone().with_header("content-range", &range)?;
    client.send(Method::PUT, &path, body).await?.ok()?;
    let expected = json!({"digest": digest, "size": bytes.len()});
    node.post(&format!("{path}:commit"), expected).await?.ok()?;
    Ok(digest)
}

#[actix_rt::test]
async fn what_a_program_keeps_is_not_collected() -> Outcome {
    let more = "also = ['collect']";
    let foreign = Foreign::start("keeper/python", "/usr/bin/python3", KEEPER, more).await?;
    let node = &foreign.node;
    let kept = sha256(b"kept");
    foreign
        .call("keeper.keep", json!({"digest": kept}))
        .await?
        .ok()?;
    blob(node, b"kept").await?;
    let other = blob(node, b"other").await?;
    node.collect().await?;
    let left = async || -> Outcome<Vec<Value>> {
        let rows = node.list("/content").await?;
        Ok(rows.into_iter().map(|row| row["digest"].clone()).collect())
    };
    assert_eq!(left().await?, [json!(kept)], "and not {other}");
    foreign
        .call("keeper.forget", json!({"digest": kept}))
        .await?
        .ok()?;
    node.collect().await?;
    assert_eq!(left().await?, Vec::<Value>::new());
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn a_reload_changes_adds_and_removes_programs_and_nobody_else_is_restarted() -> Outcome {
    let foreign = Foreign::start("shell/sh", "/bin/sh", SHELL, "").await?;
    let node = &foreign.node;
    let path = foreign.folder.path().join("manifest.toml");
    let with_shell = fs::read_to_string(&path)?;
    let restarted = async || -> Outcome<Vec<String>> {
        let plugins = node.plugins().await?.into_iter();
        let restarted = plugins.filter(|plugin| plugin["restarts"] != 0);
        Ok(restarted
            .filter_map(|plugin| Some(plugin["id"].as_str()?.to_owned()))
            .collect())
    };
    let reload = async |manifest: String| -> Outcome<Value> {
        fs::write(&path, manifest)?;
        node.post("/v1/reload", ()).await?.ok()
    };
    let changed = reload(format!("{with_shell}\n[exec.settings]\nbread = true")).await?;
    let rows = changed["changes"].as_array().cloned().unwrap_or_default();
    let plugins: Vec<&Value> = rows.iter().map(|row| &row["plugin"]).collect();
    assert_eq!(plugins, [&json!("shell/sh")], "{changed}");
    assert_eq!(foreign.call("shell.any", json!({})).await?.ok()?, "fine");
    assert_eq!(restarted().await?, ["shell/sh"]);

    let without = with_shell.split("[[exec]]").next().unwrap_or_default();
    reload(without.to_owned()).await?;
    let gone = foreign.call("shell.any", json!({})).await?;
    assert_eq!(gone.status.as_u16(), 404, "{}", gone.text());
    reload(with_shell.clone()).await?;
    assert_eq!(foreign.call("shell.any", json!({})).await?.ok()?, "fine");
    let touched = restarted().await?;
    let others = touched
        .iter()
        .filter(|id| !["shell/sh", "gateway/http"].contains(&id.as_str()));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<&String>::new());
    let wrong = with_shell.replace("/bin/sh", "/bin/shhh");
    fs::write(&path, wrong)?;
    let refused = node.post("/v1/reload", ()).await?;
    assert_eq!(refused.status.as_u16(), 400, "{}", refused.text());
    assert!(
        refused.text().contains("program /bin/shhh: No such file"),
        "{}",
        refused.text()
    );
    assert_eq!(foreign.call("shell.any", json!({})).await?.ok()?, "fine");
    foreign.node.stop_clean().await
}

#[actix_rt::test]
async fn an_upgrade_moves_the_host_of_a_program_and_keeps_the_program() -> Outcome {
    let foreign = Foreign::greeter("").await?;
    let node = &foreign.node;
    assert_eq!(foreign.hello("you").await?["count"], 1);
    let build = foreign.folder.path().join("gantry");
    fs::copy(binary()?, &build)?;
    let asked = json!({"binary": build, "plugins": [GREETER, "gateway/http"]});
    node.post("/v1/upgrade", asked).await?.ok()?;
    let done = until("the upgrade is done", SOON, async || {
        let upgrade = node.get("/v1/upgrade").await.ok()?.ok().ok()?;
        (upgrade["state"] != "running").then_some(upgrade)
    });
    let done = done.await?;
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(foreign.hello("you").await?["count"], 2);
    let plugin = node.plugin(GREETER).await?;
    assert!(
        plugin["program"]
            .as_str()
            .is_some_and(|path| path.ends_with("/greeter.py")),
        "{plugin}"
    );
    foreign.node.stop_clean().await
}
