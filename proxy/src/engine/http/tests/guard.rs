//! The guard by itself: what comes out is what went in, however it was cut, up to the first thing that is refused.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{head_guard::guard, head_rules::Violation};
use crate::limits::HEAD_TIME;

/// One request of random form, whole and in order.
fn request(random: &mut StdRng) -> Vec<u8> {
    let body: Vec<u8> = (0..random.random_range(0..60)).map(|_| random.random()).collect();
    let mut out = format!("POST /{} HTTP/1.1\r\nHost: a\r\n", random.random::<u16>()).into_bytes();
    match random.random_range(0..3) {
        0 => out.extend_from_slice(b"\r\n"),
        1 => {
            out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            out.extend_from_slice(&body);
        }
        _ => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(random.random_range(1..30)) {
                out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\nX-Sum: 1\r\n\r\n");
        }
    }
    out
}

/// A request once began in the middle of the body before it, because that body had come in an unlucky piece.
#[tokio::test(start_paused = true)]
async fn pipelined_requests_pass_unchanged_however_they_are_cut() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let good: Vec<u8> = (0..random.random_range(1..6)).flat_map(|_| request(&mut random)).collect();
        let mut sent = good.clone();
        sent.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n");
        let (mut client, server) = tokio::io::duplex(random.random_range(1..5000));
        let (mut io, handle) = guard(server, Duration::from_secs(3600), HEAD_TIME);
        let writing = tokio::spawn(async move {
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let step = random.random_range(1..=rest.len().min(97));
                if client.write_all(&rest[..step]).await.is_err() {
                    return;
                }
                rest = &rest[step..];
            }
            std::future::pending::<()>().await;
        });
        let mut got = Vec::new();
        let mut chunk = vec![0; 64];
        // The clock is paused: the time-out strikes as soon as nothing can happen any more.
        while let Ok(read) = tokio::time::timeout(Duration::from_secs(60), io.read(&mut chunk)).await {
            let read = read.unwrap();
            assert!(read > 0, "no end: the answer is still owed");
            got.extend_from_slice(&chunk[..read]);
        }
        writing.abort();
        assert_eq!(got[..good.len()], good, "seed {seed}");
        let last = String::from_utf8(got.split_off(good.len())).unwrap();
        let method = last.split(' ').next().unwrap().parse().unwrap();
        assert!(last.ends_with("connection: close\r\n\r\n") && !last.contains("never"), "{last}");
        assert_eq!(handle.refusal(&method).unwrap().violation, Violation::Host);
        assert!(handle.refusal(&http::Method::GET).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn time_counts_for_heads_that_have_begun_and_for_idleness_apart() {
    let (mut client, server) = tokio::io::duplex(1000);
    let (mut io, handle) = guard(server, Duration::from_secs(600), HEAD_TIME);
    let start = tokio::time::Instant::now();
    client.write_all(b"\r\nGET / HT").await.unwrap();
    let mut chunk = vec![0; 1000];
    let read = io.read(&mut chunk).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), HEAD_TIME.as_secs());
    let method = std::str::from_utf8(&chunk[..read]).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert_eq!(handle.refusal(&method).unwrap().violation, Violation::TooSlow);
    let (mut client, server) = tokio::io::duplex(1000);
    let (mut io, handle) = guard(server, Duration::from_secs(600), HEAD_TIME);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(io.read(&mut chunk).await.unwrap() > 0);
    // Not idle while an answer is owed, and then idle for its time.
    let waiting = tokio::time::timeout(Duration::from_secs(5000), io.read(&mut chunk)).await;
    assert!(waiting.is_err(), "it is we who are slow");
    handle.end();
    assert_eq!(io.read(&mut chunk).await.unwrap(), 0);
}
