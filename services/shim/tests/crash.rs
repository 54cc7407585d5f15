//! Who may be killed without harm: the caller at any time, and even the shim.

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, Status};
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Events, create_events};
use support::*;
use ttrpc::r#async::{Server, TtrpcContext};

#[tokio::test]
async fn a_new_caller_finds_state_past_exits_and_logs() -> Outcome {
    let shim = Setup::sh("echo hello; exit 9").start().await?;
    shim.up().await?;
    assert_eq!(shim.wait().await?, 9);
    let other = shim.connect().await?;
    let request = containerd_shim_protos::api::WaitRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    assert_eq!(other.wait(bound(), &request).await?.exit_status, 9);
    assert_eq!(shim.out(), "hello\n");
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn delete_cleans_up_after_a_shim_that_was_killed() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::sh("sleep 1000 & sleep 1000")
            .on(runtime)
            .start()
            .await?;
        let pid = shim.up().await? as i32;
        let server = shim.server_pid().ok_or("no shim.pid")?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(server),
            nix::sys::signal::SIGKILL,
        )?;
        until("the shim is gone", || !alive(server)).await?;
        assert!(alive(pid), "the container goes on");
        let answer = shim.cleanup()?;
        assert_eq!((answer.pid as i32, answer.exit_status), (pid, 137));
        until("the container is gone", || !alive(pid)).await?;
        assert_eq!(
            shim.cleanup()?.exit_status,
            137,
            "a second time changes nothing"
        );
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn delete_cleans_up_after_a_shim_that_was_killed_while_it_created() -> Outcome {
    let hook = serde_json::json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"] }]);
    let shim = Setup::default()
        .with(|spec| spec["hooks"] = serde_json::json!({ "createContainer": hook }))
        .start()
        .await?;
    let (caller, request) = (shim.connect().await?, shim.request());
    let call = tokio::spawn(async move { caller.create(bound(), &request).await });
    let inside = || -> Vec<i32> {
        let v1 = fs::read_to_string(shim.cgroup_file("pids", "cgroup.procs"));
        v1.unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    };
    let sleeps = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
    };
    until("the hook runs", || inside().iter().any(sleeps)).await?;
    let pids = inside();
    let server = shim.server_pid().ok_or("no shim.pid")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server),
        nix::sys::signal::SIGKILL,
    )?;
    assert!(call.await?.is_err());
    shim.cleanup()?;
    until("all of it is gone", || !pids.iter().any(|pid| alive(*pid))).await?;
    shim.gone().await
}

#[tokio::test]
async fn delete_reports_the_exit_the_killed_shim_had_seen() -> Outcome {
    let shim = Setup::sh("exit 6").start().await?;
    shim.up().await?;
    assert_eq!(shim.wait().await?, 6);
    assert_eq!(shim.cleanup()?.exit_status, 6, "though the shim still ran");
    shim.gone().await
}

#[tokio::test]
async fn delete_of_a_shim_that_never_made_a_container_is_fine() -> Outcome {
    let shim = Setup::default().start().await?;
    shim.cleanup()?;
    assert!(!Path::new(shim.address.trim_start_matches("unix://")).exists());
    let left: Vec<_> = fs::read_dir(shim.bundle())?
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, ["config.json"]);
    Ok(())
}

#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<(String, String)>>>);

#[async_trait]
impl Events for Listener {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        assert_eq!(envelope.namespace, "test");
        let kind = envelope.event.type_url.clone();
        self.0.lock().unwrap().push((envelope.topic, kind));
        Ok(Empty::default())
    }
}

impl Listener {
    async fn serve(&self, socket: &Path) -> Result<Server, Box<dyn std::error::Error>> {
        let services: HashMap<_, _> = create_events(Arc::new(self.clone()));
        let address = format!("unix://{}", socket.display());
        let mut server = Server::new().bind(&address)?.register_service(services);
        server.start().await?;
        Ok(server)
    }

    fn topics(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .map(|(topic, _)| topic.clone())
            .collect()
    }
}

#[tokio::test]
async fn events_arrive_in_order_and_wait_for_a_listener_that_is_away() -> Outcome {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("events.sock");
    let shim = Setup::run(&["sleep", "1000"])
        .env("TTRPC_ADDRESS", socket.display().to_string())
        .start()
        .await?;
    let listener = Listener::default();
    shim.create().await?;
    let mut server = listener.serve(&socket).await?;
    until("the first event arrives late", || {
        listener.topics() == ["/tasks/create"]
    })
    .await?;
    shim.go().await?;
    until("the next one too", || listener.topics().len() == 2).await?;
    server.shutdown().await?;
    fs::remove_file(&socket)?;

    shim.exec("e", &["true"], |_| {}).await?;
    shim.go_exec("e").await?;
    shim.wait_exec("e").await?;
    let pause = containerd_shim_protos::api::PauseRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    shim.client.pause(bound(), &pause).await?;
    let resume = containerd_shim_protos::api::ResumeRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    shim.client.resume(bound(), &resume).await?;
    shim.kill(9, false).await?;
    shim.wait().await?;
    let _server = listener.serve(&socket).await?;
    assert_eq!(shim.state().await?.status.enum_value(), Ok(Status::STOPPED));
    shim.delete().await?;
    shim.gone().await?;
    let topics = listener.topics();
    let names: Vec<&str> = topics
        .iter()
        .map(|topic| topic.trim_start_matches("/tasks/"))
        .collect();
    assert_eq!(
        names,
        [
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit",
            "paused",
            "resumed",
            "exit",
            "delete"
        ]
    );
    assert_eq!(
        listener.0.lock().unwrap()[0].1,
        "containerd.events.TaskCreate"
    );
    Ok(())
}

#[tokio::test]
async fn an_out_of_memory_kill_is_told() -> Outcome {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("events.sock");
    let listener = Listener::default();
    let _server = listener.serve(&socket).await?;
    let shim = Setup::sh("dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 1000")
        .with(|spec| {
            spec["linux"]["resources"]["memory"] = serde_json::json!({ "limit": 20 << 20 })
        })
        .env("TTRPC_ADDRESS", socket.display().to_string())
        .start()
        .await?;
    shim.up().await?;
    until("the kill is told", || {
        listener.topics().iter().any(|topic| topic == "/tasks/oom")
    })
    .await?;
    let _ = shim.kill(9, true).await;
    shim.wait().await?;
    shim.delete().await?;
    shim.gone().await
}
