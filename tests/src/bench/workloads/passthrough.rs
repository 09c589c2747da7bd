//! The client's own TLS, passed through by server name: short connections, W5.

use std::time::Duration;

use anyhow::Result;

use super::{Placement, Row, Workload, measured};
use crate::bench::{
    Bench, hosts,
    load::{Load, Wrk, generate},
    peers::{Log, Peer, Setup},
    results::Figures,
    stage::Cpus,
    upstream,
};

const CONNECTIONS: usize = 64;

/// The short half of W5. P-256, so that client and server are not all that is measured.
pub struct Short;

impl Workload for Short {
    fn name(&self) -> &'static str {
        "W5-short"
    }

    fn title(&self) -> String {
        "short connections of one request, the client's TLS passed through, P-256".to_owned()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |peer, log| Row::new(peer, Setup { log, ..Setup::default() });
        vec![
            row(Peer::DirectHttps, Log::Off),
            row(Peer::Envoy, Log::Text),
            row(Peer::Envoy, Log::Off),
            row(Peer::HAProxy, Log::Off),
            row(Peer::Nginx, Log::Off),
            row(Peer::Egret, Log::Text),
        ]
    }

    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures> {
        let cpus = Placement::Apart.cpus(bench);
        bench.stage.place_server(cpus)?;
        let running = row.peer.start(bench, &row.setup, cpus)?;
        let url = format!("https://{}{}", hosts::P256_FULL, upstream::SMALL);
        load(bench, &url, cpus, bench.warm_up())?;
        measured(bench, &running, || load(bench, &url, cpus, bench.measure()))
    }
}

fn load(bench: &Bench, url: &str, cpus: Cpus, duration: Duration) -> Result<(Load, Duration)> {
    let wrk = Wrk { url, connections: CONNECTIONS, close: true };
    let (text, cpu) = generate(bench, wrk.command(bench, cpus.others, duration)?, duration)?;
    Ok((wrk.parse(&text)?, cpu))
}
