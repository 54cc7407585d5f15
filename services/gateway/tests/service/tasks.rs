//! Tasks: what they wrote, and processes that are added.

use crate::support::{Edge, World};
use bus::testing::Fake;
use contracts::operations::{Claim, Claimed, Operations, Settle};
use contracts::tasks::{
    Delete, Exec, Exit, Kill, LogBatch, LogLine, Logs, Start, Status, Task, Tasks, Wait,
};
use contracts::{Error, Timestamp};
use std::{cell::RefCell, rc::Rc};

fn line(time: i64, stderr: bool, bytes: &[u8], newline: bool) -> LogLine {
    LogLine {
        time: Timestamp(time),
        stderr,
        newline,
        bytes: bytes.to_vec(),
        lost: 0,
    }
}

fn edge(tasks: Fake<Tasks>) -> Edge {
    World {
        tasks: Some(tasks),
        ..World::default()
    }
    .start()
}

fn exit(exit_code: u32) -> Exit {
    Exit {
        exit_code,
        exited_at: Timestamp(0),
    }
}

const LOGS: &str = "/v1/namespaces/default/tasks/a/logs";

fn writing() -> Edge {
    edge(Fake::new("local").stream(|_, logs: Logs| {
        assert_eq!(logs.tail, None);
        Ok(vec![LogBatch {
            lines: vec![
                line(1, false, b"hi", true),
                line(2, true, b"oops", true),
                line(3, false, &[0xff, b'x'], false),
            ],
        }])
    }))
}

#[actix_rt::test]
async fn logs_are_the_bytes_as_written() {
    let edge = writing();
    let both = edge.get(LOGS).await;
    assert_eq!(&both.body[..], b"hi\noops\n\xffx");
    assert!(both.header("content-type").starts_with("text/plain"));
    assert_eq!(
        edge.get(&format!("{LOGS}?stream=stderr")).await.text(),
        "oops\n"
    );
    let timed = edge.get(&format!("{LOGS}?stream=stderr&timestamps")).await;
    assert_eq!(timed.text(), "1970-01-01T00:00:00.000000002Z oops\n");
    edge.get(&format!("{LOGS}?stream=both"))
        .await
        .problem(400, "INVALID_ARGUMENT");
}

#[actix_rt::test]
async fn logs_are_lines_as_json_by_accept() {
    let edge = writing();
    let lines = edge
        .ask("GET", LOGS)
        .header("accept", "application/x-ndjson")
        .send()
        .await;
    let lines: Vec<serde_json::Value> = lines
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&lines[1]["stream"], &lines[1]["line"]),
        (&"stderr".into(), &"oops".into())
    );
    assert_eq!(
        (&lines[2]["partial"], &lines[2]["line"]),
        (&true.into(), &"\u{fffd}x".into())
    );
    let sse = edge
        .ask("GET", LOGS)
        .header("accept", "text/event-stream")
        .send()
        .await;
    assert!(
        sse.text().contains("event: stderr\ndata: {"),
        "{}",
        sse.text()
    );
}

#[actix_rt::test]
async fn a_followed_log_goes_on_behind_the_last_line_after_a_break() {
    let asked = Rc::new(RefCell::new(Vec::new()));
    let noted = asked.clone();
    let edge = edge(Fake::new("local").stream(move |_, logs: Logs| {
        noted.borrow_mut().push((logs.since, logs.tail));
        let again = noted.borrow().len() > 1;
        match again {
            false => Err(Error::unavailable("tasks: ended")),
            true => Ok(vec![LogBatch {
                lines: vec![line(5, false, b"a", true)],
            }]),
        }
    }));
    assert_eq!(
        edge.get(&format!("{LOGS}?follow&tail=3")).await.text(),
        "a\n"
    );
    assert_eq!(asked.borrow()[..], [(None, Some(3)), (None, Some(3))]);
}

#[actix_rt::test]
async fn logs_of_what_is_not_there_are_a_problem() {
    let edge =
        edge(Fake::new("local").stream(|_, _: Logs| Err(Error::not_found("task a: is not there"))));
    edge.get(LOGS).await.problem(404, "NOT_FOUND");
}

