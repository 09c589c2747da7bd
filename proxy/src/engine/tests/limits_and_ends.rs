//! Limits, failures and ends: breakers, unreachable endpoints, resets, drain, unenrolment, no descriptors left.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket, UnixListener, UnixStream},
    time::Instant,
};

use super::lab::*;
use crate::{
    engine::{
        dial::{self, Target},
        host_sockets::HostSockets,
        ports::Sockets,
        stream::reset_on_close,
    },
    mesh::{Discovery, Endpoint, EndpointAddress, Outbound, UpstreamTls},
    telemetry::record::Flag,
    tls::Contexts,
};

const SOMEWHERE: &str = "192.0.2.1:80";

fn somewhere() -> SocketAddr {
    SOMEWHERE.parse().unwrap()
}

#[tokio::test]
async fn max_connections_is_a_limit_for_each_cluster() {
    let upstream = echo().await;
    let mut service = cluster("a.example", &[upstream], UpstreamTls::Plain);
    Arc::make_mut(&mut service.pool).max_connections = Some(1);
    let lab = lab(tcp_service(80, service));
    let mut first = lab.connect(somewhere()).await;
    first.write_all(b"x").await.unwrap();
    while lab.recorder.open.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = lab.connect(somewhere()).await;
    assert!(is_reset(&mut second).await);
    assert_eq!(lab.recorder.records.lock()[0].flags, [Flag::UO]);
    assert_eq!(exchange(&mut first, b"y").await.unwrap(), b"got: xy");
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(exchange(&mut lab.connect(somewhere()).await, b"z").await.unwrap(), b"got: z");
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over() {
    let lab = lab(tcp_service(80, cluster("a.example", &[closed_port().await, echo().await], UpstreamTls::Plain)));
    for _ in 0..4 {
        assert_eq!(exchange(&mut lab.connect(somewhere()).await, b"x").await.unwrap(), b"got: x");
    }
}

#[tokio::test]
async fn where_all_refuse_the_client_is_reset_and_the_log_says_why() {
    let dead = closed_port().await;
    let lab = lab(tcp_service(80, cluster("a.example", &[dead], UpstreamTls::Plain)));
    assert!(is_reset(&mut lab.connect(somewhere()).await).await);
    let record = lab.record().await;
    assert_eq!(
        (record.flags, record.upstream_host.as_ref().map(ToString::to_string)),
        (vec![Flag::UF], Some(dead.to_string()))
    );
    assert_eq!(record.upstream_transport_failure_reason.as_deref(), Some("delayed connect error: Connection refused"));
}

#[tokio::test]
async fn no_endpoint_is_no_healthy_upstream() {
    let lab = lab(tcp_service(80, cluster("a.example", &[], UpstreamTls::Plain)));
    assert!(is_reset(&mut lab.connect(somewhere()).await).await);
    assert_eq!(lab.record().await.flags, [Flag::UH]);
}

/// Sockets of a pod without IPv6, as the kernel answers there.
struct NoIpv6;

impl Sockets for NoIpv6 {
    fn tcp(&self, remote: SocketAddr) -> io::Result<TcpSocket> {
        if remote.is_ipv6() { Err(io::Error::from_raw_os_error(libc::ENETUNREACH)) } else { HostSockets.tcp(remote) }
    }

    fn udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        HostSockets.udp(local)
    }

    fn unix(&self, path: &Path) -> io::Result<UnixStream> {
        HostSockets.unix(path)
    }
}

#[tokio::test]
async fn an_unreachable_family_costs_no_attempt_and_is_remembered() {
    let (v6, v4): (SocketAddr, _) = ("[2001:db8::1]:80".parse().unwrap(), echo().await);
    let service = Arc::new(cluster("a.example", &[v6, v4], UpstreamTls::Plain));
    let lab = lab_with(Outbound::default(), Contexts::default(), Arc::new(NoIpv6));
    let target = Target { cluster: &service, original: somewhere(), host: None, hash: None, client: None };
    let picked = dial::pick(&lab.engine.snapshot(), &lab.pod, &target, &[]).await.unwrap();
    assert_eq!(picked.endpoint.address, EndpointAddress::Ip(v6));
    let upstream = dial::dial(&lab.engine, &lab.engine.snapshot(), &lab.pod, &target, &picked, true).await.unwrap();
    assert_eq!(upstream.address, EndpointAddress::Ip(v4));
    for _ in 0..6 {
        assert_eq!(
            dial::pick(&lab.engine.snapshot(), &lab.pod, &target, &[]).await.unwrap().endpoint.address,
            EndpointAddress::Ip(v4)
        );
    }
}

#[tokio::test]
async fn unix_endpoints() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
    });
    let mut service = cluster("a.example", &[], UpstreamTls::Plain);
    service.discovery = Discovery::Static(vec![Endpoint::new(EndpointAddress::Unix(path), 1)]);
    let lab = lab(tcp_service(80, service));
    let mut got = String::new();
    lab.connect(somewhere()).await.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "hello");
}

