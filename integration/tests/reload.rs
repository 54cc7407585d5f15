//! A changed configuration restarts what it changes, all of it or nothing; the rest never notices.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use hyper::StatusCode;
use integration::Outcome;
use integration::node::{Node, Setup, binary};
use integration::process::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// A node whose configuration can be written anew, below the lines that every node has.
struct Configured {
    node: Node,
    path: PathBuf,
    head: String,
}

impl Configured {
    async fn start() -> Outcome<Self> {
        let node = Node::start_with(Setup::default()).await?;
        let path = node.folder().join("config.toml");
        let head = fs::read_to_string(&path)?;
        Ok(Self { node, path, head })
    }

    /// Writes the configuration as users do: another file in its place.
    fn write(&self, toml: &str) -> Outcome {
        let next = self.path.with_extension("next");
        fs::write(&next, format!("{}{toml}\n", self.head))?;
        Ok(fs::rename(next, &self.path)?)
    }

    /// The line that text written by [`Configured::write`] begins on.
    fn first_line(&self) -> usize {
        self.head.lines().count() + 1
    }

    async fn pids(&self) -> Outcome<BTreeMap<String, i64>> {
        let plugins = self.node.plugins().await?;
        let pid = |plugin: &Value| Some((plugin["id"].as_str()?.into(), plugin["pid"].as_i64()?));
        Ok(plugins.iter().filter_map(pid).collect())
    }

    /// Which plugins have come, gone, or another process than `before`.
    async fn changed(&self, before: &BTreeMap<String, i64>) -> Outcome<Vec<String>> {
        let now = self.pids().await?;
        let all = before.keys().chain(now.keys());
        let mut changed: Vec<String> = all
            .filter(|id| before.get(*id) != now.get(*id))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        Ok(changed)
    }

    async fn reload(&self) -> Outcome<Value> {
        self.node.post("/v1/reload", ()).await?.ok()
    }

    /// Runs the command as a user does.
    async fn command(&self, arguments: &[&str]) -> Outcome<Output> {
        let output = tokio::process::Command::new(binary()?)
            .arg("reload")
            .arg("--host")
            .arg(self.node.state().join("gantry.sock"))
            .args(arguments)
            .output();
        Ok(tokio::time::timeout(SOON, output).await??)
    }

    fn hang_up(&self) -> Outcome {
        Ok(kill(Pid::from_raw(self.node.pid()), Signal::SIGHUP)?)
    }

    async fn until_logged(&self, text: &str) -> Outcome {
        let logged = async || self.node.log().contains(text).then_some(());
        until(&format!("the log says {text:?}"), SOON, logged).await
    }

    async fn until_changed(&self, before: &BTreeMap<String, i64>, wanted: &[&str]) -> Outcome {
        let what = format!("only {wanted:?} have changed");
        let changed = async || {
            let changed = self.changed(before).await.ok()?;
            let ready = self.node.get("/readyz").await.ok()?.status.is_success();
            (ready && changed == wanted).then_some(())
        };
        until(&what, SOON, changed).await
    }
}

const RETAIN: &str = "[plugins.\"events/log\"]\nretain_hours = 12";

#[actix_rt::test]
async fn a_changed_setting_restarts_the_plugin_it_belongs_to_and_nobody_else() -> Outcome {
    let configured = Configured::start().await?;
    let before = configured.pids().await?;
    let output = configured.command(&[]).await?;
    assert_eq!(output.stdout, b"nothing has changed\n", "{output:?}");

    configured.write(RETAIN)?;
    let output = configured.command(&["--dry-run"]).await?;
    let said = String::from_utf8(output.stdout)?;
    assert!(
        said.contains("events/log") && said.contains("retain_hours: 168 → 12"),
        "{said}"
    );
    assert_eq!(configured.changed(&before).await?, [""; 0]);

    let reloaded = configured.reload().await?;
    assert_eq!(reloaded["changes"][0]["plugin"], "events/log");
    assert_eq!(configured.changed(&before).await?, ["events/log"]);
    assert_eq!(
        configured.node.plugin("events/log").await?["state"],
        "ready"
    );

    // The other way to ask for it; of an edge, whose predecessor may still answer.
    let before = configured.pids().await?;
    configured.write(&format!(
        "{RETAIN}\n[plugins.\"gateway/http\"]\nheartbeat_seconds = 3"
    ))?;
    configured.hang_up()?;
    configured.until_changed(&before, &["gateway/http"]).await?;
    configured.node.stop_clean().await
}

