//! Servers that must be refused, and what is said then.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::time::timeout;

use super::lab::*;
use crate::tls::{
    ClientContext, TlsError, UpstreamName,
    material::{Inputs, RawTrust},
    trust::SystemBundle,
};

#[tokio::test]
async fn another_ca_is_refused_whatever_its_name() {
    let lab = Lab::example();
    lab.root("stranger", "/CN=stranger");
    lab.root("namesake", "/O=example Inc./CN=example.com");
    let server = lab.serve("server", &[]);
    let error = try_once(&lab.trusting("stranger"), &server, NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::PeerUntrusted { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(NGINX) && text.contains("stranger.crt") && text.contains("CN=example.com,O=example Inc."),
        "{text}"
    );
    let text = try_once(&lab.trusting("namesake"), &server, NGINX).await.unwrap_err().to_string();
    assert!(text.contains("its key did not sign"), "{text}");
    // The same of a v3 certificate, which webpki judges.
    lab.leaf_v3("server", "root", "/CN=x", &format!("subjectAltName=DNS:{NGINX}"));
    let server = lab.serve("server", &[]);
    try_once(&lab.trusting("root"), &server, NGINX).await.unwrap();
    for ca in ["stranger", "namesake"] {
        let error = try_once(&lab.trusting(ca), &server, NGINX).await.unwrap_err();
        assert!(matches!(error, TlsError::PeerUntrusted { .. }), "{ca}: {error}");
    }
}

#[tokio::test]
async fn another_name_is_refused_and_both_are_told() {
    let lab = Lab::example();
    let error =
        try_once(&lab.trusting("root"), &lab.serve("server", &[]), "other.example").await.unwrap_err().to_string();
    assert!(error.contains(&format!("is for CN {NGINX}, not for other.example")), "{error}");
    lab.leaf_v3("server", "root", &format!("/CN={NGINX}"), "subjectAltName=DNS:a.example,DNS:b.example");
    let error = try_once(&lab.trusting("root"), &lab.serve("server", &[]), NGINX).await.unwrap_err().to_string();
    assert!(error.contains("is for a.example, b.example, not for"), "{error}");
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let lab = Lab::example();
    lab.sign_v1("server", "root", &["-days", "-1"]);
    let error = try_once(&lab.trusting("root"), &lab.serve("server", &[]), NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::PeerExpired { .. }), "{error}");
    lab.sign_v3("server", "root", &format!("subjectAltName=DNS:{NGINX}"), &["-days", "-1"]);
    let error = try_once(&lab.trusting("root"), &lab.serve("server", &[]), NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::PeerExpired { .. }), "{error}");
    // A root that has expired vouches for nobody, for v1 and v3 alike.
    lab.request("late", "/CN=late", "P-256");
    lab.openssl(&["x509", "-req", "-in", "late.csr", "-signkey", "late.key", "-days", "-1", "-out", "late.crt"]);
    lab.sign_v1("server", "late", &[]);
    let error = try_once(&lab.trusting("late"), &lab.serve("server", &[]), NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::PeerExpired { .. }), "{error}");
    lab.sign_v3("server", "late", &format!("subjectAltName=DNS:{NGINX}"), &[]);
    let error = try_once(&lab.trusting("late"), &lab.serve("server", &[]), NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::PeerExpired { .. }), "{error}");
}

/// Any v1 leaf of the CA could otherwise make certificates for any name.
#[tokio::test]
async fn a_v1_leaf_cannot_issue() {
    let lab = Lab::example();
    lab.leaf_v1("evil", "server", "/CN=bank.example");
    let server = lab.serve("evil", &["-cert_chain", "server.crt"]);
    let error = try_once(&lab.trusting("root"), &server, "bank.example").await.unwrap_err().to_string();
    assert!(error.contains("it is no CA certificate"), "{error}");
    // Nor with a v3 certificate, nor from a v3 certificate that is no CA.
    lab.leaf_v3("evil", "server", "/CN=bank.example", "subjectAltName=DNS:bank.example");
    let server = lab.serve("evil", &["-cert_chain", "server.crt"]);
    assert!(try_once(&lab.trusting("root"), &server, "bank.example").await.is_err());
    lab.sign_v3("server", "root", &format!("basicConstraints=CA:FALSE\nsubjectAltName=DNS:{NGINX}"), &[]);
    lab.leaf_v1("evil", "server", "/CN=bank.example");
    let server = lab.serve("evil", &["-cert_chain", "server.crt"]);
    assert!(try_once(&lab.trusting("root"), &server, "bank.example").await.is_err());
}

