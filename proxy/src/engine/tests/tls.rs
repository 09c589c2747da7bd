//! TLS originated for raw bytes, against a real rustls server.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::lab::*;
use crate::{
    engine::host_sockets::HostSockets,
    mesh::{Material, Place, TlsContextSettings, TlsSettings, TrustSource, UpstreamTls},
    telemetry::record::Flag,
    tls::{Contexts, MaterialReader, read_host_file},
};

pub struct Files;

impl MaterialReader for Files {
    fn secret(&self, _: &str, _: &str) -> Option<Arc<crate::api::core::Secret>> {
        None
    }

    fn config_map(&self, _: &str, _: &str) -> Option<Arc<crate::api::core::ConfigMap>> {
        None
    }

    fn file(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        read_host_file(path)
    }
}

/// A TLS server for `name` that answers like [`echo`], and its CA as PEM.
async fn tls_echo(name: &str) -> (SocketAddr, String) {
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all).await;
                let _ = stream.write_all(&[b"got: ".as_slice(), &all].concat()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, ca.pem())
}

fn settings(ca: &Path) -> Arc<TlsSettings> {
    Arc::new(TlsSettings {
        sni: None,
        context: Arc::new(TlsContextSettings {
            subject_alt_names: vec![],
            insecure_skip_verify: false,
            identity: None,
            trust: TrustSource::File(Material { path: ca.display().to_string(), place: Place::Host }),
            crl: None,
            alpn: vec![],
            min_version: None,
            cipher_suites: vec![],
            curves: vec![],
        }),
    })
}

/// A lab whose port 80 is a TCP service for `host` with a TLS rule.
fn tls_lab(host: &str, upstream: SocketAddr, ca: &str, connect_timeout: Duration) -> Lab {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, ca).unwrap();
    let settings = settings(&path);
    let contexts = Contexts::build(&Contexts::default(), [settings.clone()], [], &Files);
    let mut service = cluster(host, &[upstream], UpstreamTls::Originate(settings));
    Arc::make_mut(&mut service.pool).connect_timeout = connect_timeout;
    lab_with(tcp_service(80, service), contexts, Arc::new(HostSockets))
}

const TEN: Duration = Duration::from_secs(10);

fn somewhere() -> SocketAddr {
    "192.0.2.1:80".parse().unwrap()
}

#[tokio::test]
async fn raw_bytes_leave_as_verified_tls_and_half_close_is_kept() {
    let (upstream, ca) = tls_echo("db.example").await;
    let lab = tls_lab("db.example", upstream, &ca, TEN);
    let question = vec![7; 300_000];
    let answer = exchange(&mut lab.connect(somewhere()).await, &question).await.unwrap();
    assert!(answer == [b"got: ".as_slice(), &question].concat());
    let record = lab.record().await;
    assert!(record.upstream_tls && record.flags.is_empty(), "{record:?}");
    assert_eq!((record.bytes_received, record.bytes_sent), (300_000, 300_005));
    assert_eq!(*lab.recorder.handshakes.lock(), [Ok(())]);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let (upstream, ca) = tls_echo("other.example").await;
    let lab = tls_lab("db.example", upstream, &ca, TEN);
    assert!(is_reset(&mut lab.connect(somewhere()).await).await);
    let record = lab.record().await;
    assert_eq!((record.flags, record.bytes_sent), (vec![Flag::UF], 0));
    let reason = record.upstream_transport_failure_reason.unwrap();
    assert!(reason.starts_with("TLS_error: ") && reason.contains("other.example"), "{reason}");
    assert!(matches!(lab.recorder.handshakes.lock().as_slice(), [Err(_), ..]));
}

#[tokio::test]
async fn a_rule_whose_ca_is_missing_dials_nobody() {
    let upstream = echo().await;
    let lab = tls_lab("db.example", upstream, "no certificate at all", TEN);
    assert!(is_reset(&mut lab.connect(somewhere()).await).await);
    let record = lab.record().await;
    assert!(record.upstream_transport_failure_reason.unwrap().contains("holds no certificate"));
    assert_eq!(record.upstream_host.as_ref().map(ToString::to_string), None);
}

#[tokio::test]
async fn the_connect_timeout_covers_a_handshake_that_stalls() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, ca) = tls_echo("db.example").await;
    let lab = tls_lab("db.example", silent.local_addr().unwrap(), &ca, Duration::from_millis(300));
    let begun = std::time::Instant::now();
    assert!(is_reset(&mut lab.connect(somewhere()).await).await);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let record = lab.record().await;
    assert_eq!(record.upstream_transport_failure_reason.as_deref(), Some("connection timeout"));
}
