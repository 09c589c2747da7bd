//! Clients of a MUTUAL server: which certificates are good, which are not, and what the log says then.

use std::{process::Command, sync::Arc, time::Duration};

use super::{
    lab::Lab,
    revocation::list,
    server_lab::{Taken, build_server},
};
use crate::{
    mesh::{ClientCertificates, ClientTrust, ServerTlsSettings},
    tls::{ServerContext, TlsError},
};

const SHOW: [&str; 4] = ["-cert", "client.crt", "-key", "client.key"];

/// A server with the example's certificate that demands this of its clients.
fn demanding(lab: &Lab, trust: ClientTrust) -> Result<Arc<ServerContext>, TlsError> {
    build_server(&ServerTlsSettings { clients: ClientCertificates::Required(trust), ..lab.simple(&["server"]) })
}

/// What comes of showing `client` in either version: the same, or a panic.
async fn refused(lab: &Lab, trust: &ClientTrust) -> String {
    let server = demanding(lab, trust.clone()).unwrap();
    let old = lab.call(&server, &[&SHOW[..], &["-tls1_2"]].concat()).await.refused();
    let new = lab.call(&server, &[&SHOW[..], &["-tls1_3"]].concat()).await.refused();
    assert_eq!(old, new);
    new
}

async fn taken(lab: &Lab, trust: &ClientTrust) -> Taken {
    lab.call(&demanding(lab, trust.clone()).unwrap(), &SHOW).await.taken()
}

#[tokio::test]
async fn every_kind_of_key_is_accepted_as_v1_and_as_v3() {
    let lab = Lab::example();
    let trust = lab.client_trust("root");
    for kind in ["rsa:2048", "P-256", "P-384", "P-521", "ed25519"] {
        lab.request("client", "/CN=client", kind);
        let server = demanding(&lab, trust.clone()).unwrap();
        for version in ["-tls1_2", "-tls1_3"] {
            lab.sign_v1("client", "root", &[]);
            let call = lab.call(&server, &[&SHOW[..], &[version]].concat()).await;
            assert!(call.is_served(), "{kind} {version} v1: {:?}", call.server);
            lab.sign_v3("client", "root", "extendedKeyUsage=clientAuth\nsubjectAltName=DNS:a.example", &[]);
            let call = lab.call(&server, &[&SHOW[..], &[version]].concat()).await;
            assert!(call.is_served(), "{kind} {version} v3: {:?}", call.server);
        }
    }
}

#[tokio::test]
async fn bad_certificates_are_refused_with_the_reason() {
    let lab = Lab::example();
    let trust = lab.client_trust("root");
    lab.request("client", "/CN=client", "P-256");
    lab.root("stranger", "/O=example Inc./CN=example.com");
    lab.sign_v1("client", "stranger", &[]);
    let why = refused(&lab, &trust).await;
    assert!(why.contains("the client's certificate CN=client is not issued by"), "{why}");
    lab.sign_v1("client", "root", &["-days", "-1"]);
    let why = refused(&lab, &trust).await;
    assert!(why.contains("the certificate CN=client in the client's chain expired at"), "{why}");
    lab.sign_v3("client", "root", "extendedKeyUsage=serverAuth", &["-days", "-1"]);
    let why = refused(&lab, &trust).await;
    assert!(why.contains("client's chain expired"), "{why}");
    lab.sign_v3("client", "root", "extendedKeyUsage=serverAuth", &[]);
    let why = refused(&lab, &trust).await;
    assert!(why.contains("the client's certificate CN=client cannot be accepted"), "{why}");
    lab.sign_v3("client", "root", "extendedKeyUsage=clientAuth", &[]);
    taken(&lab, &trust).await;
}

#[tokio::test]
async fn revoked_clients_are_refused() {
    let lab = Lab::example();
    lab.request("client", "/CN=client", "P-256");
    let trust = ClientTrust { crl: Some(lab.material("crl.pem")), ..lab.client_trust("root") };
    for v3 in [false, true] {
        if v3 {
            lab.sign_v3("client", "root", "subjectAltName=DNS:a.example", &["-set_serial", "7"]);
        } else {
            lab.sign_v1("client", "root", &["-set_serial", "7"]);
        }
        list(&lab, "root", "crl.pem", &["07"], true, &[]);
        let why = refused(&lab, &trust).await;
        assert!(why.contains("with serial 7 in the client's chain is revoked: the client must get"), "{why}");
        list(&lab, "root", "crl.pem", &["05"], true, &[]);
        taken(&lab, &trust).await;
    }
}

