//! A container's use of resources, from cgroupfs into containerd's metrics messages.
//! Sources: kernel `cgroup-v1/*.rst`, `cgroup-v2.rst`; containerd/cgroups `metrics.proto` v1 and v2.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::cgroup::{Cgroup, UNIFIED};
use crate::error::{About, Error, Result};

/// Clock ticks a second of `cpuacct.stat`: a constant of the kernel's interface (USER_HZ).
const USER_HZ: u64 = 100;

/// Reads everything there is; a missing controller leaves its part out.
pub(crate) fn read(cgroup: &Cgroup) -> Result<Any> {
    if !cgroup.is_v2() {
        return packed("io.containerd.cgroups.v1.Metrics", &version_1(cgroup));
    }
    let dir = cgroup
        .dir(UNIFIED)
        .ok_or_else(|| Error::precondition("the container has no cgroup"))?;
    packed("io.containerd.cgroups.v2.Metrics", &version_2(dir))
}

fn packed(name: &str, message: &impl Message) -> Result<Any> {
    let value = message.write_to_bytes().about(name)?;
    Ok(Any {
        type_url: name.to_owned(),
        value,
        ..Any::default()
    })
}

fn version_1(cgroup: &Cgroup) -> v1::Metrics {
    v1::Metrics {
        pids: cgroup.dir("pids").map(pids_v1).into(),
        cpu: cgroup
            .dir("cpuacct")
            .map(|dir| cpu_v1(dir, cgroup.dir("cpu")))
            .into(),
        memory: cgroup.dir("memory").map(memory_v1).into(),
        memory_oom_control: cgroup.dir("memory").map(oom_v1).into(),
        blkio: cgroup.dir("blkio").map(blkio_v1).into(),
        ..v1::Metrics::default()
    }
}

fn pids_v1(dir: &Path) -> v1::PidsStat {
    v1::PidsStat {
        current: number(dir, "pids.current"),
        limit: limit(dir, "pids.max").unwrap_or(0),
        ..Default::default()
    }
}

fn cpu_v1(acct: &Path, cpu: Option<&Path>) -> v1::CPUStat {
    let ticks = table(acct, "cpuacct.stat");
    let nanos = |key| get(&ticks, key) * (1_000_000_000 / USER_HZ);
    let usage = v1::CPUUsage {
        total: number(acct, "cpuacct.usage"),
        kernel: nanos("system"),
        user: nanos("user"),
        per_cpu: text(acct, "cpuacct.usage_percpu")
            .split(' ')
            .flat_map(str::parse)
            .collect(),
        ..Default::default()
    };
    let throttling = cpu
        .map(|dir| table(dir, "cpu.stat"))
        .map(|stat| v1::Throttle {
            periods: get(&stat, "nr_periods"),
            throttled_periods: get(&stat, "nr_throttled"),
            throttled_time: get(&stat, "throttled_time"),
            ..Default::default()
        });
    v1::CPUStat {
        usage: Some(usage).into(),
        throttling: throttling.into(),
        ..Default::default()
    }
}

fn memory_v1(dir: &Path) -> v1::MemoryStat {
    let stat = table(dir, "memory.stat");
    let get = |key| get(&stat, key);
    v1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry_v1(dir, "memory").into(),
        swap: entry_v1(dir, "memory.memsw").into(),
        kernel: entry_v1(dir, "memory.kmem").into(),
        kernel_tcp: entry_v1(dir, "memory.kmem.tcp").into(),
        ..Default::default()
    }
}

fn entry_v1(dir: &Path, prefix: &str) -> Option<v1::MemoryEntry> {
    let number = |what: &str| number(dir, &format!("{prefix}.{what}"));
    dir.join(format!("{prefix}.usage_in_bytes"))
        .exists()
        .then(|| v1::MemoryEntry {
            limit: number("limit_in_bytes"),
            usage: number("usage_in_bytes"),
            max: number("max_usage_in_bytes"),
            failcnt: number("failcnt"),
            ..Default::default()
        })
}

fn oom_v1(dir: &Path) -> v1::MemoryOomControl {
    let control = table(dir, "memory.oom_control");
    v1::MemoryOomControl {
        oom_kill_disable: get(&control, "oom_kill_disable"),
        under_oom: get(&control, "under_oom"),
        oom_kill: get(&control, "oom_kill"),
        ..Default::default()
    }
}

fn blkio_v1(dir: &Path) -> v1::BlkIOStat {
    let first = |names: [&str; 2]| {
        names
            .into_iter()
            .map(|name| entries_v1(dir, name))
            .find(|found| !found.is_empty())
    };
    let bytes = [
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes",
    ];
    let calls = [
        "blkio.throttle.io_serviced_recursive",
        "blkio.throttle.io_serviced",
    ];
    v1::BlkIOStat {
        io_service_bytes_recursive: first(bytes).unwrap_or_default(),
        io_serviced_recursive: first(calls).unwrap_or_default(),
        ..Default::default()
    }
}

