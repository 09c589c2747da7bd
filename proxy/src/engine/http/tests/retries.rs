//! Upstream connections: shared where they may be, made again where they must be, and never a request twice that may
//! have been done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::lab::*;
use crate::{
    mesh::*,
    telemetry::record::{Flag, Record},
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

async fn get(lab: &Lab, method: &str) -> (String, String) {
    let mut client = lab.client().await;
    client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await;
    client.response().await
}

#[tokio::test]
async fn clients_share_upstream_connections() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let address = upstream(move |mut raw, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            loop {
                raw.head().await;
                raw.send(OK).await;
            }
        }
    })
    .await;
    let lab = Lab::to(address).await;
    for _ in 0..5 {
        assert_eq!(get(&lab, "GET").await.1, "ok");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // A reload that leaves the cluster as it is keeps the connection; one that takes it away closes it.
    lab.engine.install(snapshot(OutboundPolicy::RegistryOnly, vec![cluster("a", Protocol::Http, &[address])], 2));
    assert_eq!(get(&lab, "GET").await.1, "ok");
    assert_eq!(get(&lab, "GET").await.1, "ok");
    assert_eq!((connections.load(Ordering::SeqCst), lab.pod.http.count()), (1, 1));
    lab.engine.install(snapshot(OutboundPolicy::RegistryOnly, vec![cluster("b", Protocol::Http, &[address])], 3));
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: b\r\n\r\n").await;
    client.response().await;
    assert_eq!((connections.load(Ordering::SeqCst), lab.pod.http.count()), (2, 1));
}

#[tokio::test]
async fn idle_and_spent_connections_are_closed() {
    let lab = {
        let mut cluster = cluster("a", Protocol::Http, &[mirror().await]);
        Arc::make_mut(&mut cluster.pool).http_idle_timeout = Duration::from_millis(200);
        Lab::with(cluster).await
    };
    get(&lab, "GET").await;
    assert_eq!(lab.pod.http.count(), 1);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(lab.pod.http.count(), 0);
    let lab = {
        let mut cluster = cluster("a", Protocol::Http, &[mirror().await]);
        Arc::make_mut(&mut cluster.pool).max_requests_per_connection = Some(1);
        Lab::with(cluster).await
    };
    get(&lab, "GET").await;
    assert_eq!(lab.pod.http.count(), 0);
    let lab = {
        let mut cluster = cluster("a", Protocol::Http, &[mirror().await]);
        Arc::make_mut(&mut cluster.pool).max_connection_duration = Some(Duration::from_millis(200));
        Lab::with(cluster).await
    };
    get(&lab, "GET").await;
    assert_eq!(lab.pod.http.count(), 1);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(lab.pod.http.count(), 0);
}

/// An upstream that closes an idle connection must not find it half open for ever.
#[tokio::test]
async fn an_idle_connection_that_the_upstream_closes_is_closed_here() {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let address = upstream(move |mut raw, _| {
        let told = told.clone();
        async move {
            raw.head().await;
            raw.send(OK).await;
            tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await.unwrap();
            raw.rest().await;
            told.send(()).await.unwrap();
        }
    })
    .await;
    let lab = Lab::to(address).await;
    assert_eq!(get(&lab, "GET").await.1, "ok");
    tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap();
    assert_eq!(lab.pod.http.count(), 0);
}

/// What idles ends with the pod, and with a drain: an upstream of the same node would wait for it in vain.
#[tokio::test]
async fn idle_connections_end_with_the_pod_and_with_a_drain() {
    for drained in [false, true] {
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let address = upstream(move |mut raw, _| {
            let told = told.clone();
            async move {
                raw.head().await;
                raw.send(OK).await;
                raw.rest().await;
                told.send(()).await.unwrap();
            }
        })
        .await;
        let lab = Lab::to(address).await;
        assert_eq!(get(&lab, "GET").await.1, "ok");
        if drained {
            lab.engine.drain();
        } else {
            lab.pod.closed.cancel();
        }
        tokio::time::timeout(Duration::from_millis(900), heard.recv()).await.unwrap();
        assert_eq!(lab.pod.http.count(), 0);
    }
}

/// A request that only hyper can send goes out on a connection that ordinary ones have used, and the other way round.
#[tokio::test]
async fn requests_of_all_kinds_share_a_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let address = upstream(move |mut raw, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            loop {
                let head = raw.head().await;
                raw.exactly(field(&head, "content-length").map_or(0, |length| length.parse().unwrap())).await;
                raw.send(OK).await;
            }
        }
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        client.send(request).await;
        assert_eq!(client.response().await.1, "ok", "{request:?}");
    }
    assert_eq!((connections.load(Ordering::SeqCst), lab.pod.http.count()), (1, 1));
}

#[tokio::test]
async fn no_more_requests_at_a_time_than_allowed() {
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        raw.send(OK).await;
    })
    .await;
    let mut narrow = cluster("a", Protocol::Http, &[address]);
    Arc::make_mut(&mut narrow.pool).max_requests = Some(1);
    let lab = Lab::with(narrow).await;
    let (first, second) = tokio::join!(get(&lab, "GET"), get(&lab, "GET"));
    let bodies = [first.1, second.1];
    assert!(
        bodies.iter().any(|body| body == "ok") && bodies.iter().any(|body| body.ends_with("overflow")),
        "{bodies:?}"
    );
    assert!(lab.records(2).await.iter().any(|record| record.flags == [Flag::UO]));
}

