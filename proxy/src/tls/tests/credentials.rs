//! Secrets and files: what is chosen, what is refused, and what a reload keeps.

use std::sync::Arc;

use super::lab::*;
use crate::{
    mesh::table::{IdentitySource, Material, Place, TlsSettings, TrustSource},
    tls::{Contexts, TlsError, material::RawTrust},
};

/// MUTUAL with `credentialName: client-credential` in `default`.
fn credential() -> TlsSettings {
    let (namespace, name) = ("default".to_owned(), "client-credential".to_owned());
    super::settings_with(super::settings(), |new| {
        new.identity = Some(IdentitySource::Secret { namespace: namespace.clone(), name: name.clone() });
        new.trust = TrustSource::Secret { namespace, name };
    })
}

fn contexts(settings: &TlsSettings, reader: &Reader) -> Contexts {
    Contexts::build(&Contexts::default(), [Arc::new(settings.clone())], [], reader)
}

fn reason(settings: &TlsSettings, reader: &Reader) -> TlsError {
    (*contexts(settings, reader).get(settings).expect_err("refused")).clone()
}

#[tokio::test]
async fn a_credential_name_gives_identity_and_ca() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/CN=client.example.com/O=client organization");
    lab.sign_v1("client", "root", &["-set_serial", "1"]);
    let (root, crt, key) = (lab.read("root.crt"), lab.read("client.crt"), lab.read("client.key"));
    let server = lab.serve("server", &["-Verify", "1", "-CAfile", "root.crt", "-verify_return_error"]);
    let reader = Reader::default();
    let junk = b"junk".to_vec();
    for data in [
        vec![("tls.crt", crt.clone()), ("tls.key", key.clone()), ("ca.crt", root.clone())],
        vec![("cert", crt.clone()), ("key", key.clone()), ("cacert", root.clone()), ("tls.crt", junk.clone())],
        // Half a generic pair is none.
        vec![("cert", junk.clone()), ("tls.crt", crt.clone()), ("tls.key", key.clone()), ("cacert", root.clone())],
    ] {
        reader.set("default", "client-credential", &data);
        let context = contexts(&credential(), &reader).get(&credential()).unwrap();
        let stream = connect(&context, &server, NGINX).await.unwrap();
        assert!(get(stream).await.unwrap().contains("client.example.com"));
    }
    // `-cacert` comes first.
    lab.root("stranger", "/CN=stranger");
    reader.set("default", "client-credential-cacert", &[("ca.crt", lab.read("stranger.crt"))]);
    let context = contexts(&credential(), &reader).get(&credential()).unwrap();
    assert!(matches!(connect(&context, &server, NGINX).await, Err(TlsError::PeerUntrusted { .. })));
    reader.set("default", "client-credential-cacert", &[("cacert", root)]);
    let contexts = contexts(&credential(), &reader);
    connect(&contexts.get(&credential()).unwrap(), &server, NGINX).await.unwrap();
    // As `proxy-config secret` shows it.
    let rows: Vec<_> =
        contexts.secrets().iter().map(|row| (row.name.as_str(), row.kind, row.status.as_str(), row.valid)).collect();
    assert_eq!(
        rows,
        [
            ("kubernetes://client-credential", "Cert Chain", "ACTIVE", true),
            ("kubernetes://client-credential-cacert", "CA", "ACTIVE", true)
        ]
    );
    let row = &contexts.secrets()[0];
    assert_eq!((row.serial.as_str(), row.namespace.as_str()), ("1", "default"));
    assert_eq!(row.chain[0].subject, "O=client organization,CN=client.example.com");
    assert!(row.not_after.unwrap() - row.not_before.unwrap() == 365 * 24 * 3600);
    assert_eq!(row.settings[0], credential().context);
}

