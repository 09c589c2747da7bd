//! A gateway's listeners: plain HTTP and TCP, TLS by server name, and what is no longer there.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::lab::*;
use crate::{
    api::{ObjectId, gateway::ServerProtocol},
    engine::{accept::Role, client_hello::tests::OPENSSL},
    mesh::{
        Behind, ClusterRef, Decision, Discovery, DownstreamTls, GatewayTable, HostMap, HttpDecision, Listener,
        ListenerId, Outbound, Protocol, RouteTable, Servers, TlsServer, TunnelRoute, UpstreamTls, VirtualHost,
        Workload,
    },
    telemetry::record::{Flag, Reporter},
    tls::Contexts,
};

pub const ID: ListenerId = ListenerId { bind: None, port: 8080 };

/// A gateway pod with one listener.
pub fn gateway(serves: Servers) -> Workload {
    let listeners = [(ID, Arc::new(Listener { id: ID, serves }))].into();
    Workload {
        gateway: Some(Arc::new(GatewayTable { listeners, ..GatewayTable::default() })),
        ..workload(Outbound::default())
    }
}

fn gateway_lab(serves: Servers) -> Lab {
    lab_at(Role::Gateway(ID), gateway(serves), Contexts::default())
}

/// Requests for `a.example` go to `upstream`.
pub fn routes(upstream: SocketAddr) -> Arc<RouteTable> {
    let mut service = cluster("a.example", &[upstream], UpstreamTls::Plain);
    service.protocol = Protocol::Http;
    let mut hosts = HostMap::default();
    hosts.insert("a.example", Arc::new(VirtualHost::of_cluster("a.example:80".into(), service.into())));
    Arc::new(RouteTable { name: "http.8080".into(), hosts })
}

/// All bytes go to `upstream`.
pub fn tunnel(upstream: SocketAddr) -> Arc<TunnelRoute> {
    let service = Arc::new(cluster("db.example", &[upstream], UpstreamTls::Plain));
    Arc::new(TunnelRoute { source: None, destinations: vec![(ClusterRef::Known(service), 1)] })
}

/// A TLS server of the mesh for `host`.
pub fn server(host: &str, serves: Behind) -> Servers {
    server_with(host, DownstreamTls::IstioMutual, serves)
}

fn server_with(host: &str, tls: DownstreamTls, serves: Behind) -> Servers {
    let server = TlsServer {
        name: "https.443.https.gateway.default".into(),
        source: ObjectId::new("Gateway", "default", "gateway"),
        hosts: vec![host.to_owned()],
        protocol: ServerProtocol::Https,
        tls,
        serves,
    };
    let mut servers = HostMap::default();
    servers.insert(host, Arc::new(server));
    Servers::Tls(servers.into())
}

/// An HTTP/1 upstream that answers each request with `hello`.
pub async fn hello() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(hyper::Response::new(http_body_util::Full::new(Bytes::from("hello"))))
            });
            let serving = async move {
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            };
            tokio::spawn(serving);
        }
    });
    address
}

pub const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

