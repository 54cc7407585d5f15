//! What one client does, and which events its acknowledged effects must have.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use super::{Bell, Keyed, Random, is_fine};
use crate::Outcome;
use crate::http::{Body, Client, Response};
use crate::node::Node;

/// Counts for ever, and ends when told to.
const COUNTING: &str = "trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";

/// What all clients work on. Clones share nothing but names.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) image: String,
    /// Pids of the long-lived tasks, by client.
    pub(super) pids: Vec<u64>,
    /// Number of the last event before the load.
    pub(super) since: u64,
}

/// What one client did and saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// Requests that were answered.
    pub requests: u64,
    /// Connections that broke before an answer came.
    pub broken: u64,
    /// The slowest request.
    pub slowest: (Duration, String),
    /// Answers that a calm node would not give.
    pub failures: Vec<String>,
    /// How often each event must be in the log: `topic subject`.
    pub expected: BTreeMap<String, u64>,
}

impl Scene {
    /// Starts one long-lived task per client. Errors: any refusal.
    pub(super) async fn prepare(node: &Node, image: &str, clients: usize) -> Outcome<Self> {
        let mut pids = Vec::new();
        for number in 0..clients {
            let task = node
                .run(&long(number), image, &["sh", "-c", COUNTING])
                .await?;
            pids.push(task["pid"].as_u64().ok_or("a task without a pid")?);
        }
        Ok(Self {
            client: node.client().clone(),
            namespace: node.namespace().to_owned(),
            image: image.to_owned(),
            pids,
            since: last(node).await?,
        })
    }

    fn at(&self, resource: &str) -> String {
        format!("/v1/namespaces/{}{resource}", self.namespace)
    }

    /// Ends the long-lived tasks and drops the image. Errors: any refusal.
    pub(super) async fn clear(&self, node: &Node) -> Outcome {
        for number in 0..self.pids.len() {
            node.remove(&long(number)).await?;
        }
        node.delete(&node.at(&format!("/images/{}", self.image)))
            .await?
            .ok()?;
        node.collect().await.map(drop)
    }
}

/// The long-lived container of a client.
pub(super) fn long(number: usize) -> String {
    format!("long-{number}")
}

/// Number of the newest event.
pub(super) async fn last(node: &Node) -> Outcome<u64> {
    let (mut since, mut seen) = (0, None);
    while seen != Some(since) {
        seen = Some(since);
        let page = node
            .get(&format!("/v1/events?since={since}&limit=256"))
            .await?
            .ok()?;
        since = page["version"].as_u64().ok_or("a page without a version")?;
    }
    Ok(since)
}

/// Works until the bell rings.
pub(super) async fn work(scene: Scene, number: usize, seed: u64, bell: Bell) -> Report {
    let mut random = Random::new(seed, number as u64 + 1);
    let keyed = Keyed::new(&scene.client, &format!("chaos-{number}"));
    let mut client = Worker {
        scene,
        number,
        keyed,
        report: Report::default(),
    };
    let mut step = 0;
    while !bell.rung() {
        step += 1;
        let done = match random.below(10) {
            0..=3 => client.container(step).await,
            4 => client.exec(step).await,
            5 | 6 => client.image(step).await,
            7 => client.label(step).await,
            8 => client.lease(step).await,
            _ => client.event(step).await,
        };
        if let Err(error) = done {
            client.report.failures.push(error.to_string());
        }
    }
    client.report
}

struct Worker {
    scene: Scene,
    number: usize,
    keyed: Keyed,
    report: Report,
}

impl Worker {
    async fn send(
        &mut self,
        method: Method,
        resource: &str,
        body: impl Into<Body>,
    ) -> Outcome<Response> {
        let path = match resource.starts_with("/v1/") {
            true => resource.to_owned(),
            false => self.scene.at(resource),
        };
        let answered = self.keyed.send(&method, &path, body).await?;
        let report = &mut self.report;
        report.requests += 1;
        report.broken += u64::from(answered.broken);
        if answered.took > report.slowest.0 {
            report.slowest = (answered.took, format!("{method} {path}"));
        }
        let response = answered.response;
        match is_fine(&method, response.status.as_u16()) {
            true => Ok(response),
            false => Err(format!(
                "{method} {path}, {} breaks: {} {}",
                answered.broken,
                response.status,
                response.text()
            )
            .into()),
        }
    }

