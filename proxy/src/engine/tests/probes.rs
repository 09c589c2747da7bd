//! The kubelet's probes of ports that are closed to it otherwise. Clients of this lab are processes of the node's network;
//! what others are told is in `tests/tests/probes.rs`.

use std::{net::SocketAddr, sync::atomic::Ordering};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Method, Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    authorization::policies,
    inbound::{declared, inbound, receiving},
    inbound_http::{ask, both_versions, mirror},
    inbound_modes::ingress,
    lab::*,
    mesh_mtls::{contexts, identities},
};
use crate::{
    api::core::ProbeRequest,
    engine::client_hello::tests::OPENSSL,
    mesh::{DownstreamTls, InboundTable, MtlsMode, Protocol},
    telemetry::record::{Flag, Record},
    tls::Contexts,
};

const PROBE: &str = "GET /healthz?full=1 HTTP/1.1\r\nHost: 10.0.0.1\r\nUser-Agent: kube-probe/1.33\r\n\r\n";
const NOBODY: &str = "{}";

/// With both kinds of probe on this port.
fn probed(port: u16, table: InboundTable) -> InboundTable {
    let http = |https| ProbeRequest::HttpGet { https, target: "/healthz?full=1".to_owned() };
    InboundTable { probes: [(port, [http(false), ProbeRequest::Grpc].into())].into(), ..table }
}

fn strict(port: u16) -> InboundTable {
    probed(port, declared(MtlsMode::Strict, port, Protocol::Auto))
}

async fn next_record(lab: &Lab) -> Record {
    let record = lab.record().await;
    lab.recorder.records.lock().clear();
    record
}

