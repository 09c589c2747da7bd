//! The workloads. One is a file here, and a line in [`all`].
//!
//! The contract: a workload names its **rows** (who is compared, in which setup) and does one **turn** of one row at a time:
//! it starts the row's peer, warms it up, measures, and lets everything go again, so that every turn finds the same empty
//! stage. The suite does the rest: it goes through the rows again and again (`for run { for row { turn } }`), so that what
//! disturbs the machine for a while disturbs all alike; it makes medians, and it tells a turn that failed as a failure of its
//! row and goes on.
//!
//! What a turn hands back is free: any [`Metric`](super::results::Metric)s, the same ones for every row, in the order in
//! which they shall be shown, and the number of errors. [`measured`] gives the usual figures of a load.
//!
//! Rules: pin the proxy, the client and the server ([`Stage::apart`](super::stage::Stage::apart)); leave nothing behind, also
//! where `?` ends the turn, so hold what must be undone in values with `Drop`; ask [`Bench::go_on`] in every wait of your own.

mod bulk;
mod churn;
mod connects;
mod http;
mod many_hosts;
mod memory;
mod passthrough;

use anyhow::Result;

use super::{
    Bench,
    cpu::Snapshot,
    load::Load,
    peers::{Log, Peer, Running, Setup},
    results::{Figures, metrics},
    stage::Cpus,
};

/// See the module's documentation.
pub trait Workload {
    /// As `--workload` has it: `W1`.
    fn name(&self) -> &'static str;

    /// One line that says what is done.
    fn title(&self) -> String;

    /// Whether the quick mode has it too.
    fn quick(&self) -> bool {
        false
    }

    /// Who is compared. Rows whose peer nobody asked for are left out by the suite.
    fn rows(&self) -> Vec<Row>;

    /// One measurement of one row, from an empty stage to an empty stage.
    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures>;
}

/// One line of a workload's table.
#[derive(Clone, Debug)]
pub struct Row {
    pub label: String,
    pub peer: Peer,
    pub setup: Setup,
}

impl Row {
    #[must_use]
    pub fn new(peer: Peer, setup: Setup) -> Self {
        let log = match (peer, setup.log) {
            (Peer::DirectHttp | Peer::DirectHttps, _) => "",
            (_, Log::Off) => ", no log",
            (_, Log::Text) => ", log",
            (_, Log::Json) => ", JSON log",
        };
        Self { label: format!("{}{log}", peer.name()), peer, setup }
    }
}

/// All workloads, in the order in which they run.
#[must_use]
pub fn all() -> Vec<Box<dyn Workload>> {
    let mut all = http::all();
    all.extend(churn::all());
    all.push(Box::new(passthrough::Short));
    all.push(Box::new(bulk::passthrough()));
    all.push(Box::new(bulk::origination()));
    all.push(Box::new(memory::Memory));
    all.push(Box::new(many_hosts::ManyHosts));
    all.push(Box::new(connects::Connects));
    all
}

/// The usual rows: the floors, every peer without a log, Envoy, nginx and egret also with one.
#[must_use]
pub fn usual(setup: &Setup) -> Vec<Row> {
    let with = |peer, log| Row::new(peer, Setup { log, ..setup.clone() });
    vec![
        with(Peer::DirectHttp, Log::Off),
        with(Peer::DirectHttps, Log::Off),
        with(Peer::Envoy, Log::Text),
        with(Peer::Envoy, Log::Off),
        with(Peer::HAProxy, Log::Off),
        with(Peer::Nginx, Log::Text),
        with(Peer::Nginx, Log::Off),
        with(Peer::Egret, Log::Text),
    ]
}

/// CPU time around a load, and the figures that come of both.
///
/// `run` gives what the generator counted, and the CPU time of the client.
pub fn measured(
    bench: &Bench,
    running: &Running,
    run: impl FnOnce() -> Result<(Load, std::time::Duration)>,
) -> Result<Figures> {
    let (proxy, server) = (running.pid().into_iter().collect::<Vec<_>>(), [bench.stage.server()]);
    let before = (Snapshot::of(&proxy), Snapshot::of(&server));
    let (load, client) = run()?;
    let proxy = Snapshot::of(&proxy).since(&before.0);
    let server = Snapshot::of(&server).since(&before.1);
    let each = |time: std::time::Duration| time.as_secs_f64() * 1e6 / load.requests as f64;
    let mut figures = Figures { errors: load.errors, ..Figures::default() };
    if running.pid().is_some() {
        figures = figures.with(metrics::PROXY, each(proxy));
    }
    Ok(figures
        .with(metrics::SUM, each(proxy + server + client))
        .with(metrics::RATE, load.requests as f64 / load.seconds)
        .with(metrics::P50, load.p50)
        .with(metrics::P90, load.p90)
        .with(metrics::P99, load.p99))
}

/// Where the parts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The proxy on one CPU, client and server on another.
    Apart,
    /// Everything on one CPU.
    Together,
}

impl Placement {
    #[must_use]
    pub fn cpus(self, bench: &Bench) -> Cpus {
        match self {
            Self::Apart => bench.stage.apart(),
            Self::Together => bench.stage.together(),
        }
    }
}
