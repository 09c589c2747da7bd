//! Bodies: both directions at once, never collected, cut where they are cut, and held back for `100-continue`.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::lab::*;
use crate::telemetry::record::Flag;

/// A proxy that collects bodies deadlocks a client and an upstream that take turns within one exchange.
#[tokio::test]
async fn both_directions_stream_at_once() {
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        raw.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for _ in 0..3 {
            let chunk = raw.until("\r\n").await + &raw.until("\r\n").await;
            raw.send(chunk).await;
        }
        raw.until("0\r\n\r\n").await;
        raw.send("0\r\n\r\n").await;
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    for word in ["one", "two", "six"] {
        client.send(format!("3\r\n{word}\r\n")).await;
        assert_eq!(client.until("\r\n").await + &client.until("\r\n").await, format!("3\r\n{word}\r\n"));
    }
    client.send("0\r\n\r\n").await;
    client.until("0\r\n\r\n").await;
    let record = lab.record().await;
    assert_eq!((record.bytes_received, record.bytes_sent), (9, 9));
    assert!(record.flags.is_empty());
}

#[tokio::test]
async fn trailers_go_both_ways() {
    let address = upstream(|mut raw, _| async move {
        let head = raw.head().await;
        assert_eq!(field(&head, "te"), Some("trailers"), "{head}");
        let body = raw.until("\r\n\r\n").await;
        assert!(body.to_lowercase().contains("x-sum: 1\r\n"), "{body}");
        raw.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 2\r\n\r\n",
        )
        .await;
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTrailer: x-sum\r\n\
             Transfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\nx-sum: 1\r\n\r\n",
        )
        .await;
    client.head().await;
    let body = client.until("\r\n\r\n").await;
    assert!(body.ends_with("0\r\nx-sum: 2\r\n\r\n"), "{body}");
}

/// A response that broke off and ends cleanly here is taken for whole, and cached so.
#[tokio::test]
async fn a_broken_response_is_cut_not_ended() {
    for framing in ["Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "Content-Length: 10\r\n\r\nabc"] {
        let address = upstream(move |mut raw, _| async move {
            raw.head().await;
            raw.send(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        })
        .await;
        let lab = Lab::to(address).await;
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.head().await;
        let rest = client.rest().await;
        assert!(rest.contains("abc") && !rest.contains("0\r\n\r\n"), "{rest:?}");
        let record = lab.record().await;
        assert_eq!((record.response_code, record.flags), (200, vec![Flag::UC]));
        // To HTTP/1.0 the end of the connection is the end of the body: only a reset can tell.
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        let mut chunk = [0; 1024];
        let end = loop {
            match tokio::io::AsyncReadExt::read(&mut client.stream, &mut chunk).await {
                Ok(0) => break "a clean end",
                Ok(_) => {}
                Err(_) => break "a reset",
            }
        };
        let told_length = framing.starts_with("Content-Length");
        assert!(end == "a reset" || told_length, "{end}");
    }
}

/// A client that has gone must not keep its upstream working.
#[tokio::test]
async fn a_client_that_leaves_takes_its_upstream_request_along() {
    for part in ["", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"] {
        let (told, mut heard) = mpsc::channel(1);
        let address = upstream(move |mut raw, _| {
            let told = told.clone();
            async move {
                raw.head().await;
                raw.send(part).await;
                let _ = told.send("asked").await;
                raw.rest().await;
                let _ = told.send("left").await;
            }
        })
        .await;
        let lab = Lab::to(address).await;
        let mut client = lab.client().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(heard.recv().await, Some("asked"));
        if !part.is_empty() {
            client.until("abc").await;
        }
        drop(client);
        let left = tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap();
        assert_eq!(left, Some("left"));
        let record = lab.record().await;
        assert_eq!((record.response_code, record.flags), (if part.is_empty() { 0 } else { 200 }, vec![Flag::DC]));
        assert_eq!(record.response_code_details.as_deref().map(|d| d.starts_with("downstream")), Some(true));
    }
}

/// hyper says 100 by itself as soon as the body is polled; an upstream that would have refused then gets it all.
#[tokio::test]
async fn continue_comes_from_the_upstream() {
    let address = upstream(|mut raw, number| async move {
        raw.head().await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        if number == 0 {
            raw.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(raw.exactly(3).await, b"abc");
            raw.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        } else {
            raw.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await;
        }
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let ask = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let mut client = lab.client().await;
    client.send(ask).await;
    assert!(client.silent(Duration::from_millis(80)).await, "no 100 of our own");
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("abc").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    // The pooled connection is the first; a second one refuses.
    let holder = lab.client().await;
    drop(holder);
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        raw.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(raw.rest().await, "", "the body never comes");
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send(ask).await;
    assert!(client.head().await.starts_with("HTTP/1.1 417 "));
    assert_eq!(lab.record().await.bytes_received, 0);
    assert_eq!(lab.pod.http.count(), 0, "that connection still waits for a body");
}

/// Clients wait for a 100 a second or so, then send; an upstream that knows no 100 must get the body then.
#[tokio::test]
async fn a_client_that_does_not_wait_is_not_kept_waiting() {
    let address = upstream(|mut raw, _| async move {
        raw.head().await;
        assert_eq!(raw.exactly(3).await, b"abc");
        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        raw.fill().await;
    })
    .await;
    for pause in [0, 100] {
        let lab = Lab::to(address).await;
        let mut client = lab.client().await;
        let head = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
        if pause == 0 {
            client.send(format!("{head}abc")).await;
        } else {
            client.send(head).await;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            client.send("abc").await;
        }
        let all = client.until("200 OK").await;
        assert!(all.len() < 60, "{all}");
    }
}

/// Megabytes through small windows, byte for byte, with a request cut into odd pieces.
#[tokio::test]
async fn large_bodies_arrive_whole() {
    let address = upstream(|mut raw, _| async move {
        let head = raw.head().await;
        let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
        let body = raw.exactly(length).await;
        raw.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
        raw.send(body).await;
        raw.fill().await;
    })
    .await;
    let lab = Lab::to(address).await;
    let client = lab.client().await;
    let body: Vec<u8> = (0..1_000_003_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut request = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(&body);
    let (read, mut write) = client.stream.into_split();
    tokio::spawn(async move {
        for piece in request.chunks(40_009) {
            write.write_all(piece).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let mut read = tokio::io::BufReader::new(read);
    let mut got = Vec::new();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        tokio::io::AsyncBufReadExt::read_line(&mut read, &mut line).await.unwrap();
    }
    got.resize(body.len(), 0);
    tokio::io::AsyncReadExt::read_exact(&mut read, &mut got).await.unwrap();
    assert!(got == body);
}
