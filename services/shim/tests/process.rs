//! Processes inside a container: signals, execs, terminals, confinement.

mod support;

use std::fs;

use containerd_shim_protos::api::{self, Status};
use containerd_shim_protos::shim::oci::ProcessDetails;
use serde_json::{Value, json};
use support::*;
use ttrpc::Code;

#[tokio::test]
async fn a_signal_reaches_init_and_its_exit_code_counts() -> Outcome {
    for runtime in ["", "runc"] {
        let script = "trap 'exit 5' TERM; echo ready; while true; do sleep 0.01; done";
        let shim = Setup::sh(script).on(runtime).start().await?;
        shim.up().await?;
        until("the trap is set", || shim.out().contains("ready")).await?;
        shim.kill(15, false).await?;
        assert_eq!(shim.wait().await?, 5);
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn kill_all_ends_a_container_that_shares_the_hosts_pids() -> Outcome {
    let shim = Setup::sh("sleep 1000 & sleep 1000 & echo ready; wait")
        .with(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|ns| ns["type"] != "pid");
        })
        .start()
        .await?;
    shim.up().await?;
    until("all run", || shim.out().contains("ready")).await?;
    let pids = pids(&shim).await?;
    assert!(pids.len() >= 3, "{pids:?}");
    shim.kill(9, false).await?;
    assert_eq!(shim.wait().await?, 137);
    until("the others are ended too", || {
        !pids.iter().any(|pid| alive(pid.0 as i32))
    })
    .await?;
    shim.delete().await?;
    shim.gone().await
}

async fn pids(shim: &Shim) -> ttrpc::Result<Vec<(u32, String)>> {
    let request = api::PidsRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    let answer = shim.client.pids(bound(), &request).await?;
    let name = |any: &protobuf::well_known_types::any::Any| {
        let details: ProcessDetails = protobuf::Message::parse_from_bytes(&any.value).unwrap();
        details.exec_id
    };
    let one = |p: api::ProcessInfo| (p.pid, p.info.as_ref().map(name).unwrap_or_default());
    Ok(answer.processes.into_iter().map(one).collect())
}

#[tokio::test]
async fn pause_stops_the_processes_and_resume_lets_them_go_on() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::sh("i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done")
            .on(runtime)
            .start()
            .await?;
        shim.up().await?;
        until("it counts", || shim.out().contains("3\n")).await?;
        let pause = api::PauseRequest {
            id: shim.id.clone(),
            ..Default::default()
        };
        shim.client.pause(bound(), &pause).await?;
        assert_eq!(shim.state().await?.status.enum_value(), Ok(Status::PAUSED));
        let file = shim.cgroup_file("freezer", "freezer.state");
        if file.exists() {
            assert_eq!(fs::read_to_string(file)?.trim(), "FROZEN");
        }
        let again = shim.client.pause(bound(), &pause).await;
        assert_eq!(code(&again.unwrap_err()), Code::FAILED_PRECONDITION);
        let before = shim.out().len();
        let resume = api::ResumeRequest {
            id: shim.id.clone(),
            ..Default::default()
        };
        shim.client.resume(bound(), &resume).await?;
        until("it counts on", || shim.out().len() > before).await?;
        shim.client.pause(bound(), &pause).await?;
        shim.kill(9, false).await?;
        assert_eq!(shim.wait().await?, 137, "a paused container can be killed");
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_exec_runs_inside_and_its_exit_is_its_own() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::run(&["sleep", "1000"]).on(runtime).start().await?;
        shim.up().await?;
        shim.exec(
            "one",
            &["sh", "-c", "echo $$ in $(cat /proc/1/comm); exit 4"],
            |_| {},
        )
        .await?;
        let twice = shim.exec("one", &["true"], |_| {}).await;
        assert_eq!(code(&twice.unwrap_err()), Code::ALREADY_EXISTS);
        shim.go_exec("one").await?;
        assert_eq!(shim.wait_exec("one").await?, 4);
        assert!(
            shim.read("one").contains("in sleep"),
            "{}",
            shim.read("one")
        );
        assert_eq!(shim.delete_exec("one").await?.exit_status, 4);
        assert_eq!(
            code(&shim.wait_exec("one").await.unwrap_err()),
            Code::NOT_FOUND
        );
        assert_eq!(shim.state().await?.status.enum_value(), Ok(Status::RUNNING));

        shim.exec("two", &["sleep", "1000"], |_| {}).await?;
        let pid = shim.go_exec("two").await?;
        let pids = pids(&shim).await?;
        assert!(pids.contains(&(pid, "two".to_owned())), "{pids:?}");
        shim.kill(9, true).await?;
        assert_eq!(shim.wait_exec("two").await?, 137, "ends with the container");
        assert_eq!(shim.wait().await?, 137);
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_exec_that_cannot_start_says_why_and_is_over() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::run(&["sleep", "1000"]).on(runtime).start().await?;
        shim.up().await?;
        shim.exec("bad", &["no-such-program"], |_| {}).await?;
        let error = shim.go_exec("bad").await.unwrap_err().to_string();
        assert!(error.contains("no-such-program"), "{error}");
        assert_eq!(shim.wait_exec("bad").await?, 137);
        shim.delete_exec("bad").await?;
        shim.kill(9, false).await?;
        shim.wait().await?;
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn many_fast_execs_lose_neither_output_nor_exit_code() -> Outcome {
    let shim = Setup::run(&["sleep", "1000"]).start().await?;
    shim.up().await?;
    for round in 0..20 {
        let name = format!("e{round}");
        shim.exec(
            &name,
            &["sh", "-c", &format!("echo {round}; exit {round}")],
            |_| {},
        )
        .await?;
        shim.go_exec(&name).await?;
        assert_eq!(shim.wait_exec(&name).await?, round);
        assert_eq!(shim.read(&name), format!("{round}\n"));
        shim.delete_exec(&name).await?;
    }
    shim.kill(9, false).await?;
    shim.wait().await?;
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_terminal_has_the_size_it_was_given() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::sh("tty; while true; do stty size; sleep 0.01; done")
            .on(runtime)
            .with(|spec| spec["process"]["terminal"] = json!(true))
            .start()
            .await?;
        shim.create_with(|request| {
            request.terminal = true;
            request.stderr.clear();
        })
        .await?;
        shim.go().await?;
        resize(&shim, "", 132, 43).await?;
        until("the size arrives", || shim.out().contains("43 132\r\n")).await?;
        assert!(shim.out().starts_with("/dev/pts/0\r\n"), "{}", shim.out());
        shim.exec("plain", &["sleep", "1000"], |_| {}).await?;
        shim.go_exec("plain").await?;
        let none = resize(&shim, "plain", 1, 1).await.unwrap_err();
        assert_eq!(code(&none), Code::FAILED_PRECONDITION);

        shim.exec(
            "tty",
            &["sh", "-c", "read line; echo got $line; stty size"],
            |request| {
                request.terminal = true;
                request.stderr.clear();
                fifo(&shim.path("in"));
                request.stdin = shim.path("in").display().to_string();
            },
        )
        .await?;
        shim.go_exec("tty").await?;
        resize(&shim, "tty", 81, 25).await?;
        fs::write(shim.path("in"), "hello\n")?;
        assert_eq!(shim.wait_exec("tty").await?, 0);
        let said = shim.read("tty");
        assert!(
            said.contains("got hello\r\n") && said.contains("25 81\r\n"),
            "{said}"
        );
        shim.kill(9, true).await?;
        shim.wait().await?;
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

async fn resize(shim: &Shim, exec_id: &str, width: u32, height: u32) -> ttrpc::Result<()> {
    let request = api::ResizePtyRequest {
        id: shim.id.clone(),
        exec_id: exec_id.into(),
        width,
        height,
        ..Default::default()
    };
    shim.client.resize_pty(bound(), &request).await.map(drop)
}

/// A profile that forbids one call, with an errno of its own.
fn seccomp(spec: &mut Value) {
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{ "names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }],
    });
}

