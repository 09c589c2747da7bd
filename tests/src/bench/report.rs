//! The results as Markdown, for a terminal and for a file.

use std::fmt::Write as _;

use super::results::{Figure, Results, Row, Workload};

/// The whole run.
#[must_use]
pub fn markdown(results: &Results) -> String {
    let machine = &results.machine;
    let programs: Vec<_> = results.programs.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let mut text = format!(
        "{} on {}, {} CPUs of {}, {} MiB. {}.\nMedian [least – most] of {} runs of {} s each.\n",
        results.date,
        machine.kernel,
        machine.cpus,
        machine.cpu,
        machine.memory_mib,
        programs.join(", "),
        results.runs,
        results.seconds
    );
    for workload in &results.workloads {
        text.push_str(&table(workload));
    }
    text.extend(super::targets::markdown(results));
    if !results.instructions.is_empty() {
        text.push_str("\n### Instructions of a request's pure parts\n\n| | instructions |\n|---|---:|\n");
        for (part, count) in &results.instructions {
            let _ = writeln!(text, "| {part} | {count} |");
        }
    }
    text
}

/// One workload.
#[must_use]
pub fn table(workload: &Workload) -> String {
    let mut text = format!("\n### {}: {}\n\n", workload.name, workload.title);
    let mut columns: Vec<(&str, &str)> = Vec::new();
    for figure in workload.rows.iter().flat_map(|row| &row.figures) {
        if !columns.contains(&(&figure.name, &figure.unit)) {
            columns.push((&figure.name, &figure.unit));
        }
    }
    // The floors have no proxy, so that its column would come last.
    columns.sort_by_key(|(name, _)| *name != super::results::metrics::PROXY.name);
    let heads: String = columns.iter().map(|(name, unit)| format!(" {name}, {unit} |")).collect();
    let _ = writeln!(text, "| |{heads} errors |\n|---|{}---:|", "---:|".repeat(columns.len()));
    for row in &workload.rows {
        let cell = |(name, _): &(&str, &str)| {
            let figure = row.figures.iter().find(|figure| figure.name == *name);
            format!(" {} |", figure.map_or_else(|| "–".to_owned(), shown))
        };
        let cells: String = columns.iter().map(cell).collect();
        let _ = writeln!(text, "| {} |{cells} {} |", row.label, row.errors);
    }
    for row in workload.rows.iter().filter(|row| !row.failures.is_empty()) {
        text.push_str(&failures(row));
    }
    text
}

fn failures(row: &Row) -> String {
    let said = row.failures.first().map_or("", String::as_str);
    // The cause stands last.
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = match &lines[..] {
        [first, .., last] => format!("{first} … {last}"),
        few => few.concat(),
    };
    format!("\n{} of {}'s turns failed: {shown}\n", row.failures.len(), row.label)
}

fn shown(figure: &Figure) -> String {
    if figure.values.len() < 2 {
        return number(figure.median);
    }
    format!("{} [{} – {}]", number(figure.median), number(figure.min), number(figure.max))
}

/// Three digits that count, and no more.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Figures, metrics};

    #[test]
    fn a_table_with_a_floor_and_a_failure() {
        let mut floor = Row::new("direct HTTP");
        floor.add(&Figures::default().with(metrics::RATE, 50_000.0));
        let mut egret = Row::new("egret, log");
        egret.add(
            &Figures { errors: 3, ..Figures::default() }.with(metrics::PROXY, 17.04).with(metrics::RATE, 30_000.0),
        );
        egret.add(&Figures::default().with(metrics::PROXY, 19.0).with(metrics::RATE, 32_000.0));
        let mut envoy = Row::new("Envoy, log");
        envoy.failures.push("Envoy ended at once:\nlong story".to_owned());
        let workload = Workload { name: "W1".to_owned(), title: "t".to_owned(), rows: vec![floor, egret, envoy] };
        let wanted = "\n### W1: t\n\n\
            | | proxy CPU, µs/request | rate, requests/s | errors |\n|---|---:|---:|---:|\n\
            | direct HTTP | – | 50000 | 0 |\n\
            | egret, log | 18.0 [17.0 – 19.0] | 31000 [30000 – 32000] | 3 |\n\
            | Envoy, log | – | – | 0 |\n\n1 of Envoy, log's turns failed: Envoy ended at once: … long story\n";
        assert_eq!(table(&workload), wanted);
    }
}
