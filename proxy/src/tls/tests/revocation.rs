//! CRLs as `openssl ca -gencrl` makes them, for v1 and v3 certificates.

use super::lab::*;
use crate::{mesh::table::TlsSettings, tls::TlsError};

/// Makes `<name>` with the CA's key, revoking these serial numbers (hexadecimal, whole bytes).
pub fn list(lab: &Lab, ca: &str, name: &str, serials: &[&str], version_2: bool, more: &[&str]) {
    let index: String =
        serials.iter().map(|serial| format!("R\t401231235959Z\t260101000000Z\t{serial}\tunknown\t/CN=x\n")).collect();
    lab.write("index.txt", index);
    let extensions = if version_2 { "crl_extensions = extensions\n" } else { "" };
    lab.write(
        "ca.cnf",
        format!(
            "[ca]\ndefault_ca = it\n[it]\ndatabase = index.txt\ndefault_md = sha256\n{extensions}\
             [extensions]\nauthorityKeyIdentifier = keyid:always\n"
        ),
    );
    let (crt, key) = (format!("{ca}.crt"), format!("{ca}.key"));
    let mut arguments = vec!["ca", "-config", "ca.cnf", "-gencrl", "-cert", &crt, "-keyfile", &key, "-out", name];
    if more.is_empty() {
        arguments.extend(["-crldays", "30"]);
    }
    arguments.extend(more);
    lab.openssl(&arguments);
}

fn with_crl(lab: &Lab, name: &str) -> TlsSettings {
    super::settings_with(lab.trusting("root"), |new| new.crl = Some(lab.material(name)))
}

#[tokio::test]
async fn revoked_certificates_are_refused() {
    let lab = Lab::example();
    for v3 in [false, true] {
        if v3 {
            lab.sign_v3("server", "root", &format!("subjectAltName=DNS:{NGINX}"), &["-set_serial", "0x80ab"]);
        } else {
            lab.sign_v1("server", "root", &["-set_serial", "0x80ab"]);
        }
        let server = lab.serve("server", &[]);
        for version_2 in [false, true] {
            list(&lab, "root", "crl.pem", &["80AB", "05"], version_2, &[]);
            let error = try_once(&with_crl(&lab, "crl.pem"), &server, NGINX).await.unwrap_err();
            assert!(matches!(error, TlsError::PeerRevoked { .. }), "{error}");
            assert!(error.to_string().contains("32939"), "{error}");
            list(&lab, "root", "crl.pem", &["05"], version_2, &[]);
            try_once(&with_crl(&lab, "crl.pem"), &server, NGINX).await.unwrap();
            // In DER.
            lab.openssl(&["crl", "-in", "crl.pem", "-outform", "DER", "-out", "crl.der"]);
            try_once(&with_crl(&lab, "crl.der"), &server, NGINX).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_list_that_does_not_count_refuses() {
    let lab = Lab::example();
    let server = lab.serve("server", &[]);
    lab.root("namesake", "/O=example Inc./CN=example.com");
    lab.root("other", "/CN=other");
    list(&lab, "other", "crl.pem", &[], true, &[]);
    let error = try_once(&with_crl(&lab, "crl.pem"), &server, NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::CrlMissing { .. }), "{error}");
    list(&lab, "namesake", "crl.pem", &[], true, &[]);
    let error = try_once(&with_crl(&lab, "crl.pem"), &server, NGINX).await.unwrap_err();
    assert!(matches!(error, TlsError::CrlForged { .. }), "{error}");
    let past = ["-crl_lastupdate", "20250101000000Z", "-crl_nextupdate", "20250201000000Z"];
    list(&lab, "root", "crl.pem", &[], true, &past);
    let error = try_once(&with_crl(&lab, "crl.pem"), &server, NGINX).await.unwrap_err().to_string();
    assert!(error.contains("2025-02-01"), "{error}");
    // Several in one file: the one that is current and genuine counts.
    let old = lab.read("crl.pem");
    list(&lab, "root", "crl.pem", &[], true, &[]);
    lab.write("crl.pem", [old, lab.read("crl.pem")].concat());
    try_once(&with_crl(&lab, "crl.pem"), &server, NGINX).await.unwrap();
}

#[tokio::test]
async fn every_ca_of_the_chain_needs_its_list() {
    let lab = Lab::new();
    lab.root("root", "/CN=root");
    lab.request("middle", "/CN=middle", "P-256");
    lab.sign_v3("middle", "root", "basicConstraints=CA:TRUE", &["-set_serial", "9"]);
    for v1 in [true, false] {
        lab.request("server", "/CN=a.example", "P-256");
        if v1 {
            lab.sign_v1("server", "middle", &["-set_serial", "8"]);
        } else {
            lab.sign_v3("server", "middle", "subjectAltName=DNS:a.example", &["-set_serial", "8"]);
        }
        let server = lab.serve("server", &["-cert_chain", "middle.crt"]);
        list(&lab, "middle", "middle.pem", &[], true, &[]);
        let error = try_once(&with_crl(&lab, "middle.pem"), &server, "a.example").await.unwrap_err();
        assert!(matches!(error, TlsError::CrlMissing { .. }), "{error}");
        list(&lab, "root", "root.pem", &[], true, &[]);
        lab.write("both.pem", [lab.read("middle.pem"), lab.read("root.pem")].concat());
        try_once(&with_crl(&lab, "both.pem"), &server, "a.example").await.unwrap();
        list(&lab, "root", "root.pem", &["09"], true, &[]);
        lab.write("both.pem", [lab.read("middle.pem"), lab.read("root.pem")].concat());
        let error = try_once(&with_crl(&lab, "both.pem"), &server, "a.example").await.unwrap_err();
        assert!(matches!(error, TlsError::PeerRevoked { .. }), "{error}");
    }
}

#[test]
fn an_unreadable_list_is_no_list() {
    let lab = Lab::example();
    lab.write("crl.pem", "nothing");
    assert!(matches!(build(&with_crl(&lab, "crl.pem")), Err(TlsError::BadCrl { .. })));
    lab.write("crl.pem", "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n");
    assert!(matches!(build(&with_crl(&lab, "crl.pem")), Err(TlsError::BadCrl { .. })));
    assert!(matches!(build(&with_crl(&lab, "gone.pem")), Err(TlsError::Unreadable { .. })));
}