/// What is like a probe, and none.
fn others() -> [String; 9] {
    let rest = " HTTP/1.1\r\nHost: a\r\n";
    [
        format!("GET /{rest}\r\n"),
        format!("GET /healthz{rest}\r\n"),
        format!("GET /healthz?full=1&more{rest}\r\n"),
        format!("GET //healthz?full=1{rest}\r\n"),
        format!("OPTIONS /healthz?full=1{rest}\r\n"),
        format!("POST /healthz?full=1{rest}Content-Length: 0\r\n\r\n"),
        format!("GET /healthz?full=1{rest}Content-Length: 2\r\n\r\nab"),
        format!("GET /healthz?full=1{rest}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        format!("POST /grpc.health.v1.Health/Check{rest}Content-Length: 0\r\n\r\n"),
    ]
}

#[tokio::test]
async fn strict_answers_the_probe_and_no_other_request() {
    let mesh = identities();
    let (app, connections) = mirror().await;
    let lab = inbound(strict(app.port()), contexts(&mesh));
    for other in others() {
        let mut client = lab.connect(app).await;
        let (head, _) = ask(&mut client, &other).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{other}{head}");
        let record = next_record(&lab).await;
        assert_eq!((record.response_code, record.response_code_details.as_deref()), (403, Some("not_a_probe")));
    }
    assert_eq!(connections.load(Ordering::Relaxed), 0, "the application hears nothing of it");
    let mut client = lab.connect(app).await;
    for _ in 0..2 {
        let (head, body) = ask(&mut client, PROBE).await;
        assert!(
            head.starts_with("HTTP/1.1 200 ") && body.contains("\r\nGET /healthz?full=1 HTTP/1.1\r\n"),
            "{head}{body}"
        );
        let record = next_record(&lab).await;
        assert_eq!(
            (record.cluster_name(), record.route_name.as_deref(), record.flags.len()),
            (Some(format!("inbound|{}||", app.port()).as_str()), Some("default"), 0)
        );
        // That one was let in says nothing of the next.
        let (head, _) = ask(&mut client, &others()[0]).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        next_record(&lab).await;
    }
}

#[tokio::test]
async fn strict_is_as_strict_as_ever_with_all_else() {
    let mesh = identities();
    let (app, connections) = mirror().await;
    let reset = async |lab: &Lab, said: &[u8]| {
        let mut client = lab.connect(app).await;
        client.write_all(said).await.unwrap();
        assert!(is_reset(&mut client).await);
        assert_eq!(next_record(lab).await.flags, [Flag::NR]);
    };
    let lab = inbound(strict(app.port()), contexts(&mesh));
    reset(&lab, b"\0raw").await;
    // TLS without a certificate of the mesh.
    let mut client = lab.connect(app).await;
    client.write_all(OPENSSL).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    assert!(next_record(&lab).await.response_code == 0 && !answer.starts_with(b"HTTP"), "{}", answer.escape_ascii());
    // The probe of another port is none of this one.
    reset(
        &inbound(probed(1, declared(MtlsMode::Strict, app.port(), Protocol::Auto)), contexts(&mesh)),
        PROBE.as_bytes(),
    )
    .await;
    // A kubelet that only connects (`tcpSocket`) is answered by that, and reaches nobody.
    let lab = inbound(strict(app.port()), contexts(&mesh));
    drop(lab.connect(app).await);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(lab.recorder.records.lock().is_empty());
    assert_eq!(connections.load(Ordering::Relaxed), 0);
}

/// A probe that is in the pod's document no more is no probe, also on a connection that was there before.
#[tokio::test]
async fn what_the_pod_says_by_now_counts() {
    let mesh = identities();
    let (app, _) = mirror().await;
    let lab = inbound(strict(app.port()), contexts(&mesh));
    let mut client = lab.connect(app).await;
    assert!(ask(&mut client, PROBE).await.0.starts_with("HTTP/1.1 200 "));
    let without = declared(MtlsMode::Strict, app.port(), Protocol::Auto);
    lab.engine.install(snapshot(mesh_of(receiving(without)), contexts(&mesh)));
    assert!(ask(&mut client, PROBE).await.0.starts_with("HTTP/1.1 403 "));
}

/// Whatever the port is declared to speak.
#[tokio::test]
async fn policies_are_not_asked_about_probes() {
    for protocol in [Protocol::Auto, Protocol::Http, Protocol::Tcp] {
        for mode in [MtlsMode::Permissive, MtlsMode::Disable] {
            let (app, connections) = mirror().await;
            let table = InboundTable { policies: policies(NOBODY), ..declared(mode, app.port(), protocol) };
            let lab = inbound(probed(app.port(), table), Contexts::default());
            for other in others() {
                let (head, body) = ask(&mut lab.connect(app).await, &other).await;
                assert!(head.starts_with("HTTP/1.1 403 "), "{protocol:?} {other}{head}{body}");
                next_record(&lab).await;
            }
            let mut raw = lab.connect(app).await;
            raw.write_all(b"\0raw").await.unwrap();
            let _ = raw.shutdown().await;
            let mut answer = Vec::new();
            let _ = raw.read_to_end(&mut answer).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
            assert_eq!(connections.load(Ordering::Relaxed), 0, "{protocol:?}");
            let (head, _) = ask(&mut lab.connect(app).await, PROBE).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{protocol:?} {head}");
        }
    }
}

/// Where nothing forbids anything, a probe is a request as others are, and bytes are bytes.
#[tokio::test]
async fn an_open_port_is_open_to_the_node() {
    let app = echo().await;
    let table = probed(app.port(), declared(MtlsMode::Permissive, app.port(), Protocol::Tcp));
    let lab = inbound(table, Contexts::default());
    let answer = exchange(&mut lab.connect(app).await, PROBE.as_bytes()).await.unwrap();
    assert_eq!(answer, [b"got: ", PROBE.as_bytes()].concat());
    // Nor do policies that allow the bytes make a request of them.
    let all = "{rules: [{}]}";
    let table = InboundTable { policies: policies(all), ..declared(MtlsMode::Permissive, app.port(), Protocol::Tcp) };
    let lab = inbound(probed(app.port(), table), Contexts::default());
    let answer = exchange(&mut lab.connect(app).await, PROBE.as_bytes()).await.unwrap();
    assert_eq!(answer, [b"got: ", PROBE.as_bytes()].concat());
}

/// In plain text, as a kubelet that does not know of the Sidecar sends it.
#[tokio::test]
async fn a_port_whose_ingress_ends_tls_answers_the_probe() {
    let (app, connections) = mirror().await;
    let pki = super::inbound_ingress::Pki::new();
    let table = ingress(app.port(), DownstreamTls::Terminate(pki.mutual()));
    let lab = inbound(probed(app.port(), table), Contexts::default());
    for other in others() {
        let (head, _) = ask(&mut lab.connect(app).await, &other).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{other}{head}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 0);
    let (head, _) = ask(&mut lab.connect(app).await, PROBE).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

/// The status of a call (gRPC's own, where the application did not answer), and what the application says it was spoken to in.
async fn call(stream: TcpStream, path: &str) -> (String, Bytes) {
    use http_body_util::BodyExt as _;
    let (mut send, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(Method::POST).uri(format!("http://10.0.0.1{path}"));
    let request = request.header("content-type", "application/grpc").body(Empty::<Bytes>::new()).unwrap();
    let response = send.send_request(request).await.unwrap();
    let status = response.headers().get("grpc-status").map(|own| own.to_str().unwrap().to_owned());
    let status = status.unwrap_or_else(|| response.status().as_str().to_owned());
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn grpc_health_is_asked_over_h2() {
    let mesh = identities();
    let app: SocketAddr = both_versions().await;
    for protocol in [Protocol::Auto, Protocol::Grpc, Protocol::Http, Protocol::Tcp] {
        let table = probed(app.port(), declared(MtlsMode::Strict, app.port(), protocol));
        let lab = inbound(table, contexts(&mesh));
        let answer = call(lab.connect(app).await, "/grpc.health.v1.Health/Check").await;
        assert_eq!(answer, ("200".to_owned(), Bytes::from("HTTP/2.0")), "{protocol:?}");
        next_record(&lab).await;
        for other in ["/grpc.health.v1.Health/Watch", "/shop.Orders/Delete", "/healthz?full=1"] {
            // PERMISSION_DENIED
            assert_eq!(call(lab.connect(app).await, other).await.0, "7", "{protocol:?} {other}");
            assert_eq!(next_record(&lab).await.response_code_details.as_deref(), Some("not_a_probe"));
        }
    }
}
