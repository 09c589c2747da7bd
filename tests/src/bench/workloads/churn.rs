//! A new connection on both sides for each request, W4: what TLS handshakes cost, full ones and resumed ones.

use anyhow::Result;

use super::{Placement, Row, Workload, measured};
use crate::bench::{
    Bench, hosts,
    load::Wrk,
    peers::{Log, Peer, Setup},
    results::{Figures, Metric},
    upstream,
};

const CONNECTIONS: usize = 64;
/// Sessions that Envoy keeps for a host in its second row: by default it keeps one, which is not enough for many
/// connections at a time, since a ticket of TLS 1.3 serves once.
const KEYS: u32 = 128;
/// Of the connections to the server, those that resumed a session.
const RESUMED: Metric = Metric { name: "resumed", unit: "%" };

struct Churn {
    name: &'static str,
    title: &'static str,
    host: &'static str,
    /// Whether a session may be resumed, so that it matters how many are kept.
    resumes: bool,
    quick: bool,
}

pub fn all() -> Vec<Box<dyn Workload>> {
    let full = |name, title, host| Churn { name, title, host, resumes: false, quick: false };
    let resumed = |name, title, host| Churn { name, title, host, resumes: true, quick: false };
    vec![
        Box::new(full("W4-RSA", "new connections on both sides, full handshakes, RSA-2048", hosts::RSA_FULL)),
        Box::new(full("W4-P256", "new connections on both sides, full handshakes, P-256", hosts::P256_FULL)),
        Box::new(Churn {
            quick: true,
            ..resumed("W4-resumed", "new connections on both sides, resumption allowed, RSA-2048", hosts::RSA)
        }),
        Box::new(resumed(
            "W4-mTLS",
            "new connections on both sides, client certificate, resumption allowed, P-256",
            hosts::MUTUAL,
        )),
    ]
}

impl Workload for Churn {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> String {
        self.title.to_owned()
    }

    fn quick(&self) -> bool {
        self.quick
    }

    fn rows(&self) -> Vec<Row> {
        let row = |peer, log| Row::new(peer, Setup { log, ..Setup::default() });
        let mut rows = vec![row(Peer::Envoy, Log::Off)];
        if self.resumes {
            let mut many = Row::new(Peer::Envoy, Setup { session_keys: Some(KEYS), ..Setup::default() });
            many.label.push_str(&format!(", {KEYS} session keys"));
            rows.push(many);
        }
        rows.extend([row(Peer::HAProxy, Log::Off), row(Peer::Nginx, Log::Off), row(Peer::Egret, Log::Text)]);
        rows
    }

    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures> {
        let cpus = Placement::Apart.cpus(bench);
        bench.stage.place_server(cpus)?;
        let running = row.peer.start(bench, &row.setup, cpus)?;
        let url = running.url(self.host, upstream::CLOSE);
        let wrk = Wrk { url: &url, connections: CONNECTIONS, close: true };
        wrk.run(bench, cpus.others, bench.warm_up())?;
        let run = || measured(bench, &running, || wrk.run(bench, cpus.others, bench.measure()));
        let (figures, resumed) = upstream::resumed(bench.stage.dir(), run)?;
        Ok(figures.with(RESUMED, resumed))
    }
}
