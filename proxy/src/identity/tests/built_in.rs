//! The CA that is made once and kept.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::{lab::openssl, *};

const SLEEP: &str = "spiffe://cluster.local/ns/default/sa/sleep";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn root_and_leaf_are_what_openssl_calls_in_order() {
    let mesh = Mesh::new(&[SLEEP]);
    let leaf = mesh.identities.leaf(SLEEP).unwrap();
    let folder = mesh.folder.path();
    fs::write(folder.join("leaf.pem"), lab::pem(&leaf.key.cert)).unwrap();
    let verified =
        openssl(folder, &["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "ca/ca-cert.pem", "leaf.pem"]);
    assert_eq!(verified.trim(), "leaf.pem: OK");
    openssl(folder, &["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca/ca-cert.pem", "leaf.pem"]);
    let text = openssl(folder, &["x509", "-in", "leaf.pem", "-noout", "-text"]);
    for part in [
        "Subject: \n",
        "X509v3 Subject Alternative Name: critical\n                URI:spiffe://cluster.local/ns/default/sa/sleep\n",
        "X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment\n",
        "TLS Web Server Authentication, TLS Web Client Authentication\n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE\n",
        "ASN1 OID: prime256v1",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let text = openssl(folder, &["x509", "-in", "ca/ca-cert.pem", "-noout", "-text"]);
    assert!(text.contains("CA:TRUE, pathlen:0") && text.contains("Certificate Sign, CRL Sign"), "{text}");
    let lifetime = leaf.summary.not_after - leaf.summary.not_before;
    assert_eq!(lifetime, i64::try_from((LEAF_LIFETIME + CLOCK_SKEW).as_secs()).unwrap());
}

#[test]
fn only_the_owner_reads_it_and_a_restart_finds_it_again() {
    let mut mesh = Mesh::new(&[SLEEP]);
    let folder = mesh.folder.path().to_owned();
    assert_eq!(mode(&folder.join("ca")), 0o700);
    for file in ["ca/ca-cert.pem", "ca/ca-key.pem", "trusted-roots.json"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
    assert!(!folder.join("ca.new").exists());
    let (roots, serial) = (mesh.roots(), mesh.identities.leaf(SLEEP).unwrap().summary.serial.clone());
    mesh.restart(None);
    assert_eq!(mesh.roots(), roots);
    assert_eq!(mesh.complaints(), "");
    // Its key was in memory only.
    assert_ne!(mesh.identities.leaf(SLEEP).unwrap().summary.serial, serial);
}

#[test]
fn without_pods_no_ca_is_made() {
    let mesh = Mesh::new(&[]);
    assert!(!mesh.folder.path().join("ca").exists());
    assert!(mesh.identities.trust().is_err());
}

#[test]
fn damage_is_told_and_nothing_is_made_anew() {
    let mut mesh = Mesh::new(&[SLEEP]);
    let ca = mesh.folder.path().join("ca");
    let (key, certificate) = (fs::read(ca.join("ca-key.pem")).unwrap(), fs::read(ca.join("ca-cert.pem")).unwrap());
    let trust = mesh.identities.trust().unwrap();

    // In a running agent the CA that was read goes on, and the loss is told.
    fs::remove_file(ca.join("ca-key.pem")).unwrap();
    assert!(mesh.identities.renew());
    assert!(mesh.complaints().contains("lacks ca-key.pem"), "{}", mesh.complaints());
    assert_eq!(mesh.identities.trust().unwrap(), trust);

    let mut refused = |text: &str| {
        mesh.restart(None);
        let why = mesh.identities.trust().unwrap_err().to_string();
        assert!(why.contains(text), "{why}");
        assert!(mesh.identities.leaf(SLEEP).is_none());
    };
    refused("lacks ca-key.pem: put it there, or remove the folder");
    // Another CA's key.
    let other = Mesh::new(&[SLEEP]);
    fs::copy(other.folder.path().join("ca/ca-key.pem"), ca.join("ca-key.pem")).unwrap();
    refused("does not belong to the mesh CA's certificate");
    fs::write(ca.join("ca-key.pem"), &key[..key.len() / 2]).unwrap();
    refused("private key");
    fs::write(ca.join("ca-key.pem"), &key).unwrap();
    fs::write(ca.join("ca-cert.pem"), &certificate[..certificate.len() / 2]).unwrap();
    refused("ca-cert.pem");
    fs::write(ca.join("ca-cert.pem"), &certificate).unwrap();
    fs::set_permissions(ca.join("ca-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    refused("can be read by others");
    assert_eq!(fs::read(ca.join("ca-key.pem")).unwrap(), key);
    fs::set_permissions(ca.join("ca-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    mesh.restart(None);
    assert_eq!(*mesh.identities.trust().unwrap(), *trust);
}

#[test]
fn a_crash_while_it_was_made_leaves_no_half_of_it() {
    let mut mesh = Mesh::new(&[]);
    let half = mesh.folder.path().join("ca.new");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("ca-key.pem"), "half").unwrap();
    mesh.names.insert(SLEEP.into());
    mesh.restart(None);
    assert_eq!(mesh.complaints(), "");
    assert!(mesh.identities.leaf(SLEEP).is_some() && !half.exists());
}

#[test]
fn leaves_are_renewed_at_half_their_life_each_at_its_own_time() {
    let names: Vec<_> = (0..20).map(|n| format!("spiffe://cluster.local/ns/default/sa/{n}")).collect();
    let mesh = Mesh::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let serials =
        || mesh.identities.leaves().into_iter().map(|(_, leaf)| leaf.summary.serial.clone()).collect::<Vec<_>>();
    let first = serials();
    mesh.clock.advance(LEAF_RENEW_AT - LEAF_RENEW_JITTER - Duration::from_secs(60));
    assert!(!mesh.identities.renew());
    assert_eq!(serials(), first);
    // In the hour before half-life they go one after the other.
    mesh.clock.advance(LEAF_RENEW_JITTER / 2);
    assert!(!mesh.identities.renew(), "a renewal is no new configuration");
    let kept = serials().iter().zip(&first).filter(|(new, old)| new == old).count();
    assert!((1..20).contains(&kept), "{kept} of 20 not renewed yet");
    mesh.clock.advance(LEAF_RENEW_JITTER);
    mesh.identities.renew();
    assert!(serials().iter().zip(&first).all(|(new, old)| new != old));
}

#[test]
fn identities_come_and_go_with_the_pods() {
    let mut mesh = Mesh::new(&[SLEEP]);
    let serial = mesh.identities.leaf(SLEEP).unwrap().summary.serial.clone();
    let other = "spiffe://cluster.local/ns/default/sa/other";
    mesh.names.insert(other.into());
    mesh.update(None);
    assert_eq!(mesh.identities.leaf(SLEEP).unwrap().summary.serial, serial);
    assert!(mesh.identities.leaf(other).is_some());
    mesh.names.remove(SLEEP);
    mesh.update(None);
    assert!(mesh.identities.leaf(SLEEP).is_none());
}
