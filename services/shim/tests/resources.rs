//! Cgroups and mounts: limits, metrics, out of memory, deep overlays.

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;

use containerd_shim_protos::api;
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use protobuf::Message;
use serde_json::json;
use support::*;

fn memory_limit(shim: &Shim) -> String {
    let v1 = shim.cgroup_file("memory", "memory.limit_in_bytes");
    let v2 = shim.cgroup_file("memory", "memory.max");
    let text = fs::read_to_string(v1).or_else(|_| fs::read_to_string(v2));
    text.unwrap_or_default().trim().to_owned()
}

#[tokio::test]
async fn an_update_changes_the_limits_of_the_running_container() -> Outcome {
    for runtime in ["", "runc"] {
        let shim = Setup::run(&["sleep", "1000"])
            .on(runtime)
            .with(|spec| spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 }))
            .start()
            .await?;
        shim.up().await?;
        assert_eq!(memory_limit(&shim), (64 << 20).to_string());
        let resources = json!({ "memory": { "limit": 32 << 20 }, "pids": { "limit": 50 } });
        let request = api::UpdateTaskRequest {
            id: shim.id.clone(),
            resources: Some(any("LinuxResources", resources.to_string())).into(),
            ..Default::default()
        };
        shim.client.update(bound(), &request).await?;
        assert_eq!(memory_limit(&shim), (32 << 20).to_string());
        assert_eq!(
            fs::read_to_string(shim.cgroup_file("pids", "pids.max"))?.trim(),
            "50"
        );
        let bad = api::UpdateTaskRequest {
            resources: Some(any("LinuxResources", "nonsense")).into(),
            ..request
        };
        assert!(shim.client.update(bound(), &bad).await.is_err());
        shim.kill(9, false).await?;
        shim.wait().await?;
        shim.delete().await?;
        shim.gone().await?;
    }
    Ok(())
}