/// `maxConnections: 1`: the second request waits for the first one's connection; with no room to wait it is refused.
#[tokio::test]
async fn requests_wait_for_a_connection_as_far_as_allowed() {
    let slow = || {
        upstream(|mut raw, _| async move {
            loop {
                raw.head().await;
                tokio::time::sleep(Duration::from_millis(150)).await;
                raw.send(OK).await;
            }
        })
    };
    let mut one = cluster("a", Protocol::Http, &[slow().await]);
    Arc::make_mut(&mut one.pool).max_connections = Some(1);
    let lab = Lab::with(one).await;
    let (first, second) = tokio::join!(get(&lab, "GET"), get(&lab, "GET"));
    assert_eq!((first.1.as_str(), second.1.as_str()), ("ok", "ok"));
    let mut none = cluster("a", Protocol::Http, &[slow().await]);
    Arc::make_mut(&mut none.pool).max_connections = Some(1);
    Arc::make_mut(&mut none.pool).max_pending_requests = Some(0);
    let lab = Lab::with(none).await;
    let (first, second) = tokio::join!(get(&lab, "GET"), get(&lab, "GET"));
    let refused = if first.1 == "ok" { second } else { first };
    assert!(refused.0.starts_with("HTTP/1.1 503 ") && refused.1.ends_with("overflow"), "{refused:?}");
    assert!(lab.records(2).await.iter().any(|record| record.flags == [Flag::UO]));
}

/// Upstreams close idle connections whenever they like; the next request must not pay for that.
#[tokio::test]
async fn a_stale_connection_is_no_error_for_the_client() {
    for method in ["GET", "PUT"] {
        let address = upstream(|mut raw, _| async move {
            raw.head().await;
            raw.send(OK).await;
            // Closed at the moment when the next request arrives.
            raw.fill().await;
        })
        .await;
        let lab = Lab::to(address).await;
        for _ in 0..3 {
            assert_eq!(get(&lab, method).await.1, "ok");
        }
        assert!(lab.records(3).await.iter().all(|record| record.flags.is_empty()));
    }
}

/// A POST that reached the upstream may have been done: sending it again has bought things twice.
#[tokio::test]
async fn a_post_is_not_sent_twice() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let address = upstream(move |mut raw, number| {
        let count = count.clone();
        async move {
            raw.head().await;
            count.fetch_add(1, Ordering::SeqCst);
            if number == 0 {
                raw.send(OK).await;
                raw.head().await;
                count.fetch_add(1, Ordering::SeqCst);
            } else {
                raw.send(OK).await;
            }
        }
    })
    .await;
    let lab = Lab::to(address).await;
    assert_eq!(get(&lab, "GET").await.1, "ok");
    let (head, body) = get(&lab, "POST").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(body.ends_with("reset reason: connection termination"), "{body}");
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    let records: Vec<Record> = lab.records(2).await;
    assert_eq!(records[1].flags, [Flag::UC]);
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let alive = mirror().await;
    let lab = Lab::with(cluster("a", Protocol::Http, &[nowhere(), nowhere(), alive])).await;
    for _ in 0..4 {
        assert!(get(&lab, "POST").await.0.starts_with("HTTP/1.1 200 "));
    }
    for record in lab.records(4).await {
        assert_eq!(record.upstream_host.as_ref().map(ToString::to_string), Some(alive.to_string()));
        assert!(record.flags.is_empty());
    }
}

#[tokio::test]
async fn no_endpoint_at_all_and_none_that_answers() {
    let lab = Lab::with(cluster("a", Protocol::Http, &[])).await;
    let (head, body) = get(&lab, "GET").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && body == "no healthy upstream", "{head}{body}");
    assert_eq!(lab.record().await.flags, [Flag::UH]);
    let lab = Lab::with(cluster("a", Protocol::Http, &[nowhere()])).await;
    let (head, body) = get(&lab, "GET").await;
    assert!(head.starts_with("HTTP/1.1 503 "));
    assert!(
        body.starts_with("upstream connect error or disconnect/reset before headers. reset reason: remote"),
        "{body}"
    );
    let record = lab.record().await;
    assert_eq!(record.flags, [Flag::UF, Flag::URX]);
    assert!(record.upstream_host.is_some() && record.upstream_transport_failure_reason.is_some());
}

#[tokio::test]
async fn a_rule_that_cannot_be_honoured_refuses_with_its_reason() {
    let mut refused = cluster("a", Protocol::Http, &[mirror().await]);
    refused.tls = UpstreamTls::Refuse("secret default/x is missing".into());
    let lab = Lab::with(refused).await;
    let (head, body) = get(&lab, "GET").await;
    assert!(head.starts_with("HTTP/1.1 503 "));
    assert_eq!(
        body,
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, \
         transport failure reason: TLS_error: secret default/x is missing"
    );
    assert_eq!(lab.record().await.flags, [Flag::UF]);
}

#[tokio::test]
async fn an_upstream_that_talks_nonsense_or_hangs_up() {
    for (answer, status, flag) in
        [("NONSENSE\r\n\r\n", "502", Flag::UPE), ("", "503", Flag::UC), ("HTTP/1.1 2", "503", Flag::UC)]
    {
        let address = upstream(move |mut raw, _| async move {
            raw.head().await;
            raw.send(answer).await;
        })
        .await;
        let lab = Lab::to(address).await;
        let (head, body) = get(&lab, "GET").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer:?}: {head}{body}");
        assert_eq!(lab.record().await.flags, [flag], "{answer:?}");
    }
}
