//! Which endpoint the next request or connection gets, and the limits of `connectionPool` (circuit breakers).
//!
//! Counters are kept for each pod and cluster: as with a sidecar, one pod's load never opens another's breaker.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use rand::RngExt as _;

use crate::{
    limits,
    mesh::{Endpoint, EndpointAddress, LoadBalancer, Pool},
};

/// Counters of one cluster of one pod.
#[derive(Debug, Default)]
pub struct ClusterState {
    turn: AtomicUsize,
    connections: Arc<AtomicU32>,
    requests: Arc<AtomicU32>,
    pending: Arc<AtomicU32>,
    endpoints: Mutex<HashMap<EndpointAddress, Arc<AtomicU32>>>,
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

    /// Chooses by policy among those not `tried` yet, or among all once each was. None only where there is none.
    pub fn choose<'c>(
        &self,
        policy: LoadBalancer,
        candidates: &'c [Endpoint],
        tried: &[EndpointAddress],
    ) -> Option<&'c Endpoint> {
        let mut open: Vec<&Endpoint> = candidates.iter().filter(|c| !tried.contains(&c.address)).collect();
        if open.is_empty() {
            open = candidates.iter().collect();
        }
        if open.len() < 2 {
            return open.pop();
        }
        let chosen = match policy {
            LoadBalancer::RoundRobin => round_robin(self.turn.fetch_add(1, Ordering::Relaxed), &open),
            LoadBalancer::Random | LoadBalancer::Passthrough => at_weight(&open, random_below(total(&open))),
            LoadBalancer::LeastRequest => self.least_request(&open),
        };
        open.get(chosen).copied()
    }

    /// The power of two choices: two different endpoints drawn by weight, and the one with less to do for its weight.
    fn least_request(&self, open: &[&Endpoint]) -> usize {
        let first = at_weight(open, random_below(total(open)));
        let rest: Vec<&Endpoint> = open.iter().enumerate().filter(|(i, _)| *i != first).map(|(_, c)| *c).collect();
        let mut second = at_weight(&rest, random_below(total(&rest)));
        if second >= first {
            second += 1;
        }
        let load = |i: usize| {
            let candidate = open[i];
            (u64::from(self.active(&candidate.address)) + 1, u64::from(weight(candidate)))
        };
        let ((first_load, first_weight), (second_load, second_weight)) = (load(first), load(second));
        if second_load * first_weight < first_load * second_weight { second } else { first }
    }
}

fn weight(candidate: &Endpoint) -> u32 {
    candidate.weight.max(1)
}

fn total(candidates: &[&Endpoint]) -> u64 {
    candidates.iter().map(|c| u64::from(weight(c))).sum()
}

fn random_below(total: u64) -> u64 {
    rand::rng().random_range(0..total.max(1))
}

/// The candidate in whose share of the weights `point` falls.
fn at_weight(candidates: &[&Endpoint], mut point: u64) -> usize {
    for (index, candidate) in candidates.iter().enumerate() {
        let weight = u64::from(weight(candidate));
        if point < weight {
            return index;
        }
        point -= weight;
    }
    candidates.len().saturating_sub(1)
}

