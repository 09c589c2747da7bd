//! What egret is to reach beside its peers, and what it has reached in a run.

use std::fmt::Write as _;

use super::{
    report::number,
    results::{Results, Row, Workload},
};

/// One figure of a row of egret's.
struct Target {
    workload: &'static str,
    /// The beginning of the row's label; the one with the access log on comes first where there are several.
    row: &'static str,
    /// The figure's name; smaller is better.
    figure: &'static str,
    must: Bound,
    aim: Option<Bound>,
}

/// What a figure may be.
#[derive(Clone, Copy)]
enum Bound {
    /// So many times that of the row of this label.
    Times(f64, &'static str),
    /// So many times that of the peer that has the least.
    TimesBest(f64),
    /// So much more than that of the row of this label.
    Over(f64, &'static str),
    AtMost(f64),
}

use Bound::{AtMost, Over, Times, TimesBest};

const fn target(workload: &'static str, figure: &'static str, must: Bound, aim: Option<Bound>) -> Target {
    Target { workload, row: "egret", figure, must, aim }
}

impl Target {
    const fn of(self, row: &'static str) -> Self {
        Self { row, ..self }
    }
}

const CPU: &str = super::results::metrics::PROXY.name;
const CONNECT: &str = "connect, median";
const MANY_HOSTS: &str = "egret, log, 10,000 hosts";

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
    target("W7", "RSS, 250 pods", AtMost(100.0), Some(AtMost(50.0))),
    target("W7", "each of 10,000", AtMost(6.0), Some(AtMost(2.0))),
    target("W8", CPU, Times(1.05, "egret, log, few hosts"), None).of(MANY_HOSTS),
    target("W8", "reload of one object", AtMost(50.0), Some(AtMost(5.0))).of(MANY_HOSTS),
    target("W8", "reload of all", AtMost(2.0), None).of(MANY_HOSTS),
    target("W8", "RSS", AtMost(60.0), None).of(MANY_HOSTS),
    target("W9", CONNECT, Over(1.0, "no capture"), None).of("egret, not enrolled"),
    target("W9", CONNECT, Times(1.0, "1 iptables rule"), Some(Over(5.0, "no capture"))).of("egret, enrolled"),
    // Flat, but for the noise of a run.
    target("W9", CONNECT, Times(1.05, "egret, enrolled"), None).of("egret, 10,000 enrolled"),
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
        let egret = self.value(workload.rows.iter().find(|row| row.label.starts_with(self.row))?)?;
        let (must, aim) = (self.bound(workload, self.must), self.aim.and_then(|aim| self.bound(workload, aim)));
        let reached = |bound: Option<f64>| bound.is_some_and(|bound| egret <= bound);
        let verdict = match must {
            Some(_) if !reached(must) => "**misses the must**",
            _ if reached(aim) => "reaches the aim",
            Some(_) => "reaches the must",
            None => "no peer to compare with",
        };
        let shown = |bound: Option<f64>, of: Bound| match (bound, of) {
            (None, _) => "–".to_owned(),
            (Some(bound), Times(times, peer)) => format!("{} ({times} × {peer})", number(bound)),
            (Some(bound), TimesBest(times)) => format!("{} ({times} × the best peer)", number(bound)),
            (Some(bound), Over(more, row)) => format!("{} ({row} + {more})", number(bound)),
            (Some(bound), AtMost(_)) => number(bound),
        };
        let aim = self.aim.map_or_else(|| "–".to_owned(), |of| shown(aim, of));
        let mut line = String::new();
        let _ = writeln!(
            line,
            "| {} | {}{} | {} | {} | {aim} | {verdict} |",
            self.workload,
            self.figure,
            if self.row == "egret" { String::new() } else { format!(": {}", self.row) },
            number(egret),
            shown(must, self.must),
        );
        Some(line)
    }

    fn value(&self, row: &Row) -> Option<f64> {
        row.figures.iter().find(|figure| figure.name == self.figure).map(|figure| figure.median)
    }

    fn bound(&self, workload: &Workload, bound: Bound) -> Option<f64> {
        let of = |label| self.value(workload.rows.iter().find(|row| row.label == label)?);
        match bound {
            Times(times, label) => of(label).map(|of| times * of),
            Over(more, label) => of(label).map(|of| of + more),
            AtMost(bound) => Some(bound),
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
    use crate::bench::results::{Figures, Machine, Metric};

    fn results(name: &str, figure: &'static str, rows: &[(&str, f64)]) -> Results {
        let row = |(label, value): &(&str, f64)| {
            let mut row = Row::new(label);
            row.add(&Figures::default().with(Metric { name: figure, unit: "" }, *value));
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
        let text = markdown(&results(name, CPU, rows))?;
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

    #[test]
    fn rows_of_egret_are_held_against_numbers_and_each_other() {
        let verdicts = |workload, figure, rows: &[(&str, f64)]| {
            let text = markdown(&results(workload, figure, rows)).unwrap();
            text.lines().skip(5).map(|line| line.rsplit('|').nth(1).unwrap().trim().to_owned()).collect::<Vec<_>>()
        };
        let rows = |pods| [("nginx, no log", 4000.0), ("egret, log", pods)];
        assert_eq!(verdicts("W7", "RSS, 250 pods", &rows(50.0)), ["reaches the aim"]);
        assert_eq!(verdicts("W7", "RSS, 250 pods", &rows(101.0)), ["**misses the must**"]);
        let rows = |stranger, enrolled, many| {
            let others = [("no capture", 5.0), ("1 iptables rule", 8.0)];
            let egret =
                [("egret, not enrolled", stranger), ("egret, enrolled", enrolled), ("egret, 10,000 enrolled", many)];
            [&others[..], &egret].concat()
        };
        let reached = ["reaches the must", "reaches the aim", "reaches the must"];
        assert_eq!(verdicts("W9", CONNECT, &rows(6.0, 7.5, 7.8)), reached);
        // Within the aim of 10 µs, and still worse than the rule.
        assert_eq!(verdicts("W9", CONNECT, &rows(6.1, 8.1, 9.0)), ["**misses the must**"; 3]);
    }
}
