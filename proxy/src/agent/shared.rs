//! What the admin endpoints may see of the agent, kept up to date by it.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::fleet::Fleet;
use crate::{
    admin::{
        self, AdminState, Later,
        rows::{ConditionRow, PodStatus, Status},
    },
    api::{Diagnostic, Severity},
    capture::Capture,
    engine::{Engine, Snapshot, pod::Pod, workers::Workers},
    identity::Identities,
    mesh::{EndpointAddress, Mesh, WorkloadId},
    source::kubernetes::Gathered,
    telemetry::{
        Telemetry,
        metrics::{CaptureCounters, CertificateExpiry, Scraped},
    },
};

pub struct Shared {
    engine: Arc<Engine>,
    telemetry: Arc<Telemetry>,
    capture: Arc<Capture>,
    workers: Workers,
    identities: Arc<Identities>,
    /// The certificates that were wanted first are there, or were refused.
    identified: AtomicBool,
    started: Instant,
    drain: Notify,
    /// The connection to the cluster, where there is one.
    watches: OnceLock<Arc<Gathered>>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    generation: u64,
    draining: bool,
    succeeded: bool,
    findings: Vec<Diagnostic>,
    pods: Vec<PodStatus>,
    awaited: Vec<String>,
    serving: BTreeMap<WorkloadId, Arc<Pod>>,
}

impl Shared {
    pub fn new(
        engine: Arc<Engine>,
        telemetry: Arc<Telemetry>,
        capture: Arc<Capture>,
        workers: Workers,
        identities: Arc<Identities>,
    ) -> Arc<Self> {
        let shared = Arc::new(Self {
            engine,
            telemetry,
            capture,
            workers,
            identities,
            identified: AtomicBool::new(false),
            started: Instant::now(),
            drain: Notify::new(),
            watches: OnceLock::new(),
            seen: Mutex::default(),
        });
        let scraped = Arc::downgrade(&shared);
        shared
            .telemetry
            .metrics
            .on_scrape(move || scraped.upgrade().map_or_else(Scraped::default, |shared| shared.scrape()));
        shared
    }

    /// What is read comes from a cluster.
    pub fn watches(&self, watches: Option<Arc<Gathered>>) {
        if let Some(watches) = watches {
            let _ = self.watches.set(watches);
        }
    }

    fn troubles(&self) -> Vec<String> {
        self.watches.get().map(|watches| watches.troubles()).unwrap_or_default()
    }

    /// A configuration is in force.
    pub fn configured(&self, generation: u64, findings: Vec<Diagnostic>, fleet: &Fleet) {
        let mut seen = self.seen.lock();
        seen.generation = generation;
        seen.findings = findings;
        seen.pods = fleet.status();
        seen.awaited = fleet.awaited();
        seen.serving = fleet.serving();
    }

    pub fn set_draining(&self) {
        self.seen.lock().draining = true;
    }

    /// A next agent prepares itself: a probe that is meant for it and comes here must not find it ready.
    pub fn set_succeeded(&self, succeeded: bool) {
        self.seen.lock().succeeded = succeeded;
    }

    /// Returns when `POST /drain` was asked for.
    pub async fn drain_asked(&self) {
        self.drain.notified().await;
    }

    /// Before an agent takes another one's place it should have what that one had. Later a pod that comes is refused by itself
    /// until its certificate is there, and the node stays ready.
    fn awaited_certificates(&self, generation: u64) -> Vec<String> {
        if self.identified.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let awaited = self.identities.awaited();
        self.identified.store(generation > 0 && awaited.is_empty(), Ordering::Relaxed);
        awaited.iter().map(|identity| format!("mesh certificate of {identity}: asked for")).collect()
    }

    fn scrape(&self) -> Scraped {
        let seen = self.seen.lock();
        let counters = self.capture.counters().unwrap_or_default();
        Scraped {
            capture: CaptureCounters {
                redirected: counters.redirected,
                denied: counters.denied,
                exempt: counters.exempt,
                enrolled: seen.serving.len() as u64,
            },
            certificates: self.certificates(),
        }
    }

