//! What a user may ask of a container is what its processes find inside.

use std::fs;

use integration::Outcome;
use integration::image::{Compression, Entry, Layer, sample};
use integration::node::Node;
use integration::registry::Registry;
use serde_json::{Value, json};

const WAITING: &str = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done";

/// A node with an image whose config says how to run it.
async fn with_image() -> Outcome<(Registry, Node, String)> {
    let registry = Registry::start().await?;
    let script = "echo $0 $*; id; pwd; env | sort";
    let tools = Layer::new()
        .with(&Entry::dir("work").owner(1000, 1000))
        .with(&Entry::file("tell", format!("#!/bin/sh\n{script}\n")).mode(0o755));
    let image = sample::busybox()?
        .layer(tools.pack(Compression::Gzip)?)
        .set("Env", vec!["PATH=/bin", "COLOUR=blue", "GONE=soon"])
        .set("WorkingDir", "/work")
        .set("User", "plain")
        .set("Entrypoint", vec!["/tell"])
        .set("Cmd", vec!["of", "the", "image"]);
    let name = registry.push(&image.pack(), "tell", "1").await?;
    let node = Node::start().await?;
    node.pull(&name).await?;
    Ok((registry, node, name))
}

async fn output(node: &Node, mut options: Value) -> Outcome<String> {
    options["id"] = "one".into();
    node.run_with(options).await?;
    let code = node.exit_code("one").await?;
    let log = node.logs("one").await?;
    node.remove("one").await?;
    match code {
        0 => Ok(log.replace('\r', "")),
        _ => Err(format!("ended with {code}: {log}").into()),
    }
}

#[actix_rt::test]
async fn without_a_wish_it_runs_as_its_image_says() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let seen = output(&node, json!({"image": name})).await?;
    for line in [
        "/tell of the image",
        "uid=1000(plain) gid=1000(plain) groups=1000(plain),2000(extra)",
        "/work",
        "COLOUR=blue",
        "HOSTNAME=one",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line:?} in {seen}");
    }
    let command = output(&node, json!({"image": name, "command": ["mine"]})).await?;
    assert!(command.starts_with("/tell mine\n"), "{command}");
    node.stop_clean().await
}

