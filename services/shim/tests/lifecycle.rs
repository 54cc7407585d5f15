//! What a daemon relies on: a container's life from create to delete, and what is left afterwards.

mod support;

use containerd_shim_protos::api::Status;
use support::*;
use ttrpc::Code;

#[tokio::test]
async fn the_exit_code_is_kept_until_delete() -> Outcome {
    let shim = Setup::sh("exit 7").start().await?;
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
async fn everything_written_before_the_exit_is_in_the_log_when_wait_returns() -> Outcome {
    for _ in 0..5 {
        let shim = Setup::sh("seq 1 3000; echo bad >&2; printf tail")
            .start()
            .await?;
        shim.up().await?;
        assert_eq!(shim.wait().await?, 0);
        let expected: String = (1..=3000).map(|n| format!("{n}\n")).collect();
        assert_eq!(shim.out(), expected + "tail");
        assert_eq!(shim.logged("stderr"), b"bad\n");
        shim.delete().await?;
    }
    Ok(())
}
