//! HTTP that comes to a pod's own ports: the same engine as outward, and what differs here.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
};

use super::{
    gateway::{h2_get, hello},
    inbound::{declared, inbound, own_port, permissive},
    lab::*,
    mesh_mtls::{CALLER, OWN, call, contexts, identities},
};
use crate::{
    mesh::{Application, Cluster, InboundPort, InboundTable, MtlsMode, Pool, Protocol, VirtualHost},
    telemetry::record::{Flag, Reporter},
    tls::Contexts,
};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example:1234\r\nx-envoy-attempt-count: 2\r\n\r\n";

/// A head, or None where the stream ends before it.
async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> Option<String> {
    let mut all = Vec::new();
    while !all.ends_with(b"\r\n\r\n") {
        all.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(all).ok()
}

/// An application that answers each request with the address that it came from and its head, for as long as it is asked on
/// one connection. And how many connections there were.
pub async fn mirror() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.5:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                while let Some(head) = head(&mut stream).await {
                    let body = format!("from {}\r\n{head}", from.ip());
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (address, connections)
}

/// One request, and the response with its `Content-Length` body.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = head(stream).await.expect("a response");
    let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// The records once there are so many.
async fn records(lab: &Lab, count: usize) -> Vec<crate::telemetry::record::Record> {
    for _ in 0..500 {
        if lab.recorder.records.lock().len() >= count {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    lab.recorder.records.lock().clone()
}

#[tokio::test]
async fn requests_are_told_one_by_one_and_share_the_connection_to_the_application() {
    let (app, connections) = mirror().await;
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(app).await;
    for _ in 0..3 {
        let (head, body) = ask(&mut client, GET).await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(body.starts_with("from 127.0.0.5\r\nGET /x HTTP/1.1\r\n"), "{body}");
        for kept in ["host: a.example:1234\r\n", "x-envoy-attempt-count: 2\r\n", "x-forwarded-proto: http\r\n"] {
            assert!(body.to_lowercase().contains(kept), "{kept}: {body}");
        }
        assert!(body.contains("x-request-id: ") && !body.contains("x-forwarded-for"), "{body}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1, "no connection but the one that was needed");
    let records = records(&lab, 3).await;
    assert_eq!(records.len(), 3);
    let record = &records[2];
    assert_eq!((record.reporter, record.protocol), (Reporter::Destination, Some("HTTP/1.1")));
    assert_eq!(
        (record.cluster_name(), record.route_name.as_deref()),
        (Some("InboundPassthroughCluster"), Some("default"))
    );
    assert_eq!(
        (record.response_code, record.upstream_host.as_ref().map(ToString::to_string).as_deref()),
        (200, Some(app.to_string().as_str()))
    );
    assert_eq!(record.upstream_local_address.map(|own| own.ip()), Some(app.ip()));
    assert!(lab.recorder.open.lock().is_empty(), "no raw connection");
}

/// What the application is told of who calls, and what it is not told by strangers.
#[tokio::test]
async fn the_application_is_told_of_the_clients_certificate() {
    let (app, _) = mirror().await;
    let mesh = identities();
    let lab = permissive(contexts(&mesh));
    let forged = "GET /x HTTP/1.1\r\nHost: a\r\nx-forwarded-client-cert: URI=spiffe://forged\r\n\r\n";
    let (_, body) = ask(&mut lab.connect(app).await, forged).await;
    assert!(!body.contains("x-forwarded-client-cert"), "{body}");
    // A peer of the mesh passes on what it was told; what it is itself follows.
    let mut client = call(&mesh, lab.connect(app).await).await;
    for _ in 0..2 {
        let (_, body) = ask(&mut client, forged).await;
        let line = body.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).expect("told");
        let (before, own) = line.split_once(',').unwrap();
        assert_eq!(before, "URI=spiffe://forged");
        assert!(own.starts_with(&format!("By={OWN};Hash=")), "{own}");
        assert!(own.ends_with(&format!(";URI={CALLER}")), "{own}");
    }
}

/// An application for both versions.
pub async fn both_versions() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let text = format!("{:?}", request.version());
                Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(Bytes::from(text))))
            });
            tokio::spawn(async move {
                let mut first = [0];
                stream.peek(&mut first).await.unwrap();
                let (h2, stream) = (first == *b"P", TokioIo::new(stream));
                let _ = match h2 {
                    true => http2::Builder::new(TokioExecutor::new()).serve_connection(stream, answer).await,
                    false => http1::Builder::new().serve_connection(stream, answer).await,
                };
            });
        }
    });
    address
}

#[tokio::test]
async fn the_application_is_spoken_to_as_the_client_speaks() {
    let app = both_versions().await;
    let lab = permissive(Contexts::default());
    assert_eq!(h2_get(lab.connect(app).await).await, (200, Bytes::from("HTTP/2.0")));
    let (_, body) = ask(&mut lab.connect(app).await, GET).await;
    assert_eq!(body, "HTTP/1.1");
}

#[tokio::test]
async fn a_port_declared_to_speak_h2_is_spoken_to_in_h2() {
    let app = both_versions().await;
    for protocol in [Protocol::Http2, Protocol::Grpc] {
        let lab = inbound(declared(MtlsMode::Permissive, app.port(), protocol), Contexts::default());
        let (_, body) = ask(&mut lab.connect(app).await, GET).await;
        assert_eq!(body, "HTTP/2.0", "{protocol:?}");
    }
}

#[tokio::test]
async fn a_port_declared_tcp_carries_what_looks_like_a_request_as_it_is() {
    let app = echo().await;
    let lab = inbound(declared(MtlsMode::Permissive, app.port(), Protocol::Tcp), Contexts::default());
    let mut client = lab.connect(app).await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(exchange(&mut client, request).await.unwrap(), [b"got: ".as_slice(), request].concat());
    let record = lab.record().await;
    assert_eq!((record.protocol, record.cluster_name()), (None, Some(format!("inbound|{}||", app.port()).as_str())));
}

