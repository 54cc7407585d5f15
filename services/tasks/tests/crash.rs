//! What happens when somebody dies or gets stuck: tasks itself, a shim, a create half-way.

mod support;

use bus::Ctx;
use contracts::Code;
use contracts::tasks::{Delete, Execs, Get, List, Metrics, Pids, Start, Status, Wait};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use support::*;

#[actix_rt::test]
async fn a_restart_finds_what_runs_and_what_ended_meanwhile() {
    let mut home = Home::start();
    let started = home
        .run("stays", &["sh", "-c", "echo before; sleep 1000"])
        .await;
    home.run("ends", &["sh", "-c", "echo words; exit 5"]).await;
    home.wait("ends").await.unwrap();
    home.until_out("stays", "before\n").await;
    home.node.restart("tasks/local").await.unwrap();
    let task = home.get("stays").await.unwrap();
    assert_eq!((task.status, task.pid), (Status::Running, started.pid));
    assert_eq!(home.wait("ends").await.unwrap().exit_code, 5);
    assert_eq!(home.execute("stays", "e", &["echo", "hi"]).await.1, "hi\n");
    home.kill("stays", 9).await.unwrap();
    assert_eq!(home.wait("stays").await.unwrap().exit_code, 137);
    assert_eq!(home.out("stays").await, "before\n");
    assert_eq!(home.delete("ends", false).await.unwrap().exit_code, 5);
    home.delete("stays", false).await.unwrap();
    home.until_told("ends", &["create", "start", "exit", "delete"])
        .await;
    home.gone().await;
}

