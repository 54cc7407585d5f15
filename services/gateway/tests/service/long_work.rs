//! Long work: begun, waited for, streamed.

use crate::support::{Edge, World, descriptor, operation};
use bus::testing::Fake;
use contracts::operations::{
    Operation, Operations, Outcome, PulledImage, Start, State, Watch, Work,
};
use contracts::tasks::{Get, Status, Task, Tasks, Wait};
use contracts::{ContainerId, Error, Fd, ImageName, OperationId, Timestamp};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::{cell::RefCell, fs::File, rc::Rc};

const PULL: &str = "/v1/namespaces/default/images:pull";

fn pulled() -> Outcome {
    Outcome::Image(PulledImage {
        name: ImageName::new("docker.io/library/a:1").unwrap(),
        target: descriptor(),
        platform: None,
        snapshot: "s".into(),
        snapshotter: "overlayfs".into(),
    })
}

fn done(id: &OperationId, kind: &str, result: Outcome) -> Operation {
    Operation {
        result: Some(result),
        ..operation(id, kind, State::Done)
    }
}

/// Operations that begin anything and show `steps` to whoever watches.
fn working(
    kind: &'static str,
    steps: impl Fn(&OperationId) -> Vec<Operation> + 'static,
) -> Fake<Operations> {
    Fake::new("local")
        .on(move |ctx, _: Start| Ok(operation(&ctx.operation, kind, State::Running)))
        .stream(move |_, watch: Watch| Ok(steps(&watch.id)))
}

fn edge(operations: Fake<Operations>) -> Edge {
    World {
        operations,
        ..World::default()
    }
    .start()
}

