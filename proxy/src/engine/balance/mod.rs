//! Which endpoint the next request or connection gets, and the limits of `connectionPool` (circuit breakers).
//!
//! Counters are kept for each pod and cluster: as with a sidecar, one pod's load never opens another's breaker.
//!
//! [`ClusterState::choose`] narrows the endpoints down: those that are not ejected ([`outlier`]), of the locality whose
//! turn it is ([`locality`]), in an address family that leads somewhere, not tried before. Among the rest the hash of the
//! request decides ([`hashing`]), or the load-balancing policy ([`policy`]) over weights that rise with an endpoint's age
//! ([`warmup`]).

mod families;
mod hashing;
mod locality;
mod outlier;
mod policy;
mod warmup;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::time::Instant;

pub use families::Families;
pub use hashing::hash_of;
pub use locality::From;
pub use outlier::Observed;

use self::{hashing::Tables, outlier::Outliers, policy::Share, warmup::Newcomers};
use crate::{
    limits,
    mesh::{Cluster, Discovery, Endpoint, EndpointAddress, LoadBalancer, OutlierDetection, Pool},
};

/// What is known of one cluster of one pod.
#[derive(Debug, Default)]
pub struct ClusterState {
    turn: AtomicUsize,
    connections: Arc<AtomicU32>,
    requests: Arc<AtomicU32>,
    pending: Arc<AtomicU32>,
    retries: Arc<AtomicU32>,
    endpoints: Mutex<HashMap<EndpointAddress, Arc<AtomicU32>>>,
    outliers: Outliers,
    newcomers: Newcomers,
    tables: Tables,
}

