//! The first run, line by line as the README has it: a user with nothing but curl.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use integration::Outcome;
use integration::image::sample;
use integration::node::{Node, binary};
use integration::process::run;
use integration::registry::Registry;

/// A shell with the first line of the README in front of what is typed.
fn shell(node: &Node, line: &str) -> Command {
    let socket = node.state().join("gantry.sock");
    let script = format!(
        "S={}; api() {{ curl -sS --fail-with-body --unix-socket $S \"$@\"; }}\n{line}",
        socket.display()
    );
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &script]);
    command
}

fn typed(node: &Node, line: &str) -> Outcome<String> {
    Ok(String::from_utf8(run(&mut shell(node, line))?)?)
}

/// A command that goes on until somebody has read enough.
struct Endless(Child);

impl Endless {
    fn typed(node: &Node, line: &str) -> Outcome<Self> {
        Ok(Self(shell(node, line).stdout(Stdio::piped()).spawn()?))
    }

    /// Reads until a line is what is looked for, and returns all lines up to there.
    fn until(&mut self, wanted: &str) -> Outcome<Vec<String>> {
        let output = self.0.stdout.take().ok_or("no output")?;
        let mut lines = Vec::new();
        for line in BufReader::new(output).lines() {
            lines.push(line?);
            if lines.last().is_some_and(|line| line == wanted) {
                return Ok(lines);
            }
        }
        Err(format!("ended without {wanted:?}: {lines:?}").into())
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[actix_rt::test]
async fn four_lines_of_curl_bring_an_image_run_it_and_tell_what_happened() -> Outcome {
    let registry = Registry::start().await?;
    let image = sample::busybox()?.pack();
    let name = registry.push(&image, "library/busybox", "1.36").await?;
    let node = Node::start().await?;
    let space = format!("http://gantry/v1/namespaces/{}", node.namespace());

    let pulled = typed(
        &node,
        &format!(
            r#"api -X POST {space}/images:pull?wait=true -d '{{"ref":"{name}","plain_http":true}}'"#
        ),
    )?;
    assert!(pulled.contains(&image.root.digest), "{pulled}");

    let ran = typed(
        &node,
        &format!(
            r#"api -X POST {space}/containers:run?wait=true -d '{{"id":"hello","image":"{name}","args":["echo","hi"]}}'"#
        ),
    )?;
    assert!(ran.contains(r#""exit_code":0"#), "{ran}");
    assert_eq!(
        typed(&node, &format!("api {space}/tasks/hello/logs"))?,
        "hi\n"
    );

    let mut events = Endless::typed(
        &node,
        "exec curl -sS --max-time 20 --unix-socket $S -N -H 'Accept: text/event-stream' 'http://gantry/v1/events?since=0'",
    )?;
    let seen = events.until("event: /tasks/exit")?;
    let mut topics = seen.iter().filter_map(|line| line.strip_prefix("event: "));
    for topic in [
        "/images/create",
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
    ] {
        assert!(
            topics.any(|seen| seen == topic),
            "{topic} is missing, or too early, in {seen:?}"
        );
    }
    drop(events);
    node.remove("hello").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_run_pulls_what_is_missing_and_reports_how_its_process_ended() -> Outcome {
    let registry = Registry::start().await?;
    let name = registry
        .push(&sample::busybox()?.pack(), "busybox", "1")
        .await?;
    let node = Node::start().await?;
    let script = "echo out; echo err >&2; exit 42";
    let body = serde_json::json!({"id": "one", "image": name, "args": ["sh", "-c", script]});
    let task = node
        .post(&node.at("/containers:run?wait=true"), body)
        .await?
        .ok()?;
    assert_eq!(
        (&task["status"], &task["exit_code"]),
        (&"stopped".into(), &42.into())
    );
    let log = node.logs("one").await?;
    assert!(log.contains("out\n") && log.contains("err\n"), "{log:?}");
    let only = node
        .get(&node.at("/tasks/one/logs?stream=stderr"))
        .await?
        .text();
    assert_eq!(only, "err\n");
    node.remove("one").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn the_command_line_and_the_open_pages_answer() -> Outcome {
    let node = Node::start().await?;
    let host = format!("unix://{}", node.state().join("gantry.sock").display());
    let gantry = |args: &[&str]| -> Outcome<String> {
        let mut command = Command::new(binary()?);
        command.args(args).env("GANTRY_HOST", &host);
        Ok(String::from_utf8(run(&mut command)?)?)
    };
    let table = gantry(&["status"])?;
    for plugin in node.plugins().await? {
        let id = plugin["id"].as_str().unwrap_or_default();
        let row = table.lines().find(|line| line.starts_with(id));
        assert!(
            row.is_some_and(|row| row.contains("ready")),
            "{id}: {table}"
        );
    }
    let spaces = gantry(&["call", "namespaces.list"])?;
    assert!(spaces.contains("items"), "{spaces}");
    assert!(gantry(&["version"])?.starts_with("gantry "));
    assert!(gantry(&["config", "default"])?.contains("[plugins.\"content/local\"]"));

    assert_eq!(node.get("/healthz").await?.text(), "ok\n");
    assert_eq!(node.get("/readyz").await?.ok()?["ready"], true);
    assert!(node.get("/metrics").await?.text().contains("# TYPE "));
    let described = node.get("/openapi.json").await?.ok()?;
    assert_eq!(described["openapi"], "3.1.0");
    assert!(described["paths"]["/v1/namespaces/{ns}/containers:run"]["post"].is_object());
    node.stop_clean().await
}