    /// When each certificate in use runs out: those of rules, and those of the mesh, whose names are their identities.
    fn certificates(&self) -> Vec<CertificateExpiry> {
        let snapshot = self.engine.snapshot();
        let mesh = snapshot.tls.mesh_secrets(None);
        let rows = snapshot.tls.secrets().iter().chain(&mesh);
        rows.filter_map(|row| {
            let identity = row.chain.first().filter(|_| row.name == "default" && row.settings.is_empty());
            let name = identity.and_then(|leaf| leaf.subject_alt_names.first()).unwrap_or(&row.name).clone();
            Some(CertificateExpiry { name, namespace: row.namespace.clone(), not_after: row.not_after? })
        })
        .collect()
    }
}

/// `captured, STRICT` where PeerAuthentication speaks of a pod.
fn with_modes(pods: &[PodStatus], mesh: &Mesh) -> Vec<PodStatus> {
    let mut pods = pods.to_vec();
    let tables =
        mesh.workloads.values().filter_map(|workload| Some((workload.id.to_string(), workload.inbound.as_ref()?)));
    let modes: BTreeMap<_, _> = tables.filter_map(|(id, table)| Some((id, admin::inbound::modes(table)?))).collect();
    for pod in pods.iter_mut().filter(|pod| !pod.inbound.is_empty()) {
        if let Some(modes) = modes.get(&pod.pod) {
            pod.inbound = format!("{}, {modes}", pod.inbound);
        }
    }
    pods
}

impl AdminState for Shared {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.engine.snapshot()
    }

    fn readiness(&self) -> Vec<String> {
        let seen = self.seen.lock();
        let mut awaited = Vec::new();
        if seen.draining {
            awaited.push("draining: no new connections".to_owned());
        }
        if seen.succeeded {
            awaited.push("the next agent: about to take over".to_owned());
        }
        if seen.generation == 0 {
            awaited.push("configuration: not read yet".to_owned());
            // Later the last good table serves on, and nothing is awaited.
            awaited.extend(self.troubles());
        }
        if !self.capture.is_attached() {
            awaited.push("capture: not attached".to_owned());
        }
        awaited.extend(self.awaited_certificates(seen.generation));
        awaited.extend(seen.awaited.iter().cloned());
        awaited
    }

    fn status(&self) -> Status {
        let awaited = self.readiness();
        let seen = self.seen.lock();
        let state = match () {
            () if seen.draining => "draining",
            () if awaited.is_empty() => "ready",
            () => "starting",
        };
        let guard = if self.capture.has_guard() { "with" } else { "without" };
        let errors = seen.findings.iter().filter(|finding| finding.severity == Severity::Error);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            state: state.to_owned(),
            awaited,
            connections: self.engine.in_flight() as u64,
            generation: seen.generation,
            pods: with_modes(&seen.pods, &self.engine.snapshot().mesh),
            capture: if self.capture.is_attached() {
                let held = if self.capture.holds_pods() { ", pods are held until enrolled" } else { "" };
                format!("attached, {guard} egress guard{held}")
            } else {
                "not attached".to_owned()
            },
            rejected: errors.map(ToString::to_string).collect(),
            gateway_api: ConditionRow::all(&self.engine.snapshot().mesh),
            stale: self.troubles(),
        }
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.seen.lock().findings.clone()
    }

    fn resolve<'a>(&'a self, workload: &'a WorkloadId, name: &'a str) -> Later<'a, Result<Vec<IpAddr>, String>> {
        Box::pin(async move {
            let pod = self.seen.lock().serving.get(workload).cloned();
            let pod = pod.ok_or_else(|| format!("pod {workload} is not enrolled"))?;
            let name = name.to_owned();
            // There, and not on the admin thread: a connection to a name server may be kept and used by traffic.
            let lookup = self.workers.spawn(async move { pod.resolver.lookup(&name).await });
            match lookup.await {
                Ok(Ok(addresses)) => Ok(addresses.to_vec()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the agent is stopping".to_owned()),
            }
        })
    }

    fn is_ejected(&self, workload: &WorkloadId, cluster: &str, address: &EndpointAddress) -> bool {
        let pod = self.seen.lock().serving.get(workload).cloned();
        pod.is_some_and(|pod| pod.is_ejected(cluster, address))
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        self.telemetry.metrics.encode()
    }

    fn drain(&self) {
        self.drain.notify_one();
    }
}
