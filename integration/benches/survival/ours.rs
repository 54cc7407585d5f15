//! Our side: HTTP, a key for each request, events read from the log by number.

use std::collections::BTreeMap;
use std::time::Instant;

use hyper::Method;
use integration::Outcome;
use integration::chaos::{Random, plugins};
use integration::http::Client;
use integration::image::sample;
use integration::node::Node;
use integration::registry::Registry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::{Answer, Bell, Plan, Row, Tally};

/// Who dies every second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Blow {
    Plugin,
    Node,
}

pub(crate) async fn run(plan: Plan, blow: Blow) -> Outcome<Row> {
    let registry = Registry::start().await?;
    let image = sample::busybox()?.pack();
    let image = registry.push(&image, "busybox", "1").await?;
    let mut node = Node::start().await?;
    let target = node.pull(&image).await?["target"].clone();
    let base = node.at("/images");
    let (bell, mut tally) = (Bell::default(), Tally::default());
    let clients: Vec<_> = (0..plan.clients)
        .map(|number| {
            let (client, bell) = (node.client().clone(), bell.clone());
            let (base, target) = (base.clone(), target.clone());
            tokio::task::spawn_local(work(client, base, target, number, bell))
        })
        .collect();
    let deaths = strike(&mut node, plan, blow).await?;
    bell.ring();
    for client in clients {
        tally.add(client.await?);
    }
    node.ready().await?;
    let told = told(&node).await?;
    node.stop_clean().await?;
    let name = match blow {
        Blow::Plugin => "gantry, one plugin by chance",
        Blow::Node => "gantry, the whole node",
    };
    Ok(Row {
        name,
        deaths,
        tally,
        told,
    })
}

async fn strike(node: &mut Node, plan: Plan, blow: Blow) -> Outcome<u64> {
    let (begun, mut deaths, mut random) = (Instant::now(), 0, Random::new(plan.seed, 0));
    let mut beat = tokio::time::interval(std::time::Duration::from_secs(1));
    beat.tick().await;
    while begun.elapsed() < plan.length {
        beat.tick().await;
        deaths += 1;
        if blow == Blow::Node {
            node.kill_supervisor().await?;
            node.restart().await?;
        } else if let Some((_, pid)) = random.one(&plugins(node.pid())) {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
    }
    Ok(deaths)
}

async fn work(client: Client, base: String, target: Value, number: usize, bell: Bell) -> Tally {
    let (mut tally, mut step) = (Tally::default(), 0);
    while !bell.rung() {
        step += 1;
        let name = format!("bench.local/c{number}:{step}");
        let path = format!("{base}/{name}");
        let body = json!({"target": target.clone()});
        tally
            .request(format!("/images/create {name}"), async || {
                let key = format!("{name} put");
                answered(
                    send(&client, &key, Method::PUT, &path, Some(&body)).await,
                    &path,
                )
            })
            .await;
        tally
            .request(format!("/images/delete {name}"), async || {
                let key = format!("{name} delete");
                answered(
                    send(&client, &key, Method::DELETE, &path, None).await,
                    &path,
                )
            })
            .await;
    }
    tally
}

async fn send(
    client: &Client,
    key: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Outcome<(u16, String)> {
    let client = client.clone().with_header("idempotency-key", key)?;
    let response = match body {
        Some(body) => client.send(method, path, body.clone()).await?,
        None => client.send(method, path, ()).await?,
    };
    Ok((response.status.as_u16(), response.text()))
}

fn answered(answer: Outcome<(u16, String)>, path: &str) -> Answer {
    match answer {
        Ok((status, _)) if (200..300).contains(&status) => Answer::Right,
        Ok((status, text)) => Answer::Wrong(format!("{path}: {status} {text}")),
        Err(_) => Answer::Broken,
    }
}

/// Every event of image names in the log.
async fn told(node: &Node) -> Outcome<BTreeMap<String, u64>> {
    let (mut since, mut told) = (0, BTreeMap::new());
    loop {
        let page = node
            .get(&format!("/v1/events?since={since}&limit=256"))
            .await?;
        let page = page.ok()?;
        for event in page["items"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let key = format!(
                "{} {}",
                text(&event["topic"]),
                text(&event["event"]["name"])
            );
            *told.entry(key).or_default() += 1;
        }
        let next = page["version"].as_u64().ok_or("a page without a version")?;
        if next == since {
            return Ok(told);
        }
        since = next;
    }
}
