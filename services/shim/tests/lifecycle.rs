//! What a daemon relies on: a container's life from create to delete, and what is left afterwards.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use containerd_shim_protos::api::{self, Status};
use serde_json::json;
use support::*;
use ttrpc::Code;

#[tokio::test]
async fn the_exit_code_is_kept_until_delete() -> Outcome {
    exit_code_is_kept(Setup::sh("exit 7")).await
}

#[tokio::test]
async fn the_exit_code_is_kept_until_delete_with_runc() -> Outcome {
    exit_code_is_kept(Setup::sh("exit 7").on("runc")).await
}

async fn exit_code_is_kept(setup: Setup) -> Outcome {
    let shim = setup.start().await?;
    let pid = shim.up().await?;
    assert_eq!(shim.wait().await?, 7);
    assert_eq!(shim.wait().await?, 7, "a second time as well");
    let state = shim.state().await?;
    assert_eq!(state.status.enum_value(), Ok(Status::STOPPED));
    assert_eq!((state.exit_status, state.pid), (7, pid));
    let deleted = shim.delete().await?;
    assert_eq!((deleted.exit_status, deleted.pid), (7, pid));
    assert_eq!(deleted.exited_at, state.exited_at);
    assert_eq!(code(&shim.state().await.unwrap_err()), Code::NOT_FOUND);
    shim.gone().await
}

#[tokio::test]
async fn a_created_container_waits_and_can_be_deleted_unstarted() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::sh("echo ran").on(runtime).start().await?;
        let pid = shim.create().await?;
        let state = shim.state().await?;
        assert_eq!(
            (state.pid, state.status.enum_value()),
            (pid, Ok(Status::CREATED))
        );
        assert_eq!(
            code(&shim.create().await.unwrap_err()),
            Code::ALREADY_EXISTS
        );
        assert_eq!(shim.delete().await?.exit_status, 137);
        assert_eq!(shim.out(), "");
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_shim_makes_another_container_after_the_first_was_deleted() -> Outcome {
    let shim = Setup::sh("echo again").start().await?;
    for round in 1..=3 {
        shim.up().await?;
        assert_eq!(shim.wait().await?, 0);
        shim.delete().await?;
        assert_eq!(shim.out(), "again\n".repeat(round));
    }
    shim.gone().await
}

