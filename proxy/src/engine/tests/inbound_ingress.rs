//! TLS of a Sidecar's ingress, on a port whose mode is DISABLE: taken off with certificates of its own.

use std::{fs, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    gateway::REQUEST,
    inbound::inbound,
    inbound_http::{ask, mirror},
    inbound_modes::ingress,
    lab::*,
    mesh_mtls::{self, OWN, contexts, identities},
    tls::Files,
};
use crate::{
    mesh::{
        ClientCertificates, ClientTrust, DownstreamTls, IdentitySource, Material, Place, ServerTlsSettings, TrustSource,
    },
    telemetry::record::Flag,
    tls::Contexts,
};

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A CA, and in a folder what a Sidecar names: the server's certificate and key, and the CA.
pub struct Pki {
    ca: Issuer,
    folder: tempfile::TempDir,
}

impl Pki {
    pub fn new() -> Self {
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["httpbin.example".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        write("tls.crt", leaf.pem());
        write("tls.key", key.serialize_pem());
        write("ca.crt", ca.pem());
        Self { ca, folder }
    }

    fn file(&self, name: &str) -> Material {
        Material { path: self.folder.path().join(name).display().to_string(), place: Place::Host }
    }

    pub fn mutual(&self) -> Arc<ServerTlsSettings> {
        let trust = ClientTrust {
            ca: TrustSource::File(self.file("ca.crt")),
            crl: None,
            subject_alt_names: Vec::new(),
            spki: Vec::new(),
            hashes: Vec::new(),
        };
        Arc::new(ServerTlsSettings {
            identities: vec![IdentitySource::Files { certificate: self.file("tls.crt"), key: self.file("tls.key") }],
            clients: ClientCertificates::Required(trust),
            alpn: vec!["h2".into(), "http/1.1".into()],
            min_version: None,
            max_version: None,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
        })
    }

    /// A client that checks us, with a certificate of this CA or none.
    async fn call(&self, certificate: bool, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = if certificate {
            let mut params = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, "client");
            params.subject_alt_names.push(SanType::URI("urn:client".try_into().unwrap()));
            let key = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&key, &self.ca).unwrap();
            builder.with_client_auth_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap()).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        let name = ServerName::try_from("httpbin.example").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }
}

fn built(settings: &Arc<ServerTlsSettings>) -> Contexts {
    Contexts::build(&Contexts::default(), [], [settings.clone()], &Files)
}

#[tokio::test]
async fn a_client_with_a_certificate_is_served_and_the_application_told_of_it() {
    let (app, _) = mirror().await;
    let pki = Pki::new();
    let settings = pki.mutual();
    let lab = inbound(ingress(app.port(), DownstreamTls::Terminate(settings.clone())), built(&settings));
    let mut client = pki.call(true, lab.connect(app).await).await.unwrap();
    let (head, body) = ask(&mut client, "GET /x HTTP/1.1\r\nHost: a\r\nx-forwarded-client-cert: URI=b\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let told = body.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).expect("told");
    assert!(told.starts_with(&format!("By={OWN};Hash=")), "{told}");
    assert!(told.contains(";Subject=\"CN=client\";URI=urn:client;DNS=client.example"), "{told}");
    assert!(body.contains("x-forwarded-proto: https"), "{body}");
    let record = lab.record().await;
    // Whoever it is, it is nobody of the mesh.
    assert_eq!((record.source_identity, record.downstream_tls), (None, true));
    assert_eq!(record.client_certificate.map(|shown| shown.uri_names.clone()), Some(vec!["urn:client".to_owned()]));
    assert_eq!(record.downstream_session.map(|session| session.version), Some("TLSv1.3"));
}

#[tokio::test]
async fn everybody_else_is_refused_and_the_application_is_not_dialled() {
    let (app, connections) = mirror().await;
    let pki = Pki::new();
    let settings = pki.mutual();
    let lab = inbound(ingress(app.port(), DownstreamTls::Terminate(settings.clone())), built(&settings));
    // Without a certificate.
    let heard = match pki.call(false, lab.connect(app).await).await {
        Ok(mut client) => client.read(&mut [0; 8]).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(heard.to_string().contains("CertificateRequired"), "{heard}");
    assert_eq!(lab.record().await.flags, [Flag::DPE]);
    lab.recorder.records.lock().clear();
    // Plain text.
    let mut plain = lab.connect(app).await;
    plain.write_all(REQUEST).await.unwrap();
    assert!(is_reset(&mut plain).await);
    assert_eq!(lab.record().await.response_code_details.as_deref(), Some("filter_chain_not_found"));
    lab.recorder.records.lock().clear();
    // One of the mesh: the certificate that it would show is none of this CA.
    let mesh = identities();
    assert!(contexts(&mesh).mesh_server(OWN).is_ok());
    assert!(mesh_mtls::try_call(&mesh, lab.connect(app).await).await.is_err());
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// A file that is missing: no handshake, and the reason in the log.
#[tokio::test]
async fn without_its_files_nothing_is_let_in() {
    let (app, connections) = mirror().await;
    let pki = Pki::new();
    let settings = pki.mutual();
    fs::remove_file(Path::new(&pki.file("tls.key").path)).unwrap();
    let lab = inbound(ingress(app.port(), DownstreamTls::Terminate(settings.clone())), built(&settings));
    assert!(pki.call(true, lab.connect(app).await).await.is_err());
    let reason = lab.record().await.downstream_transport_failure_reason.unwrap();
    assert!(reason.contains("tls.key"), "{reason}");
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}
