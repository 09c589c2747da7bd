//! Where connections go that are not HTTP, and what is recorded of them.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt as _};

use super::lab::*;
use crate::{
    engine::client_hello::tests::OPENSSL,
    limits,
    mesh::{Guard, Outbound, OutboundPolicy, PortTable, Protocol, UpstreamTls},
    telemetry::record::Flag,
    tls::Contexts,
};

const NOWHERE: &str = "192.0.2.1:80";

#[tokio::test]
async fn unmatched_bytes_pass_through_with_half_close() {
    let upstream = echo().await;
    let lab = lab(Outbound::default());
    let mut client = lab.connect(upstream).await;
    let local = client.local_addr().unwrap();
    assert_eq!(exchange(&mut client, b"\x01question").await.unwrap(), b"got: \x01question");
    let record = lab.record().await;
    assert_eq!((record.bytes_received, record.bytes_sent, record.response_code), (9, 14, 0));
    assert_eq!(record.cluster_name(), Some("PassthroughCluster"));
    assert_eq!(record.upstream_host.as_ref().map(ToString::to_string), Some(upstream.to_string()));
    assert_eq!((record.downstream_local_address, record.downstream_remote_address), (Some(upstream), Some(local)));
    assert!(record.upstream_local_address.is_some() && record.flags.is_empty() && record.protocol.is_none());
}

