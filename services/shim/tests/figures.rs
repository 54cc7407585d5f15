//! Figures, not promises: run with `cargo test -p shim --test figures -- --ignored --nocapture`.
//!
//! One cycle is what a daemon does for `true`: start the shim, create, start, wait, delete, shut down.
//! The stock Go shim is measured in the same run when it is installed.

mod support;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{self, Empty};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, Events, create_events};
use protobuf::Message;
use serde_json::json;
use support::*;
use ttrpc::r#async::{Server, TtrpcContext};

struct Deaf;

#[async_trait]
impl Events for Deaf {
    async fn forward(&self, _: &TtrpcContext, _: ForwardRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::default())
    }
}

/// Steps of one cycle, in the order of `STEPS`.
type Cycle = Vec<Duration>;
const STEPS: [&str; 7] = [
    "boot", "create", "start", "wait", "delete", "shutdown", "all",
];

/// What it is called, how it is started, and the options of its `Create`.
type Kind = (&'static str, fn() -> Command, Option<&'static str>);

async fn call(client: &Client, method: &str, request: &dyn protobuf::MessageDyn) -> Vec<u8> {
    let request = ttrpc::Request {
        service: "containerd.task.v2.Task".into(),
        method: method.into(),
        payload: request.write_to_bytes_dyn().unwrap(),
        timeout_nano: BOUND.as_nanos() as i64,
        ..Default::default()
    };
    client
        .request(request)
        .await
        .map(|answer| answer.payload)
        .unwrap_or_default()
}

async fn cycle(mut program: Command, options: Option<&str>, folder: &Path, events: &Path) -> Cycle {
    let id = folder.file_name().unwrap().to_string_lossy().into_owned();
    fs::create_dir_all(folder.join("rootfs")).unwrap();
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut spec = spec(&["true"]);
    spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    fs::write(folder.join("config.json"), spec.to_string()).unwrap();
    fifo(&folder.join("log"));
    let mut log = OpenOptions::new();
    let _log = log
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(folder.join("log"))
        .unwrap();
    let mut times = vec![Instant::now()];
    let output = program
        .args([
            "-namespace",
            "figures",
            "-id",
            &id,
            "-address",
            "/run/none.sock",
            "start",
        ])
        .env("TTRPC_ADDRESS", events)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let address = String::from_utf8(output.stdout).unwrap();
    let client = Client::connect(address.trim()).await.unwrap();
    times.push(Instant::now());
    let mount = api::Mount {
        type_: "bind".into(),
        source: folder.parent().unwrap().join("image").display().to_string(),
        options: vec!["rbind".into(), "rw".into()],
        ..Default::default()
    };
    let create = api::CreateTaskRequest {
        id: id.clone(),
        bundle: folder.display().to_string(),
        rootfs: vec![mount],
        options: options
            .map(|json| any("gantry.shim.v1.Options", json))
            .into(),
        ..Default::default()
    };
    call(&client, "Create", &create).await;
    times.push(Instant::now());
    call(
        &client,
        "Start",
        &api::StartRequest {
            id: id.clone(),
            ..Default::default()
        },
    )
    .await;
    times.push(Instant::now());
    let wait = api::WaitRequest {
        id: id.clone(),
        ..Default::default()
    };
    let answer = call(&client, "Wait", &wait).await;
    let answer = api::WaitResponse::parse_from_bytes(&answer).unwrap();
    assert!(
        answer.exit_status == 0 && answer.exited_at.is_some(),
        "{answer}"
    );
    times.push(Instant::now());
    call(
        &client,
        "Delete",
        &api::DeleteRequest {
            id: id.clone(),
            ..Default::default()
        },
    )
    .await;
    times.push(Instant::now());
    call(
        &client,
        "Shutdown",
        &api::ShutdownRequest {
            id,
            ..Default::default()
        },
    )
    .await;
    times.push(Instant::now());
    let mut cycle: Cycle = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    cycle.push(times[times.len() - 1] - times[0]);
    cycle
}

fn median(cycles: &[Cycle], step: usize) -> f64 {
    let mut all: Vec<f64> = cycles
        .iter()
        .map(|cycle| cycle[step].as_secs_f64() * 1000.0)
        .collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

#[tokio::test]
#[ignore = "prints figures"]
async fn the_life_of_true_in_milliseconds() -> Outcome {
    let folder = tempfile::tempdir()?;
    busybox(&folder.path().join("image"))?;
    let events = folder.path().join("events.sock");
    let services: HashMap<_, _> = create_events(Arc::new(Deaf));
    let mut server = Server::new().bind(&format!("unix://{}", events.display()))?;
    server = server.register_service(services);
    server.start().await?;
    let stock = || Command::new("/usr/bin/containerd-shim-runc-v2");
    let runc = Some(r#"{"runtime":"runc"}"#);
    let mut kinds: Vec<Kind> = vec![
        ("gantry, embedded", program, None),
        ("gantry, runc", program, runc),
    ];
    if Path::new(stock().get_program()).exists() {
        kinds.push(("containerd-shim-runc-v2", stock, None));
    }
    let mut found: Vec<Vec<Cycle>> = vec![Vec::new(); kinds.len()];
    for round in 0..20 {
        for (kind, (_, program, options)) in kinds.iter().enumerate() {
            let place = folder.path().join(format!("figures-{kind}-{round}"));
            found[kind].push(cycle(program(), *options, &place, &events).await);
        }
    }
    println!(
        "{:26}{}",
        "median of 20, ms",
        STEPS.map(|step| format!("{step:>10}")).join("")
    );
    for ((name, ..), cycles) in kinds.iter().zip(&found) {
        let row = (0..STEPS.len()).map(|step| format!("{:10.1}", median(cycles, step)));
        println!("{name:26}{}", row.collect::<String>());
    }
    Ok(())
}

#[tokio::test]
#[ignore = "prints figures"]
async fn an_exec_of_true_in_milliseconds() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::run(&["sleep", "1000"]).on(runtime).start().await?;
        shim.up().await?;
        let mut times = Vec::new();
        for round in 0..20 {
            let name = format!("e{round}");
            let start = Instant::now();
            shim.exec(&name, &["true"], |_| {}).await?;
            shim.go_exec(&name).await?;
            shim.wait_exec(&name).await?;
            shim.delete_exec(&name).await?;
            times.push(start.elapsed());
        }
        times.sort();
        println!(
            "exec with {:12} median {:?}",
            if runtime.is_empty() {
                "embedded"
            } else {
                runtime
            },
            times[10]
        );
        shim.kill(9, true).await?;
        shim.wait().await?;
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "prints figures"]
async fn the_memory_of_a_shim_with_a_running_container() -> Outcome {
    let shim = Setup::run(&["sleep", "1000"]).start().await?;
    shim.up().await?;
    let pid = shim.server_pid().unwrap_or_default();
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    for line in rollup.lines().filter(|line| {
        ["Rss", "Pss:", "Pss_Anon", "Private_Dirty"]
            .iter()
            .any(|name| line.starts_with(name))
    }) {
        println!("{line}");
    }
    shim.kill(9, false).await?;
    shim.wait().await?;
    shim.delete().await?;
    shim.gone().await
}
