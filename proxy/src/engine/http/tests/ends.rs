//! How connections end, and what waits for whom.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lab::*;
use crate::{limits, telemetry::record::Flag};

/// An upstream that takes its time.
async fn slow() -> std::net::SocketAddr {
    upstream(|mut raw, _| async move {
        while raw.fill().await {
            raw.buffer.clear();
            tokio::time::sleep(Duration::from_millis(100)).await;
            raw.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await
}

/// `nc` and shell scripts end their side with the last request; half of a connection that said nothing of it is a client
/// that has gone.
#[tokio::test]
async fn a_half_closed_client_is_answered_where_it_said_so() {
    let lab = Lab::to(slow().await).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    client.stream.shutdown().await.unwrap();
    let all = client.rest().await;
    assert!(all.contains("\r\nconnection: close\r\n") && all.ends_with("\r\n\r\nok"), "{all}");
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "");
    assert_eq!(lab.records(2).await[1].flags, [Flag::DC]);
}

/// A request that was sent ahead of its turn must not be taken for a client that leaves, nor keep one from leaving.
#[tokio::test]
async fn what_is_sent_ahead_waits_for_its_turn() {
    let lab = Lab::to(slow().await).await;
    let mut client = lab.client().await;
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..3 {
        assert_eq!(client.response().await.1, "ok");
    }
    assert!(lab.records(3).await.iter().all(|record| record.flags.is_empty()));
}

#[tokio::test]
async fn a_drain_closes_idle_connections() {
    let lab = Lab::to(mirror().await).await;
    let (mut used, mut fresh) = (lab.client().await, lab.client().await);
    used.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    used.response().await;
    fresh.send("GET / HTTP/1.1\r\nHo").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    lab.engine.drain();
    assert_eq!(used.rest().await, "");
    drop(fresh);
    assert_eq!(lab.engine.idle(tokio::time::Instant::now() + PATIENCE).await, 0);
}

/// The timer of an idle connection is not set anew for each request; it must count from the last one all the same.
#[tokio::test]
async fn an_idle_connection_ends_in_its_time() {
    let lab = Lab::to(mirror().await).await;
    let mut client = lab.client().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.response().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::time::pause();
        tokio::time::advance(limits::IDLE_TIMEOUT / 2).await;
        tokio::time::resume();
    }
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    assert_eq!(client.stream.read(&mut [0; 8]).await.unwrap(), 0);
    let left = limits::IDLE_TIMEOUT / 2;
    assert!(start.elapsed() > left - Duration::from_secs(1) && start.elapsed() <= left, "{:?}", start.elapsed());
}

/// A proxy that reads on while its client does not has the whole download in its memory.
#[tokio::test]
async fn a_slow_reader_slows_the_upstream() {
    const TOTAL: usize = 64 * 1024 * 1024;
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let address = upstream(move |mut raw, _| {
        let counted = counted.clone();
        async move {
            raw.head().await;
            raw.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
            let chunk = vec![b'x'; 64 * 1024];
            for _ in 0..TOTAL / chunk.len() {
                if raw.stream.write_all(&chunk).await.is_err() {
                    return;
                }
                counted.fetch_add(chunk.len(), Ordering::Relaxed);
            }
            raw.fill().await;
        }
    })
    .await;
    let lab = Lab::to(address).await;
    let mut client = lab.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.head().await;
    let mut before = usize::MAX;
    while before != written.load(Ordering::Relaxed) {
        before = written.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // What the kernel's buffers of two connections hold, and little more.
    assert!(before < TOTAL / 2, "{before} bytes were taken");
    let (mut got, mut chunk) = (client.buffer.len(), vec![0; 1 << 20]);
    while got < TOTAL {
        let read = client.stream.read(&mut chunk).await.unwrap();
        assert!(read > 0, "ended after {got}");
        got += read;
    }
    assert_eq!(lab.record().await.bytes_sent, TOTAL as u64);
}