#[test]
fn what_is_missing_is_named() {
    let lab = Lab::example();
    let (crt, key) = (lab.read("server.crt"), lab.read("server.key"));
    let reader = Reader::default();
    assert_eq!(
        reason(&credential(), &reader).to_string(),
        "there is no CA to check the server with: put it as cacert or ca.crt into secret default/client-credential-cacert \
         or default/client-credential"
    );
    reader.set("default", "client-credential-cacert", &[("ca.crt", lab.read("root.crt"))]);
    assert!(matches!(reason(&credential(), &reader), TlsError::SecretMissing { .. }));
    reader.set("default", "client-credential", &[("tls.crt", crt.clone())]);
    let error = reason(&credential(), &reader);
    assert!(error.to_string().contains("default/client-credential has no certificate with its private key"), "{error}");
    reader.set("default", "client-credential", &[("tls.crt", crt.clone()), ("tls.key", crt.clone())]);
    assert!(matches!(reason(&credential(), &reader), TlsError::NoKey { .. }));
    reader.set("default", "client-credential", &[("tls.crt", key.clone()), ("tls.key", key.clone())]);
    assert!(matches!(reason(&credential(), &reader), TlsError::NoCertificate { .. }));
    reader.set("default", "client-credential", &[("tls.crt", crt.clone()), ("tls.key", lab.read("root.key"))]);
    let error = reason(&credential(), &reader);
    assert!(matches!(&error, TlsError::KeyMismatch { subject, .. } if subject.contains(NGINX)), "{error}");
    let rows = contexts(&credential(), &reader);
    let row = &rows.secrets()[0];
    assert!(!row.valid && row.status == error.to_string() && row.serial == "0", "{row:?}");
    lab.openssl(&["pkey", "-in", "server.key", "-aes256", "-passout", "pass:secret", "-out", "locked.key"]);
    reader.set("default", "client-credential", &[("tls.crt", crt), ("tls.key", lab.read("locked.key"))]);
    assert!(matches!(reason(&credential(), &reader), TlsError::EncryptedKey { .. }));
    // A CA that is none.
    let mut simple = lab.trusting("root");
    simple.trust = TrustSource::File(lab.material("root.key"));
    assert!(matches!(reason(&simple, &reader), TlsError::NoCertificate { .. }));
    simple.trust = TrustSource::File(lab.material("gone.crt"));
    assert!(reason(&simple, &reader).to_string().contains("gone.crt"));
    assert!(matches!(*Contexts::default().get(&simple).expect_err("never built"), TlsError::NotBuilt));
}

#[test]
fn an_expired_identity_is_refused_and_shown() {
    let lab = Lab::example();
    lab.sign_v1("server", "root", &["-days", "-1"]);
    let settings = lab.presenting("root", "server");
    let contexts = contexts(&settings, &Reader::default());
    let error = contexts.get(&settings).expect_err("expired");
    assert!(matches!(*error, TlsError::IdentityExpired { .. }), "{error}");
    let row = &contexts.secrets()[0];
    assert!(row.name.starts_with("file-cert:") && row.name.contains("server.crt~") && !row.valid, "{row:?}");
    assert!(contexts.secrets()[1].name.starts_with("file-root:") && contexts.secrets()[1].valid);
    assert!(contexts.warnings().iter().any(|warning| warning.contains("expired")), "{:?}", contexts.warnings());
}

