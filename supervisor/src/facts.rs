//! What a process really is and has, from `/proc`: the truth, not what was wished.

use rustix::thread::CapabilitySet;
use std::fs;

/// What the kernel says about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its effective uid.
    pub(crate) uid: u32,
    /// Its effective capabilities, `CAP_CHOWN`.
    pub(crate) capabilities: Vec<String>,
    /// Its proportional set size, bytes.
    pub(crate) memory: u64,
}

/// Reads the facts about `pid`; `None` when it has gone.
pub(crate) fn of(pid: u32) -> Option<Facts> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    Some(Facts {
        memory: memory.map_or(0, |text| pss(&text)),
        ..from_status(&status)
    })
}

/// Proportional set size of all that `pid` has started, and of what that has started, bytes.
pub(crate) fn below(pid: u32) -> u64 {
    // Source: proc_tid_children(5).
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    pids.map(|pid| of(pid).map_or(0, |facts| facts.memory) + below(pid))
        .sum()
}

/// Source: proc_pid_status(5): `Uid` lists real, effective, saved and file-system uid.
fn from_status(status: &str) -> Facts {
    let field = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let uid = field("Uid").and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok());
    let mask = field("CapEff").and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    Facts {
        uid: uid.unwrap_or_default(),
        capabilities: names(mask.unwrap_or_default()),
        memory: 0,
    }
}

fn names(mask: u64) -> Vec<String> {
    let known = CapabilitySet::from_bits_truncate(mask);
    let names = known.iter_names().map(|(name, _)| format!("CAP_{name}"));
    names.collect()
}

/// Source: proc_pid_smaps_rollup(5); kB are KiB.
fn pss(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_memory_are_read() {
        let status = "Name:\tx\nUid:\t1\t700003\t1\t1\nCapPrm:\tffff\nCapEff:\t0000000000000009\n";
        let facts = from_status(status);
        assert_eq!(facts.uid, 700_003);
        assert_eq!(facts.capabilities, ["CAP_CHOWN", "CAP_FOWNER"]);
        assert_eq!(pss("Rss: 9 kB\nPss:    1024 kB\nPss_Anon: 3 kB\n"), 1 << 20);
    }

    #[test]
    fn this_process_has_memory_and_a_gone_one_has_no_facts() {
        assert!(of(std::process::id()).is_some_and(|facts| facts.memory > 0));
        assert_eq!(of(u32::MAX), None);
    }
}
