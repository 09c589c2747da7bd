//! What egret is to reach beside its peers, and what it has reached in a run.

use std::fmt::Write as _;

use super::{
    report::number,
    results::{Results, Row, Workload},
};

/// One figure of egret's row, which is the one with the access log on where there are several.
struct Target {
    workload: &'static str,
    /// The figure's name; smaller is better.
    figure: &'static str,
    must: Bound,
    aim: Option<Bound>,
}

/// So many times what others have.
#[derive(Clone, Copy)]
enum Bound {
    /// Of the row of this label.
    Times(f64, &'static str),
    /// Of the peer that has the least.
    TimesBest(f64),
}

use Bound::{Times, TimesBest};

const fn target(workload: &'static str, figure: &'static str, must: Bound, aim: Option<Bound>) -> Target {
    Target { workload, figure, must, aim }
}

const CPU: &str = super::results::metrics::PROXY.name;

/// As the project has set them for itself.
const TARGETS: &[Target] = &[
    target("W1", CPU, Times(0.40, "Envoy, log"), Some(Times(1.0, "nginx, no log"))),
    target("W2", CPU, Times(0.40, "Envoy, log"), Some(Times(1.0, "nginx, no log"))),
    target("W1L1", "p50", Times(0.60, "Envoy, log"), Some(Times(1.0, "nginx, no log"))),
    target("W3", CPU, Times(0.45, "Envoy, log"), Some(Times(1.0, "HAProxy, no log"))),
    target("W4-RSA", CPU, Times(1.0, "Envoy, no log"), None),
    target("W4-P256", CPU, Times(1.0, "Envoy, no log"), None),
    target("W4-resumed", CPU, Times(1.0, "nginx, no log"), Some(Times(0.5, "nginx, no log"))),
    target("W4-mTLS", CPU, Times(1.0, "nginx, no log"), None),
    target("W5-bulk", CPU, TimesBest(0.85), Some(TimesBest(0.6))),
    target("W5-short", CPU, TimesBest(0.85), Some(TimesBest(0.6))),
    target("W6", CPU, TimesBest(0.9), Some(TimesBest(0.75))),
];

/// The table of all targets whose workloads were run; None where there were none.
#[must_use]
pub fn markdown(results: &Results) -> Option<String> {
    let mut text = String::from("\n### Targets\n\n| | figure | egret | must | aim | |\n|---|---|---:|---:|---:|---|\n");
    let empty = text.len();
    for target in TARGETS {
        let Some(workload) = results.workloads.iter().find(|workload| workload.name == target.workload) else {
            continue;
        };
        let Some(line) = target.line(workload) else { continue };
        text.push_str(&line);
    }
    (text.len() > empty).then_some(text)
}

impl Target {
    fn line(&self, workload: &Workload) -> Option<String> {
        let egret = self.value(workload.rows.iter().find(|row| row.label.starts_with("egret"))?)?;
        let (must, aim) = (self.bound(workload, self.must), self.aim.and_then(|aim| self.bound(workload, aim)));
        let reached = |bound: Option<f64>| bound.is_some_and(|bound| egret <= bound);
        let verdict = match (reached(aim), must) {
            (true, _) => "reaches the aim",
            (_, None) => "no peer to compare with",
            (_, must) if reached(must) => "reaches the must",
            _ => "**misses the must**",
        };
        let shown = |bound: Option<f64>, of: Bound| match (bound, of) {
            (None, _) => "–".to_owned(),
            (Some(bound), Times(times, peer)) => format!("{} ({times} × {peer})", number(bound)),
            (Some(bound), TimesBest(times)) => format!("{} ({times} × the best peer)", number(bound)),
        };
        let aim = self.aim.map_or_else(|| "–".to_owned(), |of| shown(aim, of));
        let mut line = String::new();
        let _ = writeln!(
            line,
            "| {} | {} | {} | {} | {aim} | {verdict} |",
            self.workload,
            self.figure,
            number(egret),
            shown(must, self.must),
        );
        Some(line)
    }

    fn value(&self, row: &Row) -> Option<f64> {
        row.figures.iter().find(|figure| figure.name == self.figure).map(|figure| figure.median)
    }

    fn bound(&self, workload: &Workload, bound: Bound) -> Option<f64> {
        match bound {
            Times(times, peer) => {
                workload.rows.iter().find(|row| row.label == peer).and_then(|row| self.value(row)).map(|of| times * of)
            }
            TimesBest(times) => {
                let peers = ["Envoy", "HAProxy", "nginx"];
                let rows = workload.rows.iter().filter(|row| peers.iter().any(|peer| row.label.starts_with(peer)));
                rows.filter_map(|row| self.value(row)).min_by(f64::total_cmp).map(|least| times * least)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Figures, Machine, metrics};

    fn results(name: &str, rows: &[(&str, f64)]) -> Results {
        let row = |(label, cpu): &(&str, f64)| {
            let mut row = Row::new(label);
            row.add(&Figures::default().with(metrics::PROXY, *cpu));
            row
        };
        let rows = rows.iter().map(row).collect();
        Results {
            date: String::new(),
            machine: Machine::default(),
            programs: Default::default(),
            runs: 1,
            seconds: 1.0,
            instructions: Default::default(),
            workloads: vec![Workload { name: name.to_owned(), title: String::new(), rows }],
        }
    }

    fn verdict(name: &str, rows: &[(&str, f64)]) -> Option<String> {
        let text = markdown(&results(name, rows))?;
        text.lines().last().and_then(|line| Some(line.rsplit('|').nth(1)?.trim().to_owned()))
    }

    #[test]
    fn egret_is_held_against_the_row_that_the_target_names() {
        let peers =
            |egret| [("Envoy, log", 50.0), ("Envoy, no log", 10.0), ("nginx, no log", 17.0), ("egret, log", egret)];
        assert_eq!(verdict("W1", &peers(16.9)).unwrap(), "reaches the aim");
        assert_eq!(verdict("W1", &peers(20.0)).unwrap(), "reaches the must");
        assert_eq!(verdict("W1", &peers(20.1)).unwrap(), "**misses the must**");
        assert_eq!(verdict("W1", &[("egret, log", 1.0)]).unwrap(), "no peer to compare with");
        assert_eq!(verdict("W1", &[("Envoy, log", 50.0)]), None);
    }

    #[test]
    fn the_best_peer_is_the_one_that_costs_least() {
        let rows =
            |egret| [("direct HTTPS", 0.1), ("Envoy", 3.0), ("HAProxy", 1.0), ("nginx", 2.0), ("egret, log", egret)];
        assert_eq!(verdict("W6", &rows(0.9)).unwrap(), "reaches the must");
        assert_eq!(verdict("W6", &rows(0.91)).unwrap(), "**misses the must**");
    }
}