#[actix_rt::test]
async fn work_is_accepted_with_its_place() {
    let edge = edge(working("pull", |_| Vec::new()));
    let answer = edge.post(PULL, r#"{"ref":"a"}"#).await;
    assert_eq!(answer.status, 202);
    let body = answer.json();
    assert_eq!(
        (&body["kind"], &body["state"]),
        (&"pull".into(), &"running".into())
    );
    let id = body["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), format!("/v1/operations/{id}"));
    assert_eq!(answer.header("gantry-operation"), id);
}

#[actix_rt::test]
async fn waiting_answers_the_result() {
    let steps = |id: &OperationId| {
        vec![
            operation(id, "pull", State::Running),
            done(id, "pull", pulled()),
        ]
    };
    let edge = edge(working("pull", steps));
    let answer = edge
        .post(&format!("{PULL}?wait=true"), r#"{"ref":"a"}"#)
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["name"], "docker.io/library/a:1");
    assert_eq!(answer.json()["target"]["size"], 10);
}

#[actix_rt::test]
async fn a_failure_is_answered_as_what_it_is() {
    let steps = |id: &OperationId| {
        vec![Operation {
            error: Some(Error::unauthenticated("registry: wrong password")),
            ..operation(id, "pull", State::Failed)
        }]
    };
    let edge = edge(working("pull", steps));
    let answer = edge
        .post(&format!("{PULL}?wait=true"), r#"{"ref":"a"}"#)
        .await;
    assert_eq!(
        answer.problem(401, "UNAUTHENTICATED"),
        "registry: wrong password"
    );
}

#[actix_rt::test]
async fn a_broken_watch_is_taken_up_again() {
    let watched = Rc::new(RefCell::new(0));
    let count = watched.clone();
    let edge = edge(working("pull", move |id| {
        *count.borrow_mut() += 1;
        match *count.borrow() {
            1 => vec![operation(id, "pull", State::Running)],
            _ => vec![done(id, "pull", pulled())],
        }
    }));
    let answer = edge
        .post(&format!("{PULL}?wait=true"), r#"{"ref":"a"}"#)
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(*watched.borrow(), 2);
}

#[actix_rt::test]
async fn who_does_not_want_to_wait_longer_is_told_where_it_goes_on() {
    let edge = edge(working("pull", |id| {
        vec![operation(id, "pull", State::Running)]
    }));
    let answer = edge
        .post(&format!("{PULL}?wait=true&timeout=50ms"), r#"{"ref":"a"}"#)
        .await;
    let said = answer.problem(504, "DEADLINE_EXCEEDED");
    assert!(
        said.contains(answer.header("location")) && said.contains("goes on"),
        "{said}"
    );
}

#[actix_rt::test]
async fn progress_streams_end_with_done_or_error() {
    let steps = |id: &OperationId| {
        vec![
            operation(id, "pull", State::Running),
            done(id, "pull", pulled()),
        ]
    };
    let edge = edge(working("pull", steps));
    let sse = edge.ask("POST", PULL).header("accept", "text/event-stream");
    let sse = sse.body(r#"{"ref":"a"}"#).send().await;
    assert_eq!(sse.header("content-type"), "text/event-stream");
    let events: Vec<&str> = sse
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(events, ["progress", "done"]);
    let lines = edge
        .ask("POST", PULL)
        .header("accept", "application/x-ndjson");
    let lines = lines.body(r#"{"ref":"a"}"#).send().await;
    let last = lines.text().lines().last().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(
        (&last["type"], &last["result"]["snapshot"]),
        (&"done".into(), &"s".into())
    );
}

fn task(id: &ContainerId, status: Status) -> Task {
    Task {
        id: id.clone(),
        container: id.clone(),
        pid: 7,
        status,
        exit_code: (status == Status::Stopped).then_some(3),
        exited_at: None,
        reason: String::new(),
        created_at: Timestamp(0),
        tty: false,
    }
}

#[actix_rt::test]
async fn run_waits_for_the_start_or_for_the_end() {
    let steps = |id: &OperationId| {
        let hello = ContainerId::new("hello").unwrap();
        vec![done(
            id,
            "run",
            Outcome::Task(task(&hello, Status::Running)),
        )]
    };
    let tasks: Fake<Tasks> = Fake::new("local")
        .on(|_, _: Wait| {
            Ok(contracts::tasks::Exit {
                exit_code: 3,
                exited_at: Timestamp(0),
            })
        })
        .on(|_, get: Get| Ok(task(&get.id, Status::Stopped)));
    let edge = World {
        operations: working("run", steps),
        tasks: Some(tasks),
        ..World::default()
    }
    .start();
    let run = async |wait: &str| {
        let path = format!("/v1/namespaces/default/containers:run{wait}");
        edge.post(&path, r#"{"id":"hello","image":"a","args":["x"]}"#)
            .await
    };
    assert_eq!(run("").await.status, 202);
    let started = run("?wait=started").await;
    assert_eq!(
        (started.status.as_u16(), &started.json()["status"]),
        (201, &"running".into())
    );
    let ended = run("?wait=true").await;
    assert_eq!(ended.json()["exit_code"], 3);
    assert_eq!(
        ended.header("location"),
        "/v1/namespaces/default/tasks/hello"
    );
    run("?wait=soon").await.problem(400, "INVALID_ARGUMENT");
}

#[actix_rt::test]
async fn credentials_and_options_reach_the_work_and_a_name_is_made_up() {
    let begun = Rc::new(RefCell::new(None));
    let noted = begun.clone();
    let operations = Fake::new("local").on(move |ctx, start: Start| {
        *noted.borrow_mut() = Some(start.work);
        Ok(operation(&ctx.operation, "run", State::Running))
    });
    let edge = edge(operations);
    let body = r#"{"image":"a","args":["sh"],"env":["A=1"],"auth":{"username":"u","password":"p"},"runtime":"runc","resources":{"memory":5}}"#;
    edge.post("/v1/namespaces/default/containers:run", body)
        .await;
    let Some(Work::Run(container)) = begun.borrow_mut().take() else {
        panic!("a run was begun");
    };
    assert_eq!(container.access.auth.unwrap().password, "p");
    assert_eq!(container.options.resources.memory, 5);
    assert_eq!(container.runtime.name, "runc");
    assert_eq!(container.id.as_str().len(), 12);
}

#[actix_rt::test]
async fn an_import_is_what_the_client_sent() {
    let (read, archive) = mpsc::channel();
    let operations = Fake::new("local")
        .on(move |ctx, start: Start| {
            let Work::Import(import) = start.work else {
                panic!("an import was begun");
            };
            let read = read.clone();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let mut archive = File::from(import.archive.into_owned().unwrap());
                archive.read_to_end(&mut bytes).unwrap();
                read.send(bytes).unwrap();
            });
            Ok(operation(&ctx.operation, "import", State::Running))
        })
        .stream(|_, watch: Watch| Ok(vec![done(&watch.id, "import", Outcome::Images(Vec::new()))]));
    let edge = edge(operations);
    let tar: Vec<u8> = (0..300_000u32).map(|number| number as u8).collect();
    for wait in ["", "?wait=true"] {
        let path = format!("/v1/namespaces/default/images:import{wait}");
        let answer = edge.ask("POST", &path).body(tar.clone()).send().await;
        assert!(answer.status.is_success(), "{answer:?}");
        assert!(
            archive.recv().unwrap() == tar,
            "the archive arrived as it was sent"
        );
    }
}

/// Operations that export `bytes` and then end as `end` says.
fn exporting(
    bytes: &'static [u8],
    end: impl Fn(&OperationId) -> Operation + 'static,
) -> Fake<Operations> {
    let open: Arc<Mutex<Option<Fd>>> = Arc::default();
    let kept = open.clone();
    Fake::new("local")
        .on(move |ctx, start: Start| {
            let Work::Export(export) = start.work else {
                panic!("an export was begun");
            };
            let mut pipe = File::from(export.archive.as_owned().try_clone().unwrap());
            pipe.write_all(bytes).unwrap();
            *kept.lock().unwrap() = None;
            Ok(operation(&ctx.operation, "export", State::Running))
        })
        .stream(move |_, watch: Watch| {
            drop(open.lock().unwrap().take());
            Ok(vec![end(&watch.id)])
        })
}

const EXPORT: &str = "/v1/namespaces/default/images:export";

#[actix_rt::test]
async fn an_export_is_the_archive_itself() {
    let end = |id: &OperationId| done(id, "export", Outcome::Images(Vec::new()));
    let edge = edge(exporting(b"tar tar tar", end));
    let answer = edge.post(EXPORT, r#"{"images":["a"]}"#).await;
    assert_eq!(answer.header("content-type"), "application/x-tar");
    assert_eq!(answer.text(), "tar tar tar");
}

#[actix_rt::test]
async fn an_export_that_fails_before_its_first_byte_is_a_problem() {
    let edge = edge(exporting(b"", failed));
    let said = edge
        .post(EXPORT, r#"{"images":["a"]}"#)
        .await
        .problem(404, "NOT_FOUND");
    assert_eq!(said, "image a: is not here");
}

fn failed(id: &OperationId) -> Operation {
    Operation {
        error: Some(Error::not_found("image a: is not here")),
        ..operation(id, "export", State::Failed)
    }
}

#[actix_rt::test]
async fn an_export_that_fails_later_does_not_look_complete() {
    let edge = edge(exporting(b"half of", failed));
    let response = edge
        .ask("POST", EXPORT)
        .body(r#"{"images":["a"]}"#)
        .open()
        .await;
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    assert!(body.is_err(), "the connection is cut");
}

#[actix_rt::test]
async fn an_import_that_fails_early_says_why_and_not_that_its_pipe_broke() {
    let operations = Fake::new("local")
        .on(|ctx, start: Start| {
            drop(start.work);
            Ok(operation(&ctx.operation, "import", State::Running))
        })
        .stream(|_, watch: Watch| {
            Ok(vec![Operation {
                error: Some(Error::invalid("archive: is not a tar")),
                ..operation(&watch.id, "import", State::Failed)
            }])
        });
    let edge = edge(operations);
    for wait in ["", "?wait=true"] {
        let path = format!("/v1/namespaces/default/images:import{wait}");
        let answer = edge.ask("POST", &path).body(vec![0; 300_000]).send().await;
        assert_eq!(
            answer.problem(400, "INVALID_ARGUMENT"),
            "archive: is not a tar"
        );
    }
}
