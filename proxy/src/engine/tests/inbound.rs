//! Connections from outside to the pod's own ports: passed on as they are, unless they are mesh mTLS.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::lab::*;
use crate::{
    engine::{accept::Role, client_hello::tests::OPENSSL},
    limits,
    mesh::{
        Application, Cluster, Discovery, InboundPort, InboundTable, MtlsMode, MtlsModes, Outbound, Pool, Protocol,
        UpstreamTls, VirtualHost, Workload,
    },
    telemetry::record::{Flag, Reporter},
    tls::Contexts,
};

/// A pod that takes mesh mTLS and everything else.
pub fn permissive(tls: Contexts) -> Lab {
    inbound(InboundTable::default(), tls)
}

/// A pod whose own ports are these.
pub fn inbound(table: InboundTable, tls: Contexts) -> Lab {
    lab_at(Role::Inbound, receiving(table), tls)
}

pub fn receiving(table: InboundTable) -> Workload {
    Workload { inbound: Some(Arc::new(table)), ..workload(Outbound::default()) }
}

/// All ports take what `mode` says, and this one speaks `protocol`.
pub fn declared(mode: MtlsMode, port: u16, protocol: Protocol) -> InboundTable {
    let port = (port, Arc::new(own_port(port, protocol, Application::Dialled)));
    let modes = MtlsModes { any: mode, ..MtlsModes::default() };
    InboundTable { modes: Arc::new(modes), ports: [port].into(), ..InboundTable::default() }
}

pub fn own_port(port: u16, protocol: Protocol, application: Application) -> InboundPort {
    let cluster = Arc::new(Cluster {
        name: format!("inbound|{port}||"),
        port,
        protocol,
        discovery: Discovery::Application(application),
        pool: Arc::new(Pool { use_client_protocol: true, ..Pool::default() }),
        mesh_external: false,
        ..cluster("", &[], UpstreamTls::Plain)
    });
    let host = Arc::new(VirtualHost::of_cluster(format!("inbound|http|{port}"), cluster.clone()));
    InboundPort { protocol, cluster, host, tls: None, ingress: None }
}

#[tokio::test]
async fn plain_bytes_reach_the_application_from_its_own_address() {
    let listener = TcpListener::bind("127.0.0.5:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(app).await;
    let peer = client.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let (mut stream, from) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(b"the answer").await.unwrap();
        (from, all)
    });
    assert_eq!(exchange(&mut client, b"\x01 raw bytes \r\n").await.unwrap(), b"the answer");
    let (from, all) = answering.await.unwrap();
    assert_eq!((from.ip(), all.as_slice()), (app.ip(), b"\x01 raw bytes \r\n".as_slice()));
    let record = lab.record().await;
    assert_eq!(record.cluster_name(), Some("InboundPassthroughCluster"));
    assert_eq!(
        (record.upstream_host.as_ref().map(ToString::to_string), record.upstream_local_address),
        (Some(app.to_string()), Some(from))
    );
    assert_eq!((record.downstream_local_address, record.downstream_remote_address), (Some(app), Some(peer)));
    assert_eq!((record.bytes_received, record.bytes_sent), (14, 10));
    assert_eq!((record.reporter, record.source_identity), (Reporter::Destination, None));
    assert!(record.flags.is_empty() && record.protocol.is_none());
}

/// The application's own TLS: what is not the mesh's is none of ours.
#[tokio::test]
async fn foreign_tls_is_not_touched() {
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(echo().await).await;
    assert_eq!(exchange(&mut client, OPENSSL).await.unwrap(), [b"got: ".as_slice(), OPENSSL].concat());
    let record = lab.record().await;
    assert_eq!((record.requested_server_name.as_deref(), record.downstream_tls), (Some("edition.cnn.com"), false));
}

#[tokio::test]
async fn a_hello_that_is_cut_short_is_the_applications_to_judge() {
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(echo().await).await;
    assert_eq!(exchange(&mut client, &OPENSSL[..100]).await.unwrap(), [b"got: ".as_slice(), &OPENSSL[..100]].concat());
}

#[tokio::test]
async fn ipv6() {
    let lab = permissive(Contexts::default());
    let app = echo_at("::1").await;
    assert_eq!(exchange(&mut lab.connect(app).await, b"x").await.unwrap(), b"got: x");
    assert_eq!(lab.record().await.upstream_local_address.unwrap().ip(), app.ip());
}

#[tokio::test]
async fn an_application_that_speaks_first_is_heard() {
    let lab = permissive(Contexts::default());
    let begun = Instant::now();
    let mut client = lab.connect(greeter().await).await;
    let mut banner = [0; 11];
    client.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"220 hello\r\n");
    assert!(begun.elapsed() < limits::SNIFF_SILENCE * 2, "{:?}", begun.elapsed());
    client.write_all(b"QUIT\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut banner).await.unwrap(), 0);
    assert_eq!(lab.record().await.bytes_received, 6);
}

#[tokio::test]
async fn a_client_that_is_late_is_still_served() {
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(echo().await).await;
    tokio::time::sleep(limits::SNIFF_SILENCE * 2).await;
    assert_eq!(exchange(&mut client, b"late").await.unwrap(), b"got: late");
}

/// As without us: a port on which nobody listens is refused, at once where the client speaks, else when it has been silent
/// for as long as nobody could know what it is about.
#[tokio::test]
async fn an_application_that_is_down_is_a_reset() {
    let lab = permissive(Contexts::default());
    let down = closed_port().await;
    for speaks in [false, true] {
        let begun = Instant::now();
        let mut client = lab.connect(down).await;
        if speaks {
            let _ = client.write_all(b"\0").await;
        }
        assert!(is_reset(&mut client).await);
        let longest = if speaks { limits::SNIFF_SILENCE } else { limits::SNIFF_SILENCE * 3 };
        assert!(begun.elapsed() < longest, "{:?}", begun.elapsed());
        let record = lab.record().await;
        assert_eq!(
            (record.flags, record.upstream_host.as_ref().map(ToString::to_string)),
            (vec![Flag::UF], Some(down.to_string()))
        );
        let reason = record.upstream_transport_failure_reason.unwrap();
        assert_eq!(reason, "delayed connect error: Connection refused");
        lab.recorder.records.lock().clear();
    }
}

#[tokio::test]
async fn resets_are_carried_from_the_application() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(listener.local_addr().unwrap()).await;
    client.write_all(b"\0").await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    app.read_exact(&mut [0]).await.unwrap();
    crate::engine::stream::reset_on_close(&app);
    drop(app);
    assert!(is_reset(&mut client).await);
    assert_eq!(lab.record().await.flags, [Flag::UC]);
}

#[tokio::test]
async fn nobody_comes_round_in_a_circle() {
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(lab.listener).await;
    assert!(is_reset(&mut client).await);
    assert!(lab.recorder.records.lock().is_empty());
}

#[tokio::test]
async fn unenrolling_ends_what_is_open() {
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(greeter().await).await;
    client.read_exact(&mut [0; 11]).await.unwrap();
    lab.pod.closed.cancel();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap_or(0), 0);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(lab.recorder.open.lock().is_empty());
}
