//! Our side: everything over HTTP on the node's socket.

use std::process::Command;

use hyper::Method;
use integration::Outcome;
use integration::http::{Body, Connection};
use integration::node::{Node, Setup};
use integration::process::{run, tree};
use serde_json::json;
use tempfile::TempDir;

use crate::{timed, weight};

pub(crate) async fn boot() -> Outcome<(f64, f64)> {
    let (time, node) = timed(Node::start_with(Setup::default())).await?;
    let memory = weight(&tree(node.pid()));
    node.stop_clean().await?;
    Ok((time, memory))
}

/// A node that syncs neither blobs nor layers, to see what that costs.
pub(crate) fn unsynced() -> Setup {
    ["content/local", "diff/local", "snapshots/overlayfs"]
        .into_iter()
        .fold(Setup::default(), |setup, plugin| {
            setup.config(&format!("[plugins.\"{plugin}\"]\nsync = false"))
        })
}

/// Returns the time, and the folder that must not be deleted before the last measurement.
pub(crate) async fn pull(image: &str, setup: Setup) -> Outcome<(f64, TempDir)> {
    let node = Node::start_with(setup).await?;
    let (time, _) = timed(node.pull(image)).await?;
    Ok((time, node.stop_and_keep().await?))
}

/// A node with the small image.
pub(crate) struct Runner {
    node: Node,
    connection: Connection,
    image: String,
}

impl Runner {
    pub(crate) async fn start(image: &str) -> Outcome<Self> {
        let node = Node::start().await?;
        node.pull(image).await?;
        let connection = node.client().connect().await?;
        Ok(Self {
            node,
            connection,
            image: image.to_owned(),
        })
    }

    fn options(&self, id: &str, args: &[&str]) -> Body {
        json!({"id": id, "image": self.image, "args": args}).into()
    }

    pub(crate) async fn lasting(&mut self, round: usize) -> Outcome<f64> {
        let id = format!("lasting-{round}");
        let options = self.options(&id, &["/bin/true"]);
        let paths = [
            "/containers:run?wait=true",
            &format!("/tasks/{id}/wait?for=exited"),
            &format!("/containers/{id}"),
        ]
        .map(|resource| self.node.at(resource));
        let step = async {
            self.connection
                .send(Method::POST, &paths[0], options)
                .await?
                .ok()?;
            let exit = self
                .connection
                .send(Method::GET, &paths[1], ())
                .await?
                .ok()?;
            self.connection
                .send(Method::DELETE, &format!("{}?force=true", paths[2]), ())
                .await?
                .ok()?;
            Ok(exit["exit_code"].clone())
        };
        let (time, code) = timed(step).await?;
        if code == 0 {
            Ok(time)
        } else {
            Err(format!("true exited with {code}").into())
        }
    }

    /// One curl process sends the three requests.
    pub(crate) fn command(&self, round: usize) -> Outcome<f64> {
        let id = format!("command-{round}");
        let body = json!({"id": id, "image": self.image, "args": ["/bin/true"]}).to_string();
        let url = |resource: &str| format!("http://gantry{}", self.node.at(resource));
        let mut curl = Command::new("curl");
        for part in 0..3 {
            curl.args([
                "-sS",
                "--fail-with-body",
                "-o",
                "/dev/null",
                "--unix-socket",
            ])
            .arg(self.node.state().join("gantry.sock"));
            match part {
                0 => curl.args([
                    "-H",
                    "content-type: application/json",
                    "-d",
                    &body,
                    &url("/containers:run?wait=true"),
                    "--next",
                ]),
                1 => curl.args([&url(&format!("/tasks/{id}/wait?for=exited")), "--next"]),
                _ => curl.args([
                    "-X",
                    "DELETE",
                    &url(&format!("/containers/{id}?force=true")),
                ]),
            };
        }
        crate::peer::timed_command(|| run(&mut curl))
    }

    /// Starts idle containers and weighs each with its shim.
    pub(crate) async fn weigh(&self, count: usize) -> Outcome<Vec<f64>> {
        let ids: Vec<String> = (0..count).map(|number| format!("idle-{number}")).collect();
        for id in &ids {
            self.node
                .run(id, &self.image, &["/bin/sleep", "1000"])
                .await?;
        }
        let mut weights = Vec::new();
        for id in &ids {
            let pid = self.node.task(id).await?["pid"]
                .as_i64()
                .ok_or("a task without pid")?;
            weights.push(crate::peer::with_shim(i32::try_from(pid)?));
        }
        for id in &ids {
            self.node.remove(id).await?;
        }
        Ok(weights)
    }

    pub(crate) async fn stop(self) -> Outcome {
        drop(self.connection);
        self.node.stop_clean().await
    }
}
