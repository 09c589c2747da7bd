//! Memory, W7: of a fresh proxy, of idle client connections, of many pods.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Placement, Row, Workload};
use crate::{
    bench::{
        Bench, hosts,
        memory::resident,
        peers::{Log, Peer, Setup, egret::Agent},
        results::{Figures, Metric},
        stage::{Cpus, Stage},
        upstream,
    },
    netns::Netns,
    objects::documents,
    process::until,
};

const FRESH: Metric = Metric { name: "RSS, fresh", unit: "MiB" };
const CONNECTION_1000: Metric = Metric { name: "each of 1,000 idle connections", unit: "KiB" };
const CONNECTION_10000: Metric = Metric { name: "each of 10,000", unit: "KiB" };
const PODS_50: Metric = Metric { name: "RSS, 50 pods", unit: "MiB" };
const PODS_250: Metric = Metric { name: "RSS, 250 pods", unit: "MiB" };

/// Until a proxy has done what it does after a start, a connection, a reload.
const SETTLE: Duration = Duration::from_secs(1);
const ASK: Duration = Duration::from_millis(50);
/// For 200 pods at a time.
const ENROLLED_TIME: Duration = Duration::from_secs(20);
/// Connections that are opened before somebody may stop it.
const BATCH: usize = 500;
/// Descriptors of this process beside the connections.
const SPARE: u64 = 200;
const KIB: f64 = 1024.0;

pub struct Memory;

impl Workload for Memory {
    fn name(&self) -> &'static str {
        "W7"
    }

    fn title(&self) -> String {
        "memory of the proxy; a sidecar is one process for each pod, so that its many pods are computed".to_owned()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |peer, log| Row::new(peer, Setup { log, ..Setup::default() });
        let mut rows = [Peer::Envoy, Peer::HAProxy, Peer::Nginx].map(|peer| row(peer, Log::Off)).to_vec();
        rows.push(row(Peer::Egret, Log::Text));
        rows
    }

    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures> {
        let cpus = Placement::Apart.cpus(bench);
        bench.stage.place_server(cpus)?;
        let (fresh, small, large) = connections(bench, row, cpus)?;
        let (few, many) = match row.peer {
            Peer::Egret => pods(bench, row, cpus)?,
            _ => (50.0 * fresh, 250.0 * fresh),
        };
        let figures =
            Figures::default().with(FRESH, fresh / KIB).with(CONNECTION_1000, small).with(CONNECTION_10000, large);
        Ok(figures.with(PODS_50, few / KIB).with(PODS_250, many / KIB))
    }
}

/// KiB of a fresh process, and for each of 1,000 and of 10,000 idle connections.
fn connections(bench: &Bench, row: &Row, cpus: Cpus) -> Result<(f64, f64, f64)> {
    let running = row.peer.start(bench, &row.setup, cpus)?;
    let pid = running.pid().context("a proxy has a process")?;
    sleep(SETTLE);
    let fresh = resident(pid)?;
    let mut open = Vec::new();
    let mut with = |connections: usize| -> Result<f64> {
        allow_descriptors(connections as u64 + SPARE)?;
        while open.len() < connections {
            bench.go_on()?;
            let more = BATCH.min(connections - open.len());
            let made = bench.stage.pod.inside(move || (0..more).map(|_| idle()).collect::<io::Result<Vec<_>>>());
            open.extend(made.with_context(|| format!("after {} connections", open.len()))?);
        }
        sleep(SETTLE);
        resident(pid)
    };
    // What the first request brings with it is not a connection's.
    let first = with(1)?;
    let small = (with(1001)? - first) / 1000.0;
    let large = (with(10_001)? - first) / 10_000.0;
    for stream in &mut open {
        ensure!(is_open(stream)?, "the proxy closed a connection that was to idle");
    }
    Ok((fresh, small, large))
}

/// A connection that has made one request, and waits for its next.
fn idle() -> io::Result<TcpStream> {
    let host = &hosts::hosts()[0];
    let address: Ipv4Addr = host.address.parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, hosts::PLAIN)), Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", upstream::SMALL, host.name).as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    let whole = |answer: &[u8]| {
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
        head.is_some_and(|end| answer.len() >= end + 4 + upstream::SMALL_BYTES)
    };
    while !whole(&answer) {
        let count = crate::process::read(&mut stream, &mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&chunk[..count]);
    }
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
    }
    Ok(stream)
}

fn is_open(stream: &mut TcpStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    match crate::process::read(stream, &mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        other => other.map(|_| false),
    }
}

fn allow_descriptors(wanted: u64) -> Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
            .with_context(|| format!("this machine does not allow {wanted} descriptors"))?;
    }
    Ok(())
}

/// KiB with 50 and with 250 enrolled pods.
fn pods(bench: &Bench, row: &Row, cpus: Cpus) -> Result<(f64, f64)> {
    let agent = Agent::start(&bench.stage, &bench.options.egret, &row.setup, cpus)?;
    // The stage's own pod is one of them.
    let mut pods = Vec::new();
    let mut with = |number: usize| -> Result<f64> {
        while pods.len() + 1 < number {
            bench.go_on()?;
            pods.push(pod(&bench.stage, pods.len())?);
        }
        let all: Vec<String> = pods.iter().enumerate().map(|(at, pod)| document(at, pod)).collect();
        agent.reload(ASK, |config| Ok(std::fs::write(config.join("pods.yaml"), documents(&all))?))?;
        until("all pods to be enrolled", ENROLLED_TIME, || {
            agent.metric("egret_capture_enrolled_pods").is_ok_and(|enrolled| enrolled == number as f64).then_some(())
        })?;
        sleep(SETTLE);
        resident(agent.pid())
    };
    Ok((with(50)?, with(250)?))
}

/// A namespace with an address, as a pod has one.
fn pod(stage: &Stage, number: usize) -> Result<Netns> {
    let pod = Netns::new(&format!("{}-{number}", stage.pod.name()))?;
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + number as u32 + 1);
    pod.batch(&format!(
        "link add eth0 type veth peer name eth1\nlink set eth1 up\nlink set eth0 up\naddress add {address}/32 dev eth0\n"
    ))?;
    Ok(pod)
}

fn document(number: usize, pod: &Netns) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p{number}\n  labels: {{app: p{number}}}\n  annotations:\n    \
         egret.dev/netns: {}\nspec: {{serviceAccountName: p{number}}}\n",
        pod.name()
    )
}
