//! One long download: through origination, W6, and through passthrough, W5.

use std::time::Duration;

use anyhow::Result;

use super::{Placement, Row, Workload};
use crate::bench::{
    Bench,
    cpu::Snapshot,
    hosts,
    load::{Curl, generate},
    peers::{Log, Peer, Setup},
    results::{Figures, Metric, metrics},
    stage::Cpus,
    upstream::{BIG, BIG_BYTES},
};

const PROXY: Metric = Metric { unit: "s/GiB", ..metrics::PROXY };
const SUM: Metric = Metric { unit: "s/GiB", ..metrics::SUM };
const SPEED: Metric = Metric { name: "speed", unit: "MB/s" };
/// Enough for buffers and windows to have grown.
const WARM_UP_BYTES: u64 = BIG_BYTES / 16;
/// For a download on a slow machine.
const LONGEST: Duration = Duration::from_secs(60);

pub struct Download {
    name: &'static str,
    title: &'static str,
    /// The client's own TLS, which the proxy passes through.
    tls: bool,
}

/// W6.
#[must_use]
pub fn origination() -> Download {
    Download { name: "W6", title: "download of 1 GiB over one connection, HTTP to TLS", tls: false }
}

/// The long half of W5.
#[must_use]
pub fn passthrough() -> Download {
    Download {
        name: "W5-bulk",
        title: "download of 1 GiB over one connection, the client's TLS passed through",
        tls: true,
    }
}

impl Workload for Download {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> String {
        self.title.to_owned()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |peer, log| Row::new(peer, Setup { log, bulk: true, ..Setup::default() });
        let mut rows = vec![row(Peer::DirectHttps, Log::Off)];
        if !self.tls {
            rows.insert(0, row(Peer::DirectHttp, Log::Off));
        }
        rows.extend([Peer::Envoy, Peer::HAProxy, Peer::Nginx].map(|peer| row(peer, Log::Off)));
        rows.push(row(Peer::Egret, Log::Text));
        rows
    }

    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures> {
        let cpus = Placement::Apart.cpus(bench);
        bench.stage.place_server(cpus)?;
        let running = row.peer.start(bench, &row.setup, cpus)?;
        let url = if self.tls { format!("https://{}{BIG}", hosts::RSA) } else { running.url(hosts::RSA, BIG) };
        download(bench, &url, WARM_UP_BYTES, cpus)?;
        let (proxy, server) = (running.pid().into_iter().collect::<Vec<_>>(), [bench.stage.server()]);
        let before = (Snapshot::of(&proxy), Snapshot::of(&server));
        let (seconds, client) = download(bench, &url, BIG_BYTES, cpus)?;
        let proxy = Snapshot::of(&proxy).since(&before.0);
        let server = Snapshot::of(&server).since(&before.1);
        let mut figures = Figures::default();
        if running.pid().is_some() {
            figures = figures.with(PROXY, per_gib(proxy));
        }
        Ok(figures.with(SUM, per_gib(proxy + server + client)).with(SPEED, BIG_BYTES as f64 / 1e6 / seconds))
    }
}

fn per_gib(time: Duration) -> f64 {
    time.as_secs_f64() * f64::from(1 << 30) / BIG_BYTES as f64
}

/// How long it took, in seconds, and the client's CPU time.
fn download(bench: &Bench, url: &str, bytes: u64, cpus: Cpus) -> Result<(f64, Duration)> {
    let curl = Curl { url, bytes };
    let (text, cpu) = generate(bench, curl.command(bench, cpus.others), LONGEST)?;
    Ok((curl.parse(&text)?, cpu))
}