/// One h2 request over the stream, and what it got.
pub async fn h2_get<S>(stream: S) -> (u16, Bytes)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("http://a.example/x").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    (response.status().as_u16(), response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn plain_http_of_both_versions_goes_where_the_table_says() {
    let upstream = hello().await;
    let lab = gateway_lab(Servers::Http(routes(upstream)));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    let answer = String::from_utf8(exchange(&mut client, REQUEST).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"), "{answer}");
    let record = lab.record().await;
    assert_eq!((record.protocol, record.downstream_local_address), (Some("HTTP/1.1"), Some(lab.listener)));
    assert_eq!(record.upstream_host.as_ref().map(ToString::to_string), Some(upstream.to_string()));
    assert_eq!((record.reporter, record.downstream_tls), (Reporter::Source, false));
    lab.recorder.records.lock().clear();
    let client = TcpStream::connect(lab.listener).await.unwrap();
    assert_eq!(h2_get(client).await, (200, Bytes::from("hello")));
    assert_eq!(lab.record().await.protocol, Some("HTTP/2"));
}

#[tokio::test]
async fn a_client_may_take_its_time_before_its_first_request() {
    let lab = gateway_lab(Servers::Http(routes(hello().await)));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let answer = exchange(&mut client, REQUEST).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
}

#[tokio::test]
async fn a_host_that_the_gateway_does_not_have_is_not_found() {
    let lab = gateway_lab(Servers::Http(routes(hello().await)));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n";
    let answer = exchange(&mut client, request).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 404 "), "{}", answer.escape_ascii());
    let record = lab.record().await;
    assert_eq!((record.flags, record.response_code_details.as_deref()), (vec![Flag::NR], Some("route_not_found")));
}

/// A gateway does not sniff: what comes to an HTTP port is HTTP, and bad HTTP is told so at once.
#[tokio::test]
async fn tls_to_a_plain_http_port_is_a_bad_request() {
    let lab = gateway_lab(Servers::Http(routes(hello().await)));
    for bytes in [OPENSSL, b"SSH-2.0-x\r\n"] {
        let mut client = TcpStream::connect(lab.listener).await.unwrap();
        let begun = Instant::now();
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(lab.record().await.flags, [Flag::DPE]);
        lab.recorder.records.lock().clear();
    }
}

#[tokio::test]
async fn plain_tcp_hears_a_server_that_speaks_first_and_keeps_half_close() {
    let lab = gateway_lab(Servers::Tcp(Some(tunnel(greeter().await))));
    let begun = Instant::now();
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    let mut banner = [0; 11];
    client.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"220 hello\r\n");
    assert!(begun.elapsed() < Duration::from_millis(250), "{:?}", begun.elapsed());
    let lab = gateway_lab(Servers::Tcp(Some(tunnel(echo().await))));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    assert_eq!(exchange(&mut client, b"question").await.unwrap(), b"got: question");
    let record = lab.record().await;
    assert_eq!(record.cluster_name(), Some("outbound|80||db.example"));
}

#[tokio::test]
async fn a_tcp_port_without_a_route_is_reset() {
    let lab = gateway_lab(Servers::Tcp(None));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    assert!(is_reset(&mut client).await);
    assert_eq!(lab.record().await.flags, [Flag::NR]);
}

/// A service of resolution NONE has no other address than the one dialled: at a gateway, that is the gateway.
#[tokio::test]
async fn a_gateway_does_not_call_itself_for_ever() {
    let mut service = cluster("db.example", &[], UpstreamTls::Plain);
    service.discovery = Discovery::OriginalDestination { port: None };
    let route = TunnelRoute { source: None, destinations: vec![(ClusterRef::Known(service.into()), 1)] };
    let lab = gateway_lab(Servers::Tcp(Some(route.into())));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    assert!(is_reset(&mut client).await);
    assert!(lab.record().await.upstream_transport_failure_reason.unwrap().contains("own listener"));
}

#[tokio::test]
async fn without_a_server_of_that_name_there_is_no_handshake() {
    let lab = gateway_lab(server("*.other.example", Behind::Tunnel(Some(tunnel(echo().await)))));
    for (bytes, name) in [(OPENSSL, Some("edition.cnn.com")), (b"GET / HTTP/1.1\r\n\r\n", None), (b"x", None)] {
        let mut client = TcpStream::connect(lab.listener).await.unwrap();
        client.write_all(bytes).await.unwrap();
        assert!(is_reset(&mut client).await, "{}", bytes.escape_ascii());
        let record = lab.record().await;
        assert_eq!(record.flags, [Flag::NR]);
        assert_eq!(record.response_code_details.as_deref(), Some("filter_chain_not_found"));
        assert_eq!(record.requested_server_name.as_deref(), name);
        lab.recorder.records.lock().clear();
    }
    // Somebody looks whether the port is open.
    drop(TcpStream::connect(lab.listener).await.unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(lab.recorder.records.lock().is_empty());
}

#[tokio::test]
async fn a_server_that_cannot_be_honoured_resets_and_says_why() {
    let mut servers = server("*", Behind::Tunnel(Some(tunnel(echo().await))));
    let lab = gateway_lab(servers);
    let reset = async |lab: &Lab| {
        let mut client = TcpStream::connect(lab.listener).await.unwrap();
        client.write_all(OPENSSL).await.unwrap();
        assert!(is_reset(&mut client).await);
        let record = lab.record().await;
        assert_eq!(record.flags, [Flag::NR]);
        record.downstream_transport_failure_reason.unwrap()
    };
    // No certificate authority at all.
    assert!(reset(&lab).await.starts_with("TLS_error: "));
    let refused = DownstreamTls::Refuse("mode SIMPLE is not supported".into());
    servers = server_with("*", refused, Behind::Tunnel(None));
    assert_eq!(reset(&gateway_lab(servers)).await, "TLS_error: mode SIMPLE is not supported");
}

/// Connections that were let in before their server came to be refused: the next request is refused, too.
#[test]
fn a_server_that_is_refused_answers_nobody_any_more() {
    let decide = |tls: DownstreamTls| {
        let serves = server_with("a.example", tls, Behind::Http(routes("127.0.0.1:9".parse().unwrap())));
        let table =
            GatewayTable { listeners: [(ID, Arc::new(Listener { id: ID, serves }))].into(), ..GatewayTable::default() };
        table.http(ID, Some("https.443.https.gateway.default"), "a.example")
    };
    assert!(matches!(decide(DownstreamTls::IstioMutual), HttpDecision::Host(_)));
    let refused = decide(DownstreamTls::Refuse("no".into()));
    assert!(matches!(refused, HttpDecision::Unmatched(Decision::Refuse(reason)) if &*reason == "no"));
}

#[tokio::test]
async fn a_listener_that_a_reload_removes_serves_no_more() {
    let lab = gateway_lab(Servers::Http(routes(hello().await)));
    let mut kept = TcpStream::connect(lab.listener).await.unwrap();
    let keep_alive = b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let ask = async |stream: &mut TcpStream| {
        stream.write_all(keep_alive).await.unwrap();
        let mut head = [0; 13];
        stream.read_exact(&mut head).await.unwrap();
        // The rest is there, or follows at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _ = stream.try_read(&mut [0; 4096]);
        String::from_utf8(head.to_vec()).unwrap()
    };
    assert_eq!(ask(&mut kept).await, "HTTP/1.1 200 ");
    lab.engine.install(snapshot(mesh(Outbound::default()), Contexts::default()));
    assert_eq!(ask(&mut kept).await, "HTTP/1.1 404 ");
    let mut new = TcpStream::connect(lab.listener).await.unwrap();
    assert!(is_reset(&mut new).await);
}

#[tokio::test]
async fn draining_ends_a_client_that_has_not_asked_yet() {
    let lab = gateway_lab(Servers::Http(routes(hello().await)));
    let mut client = TcpStream::connect(lab.listener).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    lab.engine.drain();
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
    assert_eq!(lab.engine.idle(tokio::time::Instant::now() + Duration::from_secs(5)).await, 0);
}