#[test]
fn unchanged_inputs_keep_the_context_and_changed_ones_do_not() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/CN=client");
    let reader = Reader::default();
    let (simple, mutual) = (Arc::new(lab.trusting("root")), Arc::new(lab.presenting("root", "client")));
    let all = || [Arc::clone(&simple), Arc::clone(&mutual), Arc::clone(&simple)];
    let first = Contexts::build(&Contexts::default(), all(), [], &reader);
    let ids = |contexts: &Contexts| [&simple, &mutual].map(|settings| contexts.get(settings).unwrap().id);
    assert_ne!(ids(&first)[0], ids(&first)[1]);
    assert!(first.warnings().iter().any(|warning| warning.contains("X.509 v1")), "{:?}", first.warnings());
    let second = Contexts::build(&first, all(), [], &reader);
    assert_eq!(ids(&first), ids(&second));
    assert!(second.warnings().is_empty(), "said once: {:?}", second.warnings());
    // The client's certificate is renewed.
    lab.sign_v1("client", "root", &["-set_serial", "2"]);
    let third = Contexts::build(&second, all(), [], &reader);
    assert_eq!(ids(&second)[0], ids(&third)[0]);
    assert_ne!(ids(&second)[1], ids(&third)[1]);
    // The CA goes, then comes back: the context is a new one.
    let root = lab.read("root.crt");
    std::fs::remove_file(lab.path("root.crt")).unwrap();
    let fourth = Contexts::build(&third, all(), [], &reader);
    assert_eq!(fourth.failures().count(), 2);
    lab.write("root.crt", root);
    let fifth = Contexts::build(&fourth, all(), [], &reader);
    assert!(ids(&fifth)[0] > ids(&third)[1]);
    let files = fifth.files();
    for name in ["root.crt", "client.crt", "client.key"] {
        assert!(files.contains(&lab.path(name)), "{files:?}");
    }
    // The rows that rules share tell all of them.
    let root = fifth.secrets().iter().find(|row| row.name.starts_with("file-root:")).unwrap();
    assert_eq!(root.settings.len(), 2);
}

/// Of 10,000 rules most differ in the server's name at most.
#[test]
fn rules_that_differ_in_the_name_sent_share_a_context_and_no_others_do() {
    let lab = Lab::example();
    lab.leaf_v1("client", "root", "/CN=client");
    let named = |settings: &TlsSettings, sni: &str| TlsSettings { sni: Some(sni.to_owned()), ..settings.clone() };
    let (simple, mutual) = (lab.trusting("root"), lab.presenting("root", "client"));
    let system = super::settings();
    let mut other_names = simple.clone();
    other_names.subject_alt_names = vec![NGINX.to_owned()];
    let different = [&simple, &mutual, &system, &other_names];
    let all = different.iter().flat_map(|settings| ["a.example", "b.example"].map(|sni| named(settings, sni)));
    let contexts = Contexts::build(&Contexts::default(), all.map(Arc::new), [], &Reader::default());
    let mut ids = Vec::new();
    for settings in different {
        let [a, b] =
            ["a.example", "b.example"].map(|sni| contexts.get(&named(settings, sni)).map(|context| context.id));
        assert_eq!(a.as_ref().ok(), b.as_ref().ok());
        ids.extend(a);
    }
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert!(ids.len() >= 3 && distinct.len() == ids.len(), "{ids:?}");
}

#[test]
fn a_path_that_a_volume_covers_is_read_from_its_secret() {
    let lab = Lab::example();
    let reader = Reader::default();
    let mut material = lab.material("root.crt");
    material.path = "/etc/istio/ca/ca.crt".to_owned();
    let (namespace, name, key) = ("default".to_owned(), "certs".to_owned(), "ca.crt".to_owned());
    material.place = Place::Secret { namespace, name, key };
    let settings = super::settings_with(super::settings(), |new| new.trust = TrustSource::File(material));
    assert!(matches!(reason(&settings, &reader), TlsError::SecretMissing { .. }));
    reader.set("default", "certs", &[("other", Vec::new())]);
    assert!(reason(&settings, &reader).to_string().contains("key ca.crt"));
    reader.set("default", "certs", &[("ca.crt", lab.read("root.crt"))]);
    let contexts = contexts(&settings, &reader);
    contexts.get(&settings).unwrap();
    assert!(contexts.files().is_empty());
    assert_eq!(contexts.secrets()[0].name, "file-root:/etc/istio/ca/ca.crt");
}

