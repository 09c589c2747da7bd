//! The client's own TLS, passed through by server name: short connections, W5.

use anyhow::Result;

use super::{Placement, Row, Workload, measured};
use crate::bench::{
    Bench, hosts,
    load::Wrk,
    peers::{Log, Peer, Setup},
    results::Figures,
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
        let wrk = Wrk { url: &url, connections: CONNECTIONS, close: true };
        wrk.run(bench, cpus.others, bench.warm_up())?;
        measured(bench, &running, || wrk.run(bench, cpus.others, bench.measure()))
    }
}
