//! Timeouts, retry policies, hashing and outlier detection, by real sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::lab::*;
use crate::{mesh::*, telemetry::record::Flag};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";

/// Host `a` on a route that `change` has its way with.
async fn routed(cluster: Cluster, change: impl FnOnce(&mut Forward)) -> Lab {
    let mut route = Route::to_cluster("default".into(), Arc::new(cluster));
    let Action::Forward(forward) = &mut route.action else { unreachable!() };
    change(forward);
    Lab::routes(vec![route]).await
}

fn on(change: impl FnOnce(&mut RetryConditions)) -> RetryConditions {
    let mut conditions = RetryConditions::default();
    change(&mut conditions);
    conditions
}

/// Answers each request by its number, of all connections together; `answer` gets the body, too.
async fn answers<F>(answer: F) -> (std::net::SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(usize, &str) -> String + Send + Sync + 'static,
{
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let answer = Arc::new(answer);
    let address = upstream(move |mut raw, _| {
        let (count, answer) = (count.clone(), answer.clone());
        async move {
            loop {
                while !raw.text().contains("\r\n\r\n") {
                    if !raw.fill().await {
                        return;
                    }
                }
                let head = raw.head().await;
                let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
                let body = String::from_utf8(raw.exactly(length).await).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let answer = answer(number, &body);
                if answer.is_empty() {
                    return;
                }
                if answer == "silence" {
                    tokio::time::sleep(PATIENCE * 2).await;
                }
                raw.send(answer).await;
            }
        }
    })
    .await;
    (address, seen)
}

async fn post(lab: &Lab, body: &str) -> (String, String) {
    let mut client = lab.client().await;
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    client.response().await
}

#[tokio::test]
async fn a_status_that_the_policy_names_is_tried_again() {
    let (address, seen) = answers(|number, _| if number < 2 { BUSY } else { OK }.into()).await;
    let lab = routed(cluster("a", Protocol::Http, &[address]), |forward| {
        forward.retries = RetryPolicy { conditions: on(|_| ()), status_codes: vec![503], ..RetryPolicy::default() };
    })
    .await;
    assert_eq!(lab.ask("GET /", "").await.1, "ok");
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    assert!(lab.record().await.flags.is_empty());
}

/// Once the attempts are spent the last answer goes to the client, and the log says so.
#[tokio::test]
async fn the_last_answer_is_the_clients() {
    let (address, seen) = answers(|_, _| BUSY.into()).await;
    for (attempts, expected, flags) in [(2, 3, vec![Flag::URX]), (0, 1, vec![])] {
        let before = seen.load(Ordering::SeqCst);
        let lab = routed(cluster("a", Protocol::Http, &[address]), |forward| {
            forward.retries =
                RetryPolicy { attempts, conditions: on(|on| on.five_xx = true), ..RetryPolicy::default() };
        })
        .await;
        assert_eq!(lab.ask("GET /", "").await.1, "busy");
        assert_eq!(seen.load(Ordering::SeqCst) - before, expected);
        let record = lab.record().await;
        assert_eq!((record.response_code, record.flags), (503, flags));
    }
}

#[tokio::test]
async fn a_body_is_sent_again_whole_or_not_at_all() {
    let (address, seen) = answers(|number, body| match number {
        0 => BUSY.into(),
        _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
    })
    .await;
    let five_xx = |forward: &mut Forward| {
        forward.retries = RetryPolicy { conditions: on(|on| on.five_xx = true), ..RetryPolicy::default() };
    };
    let body = "0123456789".repeat(20_000);
    let lab = routed(cluster("a", Protocol::Http, &[address]), five_xx).await;
    let (head, echoed) = post(&lab, &body).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && echoed == body, "{head}");
    assert_eq!((seen.load(Ordering::SeqCst), lab.record().await.bytes_received), (2, body.len() as u64));
    // More than is kept: one attempt only.
    let (address, seen) = answers(|_, _| BUSY.into()).await;
    let lab = routed(cluster("a", Protocol::Http, &[address]), five_xx).await;
    let (head, _) = post(&lab, &"x".repeat(crate::limits::RETRY_BODY_BYTES + 1)).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!((seen.load(Ordering::SeqCst), lab.record().await.flags), (1, vec![]));
}

