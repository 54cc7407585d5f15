//! A node of four small plugins, for the supervisor's own tests: `sample-node daemon ROOT STATE [MANIFEST [CONFIG]]`.
//!
//! `front/local` listens on `front.sock` and does what a line says: `store` and `broken` call those plugins, `list`,
//! `graph`, `node`, `get ID`, `restart ID`, `stop ID` and `start ID` ask the supervisor. Each answer is a line of JSON.
//! `broken/local` refuses to start; `upset/local` requires it; `store/local` answers with its pid.
//!
//! And it misbehaves: `panic`, `hang` and `eat MIB` make the store panic, answer nothing any more, take memory; `spoil`
//! writes bytes that are no frames to every link of `front/local`.

use actix::{Actor, Context, Handler};
use bus::{Boot, Bus, Call, Ctx, Registration, Reply, Routes};
use contracts::{
    Error, PluginId, Result,
    plugin::{Get, Graph, List, Node, Restart, Start, Stop, Supervisor},
    service,
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, process::ExitCode};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

service! {
    /// Answers with its pid.
    Store = "store" { read pid(Pid) -> u32; read suffer(Suffer) -> u64; }
}
service! {
    /// Never starts.
    Broken = "broken" { read touch(Touch) -> (); }
}
service! {
    /// Calls what never starts.
    Upset = "upset" { read try_it(TryIt) -> (); }
}
service! {
    /// Listens.
    Front = "front" {}
}

/// Asks for the pid.
#[derive(Serialize, Deserialize)]
struct Pid {}
/// Makes the store misbehave.
#[derive(Serialize, Deserialize)]
enum Suffer {
    /// By a panic.
    Panic,
    /// By blocking the thread that answers.
    Hang,
    /// By taking so many MiB.
    Eat(u64),
}
/// Is never answered.
#[derive(Serialize, Deserialize)]
struct Touch {}
/// Fails.
#[derive(Serialize, Deserialize)]
struct TryIt {}

#[derive(Default, Serialize, Deserialize)]
struct NoConfig {}

/// Answers for each of the plugins.
struct Sample {
    bus: Bus,
}

impl Actor for Sample {
    type Context = Context<Self>;
}

impl Handler<Call<Pid>> for Sample {
    type Result = Reply<Pid>;
    fn handle(&mut self, _: Call<Pid>, _: &mut Context<Self>) -> Reply<Pid> {
        Box::pin(async { Ok(std::process::id()) })
    }
}

impl Handler<Call<Suffer>> for Sample {
    type Result = Reply<Suffer>;
    fn handle(&mut self, call: Call<Suffer>, _: &mut Context<Self>) -> Reply<Suffer> {
        match call.body {
            Suffer::Panic => panic!("it was told to"),
            Suffer::Hang => loop {
                std::thread::park();
            },
            Suffer::Eat(mib) => {
                let eaten: Vec<u8> = (0..mib << 20).map(|byte| byte as u8).collect();
                let sum = eaten.iter().map(|&byte| u64::from(byte)).sum();
                Box::pin(async move { Ok(sum) })
            }
        }
    }
}

impl Handler<Call<TryIt>> for Sample {
    type Result = Reply<TryIt>;
    fn handle(&mut self, call: Call<TryIt>, _: &mut Context<Self>) -> Reply<TryIt> {
        let bus = self.bus.clone();
        Box::pin(async move { bus.call(&call.ctx, Touch {}).await })
    }
}

fn registrations() -> Vec<Registration> {
    vec![
        Registration::new::<Store>("local").start(
            || Routes::default().on::<Pid>().on::<Suffer>(),
            |boot: Boot<NoConfig>| {
                std::fs::write(boot.root().join("mine"), "x")
                    .map_err(|e| Error::internal(format!("own folder: {e}")))?;
                Ok(Sample { bus: boot.bus })
            },
        ),
        Registration::new::<Broken>("local")
            .start(Routes::<Sample>::default, |_: Boot<NoConfig>| {
                Err(Error::data_loss("broken store: out of order"))
            }),
        Registration::new::<Upset>("local")
            .requires::<Broken>()
            .start(
                || Routes::default().on::<TryIt>(),
                |boot: Boot<NoConfig>| Ok(Sample { bus: boot.bus }),
            ),
        Registration::new::<Front>("local")
            .requires::<Store>()
            .requires::<Upset>()
            .requires::<Supervisor>()
            .socket("front.sock", 0o660)
            .start(Routes::<Sample>::default, front),
    ]
}

