//! Medians side by side, as a table for people and JSON for machines.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use integration::process::run;
use serde_json::{Value, json};

/// In what a row is measured. Less is better in both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Milliseconds,
    Mebibytes,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
        }
    }
}

#[derive(Debug)]
struct Row {
    name: &'static str,
    unit: Unit,
    gantry: Vec<f64>,
    containerd: Vec<f64>,
}

/// What was measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Value,
    rows: Vec<Row>,
}

impl Report {
    /// Notes what the figures depend on: machine, file system, versions, image.
    pub(crate) fn new(folder: &Path, compressed: u64, megabytes: usize) -> Self {
        let text = |program: &str, args: &[&str]| {
            let output = run(Command::new(program).args(args)).unwrap_or_default();
            String::from_utf8_lossy(&output).trim().to_owned()
        };
        let folder = folder.to_string_lossy();
        let machine = json!({
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "kernel": text("uname", &["-r"]),
            "file_system": text("stat", &["-f", "-c", "%T", &folder]),
            "containerd": text("containerd", &["--version"]),
            "runc": text("runc", &["--version"]).lines().next(),
            "image": format!("10 layers, {megabytes} MiB in files, {} MiB compressed", compressed >> 20),
        });
        Self {
            machine,
            rows: Vec::new(),
        }
    }

    pub(crate) fn gantry(&mut self, name: &'static str, unit: Unit, value: f64) {
        self.row(name, unit).gantry.push(value);
    }

    pub(crate) fn containerd(&mut self, name: &'static str, unit: Unit, value: f64) {
        self.row(name, unit).containerd.push(value);
    }

    fn row(&mut self, name: &'static str, unit: Unit) -> &mut Row {
        let found = self.rows.iter().position(|row| row.name == name);
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row {
                name,
                unit,
                gantry: Vec::new(),
                containerd: Vec::new(),
            });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    /// A Markdown table: medians, the spread behind them, and gantry's share of containerd's median.
    pub(crate) fn table(&self) -> String {
        let mut table = String::from(
            "| less is better | gantry | containerd | ratio | n |\n|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let (ours, theirs) = (Summary::of(&row.gantry), Summary::of(&row.containerd));
            let unit = row.unit.text();
            let ratio = ours.median / theirs.median;
            let _ = writeln!(
                table,
                "| {} | {} | {} | {ratio:.2} | {} |",
                row.name,
                ours.text(unit),
                theirs.text(unit),
                row.gantry.len()
            );
        }
        let _ = writeln!(table, "\n{}", self.machine);
        table
    }

    /// The same with every single value.
    pub(crate) fn json(&self) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let (ours, theirs) = (
                    Summary::of(&row.gantry).median,
                    Summary::of(&row.containerd).median,
                );
                json!({
                    "name": row.name, "unit": row.unit.text(), "ratio": ours / theirs,
                    "gantry": {"median": ours, "values": row.gantry},
                    "containerd": {"median": theirs, "values": row.containerd},
                })
            })
            .collect();
        format!("{:#}\n", json!({"machine": self.machine, "rows": rows}))
    }
}

struct Summary {
    median: f64,
    least: f64,
    most: f64,
}

impl Summary {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            at(half)
        } else {
            f64::midpoint(at(half.wrapping_sub(1)), at(half))
        };
        Self {
            median,
            least: at(0),
            most: at(sorted.len().wrapping_sub(1)),
        }
    }

    fn text(&self, unit: &str) -> String {
        format!(
            "{:.1} {unit} ({:.1}–{:.1})",
            self.median, self.least, self.most
        )
    }
}
