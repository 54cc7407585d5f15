//! Other runtimes: the stock `containerd-shim-runc-v2` unmodified, and runc inside gantry's own shim.
//!
//! They say so and do nothing where those programs are not installed.

mod support;

use contracts::tasks::{CloseStdin, Metrics, Pause, Resume, Status, Stdin, Stdio};
use nix::sys::signal::Signal;
use std::io::Write;
use std::path::Path;
use support::*;

const STOCK: &str = "io.containerd.runc.v2";

fn installed() -> bool {
    let there = ["/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc"]
        .iter()
        .all(|program| Path::new(program).exists());
    if !there {
        eprintln!("containerd-shim-runc-v2 or runc is not installed: nothing to try");
    }
    there
}

async fn up(home: &Home, id: &str, args: &[&str], runtime: &str) {
    home.container_with(id, args, runtime, |_| {});
    home.create(id).await.unwrap();
    home.go(id).await.unwrap();
}

#[actix_rt::test]
async fn a_stock_shim_runs_a_whole_life() {
    if !installed() {
        return;
    }
    let home = Home::start();
    let script = "echo out; echo err >&2; seq 1 20000; printf end; exit 3";
    up(&home, "box", &["sh", "-c", script], STOCK).await;
    assert_eq!(home.wait("box").await.unwrap().exit_code, 3);
    let lines = home.lines(logs("box", None)).await;
    let numbers: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert!(text(&lines, false) == format!("out\n{numbers}end"));
    assert_eq!(text(&lines, true), "err\n");
    assert_eq!(home.delete("box", false).await.unwrap().exit_code, 3);
    home.until_told("box", &["create", "start", "exit", "delete"])
        .await;
    home.gone().await;
}

#[actix_rt::test]
async fn a_stock_shim_does_what_our_own_does() {
    if !installed() {
        return;
    }
    let mut home = Home::start();
    let script = "mkfifo /tmp/go; echo before; read x < /tmp/go; echo after; exec sleep 1000";
    up(&home, "box", &["sh", "-c", script], STOCK).await;
    assert_eq!(
        home.execute("box", "e", &["sh", "-c", "echo hi; exit 4"])
            .await,
        (4, "hi\n".into())
    );
    let id = container_id("box");
    home.call(Pause { id: id.clone() }).await.unwrap();
    home.call(Resume { id: id.clone() }).await.unwrap();
    assert!(home.call(Metrics { id }).await.unwrap().memory_usage > 0);
    home.node.restart("tasks/local").await.unwrap();
    assert_eq!(home.get("box").await.unwrap().status, Status::Running);
    assert_eq!(
        home.execute("box", "f", &["echo", "again"]).await.1,
        "again\n"
    );
    home.execute("box", "go", &["sh", "-c", "echo > /tmp/go"])
        .await;
    home.until_out("box", "before\nafter\n").await;
    home.kill("box", 9).await.unwrap();
    assert_eq!(home.wait("box").await.unwrap().exit_code, 137);
    home.delete("box", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_paused_task_of_a_stock_shim_can_be_deleted_with_force() {
    if !installed() {
        return;
    }
    let home = Home::start();
    up(&home, "box", &["sleep", "1000"], STOCK).await;
    let id = container_id("box");
    home.call(Pause { id }).await.unwrap();
    assert_eq!(home.delete("box", true).await.unwrap().exit_code, 137);
    home.gone().await;
}

#[actix_rt::test]
async fn a_stock_shim_has_stdin() {
    if !installed() {
        return;
    }
    let home = Home::start();
    home.container_with("cat", &["cat"], STOCK, |_| {});
    let stdio = Stdio {
        stdin: true,
        ..Stdio::default()
    };
    home.create_with("cat", stdio).await.unwrap();
    home.go("cat").await.unwrap();
    let (id, exec) = (container_id("cat"), None);
    let stdin = Stdin {
        id: id.clone(),
        exec: exec.clone(),
    };
    for line in [&b"one\n"[..], b"two\n"] {
        let end = home.call(stdin.clone()).await.unwrap();
        let mut end = std::fs::File::from(end.into_owned().unwrap());
        end.write_all(line).unwrap();
    }
    home.until_out("cat", "one\ntwo\n").await;
    home.call(CloseStdin { id, exec }).await.unwrap();
    assert_eq!(home.wait("cat").await.unwrap().exit_code, 0);
    home.delete("cat", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_killed_stock_shim_leaves_nothing() {
    if !installed() {
        return;
    }
    let home = Home::start();
    up(&home, "box", &["sleep", "1000"], STOCK).await;
    signal(home.stock_shim_pid("box"), Signal::SIGKILL);
    assert_eq!(home.wait("box").await.unwrap().exit_code, 137);
    home.delete("box", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_stuck_stock_shim_can_be_deleted_with_force() {
    if !installed() {
        return;
    }
    let home = Home::start();
    up(&home, "box", &["sleep", "1000"], STOCK).await;
    signal(home.stock_shim_pid("box"), Signal::SIGSTOP);
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn runc_runs_inside_our_own_shim() {
    if !installed() {
        return;
    }
    let home = Home::start();
    up(&home, "box", &["sh", "-c", "echo hi; exit 6"], "runc").await;
    assert_eq!(home.wait("box").await.unwrap().exit_code, 6);
    assert_eq!(home.out("box").await, "hi\n");
    home.delete("box", false).await.unwrap();
    home.gone().await;
}