const CONFINED: &str = "grep -E 'Seccomp:|NoNewPrivs|CapEff|SigIgn|SigBlk' /proc/self/status; \
                        mkdir /tmp/x 2>&1; id -u";

#[tokio::test]
async fn init_and_exec_run_under_the_seccomp_profile_and_capabilities() -> Outcome {
    for (runtime, no_new_privileges) in [("", true), ("", false), ("runc", false)] {
        let shim = Setup::sh(&format!("{CONFINED}; sleep 1000"))
            .on(runtime)
            .with(seccomp)
            .with(|spec| spec["process"]["noNewPrivileges"] = json!(no_new_privileges))
            .start()
            .await?;
        shim.up().await?;
        until("init has looked", || shim.out().ends_with("\n0\n")).await?;
        shim.exec("look", &["sh", "-c", CONFINED], |_| {}).await?;
        shim.go_exec("look").await?;
        assert_eq!(shim.wait_exec("look").await?, 0);
        // CHOWN, KILL, SETGID, SETUID, MKNOD as the spec says.
        for said in [shim.out(), shim.read("look")] {
            assert!(
                said.contains("Seccomp:\t2"),
                "{runtime} {no_new_privileges}: {said}"
            );
            assert!(said.contains("CapEff:\t00000000080000e1"), "{said}");
            let ignored = said
                .split("SigIgn:\t")
                .nth(1)
                .and_then(|text| text.lines().next());
            let ignored = u64::from_str_radix(ignored.unwrap_or_default(), 16)?;
            // The C library ignores its own 32 and 33 in what it spawns, such as runc.
            assert_eq!(ignored & !(0b11 << 31), 0, "{said}");
            assert!(said.contains("SigBlk:\t0000000000000000"), "{said}");
            assert!(
                said.contains("Function not implemented"),
                "mkdir is forbidden: {said}"
            );
        }
        shim.kill(9, false).await?;
        shim.wait().await?;
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_user_without_rights_owns_its_stdio() -> Outcome {
    let look = "id -u; echo twice > /dev/stdout; grep CapEff /proc/self/status";
    let shim = Setup::sh(look)
        .with(|spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/nothing");
        })
        .start()
        .await?;
    shim.up().await?;
    assert_eq!(
        shim.wait().await?,
        0,
        "{}",
        String::from_utf8_lossy(&shim.logged("stderr"))
    );
    assert!(
        shim.out()
            .starts_with("1000\ntwice\nCapEff:\t0000000000000000"),
        "{}",
        shim.out()
    );
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn an_oom_score_that_cannot_be_lowered_is_no_obstacle() -> Outcome {
    for runtime in ["", "runc"] {
        for wanted in [-998, 300] {
            let shim = Setup::sh("cat /proc/self/oom_score_adj")
                .on(runtime)
                .with(|spec| spec["process"]["oomScoreAdj"] = json!(wanted))
                .start()
                .await?;
            shim.up().await?;
            assert_eq!(shim.wait().await?, 0);
            let got: i32 = shim.out().trim().parse()?;
            assert!(got == wanted || wanted < 0, "{got}");
            shim.delete().await?;
            let own = fs::read_to_string(format!(
                "/proc/{}/oom_score_adj",
                shim.server_pid().unwrap_or_default()
            ))?;
            assert_ne!(own.trim(), "300", "the shim keeps its own");
            shim.gone().await?;
        }
    }
    Ok(())
}
