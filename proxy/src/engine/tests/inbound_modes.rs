//! What the ports of a pod take: STRICT, PERMISSIVE, DISABLE, and a change of them under open connections.

use std::{sync::Arc, time::Duration};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsConnector;

use super::{
    gateway::{REQUEST, hello},
    inbound::{declared, inbound, own_port, receiving},
    lab::*,
    mesh_mtls::{CALLER, call, contexts, identities, mesh_client},
};
use crate::{
    engine::{
        accept::{Arrival, ConnectionInfo},
        client_hello::tests::OPENSSL,
        inbound::refusal,
    },
    limits,
    mesh::{
        Application, ClientCertificates, ClientTrust, DownstreamTls, InboundPort, InboundTable, MtlsMode, Protocol,
        ServerTlsSettings, TrustSource,
    },
    telemetry::record::Flag,
    tls::Contexts,
};

fn strict(port: u16) -> InboundTable {
    declared(MtlsMode::Strict, port, Protocol::Auto)
}

/// True where nobody comes for a while.
async fn untouched(listener: &TcpListener) -> bool {
    tokio::time::timeout(Duration::from_millis(100), listener.accept()).await.is_err()
}

#[tokio::test]
async fn strict_resets_plain_text_and_the_application_hears_nothing_of_it() {
    let mesh = identities();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    for port in [app.port(), 1] {
        // A declared port, and one of which nobody speaks.
        let lab = inbound(strict(port), contexts(&mesh));
        for said in [REQUEST, b"\0raw"] {
            let mut client = lab.connect(app).await;
            client.write_all(said).await.unwrap();
            assert!(is_reset(&mut client).await);
            let record = lab.record().await;
            assert_eq!(
                (record.flags, record.response_code_details.as_deref()),
                (vec![Flag::NR], Some("filter_chain_not_found"))
            );
            assert_eq!((record.upstream_host.as_ref().map(ToString::to_string), record.bytes_received), (None, 0));
            lab.recorder.records.lock().clear();
        }
        assert!(untouched(&listener).await);
    }
}

#[tokio::test]
async fn strict_serves_the_mesh() {
    let mesh = identities();
    let app = hello().await;
    let lab = inbound(strict(app.port()), contexts(&mesh));
    let mut client = call(&mesh, lab.connect(app).await).await;
    client.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"hello"), "{}", answer.escape_ascii());
    let record = lab.record().await;
    assert_eq!((record.source_identity.as_deref(), record.downstream_tls), (Some(CALLER), true));
    assert_eq!(
        (record.protocol, record.cluster_name()),
        (Some("HTTP/1.1"), Some(format!("inbound|{}||", app.port()).as_str()))
    );
}

