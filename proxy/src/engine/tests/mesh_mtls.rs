//! Mesh mTLS taken off, at a gateway's listener and at a pod's own port: who the client is, how streams end, and what
//! fails.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use rustls::{
    ClientConfig,
    pki_types::ServerName,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;

use super::{
    gateway::{ID, REQUEST, gateway, h2_get, hello, routes, server, tunnel},
    inbound::permissive,
    inbound_http::{ask, mirror},
    lab::*,
};
use crate::{
    engine::{accept::Role, client_hello::tests::OPENSSL},
    identity::tests::lab::Mesh,
    limits,
    mesh::{Behind, Cluster, HostMap, MeshTls, Protocol, RouteTable, UpstreamTls, VirtualHost},
    telemetry::record::{Flag, Reporter},
    tls::{Contexts, TlsStream, UpstreamName},
};

/// What [`workload`] is in the mesh.
pub const OWN: &str = "spiffe://cluster.local/ns/default/sa/default";
pub const CALLER: &str = "spiffe://cluster.local/ns/default/sa/caller";
const SNI: &str = "outbound_.443_._.a.example";

pub fn identities() -> Mesh {
    Mesh::new(&[OWN, CALLER])
}

pub fn contexts(mesh: &Mesh) -> Contexts {
    Contexts::with_identities(mesh.identities.clone())
}

/// The handshake of a pod of the mesh, or why it failed.
pub async fn try_call(mesh: &Mesh, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    let rule = MeshTls { required: true, sni: SNI.into(), subject_alt_names: vec![OWN.into()] };
    let context = contexts(mesh).mesh_client(CALLER, &rule, None).unwrap();
    let mut stream = context.connect(UpstreamName::default(), stream).await.map_err(|error| error.to_string())?;
    // The last flight, which else waits for what the client says first.
    let _ = stream.flush().await;
    Ok(stream)
}

pub async fn call(mesh: &Mesh, stream: TcpStream) -> TlsStream<TcpStream> {
    try_call(mesh, stream).await.unwrap()
}

/// A listener of each kind that takes mesh mTLS off and passes the bytes to `upstream`.
fn both(mesh: &Mesh, upstream: SocketAddr) -> [Lab; 2] {
    let serves = server("*.a.example", Behind::Tunnel(Some(tunnel(upstream))));
    [lab_at(Role::Gateway(ID), gateway(serves), contexts(mesh)), permissive(contexts(mesh))]
}

/// An upstream that hands its connections over.
async fn upstream() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn a_gateway_serves_both_http_versions_inside_and_knows_the_client() {
    let mesh = identities();
    let serves = server("*.a.example", Behind::Http(routes(hello().await)));
    let lab = lab_at(Role::Gateway(ID), gateway(serves), contexts(&mesh));
    let mut client = call(&mesh, TcpStream::connect(lab.listener).await.unwrap()).await;
    client.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    // To an orderly end: close_notify.
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"hello"), "{}", answer.escape_ascii());
    let record = lab.record().await;
    assert_eq!((record.source_identity.as_deref(), record.downstream_tls), (Some(CALLER), true));
    assert_eq!((record.requested_server_name.as_deref(), record.reporter), (Some(SNI), Reporter::Source));
    assert_eq!((record.protocol, record.flags.as_slice()), (Some("HTTP/1.1"), [].as_slice()));
    lab.recorder.records.lock().clear();
    let client = call(&mesh, TcpStream::connect(lab.listener).await.unwrap()).await;
    assert_eq!(h2_get(client).await, (200, Bytes::from("hello")));
    assert_eq!(lab.record().await.protocol, Some("HTTP/2"));
    assert_eq!(*lab.recorder.accepted.lock(), [Ok(()), Ok(())]);
}

