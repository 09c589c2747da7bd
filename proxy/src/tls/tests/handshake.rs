//! Certificates that must be accepted, each with a real handshake.

use rustls::{HandshakeKind, ProtocolVersion};

use super::lab::*;
use crate::tls::{UpstreamName, alpn_is_h2};

#[tokio::test]
async fn the_example_s_v1_certificate_is_accepted_from_its_ca_in_both_versions() {
    let lab = Lab::example();
    for (option, version) in [("-tls1_2", ProtocolVersion::TLSv1_2), ("-tls1_3", ProtocolVersion::TLSv1_3)] {
        let server = lab.serve("server", &[option]);
        let stream = try_once(&lab.trusting("root"), &server, NGINX).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version));
        let page = get(stream).await.unwrap();
        assert!(page.starts_with("HTTP/1.0 200"), "{page}");
    }
}

#[tokio::test]
async fn nginx_gets_the_v1_client_certificate_that_it_demands() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/CN=client.example.com/O=client organization");
    let dir = lab.dir.path().display();
    let server = lab.nginx(&format!(
        "ssl_certificate {dir}/server.crt; ssl_certificate_key {dir}/server.key; ssl_client_certificate {dir}/root.crt; \
         ssl_verify_client on; location / {{ return 200 \"$ssl_protocol $ssl_server_name $ssl_client_s_dn\"; }}"
    ));
    let stream = try_once(&lab.presenting("root", "client"), &server, NGINX).await.unwrap();
    let page = get(stream).await.unwrap();
    assert!(page.contains(&format!("{NGINX} O=client organization,CN=client.example.com")), "{page}");
    // Without one nginx answers 400 itself.
    let stream = try_once(&lab.trusting("root"), &server, NGINX).await.unwrap();
    let page = get(stream).await.unwrap();
    assert!(page.contains("No required SSL certificate was sent"), "{page}");
}

#[tokio::test]
async fn every_key_type_serves_and_is_presented() {
    let lab = Lab::new();
    lab.root("root", "/CN=root");
    for kind in ["rsa:2048", "P-256", "P-384", "P-521", "ed25519"] {
        lab.request("server", "/CN=a.example", kind);
        lab.sign_v3("server", "root", "subjectAltName=DNS:a.example", &[]);
        lab.request("client", "/CN=the client", kind);
        lab.sign_v1("client", "root", &["-set_serial", "7"]);
        for option in ["-tls1_2", "-tls1_3"] {
            let server = lab.serve("server", &[option, "-Verify", "2", "-CAfile", "root.crt", "-verify_return_error"]);
            let stream = try_once(&lab.presenting("root", "client"), &server, "a.example").await;
            let stream = stream.unwrap_or_else(|error| panic!("{kind} {option}: {error}"));
            let page = get(stream).await.unwrap_or_else(|error| panic!("{kind} {option}: {error}"));
            assert!(page.contains("Client certificate") && page.contains("the client"), "{kind} {option}: {page}");
            // The same key in a v1 certificate: its signature is checked from the bare key.
            lab.sign_v1("server", "root", &[]);
            let server = lab.serve("server", &[option]);
            try_once(&lab.trusting("root"), &server, "a.example").await.unwrap();
            lab.sign_v3("server", "root", "subjectAltName=DNS:a.example", &[]);
        }
    }
}

#[tokio::test]
async fn old_key_formats_are_read() {
    let lab = Lab::new();
    lab.root("root", "/CN=root");
    lab.leaf_v3("server", "root", "/CN=a.example", "subjectAltName=DNS:a.example");
    let server = lab.serve("server", &["-Verify", "2", "-CAfile", "root.crt", "-verify_return_error"]);
    lab.leaf_v1("client", "root", "/CN=client");
    lab.openssl(&["rsa", "-in", "client.key", "-traditional", "-out", "pkcs1.key"]);
    std::fs::rename(lab.path("pkcs1.key"), lab.path("client.key")).unwrap();
    assert!(lab.read("client.key").starts_with(b"-----BEGIN RSA PRIVATE KEY"));
    let stream = try_once(&lab.presenting("root", "client"), &server, "a.example").await.unwrap();
    get(stream).await.unwrap();
    // SEC1, with the curve's parameters before it, as `openssl ecparam -genkey` writes it.
    lab.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-out", "client.key"]);
    assert!(lab.read("client.key").starts_with(b"-----BEGIN EC PARAMETERS"));
    lab.openssl(&["req", "-new", "-key", "client.key", "-subj", "/CN=client", "-out", "client.csr"]);
    lab.sign_v1("client", "root", &[]);
    let stream = try_once(&lab.presenting("root", "client"), &server, "a.example").await.unwrap();
    get(stream).await.unwrap();
}

