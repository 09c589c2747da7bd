//! Localities, levels and warm-up.

use std::time::Duration;

use super::*;
use crate::mesh::{LocalitySetting, OutlierDetection, Warmup};

fn at(last: u8, locality: &str) -> Endpoint {
    Endpoint { locality: locality.into(), ..candidate(last, 1) }
}

fn outlier() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(1),
        consecutive_gateway: None,
        consecutive_local_origin: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 100,
        min_health_percent: 0,
    }
}

fn placed(setting: LocalitySetting, endpoints: &[Endpoint]) -> Chooser {
    let of = cluster(LoadBalancer::Random, endpoints);
    let mut chooser =
        Chooser::new(Cluster { locality: Some(Box::new(setting)), outlier: Some(Box::new(outlier())), ..of });
    chooser.locality = "eu/a/1".into();
    chooser
}

fn eject(chooser: &Chooser, index: usize) {
    let address = &chooser.endpoints()[index].address;
    chooser.state.observe(&outlier(), address, Observed::Status(500));
    assert!(chooser.state.is_ejected(address));
}

fn near(counts: &[usize], expected: &[usize], turns: usize) {
    let close = counts.iter().zip(expected).all(|(count, share)| count.abs_diff(share * turns / 100) < turns / 25);
    assert!(close, "{counts:?} instead of {expected:?} percent");
}

#[test]
fn the_nearest_that_are_healthy_get_everything() {
    let endpoints = [at(1, "us/x/1"), at(2, "eu/b/1"), at(3, "eu/a/2"), at(4, "eu/a/1")];
    let chooser = placed(LocalitySetting::default(), &endpoints);
    for nearest in [3, 2, 1, 0] {
        assert!((0..50).all(|_| chooser.pick() == Some(nearest)));
        eject(&chooser, nearest);
    }
    assert_eq!(chooser.pick(), None);
}

/// Envoy's documentation of priority levels: 50 % healthy at a factor of 1.4 bears 70 %.
#[test]
fn a_level_that_is_half_broken_passes_some_load_on() {
    let endpoints = [at(1, "eu/a/1"), at(2, "eu/a/1"), at(3, "eu/b/1")];
    let chooser = placed(LocalitySetting::default(), &endpoints);
    near(&chooser.shares(4000), &[50, 50, 0], 4000);
    eject(&chooser, 0);
    near(&chooser.shares(4000), &[0, 70, 30], 4000);
}

#[test]
fn failover_names_the_region_to_go_to() {
    let endpoints = [at(1, "asia/x/1"), at(2, "us/x/1")];
    let setting = LocalitySetting { failover: vec![("eu".into(), "us".into())], ..LocalitySetting::default() };
    let chooser = placed(setting, &endpoints);
    assert!((0..50).all(|_| chooser.pick() == Some(1)));
    eject(&chooser, 1);
    assert_eq!(chooser.pick(), Some(0));
}

/// A retry leaves a level whose endpoints were all tried, although the level counts as healthy.
#[test]
fn a_retry_goes_to_the_next_level() {
    let endpoints = [at(1, "eu/a/1"), at(2, "us/b/1")];
    let chooser = placed(LocalitySetting::default(), &endpoints);
    assert_eq!(chooser.pick(), Some(0));
    assert_eq!(chooser.pick_with(None, &[endpoints[0].address.clone()]), Some(1));
}

#[test]
fn labels_rank_by_how_many_agree_from_the_start() {
    let labelled = |last: u8, labels: &[(&str, &str)]| Endpoint {
        labels: Arc::new(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
        ..candidate(last, 1)
    };
    let endpoints = [
        labelled(1, &[("version", "v2"), ("rack", "r1")]),
        labelled(2, &[("version", "v1"), ("rack", "r2")]),
        labelled(3, &[("version", "v1"), ("rack", "r1")]),
    ];
    let setting =
        LocalitySetting { failover_priority: vec!["version=v1".into(), "rack".into()], ..LocalitySetting::default() };
    let mut chooser = placed(setting, &endpoints);
    chooser.labels = [("rack".to_owned(), "r1".to_owned())].into();
    for best in [2, 1, 0] {
        assert!((0..30).all(|_| chooser.pick() == Some(best)));
        eject(&chooser, best);
    }
}

#[test]
fn distribute_shares_out_by_locality() {
    let endpoints = [at(1, "eu/a/1"), at(2, "eu/a/2"), at(3, "us/x/1"), at(4, "asia/x/1")];
    let to = vec![("eu/a/*".into(), 80), ("us/*".into(), 20)];
    let setting = LocalitySetting { distribute: vec![("eu/*".into(), to)], ..LocalitySetting::default() };
    let chooser = placed(setting.clone(), &endpoints);
    near(&chooser.shares(4000), &[40, 40, 20, 0], 4000);
    // Half of the first locality is gone: 80 x 0.7 to 20.
    eject(&chooser, 0);
    near(&chooser.shares(4000), &[0, 74, 26, 0], 4000);
    let mut elsewhere = placed(setting, &endpoints);
    elsewhere.locality = "asia/x/1".into();
    near(&elsewhere.shares(4000), &[25, 25, 25, 25], 4000);
}

#[test]
fn switched_off_or_without_outlier_detection_nothing_is_ranked() {
    let endpoints = [at(1, "eu/a/1"), at(2, "us/b/1")];
    let off = placed(LocalitySetting { enabled: Some(false), ..LocalitySetting::default() }, &endpoints);
    near(&off.shares(2000), &[50, 50], 2000);
    let of = cluster(LoadBalancer::Random, &endpoints);
    let mut blind = Chooser::new(Cluster { locality: Some(Box::default()), ..of });
    blind.locality = "eu/a/1".into();
    near(&blind.shares(2000), &[50, 50], 2000);
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_warms_up() {
    let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent: 10, aggression_thousandths: 1000 };
    let of = |endpoints: &[Endpoint]| {
        Arc::new(Cluster { warmup: Some(Box::new(warmup)), ..cluster(LoadBalancer::RoundRobin, endpoints) })
    };
    let mut chooser = Chooser::simple(LoadBalancer::RoundRobin, &[]);
    chooser.cluster = of(&[candidate(1, 1), candidate(2, 1)]);
    // Known from the start: not new.
    assert_eq!(chooser.shares(2000), [1000, 1000]);
    chooser.cluster = of(&[candidate(1, 1), candidate(2, 1), candidate(3, 1)]);
    let newest = |chooser: &Chooser| chooser.shares(2100)[2];
    assert_eq!(newest(&chooser), 100);
    tokio::time::advance(Duration::from_secs(50)).await;
    assert_eq!(newest(&chooser), 420);
    tokio::time::advance(Duration::from_secs(50)).await;
    assert_eq!(newest(&chooser), 700);
    // Gone and back: new again.
    chooser.cluster = of(&[candidate(1, 1), candidate(2, 1)]);
    chooser.pick();
    chooser.cluster = of(&[candidate(1, 1), candidate(2, 1), candidate(3, 1)]);
    assert_eq!(newest(&chooser), 100);
}
