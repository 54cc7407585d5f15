//! What processes wrote, read again: exactly, in part, while it comes, and for how long.

mod support;

use contracts::tasks::Logs;
use contracts::{Code, Timestamp};
use futures_util::StreamExt;
use support::*;

#[actix_rt::test]
async fn a_reader_that_follows_gets_all_and_then_the_end() {
    let home = Home::start();
    let script = "for i in $(seq 1 5); do echo $i; done; read x < /tmp/go; echo last";
    home.container("box", &["sh", "-c", &format!("mkfifo /tmp/go; {script}")]);
    home.create("box").await.unwrap();
    home.go("box").await.unwrap();
    let follow = Logs {
        follow: true,
        ..logs("box", None)
    };
    let mut stream = home.bus().open(&home.ctx(), follow).await.unwrap();
    let mut lines = Vec::new();
    while text(&lines, false) != "1\n2\n3\n4\n5\n" {
        lines.extend(stream.next().await.unwrap().unwrap().lines);
    }
    home.execute("box", "go", &["sh", "-c", "echo > /tmp/go"])
        .await;
    while let Some(batch) = stream.next().await {
        lines.extend(batch.unwrap().lines);
    }
    assert_eq!(text(&lines, false), "1\n2\n3\n4\n5\nlast\n");
    home.wait("box").await.unwrap();
    home.delete("box", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn much_output_is_kept_byte_for_byte() {
    let home = Home::start();
    home.run("box", &["seq", "1", "50000"]).await;
    home.wait("box").await.unwrap();
    let expected: String = (1..=50000).map(|n| format!("{n}\n")).collect();
    assert!(home.out("box").await == expected);
    home.delete("box", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_part_of_a_log_can_be_asked_for() {
    let home = Home::start();
    home.run("box", &["seq", "1", "9"]).await;
    home.wait("box").await.unwrap();
    let tail = Logs {
        tail: Some(2),
        ..logs("box", None)
    };
    assert_eq!(text(&home.lines(tail).await, false), "8\n9\n");
    let past = Logs {
        until: Some(Timestamp(1)),
        ..logs("box", None)
    };
    assert!(home.lines(past).await.is_empty());
    let later = Logs {
        since: Some(Timestamp::now()),
        follow: true,
        ..logs("box", None)
    };
    assert!(home.lines(later).await.is_empty());
    home.delete("box", false).await.unwrap();
    home.gone().await;
}

#[actix_rt::test]
async fn a_log_lives_as_long_as_its_container() {
    let home = Home::start();
    for word in ["one", "two"] {
        if word == "one" {
            home.container("box", &["echo", "said"]);
        }
        home.create("box").await.unwrap();
        home.go("box").await.unwrap();
        home.wait("box").await.unwrap();
        home.delete("box", false).await.unwrap();
    }
    assert_eq!(home.out("box").await, "said\nsaid\n");
    home.container("box", &["echo", "anew"]);
    assert!(
        home.try_lines(logs("box", None))
            .await
            .unwrap_err()
            .is(Code::NotFound)
    );
    home.create("box").await.unwrap();
    home.go("box").await.unwrap();
    home.wait("box").await.unwrap();
    home.delete("box", false).await.unwrap();
    assert_eq!(home.out("box").await, "anew\n");
    home.records.borrow_mut().clear();
    assert!(
        home.try_lines(logs("box", None))
            .await
            .unwrap_err()
            .is(Code::NotFound)
    );
    home.gone().await;
}

#[actix_rt::test]
async fn discarded_output_is_no_log() {
    let home = Home::start();
    home.container("box", &["echo", "lost"]);
    let stdio = contracts::tasks::Stdio {
        discard: true,
        ..Default::default()
    };
    home.create_with("box", stdio).await.unwrap();
    home.go("box").await.unwrap();
    home.wait("box").await.unwrap();
    assert_eq!(home.out("box").await, "");
    home.delete("box", false).await.unwrap();
    home.gone().await;
}