#[tokio::test]
async fn chains_with_intermediates_work_on_both_sides() {
    let lab = Lab::new();
    lab.root("root", "/CN=root");
    lab.request("middle", "/CN=middle", "P-384");
    lab.sign_v3("middle", "root", "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign", &[]);
    for v1 in [false, true] {
        for name in ["server", "client"] {
            lab.request(name, "/CN=a.example", "P-256");
            if v1 {
                lab.sign_v1(name, "middle", &[]);
            } else {
                lab.sign_v3(name, "middle", "subjectAltName=DNS:a.example", &[]);
            }
        }
        let chain = [lab.read("client.crt"), lab.read("middle.crt")].concat();
        lab.write("client.crt", chain);
        let server = lab.serve(
            "server",
            &["-cert_chain", "middle.crt", "-Verify", "3", "-CAfile", "root.crt", "-verify_return_error"],
        );
        let stream = try_once(&lab.presenting("root", "client"), &server, "a.example").await.unwrap();
        get(stream).await.unwrap();
        // Without the intermediate it cannot be known.
        let server = lab.serve("server", &["-no-CAfile", "-no-CApath"]);
        let error = try_once(&lab.trusting("root"), &server, "a.example").await.unwrap_err().to_string();
        assert!(error.contains("CN=a.example") && error.contains("CN=middle"), "{error}");
        // An intermediate that is configured is a root.
        try_once(&lab.trusting("middle"), &server, "a.example").await.unwrap();
    }
}