#[actix_rt::test]
async fn an_exec_that_is_waited_for_is_collected_and_removed() {
    let steps = Rc::new(RefCell::new(Vec::new()));
    let (added, started, removed) = (steps.clone(), steps.clone(), steps.clone());
    let edge = edge(
        Fake::new("local")
            .on(move |_, exec: Exec| {
                assert_eq!(exec.process.args, ["id"]);
                added.borrow_mut().push(format!("add {}", exec.exec));
                Ok(())
            })
            .on(move |_, start: Start| {
                started.borrow_mut().push("start".into());
                Ok(Task {
                    id: start.id.clone(),
                    container: start.id,
                    pid: 1,
                    status: Status::Running,
                    exit_code: None,
                    exited_at: None,
                    reason: String::new(),
                    created_at: Timestamp(0),
                    tty: false,
                })
            })
            .on(|_, _: Wait| Ok(exit(4)))
            .stream(|_, logs: Logs| {
                assert!(logs.exec.is_some());
                Ok(vec![LogBatch {
                    lines: vec![line(1, false, b"out", true), line(2, true, b"err", false)],
                }])
            })
            .on(move |_, delete: Delete| {
                assert!(delete.force);
                removed
                    .borrow_mut()
                    .push(format!("remove {}", delete.exec.unwrap()));
                Ok(exit(4))
            }),
    );
    let path = "/v1/namespaces/default/tasks/a:exec?wait=true";
    let answer = edge.post(path, r#"{"id":"e","args":["id"]}"#).await;
    assert_eq!(
        answer.json(),
        serde_json::json!({"exit_code": 4, "stdout": "out\n", "stderr": "err", "truncated": false})
    );
    assert_eq!(steps.borrow()[..], ["add e", "start", "remove e"]);
    edge.post(path, "{}").await.problem(400, "INVALID_ARGUMENT");
}

/// A task in which a command writes `output`, once; notes what is done to the process.
fn running(output: usize, steps: &Rc<RefCell<Vec<&'static str>>>) -> Fake<Tasks> {
    let (added, gone, removed) = (steps.clone(), steps.clone(), steps.clone());
    Fake::new("local")
        .on(move |_, _: Exec| {
            added.borrow_mut().push("add");
            Ok(())
        })
        .on(|_, start: Start| {
            Ok(Task {
                id: start.id.clone(),
                container: start.id,
                pid: 1,
                status: Status::Running,
                exit_code: None,
                exited_at: None,
                reason: String::new(),
                created_at: Timestamp(0),
                tty: false,
            })
        })
        .on(move |_, _: Wait| match gone.borrow().contains(&"remove") {
            true => Err(Error::not_found("task a: has no added process e")),
            false => Ok(exit(0)),
        })
        .stream(move |_, _: Logs| {
            Ok(vec![LogBatch {
                lines: vec![line(1, false, &vec![b'x'; output], true)],
            }])
        })
        .on(move |_, _: Delete| {
            removed.borrow_mut().push("remove");
            Ok(exit(0))
        })
}

/// Keeps answers, when `keeps`.
fn keeping(keeps: bool) -> Fake<Operations> {
    let kept: Rc<RefCell<Option<contracts::operations::Answer>>> = Rc::default();
    let asked = kept.clone();
    Fake::new("local")
        .on(move |_, _: Claim| {
            Ok(Claimed {
                answer: asked.borrow().clone(),
            })
        })
        .on(move |_, settle: Settle| match keeps {
            true => {
                kept.replace(settle.answer);
                Ok(())
            }
            false => Err(Error::unavailable("operations: is away")),
        })
}

/// The same keyed exec twice, and what was done for both.
async fn twice(output: usize, keeps: bool) -> (u16, crate::support::Answer, Vec<&'static str>) {
    let steps = Rc::default();
    let edge = World {
        tasks: Some(running(output, &steps)),
        operations: keeping(keeps),
        ..World::default()
    }
    .start();
    let path = "/v1/namespaces/default/tasks/a:exec?wait=true";
    let send = async || {
        let ask = edge.ask("POST", path).header("idempotency-key", "k");
        ask.body(r#"{"id":"e","args":["id"]}"#).send().await
    };
    let first = send().await.status.as_u16();
    let second = send().await;
    let steps = steps.borrow().clone();
    (first, second, steps)
}

#[actix_rt::test]
async fn a_keyed_exec_is_removed_and_its_answer_given_again() {
    let (first, second, steps) = twice(10, true).await;
    assert_eq!((first, second.status.as_u16()), (200, 200));
    assert_eq!(second.json()["stdout"], "xxxxxxxxxx\n");
    assert_eq!(steps, ["add", "remove"]);
}

#[actix_rt::test]
async fn a_keyed_exec_whose_answer_is_too_large_to_keep_is_removed_and_a_repetition_says_that_it_has_run()
 {
    let (first, second, steps) = twice(64 << 10, true).await;
    assert_eq!(first, 200);
    let said = second.problem(410, "NOT_FOUND");
    assert!(
        said.contains("49152 bytes") && said.contains("HAS been done"),
        "{said}"
    );
    assert_eq!(steps, ["add", "remove"]);
}

#[actix_rt::test]
async fn a_keyed_exec_whose_answer_cannot_be_kept_is_removed_all_the_same() {
    let (first, second, steps) = twice(10, false).await;
    assert_eq!((first, steps[..2].to_vec()), (200, vec!["add", "remove"]));
    let said = second.problem(410, "NOT_FOUND");
    assert!(
        said.contains("process e") && said.contains("HAS been done"),
        "{said}"
    );
}

#[actix_rt::test]
async fn a_signal_has_a_name_or_a_number_and_a_default() {
    let sent = Rc::new(RefCell::new(Vec::new()));
    let noted = sent.clone();
    let edge = edge(Fake::new("local").on(move |_, kill: Kill| {
        noted.borrow_mut().push((kill.signal, kill.all));
        Ok(())
    }));
    let kill = "/v1/namespaces/default/tasks/a:kill";
    for body in ["", r#"{"signal":"SIGKILL","all":true}"#, r#"{"signal":2}"#] {
        assert_eq!(edge.post(kill, body).await.status, 204);
    }
    assert_eq!(sent.borrow()[..], [(15, false), (9, true), (2, false)]);
    let said = edge
        .post(kill, r#"{"signal":"NOPE"}"#)
        .await
        .problem(400, "INVALID_ARGUMENT");
    assert!(said.contains("\"NOPE\""), "{said}");
}

#[actix_rt::test]
async fn a_wait_is_as_long_as_the_client_wants() {
    let edge = edge(Fake::new("local").on(|ctx, _: Wait| {
        let left = ctx.deadline - tokio::time::Instant::now();
        Ok(exit(u32::try_from(left.as_secs() / 60).unwrap()))
    }));
    let wait = "/v1/namespaces/default/tasks/a/wait";
    let minutes = async |query: &str| {
        edge.get(&format!("{wait}{query}")).await.json()["exit_code"]
            .as_u64()
            .unwrap()
    };
    assert!(minutes("").await > 60);
    assert_eq!(minutes("?timeout=90s&for=exited").await, 1);
    edge.get(&format!("{wait}?for=running"))
        .await
        .problem(400, "INVALID_ARGUMENT");
}
