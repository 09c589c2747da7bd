//! The results as a picture (SVG): for every workload one panel, the figure that counts most as a bar for each row.

use std::fmt::Write as _;

use super::{
    report::number,
    results::{Figure, Results, Workload},
};

/// Pixels.
const WIDTH: u32 = 900;
const COLUMNS: u32 = 2;
const MARGIN: u32 = 16;
const HEAD: u32 = 44;
const LINE: u32 = 18;
const LABEL: u32 = 128;
/// Room for the number behind the longest bar.
const NUMBER: u32 = 64;

/// One colour for each peer, told apart also by who sees no red or no green.
const COLOURS: &[(&str, &str)] =
    &[("egret", "#0072b2"), ("Envoy", "#d55e00"), ("HAProxy", "#e69f00"), ("nginx", "#009e73")];
const OTHER: &str = "#999999";

/// All workloads that have figures, two panels side by side. Bars are medians, the thin line on each leads from the least to
/// the most.
#[must_use]
pub fn svg(results: &Results) -> String {
    let panels: Vec<_> = results.workloads.iter().filter_map(Panel::of).collect();
    let mut body = String::new();
    let mut top = MARGIN + LINE;
    for pair in panels.chunks(COLUMNS as usize) {
        let column = WIDTH / COLUMNS;
        for (panel, left) in pair.iter().zip((0..WIDTH).step_by(column as usize)) {
            panel.draw(left + MARGIN, top, column - 2 * MARGIN, &mut body);
        }
        top += pair.iter().map(Panel::height).max().unwrap_or_default();
    }
    let machine = &results.machine;
    let foot = format!(
        "{}, {}, {} CPUs; medians of {}; shorter is better",
        results.date.split('T').next().unwrap_or_default(),
        machine.kernel,
        machine.cpus,
        results.runs
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"{MARGIN}\" fill=\"#666666\">{}</text>\n{body}</svg>\n",
        escaped(&foot),
        height = top + MARGIN,
    )
}

/// One workload's main figure.
struct Panel<'a> {
    title: String,
    unit: String,
    bars: Vec<(&'a str, &'a Figure)>,
}

impl<'a> Panel<'a> {
    /// The first figure that all rows with figures have: the one that the workload shows first, as far as it goes.
    /// Of those that a floor has not (it has no proxy), the floors are left out.
    fn of(workload: &'a Workload) -> Option<Self> {
        let proxies = workload.rows.iter().filter(|row| !row.label.starts_with("direct"));
        let first = proxies.flat_map(|row| row.figures.first()).next()?;
        let same = |figure: &&Figure| figure.name == first.name && figure.unit == first.unit;
        let bars: Vec<_> =
            workload.rows.iter().filter_map(|row| Some((row.label.as_str(), row.figures.iter().find(same)?))).collect();
        Some(Self {
            title: format!("{}: {}", workload.name, workload.title),
            unit: format!("{}, {}", first.name, first.unit),
            bars,
        })
    }

    fn height(&self) -> u32 {
        HEAD + LINE * self.bars.len() as u32 + MARGIN
    }

    fn draw(&self, left: u32, top: u32, width: u32, out: &mut String) {
        let most = self.bars.iter().map(|(_, figure)| figure.max).fold(f64::MIN_POSITIVE, f64::max);
        let room = f64::from(width - LABEL - NUMBER);
        let length = |value: f64| value.max(0.0) / most * room;
        // Longer than its panel it would run into the next one.
        let title = shortened(&self.title, 62);
        let _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>\n\
             <text x=\"{left}\" y=\"{}\" fill=\"#666666\">{}</text>",
            top + 14,
            escaped(&title),
            top + 31,
            escaped(&self.unit)
        );
        let from = left + LABEL;
        for (at, (label, figure)) in (0..).zip(&self.bars) {
            let y = top + HEAD + LINE * at;
            let (bar, middle) = (length(figure.median), y + LINE / 2 - 2);
            let (least, most) = (f64::from(from) + length(figure.min), f64::from(from) + length(figure.max));
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{from}\" y=\"{y}\" width=\"{bar:.1}\" height=\"{}\" fill=\"{}\"/>\n\
                 <line x1=\"{least:.1}\" x2=\"{most:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#333333\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{}</text>",
                from - 6,
                y + 11,
                escaped(&shortened(label, 20)),
                LINE - 4,
                colour(label),
                most.max(f64::from(from) + bar) + 4.0,
                y + 11,
                number(figure.median)
            );
        }
    }
}

fn colour(label: &str) -> &'static str {
    COLOURS.iter().find(|(peer, _)| label.starts_with(peer)).map_or(OTHER, |(_, colour)| colour)
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Figures, Machine, Row, metrics};

    #[test]
    fn each_row_with_the_main_figure_has_a_bar() {
        let row = |label: &str, cpu: &[f64]| {
            let mut row = Row::new(label);
            cpu.iter().for_each(|cpu| row.add(&Figures::default().with(metrics::PROXY, *cpu)));
            row
        };
        let mut floor = Row::new("direct HTTP");
        floor.add(&Figures::default().with(metrics::RATE, 1e6));
        let mut broken = Row::new("HAProxy");
        broken.failures.push("not there".to_owned());
        let rows = vec![floor, row("Envoy, log", &[50.0, 60.0, 55.0]), row("egret <log>", &[20.0]), broken];
        let empty = Workload { name: "W0".to_owned(), title: "nothing".to_owned(), rows: Vec::new() };
        let workload = Workload { name: "W1".to_owned(), title: "kept & alive".to_owned(), rows };
        let results = Results {
            date: "2026-11-21T07:00:00Z".to_owned(),
            machine: Machine::default(),
            programs: Default::default(),
            runs: 3,
            seconds: 5.0,
            workloads: vec![empty, workload],
            instructions: Default::default(),
        };
        let text = svg(&results);
        assert_eq!(text.matches("<rect").count(), 3, "{text}");
        assert!(text.contains("W1: kept &amp; alive") && text.contains("egret &lt;log&gt;"), "{text}");
        let widths: Vec<f64> = text
            .match_indices("width=\"")
            .filter_map(|(at, found)| text[at + found.len()..].split('"').next()?.parse().ok())
            .filter(|width| *width < f64::from(WIDTH))
            .collect();
        // 20 of 55 µs, and the axis ends at Envoy's most, 60.
        assert!((widths[1] / widths[0] - 20.0 / 55.0).abs() < 0.01, "{widths:?}");
    }

    #[test]
    fn long_titles_stay_in_their_panel() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcd", 3), "ab…");
    }
}