fn front(boot: Boot<NoConfig>) -> Result<Sample> {
    let failed = |e: std::io::Error| Error::internal(format!("front.sock: {e}"));
    let socket = boot.sockets.into_iter().next();
    let socket = socket.ok_or_else(|| Error::internal("no socket"))?;
    let listener = std::os::unix::net::UnixListener::from(socket.into_owned().map_err(failed)?);
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let bus = boot.bus.clone();
    actix::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            actix::spawn(talk(stream, bus.clone()));
        }
    });
    Ok(Sample { bus: boot.bus })
}

async fn talk(stream: tokio::net::UnixStream, bus: Bus) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match obey(&bus, &line).await {
            Ok(value) => serde_json::json!({ "ok": value }),
            Err(error) => serde_json::json!({ "error": error }),
        };
        write.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn obey(bus: &Bus, line: &str) -> Result<serde_json::Value> {
    let ctx = Ctx::new(None);
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let id = || PluginId::new(rest);
    match word {
        "store" => json(bus.call(&ctx, Pid {}).await?),
        "panic" => json(bus.call(&ctx, Suffer::Panic).await?),
        "hang" => json(bus.call(&ctx, Suffer::Hang).await?),
        "eat" => {
            let mib = rest.parse().map_err(|_| Error::invalid("how much"))?;
            json(bus.call(&ctx, Suffer::Eat(mib)).await?)
        }
        "spoil" => json(spoil().map_err(|e| Error::internal(e.to_string()))?),
        "broken" => json(bus.call(&ctx, TryIt {}).await?),
        "list" => json(bus.call(&ctx, List {}).await?),
        "graph" => json(bus.call(&ctx, Graph {}).await?),
        "node" => json(bus.call(&ctx, Node {}).await?),
        "get" => json(bus.call(&ctx, Get { id: id()? }).await?),
        "restart" => json(bus.call(&ctx, Restart { id: id()? }).await?),
        "stop" => json(bus.call(&ctx, Stop { id: id()? }).await?),
        "start" => json(bus.call(&ctx, Start { id: id()? }).await?),
        _ => Err(Error::invalid(format!("{line:?}: no such word"))),
    }
}

/// Writes bytes that are no frames to every link, found as unnamed sockets that are not the control link.
fn spoil() -> std::io::Result<usize> {
    use rustix::net::{SendFlags, getsockname, send};
    let control = std::fs::read_link("/proc/self/fd/0")?;
    let mut spoiled = 0;
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let path = entry.path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        let number = entry.file_name().to_string_lossy().parse::<i32>();
        let is_socket = target.to_string_lossy().starts_with("socket:") && target != control;
        let (Ok(number), true) = (number, is_socket) else {
            continue;
        };
        // A copy of the descriptor, so that nothing of the runtime's is closed.
        let pid = rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        )?;
        let socket =
            rustix::process::pidfd_getfd(&pid, number, rustix::process::PidfdGetfdFlags::empty())?;
        let name: rustix::net::SocketAddrUnix = match getsockname(&socket).map(TryInto::try_into) {
            Ok(Ok(name)) => name,
            _ => continue,
        };
        if name.path_bytes().is_none_or(<[u8]>::is_empty)
            && send(&socket, &[0xff; 32], SendFlags::NOSIGNAL).is_ok()
        {
            spoiled += 1;
        }
    }
    Ok(spoiled)
}

fn json(value: impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|e| Error::internal(e.to_string()))
}

const MANIFESTS: [(&str, &str); 2] = [
    (
        "default",
        "plugins = ['front/local', 'upset/local', 'broken/local', 'store/local']",
    ),
    (
        "minimal",
        "plugins = ['broken/local']\n[[process]]\nplugins = ['front/local', 'upset/local', 'store/local']",
    ),
];

fn daemon(arguments: &[String]) -> Result<(), String> {
    let argument = |at: usize| arguments.get(at).cloned();
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let manifests: HashMap<_, _> = MANIFESTS.into();
    let options = supervisor::Options {
        specs: registrations().iter().map(|r| r.spec().clone()).collect(),
        manifests: manifests
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .collect(),
        config: argument(5).map(Into::into),
        overrides: supervisor::Overrides {
            root: argument(2).map(Into::into),
            state: argument(3).map(Into::into),
            manifest: argument(4),
            settings: Vec::new(),
        },
        exe,
        version: "0.0.0-sample".into(),
    };
    let system = actix::System::new();
    system
        .block_on(supervisor::run(options))
        .map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).map(String::as_str) == Some("plugin") {
        return bus::host(registrations());
    }
    match daemon(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sample-node: {error}");
            ExitCode::FAILURE
        }
    }
}