/// Behind a gateway, the mesh hears of the client's certificate in the gateway's words, and the world outside of nothing.
#[tokio::test]
async fn a_gateway_tells_its_services_who_calls_and_nobody_else() {
    let (upstream, _) = mirror().await;
    let mesh = identities();
    let forged = "GET /x HTTP/1.1\r\nHost: a.example\r\nx-forwarded-client-cert: URI=spiffe://forged\r\n\r\n";
    for mesh_external in [false, true] {
        let service = Cluster {
            protocol: Protocol::Http,
            mesh_external,
            ..cluster("a.example", &[upstream], UpstreamTls::Plain)
        };
        let mut hosts = HostMap::default();
        hosts.insert("a.example", Arc::new(VirtualHost::of_cluster("a.example:80".into(), service.into())));
        let table = Arc::new(RouteTable { name: "http.8080".into(), hosts });
        let lab = lab_at(Role::Gateway(ID), gateway(server("*.a.example", Behind::Http(table))), contexts(&mesh));
        let mut client = call(&mesh, TcpStream::connect(lab.listener).await.unwrap()).await;
        let (_, body) = ask(&mut client, forged).await;
        let told = body.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: "));
        if mesh_external {
            assert_eq!(told, None);
        } else {
            let told = told.expect("told");
            assert!(
                told.starts_with(&format!("By={OWN};Hash=")) && told.ends_with(&format!(";URI={CALLER}")),
                "{told}"
            );
            assert!(told.contains(";Cert=\"-----BEGIN%20CERTIFICATE-----%0A"), "{told}");
            assert!(!told.contains("forged"), "{told}");
        }
    }
}

#[tokio::test]
async fn the_application_gets_plain_text_and_the_log_the_identity() {
    let mesh = identities();
    let app = echo().await;
    let lab = permissive(contexts(&mesh));
    let mut client = call(&mesh, lab.connect(app).await).await;
    let question = vec![7; 300_000];
    assert!(exchange(&mut client, &question).await.unwrap() == [b"got: ".as_slice(), &question].concat());
    let record = lab.record().await;
    assert_eq!((record.source_identity.as_deref(), record.downstream_tls), (Some(CALLER), true));
    assert_eq!((record.requested_server_name.as_deref(), record.reporter), (Some(SNI), Reporter::Destination));
    assert_eq!(record.cluster_name(), Some("InboundPassthroughCluster"));
    assert_eq!((record.bytes_received, record.bytes_sent), (300_000, 300_005));
    assert!(record.flags.is_empty() && !record.upstream_tls);
}

#[tokio::test]
async fn each_half_is_closed_by_itself() {
    let mesh = identities();
    let (listener, address) = upstream().await;
    for lab in both(&mesh, address) {
        let stream = lab.connect(address).await;
        // The client first.
        let mut client = call(&mesh, stream).await;
        let (mut app, _) = listener.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        app.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"question");
        app.write_all(b"answer").await.unwrap();
        drop(app);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"answer");
        let record = lab.record().await;
        assert_eq!((record.bytes_received, record.bytes_sent, record.flags.len()), (8, 6, 0));
    }
    for lab in both(&mesh, address) {
        let stream = lab.connect(address).await;
        // The application first, and before a word of the client's.
        let mut client = call(&mesh, stream).await;
        let (mut app, _) = listener.accept().await.unwrap();
        app.write_all(b"220 hello").await.unwrap();
        app.shutdown().await.unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"220 hello");
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        app.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"still here");
        let record = lab.record().await;
        assert_eq!((record.bytes_received, record.bytes_sent, record.flags.len()), (10, 9, 0));
    }
}

/// Whoever can cut a TCP connection must not be able to make half a message look whole.
#[tokio::test]
async fn a_stream_cut_off_is_a_reset_and_no_end() {
    let mesh = identities();
    let (listener, address) = upstream().await;
    for lab in both(&mesh, address) {
        let stream = lab.connect(address).await;
        let mut client = call(&mesh, stream).await;
        let (mut app, _) = listener.accept().await.unwrap();
        client.write_all(b"\0half of it").await.unwrap();
        app.read_exact(&mut [0; 11]).await.unwrap();
        // A FIN without close_notify.
        let mut tcp = client.into_io();
        tcp.shutdown().await.unwrap();
        assert!(is_reset(&mut app).await);
        let record = lab.record().await;
        assert_eq!(record.flags, [Flag::DC]);
        assert_eq!(record.connection_termination_details.as_deref(), Some("downstream_tls_cut_off"));
    }
    for lab in both(&mesh, address) {
        let stream = lab.connect(address).await;
        let mut client = call(&mesh, stream).await;
        let (mut app, _) = listener.accept().await.unwrap();
        client.write_all(b"\0").await.unwrap();
        app.read_exact(&mut [0]).await.unwrap();
        crate::engine::stream::reset_on_close(&app);
        drop(app);
        let error = client.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(lab.record().await.flags, [Flag::UC]);
    }
}

