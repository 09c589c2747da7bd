//! WebSocket and the like: a tunnel opens when the upstream says so, and not before.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lab::*;
use crate::telemetry::record::Flag;

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn a_tunnel_opens_after_the_upstreams_101_and_carries_half_closes() {
    let address = upstream(|mut raw, _| async move {
        let head = raw.head().await;
        assert_eq!((field(&head, "upgrade"), field(&head, "connection")), (Some("websocket"), Some("upgrade")));
        tokio::time::sleep(Duration::from_millis(100)).await;
        raw.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Key: k\r\n\r\nhi")
            .await;
        let all = raw.rest().await;
        raw.send(format!("heard {all}")).await;
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send(ASK).await;
    assert!(client.silent(Duration::from_millis(50)).await, "no 101 of our own");
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(
        (field(&head, "upgrade"), field(&head, "connection"), field(&head, "x-key")),
        (Some("websocket"), Some("upgrade"), Some("k"))
    );
    // Bytes that are no HTTP at all, and would be refused as such.
    client.send("\x01\r \r\n\r\n").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "hiheard \x01\r \r\n\r\n");
    let record = lab.record().await;
    assert_eq!((record.response_code, record.bytes_received, record.bytes_sent), (101, 7, 15));
    assert!(record.flags.is_empty());
}

#[tokio::test]
async fn a_tunnel_that_breaks_upstream_does_not_end_in_order() {
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        raw.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        raw.exactly(4).await;
        crate::engine::stream::reset_on_close(&raw.stream);
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send(ASK).await;
    client.head().await;
    client.send("ping").await;
    let error = client.stream.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(lab.record().await.flags, [Flag::UC]);
}

#[tokio::test]
async fn an_upgrade_that_is_not_granted_is_an_ordinary_exchange() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client.send(ASK).await;
    let (head, body) = client.response().await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body.contains("upgrade: websocket"), "{head}{body}");
    client.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.response().await.1.starts_with("GET /2 "));
}

/// `Upgrade: h2c` once went through proxies and opened a tunnel past all their rules.
#[tokio::test]
async fn h2c_is_not_passed_on_and_an_unasked_101_is_refused() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    client
        .send(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABk\r\n\r\n",
        )
        .await;
    let (_, body) = client.response().await;
    assert_eq!(body.trim_end().lines().collect::<Vec<_>>(), ["GET / HTTP/1.1", "host: a"]);
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        raw.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 502 "));
}