#[tokio::test]
async fn a_v1_root_is_an_anchor() {
    let lab = Lab::new();
    lab.request("root", "/CN=old root", "rsa:2048");
    lab.openssl(&["x509", "-req", "-in", "root.csr", "-signkey", "root.key", "-days", "9", "-out", "root.crt"]);
    lab.leaf_v1("server", "root", "/CN=a.example");
    try_once(&lab.trusting("root"), &lab.serve("server", &[]), "a.example").await.unwrap();
    lab.leaf_v3("server", "root", "/CN=a.example", "subjectAltName=DNS:a.example");
    try_once(&lab.trusting("root"), &lab.serve("server", &[]), "a.example").await.unwrap();
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_ca() {
    let lab = Lab::new();
    lab.root("server", "/CN=a.example");
    let server = lab.serve("server", &[]);
    try_once(&lab.trusting("server"), &server, "a.example").await.unwrap();
    lab.root("other", "/CN=a.example");
    assert!(try_once(&lab.trusting("other"), &server, "a.example").await.is_err());
    // X.509 v1, signed with its own key.
    lab.openssl(&["req", "-new", "-key", "server.key", "-subj", "/CN=a.example", "-out", "server.csr"]);
    lab.openssl(&["x509", "-req", "-in", "server.csr", "-signkey", "server.key", "-days", "9", "-out", "server.crt"]);
    let server = lab.serve("server", &[]);
    try_once(&lab.trusting("server"), &server, "a.example").await.unwrap();
    assert!(try_once(&lab.trusting("other"), &server, "a.example").await.is_err());
}

#[tokio::test]
async fn a_request_to_an_address_is_checked_against_addresses() {
    let lab = Lab::new();
    lab.root("root", "/CN=root");
    lab.leaf_v3("server", "root", "/CN=127.0.0.1", "subjectAltName=IP:127.0.0.1,IP:::1");
    let server = lab.serve("server", &[]);
    for host in ["127.0.0.1", "[::1]"] {
        try_once(&lab.trusting("root"), &server, host).await.unwrap();
    }
    let error = try_once(&lab.trusting("root"), &server, "127.0.0.2").await.unwrap_err().to_string();
    assert!(error.contains("for 127.0.0.1, ::1, not for 127.0.0.2"), "{error}");
    // A CN that looks like an address is none.
    lab.leaf_v1("server", "root", "/CN=127.0.0.1");
    assert!(try_once(&lab.trusting("root"), &lab.serve("server", &[]), "127.0.0.1").await.is_err());
}

#[tokio::test]
async fn sni_and_subject_alt_names_replace_the_host() {
    let lab = Lab::example();
    let dir = lab.dir.path().display();
    let server = lab.nginx(&format!(
        "ssl_certificate {dir}/server.crt; ssl_certificate_key {dir}/server.key; location / {{ return 200 \"sni=$ssl_server_name\"; }}"
    ));
    let mut settings = lab.trusting("root");
    settings.sni = Some(NGINX.to_owned());
    let stream = try_once(&settings, &server, "whatever.example").await.unwrap();
    assert!(get(stream).await.unwrap().contains(&format!("sni={NGINX}")));
    // The name checked need not be the one sent.
    settings.sni = Some("other.example".to_owned());
    assert!(try_once(&settings, &server, NGINX).await.is_err());
    settings.subject_alt_names = vec!["no.example".to_owned(), NGINX.to_owned()];
    let stream = try_once(&settings, &server, NGINX).await.unwrap();
    assert!(get(stream).await.unwrap().contains("sni=other.example"));
    // No SNI for an address; upper case and a final dot are the same name.
    settings.sni = None;
    let stream = try_once(&settings, &server, "127.0.0.1").await.unwrap();
    assert!(!get(stream).await.unwrap().contains("sni=1"));
    settings.subject_alt_names.clear();
    try_once(&settings, &server, &format!("{}.", NGINX.to_uppercase())).await.unwrap();
}

#[tokio::test]
async fn a_second_connection_resumes_the_session() {
    let lab = Lab::example();
    for option in ["-tls1_2", "-tls1_3"] {
        let server = lab.serve("server", &[option]);
        let context = build(&lab.trusting("root")).unwrap();
        let first = connect(&context, &server, NGINX).await.unwrap();
        assert_eq!(first.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        // TLS 1.3 tickets come with what is read after the handshake.
        get(first).await.unwrap();
        let second = connect(&context, &server, NGINX).await.unwrap();
        assert_eq!(second.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{option}");
        drop(second);
        // Another context shares nothing with it.
        let other = build(&lab.trusting("root")).unwrap();
        let third = connect(&other, &server, NGINX).await.unwrap();
        assert_eq!(third.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn alpn_and_tls_defaults_are_offered() {
    let lab = Lab::example();
    let server = lab.serve("server", &["-alpn", "h2,http/1.1", "-tls1_2"]);
    let mut settings = lab.trusting("root");
    let stream = try_once(&settings, &server, NGINX).await.unwrap();
    assert!(!alpn_is_h2(&stream));
    drop(stream);
    settings.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    settings.cipher_suites = vec!["ECDHE-RSA-CHACHA20-POLY1305".to_owned()];
    let stream = try_once(&settings, &server, NGINX).await.unwrap();
    assert!(alpn_is_h2(&stream));
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256);
    drop(stream);
    // For a WebSocket, and for a client of HTTP/1 whose protocol is to be kept.
    let tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let name = UpstreamName { host: Some(NGINX) };
    let stream = build(&settings).unwrap().connect_without_h2(name, tcp).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    drop(stream);
    settings.min_version = Some("TLSV1_3".to_owned());
    let error = try_once(&settings, &server, NGINX).await.unwrap_err().to_string();
    assert!(error.contains("version"), "{error}");
}

#[tokio::test]
async fn unchecked_means_neither_chain_nor_name() {
    let lab = Lab::example();
    let mut settings = super::settings();
    settings.insecure_skip_verify = true;
    try_once(&settings, &lab.serve("server", &[]), "any.example").await.unwrap();
}

#[tokio::test]
async fn every_curve_agrees_on_a_key() {
    let lab = Lab::example();
    for (name, openssl) in [("X25519", "X25519"), ("P-256", "P-256"), ("P-384", "P-384"), ("P-521", "P-521")] {
        for option in ["-tls1_2", "-tls1_3"] {
            let server = lab.serve("server", &[option, "-groups", openssl]);
            let mut settings = lab.trusting("root");
            settings.curves = vec![name.to_owned()];
            let stream = try_once(&settings, &server, NGINX).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(get(stream).await.unwrap().contains("200 ok"), "{name} {option}");
            // By default every one is offered.
            try_once(&lab.trusting("root"), &server, NGINX).await.unwrap();
        }
    }
}

/// Connections are looked for by the text of the name: two names of one server must not differ, nor two servers' be equal.
#[test]
fn a_name_has_one_text() {
    let lab = Lab::example();
    let context = build(&lab.trusting("root")).unwrap();
    for host in ["A.Example", "a.example.", "b.example", "192.0.2.1", "[2001:DB8:0::1]", "2001:db8::1"] {
        let name = UpstreamName { host: Some(host) };
        assert_eq!(context.name_text(name).unwrap(), context.server_name(name).unwrap().to_str(), "{host}");
    }
    assert!(context.name_text(UpstreamName::default()).is_err());
}