#[actix_rt::test]
async fn a_wait_outlives_a_restart() {
    let mut home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let (bus, ctx) = (home.bus(), home.ctx());
    let id = container_id("box");
    let wait =
        tokio::task::spawn_local(async move { bus.call(&ctx, Wait { id, exec: None }).await });
    home.get("box").await.unwrap();
    home.node.restart("tasks/local").await.unwrap();
    home.kill("box", 9).await.unwrap();
    assert_eq!(wait.await.unwrap().unwrap().exit_code, 137);
    home.delete("box", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn the_end_of_an_added_process_is_noticed_after_a_restart() {
    let mut home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let asked = process(&["sh", "-c", "read x < /dev/null; sleep 1000"]);
    home.exec("box", "e", asked, Default::default())
        .await
        .unwrap();
    let (id, exec) = (container_id("box"), Some(exec_id("e")));
    let start = Start {
        id: id.clone(),
        exec: exec.clone(),
    };
    home.call(start).await.unwrap();
    home.node.restart("tasks/local").await.unwrap();
    let kill = contracts::tasks::Kill {
        id: id.clone(),
        exec: exec.clone(),
        signal: 9,
        all: false,
    };
    home.call(kill).await.unwrap();
    let exit = home.call(Wait { id, exec }).await.unwrap();
    assert_eq!(exit.exit_code, 137);
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_killed_shim_ends_its_task_and_leaves_nothing() {
    let home = Home::start();
    let pid = home.run("box", &["sleep", "1000"]).await.pid;
    signal(home.shim_pid("box"), Signal::SIGKILL);
    assert_eq!(home.wait("box").await.unwrap().exit_code, 137);
    let task = home.get("box").await.unwrap();
    assert_eq!(task.status, Status::Stopped);
    assert!(task.reason.contains("shim"), "{}", task.reason);
    assert!(!alive(pid as i32));
    home.delete("box", false).await.unwrap();
    home.until_told("box", &["create", "start", "exit", "delete"])
        .await;
    home.gone().await;
}

#[actix_rt::test]
async fn a_shim_that_died_while_tasks_was_away_is_found_dead() {
    let mut home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let shim = home.shim_pid("box");
    // Nothing else runs between these two: tasks does not see it happen.
    signal(shim, Signal::SIGKILL);
    home.node.restart("tasks/local").await.unwrap();
    assert_eq!(home.wait("box").await.unwrap().exit_code, 137);
    home.delete("box", false).await.unwrap();
    home.until_told("box", &["create", "start", "exit", "delete"])
        .await;
    home.gone().await;
}

#[actix_rt::test]
async fn a_stuck_shim_is_unknown_and_delays_nobody() {
    let home = Home::start();
    home.run("stuck", &["sleep", "1000"]).await;
    home.run("fine", &["sleep", "1000"]).await;
    let shim = home.shim_pid("stuck");
    signal(shim, Signal::SIGSTOP);
    let asked = Instant::now();
    let page = home.call(List::default()).await.unwrap();
    assert_eq!(page.items.len(), 2);
    assert_eq!(home.get("fine").await.unwrap().status, Status::Running);
    assert_eq!(home.execute("fine", "e", &["true"]).await.0, 0);
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    let task = home.get("stuck").await.unwrap();
    assert_eq!(task.status, Status::Unknown);
    assert!(task.reason.contains("does not answer"), "{}", task.reason);
    let page = home.call(List::default()).await.unwrap();
    assert_eq!(page.items[1].status, Status::Unknown);
    signal(shim, Signal::SIGCONT);
    let back = async {
        while home.get("stuck").await.unwrap().status != Status::Running {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, back).await.unwrap();
    home.delete("stuck", true).await.unwrap();
    home.delete("fine", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_stuck_shim_can_be_deleted_with_force() {
    let home = Home::start();
    home.run("stuck", &["sleep", "1000"]).await;
    signal(home.shim_pid("stuck"), Signal::SIGSTOP);
    home.delete("stuck", true).await.unwrap();
    home.until_told("stuck", &["create", "start", "exit", "delete"])
        .await;
    home.gone().await;
}

#[actix_rt::test]
async fn a_refused_create_says_why_and_leaves_nothing() {
    let home = Home::start();
    assert!(home.create("none").await.unwrap_err().is(Code::NotFound));
    home.container("typo", &["nothing-here"]);
    let made = home.create("typo").await;
    let refused = match made {
        Ok(_) => home.go("typo").await.unwrap_err(),
        Err(error) => error,
    };
    assert!(refused.is(Code::FailedPrecondition), "{refused:?}");
    assert!(refused.message.contains("nothing-here"), "{refused}");
    home.container_with("lost", &["true"], "io.containerd.nowhere.v2", |_| {});
    assert!(
        home.create("lost")
            .await
            .unwrap_err()
            .is(Code::InvalidArgument)
    );
    home.container_with("word", &["true"], "nosuchruntime", |_| {});
    let refused = home.create("word").await.unwrap_err();
    assert!(refused.message.contains("nosuchruntime"), "{refused}");
    let left = home.call(List::default()).await.unwrap().items;
    for task in &left {
        home.delete(task.id.as_str(), true).await.unwrap();
    }
    home.gone().await;
}

#[actix_rt::test]
async fn a_repeated_call_gets_the_first_answer() {
    let home = Home::start();
    home.container("box", &["sleep", "1000"]);
    home.create("box").await.unwrap();
    assert!(
        home.create("box")
            .await
            .unwrap_err()
            .is(Code::AlreadyExists)
    );
    let id = container_id("box");
    let once = home.ctx();
    let start = Start {
        id: id.clone(),
        exec: None,
    };
    let first = home.bus().call(&once, start.clone()).await.unwrap();
    assert_eq!(home.bus().call(&once, start.clone()).await.unwrap(), first);
    let refused = home.call(start).await.unwrap_err();
    assert!(refused.is(Code::FailedPrecondition));
    let delete = Delete {
        id: id.clone(),
        exec: None,
        force: true,
    };
    let exit = home.bus().call(&once, delete.clone()).await.unwrap();
    assert_eq!(home.bus().call(&once, delete.clone()).await.unwrap(), exit);
    assert!(home.call(delete).await.unwrap_err().is(Code::NotFound));
    home.until_told("box", &["create", "start", "exit", "delete"])
        .await;
    home.gone().await;
}

#[actix_rt::test]
async fn a_task_of_another_namespace_is_not_seen() {
    let home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let other = contracts::Namespace::new("other").unwrap();
    let ctx = Ctx::new(Some(other));
    let get = Get {
        id: container_id("box"),
    };
    let missing = home.bus().call(&ctx, get).await.unwrap_err();
    assert!(missing.is(Code::NotFound));
    assert!(
        home.bus()
            .call(&ctx, List::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_bundle_that_no_record_knows_is_cleared() {
    let mut home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let root = home.folder.path().join("root/tasks/local");
    let pid = home.get("box").await.unwrap().pid;
    // Its records are lost, as when a disk comes back from yesterday.
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tasks.") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    home.node.restart("tasks/local").await.unwrap();
    assert!(home.get("box").await.unwrap_err().is(Code::NotFound));
    until("the process is ended", || !alive(pid as i32)).await;
    home.container("box", &["true"]);
    let made = async {
        while home.create("box").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(BOUND, made).await.unwrap();
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_task_that_ended_keeps_its_record_and_logs_and_nothing_else() {
    let mut home = Home::start();
    home.run(
        "box",
        &["sh", "-c", "read x < /dev/null; echo words; sleep 1000"],
    )
    .await;
    assert_eq!(home.execute("box", "e", &["echo", "hi"]).await.1, "hi\n");
    let idle = home.exec("box", "idle", process(&["true"]), Default::default());
    idle.await.unwrap();
    home.until_out("box", "words\n").await;
    home.kill("box", 9).await.unwrap();
    assert_eq!(home.wait("box").await.unwrap().exit_code, 137);
    home.gone().await;
    for _ in 0..2 {
        let task = home.get("box").await.unwrap();
        assert_eq!((task.status, task.exit_code), (Status::Stopped, Some(137)));
        assert_eq!(home.out("box").await, "words\n");
        let id = container_id("box");
        let execs = home.call(Execs { id: id.clone() }).await.unwrap();
        assert!(execs.iter().all(|exec| exec.status == Status::Stopped));
        assert_eq!(execs.len(), 2);
        assert!(home.call(Pids { id: id.clone() }).await.unwrap().is_empty());
        let late = home.exec("box", "late", process(&["true"]), Default::default());
        assert!(late.await.unwrap_err().is(Code::FailedPrecondition));
        let measured = home.call(Metrics { id }).await.unwrap_err();
        assert!(measured.is(Code::FailedPrecondition), "{measured:?}");
        home.node.restart("tasks/local").await.unwrap();
    }
    let exec = Delete {
        id: container_id("box"),
        exec: Some(exec_id("e")),
        force: false,
    };
    assert_eq!(home.call(exec).await.unwrap().exit_code, 0);
    assert!(!home.told("box").contains(&"delete".to_owned()));
    assert_eq!(home.delete("box", false).await.unwrap().exit_code, 137);
    let told = home.told("box");
    assert_eq!(told.iter().filter(|topic| *topic == "exit").count(), 1);
    assert_eq!(told.last().map(String::as_str), Some("delete"));
    home.run("box", &["true"]).await;
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_task_that_ended_just_before_tasks_stops_leaves_nothing() {
    for runtime in ["", "io.containerd.runc.v2"] {
        let stock = std::path::Path::new("/usr/bin/containerd-shim-runc-v2");
        if !runtime.is_empty() && !stock.exists() {
            continue;
        }
        let mut home = Home::start();
        home.container_with("box", &["sh", "-c", "exit 5"], runtime, |_| {});
        home.create("box").await.unwrap();
        home.go("box").await.unwrap();
        assert_eq!(home.wait("box").await.unwrap().exit_code, 5);
        home.node.restart("tasks/local").await.unwrap();
        home.gone().await;
        assert_eq!(home.get("box").await.unwrap().exit_code, Some(5));
        assert_eq!(home.delete("box", false).await.unwrap().exit_code, 5);
        home.until_told("box", &["create", "start", "exit", "delete"])
            .await;
        home.gone().await;
    }
}