/// What may have been processed goes out again only where the policy says so.
#[tokio::test]
async fn a_lost_request_is_repeated_for_reset_and_not_by_default() {
    for (reset, expected) in [(true, "HTTP/1.1 200 "), (false, "HTTP/1.1 503 ")] {
        let (address, seen) = answers(|number, _| if number == 0 { "" } else { OK }.into()).await;
        let lab = routed(cluster("a", Protocol::Http, &[address]), |forward| {
            if reset {
                forward.retries.conditions = on(|on| on.reset = true);
            }
        })
        .await;
        let (head, _) = post(&lab, "once").await;
        assert!(head.starts_with(expected), "{head}");
        assert_eq!(seen.load(Ordering::SeqCst), if reset { 2 } else { 1 });
        assert_eq!(lab.record().await.flags, if reset { vec![] } else { vec![Flag::UC] });
    }
}

#[tokio::test]
async fn each_try_has_its_time() {
    let (slow, _) = answers(|_, _| "silence".into()).await;
    let (quick, _) = answers(|_, _| OK.into()).await;
    let limited = |attempts| {
        move |forward: &mut Forward| {
            let per_try_timeout = Some(Duration::from_millis(100));
            let conditions = on(|on| on.five_xx = true);
            forward.retries = RetryPolicy { attempts, per_try_timeout, conditions, ..RetryPolicy::default() };
        }
    };
    let lab = routed(cluster("a", Protocol::Http, &[slow, quick]), limited(2)).await;
    for _ in 0..4 {
        assert_eq!(lab.ask("GET /", "").await.1, "ok");
    }
    let lab = routed(cluster("a", Protocol::Http, &[slow]), limited(1)).await;
    let (head, body) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 504 ") && body == "upstream request timeout", "{head}{body}");
    let record = lab.record().await;
    assert_eq!(record.response_code_details.as_deref(), Some("upstream_per_try_timeout"));
    assert_eq!(record.flags, [Flag::UT, Flag::URX]);
}

#[tokio::test]
async fn the_routes_timeout_is_from_the_end_of_the_request_to_the_end_of_the_response() {
    let short = |forward: &mut Forward| forward.timeout = Some(Duration::from_millis(300));
    let (silent, _) = answers(|_, _| "silence".into()).await;
    let lab = routed(cluster("a", Protocol::Http, &[silent]), short).await;
    let begun = Instant::now();
    let (head, body) = lab.ask("GET /", "").await;
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(head.starts_with("HTTP/1.1 504 ") && body == "upstream request timeout", "{head}{body}");
    let record = lab.record().await;
    assert_eq!((record.flags, record.response_code_details.as_deref()), (vec![Flag::UT], Some("response_timeout")));

    // A client that takes its time is not the upstream's fault.
    let (address, _) = answers(|_, _| OK.into()).await;
    let lab = routed(cluster("a", Protocol::Http, &[address]), short).await;
    let mut client = lab.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    client.send("cd").await;
    assert_eq!(client.response().await.1, "ok");

    // A body that stalls after its head is cut off: a whole one would be a lie.
    let stalls = upstream(|mut raw, _| async move {
        raw.head().await;
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        raw.fill().await;
    })
    .await;
    let lab = routed(cluster("a", Protocol::Http, &[stalls]), short).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.rest().await.ends_with("\r\n\r\nhalf"));
    let record = lab.record().await;
    assert_eq!((record.response_code, record.flags), (200, vec![Flag::UT]));
    assert_eq!(record.response_code_details.as_deref(), Some("response_timeout"));
}

