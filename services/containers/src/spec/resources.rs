//! Limits of a container as its cgroup gets them.
//!
//! Source: OCI runtime-spec, config-linux.md "Control groups". The numbers are those of cgroups version 1; runtimes
//! translate them for version 2.

use super::error::{Result, SpecError};
use contracts::containers::Resources;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources,
};

/// Microseconds; the kernel's own default period.
const PERIOD: u64 = 100_000;

/// The kernel takes no quota below a millisecond, which is ten thousandths of [`PERIOD`].
const LEAST_CPU_MILLIS: u64 = 10;

/// Below this a container cannot start: its own set-up is charged to it. Source: Docker has the same bound.
const LEAST_MEMORY: u64 = 6 << 20;

/// Translates `asked`, with the rules for devices.
pub(super) fn all(asked: &Resources, devices: Vec<LinuxDeviceCgroup>) -> Result<LinuxResources> {
    let mut resources = LinuxResources::default();
    resources
        .set_devices(Some(devices))
        .set_memory(memory(asked)?)
        .set_cpu(cpu(asked)?)
        .set_pids(pids(asked)?)
        .set_block_io(block_io(asked)?);
    Ok(resources)
}

fn memory(asked: &Resources) -> Result<Option<LinuxMemory>> {
    let limit = bytes("resources.memory", asked.memory)?;
    let reservation = bytes("resources.memory_reservation", asked.memory_reservation)?;
    if limit.is_some() && asked.memory < LEAST_MEMORY {
        let problem = format!("a container needs at least {LEAST_MEMORY} bytes");
        return Err(SpecError::new("resources.memory", asked.memory, problem));
    }
    if asked.memory > 0 && asked.memory_reservation > asked.memory {
        let problem = format!("must not be above resources.memory {}", asked.memory);
        return Err(SpecError::new(
            "resources.memory_reservation",
            asked.memory_reservation,
            problem,
        ));
    }
    let swap = swap(asked)?;
    if limit.is_none() && reservation.is_none() && swap.is_none() {
        return Ok(None);
    }
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(limit)
        .set_reservation(reservation)
        .set_swap(swap);
    Ok(Some(memory))
}

fn bytes(option: &str, asked: u64) -> Result<Option<i64>> {
    match i64::try_from(asked) {
        Ok(0) => Ok(None),
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err(SpecError::new(
            option,
            asked,
            format!("must be at most {}", i64::MAX),
        )),
    }
}

fn swap(asked: &Resources) -> Result<Option<i64>> {
    let refuse = |problem: &str| {
        Err(SpecError::new(
            "resources.memory_swap",
            asked.memory_swap,
            problem,
        ))
    };
    match u64::try_from(asked.memory_swap) {
        Ok(0) => Ok(None),
        Ok(_) if asked.memory == 0 => {
            refuse("counts memory and swap together, set resources.memory too")
        }
        Ok(total) if total < asked.memory => {
            refuse("counts memory and swap together, so it cannot be below resources.memory")
        }
        Err(_) if asked.memory_swap != -1 => {
            refuse("must be -1 for unlimited, or a number of bytes")
        }
        _ => Ok(Some(asked.memory_swap)),
    }
}

fn cpu(asked: &Resources) -> Result<Option<LinuxCpu>> {
    let mut cpu = LinuxCpu::default();
    if asked.cpu_millis > 0 {
        cpu.set_quota(Some(quota(asked.cpu_millis)?))
            .set_period(Some(PERIOD));
    }
    if asked.cpu_shares > 0 {
        if !(2..=262_144).contains(&asked.cpu_shares) {
            return Err(SpecError::new(
                "resources.cpu_shares",
                asked.cpu_shares,
                "must be 2 to 262144",
            ));
        }
        cpu.set_shares(Some(asked.cpu_shares));
    }
    cpu.set_cpus(list("resources.cpuset_cpus", &asked.cpuset_cpus)?);
    cpu.set_mems(list("resources.cpuset_mems", &asked.cpuset_mems)?);
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

fn quota(millis: u64) -> Result<i64> {
    let quota = i64::try_from(millis)
        .ok()
        .and_then(|millis| millis.checked_mul(100));
    quota.filter(|_| millis >= LEAST_CPU_MILLIS).ok_or_else(|| {
        let problem = format!("counts thousandths of a processor, from {LEAST_CPU_MILLIS} on");
        SpecError::new("resources.cpu_millis", millis, problem)
    })
}

/// Checks a list of numbers and ranges. Source: Linux, `cpuset(7)` "List format".
fn list(option: &str, text: &str) -> Result<Option<String>> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    let range = |part: &str| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => number(first)
            .zip(number(last))
            .is_some_and(|(first, last)| first <= last),
    };
    if text.split(',').all(range) {
        return Ok(Some(text.to_owned()));
    }
    Err(SpecError::new(
        option,
        text,
        "must be a list of numbers and ranges, as in 0-1,3",
    ))
}