#[actix_rt::test]
async fn every_wish_is_fulfilled_inside() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("file"), "of the host")?;
    let wishes: [(Value, &str, &str); 16] = [
        (
            json!({"env": ["COLOUR=red", "GONE"]}),
            "echo $COLOUR ${GONE-unset}",
            "red unset",
        ),
        (json!({"cwd": "/etc"}), "pwd", "/etc"),
        (json!({"user": "root"}), "id -u", "0"),
        (json!({"user": "1234:77"}), "id -u; id -g", "1234\n77"),
        (
            json!({"user": "root", "groups": ["extra"]}),
            "id -G",
            "0 2000",
        ),
        (json!({"hostname": "other"}), "hostname", "other"),
        (
            json!({"mounts": [{"source": host.path(), "destination": "/h", "readonly": true}]}),
            "cat /h/file; touch /h/x 2>&1 | grep -o Read-only",
            "of the hostRead-only",
        ),
        (
            json!({"user": "root", "mounts": [{"type": "tmpfs", "destination": "/t", "options": ["size=64k"]}]}),
            "df -k /t | tail -n 1 | awk '{print $2}'",
            "64",
        ),
        (
            json!({"user": "root", "readonly": true}),
            "touch /x 2>&1 | grep -o Read-only",
            "Read-only",
        ),
        (
            json!({"user": "root", "caps": {"drop": ["all"], "add": ["NET_RAW"]}}),
            "grep CapEff /proc/self/status",
            "CapEff:\t0000000000002000",
        ),
        (
            json!({"rlimits": [{"type": "nofile", "soft": 77, "hard": 99}]}),
            "ulimit -n; ulimit -Hn",
            "77\n99",
        ),
        (
            json!({"new_privileges": false}),
            "grep NoNew /proc/self/status",
            "NoNewPrivs:\t1",
        ),
        (
            json!({"tty": true}),
            "tty; test -t 0 && echo terminal",
            "/dev/pts/0\nterminal",
        ),
        (json!({"network": "none"}), "ls /sys/class/net", "lo"),
        (
            json!({"sysctls": {"net.ipv4.ip_forward": "1"}}),
            "cat /proc/sys/net/ipv4/ip_forward",
            "1",
        ),
        (
            json!({"seccomp": "unconfined"}),
            "grep Seccomp: /proc/self/status",
            "Seccomp:\t0",
        ),
    ];
    for (mut wish, script, expected) in wishes {
        wish["image"] = name.as_str().into();
        wish["args"] = json!(["sh", "-c", script]);
        let seen = output(&node, wish.clone()).await;
        let seen = seen.map_err(|error| format!("{wish}: {error}"))?;
        assert_eq!(seen.trim_end(), expected, "{wish}");
    }
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_container_may_share_what_is_the_hosts() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let own = fs::read_link("/proc/self/ns/net")?;
    let args = json!(["readlink", "/proc/self/ns/net"]);
    let shared = json!({"image": name, "network": "host", "args": args});
    assert_eq!(
        output(&node, shared).await?.trim_end(),
        own.to_string_lossy()
    );
    let private = json!({"image": name, "args": args});
    assert_ne!(
        output(&node, private).await?.trim_end(),
        own.to_string_lossy()
    );
    let pids = json!({"image": name, "pid": "host", "args": ["sh", "-c", "echo $$"]});
    assert_ne!(output(&node, pids).await?, "1\n");
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_whole_spec_is_taken_as_it_is() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    node.post(
        &node.at("/containers"),
        json!({"id": "made", "image": name}),
    )
    .await?
    .ok()?;
    let made = node.get(&node.at("/containers/made")).await?.ok()?;
    let mut spec = made["spec"].clone();
    spec["process"]["args"] = json!(["sh", "-c", "hostname; echo $WHENCE"]);
    spec["process"]["env"] = json!(["PATH=/bin", "WHENCE=spec"]);
    spec["hostname"] = "from-spec".into();
    spec["linux"]["cgroupsPath"] = format!("/gantry/{}/one", node.namespace()).into();
    let seen = output(&node, json!({"image": name, "spec": spec})).await?;
    assert_eq!(seen, "from-spec\nspec\n");
    node.remove("made").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn a_running_container_takes_processes_signals_and_other_limits() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let options = json!({"id": "one", "image": name, "args": ["sh", "-c", WAITING],
        "resources": {"memory": 64 << 20, "pids": 50, "cpu_millis": 500}});
    node.run_with(options).await?;
    node.until_logged("one", "ready").await?;

    let body = json!({"args": ["sh", "-c", "id -un; pwd; echo $A; echo bad >&2; exit 5"],
        "user": "root", "cwd": "/etc", "env": ["A=b"]});
    let done = node
        .post(&node.at("/tasks/one:exec?wait=true"), body)
        .await?
        .ok()?;
    assert_eq!(done["stdout"], "root\n/etc\nb\n", "{done}");
    assert_eq!(
        (&done["stderr"], &done["exit_code"]),
        (&"bad\n".into(), &5.into())
    );

    let limits = json!({"resources": {"memory": {"limit": 32 << 20}}});
    node.post(&node.at("/tasks/one:update"), limits)
        .await?
        .ok()?;
    let used = node.get(&node.at("/tasks/one/metrics")).await?.ok()?;
    assert_eq!(used["memory"]["limit"], 32 << 20, "{used}");
    assert_eq!(used["pids"]["limit"], 50, "{used}");
    assert!(used["cpu"]["total"].as_u64() > Some(0), "{used}");

    node.post(&node.at("/tasks/one:kill"), json!({"signal": "KILL"}))
        .await?
        .ok()?;
    assert_eq!(node.exit_code("one").await?, 137);
    let late = node
        .post(
            &node.at("/tasks/one:exec?wait=true"),
            json!({"args": ["true"]}),
        )
        .await?;
    assert_eq!(late.refusal(409)?, "FAILED_PRECONDITION");
    // A stopped task keeps how it ended, and goes without force.
    let task = node.task("one").await?;
    assert_eq!(
        (&task["status"], &task["exit_code"]),
        (&"stopped".into(), &137.into())
    );
    let exit = node.delete(&node.at("/tasks/one")).await?.ok()?;
    assert_eq!(exit["exit_code"], 137);
    // The record is still there, and can be started anew.
    node.post(&node.at("/tasks"), json!({"id": "one"}))
        .await?
        .ok()?;
    node.post(&node.at("/tasks/one:start"), ()).await?.ok()?;
    node.remove("one").await?;
    node.stop_clean().await
}

#[actix_rt::test]
async fn logs_are_followed_cut_and_told_apart() -> Outcome {
    let (_registry, node, name) = with_image().await?;
    let script = "for i in 1 2 3 4 5; do echo $i; done; echo last >&2";
    node.run("one", &name, &["sh", "-c", script]).await?;
    let read = async |query: &str| -> Outcome<String> {
        let path = node.at(&format!("/tasks/one/logs{query}"));
        Ok(node.get(&path).await?.text())
    };
    assert!(read("?follow=true").await?.contains("5\n"));
    assert_eq!(
        read("?stream=stdout&tail=2").await?.lines().last(),
        Some("5")
    );
    assert_eq!(read("?stream=stderr").await?, "last\n");
    assert_eq!(read("?since=2099-01-01T00:00:00Z").await?, "");
    let stamped = read("?timestamps=true&stream=stderr").await?;
    assert!(
        stamped.starts_with("20") && stamped.ends_with("Z last\n"),
        "{stamped}"
    );
    node.remove("one").await?;
    assert_eq!(
        node.get(&node.at("/tasks/one/logs")).await?.refusal(404)?,
        "NOT_FOUND"
    );
    node.stop_clean().await
}