/// Lines such as `8:0 Read 4096`.
fn entries_v1(dir: &Path, file: &str) -> Vec<v1::BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = words.next()?.split_once(':')?;
        Some(v1::BlkIOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: words.next()?.to_owned(),
            value: words.next()?.parse().ok()?,
            ..Default::default()
        })
    };
    text(dir, file).lines().filter_map(entry).collect()
}

fn version_2(dir: &Path) -> v2::Metrics {
    let pids = v2::PidsStat {
        current: number(dir, "pids.current"),
        limit: limit(dir, "pids.max").unwrap_or(0),
        ..Default::default()
    };
    v2::Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu_v2(dir)).into(),
        memory: Some(memory_v2(dir)).into(),
        memory_events: Some(events_v2(dir)).into(),
        io: Some(io_v2(dir)).into(),
        ..v2::Metrics::default()
    }
}

fn cpu_v2(dir: &Path) -> v2::CPUStat {
    let stat = table(dir, "cpu.stat");
    let get = |key| get(&stat, key);
    v2::CPUStat {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        ..Default::default()
    }
}

fn memory_v2(dir: &Path) -> v2::MemoryStat {
    let stat = table(dir, "memory.stat");
    let get = |key| get(&stat, key);
    v2::MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        usage: number(dir, "memory.current"),
        usage_limit: limit(dir, "memory.max").unwrap_or(u64::MAX),
        swap_usage: number(dir, "memory.swap.current"),
        swap_limit: limit(dir, "memory.swap.max").unwrap_or(u64::MAX),
        max_usage: number(dir, "memory.peak"),
        ..Default::default()
    }
}

fn events_v2(dir: &Path) -> v2::MemoryEvents {
    let events = table(dir, "memory.events");
    v2::MemoryEvents {
        low: get(&events, "low"),
        high: get(&events, "high"),
        max: get(&events, "max"),
        oom: get(&events, "oom"),
        oom_kill: get(&events, "oom_kill"),
        ..Default::default()
    }
}

/// Lines such as `8:0 rbytes=1 wbytes=2 rios=3 wios=4`.
fn io_v2(dir: &Path) -> v2::IOStat {
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = words.next()?.split_once(':')?;
        let pairs: HashMap<&str, u64> = words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
            .collect();
        let get = |key| pairs.get(key).copied().unwrap_or(0);
        Some(v2::IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: get("rbytes"),
            wbytes: get("wbytes"),
            rios: get("rios"),
            wios: get("wios"),
            ..Default::default()
        })
    };
    let usage = text(dir, "io.stat").lines().filter_map(entry).collect();
    v2::IOStat {
        usage,
        ..Default::default()
    }
}

fn text(dir: &Path, file: &str) -> String {
    fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn number(dir: &Path, file: &str) -> u64 {
    text(dir, file).trim().parse().unwrap_or(0)
}

/// A limit; none for `max`.
fn limit(dir: &Path, file: &str) -> Option<u64> {
    text(dir, file).trim().parse().ok()
}

/// Lines of a word and a number.
fn table(dir: &Path, file: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text(dir, file).lines().filter_map(pair).collect()
}

fn get(table: &HashMap<String, u64>, key: &str) -> u64 {
    table.get(key).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("folder");
        for (name, content) in files {
            fs::write(folder.path().join(name), content).expect("written");
        }
        folder
    }

    #[test]
    fn version_2_files_are_read_with_max_as_no_limit() {
        let dir = folder(&[
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "cpu.stat",
                "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_throttled 1\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom_kill 2\n"),
            ("io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n"),
        ]);
        let metrics = version_2(dir.path());
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, 0));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.nr_throttled), (10, 1));
        assert_eq!(
            (metrics.memory.usage, metrics.memory.usage_limit),
            (4096, u64::MAX)
        );
        assert_eq!(metrics.memory_events.oom_kill, 2);
        assert_eq!(
            (metrics.io.usage[0].minor, metrics.io.usage[0].wios),
            (16, 4)
        );
    }

    #[test]
    fn version_1_ticks_become_nanoseconds() {
        let dir = folder(&[
            ("cpuacct.usage", "7\n"),
            ("cpuacct.stat", "user 2\nsystem 1\n"),
        ]);
        let cpu = cpu_v1(dir.path(), None);
        assert_eq!(
            (cpu.usage.total, cpu.usage.user, cpu.usage.kernel),
            (7, 20_000_000, 10_000_000)
        );
        assert!(cpu.throttling.is_none());
    }
}
