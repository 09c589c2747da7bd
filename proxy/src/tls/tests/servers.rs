//! Servers that take TLS off: what they show, and to whom.

use std::sync::Arc;

use super::{
    lab::{Lab, NGINX, Reader},
    server_lab::{build_server, contexts},
};
use crate::{
    mesh::{ClientCertificates, IdentitySource, ServerTlsSettings, TrustSource},
    tls::{Contexts, TlsError},
};

#[tokio::test]
async fn the_example_s_v1_certificates_work_on_both_sides_in_both_versions() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/O=client organization/CN=client.example.com");
    let simple = build_server(&lab.simple(&["server"])).unwrap();
    let mutual = build_server(&lab.mutual("server", "root")).unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let call = lab.call(&simple, &[version, "-CAfile", "root.crt", "-verify_return_error"]).await;
        assert!(call.client.contains("Verify return code: 0 (ok)"), "{}", call.client);
        assert!(call.taken().certificate.is_none());
        let call = lab.call(&mutual, &[version, "-cert", "client.crt", "-key", "client.key"]).await;
        // The client is told which CA its certificate must be from.
        assert!(call.client.contains("CN=example.com,O=example Inc."), "{}", call.client);
        let certificate = call.taken().certificate.unwrap();
        assert_eq!(certificate.subject, "CN=client.example.com,O=client organization");
        let call = lab.call(&mutual, &[version]).await;
        assert!(call.client.contains("alert"), "{}", call.client);
        assert_eq!(call.refused(), "the client showed no certificate");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_let_in_only_where_it_is_optional() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/CN=client");
    lab.root("stranger", "/CN=stranger");
    lab.leaf_v1("other", "stranger", "/CN=other");
    let clients = ClientCertificates::Optional(lab.client_trust("root"));
    let server = build_server(&ServerTlsSettings { clients, ..lab.simple(&["server"]) }).unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        assert!(lab.call(&server, &[version]).await.taken().certificate.is_none());
        let call = lab.call(&server, &[version, "-cert", "client.crt", "-key", "client.key"]).await;
        assert_eq!(call.taken().certificate.unwrap().subject, "CN=client");
        let why = lab.call(&server, &[version, "-cert", "other.crt", "-key", "other.key"]).await.refused();
        assert!(why.contains("the client's certificate CN=other is not issued by the CA in"), "{why}");
    }
}

#[test]
fn unchanged_inputs_keep_the_server_and_changed_ones_do_not() {
    let lab = Lab::example();
    let settings = Arc::new(lab.mutual("server", "root"));
    let reader = Reader::default();
    let build = |previous: &Contexts| Contexts::build(previous, [], [settings.clone()], &reader);
    let first = build(&Contexts::default());
    let second = build(&first);
    let same = |a: &Contexts, b: &Contexts| Arc::ptr_eq(&a.server(&settings).unwrap(), &b.server(&settings).unwrap());
    assert!(same(&first, &second));
    lab.sign_v1("server", "root", &["-set_serial", "2"]);
    let third = build(&second);
    assert!(!same(&second, &third));
    let files = third.files();
    for name in ["root.crt", "server.crt", "server.key"] {
        assert!(files.contains(&lab.path(name)), "{files:?}");
    }
    let names: Vec<_> = third.secrets().iter().map(|row| (row.name.clone(), row.kind, row.valid)).collect();
    let path = |name: &str| lab.path(name).display().to_string();
    assert_eq!(
        names,
        [
            (format!("file-cert:{}~{}", path("server.crt"), path("server.key")), "Cert Chain", true),
            (format!("file-root:{}", path("root.crt")), "CA", true)
        ]
    );
    assert!(third.secrets().iter().all(|row| row.settings.is_empty() && *row.servers == [settings.clone()]));
    assert!(first.warnings().iter().any(|warning| warning.contains("X.509 v1")), "{:?}", first.warnings());
    assert_eq!(third.server_failures().count(), 0);
}

/// As a Gateway's `credentialName` does it.
#[test]
fn secrets_are_read_as_istio_reads_them() {
    let lab = Lab::example();
    let reader = Reader::default();
    let (namespace, name) = ("istio-system".to_owned(), "httpbin-credential".to_owned());
    let secret = |namespace: &String, name: &String| (namespace.clone(), name.clone());
    let settings = {
        let (identity, ca) = (secret(&namespace, &name), secret(&namespace, &name));
        let mut settings = lab.mutual("server", "root");
        settings.identities = vec![IdentitySource::Secret { namespace: identity.0, name: identity.1 }];
        let mut trust = lab.client_trust("root");
        trust.ca = TrustSource::Secret { namespace: ca.0, name: ca.1 };
        settings.clients = ClientCertificates::Required(trust);
        Arc::new(settings)
    };
    let build = || Contexts::build(&Contexts::default(), [], [settings.clone()], &reader);
    let reason = |contexts: &Contexts| contexts.server(&settings).expect_err("refused").to_string();
    assert_eq!(
        reason(&build()),
        "secret istio-system/httpbin-credential does not exist: create it, or correct the rule's credentialName"
    );
    let pair = [("tls.crt", lab.read("server.crt")), ("tls.key", lab.read("server.key"))];
    reader.set(&namespace, &name, &pair);
    assert!(reason(&build()).starts_with("there is no CA to check the client with"), "{}", reason(&build()));
    reader.set(&namespace, "httpbin-credential-cacert", &[("cacert", lab.read("root.crt"))]);
    let contexts = build();
    contexts.server(&settings).unwrap();
    let names: Vec<_> = contexts.secrets().iter().map(|row| (&*row.name, &*row.namespace)).collect();
    assert_eq!(
        names,
        [
            ("kubernetes://httpbin-credential", "istio-system"),
            ("kubernetes://httpbin-credential-cacert", "istio-system")
        ]
    );
}

