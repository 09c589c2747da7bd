//! The data path: accept, sniff, route, connect, copy.
//!
//! [`Engine`] holds what is in force now (a [`Snapshot`], swapped whole at each reload) and what is in flight. A
//! [`pod::Pod`] is one enrolled pod: its sockets, resolver and counters outlive reloads.

pub mod accept;
mod application;
pub mod authorize;
pub mod balance;
pub mod client_hello;
pub mod copy;
pub mod dial;
pub mod dial_error;
pub mod endpoints;
mod gateway;
pub mod host_sockets;
pub mod http;
mod inbound;
mod misdirected;
mod outbound;
pub mod pod;
pub mod ports;
pub mod prefixed;
mod probes;
pub mod raw;
pub mod resolv_conf;
pub mod resolve;
pub mod silent;
pub mod sniff;
mod splice;
pub mod stream;
mod terminate;
#[cfg(test)]
mod tests;
mod woken;
pub mod workers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::http::HeaderMap;
use arc_swap::ArcSwap;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::workers::Workers;
use crate::{
    mesh::{Cluster, Decision, HttpDecision, Mesh, Outbound, ServerTlsSettings, WorkloadId},
    telemetry::record::{Kept, Record},
    tls,
};

/// What is in force: the compiled table and the TLS contexts built for it. Replaced whole, never changed.
pub struct Snapshot {
    pub mesh: Arc<Mesh>,
    pub tls: Arc<tls::Contexts>,
    /// Counts the reloads, for the log and for pools that tell old connections from new.
    pub generation: u64,
}

impl Snapshot {
    /// What the pod's connections are matched against; None where the table does not (or no longer) know the pod.
    pub fn outbound(&self, pod: &WorkloadId) -> Option<Arc<Outbound>> {
        self.mesh.workloads.get(pod).map(|workload| workload.outbound.clone())
    }

    /// What is to be done with a request of this authority on a connection of this pod; None where the table does not
    /// (or no longer) know the pod, or its listener.
    pub fn http(&self, pod: &WorkloadId, info: &accept::ConnectionInfo, authority: &str) -> Option<HttpDecision> {
        let workload = self.mesh.workloads.get(pod)?;
        match &info.arrival {
            accept::Arrival::Outbound => Some(workload.outbound.http(info.original, authority)),
            accept::Arrival::Gateway { listener, server } => {
                Some(workload.at_gateway(*listener, server.as_deref(), authority))
            }
            accept::Arrival::Inbound => {
                let table = workload.inbound.as_ref()?;
                Some(match inbound::refusal(table, info) {
                    Some(reason) => HttpDecision::Unmatched(Decision::Refuse(reason)),
                    None => HttpDecision::Host(table.port(info.original.port()).host.clone()),
                })
            }
        }
    }

    /// The request must be asked again on another connection: this one is for another server of the gateway, or its client has
    /// not proved what the server asks for by now.
    pub fn misdirected(&self, pod: &WorkloadId, info: &accept::ConnectionInfo, authority: &str) -> bool {
        let accept::Arrival::Gateway { listener, .. } = &info.arrival else { return false };
        let gateway = self.mesh.workloads.get(pod).and_then(|workload| workload.gateway.as_ref());
        let terminated = info.terminated.as_ref().zip(gateway);
        terminated.is_some_and(|(then, now)| then.misdirects(now, *listener, info.sni.as_deref(), authority))
    }

    /// What takes TLS off at a server with these settings, or why nothing can.
    fn server(&self, settings: &ServerTlsSettings) -> Result<Arc<tls::ServerContext>, String> {
        self.tls.server(settings).map_err(|error| error.to_string())
    }

    /// What takes mesh mTLS off this pod's connections, or why nothing can.
    fn mesh_server(&self, pod: &WorkloadId) -> Result<Arc<tls::ServerContext>, String> {
        let workload = self.mesh.workloads.get(pod).ok_or_else(|| format!("{pod} is not enrolled any more"))?;
        self.tls.mesh_server(&workload.identity).map_err(|error| error.to_string())
    }
}

/// Where results go: the access log and the metrics.
pub trait Sink: Send + Sync + 'static {
    /// One request, or one connection that was not HTTP, has ended.
    fn record(&self, record: Record);
    /// Keeps what [`Sink::record`] will want to know of a request's headers: all of them, unless it knows better.
    fn keep_request(&self, headers: &HeaderMap, kept: &mut Kept) {
        kept.keep_all(headers);
    }
    /// As [`Sink::keep_request`], of a response's.
    fn keep_response(&self, headers: &HeaderMap, kept: &mut Kept) {
        kept.keep_all(headers);
    }
    /// A raw (TCP, TLS) connection was accepted and its cluster is known. The record is at its beginning.
    fn connection_opened(&self, record: &Record);
    /// The counterpart of [`Sink::connection_opened`], with the same record; the one that tells of the end bears the bytes.
    fn connection_closed(&self, record: &Record);
    /// A client's TLS handshake has ended; `Err` holds the reason.
    fn handshake_accepted(&self, workload: &Arc<WorkloadId>, result: Result<(), &str>, time: Duration);
    /// An upstream TLS handshake has ended; `Err` holds the reason.
    fn handshake(&self, workload: &Arc<WorkloadId>, cluster: &Arc<Cluster>, result: Result<(), &str>, time: Duration);
}

