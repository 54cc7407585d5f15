//! Counters of requests, and the text of `/metrics`. Source: Prometheus text exposition format 0.0.4.

use crate::convert::audit::word;
use actix_web::http::{Method, StatusCode};
use contracts::plugin::{PluginInfo, State};
use contracts::tasks::{Audited, LeakKind};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

/// Requests that ended, by method, path and status.
type Ended = BTreeMap<(String, String, u16), Tally>;

#[derive(Default)]
struct Tally {
    count: u64,
    time: Duration,
}

/// What this process has seen since it started.
#[derive(Default)]
pub(crate) struct Metrics {
    ended: RefCell<Ended>,
    in_flight: Cell<u64>,
}

/// A request under way. An abandoned one stops being in flight when this is dropped.
pub(crate) struct Started<'a> {
    at: Instant,
    in_flight: &'a Cell<u64>,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }
}

impl Metrics {
    /// Notes that a request began.
    pub(crate) fn begin(&self) -> Started<'_> {
        self.in_flight.set(self.in_flight.get() + 1);
        Started {
            at: Instant::now(),
            in_flight: &self.in_flight,
        }
    }

    /// Notes that its answer began.
    pub(crate) fn end(
        &self,
        started: Started<'_>,
        method: &Method,
        path: String,
        status: StatusCode,
    ) {
        let mut ended = self.ended.borrow_mut();
        // Anybody may make methods up, and each would be a line for ever.
        let method = match *method {
            Method::GET
            | Method::HEAD
            | Method::POST
            | Method::PUT
            | Method::PATCH
            | Method::DELETE => method.as_str(),
            _ => "other",
        };
        let tally = ended
            .entry((method.to_owned(), path, status.as_u16()))
            .or_default();
        tally.count += 1;
        tally.time += started.at.elapsed();
    }

    /// Writes everything as text.
    pub(crate) fn text(&self, plugins: &[PluginInfo]) -> String {
        let mut text = String::new();
        self.requests(&mut text);
        for (name, help, value) in PLUGIN_GAUGES {
            head(&mut text, name, "gauge", help);
            for plugin in plugins {
                line(
                    &mut text,
                    name,
                    &[("plugin", plugin.id.as_str())],
                    value(plugin),
                );
            }
        }
        text
    }

    fn requests(&self, text: &mut String) {
        let ended = self.ended.borrow();
        let labels = |text: &mut String, name: &str, value: fn(&Tally) -> f64| {
            for ((method, path, status), tally) in ended.iter() {
                let status = status.to_string();
                let labels = [
                    ("method", method.as_str()),
                    ("route", path),
                    ("status", &status),
                ];
                line(text, name, &labels, value(tally));
            }
        };
        head(
            text,
            "gantry_http_requests_total",
            "counter",
            "Requests whose answer began",
        );
        labels(text, "gantry_http_requests_total", |tally| {
            tally.count as f64
        });
        head(
            text,
            "gantry_http_request_seconds_total",
            "counter",
            "Time until the answer began",
        );
        labels(text, "gantry_http_request_seconds_total", |tally| {
            tally.time.as_secs_f64()
        });
        head(
            text,
            "gantry_http_requests_in_flight",
            "gauge",
            "Requests without an answer yet",
        );
        line(
            text,
            "gantry_http_requests_in_flight",
            &[],
            self.in_flight.get() as f64,
        );
    }
}

type PluginGauge = (&'static str, &'static str, fn(&PluginInfo) -> f64);

const PLUGIN_GAUGES: [PluginGauge; 3] = [
    (
        "gantry_plugin_up",
        "1 when the plugin and all that it requires answer",
        |plugin| f64::from(u8::from(plugin.state == State::Ready)),
    ),
    (
        "gantry_plugin_restarts",
        "Times it was started again",
        |plugin| f64::from(plugin.restarts),
    ),
    (
        "gantry_plugin_memory_bytes",
        "Proportional set size of its process",
        |plugin| plugin.memory as f64,
    ),
];

type TasksGauge = (&'static str, &'static str, fn(&Audited) -> u64);

const TASKS_GAUGES: [TasksGauge; 5] = [
    ("gantry_tasks", "Tasks on record", |audited| audited.tasks),
    (
        "gantry_tasks_unknown",
        "Tasks whose shim does not answer",
        |audited| audited.unknown,
    ),
    (
        "gantry_tasks_shims",
        "Processes of shims of this node",
        |audited| audited.shims,
    ),
    (
        "gantry_tasks_leaks",
        "What the last look found on the host that belongs to no task",
        |audited| audited.leaks.iter().filter(|leak| !leak.cleaned).count() as u64,
    ),
    (
        "gantry_tasks_audit_microseconds",
        "What the last look took",
        |audited| audited.micros,
    ),
];

/// Writes what the auditor of tasks saw last.
pub(crate) fn tasks(text: &mut String, audited: &Audited) {
    for (name, help, value) in TASKS_GAUGES {
        head(text, name, "gauge", help);
        line(text, name, &[], value(audited) as f64);
    }
    let name = "gantry_tasks_leaks_total";
    head(text, name, "counter", "Leaks that were cleaned");
    for kind in [
        LeakKind::Shim,
        LeakKind::Bundle,
        LeakKind::Socket,
        LeakKind::Mount,
        LeakKind::Cgroup,
    ] {
        let cleaned = audited.cleaned.iter().find(|(it, _)| *it == kind);
        let count = cleaned.map_or(0, |(_, count)| *count);
        line(text, name, &[("kind", word(kind))], count as f64);
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let labels: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect();
    let labels = match labels.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", labels.join(",")),
    };
    let _ = writeln!(text, "{name}{labels} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_request_is_no_longer_in_flight() {
        let metrics = Metrics::default();
        let started = metrics.begin();
        assert!(
            metrics
                .text(&[])
                .contains("gantry_http_requests_in_flight 1\n")
        );
        drop(started);
        assert!(
            metrics
                .text(&[])
                .contains("gantry_http_requests_in_flight 0\n")
        );
    }

    #[test]
    fn leaks_are_counted_by_kind_also_before_there_are_any() {
        let mut text = String::new();
        let audited = Audited {
            cleaned: vec![(LeakKind::Cgroup, 3)],
            ..Audited::default()
        };
        tasks(&mut text, &audited);
        assert!(text.contains("gantry_tasks_leaks_total{kind=\"cgroup\"} 3\n"));
        assert!(text.contains("gantry_tasks_leaks_total{kind=\"shim\"} 0\n"));
    }

    #[test]
    fn requests_are_counted_by_route_and_status() {
        let metrics = Metrics::default();
        for _ in 0..2 {
            metrics.end(
                metrics.begin(),
                &Method::GET,
                "/v1/version".into(),
                StatusCode::OK,
            );
        }
        let text = metrics.text(&[]);
        let wanted =
            r#"gantry_http_requests_total{method="GET",route="/v1/version",status="200"} 2"#;
        assert!(text.contains(wanted), "{text}");
    }
}
