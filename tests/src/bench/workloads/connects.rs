//! What `connect` costs the client, W9: from a thread of this process inside the pod, to a listener that accepts and closes.
//!
//! Without capture, and where the pod is not enrolled, that is beyond the veth pair; with a redirect by iptables or egret it is
//! inside the pod. So they compare in pairs.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, connect, listen, socket_with, sockopt::set_socket_linger},
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

use super::{Placement, Row, Workload};
use crate::{
    bench::{
        Bench, crowd,
        iptables::{OUTBOUND, Redirect},
        peers::{Log, Peer, Setup, egret::Agent},
        results::{Figures, Metric},
        stage::OUTSIDE,
    },
    netns::Netns,
    process::until,
};

const CONNECT: Metric = Metric { name: "connect, median", unit: "µs" };
const P90: Metric = Metric { name: "connect, p90", unit: "µs" };
const CPU: Metric = Metric { name: "client CPU, socket to close", unit: "µs/connection" };

/// Connections at a time, before the listener is let to rest: far fewer than its queue holds.
const BURST: usize = 250;
const BURSTS: usize = 40;
const WARM_UP: usize = 4;
const QUEUE: i32 = 4096;
const REST: Duration = Duration::from_millis(10);
const MANY: u32 = 10_000;

/// What lies between the client and its destination.
#[derive(Clone, Copy)]
enum Capture {
    Nothing,
    /// An agent that knows nothing of the pod.
    Stranger,
    /// An agent, and so many namespaces enrolled beside the pod.
    Enrolled(u32),
    /// So many rules before the one that fits.
    Rules(u32),
}

const CASES: [(&str, Peer, Capture); 6] = [
    ("no capture", Peer::DirectHttp, Capture::Nothing),
    ("egret, not enrolled", Peer::Egret, Capture::Stranger),
    ("1 iptables rule", Peer::DirectHttp, Capture::Rules(0)),
    ("10,000 iptables rules", Peer::DirectHttp, Capture::Rules(MANY - 1)),
    ("egret, enrolled", Peer::Egret, Capture::Enrolled(0)),
    ("egret, 10,000 enrolled", Peer::Egret, Capture::Enrolled(MANY - 1)),
];

pub struct Connects;

impl Workload for Connects {
    fn name(&self) -> &'static str {
        "W9"
    }

    fn title(&self) -> String {
        "cost of connect, as the client feels it; of 10,000 enrolled namespaces 9,999 are entries in the maps only"
            .to_owned()
    }

    fn quick(&self) -> bool {
        true
    }

    fn rows(&self) -> Vec<Row> {
        let setup = Setup { log: Log::Text, ..Setup::default() };
        CASES.map(|(label, peer, _)| Row { label: label.to_owned(), peer, setup: setup.clone() }).into()
    }

    fn turn(&self, bench: &Bench, row: &Row) -> Result<Figures> {
        let (_, _, capture) = CASES.into_iter().find(|(label, ..)| *label == row.label).context("an unknown row")?;
        let (stage, cpus) = (&bench.stage, Placement::Apart.cpus(bench));
        let to = SocketAddrV4::new(OUTSIDE.parse()?, 80);
        let beyond = Listener::start(&stage.outside, to.into(), cpus.proxy)?;
        let inside = Listener::start(&stage.pod, (Ipv4Addr::LOCALHOST, OUTBOUND).into(), cpus.proxy)?;
        let figures = match capture {
            Capture::Nothing => measure(bench, to, cpus.others)?,
            Capture::Rules(more) => {
                let _redirect = Redirect::among(stage, more)?;
                measure(bench, to, cpus.others)?
            }
            Capture::Stranger | Capture::Enrolled(_) => {
                let agent = Agent::start(stage, &bench.options.egret, &row.setup, cpus)?;
                match capture {
                    Capture::Enrolled(more) => crowd::enrol(agent.pid(), more)?,
                    _ => drop(agent.reload(REST, |config| Ok(std::fs::remove_file(config.join("pod.yaml"))?))?),
                }
                measure(bench, to, cpus.others)?
            }
        };
        let all = ((WARM_UP + BURSTS) * BURST) as u64;
        let wanted = match capture {
            Capture::Nothing | Capture::Stranger => (all, 0),
            Capture::Rules(_) => (0, all),
            Capture::Enrolled(_) => (0, 0),
        };
        let came = || (beyond.accepted(), inside.accepted());
        until("the last connections", Duration::from_secs(1), || (came() == wanted).then_some(()))
            .with_context(|| format!("{:?} connections came beyond and inside, not {wanted:?}", came()))?;
        Ok(figures)
    }
}

fn measure(bench: &Bench, to: SocketAddrV4, cpu: usize) -> Result<Figures> {
    let (mut took, mut used) = (Vec::new(), Duration::ZERO);
    for number in 0..WARM_UP + BURSTS {
        bench.go_on()?;
        let (times, cpu) = bench.stage.pod.inside(move || burst(to, cpu))?;
        if number >= WARM_UP {
            took.extend(times);
            used += cpu;
        }
        std::thread::sleep(REST);
    }
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let each = used.as_secs_f64() * 1e6 / took.len() as f64;
    Ok(Figures::default().with(CONNECT, at(0.5)).with(P90, at(0.9)).with(CPU, each))
}

/// How long each `connect` took, and the CPU time of this thread for all, with sockets made and closed.
fn burst(to: SocketAddrV4, cpu: usize) -> io::Result<(Vec<Duration>, Duration)> {
    pin(cpu)?;
    let mut took = Vec::with_capacity(BURST);
    let before = cpu_time();
    for _ in 0..BURST {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Closed by a reset: no port is left waiting, so that each turn finds all of them free.
        set_socket_linger(&socket, Some(Duration::ZERO))?;
        let start = Instant::now();
        connect(&socket, &to)?;
        took.push(start.elapsed());
    }
    Ok((took, cpu_time() - before))
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Accepts and closes, on a CPU of its own.
struct Listener<'a> {
    namespace: &'a Netns,
    at: SocketAddr,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl<'a> Listener<'a> {
    fn start(namespace: &'a Netns, at: SocketAddr, cpu: usize) -> Result<Self> {
        let socket = namespace.listen(at).with_context(|| format!("cannot listen on {at}"))?;
        // The standard library's queue is shorter than a burst.
        listen(&socket, QUEUE)?;
        let accepted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&accepted);
        let thread = std::thread::spawn(move || serve(&socket, &counter, cpu));
        Ok(Self { namespace, at, accepted, thread: Some(thread) })
    }

    fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }
}

/// What the counter is set to when the next connection is the last.
const END: u64 = 1 << 63;

fn serve(socket: &TcpListener, accepted: &AtomicU64, cpu: usize) {
    // A thread that runs elsewhere still accepts.
    let _ = pin(cpu);
    while accepted.load(Relaxed) < END {
        if socket.accept().is_ok() {
            accepted.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.accepted.fetch_or(END, Relaxed);
        // Wakes it.
        if self.namespace.connect(self.at).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
