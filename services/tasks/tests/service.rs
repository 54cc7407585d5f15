//! The life of tasks over an in-process bus, with gantry's own shim.

mod support;

use contracts::tasks::{List, Status};
use contracts::{Code, Paging};
use support::*;

#[actix_rt::test]
async fn a_task_lives_from_create_to_delete_and_leaves_its_log() {
    let home = Home::start();
    home.container(
        "hello",
        &["sh", "-c", "echo out; echo err >&2; printf end; exit 3"],
    );
    let made = home.create("hello").await.unwrap();
    assert_eq!(made.status, Status::Created);
    assert!(made.pid > 0);
    let started = home.go("hello").await.unwrap();
    assert_eq!(started.pid, made.pid);
    let exit = home.wait("hello").await.unwrap();
    assert_eq!(exit.exit_code, 3);
    let lines = home.lines(logs("hello", None)).await;
    assert_eq!(text(&lines, false), "out\nend");
    assert_eq!(text(&lines, true), "err\n");
    let stopped = home.get("hello").await.unwrap();
    assert_eq!(
        (stopped.status, stopped.exit_code, stopped.exited_at),
        (Status::Stopped, Some(3), Some(exit.exited_at))
    );
    assert_eq!(home.delete("hello", false).await.unwrap(), exit);
    assert!(home.get("hello").await.unwrap_err().is(Code::NotFound));
    home.until_told("hello", &["create", "start", "exit", "delete"])
        .await;
    assert_eq!(home.out("hello").await, "out\nend");
    home.gone().await;
}

#[actix_rt::test]
async fn tasks_are_listed_by_id_and_filtered_by_status() {
    let home = Home::start();
    home.run("b", &["sleep", "1000"]).await;
    home.run("a", &["true"]).await;
    home.wait("a").await.unwrap();
    let list = |filters: &[&str]| {
        let paging = Paging {
            filters: filters.iter().map(ToString::to_string).collect(),
            ..Paging::default()
        };
        home.call(List { paging })
    };
    let ids = |page: contracts::Page<contracts::tasks::Task>| {
        let ids = page.items.iter().map(|task| task.id.to_string());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids(list(&[]).await.unwrap()), ["a", "b"]);
    assert_eq!(ids(list(&["status==running"]).await.unwrap()), ["b"]);
    assert_eq!(ids(list(&["id==a"]).await.unwrap()), ["a"]);
    home.delete("a", false).await.unwrap();
    home.delete("b", true).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn many_tasks_of_one_namespace_come_and_go_at_once() {
    let home = Home::start();
    for _ in 0..3 {
        let lives = (0..8).map(async |number| {
            let id = format!("box{number}");
            home.run(&id, &["echo", &id]).await;
            assert_eq!(home.wait(&id).await.unwrap().exit_code, 0);
            assert!(home.out(&id).await.ends_with(&format!("{id}\n")));
            home.delete(&id, false).await.unwrap();
        });
        futures_util::future::join_all(lives).await;
    }
    home.gone().await;
}
