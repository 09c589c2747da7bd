//! Copies of requests: they arrive, and the request itself never suffers from them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::lab::*;
use crate::{limits, mesh::*};

/// An upstream that reports each request, head and body, and answers 500.
async fn listening() -> (SocketAddr, mpsc::UnboundedReceiver<(String, String)>) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = upstream(move |mut raw, _| {
        let tell = tell.clone();
        async move {
            loop {
                while !raw.text().contains("\r\n\r\n") {
                    if !raw.fill().await {
                        return;
                    }
                }
                let request = raw.response().await;
                tell.send(request).unwrap();
                raw.send("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno").await;
            }
        }
    })
    .await;
    (address, told)
}

async fn mirrored(to: Vec<(SocketAddr, u32)>) -> Lab {
    let mut route = Route::to_cluster("a".into(), Arc::new(cluster("a", Protocol::Http, &[mirror().await])));
    let Action::Forward(forward) = &mut route.action else { panic!() };
    forward.mirrors = (0..)
        .zip(to)
        .map(|(number, (address, share))| {
            let cluster = Arc::new(cluster(&format!("mirror-{number}"), Protocol::Http, &[address]));
            Mirror { cluster: ClusterRef::Known(cluster), share }
        })
        .collect();
    Lab::routes(vec![route]).await
}

async fn next(told: &mut mpsc::UnboundedReceiver<(String, String)>) -> (String, String) {
    tokio::time::timeout(PATIENCE, told.recv()).await.expect("nothing was mirrored").unwrap()
}

async fn silent(told: &mut mpsc::UnboundedReceiver<(String, String)>) -> bool {
    tokio::time::timeout(Duration::from_millis(200), told.recv()).await.is_err()
}

#[tokio::test]
async fn a_copy_arrives_with_its_body_and_a_shadow_name() {
    let (one, mut first) = listening().await;
    let (two, mut second) = listening().await;
    let (none, mut never) = listening().await;
    let lab = mirrored(vec![(one, 1_000_000), (two, 1_000_000), (none, 0)]).await;
    let (head, body) = lab.ask("POST /x?y", "Content-Length: 5\r\nx-mine: 1\r\n\r\nhello").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.contains("host: a\r\n"), "{head}{body}");
    for told in [&mut first, &mut second] {
        let (head, body) = next(told).await;
        assert!(head.starts_with("POST /x?y HTTP/1.1\r\n") && body == "hello", "{head}{body}");
        assert_eq!((field(&head, "host"), field(&head, "x-mine")), (Some("a-shadow"), Some("1")));
    }
    assert!(silent(&mut never).await);
    // One request, one line: copies are not in the log.
    lab.record().await;
}

/// Trailers end a request: nothing comes after them that would have to be awaited.
#[tokio::test]
async fn a_request_with_trailers_is_copied() {
    let (address, mut told) = listening().await;
    let lab = mirrored(vec![(address, 1_000_000)]).await;
    let rest = "Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n";
    let (head, body) = lab.ask("POST /summed", rest).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}{body}");
    let (head, body) = next(&mut told).await;
    assert!(head.starts_with("POST /summed ") && body == "hello", "{head}{body}");
}

/// The one whose answer counts is answered while a mirror is down, hangs, or could not take the body.
#[tokio::test]
async fn a_mirror_that_fails_harms_nobody() {
    let hanging = upstream(|mut raw, _| async move { while raw.fill().await {} }).await;
    let (listening, mut told) = listening().await;
    let lab = mirrored(vec![(nowhere(), 1_000_000), (hanging, 1_000_000), (listening, 1_000_000)]).await;
    let (head, _) = lab.ask("GET /", "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(next(&mut told).await.0.starts_with("GET / "));
    let long = limits::MIRROR_BODY_BYTES + 1;
    let body = "x".repeat(long);
    let (head, _) = lab.ask("POST /long", &format!("Content-Length: {long}\r\n\r\n{body}")).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(silent(&mut told).await, "what is too long to keep is not mirrored");
}

#[tokio::test]
async fn a_share_of_requests_is_mirrored() {
    let (address, mut told) = listening().await;
    let lab = mirrored(vec![(address, 500_000)]).await;
    let mut client = lab.client().await;
    for _ in 0..200 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.response().await;
    }
    let mut count = 0;
    while tokio::time::timeout(Duration::from_millis(300), told.recv()).await.is_ok() {
        count += 1;
    }
    assert!((60..140).contains(&count), "{count} of 200");
}

/// What a policy about a service forbids does not reach it as a copy either; the request itself goes on.
#[tokio::test]
async fn no_copy_goes_where_a_policy_forbids_it() {
    let (denied, mut never) = listening().await;
    let (allowed, mut copies) = listening().await;
    let policies = crate::engine::tests::authorization::policies("{}");
    let mut route = Route::to_cluster("a".into(), Arc::new(cluster("a", Protocol::Http, &[mirror().await])));
    let Action::Forward(forward) = &mut route.action else { panic!() };
    let forbidden = Cluster { policies: Some(policies), ..cluster("b", Protocol::Http, &[denied]) };
    forward.mirrors = [forbidden, cluster("c", Protocol::Http, &[allowed])]
        .into_iter()
        .map(|cluster| Mirror { cluster: ClusterRef::Known(Arc::new(cluster)), share: 1_000_000 })
        .collect();
    let lab = Lab::routes(vec![route]).await;
    let (head, _) = lab.ask("GET /x", "").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    next(&mut copies).await;
    assert!(silent(&mut never).await);
}