#[tokio::test]
async fn metrics_show_memory_cpu_and_processes() -> Outcome {
    let shim = Setup::sh("i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo done; sleep 1000")
        .with(|spec| spec["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 }))
        .with(|spec| spec["linux"]["resources"]["pids"] = json!({ "limit": 77 }))
        .start()
        .await?;
    shim.up().await?;
    until("it has worked", || shim.out().contains("done")).await?;
    let request = api::StatsRequest {
        id: shim.id.clone(),
        ..Default::default()
    };
    let stats = shim
        .client
        .stats(bound(), &request)
        .await?
        .stats
        .unwrap_or_default();
    let (limit, usage, cpu, pids) = if stats.type_url == "io.containerd.cgroups.v1.Metrics" {
        let m = v1::Metrics::parse_from_bytes(&stats.value)?;
        (
            m.memory.usage.limit,
            m.memory.usage.usage,
            m.cpu.usage.total / 1000,
            m.pids,
        )
    } else {
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
        let m = v2::Metrics::parse_from_bytes(&stats.value)?;
        let pids = v1::PidsStat {
            current: m.pids.current,
            limit: m.pids.limit,
            ..Default::default()
        };
        (
            m.memory.usage_limit,
            m.memory.usage,
            m.cpu.usage_usec,
            Some(pids).into(),
        )
    };
    assert_eq!(limit, 64 << 20);
    assert!((1..64 << 20).contains(&usage), "{usage}");
    assert!(cpu > 1000, "{cpu} µs");
    assert!(
        (1..=2).contains(&pids.current) && pids.limit == 77,
        "{pids:?}"
    );
    shim.kill(9, false).await?;
    shim.wait().await?;
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn an_overlay_of_two_hundred_layers_is_mounted() -> Outcome {
    let shim = Setup::sh("cat /layer-*; touch /new && echo written")
        .start()
        .await?;
    let deep = shim.path("a-folder-with-a-rather-long-name-so-that-the-options-exceed-a-page");
    let mut layers = vec![shim.path("image")];
    for number in 0..200 {
        let layer = deep.join(format!("{number}/fs"));
        fs::create_dir_all(&layer)?;
        fs::write(
            layer.join(format!("layer-{number:03}")),
            format!("{number}\n"),
        )?;
        layers.push(layer);
    }
    let text: Vec<_> = layers
        .iter()
        .map(|path| path.as_os_str().as_bytes())
        .collect();
    let lower = String::from_utf8(text.join(&b':'))?;
    assert!(lower.len() > 3 * 4096);
    let upper = shim.path("upper");
    // The upper layer needs a file system that can be one: a tmpfs of this container's own bundle.
    fs::create_dir_all(upper.join("fs"))?;
    fs::create_dir_all(upper.join("work"))?;
    shim.create_with(|request| {
        request.rootfs[0].type_ = "overlay".into();
        request.rootfs[0].source = "overlay".into();
        request.rootfs[0].options = vec![
            format!("lowerdir={lower}"),
            format!("upperdir={}", upper.join("fs").display()),
            format!("workdir={}", upper.join("work").display()),
        ];
    })
    .await?;
    shim.go().await?;
    assert_eq!(
        shim.wait().await?,
        0,
        "{}",
        String::from_utf8_lossy(&shim.logged("stderr"))
    );
    let expected: String = (0..200).map(|number| format!("{number}\n")).collect();
    assert_eq!(shim.out(), expected + "written\n");
    assert!(upper.join("fs/new").exists());
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn the_mounts_of_a_container_are_not_seen_on_the_host() -> Outcome {
    let shim = Setup::run(&["sleep", "1000"]).start().await?;
    let pid = shim.up().await?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&shim.bundle().display().to_string()));
    assert!(fs::read_dir(shim.bundle().join("rootfs"))?.next().is_none());
    assert!(fs::exists(format!("/proc/{pid}/root/bin/busybox"))?);
    shim.kill(9, false).await?;
    shim.wait().await?;
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_container_that_is_shown_its_cgroups_finds_itself_there() -> Outcome {
    if !fs::exists("/sys/fs/cgroup/pids")? {
        return Ok(()); // a host of version 2 shows one hierarchy, by another way
    }
    let shim = Setup::sh("cat /sys/fs/cgroup/pids/cgroup.procs; grep pids /proc/self/cgroup")
        .with(|spec| {
            let mount = json!({ "destination": "/sys/fs/cgroup", "type": "cgroup",
                "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"] });
            spec["mounts"].as_array_mut().unwrap().push(mount);
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
    assert!(shim.out().starts_with("1\n"), "{}", shim.out());
    assert!(shim.out().contains(&shim.id), "{}", shim.out());
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_limit_of_one_process_leaves_room_for_that_one() -> Outcome {
    let shim = Setup::sh("echo alone; true & wait")
        .with(|spec| spec["linux"]["resources"]["pids"] = json!({ "limit": 1 }))
        .start()
        .await?;
    shim.up().await?;
    assert_ne!(shim.wait().await?, 0, "it may not fork");
    assert_eq!(shim.out(), "alone\n");
    shim.delete().await?;
    shim.gone().await
}

#[tokio::test]
async fn a_cgroup_somebody_lives_in_is_not_taken() -> Outcome {
    let first = Setup::run(&["sleep", "1000"]).start().await?;
    first.up().await?;
    let path = format!("/{}", first.id);
    let second = Setup::default()
        .with(|spec| spec["linux"]["cgroupsPath"] = json!(path))
        .start()
        .await?;
    if fs::exists("/sys/fs/cgroup/pids")? {
        let error = second.create().await.unwrap_err();
        assert_eq!(code(&error), ttrpc::Code::FAILED_PRECONDITION, "{error}");
    }
    second.gone().await?;
    first.kill(9, false).await?;
    first.wait().await?;
    first.delete().await?;
    first.gone().await
}

#[tokio::test]
async fn hooks_run_in_their_order() -> Outcome {
    for runtime in ["", "runc"] {
        let folder = tempfile::tempdir()?;
        let trace = folder.path().join("trace");
        let hook = |name: &str| {
            let script = format!("grep -q ociVersion && echo {name} >> {}", trace.display());
            json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
        };
        let hooks = json!({
            "createRuntime": hook("create"),
            "poststart": hook("started"),
            "poststop": hook("stopped"),
        });
        let shim = Setup::default()
            .on(runtime)
            .with(|spec| spec["hooks"] = hooks)
            .start()
            .await?;
        shim.up().await?;
        assert_eq!(shim.wait().await?, 0);
        shim.delete().await?;
        assert_eq!(
            fs::read_to_string(&trace)?,
            "create\nstarted\nstopped\n",
            "{runtime}"
        );
        shim.gone().await?;
    }
    Ok(())
}
