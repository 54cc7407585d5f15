//! Where bytes come from and go to.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use containerd_shim_protos::api;
use support::*;
use ttrpc::Code;

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
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_of_binary_data_is_kept_exactly() -> Outcome {
    let shim = Setup::sh("cat /data; cat /data >&2").start().await?;
    let data: Vec<u8> = (0..3_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(shim.path("image/data"), &data)?;
    shim.up().await?;
    assert_eq!(shim.wait().await?, 0);
    assert!(shim.logged("stdout") == data, "stdout differs");
    assert!(shim.logged("stderr") == data, "stderr differs");
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_prompt_without_a_newline_is_shown_while_it_waits() -> Outcome {
    let shim = Setup::sh("printf 'name: '; sleep 1000").start().await?;
    shim.up().await?;
    until("the prompt is in the log", || shim.out() == "name: ").await?;
    shim.kill(9, false).await?;
    shim.wait().await?;
    assert_eq!(shim.out(), "name: ", "and only once");
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn files_are_appended_as_is_and_both_streams_may_share_one() -> Outcome {
    let shim = Setup::sh("echo one; echo two >&2").start().await?;
    fs::write(shim.path("a file"), "before\n")?;
    let uri = format!("file://{}", shim.path("a%20file").display());
    shim.create_with(|request| {
        request.stdout = uri.clone();
        request.stderr = uri.clone();
    })
    .await?;
    shim.go().await?;
    assert_eq!(shim.wait().await?, 0);
    let said = shim.read("a file");
    assert!(
        said.starts_with("before\n") && said.len() == "before\none\ntwo\n".len(),
        "{said}"
    );
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn no_uri_means_dev_null() -> Outcome {
    let shim = Setup::sh("cat; echo x; echo y >&2; ls -l /proc/self/fd/1")
        .start()
        .await?;
    shim.create_with(|request| {
        request.stdout.clear();
        request.stderr.clear();
    })
    .await?;
    shim.go().await?;
    assert_eq!(shim.wait().await?, 0);
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_wrong_uri_is_refused_by_name() -> Outcome {
    let shim = Setup::default().start().await?;
    let http = shim
        .create_with(|request| request.stdout = "http://x/y".into())
        .await
        .unwrap_err();
    assert_eq!(code(&http), Code::INVALID_ARGUMENT);
    let missing = shim
        .create_with(|request| request.stderr = "/no/fifo".into())
        .await
        .unwrap_err();
    assert_eq!(code(&missing), Code::NOT_FOUND);
    shim.gone().await
}

#[tokio::test]
async fn stdin_writers_come_and_go_until_it_is_closed() -> Outcome {
    let shim = Setup::run(&["cat"]).start().await?;
    fifo(&shim.path("in"));
    shim.create_with(|request| request.stdin = shim.path("in").display().to_string())
        .await?;
    shim.go().await?;
    fs::write(shim.path("in"), "first\n")?;
    until("the first writer is heard", || shim.out() == "first\n").await?;
    let long = "x".repeat(300_000);
    let (path, text) = (shim.path("in"), long.clone());
    tokio::task::spawn_blocking(move || fs::write(path, text)).await??;
    let request = api::CloseIORequest {
        id: shim.id.clone(),
        stdin: true,
        ..Default::default()
    };
    shim.client.close_io(bound(), &request).await?;
    assert_eq!(shim.wait().await?, 0, "cat has seen the end");
    assert_eq!(shim.out(), format!("first\n{long}"));
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_plain_file_may_be_stdin() -> Outcome {
    let shim = Setup::run(&["cat"]).start().await?;
    fs::write(shim.path("in"), "from a file\n")?;
    shim.create_with(|request| request.stdin = shim.path("in").display().to_string())
        .await?;
    shim.go().await?;
    assert_eq!(shim.wait().await?, 0);
    assert_eq!(shim.out(), "from a file\n");
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_fifo_reader_may_leave_and_come_back() -> Outcome {
    let shim = Setup::sh("seq 1 50000").start().await?;
    fifo(&shim.path("out"));
    shim.create_with(|request| request.stdout = shim.path("out").display().to_string())
        .await?;
    shim.go().await?;
    let open = || {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(shim.path("out"))
    };
    let mut text = drain(&mut open()?, 10_000).await?;
    let expected: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    text.extend(drain(&mut open()?, expected.len() - text.len()).await?);
    assert!(
        text == expected.as_bytes(),
        "what was read is not what was written"
    );
    assert_eq!(shim.wait().await?, 0);
    shim.delete().await?;
    shim.gone().await
}

/// Reads `count` bytes of a fifo whose writer is slower than we.
async fn drain(fifo: &mut File, count: usize) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while text.len() < count {
        let want = chunk.len().min(count - text.len());
        match fifo.read(&mut chunk[..want]) {
            Ok(0) | Err(_) => tokio::task::yield_now().await,
            Ok(got) => text.extend_from_slice(&chunk[..got]),
        }
    }
    Ok(text)
}

#[tokio::test]
async fn an_exit_is_told_though_nobody_reads_the_fifo() -> Outcome {
    let shim = Setup::sh("yes | head -c 100000").start().await?;
    fifo(&shim.path("out"));
    shim.create_with(|request| request.stdout = shim.path("out").display().to_string())
        .await?;
    shim.go().await?;
    let mut options = OpenOptions::new();
    let reader = options
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(shim.path("out"))?;
    until("the fifo is full", || {
        rustix::io::ioctl_fionread(&reader).is_ok_and(|n| n > 60_000)
    })
    .await?;
    shim.kill(9, true).await?;
    tokio::time::timeout(Duration::from_secs(5), shim.wait()).await??;
    tokio::time::timeout(Duration::from_secs(5), shim.delete()).await??;
    shim.gone().await
}

#[tokio::test]
async fn a_logging_process_gets_both_streams() -> Outcome {
    let shim = Setup::sh("echo one; echo two >&2").start().await?;
    let program = shim.path("logger");
    let script = format!(
        "#!/bin/sh\nexec 5>&-\n(echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $*\"; cat <&3; cat <&4) > {0}/part\n\
         mv {0}/part {0}/logged\n",
        shim.folder.path().display()
    );
    File::create(&program)?.write_all(script.as_bytes())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let uri = format!("binary://{}?mode=test", program.display());
    shim.create_with(|request| {
        request.stdout = uri.clone();
        request.stderr = uri.clone();
    })
    .await?;
    shim.go().await?;
    assert_eq!(shim.wait().await?, 0);
    shim.delete().await?;
    until("the logger has ended", || shim.path("logged").exists()).await?;
    assert_eq!(
        shim.read("logged"),
        format!("test {} mode test\none\ntwo\n", shim.id)
    );
    shim.gone().await
}
