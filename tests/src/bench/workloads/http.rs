//! Requests of one kind in a closed loop: W1, W1L, W2, W3, W10, h2 and gRPC.

use std::time::Duration;

use anyhow::Result;

use super::{Placement, Row, Workload, measured, usual};
use crate::bench::{
    Bench, hosts,
    load::{H2load, Load, Wrk},
    peers::{Log, Peer, Setup},
    results::{Figures, metrics},
    stage::Cpus,
    upstream,
};

/// Connections of the loaded workloads.
const MANY: usize = 64;
/// As many streams as the loaded workloads of HTTP/1.1 have connections.
const H2_CONNECTIONS: usize = 8;
const H2_STREAMS: usize = 8;

/// Who asks, and how.
#[derive(Clone, Copy)]
enum Client {
    /// HTTP/1.1, with so many connections.
    Wrk { connections: usize, close: bool },
    /// HTTP/2.
    H2 { grpc: bool },
}

#[derive(Clone, Copy)]
struct Requests {
    name: &'static str,
    title: &'static str,
    host: &'static str,
    client: Client,
    placement: Placement,
    quick: bool,
    rows: fn() -> Vec<Row>,
}

pub fn all() -> Vec<Box<dyn Workload>> {
    let w1 = Requests {
        name: "W1",
        title: "kept-alive HTTP to TLS, 1 KiB, 64 connections",
        host: hosts::RSA,
        client: Client::Wrk { connections: MANY, close: false },
        placement: Placement::Apart,
        quick: true,
        rows: plain,
    };
    let one = Client::Wrk { connections: 1, close: false };
    vec![
        Box::new(w1),
        Box::new(Requests { name: "W1L", title: "W1 with 1 connection: latency", client: one, quick: false, ..w1 }),
        Box::new(Requests {
            name: "W1L1",
            title: "W1 with 1 connection, all on one CPU: latency",
            client: one,
            placement: Placement::Together,
            ..w1
        }),
        Box::new(Requests {
            name: "W2",
            title: "W1 with a client certificate",
            host: hosts::MUTUAL,
            quick: false,
            rows: mutual,
            ..w1
        }),
        Box::new(Requests {
            name: "W3",
            title: "a new client connection for each request, upstream ones kept",
            client: Client::Wrk { connections: MANY, close: true },
            ..w1
        }),
        Box::new(Requests {
            name: "W10",
            title: "W1 with the access log off, as text, as JSON",
            quick: false,
            rows: logs,
            ..w1
        }),
        Box::new(Requests {
            name: "h2",
            title: "HTTP/2 from the client, HTTP/1.1 upstream, 8 connections of 8 streams",
            client: Client::H2 { grpc: false },
            quick: false,
            rows: h2,
            ..w1
        }),
        Box::new(Requests {
            name: "gRPC",
            title: "unary calls, HTTP/2 on both sides, 8 connections of 8 streams",
            host: hosts::GRPC,
            client: Client::H2 { grpc: true },
            quick: false,
            rows: h2,
            ..w1
        }),
    ]
}

fn plain() -> Vec<Row> {
    usual(&Setup::default())
}

/// wrk has no client certificate to show.
fn mutual() -> Vec<Row> {
    plain().into_iter().filter(|row| !matches!(row.peer, Peer::DirectHttp | Peer::DirectHttps)).collect()
}

fn logs() -> Vec<Row> {
    let of = |peer| [Log::Off, Log::Text, Log::Json].map(|log| Row::new(peer, Setup { log, ..Setup::default() }));
    [Peer::Envoy, Peer::HAProxy, Peer::Nginx, Peer::Egret].into_iter().flat_map(of).collect()
}

/// The server that the floors would call speaks HTTP/2 for the gRPC host only; what a floor shows is known from W1.
fn h2() -> Vec<Row> {
    let rows = usual(&Setup { h2: true, ..Setup::default() });
    rows.into_iter().filter(|row| !matches!(row.peer, Peer::DirectHttp | Peer::DirectHttps)).collect()
}

impl Workload for Requests {
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
        (self.rows)()
    }

    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures> {
        let cpus = self.placement.cpus(bench);
        bench.stage.place_server(cpus)?;
        let running = row.peer.start(bench, &row.setup, cpus)?;
        let path = if matches!(self.client, Client::H2 { grpc: true }) { upstream::CALL } else { upstream::SMALL };
        let url = running.url(self.host, path);
        self.load(bench, &url, cpus, bench.warm_up())?;
        let mut figures = measured(bench, &running, || self.load(bench, &url, cpus, bench.measure()))?;
        if matches!(self.client, Client::Wrk { connections: 1, .. }) {
            // With more, latency is queueing; here it is what counts.
            figures.values.sort_by_key(|(metric, _)| *metric != metrics::P50);
        }
        Ok(figures)
    }
}

impl Requests {
    fn load(&self, bench: &Bench, url: &str, cpus: Cpus, duration: Duration) -> Result<(Load, Duration)> {
        match self.client {
            Client::Wrk { connections, close } => Wrk { url, connections, close }.run(bench, cpus.others, duration),
            Client::H2 { grpc } => {
                let h2load = H2load { url, connections: H2_CONNECTIONS, streams: H2_STREAMS, grpc };
                h2load.run(bench, cpus.others, duration)
            }
        }
    }
}
