//! What the client may say, and what becomes of it on the way.

use std::time::Duration;

use super::lab::*;
use crate::{mesh::*, telemetry::record::Flag};

#[tokio::test]
async fn a_request_goes_through_with_nothing_added() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client
        .send("GET /x?y HTTP/1.1\r\nHost: A:80\r\nUser-Agent: t\r\nX-Request-Id: 7\r\nConnection: X-Own\r\nX-Own: 1\r\n\r\n")
        .await;
    let (head, body) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(field(&head, "server"), Some("mirror"));
    assert_eq!(field(&head, "date"), None, "the upstream sent none");
    let mut lines: Vec<_> = body.trim_end().lines().collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["GET /x?y HTTP/1.1", "host: A:80", "user-agent: t", "x-request-id: 7"]);
    let record = lab.record().await;
    assert_eq!((record.response_code, record.protocol), (200, Some("HTTP/1.1")));
    assert_eq!(record.bytes_sent, body.len() as u64);
    assert_eq!(record.authority.as_deref(), Some("A:80"));
    assert_eq!(record.route_name.as_deref(), Some("default"));
    assert_eq!(record.cluster_name(), Some("outbound|80||a"));
    assert_eq!(record.response_code_details.as_deref(), Some("via_upstream"));
    assert!(record.flags.is_empty() && record.upstream_service_time.is_some() && record.upstream_host.is_some());
}

/// RFC 9112 3.2.2: a proxy that routed by Host while the origin believed the target was a way around its rules.
#[tokio::test]
async fn the_authority_of_the_target_counts_before_host() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client.send("GET http://a/p HTTP/1.1\r\nHost: other\r\n\r\n").await;
    let (_, body) = client.response().await;
    assert_eq!(body.trim_end().lines().collect::<Vec<_>>(), ["GET /p HTTP/1.1", "host: a"]);
    client.send("GET http://other/p HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 502"), "REGISTRY_ONLY knows no `other`");
    let records = lab.records(2).await;
    assert_eq!(records[1].route_name.as_deref(), Some("block_all"));
    assert_eq!(records[1].cluster_name.as_deref(), Some("BlackHoleCluster"));
}

/// Pipelined answers once came in the order in which upstreams were done.
#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_a_bad_one_last() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client
        .send(
            "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\
             POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
             GET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    assert!(client.response().await.1.starts_with("POST /1 "));
    assert!(client.response().await.1.starts_with("GET /2 "));
    let (head, body) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    assert_eq!(field(&head, "connection"), Some("close"));
    assert_eq!(body, "Content-Length together with Transfer-Encoding");
    assert_eq!(client.rest().await, "");
    let records = lab.records(3).await;
    assert_eq!((records[2].method.as_deref(), records[2].path.as_deref()), (Some("POST"), Some("/3")));
    assert_eq!(records[2].flags, [Flag::DPE]);
}

/// A refusal is told by a secret method; a client that knew or guessed its form must not pass for one.
#[tokio::test]
async fn nobody_can_forge_a_refusal() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client.send("EGRET-0123456789abcdef0123456789abcdef / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.response().await.0.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn each_refusal_has_its_status_and_closes() {
    let lab = Lab::to(mirror().await).await;
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(101));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}", "y".repeat(70_000));
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: me@a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", "400"),
        ("GET / HTTP/1.9\r\nHost: a\r\n\r\n", "505"),
        (&many, "431"),
        (&large, "431"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "405"),
    ];
    for (request, status) in cases {
        let mut client = lab.client().await;
        client.send(request).await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.80}: {head}");
    }
    assert_eq!(lab.records(cases.len()).await.len(), cases.len());
}

/// A chunk that lies reaches the upstream as a broken request, never as a whole one; the client is told 400.
#[tokio::test]
async fn bad_chunking_is_refused_and_breaks_the_upstream_request() {
    let (told, mut heard) = tokio::sync::mpsc::channel(1);
    let address = upstream(move |mut raw, _| {
        let told = told.clone();
        async move {
            raw.head().await;
            let _ = told.send(raw.rest().await).await;
        }
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.send("3\nabc\r\n0\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 400 "));
    let body = heard.recv().await.unwrap();
    assert_eq!(body, "3\r\nabc\r\n", "no final chunk: {body:?}");
    assert_eq!(lab.record().await.flags, [Flag::DPE]);
}

/// A head of one byte a second kept a connection for hours; an idle keep-alive connection is no such thing.
#[tokio::test]
async fn a_slow_head_is_ended_but_idleness_is_not() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.response().await;
    assert!(client.silent(Duration::from_millis(5500)).await, "idle is fine");
    client.send("GET /slow HTTP/1.1\r\nHo").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
}

#[tokio::test]
async fn old_clients_are_served_their_way() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let all = client.rest().await;
    assert!(all.starts_with("HTTP/1.0 200 OK\r\n") && all.contains("\r\nhost: a\r\n"), "{all}");
    // Kept alive where it asks; a client that closes its half after its last request still gets the answer.
    let mut client = lab.client().await;
    client.send("GET /1 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert_eq!(field(&head, "connection"), Some("keep-alive"));
    client.send("GET /2 HTTP/1.0\r\nHost: a\r\n\r\n").await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
    assert!(client.rest().await.contains("GET /2 "));
}

/// 204, 304 and answers to HEAD have no body whatever their headers say; a proxy that waited for one hung.
#[tokio::test]
async fn answers_without_body() {
    let address = upstream(|mut raw, _| async move {
        for answer in ["204 No Content\r\n", "304 Not Modified\r\nETag: x\r\n", "200 OK\r\nContent-Length: 99\r\n"] {
            raw.head().await;
            raw.send(format!("HTTP/1.1 {answer}\r\n")).await;
        }
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    for (method, status) in [("GET", "204"), ("GET", "304"), ("HEAD", "200")] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(field(&head, "content-length"), (method == "HEAD").then_some("99"), "{head}");
        assert_eq!(field(&head, "transfer-encoding"), None);
    }
    assert!(lab.records(3).await.iter().all(|record| record.flags.is_empty() && record.bytes_sent == 0));
}

#[tokio::test]
async fn unmatched_requests_go_where_the_client_dialled() {
    let address = mirror().await;
    let lab = Lab::new(snapshot(OutboundPolicy::AllowAny, vec![], 1), address).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: anything\r\n\r\n").await;
    assert!(client.response().await.1.contains("host: anything"));
    let record = lab.record().await;
    assert_eq!(record.route_name.as_deref(), Some("allow_any"));
    assert_eq!(record.cluster_name(), Some("PassthroughCluster"));
    assert!(record.cluster.is_none());
}

/// Draining: the request in flight is answered, and its client told not to send another.
#[tokio::test]
async fn a_drain_ends_connections_after_the_request_in_flight() {
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(80)).await;
    lab.engine.drain();
    let (head, body) = client.response().await;
    assert_eq!((field(&head, "connection"), body.as_str()), (Some("close"), "ok"));
    assert_eq!(client.rest().await, "");
    assert_eq!(lab.engine.idle(tokio::time::Instant::now() + PATIENCE).await, 0);
}