/// Every candidate as often as its weight says in each round of `total` turns. With different weights the turns stride
/// through the round by about its golden section, so that a heavy endpoint is not hit in one long run.
fn round_robin(turn: usize, open: &[&Endpoint]) -> usize {
    let turn = turn as u64;
    if open.windows(2).all(|pair| weight(pair[0]) == weight(pair[1])) {
        return (turn % open.len() as u64) as usize;
    }
    let total = total(open);
    let mut stride = ((total as f64) * 0.618_033_988_75) as u64;
    while stride < 1 || gcd(stride, total) != 1 {
        stride += 1;
    }
    let point = u128::from(turn % total) * u128::from(stride) % u128::from(total);
    at_weight(open, point as u64)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Which address families lead nowhere from a pod, learned from the kernel's answer to a connect (ENETUNREACH and
/// its like, given at once, without a packet) and believed for [`limits::FAMILY_UNREACHABLE`].
#[derive(Debug, Default)]
pub struct Families {
    v4_until: AtomicU64,
    v6_until: AtomicU64,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Families {
    fn until(&self, address: SocketAddr) -> &AtomicU64 {
        if address.is_ipv4() { &self.v4_until } else { &self.v6_until }
    }

    /// The kernel had no route for the address.
    pub fn unreachable(&self, address: SocketAddr) {
        let until = START.elapsed() + limits::FAMILY_UNREACHABLE;
        self.until(address).store(until.as_millis() as u64, Ordering::Relaxed);
    }

    /// A connection got through: the family is fine, whatever one address's route said.
    pub fn reachable(&self, address: SocketAddr) {
        self.until(address).store(0, Ordering::Relaxed);
    }

    /// False where the family was found to lead nowhere, a short while ago.
    pub fn usable(&self, address: &EndpointAddress) -> bool {
        match address {
            EndpointAddress::Unix(_) => true,
            EndpointAddress::Ip(address) => {
                self.until(*address).load(Ordering::Relaxed) <= START.elapsed().as_millis() as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(last: u8, weight: u32) -> Endpoint {
        Endpoint::new(EndpointAddress::Ip(SocketAddr::from(([10, 0, 0, last], 80))), weight)
    }

    fn pool() -> Pool {
        crate::engine::dial::default_pool()
    }

    fn shares(policy: LoadBalancer, candidates: &[Endpoint], turns: usize) -> Vec<usize> {
        let state = ClusterState::default();
        let mut counts = vec![0; candidates.len()];
        for _ in 0..turns {
            let chosen = state.choose(policy, candidates, &[]).unwrap();
            counts[candidates.iter().position(|c| c == chosen).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_takes_turns_in_order() {
        let candidates = [candidate(1, 1), candidate(2, 1), candidate(3, 1)];
        let state = ClusterState::default();
        let picks: Vec<_> =
            (0..6).map(|_| state.choose(LoadBalancer::RoundRobin, &candidates, &[]).unwrap().clone()).collect();
        assert_eq!(picks[..3], candidates);
        assert_eq!(picks[3..], candidates);
    }

    #[test]
    fn weighted_round_robin_is_exact_and_spread() {
        let candidates = [candidate(1, 80), candidate(2, 20)];
        assert_eq!(shares(LoadBalancer::RoundRobin, &candidates, 200), [160, 40]);
        let state = ClusterState::default();
        let mut longest = 0;
        let mut run = 0;
        for _ in 0..100 {
            if state.choose(LoadBalancer::RoundRobin, &candidates, &[]).unwrap() == &candidates[0] {
                run += 1;
                longest = longest.max(run);
            } else {
                run = 0;
            }
        }
        assert!(longest < 10, "a run of {longest} on the heavy endpoint");
    }

    #[test]
    fn random_and_idle_least_request_follow_the_weights() {
        let candidates = [candidate(1, 3), candidate(2, 1)];
        let counts = shares(LoadBalancer::Random, &candidates, 4000);
        assert!((2700..3300).contains(&counts[0]), "{counts:?}");
        let even = [candidate(1, 1), candidate(2, 1)];
        let counts = shares(LoadBalancer::LeastRequest, &even, 4000);
        assert!((1700..2300).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn least_request_avoids_the_busy_one() {
        let candidates = [candidate(1, 1), candidate(2, 1)];
        let state = ClusterState::default();
        let busy = state.use_endpoint(&candidates[0].address);
        for _ in 0..50 {
            assert_eq!(state.choose(LoadBalancer::LeastRequest, &candidates, &[]), Some(&candidates[1]));
        }
        drop(busy);
        assert_eq!(state.active(&candidates[0].address), 0);
    }

    #[test]
    fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
        let candidates = [candidate(1, 100), candidate(2, 1)];
        let state = ClusterState::default();
        for policy in [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::LeastRequest] {
            for _ in 0..20 {
                let tried = [candidates[0].address.clone()];
                assert_eq!(state.choose(policy, &candidates, &tried), Some(&candidates[1]));
            }
        }
        let all: Vec<_> = candidates.iter().map(|c| c.address.clone()).collect();
        assert!(state.choose(LoadBalancer::Random, &candidates, &all).is_some());
        assert!(state.choose(LoadBalancer::Random, &[], &[]).is_none());
    }

    #[test]
    fn breakers_open_at_the_limit_and_close_again() {
        let state = ClusterState::default();
        let pool = Pool { max_connections: Some(2), ..pool() };
        let first = state.connection(&pool).unwrap();
        let _second = state.connection(&pool).unwrap();
        assert!(state.connection(&pool).is_none());
        drop(first);
        assert!(state.connection(&pool).is_some());
        assert!(state.request(&Pool { max_requests: Some(0), ..pool.clone() }).is_none());
        assert!(state.pending(&Pool { max_pending_requests: None, ..pool }).is_some());
    }

    #[test]
    fn a_family_without_route_is_left_alone_for_a_while() {
        let families = Families::default();
        let v6: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
        let endpoint = EndpointAddress::Ip(v6);
        assert!(families.usable(&endpoint));
        families.unreachable(v6);
        assert!(!families.usable(&endpoint));
        assert!(families.usable(&candidate(1, 1).address));
        families.reachable(v6);
        assert!(families.usable(&endpoint));
    }
}
