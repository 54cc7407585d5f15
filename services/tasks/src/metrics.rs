//! A shim's metrics message → what the contract calls measured. Pure.
//!
//! Sources: containerd/cgroups, `metrics.proto` of versions 1 and 2.

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use contracts::tasks::Measured;
use contracts::{Error, Result, Timestamp};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use std::fmt::Write;

/// No limit, as version 1 has it: the largest multiple of a page in a signed number.
const UNLIMITED: u64 = (i64::MAX as u64) & !0xfff;
/// Nanoseconds of a microsecond.
const MICRO: u64 = 1000;

/// Reads a message of either version. Errors: `Internal` for bytes that do not decode.
pub(crate) fn measured(stats: &Any) -> Result<Measured> {
    let name = stats.type_url.rsplit('/').next().unwrap_or_default();
    let broken = |e| Error::internal(format!("metrics {name}: {e}"));
    let mut measured = match name {
        "io.containerd.cgroups.v1.Metrics" => {
            version_1(&v1::Metrics::parse_from_bytes(&stats.value).map_err(broken)?)
        }
        "io.containerd.cgroups.v2.Metrics" => {
            version_2(&v2::Metrics::parse_from_bytes(&stats.value).map_err(broken)?)
        }
        // Another kind of shim: whoever knows the type reads the raw bytes.
        _ => Measured::default(),
    };
    measured.time = Timestamp::now();
    measured.raw = (stats.type_url.clone(), hex(&stats.value));
    Ok(measured)
}

fn version_1(metrics: &v1::Metrics) -> Measured {
    let (usage, throttling) = (&metrics.cpu.usage, &metrics.cpu.throttling);
    let memory = &metrics.memory;
    let moved = |operation: &str| -> u64 {
        let all = &metrics.blkio.io_service_bytes_recursive;
        all.iter()
            .filter(|entry| entry.op.eq_ignore_ascii_case(operation))
            .map(|entry| entry.value)
            .sum()
    };
    Measured {
        cpu_total: usage.total,
        cpu_user: usage.user,
        cpu_kernel: usage.kernel,
        cpu_throttled_periods: throttling.throttled_periods,
        cpu_throttled_time: throttling.throttled_time,
        memory_usage: memory.usage.usage,
        memory_limit: limit(memory.usage.limit),
        memory_peak: memory.usage.max,
        memory_cache: memory.total_cache,
        memory_anon: memory.total_rss,
        pids: metrics.pids.current,
        pids_limit: limit(metrics.pids.limit),
        io_read: moved("read"),
        io_write: moved("write"),
        oom_kills: metrics.memory_oom_control.oom_kill,
        ..Measured::default()
    }
}

fn version_2(metrics: &v2::Metrics) -> Measured {
    let (cpu, memory) = (&metrics.cpu, &metrics.memory);
    let moved = |which: fn(&v2::IOEntry) -> u64| metrics.io.usage.iter().map(which).sum();
    Measured {
        cpu_total: cpu.usage_usec * MICRO,
        cpu_user: cpu.user_usec * MICRO,
        cpu_kernel: cpu.system_usec * MICRO,
        cpu_throttled_periods: cpu.nr_throttled,
        cpu_throttled_time: cpu.throttled_usec * MICRO,
        memory_usage: memory.usage,
        memory_limit: limit(memory.usage_limit),
        memory_peak: memory.max_usage,
        memory_cache: memory.file,
        memory_anon: memory.anon,
        pids: metrics.pids.current,
        pids_limit: limit(metrics.pids.limit),
        io_read: moved(|entry| entry.rbytes),
        io_write: moved(|entry| entry.wbytes),
        oom_kills: metrics.memory_events.oom_kill,
        ..Measured::default()
    }
}

fn limit(value: u64) -> u64 {
    if value >= UNLIMITED { 0 } else { value }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::any;

    #[test]
    fn both_versions_are_read_in_the_same_units() {
        let mut first = v1::Metrics::default();
        first
            .cpu
            .mut_or_insert_default()
            .usage
            .mut_or_insert_default()
            .total = 5000;
        first
            .memory
            .mut_or_insert_default()
            .usage
            .mut_or_insert_default()
            .limit = UNLIMITED;
        let mut second = v2::Metrics::default();
        second.cpu.mut_or_insert_default().usage_usec = 5;
        second.memory.mut_or_insert_default().usage_limit = u64::MAX;
        let messages = [
            any(
                "io.containerd.cgroups.v1.Metrics",
                first.write_to_bytes().unwrap(),
            ),
            any(
                "types/io.containerd.cgroups.v2.Metrics",
                second.write_to_bytes().unwrap(),
            ),
        ];
        for message in messages {
            let measured = measured(&message).unwrap();
            assert_eq!((measured.cpu_total, measured.memory_limit), (5000, 0));
            assert_eq!(measured.raw.1.len(), message.value.len() * 2);
        }
    }

    #[test]
    fn a_message_of_another_kind_is_only_passed_on() {
        let measured = measured(&any("wasm.Stats", vec![1, 255])).unwrap();
        assert_eq!(measured.raw, ("wasm.Stats".into(), "01ff".into()));
    }
}