fn pids(asked: &Resources) -> Result<Option<LinuxPids>> {
    match asked.pids {
        0 => Ok(None),
        limit @ (-1 | 1..) => {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            Ok(Some(pids))
        }
        other => Err(SpecError::new(
            "resources.pids",
            other,
            "must be -1 for unlimited, or a number of processes",
        )),
    }
}

fn block_io(asked: &Resources) -> Result<Option<LinuxBlockIo>> {
    match asked.blkio_weight {
        0 => Ok(None),
        weight @ 10..=1000 => {
            let mut io = LinuxBlockIo::default();
            io.set_weight(Some(weight));
            Ok(Some(io))
        }
        other => Err(SpecError::new(
            "resources.blkio_weight",
            other,
            "must be 10 to 1000",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(asked: Resources) -> LinuxResources {
        all(&asked, Vec::new()).unwrap()
    }

    #[test]
    fn what_is_not_asked_is_not_limited() {
        let resources = made(Resources::default());
        assert!(resources.memory().is_none() && resources.cpu().is_none());
        assert!(resources.pids().is_none() && resources.block_io().is_none());
    }

    #[test]
    fn a_processor_and_a_half_is_a_quota_of_its_period() {
        let resources = made(Resources {
            cpu_millis: 1500,
            cpuset_cpus: "0-1,3".into(),
            ..Resources::default()
        });
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(150_000), Some(100_000)));
        assert_eq!(cpu.cpus().as_deref(), Some("0-1,3"));
    }

    #[test]
    fn limits_that_no_kernel_takes_are_refused_by_name() {
        let base = Resources::default();
        let mib = 1 << 20;
        for (asked, option) in [
            (
                Resources {
                    memory: 1,
                    ..base.clone()
                },
                "resources.memory",
            ),
            (
                Resources {
                    memory: u64::MAX,
                    ..base.clone()
                },
                "resources.memory",
            ),
            (
                Resources {
                    memory: 64 * mib,
                    memory_reservation: 65 * mib,
                    ..base.clone()
                },
                "resources.memory_reservation",
            ),
            (
                Resources {
                    memory: 64 * mib,
                    memory_swap: 1,
                    ..base.clone()
                },
                "resources.memory_swap",
            ),
            (
                Resources {
                    memory_swap: 1,
                    ..base.clone()
                },
                "resources.memory_swap",
            ),
            (
                Resources {
                    memory_swap: -2,
                    ..base.clone()
                },
                "resources.memory_swap",
            ),
            (
                Resources {
                    cpu_millis: 9,
                    ..base.clone()
                },
                "resources.cpu_millis",
            ),
            (
                Resources {
                    cpu_millis: u64::MAX,
                    ..base.clone()
                },
                "resources.cpu_millis",
            ),
            (
                Resources {
                    cpu_shares: 1,
                    ..base.clone()
                },
                "resources.cpu_shares",
            ),
            (
                Resources {
                    cpuset_cpus: "0,,1".into(),
                    ..base.clone()
                },
                "resources.cpuset_cpus",
            ),
            (
                Resources {
                    cpuset_mems: "1-0".into(),
                    ..base.clone()
                },
                "resources.cpuset_mems",
            ),
            (
                Resources {
                    pids: -2,
                    ..base.clone()
                },
                "resources.pids",
            ),
            (
                Resources {
                    blkio_weight: 9,
                    ..base.clone()
                },
                "resources.blkio_weight",
            ),
        ] {
            assert_eq!(all(&asked, Vec::new()).unwrap_err().option, option);
        }
    }

    #[test]
    fn unlimited_swap_and_pids_pass() {
        let resources = made(Resources {
            memory_swap: -1,
            pids: -1,
            ..Resources::default()
        });
        assert_eq!(resources.memory().unwrap().swap(), Some(-1));
        assert_eq!(resources.pids().unwrap().limit(), -1);
    }
}