    fn expect(&mut self, topic: &str, subject: &str) {
        let key = format!("{topic} {subject}");
        *self.report.expected.entry(key).or_default() += 1;
    }

    fn name(&self, kind: &str, step: u64) -> String {
        format!("{kind}-{}-{step}", self.number)
    }

    /// Reads what was just written: an acknowledged effect is there at once.
    async fn there(&mut self, resource: &str) -> Outcome<Value> {
        self.send(Method::GET, resource, ()).await?.ok()
    }

    async fn container(&mut self, step: u64) -> Outcome {
        let id = self.name("c", step);
        let body = json!({"id": id, "image": self.scene.image, "args": ["sh", "-c", "exit 3"]});
        let ran = self
            .send(Method::POST, "/containers:run?wait=exit", body)
            .await?
            .ok()?;
        if ran["exit_code"] != 3 {
            return Err(format!("{id} ended with {ran}").into());
        }
        for topic in [
            "/containers/create",
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit",
        ] {
            self.expect(topic, &id);
        }
        let listed = self.there("/containers").await?;
        let items = listed["items"].as_array().cloned().unwrap_or_default();
        if !items.iter().any(|item| item["id"] == *id) {
            return Err(format!("{id} is made and not listed").into());
        }
        self.send(Method::DELETE, &format!("/containers/{id}"), ())
            .await?;
        for topic in ["/tasks/delete", "/containers/delete"] {
            self.expect(topic, &id);
        }
        Ok(())
    }

    async fn exec(&mut self, step: u64) -> Outcome {
        let exec = self.name("e", step);
        let path = format!("/tasks/{}:exec?wait=true", long(self.number));
        let body = json!({"id": exec, "args": ["echo", exec]});
        let ran = self.send(Method::POST, &path, body).await?.ok()?;
        if ran["exit_code"] != 0 || ran["stdout"] != format!("{exec}\n") {
            return Err(format!("{exec} answered {ran}").into());
        }
        for topic in ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"] {
            self.expect(topic, &exec);
        }
        Ok(())
    }

    async fn image(&mut self, step: u64) -> Outcome {
        let name = format!("example.org/tag/{}:{step}", self.number);
        let source = format!("/images/{}:tag", self.scene.image);
        let here = format!("/images/{name}");
        self.send(Method::POST, &source, json!({"name": name}))
            .await?;
        self.expect("/images/create", &name);
        let label = step.to_string();
        self.send(Method::PATCH, &here, json!({"labels": {"step": label}}))
            .await?;
        self.expect("/images/update", &name);
        let read = self.there(&here).await?;
        if read["labels"]["step"].as_str() != Some(label.as_str()) {
            return Err(format!("{name} is labelled and reads {read}").into());
        }
        self.send(Method::DELETE, &here, ()).await?;
        self.expect("/images/delete", &name);
        Ok(())
    }

    async fn label(&mut self, step: u64) -> Outcome {
        let id = long(self.number);
        let body = json!({"labels": {"step": step.to_string()}});
        let path = format!("/containers/{id}");
        self.send(Method::PATCH, &path, body).await?;
        self.expect("/containers/update", &id);
        Ok(())
    }

    async fn lease(&mut self, step: u64) -> Outcome {
        let id = self.name("l", step);
        self.send(Method::POST, "/leases", json!({"id": id}))
            .await?;
        self.there(&format!("/leases/{id}")).await?;
        self.send(Method::DELETE, &format!("/leases/{id}"), ())
            .await
            .map(drop)
    }

    async fn event(&mut self, step: u64) -> Outcome {
        let name = self.name("p", step);
        let body = json!({"topic": "/chaos/step", "namespace": self.scene.namespace, "event": {"name": name}});
        self.send(Method::POST, "/v1/events", body).await?;
        self.expect("/chaos/step", &name);
        Ok(())
    }
}