#[tokio::test]
async fn a_client_that_is_late_with_its_hello_is_of_the_mesh_all_the_same() {
    let mesh = identities();
    let lab = permissive(contexts(&mesh));
    let stream = lab.connect(echo().await).await;
    tokio::time::sleep(limits::SNIFF_SILENCE * 2).await;
    let mut client = call(&mesh, stream).await;
    assert_eq!(exchange(&mut client, b"late").await.unwrap(), b"got: late");
}

/// A client that offers what the mesh offers and takes us for whoever we are, with this certificate or none. What it hears
/// in the end.
async fn stranger(stream: TcpStream, key: Option<&CertifiedKey>) -> String {
    let config = mesh_client(key, &["istio"]);
    let name = ServerName::try_from("x.a.example").unwrap();
    let mut stream = match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    // In TLS 1.3 the refusal comes after the client is done.
    stream.read(&mut [0; 8]).await.unwrap_err().to_string()
}

/// Takes the server for whoever it is.
pub fn mesh_client(key: Option<&CertifiedKey>, alpn: &[&str]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn who_shows_no_certificate_hears_it_and_the_log_says_it_once() {
    let mesh = identities();
    let upstream = echo().await;
    for lab in both(&mesh, upstream) {
        let stream = lab.connect(upstream).await;
        let heard = stranger(stream, None).await;
        assert!(heard.contains("CertificateRequired"), "{heard}");
        let record = lab.record().await;
        let reason = record.downstream_transport_failure_reason.unwrap();
        assert!(reason.starts_with("TLS_error: ") && reason.contains("no certificate"), "{reason}");
        assert_eq!((record.flags, record.source_identity, record.bytes_received), (vec![Flag::DPE], None, 0));
        assert!(matches!(lab.recorder.accepted.lock().as_slice(), [Err(_)]));
    }
}

#[tokio::test]
async fn a_certificate_of_another_mesh_is_refused_by_its_name() {
    let (mesh, other) = (identities(), identities());
    let upstream = echo().await;
    for lab in both(&mesh, upstream) {
        let stream = lab.connect(upstream).await;
        let leaf = other.identities.leaf(CALLER).unwrap();
        let heard = stranger(stream, Some(&leaf.key)).await;
        assert!(heard.contains("alert"), "{heard}");
        let record = lab.record().await;
        let reason = record.downstream_transport_failure_reason.unwrap();
        assert!(reason.starts_with("TLS_error: ") && reason.contains(CALLER), "{reason}");
        assert_eq!((record.flags, record.source_identity), (vec![Flag::DPE], None));
    }
}

#[tokio::test]
async fn a_client_that_refuses_us_is_logged_too() {
    let (mesh, other) = (identities(), identities());
    let upstream = echo().await;
    for lab in both(&mesh, upstream) {
        let stream = lab.connect(upstream).await;
        assert!(try_call(&other, stream).await.is_err());
        let record = lab.record().await;
        assert!(record.downstream_transport_failure_reason.unwrap().contains("alert"));
        assert_eq!(record.flags, [Flag::DPE]);
    }
}

#[tokio::test]
async fn without_a_certificate_of_our_own_mesh_tls_is_refused_and_never_passed_on() {
    let (listener, address) = upstream().await;
    let lab = permissive(Contexts::default());
    let mesh = identities();
    assert!(try_call(&mesh, lab.connect(address).await).await.is_err());
    let record = lab.record().await;
    assert!(record.downstream_transport_failure_reason.is_some(), "{record:?}");
    let dialled = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(dialled.is_err(), "the application was dialled");
}

/// A handshake has its time, and holds nobody else up.
#[tokio::test]
async fn a_handshake_that_stalls_ends_alone() {
    let mesh = identities();
    let serves = server("*", Behind::Tunnel(Some(tunnel(echo().await))));
    let lab = lab_at(Role::Gateway(ID), gateway(serves), contexts(&mesh));
    let mut stalled = TcpStream::connect(lab.listener).await.unwrap();
    stalled.write_all(OPENSSL).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut client = call(&mesh, TcpStream::connect(lab.listener).await.unwrap()).await;
    assert_eq!(exchange(&mut client, b"x").await.unwrap(), b"got: x");
    lab.record().await;
    lab.recorder.records.lock().clear();
    // The clock goes on to whatever is waited for next.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let mut all = Vec::new();
    let _ = stalled.read_to_end(&mut all).await;
    assert!(begun.elapsed() <= limits::HANDSHAKE_TIME, "{:?}", begun.elapsed());
    let reason = lab.record().await.downstream_transport_failure_reason.unwrap();
    assert!(reason.contains("in time"), "{reason}");
}
