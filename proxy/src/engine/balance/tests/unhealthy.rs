//! `outlierDetection`, on a clock that the test moves.

use std::time::Duration;

use super::*;

fn settings() -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: Some(3),
        consecutive_gateway: None,
        consecutive_local_origin: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 100,
        min_health_percent: 0,
    }
}

fn watched(settings: OutlierDetection, count: u8) -> Chooser {
    let endpoints: Vec<_> = (1..=count).map(|last| candidate(last, 1)).collect();
    let chooser =
        Chooser::new(Cluster { outlier: Some(Box::new(settings)), ..cluster(LoadBalancer::RoundRobin, &endpoints) });
    chooser.pick();
    chooser
}

impl Chooser {
    fn saw(&self, index: usize, observed: &[Observed]) {
        for observed in observed {
            self.state.observe(self.cluster.outlier.as_deref().unwrap(), &self.endpoints()[index].address, *observed);
        }
    }

    fn out(&self) -> Vec<usize> {
        (0..self.endpoints().len()).filter(|i| self.state.is_ejected(&self.endpoints()[*i].address)).collect()
    }
}

const BAD: Observed = Observed::Status(500);
const GOOD: Observed = Observed::Status(200);
const GATEWAY: Observed = Observed::Status(503);

async fn advance(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn errors_in_a_row_eject_and_success_begins_anew() {
    let chooser = watched(settings(), 3);
    chooser.saw(1, &[BAD, BAD, GOOD, BAD, BAD, Observed::Status(404)]);
    assert!(chooser.out().is_empty());
    chooser.saw(1, &[BAD; 3]);
    assert_eq!(chooser.out(), [1]);
    assert_eq!(chooser.shares(100), [50, 0, 50]);
}

#[tokio::test(start_paused = true)]
async fn each_ejection_is_longer_and_good_behaviour_is_rewarded() {
    let chooser = watched(settings(), 2);
    for seconds in [30, 60, 90] {
        chooser.saw(0, &[BAD; 3]);
        advance(seconds - 1).await;
        assert_eq!(chooser.pick(), Some(1), "still out before {seconds} s");
        advance(1).await;
        assert!(chooser.out().is_empty(), "back after {seconds} s");
        chooser.pick();
    }
    // Two intervals in order: two ejections forgiven, so that the next one is the second.
    advance(20).await;
    chooser.pick();
    chooser.saw(0, &[BAD; 3]);
    advance(59).await;
    assert_eq!(chooser.out(), [0]);
    advance(1).await;
    assert!(chooser.out().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_ejection_ends_on_a_beat_of_the_interval_and_lasts_five_minutes_at_most() {
    let chooser = watched(settings(), 2);
    advance(4).await;
    chooser.saw(0, &[BAD; 3]);
    advance(35).await;
    assert_eq!(chooser.out(), [0]);
    advance(1).await;
    assert!(chooser.out().is_empty());
    for _ in 0..30 {
        chooser.pick();
        chooser.saw(0, &[BAD; 3]);
        advance(310).await;
        assert!(chooser.out().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn one_may_always_go_and_more_as_far_as_the_percentage() {
    for (percent, out) in [(0, 1), (10, 1), (50, 2), (74, 2), (75, 3), (100, 4)] {
        let chooser = watched(OutlierDetection { max_ejection_percent: percent, ..settings() }, 4);
        (0..4).for_each(|index| chooser.saw(index, &[BAD; 3]));
        assert_eq!(chooser.out().len(), out, "{percent} %");
        assert_eq!(chooser.pick().is_none(), out == 4);
    }
}

#[tokio::test(start_paused = true)]
async fn too_few_healthy_and_all_are_used() {
    let chooser = watched(OutlierDetection { min_health_percent: 50, ..settings() }, 4);
    (0..2).for_each(|index| chooser.saw(index, &[BAD; 3]));
    assert_eq!(chooser.shares(100), [0, 0, 50, 50]);
    chooser.saw(2, &[BAD; 3]);
    assert_eq!(chooser.shares(100), [25; 4]);
    let single = watched(OutlierDetection { min_health_percent: 50, ..settings() }, 1);
    single.saw(0, &[BAD; 3]);
    assert_eq!(single.pick(), Some(0));
}

#[tokio::test(start_paused = true)]
async fn gateway_errors_and_broken_connections_are_counted_as_the_rule_says() {
    let gateway = OutlierDetection { consecutive_5xx: None, consecutive_gateway: Some(2), ..settings() };
    let chooser = watched(gateway, 2);
    chooser.saw(0, &[GATEWAY, BAD, GATEWAY, Observed::Status(501)]);
    assert!(chooser.out().is_empty());
    chooser.saw(0, &[Observed::Failed, Observed::TimedOut]);
    assert_eq!(chooser.out(), [0]);
    let split = OutlierDetection { consecutive_local_origin: Some(2), ..gateway };
    let chooser = watched(split, 2);
    chooser.saw(0, &[Observed::Failed, Observed::Connected, Observed::Failed, GOOD, Observed::Failed]);
    assert!(chooser.out().is_empty());
    chooser.saw(1, &[GATEWAY, Observed::Failed, GATEWAY]);
    chooser.saw(0, &[Observed::TimedOut]);
    // Answers and broken connections are two counts.
    assert_eq!(chooser.out(), [0, 1]);
}

/// A TCP connection that comes about is all the success that there is to see.
#[tokio::test(start_paused = true)]
async fn connections_count_for_tcp() {
    let chooser = watched(settings(), 2);
    let failed = Observed::Failed;
    chooser.saw(0, &[failed, failed, Observed::Served, failed, failed]);
    assert!(chooser.out().is_empty());
    chooser.saw(0, &[failed]);
    assert_eq!(chooser.out(), [0]);
}

#[tokio::test(start_paused = true)]
async fn what_was_known_is_forgotten_with_the_endpoint_and_with_the_rule() {
    let mut chooser = watched(settings(), 3);
    chooser.saw(0, &[BAD; 3]);
    let address = chooser.endpoints()[0].address.clone();
    let without = chooser.endpoints()[1..].to_vec();
    let smaller = cluster(LoadBalancer::RoundRobin, &without);
    let unruled = Arc::new(cluster(LoadBalancer::RoundRobin, chooser.endpoints()));
    chooser.cluster = Arc::new(Cluster { outlier: Some(Box::new(settings())), ..smaller });
    advance(10).await;
    chooser.pick();
    assert!(!chooser.state.is_ejected(&address));
    chooser.saw(0, &[BAD; 3]);
    assert_eq!(chooser.out(), [0]);
    chooser.cluster = unruled;
    chooser.pick();
    assert!(chooser.out().is_empty());
}

#[tokio::test(start_paused = true)]
async fn failures_of_ever_new_addresses_fill_no_memory() {
    let chooser = watched(settings(), 2);
    for number in 0..3 * limits::ENDPOINTS_REMEMBERED as u32 {
        let address = EndpointAddress::Ip(SocketAddr::from((std::net::Ipv4Addr::from(number), 80)));
        chooser.state.observe(&settings(), &address, BAD);
    }
    assert!(chooser.state.outliers.remembered() <= limits::ENDPOINTS_REMEMBERED);
}