/// Something counted until dropped: a connection, a request, a use of an endpoint.
#[derive(Debug)]
pub struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Ordering::AcqRel);
        Self(counter.clone())
    }

    /// Counts one more unless `limit` are counted already. A limit of 0 admits nothing.
    fn within(counter: &Arc<AtomicU32>, limit: Option<u32>) -> Option<Self> {
        let limit = limit.unwrap_or(u32::MAX);
        counter
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < limit).then_some(count.wrapping_add(1)))
            .ok()
            .map(|_| Self(counter.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One choice to be made.
pub struct Wish<'a> {
    pub cluster: &'a Arc<Cluster>,
    /// Who asks; needed where the cluster has a locality setting.
    pub from: Option<From<'a>>,
    /// What `consistentHash` makes of the request; None: nothing to hash.
    pub hash: Option<u64>,
    /// Not again, while another is left.
    pub tried: &'a [EndpointAddress],
    pub families: &'a Families,
}

impl ClusterState {
    /// One more upstream connection, unless `tcp.maxConnections` are open.
    pub fn connection(&self, pool: &Pool) -> Option<Counted> {
        Counted::within(&self.connections, pool.max_connections)
    }

    /// One more request in flight, unless `http.http2MaxRequests` are.
    pub fn request(&self, pool: &Pool) -> Option<Counted> {
        Counted::within(&self.requests, pool.max_requests)
    }

    /// One more request that waits for a connection, unless `http.http1MaxPendingRequests` do.
    pub fn pending(&self, pool: &Pool) -> Option<Counted> {
        Counted::within(&self.pending, pool.max_pending_requests)
    }

    /// One more request that is being retried, unless `http.maxRetries` are.
    pub fn retry(&self, pool: &Pool) -> Option<Counted> {
        Counted::within(&self.retries, pool.max_retries)
    }

    /// Upstream connections open now.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Acquire)
    }

    /// Requests and connections that use the endpoint now.
    pub fn active(&self, address: &EndpointAddress) -> u32 {
        self.endpoints.lock().get(address).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// Counts a use of the endpoint until the guard is dropped; LEAST_REQUEST looks at these.
    pub fn use_endpoint(&self, address: &EndpointAddress) -> Counted {
        let mut endpoints = self.endpoints.lock();
        if let Some(counter) = endpoints.get(address) {
            return Counted::new(counter);
        }
        if endpoints.len() >= limits::ENDPOINTS_REMEMBERED {
            // Who is not in use has nothing to remember (the map holds the only reference).
            endpoints.retain(|_, counter| Arc::strong_count(counter) > 1);
        }
        Counted::new(endpoints.entry(address.clone()).or_default())
    }

    /// Takes note of how an endpoint did, for `outlierDetection`.
    pub fn observe(&self, settings: &OutlierDetection, address: &EndpointAddress, observed: Observed) {
        self.outliers.observe(settings, address, observed, Instant::now());
    }

    /// True while `outlierDetection` keeps the endpoint out.
    pub fn is_ejected(&self, address: &EndpointAddress) -> bool {
        self.outliers.is_ejected(address, Instant::now())
    }

    /// The index of the endpoint to take. None where there is none, or none that is healthy.
    pub fn choose(&self, wish: &Wish<'_>, candidates: &[Endpoint]) -> Option<usize> {
        let cluster = wish.cluster;
        // What most clusters are like; asking the clock costs as much as the rest.
        if candidates.len() == 1 && cluster.outlier.is_none() && self.outliers.is_empty() {
            return Some(0);
        }
        let now = Instant::now();
        let ejected = self.outliers.view(cluster.outlier.as_deref(), candidates, fixed(&cluster.discovery), now);
        if candidates.len() < 2 {
            let panic = cluster.outlier.as_ref().is_some_and(|outlier| outlier.min_health_percent > 0);
            return (!candidates.is_empty() && (ejected.is_none() || panic)).then_some(0);
        }
        let mut open = self.open(wish, candidates, ejected.as_deref());
        narrow(&mut open, |index| wish.families.usable(&candidates[index].address));
        if !wish.tried.is_empty() {
            let untried = |index: usize| !wish.tried.contains(&candidates[index].address);
            if !open.iter().any(|share| untried(share.index)) {
                // Everyone whose turn it is was tried: another locality is better than the same endpoint again.
                let healthy = (0..candidates.len()).filter(|i| ejected.as_ref().is_none_or(|ejected| !ejected[*i]));
                let others: Vec<_> = healthy.filter(|index| untried(*index)).map(|i| share(candidates, i)).collect();
                if !others.is_empty() {
                    open = others;
                }
            }
            narrow(&mut open, untried);
        }
        if let (Some(hashed), Some(hash)) = (&cluster.hash, wish.hash) {
            return self.tables.pick(cluster, hashed.ring, candidates, &open, hash);
        }
        let policy = if cluster.hash.is_some() { LoadBalancer::Random } else { cluster.load_balancer };
        if let Some(warmup) = &cluster.warmup
            && matches!(policy, LoadBalancer::RoundRobin | LoadBalancer::LeastRequest)
        {
            self.newcomers.weigh(warmup, candidates, &mut open, now);
        }
        let chosen = match (open.len(), policy) {
            (0 | 1, _) => 0,
            (_, LoadBalancer::RoundRobin) => policy::round_robin(self.turn.fetch_add(1, Ordering::Relaxed), &open),
            (_, LoadBalancer::Random | LoadBalancer::Passthrough) => policy::random(&open),
            (_, LoadBalancer::LeastRequest) => {
                policy::least_request(&open, |index| self.active(&candidates[index].address))
            }
        };
        open.get(chosen).map(|share| share.index)
    }

    /// Those whose turn it is, health and locality considered.
    fn open(&self, wish: &Wish<'_>, candidates: &[Endpoint], ejected: Option<&[bool]>) -> Vec<Share> {
        let cluster = wish.cluster;
        let panic = cluster.outlier.as_ref().map_or(0, |outlier| outlier.min_health_percent);
        let indices = match (&cluster.locality, &wish.from) {
            (Some(setting), Some(from)) => {
                let plan = locality::plan(setting, cluster.outlier.is_some(), from, candidates);
                locality::select(&plan, ejected, candidates.len(), panic, wish.hash)
            }
            _ => locality::select(&locality::Plan::Flat, ejected, candidates.len(), panic, wish.hash),
        };
        match indices {
            None => (0..candidates.len()).map(|index| share(candidates, index)).collect(),
            Some(indices) => indices.into_iter().map(|index| share(candidates, index)).collect(),
        }
    }
}

/// The endpoints are a set that is known as a whole, and not whatever a client asks for.
fn fixed(discovery: &Discovery) -> bool {
    matches!(discovery, Discovery::Static(_) | Discovery::Dns { one_at_a_time: false, .. })
}

fn share(candidates: &[Endpoint], index: usize) -> Share {
    Share { index, weight: u64::from(candidates[index].weight.max(1)) }
}

/// Keeps what `keep` holds for, unless that is nothing.
fn narrow(open: &mut Vec<Share>, keep: impl Fn(usize) -> bool) {
    if open.iter().any(|share| keep(share.index)) {
        open.retain(|share| keep(share.index));
    }
}