#[tokio::test]
async fn limits_of_an_intermediate_hold_for_v1_too() {
    for (extensions, fault) in [
        ("basicConstraints=CA:TRUE\nkeyUsage=digitalSignature", "keyUsage"),
        ("basicConstraints=CA:TRUE\nextendedKeyUsage=clientAuth", "extendedKeyUsage"),
        ("basicConstraints=CA:TRUE\nnameConstraints=permitted;DNS:other.example", "name constraints"),
        ("basicConstraints=CA:TRUE\n1.2.3.4=critical,ASN1:NULL", "critical extension"),
    ] {
        let lab = Lab::new();
        lab.root("root", "/CN=root");
        lab.request("middle", "/CN=middle", "P-256");
        lab.sign_v3("middle", "root", extensions, &[]);
        lab.request("server", "/CN=a.example", "P-256");
        lab.sign_v1("server", "middle", &[]);
        let server = lab.serve("server", &["-cert_chain", "middle.crt"]);
        let error = try_once(&lab.trusting("root"), &server, "a.example").await.unwrap_err().to_string();
        assert!(error.contains(fault), "{fault}: {error}");
    }
}

#[tokio::test]
async fn path_length_holds_for_v1_too() {
    let lab = Lab::new();
    lab.root("root", "/CN=root");
    lab.request("upper", "/CN=upper", "P-256");
    lab.sign_v3("upper", "root", "basicConstraints=CA:TRUE,pathlen:0", &[]);
    lab.request("lower", "/CN=lower", "P-256");
    lab.sign_v3("lower", "upper", "basicConstraints=CA:TRUE", &[]);
    lab.request("server", "/CN=a.example", "P-256");
    lab.sign_v1("server", "lower", &[]);
    lab.write("chain.crt", [lab.read("lower.crt"), lab.read("upper.crt")].concat());
    let server = lab.serve("server", &["-cert_chain", "chain.crt"]);
    let error = try_once(&lab.trusting("root"), &server, "a.example").await.unwrap_err().to_string();
    assert!(error.contains("pathLenConstraint"), "{error}");
    lab.sign_v3("upper", "root", "basicConstraints=CA:TRUE,pathlen:1", &[]);
    lab.write("chain.crt", [lab.read("lower.crt"), lab.read("upper.crt")].concat());
    let server = lab.serve("server", &["-cert_chain", "chain.crt"]);
    try_once(&lab.trusting("root"), &server, "a.example").await.unwrap();
}

#[tokio::test]
async fn weak_signatures_are_refused() {
    let lab = Lab::example();
    lab.sign_v1("server", "root", &["-sha1"]);
    let server = lab.serve("server", &["-cipher", "DEFAULT@SECLEVEL=0"]);
    let error = try_once(&lab.trusting("root"), &server, NGINX).await.unwrap_err().to_string();
    assert!(error.contains("too weak"), "{error}");
}