#[tokio::test]
async fn resets_are_carried_each_way() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let lab = lab(tcp_service(80, cluster("a.example", &[upstream], UpstreamTls::Plain)));
    for upstream_resets in [true, false] {
        let client = lab.connect(somewhere()).await;
        let (server, _) = listener.accept().await.unwrap();
        let (first, mut second) = if upstream_resets { (server, client) } else { (client, server) };
        tokio::time::sleep(Duration::from_millis(50)).await;
        reset_on_close(&first);
        drop(first);
        assert!(is_reset(&mut second).await, "upstream resets: {upstream_resets}");
        let expected = if upstream_resets { Flag::UC } else { Flag::DC };
        assert_eq!(lab.record().await.flags, [expected]);
        lab.recorder.records.lock().clear();
    }
}

#[tokio::test]
async fn idle_and_long_connections_end() {
    for idle in [true, false] {
        let mut service = cluster("a.example", &[greeter().await], UpstreamTls::Plain);
        let short = Duration::from_millis(300);
        if idle {
            Arc::make_mut(&mut service.pool).tcp_idle_timeout = short;
        } else {
            Arc::make_mut(&mut service.pool).max_connection_duration = Some(short);
        }
        let lab = lab(tcp_service(80, service));
        let begun = Instant::now();
        let mut all = Vec::new();
        lab.connect(somewhere()).await.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"220 hello\r\n");
        assert!(begun.elapsed() >= short && begun.elapsed() < Duration::from_secs(5));
        assert_eq!(lab.record().await.flags, [if idle { Flag::SI } else { Flag::DT }]);
    }
}

#[tokio::test]
async fn draining_stops_accepting_and_waits_for_what_is_open() {
    let lab = lab(tcp_service(80, cluster("a.example", &[echo().await], UpstreamTls::Plain)));
    let mut client = lab.connect(somewhere()).await;
    client.write_all(b"x").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    lab.engine.drain();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(lab.listener).await.is_err());
    assert_eq!(lab.engine.idle(Instant::now() + Duration::from_millis(50)).await, 1);
    let engine = lab.engine.clone();
    let waiting = tokio::spawn(async move { engine.idle(Instant::now() + Duration::from_secs(20)).await });
    assert_eq!(exchange(&mut client, b"y").await.unwrap(), b"got: xy");
    assert_eq!(waiting.await.unwrap(), 0);
}

#[tokio::test]
async fn unenrolment_lets_go_of_every_socket() {
    let lab = lab(tcp_service(80, cluster("a.example", &[greeter().await], UpstreamTls::Plain)));
    let mut client = lab.connect(somewhere()).await;
    client.read_exact(&mut [0; 11]).await.unwrap();
    lab.pod.closed.cancel();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(lab.engine.idle(Instant::now() + Duration::from_secs(5)).await, 0);
    assert!(TcpStream::connect(lab.listener).await.is_err());
    assert_eq!(Arc::strong_count(&lab.pod), 1);
}

const CHILD: &str = "EGRET_TEST_UPSTREAM";

/// The accept loop must neither end nor spin when descriptors run out. `ulimit -n` is the process's, so this test runs
/// itself once more under a low one.
#[tokio::test]
async fn running_out_of_descriptors_passes() {
    if let Ok(upstream) = std::env::var(CHILD) {
        return serve_as_child(upstream.parse().unwrap()).await;
    }
    let upstream = echo().await;
    let name = "engine::tests::limits_and_ends::running_out_of_descriptors_passes";
    let mut child = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 40; exec \"$0\" --exact --nocapture --test-threads=1 \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(CHILD, upstream.to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let listener = tokio::task::spawn_blocking(move || {
        use std::io::BufRead;
        let mut lines = io::BufReader::new(stdout).lines().map_while(Result::ok);
        lines.find_map(|line| line.split("listening on ").nth(1)?.trim().parse::<SocketAddr>().ok())
    });
    let listener = tokio::time::timeout(Duration::from_secs(20), listener).await.unwrap().unwrap().unwrap();
    let mut flood = Vec::new();
    for _ in 0..60 {
        let mut stream = TcpStream::connect(listener).await.unwrap();
        let _ = stream.write_all(b"\x01").await;
        flood.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(flood);
    let mut answer = Err(io::ErrorKind::NotFound.into());
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = exchange(&mut TcpStream::connect(listener).await.unwrap(), b"\x01again").await;
        if answer.is_ok() {
            break;
        }
    }
    drop(child.stdin.take());
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(answer.unwrap(), b"got: \x01again");
}

async fn serve_as_child(upstream: SocketAddr) {
    let lab = lab_all(upstream);
    println!("listening on {}", lab.listener);
    // Until the parent closes our stdin.
    let _ = tokio::task::spawn_blocking(|| io::Read::read(&mut io::stdin(), &mut [0; 1])).await;
}