/// The engine of one agent: serves any number of pods.
pub struct Engine {
    current: ArcSwap<Snapshot>,
    sink: Arc<dyn Sink>,
    workers: Workers,
    draining: CancellationToken,
    closing: CancellationToken,
    /// The same two for those who ask for each request: asking a token takes a lock.
    ending: [AtomicBool; 2],
    in_flight: AtomicUsize,
    /// Those of `in_flight` that a pod made.
    outbound: AtomicUsize,
    ended: Notify,
    /// Plain HTTP/1.1 is served by hyper too, as anything unusual always is: the tests run on both ways.
    #[cfg(test)]
    hyper_only: bool,
}

impl Engine {
    pub fn new(snapshot: Snapshot, sink: Arc<dyn Sink>) -> Self {
        Self {
            current: ArcSwap::from_pointee(snapshot),
            sink,
            workers: Workers::default(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            ending: Default::default(),
            in_flight: AtomicUsize::new(0),
            outbound: AtomicUsize::new(0),
            ended: Notify::new(),
            #[cfg(test)]
            hyper_only: false,
        }
    }

    /// Serves on these workers instead of the current runtime.
    pub fn with_workers(self, workers: Workers) -> Self {
        Self { workers, ..self }
    }

    /// Leaves all of HTTP/1.1 to hyper.
    #[cfg(test)]
    fn with_hyper_only(self, hyper_only: bool) -> Self {
        Self { hyper_only, ..self }
    }

    /// Whether plain HTTP/1.1 takes our own way at both ends.
    fn own_http1(&self) -> bool {
        #[cfg(test)]
        return !self.hyper_only;
        #[cfg(not(test))]
        true
    }

    /// Puts a new snapshot in force; connections and requests that were decided before keep the old one.
    pub fn install(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }

    /// What is in force now. Take it once a request, so that one request sees one state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub fn sink(&self) -> &Arc<dyn Sink> {
        &self.sink
    }

    /// Accepts connections of `pod` until the engine drains or the pod is unenrolled. To let a single listener go, abort
    /// the task: connections that it accepted go on.
    pub fn serve(
        self: &Arc<Self>,
        listener: std::net::TcpListener,
        pod: Arc<pod::Pod>,
        role: accept::Role,
    ) -> JoinHandle<()> {
        self.workers.spawn(accept::run(self.clone(), listener, pod, role))
    }

    /// Stops accepting; HTTP connections close after the request in flight. Returns at once: see [`Engine::idle`].
    ///
    /// What pods call goes first. Gateways and pods' own ports follow once that is done, [`crate::limits::DRAIN_HOPS`] later at
    /// most: a request on its first hop may have its second one here too.
    pub fn drain(self: &Arc<Self>) {
        self.ending[usize::from(true)].store(true, Ordering::Release);
        self.draining.cancel();
        let engine = self.clone();
        tokio::spawn(async move {
            let done = async {
                loop {
                    let ended = engine.ended.notified();
                    if engine.outbound.load(Ordering::Acquire) == 0 {
                        return;
                    }
                    ended.await;
                }
            };
            let _ = tokio::time::timeout(crate::limits::DRAIN_HOPS, done).await;
            engine.ending[usize::from(false)].store(true, Ordering::Release);
            engine.closing.cancel();
        });
    }

    /// Cancelled once the engine drains.
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Cancelled once connections of this kind are no longer accepted, and those that there are end.
    pub fn ending(&self, outbound: bool) -> &CancellationToken {
        if outbound { &self.draining } else { &self.closing }
    }

    /// Whether that has come to pass.
    pub fn ends(&self, outbound: bool) -> bool {
        self.ending[usize::from(outbound)].load(Ordering::Acquire)
    }

    /// Waits until nothing is in flight, `deadline` at most; answers how many connections still are.
    pub async fn idle(&self, deadline: tokio::time::Instant) -> usize {
        loop {
            let ended = self.ended.notified();
            let count = self.in_flight();
            if count == 0 || tokio::time::timeout_at(deadline, ended).await.is_err() {
                return if count == 0 { 0 } else { self.in_flight() };
            }
        }
    }

    /// Downstream connections open now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Counts one downstream connection as in flight until dropped.
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight { engine: self.clone(), outbound: false }
    }

    /// The same for one that a pod made.
    fn enter_outbound(self: &Arc<Self>) -> InFlight {
        self.outbound.fetch_add(1, Ordering::AcqRel);
        let mut entered = self.enter();
        entered.outbound = true;
        entered
    }
}

/// One connection in flight, see [`Engine::enter`].
pub struct InFlight {
    engine: Arc<Engine>,
    outbound: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let last_outbound = self.outbound && self.engine.outbound.fetch_sub(1, Ordering::AcqRel) == 1;
        if self.engine.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 || last_outbound {
            self.engine.ended.notify_waiters();
        }
    }
}
