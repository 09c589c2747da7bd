//! `consistentHash`: even shares, and few requests moved when endpoints come and go.

use super::*;
use crate::mesh::{ConsistentHash, HashKey, HashRing};

const RINGS: [HashRing; 2] = [HashRing::Ring { minimum: 1024 }, HashRing::Maglev { table: 65_537 }];
const KEYS: u64 = 20_000;

fn hashed(ring: HashRing, endpoints: &[Endpoint]) -> Chooser {
    let hash = Some(ConsistentHash { key: HashKey::SourceIp, ring });
    Chooser::new(Cluster { hash: hash.map(Box::new), ..cluster(LoadBalancer::LeastRequest, endpoints) })
}

fn key(number: u64) -> u64 {
    hash_of(number.to_string().as_bytes())
}

fn picks(chooser: &Chooser) -> Vec<EndpointAddress> {
    let picked = (0..KEYS).map(|number| chooser.pick_with(Some(key(number)), &[]).unwrap());
    picked.map(|index| chooser.endpoints()[index].address.clone()).collect()
}

#[test]
fn the_same_key_meets_the_same_endpoint_in_every_pod() {
    let mut endpoints: Vec<_> = (1..=10).map(|last| candidate(last, 1)).collect();
    for ring in RINGS {
        let here = picks(&hashed(ring, &endpoints));
        // Another pod, whose resolver answered in another order.
        endpoints.reverse();
        assert_eq!(picks(&hashed(ring, &endpoints)), here);
    }
}

#[test]
fn keys_spread_by_weight() {
    let endpoints = [candidate(1, 1), candidate(2, 1), candidate(3, 2)];
    for (ring, within) in RINGS.into_iter().zip([0.05, 0.02]) {
        let picked = picks(&hashed(ring, &endpoints));
        for (endpoint, expected) in endpoints.iter().zip([0.25, 0.25, 0.5]) {
            let share = picked.iter().filter(|address| **address == endpoint.address).count() as f64 / KEYS as f64;
            assert!((share - expected).abs() < within, "{ring:?}: {share} instead of {expected}");
        }
    }
}

#[test]
fn an_endpoint_that_goes_moves_its_own_keys_and_few_others() {
    let all: Vec<_> = (1..=10).map(|last| candidate(last, 1)).collect();
    let gone = all[3].address.clone();
    // A ring of at least so many points gives those that are left a few points more each.
    let left: Vec<_> = all.iter().filter(|endpoint| endpoint.address != gone).cloned().collect();
    for (ring, strays) in RINGS.into_iter().zip([0.08, 0.05]) {
        let (before, after) = (picks(&hashed(ring, &all)), picks(&hashed(ring, &left)));
        let own = before.iter().filter(|address| **address == gone).count() as f64 / KEYS as f64;
        assert!((0.06..0.15).contains(&own), "{ring:?}: {own} of the keys were its own");
        let moved = before.iter().zip(&after).filter(|(before, after)| **before != gone && before != after).count();
        assert!(moved as f64 <= strays * KEYS as f64, "{ring:?}: {moved} keys of others moved");
    }
}

/// The others keep their keys, and the keys of the missing one are spread.
#[test]
fn a_tried_endpoint_is_passed_over_in_a_way_that_is_always_the_same() {
    let all: Vec<_> = (1..=10).map(|last| candidate(last, 1)).collect();
    for ring in RINGS {
        let chooser = hashed(ring, &all);
        let mut heirs = std::collections::HashSet::new();
        for number in 0..2000 {
            let first = chooser.pick_with(Some(key(number)), &[]).unwrap();
            let tried = [all[first].address.clone()];
            let second = chooser.pick_with(Some(key(number)), &tried).unwrap();
            assert_ne!(first, second);
            assert_eq!(chooser.pick_with(Some(key(number)), &tried), Some(second));
            if first == 0 {
                heirs.insert(second);
            }
            let other = [all[(first + 1) % 10].address.clone()];
            assert_eq!(chooser.pick_with(Some(key(number)), &other), Some(first));
        }
        assert!(heirs.len() > 4, "{ring:?}: {heirs:?}");
    }
}

#[test]
fn a_request_without_the_key_goes_anywhere() {
    let chooser = hashed(RINGS[0], &[candidate(1, 1), candidate(2, 1)]);
    let counts = chooser.shares(1000);
    assert!(counts.iter().all(|count| *count > 350), "{counts:?}");
}

#[test]
fn a_table_is_kept_until_the_endpoints_change() {
    let endpoints: Vec<_> = (1..=3).map(|last| candidate(last, 1)).collect();
    let cluster = |endpoints: &[Endpoint]| hashed(RINGS[0], endpoints).cluster;
    let tables = hashing::Tables::default();
    let table =
        |cluster: &Arc<Cluster>, endpoints: &[Endpoint]| Arc::as_ptr(&tables.table(cluster, RINGS[0], endpoints));
    let first = cluster(&endpoints);
    let built = table(&first, &endpoints);
    assert_eq!(table(&first, &endpoints), built);
    // A reload that changes nothing here, in another order.
    let reversed: Vec<_> = endpoints.iter().rev().cloned().collect();
    assert_eq!(table(&cluster(&reversed), &reversed), built);
    assert_ne!(table(&cluster(&endpoints[..2]), &endpoints[..2]), built);
}

/// The walk through a table whose size is no prime would never end.
#[test]
fn strange_sizes_do_no_harm() {
    let endpoints: Vec<_> = (1..=5).map(|last| candidate(last, 1000)).collect();
    for ring in [
        HashRing::Maglev { table: 100 },
        HashRing::Maglev { table: 0 },
        HashRing::Ring { minimum: 0 },
        HashRing::Ring { minimum: 7 },
    ] {
        let chooser = hashed(ring, &endpoints);
        assert!((0..100).all(|number| chooser.pick_with(Some(key(number)), &[]).is_some()), "{ring:?}");
    }
}