#[tokio::test]
async fn server_first_on_an_unknown_port_waits_a_moment() {
    let upstream = greeter().await;
    let lab = lab(Outbound::default());
    let begun = Instant::now();
    let mut client = lab.connect(upstream).await;
    let mut banner = [0; 11];
    client.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"220 hello\r\n");
    assert!(begun.elapsed() >= limits::SNIFF_SILENCE && begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn server_first_on_a_declared_port_does_not() {
    let upstream = greeter().await;
    let lab = lab(tcp_service(3306, cluster("db.example", &[upstream], UpstreamTls::Plain)));
    let begun = Instant::now();
    let mut client = lab.connect("192.0.2.1:3306".parse().unwrap()).await;
    client.read_exact(&mut [0; 11]).await.unwrap();
    assert!(begun.elapsed() < limits::SNIFF_SILENCE, "{:?}", begun.elapsed());
    drop(client);
    assert_eq!(lab.record().await.cluster_name(), Some("outbound|80||db.example"));
}

#[tokio::test]
async fn tls_goes_by_its_name_untouched() {
    let (named, other) = (echo().await, echo().await);
    let mut table = PortTable::default();
    let mut service = cluster("edition.cnn.com", &[named], UpstreamTls::Plain);
    service.protocol = Protocol::Tls;
    table.tls.insert("edition.cnn.com", service.into());
    let lab = lab(Outbound { ports: [(other.port(), table)].into(), ..Outbound::default() });
    let mut client = lab.connect(other).await;
    assert_eq!(exchange(&mut client, OPENSSL).await.unwrap(), [b"got: ", OPENSSL].concat());
    let record = lab.record().await;
    assert_eq!(record.requested_server_name.as_deref(), Some("edition.cnn.com"));
    assert_eq!(record.upstream_host.as_ref().map(ToString::to_string), Some(named.to_string()));
    assert!(!record.upstream_tls);
}

#[tokio::test]
async fn registry_only_resets_what_it_does_not_know() {
    for first in [OPENSSL, b"\x01\x02\x03"] {
        let lab = lab(Outbound { policy: OutboundPolicy::RegistryOnly, ..Outbound::default() });
        let mut client = lab.connect(echo().await).await;
        tokio::io::AsyncWriteExt::write_all(&mut client, first).await.unwrap();
        assert!(is_reset(&mut client).await);
        let record = lab.record().await;
        assert_eq!(record.cluster_name(), Some("BlackHoleCluster"));
        assert_eq!(record.flags, [Flag::UH]);
    }
}

#[tokio::test]
async fn a_rule_that_cannot_be_honoured_resets_with_its_reason() {
    let upstream = echo().await;
    let refuse = UpstreamTls::Refuse("secret default/x does not exist".into());
    let lab = lab(tcp_service(80, cluster("a.example", &[upstream], refuse)));
    let mut client = lab.connect(NOWHERE.parse().unwrap()).await;
    assert!(is_reset(&mut client).await);
    let record = lab.record().await;
    assert_eq!(record.upstream_transport_failure_reason.as_deref(), Some("TLS_error: secret default/x does not exist"));
    assert_eq!((record.flags, record.upstream_host.as_ref().map(ToString::to_string)), (vec![Flag::UF], None));
}

#[tokio::test]
async fn nobody_talks_to_the_listener_itself() {
    let lab = lab(Outbound::default());
    // Not captured: closed in order, no record.
    let mut direct = tokio::net::TcpStream::connect(lab.listener).await.unwrap();
    assert_eq!(direct.read(&mut [0; 8]).await.unwrap(), 0);
    // Captured on the way to the listener: it would dial itself for ever.
    let mut client = lab.connect(lab.listener).await;
    assert!(is_reset(&mut client).await);
    assert!(lab.recorder.records.lock().is_empty());
    // A service whose endpoint is the listener.
    let listener = lab.listener;
    lab.engine.install(crate::engine::Snapshot {
        mesh: mesh(tcp_service(80, cluster("loop.example", &[listener], UpstreamTls::Plain))).into(),
        tls: Default::default(),
        generation: 2,
    });
    let mut client = lab.connect(NOWHERE.parse().unwrap()).await;
    assert!(is_reset(&mut client).await);
    let record = lab.record().await;
    assert!(record.upstream_transport_failure_reason.unwrap().contains("own listener"));
}

/// Half a method and then nothing: it might become a request once we have stopped looking.
#[tokio::test]
async fn text_that_stalls_does_not_pass_where_a_rule_guards_the_port() {
    let upstream = echo().await;
    let open = lab(Outbound::default());
    let mut guarded = Outbound::default();
    let guard = Guard { ports: Some(vec![upstream.port()]), except: vec![], reason: Default::default() };
    std::sync::Arc::make_mut(&mut guarded.guards.own).insert("a.example", guard);
    let guarded = lab(guarded);
    let slow = async |lab: &Lab| {
        let mut client = lab.connect(upstream).await;
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GE").await.unwrap();
        tokio::time::sleep(limits::HEAD_TIME + Duration::from_millis(200)).await;
        exchange(&mut client, b"T / HTTP/1.1\r\n\r\n").await
    };
    let (passed, stopped) = tokio::join!(slow(&open), slow(&guarded));
    assert_eq!(passed.unwrap(), b"got: GET / HTTP/1.1\r\n\r\n");
    assert!(stopped.is_err());
    let record = guarded.record().await;
    assert_eq!(record.flags, [Flag::DPE]);
    assert_eq!(record.connection_termination_details.as_deref(), Some("first_bytes_incomplete"));
}

/// Browsers and connection pools connect before they have a request. What they send in the end is told apart as ever:
/// it must not be plain text that passes a rule, only because nothing came for a while.
#[tokio::test]
async fn a_client_that_connects_early_is_still_looked_at() {
    let (named, address) = (echo().await, echo().await);
    let mut table = PortTable::default();
    let mut service = cluster("edition.cnn.com", &[named], UpstreamTls::Plain);
    service.protocol = Protocol::Tls;
    table.tls.insert("edition.cnn.com", service.into());
    let lab = lab(Outbound { ports: [(address.port(), table)].into(), ..Outbound::default() });
    let mut client = lab.connect(address).await;
    tokio::time::sleep(limits::SNIFF_SILENCE * 2).await;
    exchange(&mut client, OPENSSL).await.unwrap();
    assert_eq!(lab.record().await.upstream_host.map(|host| host.to_string()), Some(named.to_string()));
    lab.recorder.records.lock().clear();
    // Bytes that are neither go on over the connection that was made meanwhile.
    let mut client = lab.connect(address).await;
    tokio::time::sleep(limits::SNIFF_SILENCE * 2).await;
    assert_eq!(exchange(&mut client, b"\x01late").await.unwrap(), b"got: \x01late");
    assert_eq!(lab.record().await.upstream_host.map(|host| host.to_string()), Some(address.to_string()));
}

/// What was let through when it connected may be forbidden by the time it, or the server, says its first word.
#[tokio::test]
async fn who_was_silent_through_a_reload_is_treated_by_the_new_table() {
    let block = || Outbound { policy: OutboundPolicy::RegistryOnly, ..Outbound::default() };
    let (upstream, listener) = (echo().await, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let lab = lab(Outbound::default());
    let mut client = lab.connect(upstream).await;
    tokio::time::sleep(limits::SNIFF_SILENCE * 2).await;
    lab.engine.install(snapshot(mesh(block()), Contexts::default()));
    client.write_all(b"\x01late").await.unwrap();
    assert!(is_reset(&mut client).await);
    assert_eq!(lab.record().await.cluster_name(), Some("BlackHoleCluster"));

    lab.engine.install(snapshot(mesh(Outbound::default()), Contexts::default()));
    let mut client = lab.connect(listener.local_addr().unwrap()).await;
    let (mut server, _) = listener.accept().await.unwrap();
    lab.engine.install(snapshot(mesh(block()), Contexts::default()));
    server.write_all(b"220 hello\r\n").await.unwrap();
    assert!(is_reset(&mut client).await);
}

#[tokio::test]
async fn a_late_request_is_http_and_never_raw() {
    let address = echo().await;
    let lab = lab(Outbound::default());
    let mut client = lab.connect(address).await;
    tokio::time::sleep(limits::SNIFF_SILENCE * 2).await;
    // No Host: HTTP refuses it. As raw bytes it would come back as an echo.
    let answer = exchange(&mut client, b"GET / HTTP/1.1\r\n\r\n").await.unwrap_or_default();
    assert!(!answer.starts_with(b"got: "), "{}", answer.escape_ascii());
}