#[tokio::test]
async fn names_must_be_borne_exactly() {
    let lab = Lab::example();
    lab.request("client", "/CN=client.example", "P-256");
    let names = "subjectAltName=DNS:a.example,DNS:*.b.example,URI:spiffe://x/y,email:me@a.example,IP:10.0.0.1,IP:::1";
    lab.sign_v3("client", "root", names, &[]);
    let wanting = |name: &str| ClientTrust {
        subject_alt_names: vec!["other.example".to_owned(), name.to_owned()],
        ..lab.client_trust("root")
    };
    for name in ["a.example", "A.example", "*.b.example", "spiffe://x/y", "me@a.example", "10.0.0.1", "0:0::1"] {
        taken(&lab, &wanting(name)).await;
    }
    for name in ["c.b.example", "client.example", "spiffe://x", "10.0.0.2", ""] {
        let why = refused(&lab, &wanting(name)).await;
        assert!(why.contains("CN=client.example is for a.example"), "{name}: {why}");
    }
    // With no alternative name at all the CN stands for one.
    lab.sign_v1("client", "root", &[]);
    taken(&lab, &wanting("client.example")).await;
    let why = refused(&lab, &wanting("a.example")).await;
    assert!(why.contains("is for CN client.example, not for other.example or a.example"), "{why}");
}

#[tokio::test]
async fn pins_of_the_certificate_or_of_its_key_count() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/CN=client");
    let shell = |command: &str| {
        let output = Command::new("sh").args(["-c", command]).current_dir(lab.dir.path()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // As Envoy's documentation has them made.
    let spki = shell(
        "openssl x509 -in client.crt -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary \
         | openssl enc -base64",
    );
    let hash = shell("openssl x509 -in client.crt -outform DER | openssl dgst -sha256 -r | cut -d' ' -f1");
    let (no_spki, no_hash) = ("A".repeat(43) + "=", "00".repeat(32));
    let pinned = |spki: &[&String], hashes: &[&String]| ClientTrust {
        spki: spki.iter().map(|pin| (*pin).clone()).collect(),
        hashes: hashes.iter().map(|pin| (*pin).clone()).collect(),
        ..lab.client_trust("root")
    };
    for trust in [pinned(&[&no_spki, &spki], &[]), pinned(&[], &[&hash]), pinned(&[&no_spki], &[&hash])] {
        let certificate = taken(&lab, &trust).await.certificate.unwrap();
        assert_eq!(certificate.hash, hash);
    }
    for trust in [pinned(&[&no_spki], &[]), pinned(&[], &[&no_hash]), pinned(&[&no_spki], &[&no_hash])] {
        let why = refused(&lab, &trust).await;
        assert!(why.contains(&hash) && why.contains(&spki), "what is to be allowed is told: {why}");
    }
    // A pin is no way past the CA.
    lab.root("stranger", "/CN=stranger");
    let trust = ClientTrust { ca: lab.client_trust("stranger").ca, ..pinned(&[&spki], &[]) };
    assert!(refused(&lab, &trust).await.contains("is not issued by"));
    for bad in [pinned(&[&hash], &[]), pinned(&[], &[&spki])] {
        assert!(matches!(demanding(&lab, bad), Err(TlsError::BadPin { .. })));
    }
}

#[tokio::test]
async fn what_the_certificate_says_is_told_as_openssl_prints_it() {
    let lab = Lab::example();
    let odd = "/C=DE/O=Comma, \\\"quote\\\" + plus;/OU=#Zürich /emailAddress=me@a.example/CN=client";
    lab.openssl(&[
        "req",
        "-utf8",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        odd,
        "-keyout",
        "client.key",
        "-out",
        "client.csr",
    ]);
    lab.sign_v3("client", "root", "subjectAltName=URI:spiffe://x/y,DNS:a.example,DNS:b.example", &[]);
    let certificate = taken(&lab, &lab.client_trust("root")).await.certificate.unwrap();
    let arguments = ["x509", "-in", "client.crt", "-noout", "-subject", "-nameopt", "RFC2253"];
    let output = Command::new("openssl").args(arguments).current_dir(lab.dir.path()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(Some(certificate.subject.as_str()), printed.trim_end_matches('\n').strip_prefix("subject="));
    assert!(certificate.subject.is_ascii(), "{}", certificate.subject);
    assert_eq!(certificate.uri_names, ["spiffe://x/y"]);
    assert_eq!(certificate.dns_names, ["a.example", "b.example"]);
}

/// A resumed session brings its client's certificate along; time has gone on.
#[tokio::test]
async fn an_expired_client_is_not_let_in_by_its_old_session() {
    let lab = Lab::example();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "short-lived");
    let end = std::time::SystemTime::now() + Duration::from_secs(4);
    params.not_after = end.into();
    let key = rcgen::KeyPair::generate().unwrap();
    lab.write("client.crt", params.self_signed(&key).unwrap().pem());
    lab.write("client.key", key.serialize_pem());
    let server = demanding(&lab, lab.client_trust("client")).unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let keep = [&SHOW[..], &[version, "-sess_out", version]].concat();
        lab.call(&server, &keep).await.taken();
        let resume = [&SHOW[..], &[version, "-sess_in", version]].concat();
        assert!(lab.call(&server, &resume).await.taken().resumed, "{version}");
    }
    let left = end.duration_since(std::time::SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_secs(2)).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let why = lab.call(&server, &[version, "-sess_in", version]).await.refused();
        assert!(why.contains("in the client's chain expired at"), "{version}: {why}");
    }
}