/// Istio's strict chain is for all TLS: who has a certificate of the mesh may offer what it likes.
#[tokio::test]
async fn strict_takes_any_tls_with_a_certificate_of_the_mesh_and_no_other() {
    let mesh = identities();
    let app = echo().await;
    let lab = inbound(strict(app.port()), contexts(&mesh));
    let connector = TlsConnector::from(Arc::new(mesh_client(Some(&mesh.identities.leaf(CALLER).unwrap().key), &[])));
    let name = ServerName::try_from("anything.example").unwrap();
    let mut client = connector.connect(name.clone(), lab.connect(app).await).await.unwrap();
    assert_eq!(exchange(&mut client, b"\0").await.unwrap(), b"got: \0");
    assert_eq!(lab.record().await.source_identity.as_deref(), Some(CALLER));
    lab.recorder.records.lock().clear();
    let connector = TlsConnector::from(Arc::new(mesh_client(None, &[])));
    let heard = match connector.connect(name, lab.connect(app).await).await {
        Ok(mut client) => client.read(&mut [0; 8]).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(heard.to_string().contains("CertificateRequired"), "{heard}");
    assert_eq!(lab.record().await.flags, [Flag::DPE]);
}

#[tokio::test]
async fn strict_waits_for_a_hello_as_long_as_for_a_handshake() {
    let mesh = identities();
    let lab = inbound(strict(1), contexts(&mesh));
    let mut client = lab.connect("127.0.0.1:1".parse().unwrap()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    assert!(client.read(&mut [0]).await.is_err(), "reset");
    assert!(begun.elapsed() <= limits::HANDSHAKE_TIME, "{:?}", begun.elapsed());
    assert_eq!(lab.record().await.flags, [Flag::NR]);
}

#[tokio::test]
async fn a_disabled_port_takes_nothing_off() {
    let mesh = identities();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let lab = inbound(declared(MtlsMode::Disable, app.port(), Protocol::Auto), contexts(&mesh));
    let mut client = lab.connect(app).await;
    client.write_all(OPENSSL).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut seen = vec![0; OPENSSL.len()];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, OPENSSL);
    // Mesh mTLS, too, is the application's to answer.
    let hello = tokio::spawn({
        let stream = lab.connect(app).await;
        async move { super::mesh_mtls::try_call(&identities(), stream).await.is_ok() }
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 22);
    drop(stream);
    assert!(!hello.await.unwrap());
}

pub fn ingress(port: u16, tls: DownstreamTls) -> InboundTable {
    let own = InboundPort { tls: Some(tls), ..own_port(port, Protocol::Http, Application::Dialled) };
    InboundTable { ports: [(port, Arc::new(own))].into(), ..declared(MtlsMode::Disable, 1, Protocol::Auto) }
}

#[tokio::test]
async fn an_ingress_that_cannot_be_honoured_resets_and_says_why() {
    let app = hello().await;
    let table = ingress(app.port(), DownstreamTls::Refuse("Sidecar default/a: no such Secret".into()));
    let lab = inbound(table, Contexts::default());
    assert!(is_reset(&mut lab.connect(app).await).await);
    let record = lab.record().await;
    assert_eq!(
        record.downstream_transport_failure_reason.as_deref(),
        Some("TLS_error: Sidecar default/a: no such Secret")
    );
}

/// What was let in goes on only as far as it would be let in now.
#[tokio::test]
async fn a_port_that_becomes_strict_answers_no_further_plain_request() {
    let mesh = identities();
    let app = hello().await;
    let lab = inbound(declared(MtlsMode::Permissive, app.port(), Protocol::Auto), contexts(&mesh));
    let mut plain = lab.connect(app).await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    plain.write_all(request).await.unwrap();
    let mut answer = vec![0; 1024];
    let count = plain.read(&mut answer).await.unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 200 "));
    let mut inside = call(&mesh, lab.connect(app).await).await;
    inside.write_all(request).await.unwrap();
    assert!(inside.read(&mut answer).await.unwrap() > 0);

    lab.engine.install(snapshot(mesh_of(receiving(strict(app.port()))), contexts(&mesh)));
    plain.write_all(request).await.unwrap();
    let mut told = Vec::new();
    // And that is the end of it.
    plain.read_to_end(&mut told).await.unwrap();
    assert!(
        told.starts_with(b"HTTP/1.1 503 ") && told.ends_with(b"takes mesh mTLS only, by now"),
        "{}",
        told.escape_ascii()
    );
    inside.write_all(request).await.unwrap();
    let count = inside.read(&mut answer).await.unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 200 "));
}

/// Who has waited with its first word since before STRICT does not say it in plain text; nor does the application.
#[tokio::test]
async fn a_port_that_becomes_strict_takes_no_bytes_of_those_who_waited() {
    let mesh = identities();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let permissive = || declared(MtlsMode::Permissive, app.port(), Protocol::Auto);
    for silent in [Duration::ZERO, 2 * limits::SNIFF_SILENCE] {
        let lab = inbound(permissive(), contexts(&mesh));
        let mut client = lab.connect(app).await;
        tokio::time::sleep(silent + Duration::from_millis(50)).await;
        lab.engine.install(snapshot(mesh_of(receiving(strict(app.port()))), contexts(&mesh)));
        client.write_all(b"\0raw").await.unwrap();
        assert!(is_reset(&mut client).await);
        let record = lab.record().await;
        assert_eq!(
            (record.flags, record.response_code_details.as_deref()),
            (vec![Flag::NR], Some("filter_chain_not_found"))
        );
        // The application has been dialled for the second one, and heard nothing.
        if silent > Duration::ZERO {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard).await;
            assert!(heard.is_empty(), "{}", heard.escape_ascii());
        }
    }
    let lab = inbound(permissive(), contexts(&mesh));
    let mut client = lab.connect(app).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    lab.engine.install(snapshot(mesh_of(receiving(strict(app.port()))), contexts(&mesh)));
    stream.write_all(b"220 welcome").await.unwrap();
    assert!(is_reset(&mut client).await);
}

/// What a request on an open connection is refused for.
fn refused(table: &InboundTable, change: impl Fn(&mut ConnectionInfo)) -> bool {
    let mut info =
        ConnectionInfo::new(Arrival::Inbound, "10.0.0.1:9080".parse().unwrap(), "10.0.0.2:1".parse().unwrap());
    change(&mut info);
    refusal(table, &info).is_some()
}

#[test]
fn a_connection_goes_on_as_far_as_it_would_be_let_in() {
    let plain = |_: &mut ConnectionInfo| {};
    let of_the_mesh = |info: &mut ConnectionInfo| (info.tls, info.identity) = (true, Some(CALLER.into()));
    let through = |settings: &Arc<ServerTlsSettings>| {
        let settings = settings.clone();
        move |info: &mut ConnectionInfo| (info.tls, info.ingress) = (true, Some(settings.clone()))
    };
    let ca = |name: &str| ClientTrust {
        ca: TrustSource::Secret { namespace: "default".into(), name: name.into() },
        crl: None,
        subject_alt_names: Vec::new(),
        spki: Vec::new(),
        hashes: Vec::new(),
    };
    let settings = |clients| {
        Arc::new(ServerTlsSettings {
            identities: Vec::new(),
            clients,
            alpn: Vec::new(),
            min_version: None,
            max_version: None,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
        })
    };
    let simple = settings(ClientCertificates::None);
    let mutual = settings(ClientCertificates::Required(ca("a")));
    let other = settings(ClientCertificates::Required(ca("b")));

    let strict = strict(9080);
    assert!(refused(&strict, plain) && refused(&strict, through(&mutual)) && !refused(&strict, of_the_mesh));
    let permissive = declared(MtlsMode::Permissive, 9080, Protocol::Http);
    assert!(
        !refused(&permissive, plain) && !refused(&permissive, of_the_mesh) && !refused(&permissive, through(&simple))
    );
    let disabled = declared(MtlsMode::Disable, 9080, Protocol::Http);
    assert!(!refused(&disabled, plain) && !refused(&disabled, of_the_mesh));
    let ended = ingress(9080, DownstreamTls::Terminate(mutual.clone()));
    assert!(refused(&ended, plain) && refused(&ended, of_the_mesh) && refused(&ended, through(&simple)));
    assert!(!refused(&ended, through(&mutual)) && refused(&ended, through(&other)));
    assert!(!refused(&ingress(9080, DownstreamTls::Terminate(simple.clone())), through(&mutual)));
    assert!(refused(&ingress(9080, DownstreamTls::Refuse("x".into())), through(&mutual)));
}
