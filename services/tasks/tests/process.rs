//! Added processes, streams, signals, freezing, limits and numbers.

mod support;

use contracts::tasks::{
    CloseStdin, Delete, ExecProcess, Execs, Kill, Metrics, Pause, Pids, Resize, Resume, Start,
    Status, Stdin, Stdio, Update, Wait,
};
use contracts::{Code, Fd};
use serde_json::json;
use std::io::Write;
use support::*;

const STDIN: Stdio = Stdio {
    tty: false,
    stdin: true,
    discard: false,
};

fn write(fd: Fd, bytes: &[u8]) {
    std::fs::File::from(fd.into_owned().unwrap())
        .write_all(bytes)
        .unwrap();
}

#[actix_rt::test]
async fn a_signal_ends_a_task_with_its_number() {
    let home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let refused = home.delete("box", false).await.unwrap_err();
    assert!(refused.is(Code::FailedPrecondition));
    home.kill("box", 9).await.unwrap();
    assert_eq!(home.wait("box").await.unwrap().exit_code, 137);
    assert!(home.kill("box", 9).await.unwrap_err().is(Code::NotFound));
    home.delete("box", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn force_deletes_what_runs_and_what_was_never_started() {
    let home = Home::start();
    home.run("running", &["sleep", "1000"]).await;
    home.container("waiting", &["true"]);
    home.create("waiting").await.unwrap();
    assert_eq!(home.delete("running", true).await.unwrap().exit_code, 137);
    home.delete("waiting", false).await.unwrap();
    home.until_told("running", &["create", "start", "exit", "delete"])
        .await;
    home.until_told("waiting", &["create", "exit", "delete"])
        .await;
    home.gone().await;
}

#[actix_rt::test]
async fn an_added_process_has_its_own_end_and_its_own_log() {
    let home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let script = "id -u; id -g; echo $A $TERM; pwd; exit 7";
    let asked = ExecProcess {
        args: vec!["sh".into(), "-c".into(), script.into()],
        env: vec!["A=1".into()],
        cwd: "/tmp".into(),
        user: "web".into(),
        ..ExecProcess::default()
    };
    home.exec("box", "e1", asked, Stdio::default())
        .await
        .unwrap();
    let again = home
        .exec("box", "e1", process(&["true"]), Stdio::default())
        .await;
    assert!(again.unwrap_err().is(Code::AlreadyExists));
    let (id, exec) = (container_id("box"), Some(exec_id("e1")));
    let start = Start {
        id: id.clone(),
        exec: exec.clone(),
    };
    home.call(start.clone()).await.unwrap();
    let wait = Wait {
        id: id.clone(),
        exec: exec.clone(),
    };
    assert_eq!(home.call(wait).await.unwrap().exit_code, 7);
    assert!(
        home.call(start)
            .await
            .unwrap_err()
            .is(Code::FailedPrecondition)
    );
    let lines = home.lines(logs("box", Some("e1"))).await;
    assert_eq!(text(&lines, false), "33\n34\n1 xterm\n/tmp\n");
    let execs = home.call(Execs { id: id.clone() }).await.unwrap();
    assert_eq!((execs.len(), execs[0].status), (1, Status::Stopped));
    let delete = Delete {
        id: id.clone(),
        exec,
        force: false,
    };
    assert_eq!(home.call(delete).await.unwrap().exit_code, 7);
    assert!(home.call(Execs { id }).await.unwrap().is_empty());
    let told = [
        "create",
        "start",
        "exec-added:e1",
        "exec-started:e1",
        "exit:e1",
        "delete:e1",
    ];
    home.until_told("box", &told).await;
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn an_added_process_that_cannot_run_says_why_and_the_task_goes_on() {
    let home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    home.exec("box", "e", process(&["nothing-here"]), Stdio::default())
        .await
        .unwrap();
    let start = Start {
        id: container_id("box"),
        exec: Some(exec_id("e")),
    };
    let refused = home.call(start).await.unwrap_err();
    assert!(refused.is(Code::FailedPrecondition), "{refused:?}");
    assert!(refused.message.contains("nothing-here"), "{refused}");
    assert_eq!(
        home.execute("box", "ok", &["echo", "yes"]).await,
        (0, "yes\n".into())
    );
    let unknown = ExecProcess {
        user: "nobody-here".into(),
        ..process(&["true"])
    };
    let refused = home.exec("box", "u", unknown, Stdio::default()).await;
    assert!(refused.unwrap_err().is(Code::InvalidArgument));
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn stdin_takes_writers_one_after_the_other_until_it_is_closed() {
    let home = Home::start();
    home.container("cat", &["cat"]);
    home.create_with("cat", STDIN).await.unwrap();
    home.go("cat").await.unwrap();
    let (id, exec) = (container_id("cat"), None);
    let stdin = Stdin {
        id: id.clone(),
        exec: exec.clone(),
    };
    for line in [&b"one\n"[..], b"two\n"] {
        write(home.call(stdin.clone()).await.unwrap(), line);
    }
    home.call(CloseStdin { id, exec }).await.unwrap();
    assert_eq!(home.wait("cat").await.unwrap().exit_code, 0);
    assert_eq!(home.out("cat").await, "one\ntwo\n");
    home.delete("cat", false).await.unwrap();
    home.run("closed", &["sleep", "1000"]).await;
    let id = container_id("closed");
    let refused = home.call(Stdin { id, exec: None }).await.unwrap_err();
    assert!(refused.is(Code::FailedPrecondition));
    home.delete("closed", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_terminal_learns_its_size() {
    let home = Home::start();
    let script = "read go; stty size; test -t 0 && echo tty";
    home.container_with("tty", &["sh", "-c", script], "", |spec| {
        spec["process"]["terminal"] = json!(true);
    });
    let task = home.create_with("tty", STDIN).await.unwrap();
    assert!(task.tty);
    home.go("tty").await.unwrap();
    let id = container_id("tty");
    let resize = Resize {
        id: id.clone(),
        exec: None,
        width: 101,
        height: 37,
    };
    home.call(resize).await.unwrap();
    write(home.call(Stdin { id, exec: None }).await.unwrap(), b"\n");
    home.wait("tty").await.unwrap();
    let out = home.out("tty").await;
    assert!(out.contains("37 101"), "{out:?}");
    assert!(out.contains("tty"), "{out:?}");
    home.delete("tty", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_paused_task_stands_still_and_can_be_killed() {
    let home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let id = container_id("box");
    let thawed = home.call(Resume { id: id.clone() }).await.unwrap_err();
    assert!(thawed.is(Code::FailedPrecondition));
    home.call(Pause { id: id.clone() }).await.unwrap();
    assert_eq!(home.get("box").await.unwrap().status, Status::Paused);
    home.call(Resume { id: id.clone() }).await.unwrap();
    assert_eq!(home.get("box").await.unwrap().status, Status::Running);
    home.call(Pause { id }).await.unwrap();
    home.delete("box", true).await.unwrap();
    let told = [
        "create", "start", "paused", "resumed", "paused", "exit", "delete",
    ];
    home.until_told("box", &told).await;
    home.gone().await;
}

#[actix_rt::test]
async fn limits_are_changed_and_use_is_measured() {
    let home = Home::start();
    home.run("box", &["sleep", "1000"]).await;
    let id = container_id("box");
    let resources = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    let update = Update {
        id: id.clone(),
        resources: resources.to_string(),
    };
    home.call(update).await.unwrap();
    let measured = home.call(Metrics { id: id.clone() }).await.unwrap();
    assert_eq!(measured.memory_limit, 64 << 20);
    assert_eq!((measured.pids, measured.pids_limit), (1, 50));
    assert!(measured.memory_usage > 0 && measured.cpu_total > 0);
    assert!(measured.raw.0.starts_with("io.containerd.cgroups."));
    let task = home.get("box").await.unwrap();
    assert_eq!(
        home.call(Pids { id: id.clone() }).await.unwrap(),
        [task.pid]
    );
    let wrong = Update {
        id,
        resources: "[]".into(),
    };
    assert!(
        home.call(wrong)
            .await
            .unwrap_err()
            .is(Code::InvalidArgument)
    );
    home.delete("box", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_kill_for_lack_of_memory_is_told() {
    let home = Home::start();
    let eater = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
    home.container_with("eater", &eater, "", |spec| {
        spec["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    });
    home.create("eater").await.unwrap();
    home.go("eater").await.unwrap();
    assert_eq!(home.wait("eater").await.unwrap().exit_code, 137);
    until("the shortage is told", || {
        home.told("eater").contains(&"oom".to_owned())
    })
    .await;
    home.delete("eater", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn one_signal_reaches_all_when_asked() {
    let home = Home::start();
    home.run("box", &["sh", "-c", "sleep 1000 & sleep 1001 & wait"])
        .await;
    let kill = Kill {
        id: container_id("box"),
        exec: None,
        signal: 9,
        all: true,
    };
    home.call(kill).await.unwrap();
    assert_eq!(home.wait("box").await.unwrap().exit_code, 137);
    home.delete("box", false).await.unwrap();
    home.gone().await;
}