/// The system's bundle vouches for no v1 certificate and for no name by CN, though the CA is the same.
#[tokio::test]
async fn the_system_s_bundle_is_held_to_the_public_rules() {
    let lab = Lab::example();
    let root = CertificateDer::from_pem_slice(&lab.read("root.crt")).unwrap();
    let bundle = Arc::new(SystemBundle::of(vec![root]).unwrap());
    let inputs = Inputs { identity: None, trust: Ok(RawTrust::System(bundle)), crls: Ok(Vec::new()) };
    let context = ClientContext::new(&super::settings(), &inputs, &Arc::default()).unwrap();
    let error = connect(&context, &lab.serve("server", &[]), NGINX).await.unwrap_err().to_string();
    assert!(error.contains("X.509 v1"), "{error}");
    lab.sign_v3("server", "root", "extendedKeyUsage=serverAuth", &[]);
    let error = connect(&context, &lab.serve("server", &[]), NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::PeerName { .. }), "{error}");
    // With the CA configured, the CN of a v3 certificate stands for the name.
    try_once(&lab.trusting("root"), &lab.serve("server", &[]), NGINX).await.unwrap();
    lab.sign_v3("server", "root", &format!("subjectAltName=DNS:{NGINX}"), &[]);
    connect(&context, &lab.serve("server", &[]), NGINX).await.unwrap();
}

/// A server that shows a certificate without having its key, even where nothing else is checked.
#[tokio::test]
async fn a_borrowed_certificate_is_refused() {
    let lab = Lab::example();
    lab.request("thief", "/CN=thief", "rsa:2048");
    let v1 = lab.read("server.crt");
    lab.sign_v3("server", "root", &format!("subjectAltName=DNS:{NGINX}"), &[]);
    for pem in [v1, lab.read("server.crt")] {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for skip in [false, true] {
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let key = PrivateKeyDer::from_pem_slice(&lab.read("thief.key")).unwrap();
                let key = provider.key_provider.load_private_key(key).unwrap();
                let key = CertifiedKey::new(vec![CertificateDer::from_pem_slice(&pem).unwrap()], key);
                let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(key));
                let config = rustls::ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[version])
                    .unwrap()
                    .with_no_client_auth()
                    .with_cert_resolver(resolver);
                let (near, far) = tokio::io::duplex(1 << 16);
                let server = tokio::spawn(tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(far).into_future());
                let mut settings = lab.trusting("root");
                settings.insecure_skip_verify = skip;
                let context = build(&settings).unwrap();
                let result =
                    timeout(PATIENCE, context.connect(UpstreamName { host: Some(NGINX) }, near)).await.unwrap();
                assert_eq!(result.unwrap_err(), TlsError::PeerSignature, "{version:?} {skip}");
                let _ = timeout(PATIENCE, server).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_missing_client_certificate_is_explained() {
    let lab = Lab::example();
    let demand = ["-Verify", "1", "-CAfile", "root.crt", "-verify_return_error"];
    let server = lab.serve("server", &[&demand[..], &["-tls1_2"]].concat());
    let error = try_once(&lab.trusting("root"), &server, NGINX).await.unwrap_err().to_string();
    assert!(error.contains("MUTUAL"), "{error}");
    // In TLS 1.3 it is met at the first read.
    let server = lab.serve("server", &[&demand[..], &["-tls1_3"]].concat());
    let stream = try_once(&lab.trusting("root"), &server, NGINX).await.unwrap();
    let error = TlsError::from_io(&get(stream).await.unwrap_err()).to_string();
    assert!(error.contains("MUTUAL"), "{error}");
}

#[tokio::test]
async fn what_is_no_tls_is_called_so() {
    let lab = Lab::example();
    let context = build(&lab.trusting("root")).unwrap();
    for (answer, said) in
        [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "did not answer in TLS"), (b"", "closed the connection")]
    {
        let tcp = tokio::net::TcpStream::connect(plain_server(answer)).await.unwrap();
        let name = UpstreamName { host: Some(NGINX) };
        let error = timeout(PATIENCE, context.connect(name, tcp)).await.unwrap().unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let (near, _far) = tokio::io::duplex(64);
    let error = context.connect(UpstreamName { host: None }, near).await.unwrap_err();
    assert_eq!(error, TlsError::NoName);
    let (near, _far) = tokio::io::duplex(64);
    let error = context.connect(UpstreamName { host: Some("*.example.com") }, near).await.unwrap_err();
    assert!(matches!(error, TlsError::BadName { .. }), "{error}");
}