/// `maxRetries: 1` while another request is being retried.
#[tokio::test]
async fn retries_have_a_budget() {
    let (address, _) = answers(|_, _| BUSY.into()).await;
    let mut narrow = cluster("a", Protocol::Http, &[address]);
    Arc::make_mut(&mut narrow.pool).max_retries = Some(1);
    let pool = narrow.pool.clone();
    let lab = routed(narrow, |forward| forward.retries.status_codes = vec![503]).await;
    let state = lab.pod.cluster(&cluster("a", Protocol::Http, &[address]));
    let other = state.retry(&pool).unwrap();
    assert_eq!(lab.ask("GET /", "").await.1, "busy");
    assert_eq!(lab.record().await.flags, [Flag::UO]);
    drop(other);
    lab.ask("GET /", "").await;
    assert_eq!(lab.records(2).await[1].flags, [Flag::URX]);
}

fn outlier(errors: u32, base: Duration) -> Option<OutlierDetection> {
    Some(OutlierDetection {
        consecutive_5xx: Some(errors),
        consecutive_gateway: None,
        consecutive_local_origin: None,
        interval: Duration::from_millis(100),
        base_ejection_time: base,
        max_ejection_percent: 100,
        min_health_percent: 0,
    })
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_alone_for_a_while() {
    let (bad, asked) = answers(|_, _| BUSY.into()).await;
    let (good, _) = answers(|_, _| OK.into()).await;
    let lab = {
        let mut watched = cluster("a", Protocol::Http, &[bad, good]);
        watched.outlier = outlier(3, Duration::from_millis(500)).map(Box::new);
        Lab::with(watched).await
    };
    let count = async |turns: usize| {
        let before = asked.load(Ordering::SeqCst);
        for _ in 0..turns {
            lab.ask("GET /", "").await;
        }
        asked.load(Ordering::SeqCst) - before
    };
    assert_eq!(count(12).await, 3);
    assert!(lab.pod.is_ejected("outbound|80||a", &EndpointAddress::Ip(bad)));
    assert_eq!(count(5).await, 0);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!lab.pod.is_ejected("outbound|80||a", &EndpointAddress::Ip(bad)));
    assert_eq!(count(4).await, 2);
}

#[tokio::test]
async fn with_all_ejected_nobody_is_healthy() {
    let lab = {
        let mut watched = cluster("a", Protocol::Http, &[nowhere()]);
        watched.outlier = outlier(3, Duration::from_secs(30)).map(Box::new);
        Lab::with(watched).await
    };
    // One request and its two retries: three failed connections.
    lab.ask("GET /", "").await;
    let (head, body) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && body == "no healthy upstream", "{head}{body}");
    assert_eq!(lab.records(2).await[1].flags, [Flag::UH]);
}

#[tokio::test]
async fn requests_of_one_key_stay_with_one_endpoint() {
    let mut addresses = Vec::new();
    for number in 0..3 {
        let name = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
        addresses.push(answers(move |_, _| name.clone()).await.0);
    }
    let mut hashed = cluster("a", Protocol::Http, &addresses);
    let key = HashKey::Header("x-user".into());
    hashed.hash = Some(Box::new(ConsistentHash { key, ring: HashRing::Ring { minimum: 1024 } }));
    let lab = Lab::with(hashed).await;
    let mut met = std::collections::HashSet::new();
    for user in 0..12 {
        let first = lab.ask("GET /", &format!("x-user: {user}\r\n")).await.1;
        for _ in 0..3 {
            assert_eq!(lab.ask("GET /", &format!("x-user: {user}\r\n")).await.1, first);
        }
        met.insert(first);
    }
    assert!(met.len() > 1, "{met:?}");
}

/// The upstream answers with an error before it has read the body: the next one gets all of it.
#[tokio::test]
async fn a_body_still_on_its_way_is_sent_again_from_its_beginning() {
    let address = upstream(|mut raw, number| async move {
        let head = raw.head().await;
        if number == 0 {
            raw.until("first half").await;
            raw.send(BUSY).await;
            raw.fill().await;
            return;
        }
        let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
        let body = String::from_utf8(raw.exactly(length).await).unwrap();
        raw.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")).await;
    })
    .await;
    let lab =
        routed(cluster("a", Protocol::Http, &[address]), |forward| forward.retries.status_codes = vec![503]).await;
    let mut client = lab.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 22\r\n\r\nfirst half").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.send(" second half").await;
    assert_eq!(client.response().await.1, "first half second half");
}
