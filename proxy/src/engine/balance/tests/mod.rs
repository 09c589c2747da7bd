//! Who is chosen how often, and who not at all.

mod hash;
mod places;
mod unhealthy;

use std::net::SocketAddr;

use super::*;
use crate::mesh::Protocol;

fn candidate(last: u8, weight: u32) -> Endpoint {
    Endpoint::new(EndpointAddress::Ip(SocketAddr::from(([10, 0, 0, last], 80))), weight)
}

fn cluster(load_balancer: LoadBalancer, endpoints: &[Endpoint]) -> Cluster {
    Cluster {
        name: "outbound|80||a".into(),
        host: "a".into(),
        port: 80,
        subset: String::new(),
        protocol: Protocol::Http,
        discovery: Discovery::Static(endpoints.to_vec()),
        load_balancer,
        hash: None,
        locality: None,
        warmup: None,
        outlier: None,
        pool: Arc::new(pool()),
        tls: crate::mesh::UpstreamTls::Plain,
        mesh_external: false,
        service: crate::api::ObjectId::new("Service", "default", "a"),
        destination_rule: None,
        policies: None,
    }
}

fn pool() -> Pool {
    Pool::default()
}

/// One cluster of one pod, and what is asked of it.
struct Chooser {
    state: ClusterState,
    cluster: Arc<Cluster>,
    families: Families,
    locality: String,
    labels: std::collections::BTreeMap<String, String>,
}

impl Chooser {
    fn new(cluster: Cluster) -> Self {
        Self {
            state: ClusterState::default(),
            cluster: Arc::new(cluster),
            families: Families::default(),
            locality: String::new(),
            labels: Default::default(),
        }
    }

    fn simple(policy: LoadBalancer, endpoints: &[Endpoint]) -> Self {
        Self::new(cluster(policy, endpoints))
    }

    fn endpoints(&self) -> &[Endpoint] {
        let Discovery::Static(endpoints) = &self.cluster.discovery else { unreachable!() };
        endpoints
    }

    fn pick_with(&self, hash: Option<u64>, tried: &[EndpointAddress]) -> Option<usize> {
        let from = Some(From { locality: &self.locality, labels: &self.labels });
        let wish = Wish { cluster: &self.cluster, from, hash, tried, families: &self.families };
        self.state.choose(&wish, self.endpoints())
    }

    fn pick(&self) -> Option<usize> {
        self.pick_with(None, &[])
    }

    fn shares(&self, turns: usize) -> Vec<usize> {
        let mut counts = vec![0; self.endpoints().len()];
        for _ in 0..turns {
            counts[self.pick().unwrap()] += 1;
        }
        counts
    }
}

#[test]
fn round_robin_takes_turns_in_order() {
    let chooser = Chooser::simple(LoadBalancer::RoundRobin, &[candidate(1, 1), candidate(2, 1), candidate(3, 1)]);
    let picks: Vec<_> = (0..6).map(|_| chooser.pick().unwrap()).collect();
    assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn weighted_round_robin_is_exact_and_spread() {
    let chooser = Chooser::simple(LoadBalancer::RoundRobin, &[candidate(1, 80), candidate(2, 20)]);
    assert_eq!(chooser.shares(200), [160, 40]);
    let mut longest = 0;
    let mut run = 0;
    for _ in 0..100 {
        if chooser.pick() == Some(0) {
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
    let counts = Chooser::simple(LoadBalancer::Random, &[candidate(1, 3), candidate(2, 1)]).shares(4000);
    assert!((2700..3300).contains(&counts[0]), "{counts:?}");
    let counts = Chooser::simple(LoadBalancer::LeastRequest, &[candidate(1, 1), candidate(2, 1)]).shares(4000);
    assert!((1700..2300).contains(&counts[0]), "{counts:?}");
}

#[test]
fn least_request_avoids_the_busy_one() {
    let chooser = Chooser::simple(LoadBalancer::LeastRequest, &[candidate(1, 1), candidate(2, 1)]);
    let busy = chooser.state.use_endpoint(&chooser.endpoints()[0].address);
    for _ in 0..50 {
        assert_eq!(chooser.pick(), Some(1));
    }
    drop(busy);
    assert_eq!(chooser.state.active(&chooser.endpoints()[0].address), 0);
}

#[test]
fn a_retry_goes_elsewhere_while_there_is_an_elsewhere() {
    for policy in [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::LeastRequest] {
        let chooser = Chooser::simple(policy, &[candidate(1, 100), candidate(2, 1)]);
        let all: Vec<_> = chooser.endpoints().iter().map(|c| c.address.clone()).collect();
        for _ in 0..20 {
            assert_eq!(chooser.pick_with(None, &all[..1]), Some(1));
        }
        assert!(chooser.pick_with(None, &all).is_some());
    }
    assert!(Chooser::simple(LoadBalancer::Random, &[]).pick().is_none());
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