#[tokio::test]
async fn calls_in_the_wrong_state_are_refused() -> Outcome {
    let shim = Setup::run(&["sleep", "1000"]).start().await?;
    assert_eq!(code(&shim.go().await.unwrap_err()), Code::NOT_FOUND);
    shim.create().await?;
    let exec = shim.exec("early", &["true"], |_| {}).await;
    assert_eq!(code(&exec.unwrap_err()), Code::FAILED_PRECONDITION);
    shim.go().await?;
    assert_eq!(
        code(&shim.go().await.unwrap_err()),
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        code(&shim.delete().await.unwrap_err()),
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        code(&shim.kill(99, false).await.unwrap_err()),
        Code::INVALID_ARGUMENT
    );
    assert_eq!(
        code(&shim.go_exec("nope").await.unwrap_err()),
        Code::NOT_FOUND
    );
    let request = api::CheckpointTaskRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    let checkpoint = shim.client.checkpoint(bound(), &request).await;
    assert_eq!(code(&checkpoint.unwrap_err()), Code::UNIMPLEMENTED);
    shim.shutdown().await;
    assert_eq!(
        shim.state().await?.status.enum_value(),
        Ok(Status::RUNNING),
        "still serving"
    );
    shim.kill(9, false).await?;
    assert_eq!(shim.wait().await?, 137);
    assert_eq!(
        code(&shim.kill(9, false).await.unwrap_err()),
        Code::NOT_FOUND
    );
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_failed_create_says_why_and_leaves_nothing() -> Outcome {
    let missing = Setup::run(&["no-such-program"]).start().await?;
    let error = missing.create().await.unwrap_err().to_string();
    assert!(error.contains("no-such-program"), "{error}");
    missing.gone().await?;

    let mount = Setup::default().start().await?;
    let wrong = mount.create_with(|request| request.rootfs[0].source = "/no/such/layer".into());
    let error = wrong.await.unwrap_err().to_string();
    assert!(error.contains("/no/such/layer"), "{error}");
    mount.gone().await?;

    let binary = Setup::default().on("no-such-runtime").start().await?;
    let error = binary.create().await.unwrap_err();
    assert_eq!(code(&error), Code::NOT_FOUND, "{error}");
    binary.gone().await?;

    let runc = Setup::run(&["no-such-program"]).on("runc").start().await?;
    let error = runc.create().await.unwrap_err().to_string();
    assert!(error.contains("no-such-program"), "{error}");
    runc.gone().await
}

#[tokio::test]
async fn a_create_goes_on_after_its_caller_has_vanished() -> Outcome {
    let shim = Setup::run(&["sleep", "1000"]).start().await?;
    let other = shim.connect().await?;
    let request = shim.request();
    let call = tokio::spawn(async move { other.create(bound(), &request).await });
    tokio::task::yield_now().await;
    call.abort();
    drop(call.await);
    // Whether the request had left at all is a race; if it had, it completes.
    if shim.create().await.is_err() {
        let made = async { while shim.state().await.is_err() {} };
        tokio::time::timeout(BOUND, made).await?;
    }
    shim.go().await?;
    shim.kill(9, true).await?;
    assert_eq!(shim.wait().await?, 137);
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn version_2_of_the_protocol_is_served_as_well() -> Outcome {
    let shim = Setup::sh("exit 3").start().await?;
    shim.up().await?;
    let wait = api::WaitRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    let request = ttrpc::Request {
        service: "containerd.task.v2.Task".into(),
        method: "Wait".into(),
        payload: protobuf::Message::write_to_bytes(&wait)?,
        ..Default::default()
    };
    let answer = shim.raw.request(request).await?;
    let answer: api::WaitResponse = protobuf::Message::parse_from_bytes(&answer.payload)?;
    assert_eq!(answer.exit_status, 3);
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn the_shim_is_one_thread_and_answers_connect() -> Outcome {
    let shim = Setup::run(&["sleep", "1000"]).start().await?;
    let pid = shim.up().await?;
    let request = api::ConnectRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    let answer = shim.client.connect(bound(), &request).await?;
    assert_eq!(answer.task_pid, pid);
    assert_eq!(Some(answer.shim_pid as i32), shim.server_pid());
    let tasks = fs::read_dir(format!("/proc/{}/task", answer.shim_pid))?.count();
    assert_eq!(tasks, 1);
    shim.kill(9, false).await?;
    shim.wait().await?;
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_second_start_prints_the_same_address() -> Outcome {
    let shim = Setup::default().start().await?;
    let again = shim_command(&shim.id, &shim.bundle(), "start").output()?;
    assert_eq!(String::from_utf8(again.stdout)?, shim.address);
    let json = shim_command(&shim.id, &shim.bundle(), "start")
        .env("MAX_SHIM_VERSION", "3")
        .output()?;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!(
        json,
        json!({ "version": 3, "address": shim.address, "protocol": "ttrpc" })
    );
    shim.gone().await
}

#[test]
fn a_socket_folder_that_others_can_enter_is_refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let output = shim_command("x", folder.path(), "start").output()?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("0700"));
    assert_eq!(fs::read_dir(folder.path())?.count(), 0);
    Ok(())
}

#[test]
fn a_deep_bundle_needs_a_socket_elsewhere() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("x".repeat(120));
    fs::create_dir(&bundle)?;
    let output = shim_command("deep", &bundle, "start").output()?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("-socket"));
    let socket = folder.path().join("made-for-it/s");
    let start = |action: &str| {
        shim_command("deep", &bundle, action)
            .arg("-socket")
            .arg(&socket)
            .output()
    };
    let output = start("start")?;
    assert_eq!(
        String::from_utf8(output.stdout)?,
        format!("unix://{}", socket.display())
    );
    assert_eq!(
        fs::metadata(folder.path().join("made-for-it"))?
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    assert!(start("delete")?.status.success());
    assert!(!socket.exists());
    Ok(())
}