#[tokio::test]
async fn a_ca_in_a_config_map_is_trusted_and_shown() {
    let lab = Lab::example();
    let server = lab.serve("server", &[]);
    let (namespace, name) = ("default".to_owned(), "ca".to_owned());
    let named = TrustSource::ConfigMap { namespace: namespace.clone(), name: name.clone() };
    let mounted = Material {
        path: "/etc/ca/root.pem".to_owned(),
        place: Place::ConfigMap { namespace, name, key: "root.pem".to_owned() },
    };
    for (trust, key, row) in [
        (named, "ca.crt", "configmap://default/ca"),
        (TrustSource::File(mounted), "root.pem", "file-root:/etc/ca/root.pem"),
    ] {
        let settings = super::settings_with(super::settings(), |new| new.trust = trust);
        let reader = Reader::default();
        assert!(matches!(reason(&settings, &reader), TlsError::ConfigMapMissing { .. }), "{row}");
        reader.set_config_map("default", "ca", &[("other", Vec::new())]);
        assert!(reason(&settings, &reader).to_string().contains(key), "{row}");
        reader.set_config_map("default", "ca", &[(key, lab.read("root.crt"))]);
        let contexts = contexts(&settings, &reader);
        connect(&contexts.get(&settings).unwrap(), &server, NGINX).await.unwrap();
        let shown = &contexts.secrets()[0];
        assert_eq!((shown.name.as_str(), shown.namespace.as_str(), shown.kind), (row, "default", "CA"));
        // Another CA: the server is a stranger's.
        lab.root("stranger", "/CN=stranger");
        reader.set_config_map("default", "ca", &[(key, lab.read("stranger.crt"))]);
        let context = self::contexts(&settings, &reader).get(&settings).unwrap();
        assert!(matches!(connect(&context, &server, NGINX).await, Err(TlsError::PeerUntrusted { .. })), "{row}");
    }
}

/// The machine has a CA bundle; whatever is in it, building with it works and is kept over a reload.
#[test]
fn the_system_s_bundle_is_read_and_kept() {
    let settings = Arc::new(super::settings());
    let first = Contexts::build(&Contexts::default(), [Arc::clone(&settings)], [], &Reader::default());
    match first.get(&settings) {
        Ok(context) => {
            let second = Contexts::build(&first, [Arc::clone(&settings)], [], &Reader::default());
            assert_eq!(second.get(&settings).unwrap().id, context.id);
            assert!(!first.files().is_empty());
        }
        Err(error) => assert!(matches!(*error, TlsError::NoSystemTrust { .. }), "{error}"),
    }
}

#[test]
fn pipes_and_folders_are_no_credentials() {
    let lab = Lab::new();
    let pipe = lab.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), lab.dir.path(), std::path::Path::new("/dev/zero")] {
        assert!(crate::tls::read_host_file(path).is_err(), "{path:?}");
    }
}

/// Its CAs vouch for the world: a rule that names it by path does not make it a private CA.
#[test]
fn the_system_s_bundle_by_its_path_stays_public() {
    let material = Material { path: "/etc/ssl/certs/ca-certificates.crt".to_owned(), place: Place::Host };
    let settings = super::settings_with(super::settings(), |new| new.trust = TrustSource::File(material));
    let inputs = crate::tls::material::read(&settings, &Reader::default(), &mut || unreachable!());
    match inputs.trust {
        Ok(trust) => assert!(matches!(trust, RawTrust::Public(_)), "{trust:?}"),
        Err(error) => assert!(matches!(error, TlsError::Unreadable { .. }), "{error}"),
    }
}

#[test]
fn one_odd_certificate_does_not_spoil_a_bundle() {
    let lab = Lab::example();
    let odd = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    lab.write("bundle.crt", [odd.as_bytes(), &lab.read("root.crt")].concat());
    build(&lab.trusting("bundle")).unwrap();
    lab.write("bundle.crt", odd);
    assert!(matches!(build(&lab.trusting("bundle")), Err(TlsError::BadCertificate { .. })));
}