#[test]
fn every_certificate_must_be_usable() {
    let lab = Lab::example();
    lab.leaf_v3("second", "root", "/CN=second", &format!("subjectAltName=DNS:{NGINX}"));
    lab.write("second.key", lab.read("server.key"));
    let settings = lab.simple(&["server", "second"]);
    let contexts = contexts(&settings);
    let error = contexts.server(&settings).expect_err("one of two is bad");
    assert!(matches!(&*error, TlsError::KeyMismatch { subject, .. } if subject == "CN=second"), "{error}");
    // The row of the good one does not bear the other's fault.
    let status = |name: &str| {
        contexts.secrets().iter().find(|row| row.name.contains(name)).map(|row| row.status.clone()).unwrap()
    };
    assert_eq!(status("server.crt"), "ACTIVE");
    assert_eq!(status("second.crt"), error.to_string());
    assert_eq!(contexts.server_failures().count(), 1);
    let none = lab.simple(&[]);
    assert!(matches!(build_server(&none), Err(TlsError::NoOwnCertificate)));
    let mut system = lab.mutual("server", "root");
    let mut trust = lab.client_trust("root");
    trust.ca = TrustSource::System;
    system.clients = ClientCertificates::Required(trust);
    assert!(matches!(build_server(&system), Err(TlsError::NoClientCa)));
}

/// Envoy's way: a client that offers only what is not spoken here goes on without.
#[tokio::test]
async fn application_protocols_are_ours_first_and_never_a_reason_to_refuse() {
    let lab = Lab::example();
    let alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    let server = build_server(&ServerTlsSettings { alpn, ..lab.simple(&["server"]) }).unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        for (offered, chosen) in [("http/1.1,h2", Some("h2")), ("http/1.1", Some("http/1.1")), ("foo,bar", None)] {
            let taken = lab.call(&server, &[version, "-alpn", offered]).await.taken();
            assert_eq!(taken.alpn.as_deref(), chosen, "{version} {offered}");
        }
        assert_eq!(lab.call(&server, &[version]).await.taken().alpn, None);
    }
}

#[tokio::test]
async fn a_session_is_resumed_at_its_own_server_only() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/CN=client");
    let simple = build_server(&lab.simple(&["server"])).unwrap();
    let mutual = build_server(&lab.mutual("server", "root")).unwrap();
    let again = build_server(&lab.mutual("server", "root")).unwrap();
    for version in ["-tls1_2", "-tls1_3"] {
        let show = [version, "-cert", "client.crt", "-key", "client.key"];
        let keep = [&show[..], &["-sess_out", "session.pem"]].concat();
        let resume = [&show[..], &["-sess_in", "session.pem"]].concat();
        assert!(!lab.call(&mutual, &keep).await.taken().resumed);
        let resumed = lab.call(&mutual, &resume).await.taken();
        assert!(resumed.resumed, "{version}");
        assert_eq!(resumed.certificate.unwrap().subject, "CN=client", "it is still known");
        // The same settings built anew are another server: what it demands may have changed.
        assert!(!lab.call(&again, &resume).await.taken().resumed, "{version}");
        // A session of a server that asks for nothing is no way past one that does.
        lab.call(&simple, &[version, "-sess_out", "session.pem"]).await.taken();
        assert!(lab.call(&simple, &[version, "-sess_in", "session.pem"]).await.taken().resumed);
        let why = lab.call(&mutual, &[version, "-sess_in", "session.pem"]).await.refused();
        assert_eq!(why, "the client showed no certificate");
    }
}

