//! What a run of the suite found, as it is written to a file: for every row of every workload, each figure of each run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A figure's name with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
}

/// The figures that most workloads have.
pub mod metrics {
    use super::Metric;

    pub const RATE: Metric = Metric { name: "rate", unit: "requests/s" };
    pub const P50: Metric = Metric { name: "p50", unit: "µs" };
    pub const P90: Metric = Metric { name: "p90", unit: "µs" };
    pub const P99: Metric = Metric { name: "p99", unit: "µs" };
    /// CPU time of the proxy for each request.
    pub const PROXY: Metric = Metric { name: "proxy CPU", unit: "µs/request" };
    /// CPU time of the client, the proxy and the server for each request: what eBPF moves into the client is in it.
    pub const SUM: Metric = Metric { name: "CPU in all", unit: "µs/request" };
}

/// What one turn of one row gave.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub values: Vec<(Metric, f64)>,
    /// Requests or connections that did not come to their good end.
    pub errors: u64,
}

impl Figures {
    #[must_use]
    pub fn with(mut self, metric: Metric, value: f64) -> Self {
        self.values.push((metric, value));
        self
    }
}

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// When it began, RFC 3339.
    pub date: String,
    pub machine: Machine,
    /// Version of each program, by name.
    pub programs: BTreeMap<String, String>,
    /// Turns of each row.
    pub runs: usize,
    /// Length of each measured load, in seconds.
    pub seconds: f64,
    pub workloads: Vec<Workload>,
    /// Instructions of each pure part of a request's way; empty where they were not counted.
    #[serde(default)]
    pub instructions: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    /// CPUs that the suite was allowed to use.
    pub cpus: usize,
    pub memory_mib: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// `W1`
    pub name: String,
    pub title: String,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// `Envoy, log`
    pub label: String,
    pub figures: Vec<Figure>,
    /// Errors of all turns together.
    pub errors: u64,
    /// Why turns failed that gave no figures.
    pub failures: Vec<String>,
}

/// One figure over all turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub unit: String,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub values: Vec<f64>,
}

impl Row {
    #[must_use]
    pub fn new(label: &str) -> Self {
        Self { label: label.to_owned(), figures: Vec::new(), errors: 0, failures: Vec::new() }
    }

    /// Takes one more turn in.
    pub fn add(&mut self, turn: &Figures) {
        self.errors += turn.errors;
        for (metric, value) in &turn.values {
            let at = self.figures.iter().position(|figure| figure.name == metric.name);
            let at = at.unwrap_or_else(|| {
                self.figures.push(Figure::new(*metric));
                self.figures.len() - 1
            });
            self.figures[at].add(*value);
        }
    }

    /// The figure of this name, where any turn gave it.
    #[must_use]
    pub fn figure(&self, metric: Metric) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == metric.name)
    }
}

impl Figure {
    fn new(metric: Metric) -> Self {
        let (name, unit) = (metric.name.to_owned(), metric.unit.to_owned());
        Self { name, unit, median: 0.0, min: 0.0, max: 0.0, values: Vec::new() }
    }

    fn add(&mut self, value: f64) {
        self.values.push(value);
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        self.median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        (self.min, self.max) = (sorted[0], sorted[sorted.len() - 1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_errors_of_all_turns() {
        let mut row = Row::new("egret");
        for (value, errors) in [(30.0, 0), (10.0, 2), (20.0, 1)] {
            row.add(&Figures { values: vec![(metrics::PROXY, value)], errors });
        }
        let figure = row.figure(metrics::PROXY).unwrap();
        assert_eq!((figure.median, figure.min, figure.max, row.errors), (20.0, 10.0, 30.0, 3));
        row.add(&Figures::default().with(metrics::PROXY, 40.0));
        assert_eq!(row.figure(metrics::PROXY).unwrap().median, 25.0);
        assert!(row.figure(metrics::P50).is_none());
    }

    #[test]
    fn a_file_reads_as_it_was_written() {
        let mut row = Row::new("nginx");
        row.add(&Figures::default().with(metrics::RATE, 1234.5));
        let text = serde_json::to_string(&row).unwrap();
        let read: Row = serde_json::from_str(&text).unwrap();
        assert_eq!(read.figures, row.figures);
    }
}
