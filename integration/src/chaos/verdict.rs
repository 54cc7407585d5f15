//! What was lost, doubled, refused or left behind.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::hand::Away;
use super::load::{Report, Scene, long};
use super::reader::Seen;
use crate::Outcome;
use crate::node::Node;
use crate::process::until;

/// From an effect to its event, however busy the machine.
const TOLD: Duration = Duration::from_secs(30);

/// How a round went.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Requests that were answered.
    pub requests: u64,
    /// Connections that broke and were repeated.
    pub broken: u64,
    /// Events in the log.
    pub events: u64,
    /// How often the reader had to come back.
    pub resumed: u64,
    /// The slowest request.
    pub slowest: (Duration, String),
    /// Every blow.
    pub away: Vec<Away>,
    /// Everything that must not be; empty when all promises were kept.
    pub problems: Vec<String>,
    expected: BTreeMap<String, u64>,
}

impl Verdict {
    /// Takes the report of one client.
    pub(super) fn heard(&mut self, report: Report) {
        self.requests += report.requests;
        self.broken += report.broken;
        if report.slowest.0 > self.slowest.0 {
            self.slowest = report.slowest;
        }
        self.problems.extend(report.failures);
        for (key, count) in report.expected {
            *self.expected.entry(key).or_default() += count;
        }
    }

    /// Compares the log with what clients were told, and looks at the long-lived tasks. Errors: the node does not answer.
    pub(super) async fn judge(&mut self, node: &Node, scene: &Scene) -> Outcome {
        let expected = self.expected.clone();
        let complete = until("every event is told", TOLD, async || {
            let told = told(node, scene.since).await.ok()?;
            lacking(&expected, &told.counts).is_empty().then_some(told)
        });
        let told = match complete.await {
            Ok(told) => told,
            Err(_) => told(node, scene.since).await?,
        };
        self.events = told.last - scene.since;
        self.problems.extend(told.holes);
        self.problems.extend(lacking(&expected, &told.counts));
        self.problems.extend(doubled(&expected, &told.counts));
        for (number, pid) in scene.pids.iter().enumerate() {
            let id = long(number);
            let task = node.task(&id).await?;
            if task["pid"] != *pid || task["status"] != "running" {
                self.problems
                    .push(format!("{id} had pid {pid} and is {task}"));
            }
            self.problems.extend(uneven(&id, &node.logs(&id).await?));
        }
        Ok(())
    }

    /// Takes what the reader has seen.
    pub(super) fn read(&mut self, seen: Seen) {
        self.resumed = seen.resumed;
        self.problems.extend(seen.problems());
    }

    /// Looks for what is left when everything was deleted and collected. Errors: the node does not answer.
    pub(super) async fn left(&mut self, node: &Node) -> Outcome {
        for (kind, name) in LISTS {
            for row in node.list(kind).await? {
                let row = row[name].as_str().unwrap_or("?");
                self.problems.push(format!("left behind: {kind} {row}"));
            }
        }
        Ok(())
    }

    /// The longest time that anybody was away.
    pub fn slowest_recovery(&self) -> Option<&Away> {
        self.away.iter().max_by_key(|away| away.time)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} blows, {} requests, {} broken connections, {} events, reader resumed {} times",
            self.away.len(),
            self.requests,
            self.broken,
            self.events,
            self.resumed
        )?;
        if let Some(Away { plugin, time }) = self.slowest_recovery() {
            writeln!(f, "slowest recovery {time:?}: {plugin}")?;
        }
        writeln!(
            f,
            "slowest request {:?}: {}",
            self.slowest.0, self.slowest.1
        )?;
        writeln!(f, "{} problems", self.problems.len())?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "  {problem}"))
    }
}

/// Every list of a namespace, and what names its rows.
pub(super) const LISTS: [(&str, &str); 8] = [
    ("/leases", "id"),
    ("/ingests", "ref"),
    ("/content", "digest"),
    ("/snapshots/overlayfs", "key"),
    ("/snapshots/native", "key"),
    ("/images", "name"),
    ("/containers", "id"),
    ("/tasks", "id"),
];

/// What the log says of a node's namespace.
#[derive(Clone, Debug)]
pub struct Told {
    /// How often each `topic subject` is in it.
    pub counts: BTreeMap<String, u64>,
    /// Numbers that are missing or out of order, described.
    pub holes: Vec<String>,
    /// The newest number, of any namespace.
    pub last: u64,
}

/// Reads the log from a number to its end, page by page. Errors: a page is refused.
pub async fn told(node: &Node, since: u64) -> Outcome<Told> {
    let mut told = Told {
        counts: BTreeMap::new(),
        holes: Vec::new(),
        last: since,
    };
    loop {
        let path = format!("/v1/events?since={}&limit=256", told.last);
        let page = node.get(&path).await?.ok()?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            return Ok(told);
        }
        for item in items {
            let number = item["seq"].as_u64().unwrap_or_default();
            if number != told.last + 1 {
                let hole = format!("the log has event {number} after {}", told.last);
                told.holes.push(hole);
            }
            told.last = number;
            if item["namespace"] == node.namespace() {
                *told.counts.entry(named(&item)).or_default() += 1;
            }
        }
    }
}

/// `topic subject` of an event: an added process counts for itself.
fn named(item: &Value) -> String {
    let event = &item["event"];
    let fields = ["exec_id", "id", "name", "container_id", "key", "digest"];
    let mut texts = fields.iter().filter_map(|field| event[*field].as_str());
    let subject = texts.find(|text| !text.is_empty()).unwrap_or_default();
    format!("{} {subject}", item["topic"].as_str().unwrap_or_default())
}

fn lacking(expected: &BTreeMap<String, u64>, told: &BTreeMap<String, u64>) -> Vec<String> {
    let lost = expected.iter().filter_map(|(key, count)| {
        let got = told.get(key).copied().unwrap_or_default();
        (got < *count).then(|| format!("lost: {key} was told {got} times instead of {count}"))
    });
    lost.collect()
}

fn doubled(expected: &BTreeMap<String, u64>, told: &BTreeMap<String, u64>) -> Vec<String> {
    let more = expected.iter().filter_map(|(key, count)| {
        let got = told.get(key).copied().unwrap_or_default();
        (got > *count).then(|| format!("doubled: {key} was told {got} times instead of {count}"))
    });
    more.collect()
}

/// Describes where a counting log does not count.
fn uneven(id: &str, log: &str) -> Option<String> {
    let mut lines = log.lines().enumerate();
    let odd = lines.find(|(wanted, line)| line.parse() != Ok(*wanted))?;
    Some(format!("the log of {id} has {:?} as line {}", odd.1, odd.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_and_what_is_doubled_is_told_apart() {
        let counts = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            let pairs = pairs.iter();
            pairs
                .map(|(key, count)| ((*key).to_owned(), *count))
                .collect()
        };
        let (expected, told) = (counts(&[("a", 1), ("b", 1)]), counts(&[("b", 2), ("c", 1)]));
        assert_eq!(lacking(&expected, &told).len(), 1);
        assert_eq!(doubled(&expected, &told).len(), 1);
        assert!(lacking(&expected, &expected).is_empty());
    }

    #[test]
    fn a_counting_log_shows_its_first_fault() {
        assert_eq!(uneven("x", "0\n1\n2\n"), None);
        assert!(uneven("x", "0\n2\n").is_some());
    }
}
