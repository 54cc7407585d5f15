//! The other side: gRPC over lasting connections, events by `ctr events`, which is started again when its stream ends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use integration::Outcome;
use integration::containerd::{Containerd, Grpc, Refused};
use integration::node;
use integration::process::until;
use tokio::sync::RwLock;

use crate::{Answer, Bell, PATIENCE, Plan, Row, Tally};

/// A digest like any other: names need no bytes.
const TARGET: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

type Told = BTreeMap<String, u64>;

pub(crate) async fn run(plan: Plan) -> Outcome<Row> {
    let server = Containerd::start(&node::base()).await?;
    let server = Arc::new(RwLock::new(server));
    let (bell, hearing, mut tally) = (Bell::default(), Bell::default(), Tally::default());
    let told = Arc::<Mutex<Told>>::default();
    let socket = server.read().await.socket();
    let listener = std::thread::spawn({
        let (told, hearing) = (told.clone(), hearing.clone());
        move || listen(&socket, &told, &hearing)
    });
    heard(&server, &told, "first").await?;
    let clients: Vec<_> = (0..plan.clients)
        .map(|number| tokio::task::spawn_local(work(server.clone(), number, bell.clone())))
        .collect();
    let deaths = strike(&server, plan).await?;
    bell.ring();
    for client in clients {
        tally.add(client.await?);
    }
    // Events come in order: what was told before the last one has arrived with it.
    heard(&server, &told, "last").await?;
    hearing.ring();
    // The end of the server ends the last stream.
    drop(Arc::into_inner(server));
    listener.join().map_err(|_| "the subscriber panicked")?;
    let told = told.lock().map_err(|e| e.to_string())?.clone();
    Ok(Row {
        name: "containerd, all of it",
        deaths,
        tally,
        told,
    })
}

async fn strike(server: &RwLock<Containerd>, plan: Plan) -> Outcome<u64> {
    let (begun, mut deaths) = (Instant::now(), 0);
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    beat.tick().await;
    while begun.elapsed() < plan.length {
        beat.tick().await;
        deaths += 1;
        server.write().await.kill_and_restart().await?;
    }
    Ok(deaths)
}

async fn work(server: Arc<RwLock<Containerd>>, number: usize, bell: Bell) -> Tally {
    let (mut tally, mut step, mut line) = (Tally::default(), 0, None::<Grpc>);
    while !bell.rung() {
        step += 1;
        let name = format!("bench.local/c{number}:{step}");
        tally
            .request(format!("/images/create {name}"), async || {
                answer(&server, &mut line, &name, true).await
            })
            .await;
        tally
            .request(format!("/images/delete {name}"), async || {
                answer(&server, &mut line, &name, false).await
            })
            .await;
    }
    tally
}

async fn answer(
    server: &RwLock<Containerd>,
    line: &mut Option<Grpc>,
    name: &str,
    make: bool,
) -> Answer {
    if line.is_none() {
        // Whoever restarts the server holds it: nobody could be reached.
        let Ok(server) = server.try_read() else {
            return Answer::Broken;
        };
        *line = server.grpc().await.ok();
    }
    let Some(open) = line else {
        return Answer::Broken;
    };
    let result = match make {
        true => open.make_image(name, TARGET).await,
        false => open.delete_image(name).await,
    };
    match result {
        Ok(()) => Answer::Right,
        Err(error) if error.is::<Refused>() => Answer::Wrong(error.to_string()),
        Err(_) => {
            *line = None;
            Answer::Broken
        }
    }
}

/// Makes names until the subscriber hears of one.
async fn heard(server: &RwLock<Containerd>, told: &Mutex<Told>, word: &str) -> Outcome {
    let mut number = 0;
    until("the subscriber hears", PATIENCE, async || {
        let heard = told
            .lock()
            .is_ok_and(|told| told.keys().any(|key| key.contains(word)));
        if !heard {
            number += 1;
            let mut line = server.read().await.grpc().await.ok()?;
            line.make_image(&format!("bench.local/{word}:{number}"), TARGET)
                .await
                .ok()?;
        }
        heard.then_some(())
    })
    .await
}

/// Reads events until the bell has rung and the stream ends.
fn listen(socket: &Path, told: &Mutex<Told>, bell: &Bell) {
    while !bell.rung() {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(socket).arg("events");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else {
            return;
        };
        let lines = child.stdout.take().map(|out| BufReader::new(out).lines());
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            if let Ok(mut told) = told.lock() {
                told.extend_from(&line);
            }
        }
        let _ = child.wait();
    }
}

trait Hear {
    fn extend_from(&mut self, line: &str);
}

impl Hear for Told {
    /// `… bench /images/create {"name":"…"}`
    fn extend_from(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let topic = words.iter().find(|word| word.starts_with("/images/"));
        let json = line.find('{').and_then(|at| line.get(at..));
        let json = json.and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let name = json.as_ref().and_then(|json| json["name"].as_str());
        if let (Some(topic), Some(name)) = (topic, name) {
            *self.entry(format!("{topic} {name}")).or_default() += 1;
        }
    }
}
