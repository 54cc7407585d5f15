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