#[tokio::test]
async fn a_port_declared_http_takes_nothing_else_and_waits_for_the_first_request() {
    let app = hello().await;
    let lab = inbound(declared(MtlsMode::Permissive, app.port(), Protocol::Http), Contexts::default());
    let mut client = lab.connect(app).await;
    tokio::time::sleep(crate::limits::SNIFF_SILENCE * 2).await;
    let (head, body) = ask(&mut client, GET).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body == "hello", "{head}{body}");
    let mut client = lab.connect(app).await;
    let answer = exchange(&mut client, b"\x01\x02 no request\r\n\r\n").await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
}

/// Once only: the client's own proxy has a policy for retries.
#[tokio::test]
async fn an_application_that_is_down_is_503() {
    let lab = permissive(Contexts::default());
    let down = closed_port().await;
    let (head, body) = ask(&mut lab.connect(down).await, GET).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(body.ends_with("delayed connect error: Connection refused"), "{body}");
    let record = lab.record().await;
    assert_eq!((record.flags, record.response_code), (vec![Flag::UF], 503));
}

/// An idle connection that the application has closed in the meantime is nobody's error.
#[tokio::test]
async fn a_stale_connection_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // One answer each, and then it leaves without a word.
            if head(&mut stream).await.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(app).await;
    for _ in 0..20 {
        let (head, body) = ask(&mut client, GET).await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body == "ok", "{head}{body}");
    }
}

#[tokio::test]
async fn upgrades_become_tunnels() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let asked = head(&mut stream).await.unwrap();
        assert!(asked.to_lowercase().contains("upgrade: websocket"), "{asked}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi")
            .await
            .unwrap();
        let mut said = [0; 4];
        stream.read_exact(&mut said).await.unwrap();
        stream.write_all(&said).await.unwrap();
    });
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(app).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
    assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 101 "));
    client.write_all(b"ping").await.unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"hiping");
    drop(client);
    assert_eq!(lab.record().await.response_code, 101);
}

/// A port that a Sidecar leads elsewhere.
fn led(port: u16, application: Application) -> InboundTable {
    let own = own_port(port, Protocol::Http, application);
    InboundTable { ports: [(port, Arc::new(own))].into(), ..InboundTable::default() }
}

#[tokio::test]
async fn the_application_may_be_elsewhere_in_the_pod() {
    let (app, _) = mirror().await;
    let dialled = "192.0.2.7:9081".parse().unwrap();
    let lab = inbound(led(9081, Application::Loopback(app)), Contexts::default());
    let (_, body) = ask(&mut lab.connect(dialled).await, GET).await;
    assert!(body.starts_with("from 127.0.0.5\r\nGET /x"), "{body}");

    let dialled = SocketAddr::new(app.ip(), 9081);
    let lab = inbound(led(9081, Application::Own(app.port())), Contexts::default());
    let (_, body) = ask(&mut lab.connect(dialled).await, GET).await;
    assert!(body.starts_with("from 127.0.0.5\r\nGET /x"), "{body}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix").await;
    });
    let lab = inbound(led(9081, Application::Unix(path.clone())), Contexts::default());
    let (_, body) = ask(&mut lab.connect(dialled).await, GET).await;
    assert_eq!(body, "unix");
    assert_eq!(lab.record().await.upstream_host.map(|host| host.to_string()), Some(path.display().to_string()));
}

/// Whatever a Sidecar says, the proxy does not dial itself.
#[tokio::test]
async fn the_proxys_own_listener_is_no_application() {
    let lab = permissive(Contexts::default());
    let table = led(9081, Application::Loopback(lab.listener));
    let workload = super::inbound::receiving(table);
    lab.engine.install(snapshot(mesh_of(workload), Contexts::default()));
    let (head, body) = ask(&mut lab.connect("192.0.2.7:9081".parse().unwrap()).await, GET).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && body.contains("the proxy's own listener"), "{head}{body}");
}

#[tokio::test]
async fn the_limits_of_the_port_count() {
    let app = echo().await;
    let InboundPort { cluster, protocol, .. } = own_port(app.port(), Protocol::Tcp, Application::Dialled);
    let pool = Pool { max_connections: Some(1), ..Pool::default() };
    let cluster = Arc::new(Cluster { pool: Arc::new(pool), ..Cluster::clone(&cluster) });
    let host = Arc::new(VirtualHost::of_cluster("a".into(), cluster.clone()));
    let port = Arc::new(InboundPort { protocol, cluster, host, tls: None, ingress: None });
    let table = InboundTable { ports: [(app.port(), port)].into(), ..InboundTable::default() };
    let lab = inbound(table, Contexts::default());
    let mut first = lab.connect(app).await;
    first.write_all(b"\0").await.unwrap();
    while lab.recorder.open.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = lab.connect(app).await;
    let _ = second.write_all(b"\0").await;
    assert!(is_reset(&mut second).await);
    assert_eq!(records(&lab, 1).await[0].flags, [Flag::UO]);
    assert_eq!(exchange(&mut first, b"\x01").await.unwrap(), b"got: \0\x01");
}

#[tokio::test]
async fn draining_ends_connections_after_the_request_in_flight() {
    let (app, _) = mirror().await;
    let lab = permissive(Contexts::default());
    let mut client = lab.connect(app).await;
    ask(&mut client, GET).await;
    lab.engine.drain();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(lab.engine.idle(tokio::time::Instant::now() + Duration::from_secs(5)).await, 0);
}
