//! A stream of progress goes on for whoever comes back: each record shows everything, and the last one always comes.

use std::time::{Duration, Instant};

use hyper::Method;
use integration::Outcome;
use integration::http::{Record, Records};
use integration::image::{Packed, sample};
use integration::node::Node;
use integration::process::until;
use integration::registry::Registry;
use integration::relay::Relay;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
/// How long a line may carry nothing before it lets more pass.
const QUIET: Duration = Duration::from_millis(500);
/// What a pull needs before its first layer: documents and their headers.
const DOCUMENTS: usize = 1 << 20;
/// Who takes part in a pull, and who only shows it.
const KILLED: [&str; 6] = [
    "gateway/http",
    "operations/local",
    "content/local",
    "diff/local",
    "transfer/local",
    "snapshots/overlayfs",
];

/// A pull over a line that lets through as much as the story wants.
struct Pull {
    _registry: Registry,
    relay: Relay,
    image: Packed,
    node: Node,
    accept: &'static str,
    /// What the stream has shown of the operation.
    id: String,
    ends: Vec<Record>,
}

impl Pull {
    async fn begin(accept: &'static str) -> Outcome<Self> {
        let registry = Registry::start().await?;
        let image = sample::layers(3, 64 << 20)?;
        registry.push(&image, "layers", "1").await?;
        let relay = Relay::held(registry.address(), usize::MAX, 0).await?;
        relay.let_pass(DOCUMENTS);
        Ok(Self {
            _registry: registry,
            relay,
            image,
            node: Node::start().await?,
            accept,
            id: String::new(),
            ends: Vec::new(),
        })
    }

    /// The same request with the same key: it begins the pull, or shows the one that goes on.
    async fn ask(&self) -> Outcome<Records> {
        let client = self
            .node
            .client()
            .clone()
            .with_header("idempotency-key", "the-pull")?;
        let path = self.node.at("/images:pull");
        let body = json!({"ref": format!("{}/layers:1", self.relay.address()), "plain_http": true});
        until("the pull is shown", SOON, async || {
            let shown = client.stream(Method::POST, &path, self.accept, body.clone());
            shown.await.ok()
        })
        .await
    }

    /// By the place of its operation, as somebody who has not begun it.
    async fn look(&self) -> Outcome<Records> {
        let path = format!("/v1/operations/{}", self.id);
        until("the operation is shown", SOON, async || {
            let shown = self
                .node
                .client()
                .stream(Method::GET, &path, self.accept, ());
            shown.await.ok()
        })
        .await
    }

    /// Checks that a record shows everything; says whether it was the last.
    fn take(&mut self, record: Record) -> Outcome<bool> {
        let data = &record.data;
        let id = data["id"]
            .as_str()
            .ok_or_else(|| format!("no operation: {data}"))?;
        if self.id.is_empty() {
            id.clone_into(&mut self.id);
        }
        if id != self.id || !data["progress"].is_array() || data["kind"] != "pull" {
            return Err(format!("of {}, a record shows {data}", self.id).into());
        }
        let last = matches!(data["type"].as_str(), Some("done" | "error"));
        if last {
            self.ends.push(record);
        }
        Ok(last)
    }

    /// Reads until bytes have moved beyond `before`, or the stream breaks. Answers how many moved; nothing for a break.
    async fn read_beyond(&mut self, stream: &mut Records, before: u64) -> Outcome<Option<u64>> {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            match stream.next(QUIET).await {
                Ok(Some(record)) => {
                    let parts = record.data["progress"]
                        .as_array()
                        .cloned()
                        .unwrap_or_default();
                    let moved: u64 = parts
                        .iter()
                        .filter_map(|part| part["offset"].as_u64())
                        .sum();
                    if self.take(record)? {
                        return Err("it ended early".into());
                    }
                    if moved > 0 && moved != before {
                        return Ok(Some(moved));
                    }
                }
                // What died in full pipes is brought again by a line that lets it.
                Err(error) if error.to_string().starts_with("no record in") => {
                    self.relay.let_pass(1 << 20);
                }
                _ => return Ok(None),
            }
        }
        Err(format!("no byte moved in {SOON:?}").into())
    }

    async fn read_to_the_end(&mut self, mut stream: Records) -> Outcome {
        loop {
            match stream.next(SOON).await {
                Ok(Some(record)) => {
                    if self.take(record)? {
                        return Ok(());
                    }
                }
                Err(error) if error.to_string().starts_with("no record in") => return Err(error),
                _ => stream = self.look().await?,
            }
        }
    }
}

async fn shown_to_the_end(accept: &'static str) -> Outcome {
    let mut pull = Pull::begin(accept).await?;
    let mut stream = pull.ask().await?;
    let mut moved = pull.read_beyond(&mut stream, 0).await?.unwrap_or_default();
    let mut breaks = Vec::new();
    for (round, plugin) in KILLED.into_iter().enumerate() {
        let killed = pull.node.kill(plugin).await?;
        pull.relay.let_pass(1 << 20);
        moved = loop {
            if let Some(moved) = pull.read_beyond(&mut stream, moved).await? {
                break moved;
            }
            breaks.push(plugin);
            stream = match round % 2 {
                0 => pull.ask().await?,
                _ => pull.look().await?,
            };
        };
        pull.node.until_ready_after(killed).await?;
    }
    // Only the death of the gateway is seen by its clients.
    assert_eq!(breaks, ["gateway/http"]);
    let killed = pull.node.kill("gateway/http").await?;
    pull.relay.open();
    pull.read_to_the_end(stream).await?;
    pull.node.until_ready_after(killed).await?;
    // Who comes when all is over sees the same end at once, by either way.
    for _ in 0..2 {
        let stream = pull.ask().await?;
        pull.read_to_the_end(stream).await?;
        let stream = pull.look().await?;
        pull.read_to_the_end(stream).await?;
    }
    for end in &pull.ends {
        assert_eq!(end.data, pull.ends[0].data);
        assert_eq!(end.data["type"], "done");
        assert_eq!(end.data["result"]["snapshot"], pull.image.chain_id());
    }
    assert_eq!(pull.ends.len(), 5);
    pull.node.stop_clean().await
}

#[actix_rt::test]
async fn a_pull_is_shown_to_its_end_by_events_though_everybody_dies() -> Outcome {
    shown_to_the_end("text/event-stream").await
}

#[actix_rt::test]
async fn a_pull_is_shown_to_its_end_line_by_line_though_everybody_dies() -> Outcome {
    shown_to_the_end("application/x-ndjson").await
}

#[actix_rt::test]
async fn a_failure_is_the_last_record_for_whoever_comes_back() -> Outcome {
    let node = Node::start().await?;
    let client = node
        .client()
        .clone()
        .with_header("idempotency-key", "lost")?;
    let path = node.at("/images:pull");
    let body = json!({"ref": "127.0.0.1:1/nobody/there:1", "plain_http": true});
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut shown = client
            .stream(Method::POST, &path, "application/x-ndjson", body.clone())
            .await?;
        let end = shown
            .find(SOON, |record| record.data["type"] == "error")
            .await?;
        assert_eq!(
            shown.next(SOON).await?,
            None,
            "nothing comes behind the end"
        );
        assert_eq!(end.data["state"], "failed");
        ends.push(end.data);
        let killed = node.kill("gateway/http").await?;
        node.until_ready_after(killed).await?;
    }
    assert_eq!(ends[0], ends[1]);
    node.stop_clean().await
}
