//! Many configured hosts, W8: start, memory, W1 through a table of that size, and reloads.

use std::{fs, path::Path, thread::sleep, time::Duration};

use anyhow::{Context, Result};

use super::{Placement, Row, Workload, measured};
use crate::bench::{
    Bench,
    cpu::Snapshot,
    hosts::{self, Host},
    load::Wrk,
    memory::resident,
    peers::{Log, Peer, Setup, egret},
    results::{Figures, Metric, metrics},
    upstream,
};

const START: Metric = Metric { name: "start", unit: "s" };
const RSS: Metric = Metric { name: "RSS", unit: "MiB" };
const RELOAD_ONE: Metric = Metric { name: "reload of one object", unit: "ms" };
const RELOAD_ONE_CPU: Metric = Metric { name: "its CPU", unit: "ms" };
const RELOAD_ALL: Metric = Metric { name: "reload of all", unit: "s" };
const RSS_AFTER: Metric = Metric { name: "RSS after that", unit: "MiB" };

const CONNECTIONS: usize = 64;
/// Reloads of one object in each turn, of which the median counts.
const RELOADS: usize = 5;
/// How often the agent is asked whether a reload is done: to learn when, and not to disturb it.
const OFTEN: Duration = Duration::from_millis(1);
const SELDOM: Duration = Duration::from_millis(250);
/// Until memory that was needed for a while is given back.
const SETTLE: Duration = Duration::from_secs(1);
/// Another server of the stage, for hosts that are changed.
const ELSEWHERE: &str = "203.0.113.14";

pub struct ManyHosts;

impl Workload for ManyHosts {
    fn name(&self) -> &'static str {
        "W8"
    }

    fn title(&self) -> String {
        "1,000 and 10,000 hosts: start, W1, memory, and for egret reloads from a file with all objects".to_owned()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |peer, log, more_hosts, hosts: &str| {
            let row = Row::new(peer, Setup { log, more_hosts, ..Setup::default() });
            Row { label: format!("{}, {hosts} hosts", row.label), ..row }
        };
        let all = |more, hosts| {
            let peers = [Peer::Envoy, Peer::HAProxy, Peer::Nginx].map(|peer| row(peer, Log::Off, more, hosts));
            peers.into_iter().chain([row(Peer::Egret, Log::Text, more, hosts)])
        };
        let few = row(Peer::Egret, Log::Text, 0, "few");
        [few].into_iter().chain(all(1_000, "1,000")).chain(all(10_000, "10,000")).collect()
    }

    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures> {
        let cpus = Placement::Apart.cpus(bench);
        bench.stage.place_server(cpus)?;
        let running = row.peer.start(bench, &row.setup, cpus)?;
        let pid = running.pid().context("a proxy has a process")?;
        let url = running.url(hosts::RSA, upstream::SMALL);
        let wrk = Wrk { url: &url, connections: CONNECTIONS, close: false };
        wrk.run(bench, cpus.others, bench.warm_up())?;
        let w1 = measured(bench, &running, || wrk.run(bench, cpus.others, bench.measure()))?;
        let mut figures = Figures { errors: w1.errors, ..Figures::default() };
        figures.values.extend(w1.values.into_iter().filter(|(metric, _)| *metric == metrics::PROXY));
        figures = figures.with(START, running.started().as_secs_f64()).with(RSS, resident(pid)? / 1024.0);
        match running.agent() {
            Some(agent) => reloads(bench, row, agent, figures),
            None => Ok(figures),
        }
    }
}

fn reloads(bench: &Bench, row: &Row, agent: &egret::Agent, figures: Figures) -> Result<Figures> {
    let mut hosts = hosts::with_more(row.setup.more_hosts);
    let mut times = Vec::new();
    for _ in 0..RELOADS {
        bench.go_on()?;
        turn_around(hosts.last_mut().context("there are hosts")?);
        times.push(agent.reload(OFTEN, replacement(bench, &hosts)?)?);
    }
    times.sort();
    // Once more with hardly anybody who asks whether it is done.
    turn_around(hosts.last_mut().context("there are hosts")?);
    let before = Snapshot::of(&[agent.pid()]);
    agent.reload(SELDOM, replacement(bench, &hosts)?)?;
    let cpu = Snapshot::of(&[agent.pid()]).since(&before);
    bench.go_on()?;
    hosts.iter_mut().for_each(turn_around);
    let all = agent.reload(OFTEN, replacement(bench, &hosts)?)?;
    sleep(SETTLE);
    Ok(figures
        .with(RELOAD_ONE, times[RELOADS / 2].as_secs_f64() * 1e3)
        .with(RELOAD_ONE_CPU, cpu.as_secs_f64() * 1e3)
        .with(RELOAD_ALL, all.as_secs_f64())
        .with(RSS_AFTER, resident(agent.pid())? / 1024.0))
}

/// Moves a host to the other one of two servers.
fn turn_around(host: &mut Host) {
    host.address = if host.address == ELSEWHERE { hosts::hosts()[0].address } else { ELSEWHERE };
}

/// Puts a file with these hosts into the agent's folder, in one step; it is written here and now.
fn replacement(bench: &Bench, hosts: &[Host]) -> Result<impl FnOnce(&Path) -> Result<()>> {
    let next = bench.stage.dir().join("hosts.next");
    fs::write(&next, egret::document(hosts))?;
    Ok(move |config: &Path| Ok(fs::rename(&next, config.join(egret::HOSTS))?))
}
