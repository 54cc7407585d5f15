//! What stories do again and again, in one line each. All of it is in the node's own namespace.

use std::time::Duration;

use serde_json::{Value, json};

use super::Node;
use crate::Outcome;
use crate::process::until;

/// A container of a story does little; on a busy machine that still takes a while.
const SOON: Duration = Duration::from_secs(20);

impl Node {
    /// Pulls and unpacks an image from a loopback registry. Errors: any refusal, with the whole problem.
    pub async fn pull(&self, name: &str) -> Outcome<Value> {
        let body = json!({"ref": name, "plain_http": true});
        self.post(&self.at("/images:pull?wait=true"), body)
            .await?
            .ok()
    }

    /// Makes and starts a container. Errors: any refusal, with the whole problem.
    pub async fn run(&self, id: &str, image: &str, args: &[&str]) -> Outcome<Value> {
        self.run_with(json!({"id": id, "image": image, "args": args}))
            .await
    }

    /// Makes and starts a container with any options of `containers:run`, and does not wait for its end.
    ///
    /// Errors: any refusal, with the whole problem.
    pub async fn run_with(&self, options: Value) -> Outcome<Value> {
        self.post(&self.at("/containers:run?wait=started"), options)
            .await?
            .ok()
    }

    /// Waits for the end of a container's first process and returns its exit code. Errors: there is no such task.
    pub async fn exit_code(&self, id: &str) -> Outcome<u64> {
        let exit = self
            .get(&self.at(&format!("/tasks/{id}/wait?for=exited")))
            .await?
            .ok()?;
        exit["exit_code"]
            .as_u64()
            .ok_or_else(|| format!("no exit code in {exit}").into())
    }

    /// Returns what a container wrote so far. Errors: there is no such task.
    pub async fn logs(&self, id: &str) -> Outcome<String> {
        let client = self.client.clone().with_header("accept", "text/plain")?;
        let answer = client
            .send(
                hyper::Method::GET,
                &self.at(&format!("/tasks/{id}/logs")),
                (),
            )
            .await?;
        if answer.status.is_success() {
            Ok(answer.text())
        } else {
            answer.ok().map(|_| String::new())
        }
    }

    /// Waits until a container has written something. Errors: it did not soon; what it wrote is in the message.
    pub async fn until_logged(&self, id: &str, text: &str) -> Outcome<String> {
        let what = format!("{id} writes {text:?}");
        let found = until(&what, SOON, async || {
            self.logs(id).await.ok().filter(|log| log.contains(text))
        })
        .await;
        match found {
            Ok(log) => Ok(log),
            Err(error) => Err(format!("{error}; it wrote {:?}", self.logs(id).await?).into()),
        }
    }

    /// Runs a process in a container to its end: exit code and what it wrote to stdout. Errors: any refusal.
    pub async fn exec(&self, id: &str, args: &[&str]) -> Outcome<(u64, String)> {
        let path = self.at(&format!("/tasks/{id}:exec?wait=true"));
        let done = self.post(&path, json!({"args": args})).await?.ok()?;
        let code = done["exit_code"]
            .as_u64()
            .ok_or_else(|| format!("no exit code in {done}"))?;
        Ok((code, done["stdout"].as_str().unwrap_or_default().to_owned()))
    }

    /// Returns a task. Errors: there is none of that id.
    pub async fn task(&self, id: &str) -> Outcome<Value> {
        self.get(&self.at(&format!("/tasks/{id}"))).await?.ok()
    }

    /// Kills and removes a container. Errors: there is none of that id.
    pub async fn remove(&self, id: &str) -> Outcome {
        self.delete(&self.at(&format!("/containers/{id}?force=true")))
            .await?
            .ok()?;
        Ok(())
    }

    /// Lists the rows of a resource of the node's namespace, all pages. Errors: the list is refused.
    pub async fn list(&self, resource: &str) -> Outcome<Vec<Value>> {
        let mut items = Vec::new();
        let mut token = String::new();
        loop {
            let page = self
                .get(&self.at(&format!("{resource}?limit=1000&page_token={token}")))
                .await?
                .ok()?;
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["next_page_token"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut token),
                _ => return Ok(items),
            }
        }
    }

    /// Collects garbage now. Errors: any refusal.
    pub async fn collect(&self) -> Outcome<Value> {
        self.post("/v1/gc", ()).await?.ok()
    }
}