#[actix_rt::test]
async fn a_file_with_mistakes_changes_nothing_and_every_mistake_is_named_by_its_line() -> Outcome {
    let configured = Configured::start().await?;
    let before = configured.pids().await?;
    let line = configured.first_line();
    configured.write("[plugins.\"events/log\"]\nretain_hous = 12\nretain_bytes = 'much'\n[restart]\nfailures = 1.5")?;
    let answer = configured.node.post("/v1/reload", ()).await?;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let said = answer.text();
    for (line, why) in [
        (line + 1, "unknown key \\\"retain_hous\\\""),
        (line + 2, "retain_bytes must be a whole number"),
        (line + 4, "restart.failures must be a whole number"),
    ] {
        let place = format!("config.toml:{line}: ");
        assert!(
            said.contains(&place) && said.contains(why),
            "{place}{why}: {said}"
        );
    }
    configured.hang_up()?;
    configured
        .until_logged("not reloaded error=reload: nothing was changed")
        .await?;
    assert_eq!(configured.changed(&before).await?, [""; 0]);

    configured.write("manifest = '/no/where.toml'")?;
    let output = configured.command(&[]).await?;
    let said = String::from_utf8(output.stderr)?;
    assert!(
        !output.status.success() && said.contains("/no/where.toml"),
        "{said}"
    );
    assert_eq!(configured.changed(&before).await?, [""; 0]);
    configured.node.stop_clean().await
}

#[actix_rt::test]
async fn settings_that_a_plugin_refuses_are_taken_back_with_all_that_came_with_them() -> Outcome {
    let configured = Configured::start().await?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let before = configured.pids().await?;
    configured.write(&format!(
        "{RETAIN}\n[plugins.\"gateway/http\"]\nlisten = ['{address}']"
    ))?;
    let answer = configured.node.post("/v1/reload", ()).await?;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.text());
    let said = answer.text();
    for word in [
        "the former one is back",
        "gateway/http",
        &address.to_string(),
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    configured
        .until_changed(&before, &["events/log", "gateway/http"])
        .await?;
    // With the address free, the same file counts.
    drop(taken);
    configured.reload().await?;
    let client = integration::http::Client::tcp(address);
    let answer = client.send(hyper::Method::GET, "/healthz", ()).await?;
    assert!(answer.status.is_success());
    configured.node.stop_clean().await
}

#[actix_rt::test]
async fn plugins_come_and_go_and_only_those_that_call_them_are_restarted() -> Outcome {
    let configured = Configured::start().await?;
    let before = configured.pids().await?;
    let callers = configured.node.plugin("snapshots/native").await?["required_by"].clone();
    let mut wanted: Vec<&str> = callers
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    wanted.push("snapshots/native");
    wanted.sort_unstable();
    let untouched = before.keys().filter(|id| !wanted.contains(&id.as_str()));
    assert!(untouched.count() > 4, "{wanted:?}");

    let manifest = configured.node.folder().join("manifest.toml");
    let others = before
        .keys()
        .filter(|id| !matches!(id.as_str(), "snapshots/native" | "supervisor/local"));
    let others: Vec<&String> = others.collect();
    fs::write(&manifest, format!("plugins = {}", json!(others)))?;
    configured.write(&format!("manifest = {manifest:?}"))?;
    configured.reload().await?;
    assert_eq!(configured.changed(&before).await?, wanted);
    let gone = configured.node.get("/v1/plugins/snapshots/native").await?;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    assert_eq!(
        configured.node.get("/v1/info").await?.ok()?["snapshotters"],
        json!(["overlayfs"])
    );

    let between = configured.pids().await?;
    configured.write("")?;
    configured.reload().await?;
    assert_eq!(configured.changed(&between).await?, wanted);
    assert_eq!(
        configured.node.plugin("snapshots/native").await?["state"],
        "ready"
    );
    configured.node.stop_clean().await
}

#[actix_rt::test]
async fn another_hosting_keeps_what_plugins_own_and_folders_wait_for_a_restart() -> Outcome {
    let configured = Configured::start().await?;
    configured
        .node
        .put("/v1/namespaces/kept", json!({"labels": {"a": "b"}}))
        .await?
        .ok()?;
    configured.write("manifest = 'minimal'")?;
    configured.reload().await?;
    let pids = configured.pids().await?;
    assert_eq!(pids["images/local"], pids["namespaces/local"]);
    let kept = configured.node.get("/v1/namespaces/kept").await?.ok()?;
    assert_eq!(kept["labels"]["a"], "b");

    configured.write("manifest = 'minimal'\nuid_base = 900000\n[restart]\nfailures = 3")?;
    let answer = configured.node.post("/v1/reload", ()).await?;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(
        answer.text().contains("uid_base: 700000 → 900000"),
        "{}",
        answer.text()
    );
    configured.write("manifest = 'minimal'\n[restart]\nfailures = 3")?;
    let reloaded = configured.reload().await?;
    assert_eq!(reloaded["changes"][0]["action"], "apply");
    assert_eq!(configured.changed(&pids).await?, [""; 0]);
    configured.node.stop_clean().await
}