#[tokio::test]
async fn the_certificate_fits_what_the_client_can_check_and_asks_for() {
    let lab = Lab::example();
    let names = "subjectAltName=DNS:a.example,DNS:*.wild.example,IP:10.0.0.1";
    for (name, kind) in [("rsa", "rsa:2048"), ("ecdsa", "P-256"), ("ed", "ed25519")] {
        lab.request(name, &format!("/CN={name}"), kind);
        lab.sign_v3(name, "root", names, &[]);
    }
    lab.leaf_v3("b", "root", "/CN=b", "subjectAltName=DNS:b.example");
    let server = build_server(&lab.simple(&["rsa", "ecdsa", "ed", "b"])).unwrap();
    let shown = async |arguments: &[&str]| {
        let call = lab.call(&server, arguments).await;
        let subject = call.client.lines().find_map(|line| line.strip_prefix("subject=CN=").map(str::to_owned));
        call.taken();
        subject.unwrap()
    };
    for version in ["-tls1_2", "-tls1_3"] {
        assert_eq!(shown(&[version, "-servername", "a.example"]).await, "ecdsa", "the cheaper one");
        let only = |schemes| [version, "-servername", "a.example", "-sigalgs", schemes];
        assert_eq!(shown(&only("rsa_pss_rsae_sha256")).await, "rsa");
        assert_eq!(shown(&only("ed25519")).await, "ed");
        assert_eq!(shown(&[version, "-servername", "b.example"]).await, "b", "one server may have several hosts");
        assert_eq!(shown(&[version, "-noservername"]).await, "ecdsa");
    }
    // TLS 1.2 ties the certificate to the cipher suite.
    assert_eq!(shown(&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]).await, "rsa");
    for host in ["a.example", "A.Example.", "x.wild.example", "b.example", "10.0.0.1"] {
        assert!(server.covers(host), "{host}");
    }
    for host in ["c.example", "wild.example", "x.y.wild.example", "10.0.0.2", "rsa", "", "a.example:443"] {
        assert!(!server.covers(host), "{host}");
    }
    // With no alternative name the CN is the name.
    let old = build_server(&lab.simple(&["server"])).unwrap();
    assert!(old.covers(NGINX) && !old.covers("a.example") && !old.is_mesh());
}

#[tokio::test]
async fn versions_and_suites_are_those_allowed() {
    let lab = Lab::example();
    let with = |min: &str, max: &str, suites: &[&str]| ServerTlsSettings {
        min_version: Some(min.to_owned()),
        max_version: Some(max.to_owned()),
        cipher_suites: suites.iter().map(|name| (*name).to_owned()).collect(),
        ..lab.simple(&["server"])
    };
    let new = build_server(&with("TLSV1_3", "TLS_AUTO", &[])).unwrap();
    lab.call(&new, &["-tls1_3"]).await.taken();
    lab.call(&new, &["-tls1_2"]).await.refused();
    let old = build_server(&with("TLSV1_0", "TLSV1_2", &["ECDHE-RSA-AES128-GCM-SHA256"])).unwrap();
    lab.call(&old, &["-tls1_3"]).await.refused();
    lab.call(&old, &["-tls1_2", "-cipher", "ECDHE-RSA-AES256-GCM-SHA384"]).await.refused();
    let call = lab.call(&old, &["-tls1_2"]).await;
    assert!(call.client.contains("Cipher is ECDHE-RSA-AES128-GCM-SHA256"), "{}", call.client);
    call.taken();
    // Nothing below 1.2, whatever the minimum.
    lab.call(&old, &["-tls1_1", "-cipher", "DEFAULT:@SECLEVEL=0"]).await.refused();
    assert!(matches!(build_server(&with("TLSV1_3", "TLSV1_2", &[])), Err(TlsError::NoVersion { .. })));
    assert!(matches!(build_server(&with("TLSV1_0", "TLSV1_1", &[])), Err(TlsError::TooOld { .. })));
    let error = build_server(&with("TLSV1_2", "TLSV1_3", &["AES128-SHA"])).unwrap_err().to_string();
    assert!(error.contains("AES128-SHA") && error.contains("ECDHE-RSA-AES128-GCM-SHA256"), "{error}");
}

#[tokio::test]
async fn no_renegotiation_no_early_data_no_compression() {
    let lab = Lab::example();
    lab.write("early.txt", "GET / HTTP/1.0\r\n\r\n");
    let server = build_server(&lab.simple(&["server"])).unwrap();
    let call = lab.call(&server, &["-tls1_2", "-comp"]).await;
    assert!(call.client.contains("Compression: NONE"), "{}", call.client);
    call.taken();
    let call = lab.call(&server, &["-tls1_3", "-sess_out", "session.pem"]).await;
    assert!(call.client.contains("Max Early Data: 0"), "{}", call.client);
    call.taken();
    let early = ["-tls1_3", "-sess_in", "session.pem", "-early_data", "early.txt"];
    let call = lab.call(&server, &early).await;
    assert!(call.client.contains("Early data was not sent") || call.client.contains("Early data was rejected"));
    // `R` asks for a new handshake.
    let call = lab.call_typing_first(&server, &["-tls1_2"], "R\n").await;
    assert!(call.client.contains("RENEGOTIATING") && call.client.contains("no renegotiation"), "{}", call.client);
}
