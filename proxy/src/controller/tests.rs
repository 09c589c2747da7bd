//! Which requests are granted.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::CertificateSigningRequestSpec,
        core::v1::{Pod, PodSpec, PodStatus, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use rustls_pki_types::UnixTime;

use super::{authority, judge};
use crate::identity::{
    SIGNER, USAGES,
    authority::{Authority, new_root},
    leaf::verify,
    tests::lab::{self, PlugIn, openssl},
};

const SLEEP: &str = "spiffe://cluster.local/ns/shop/sa/sleep";

/// A request as openssl makes it: `key` as its `-newkey` takes it, `extensions` as lines of its configuration.
fn pkcs10(folder: &Path, key: &[&str], extensions: &str) -> Vec<u8> {
    let conf = format!("[req]\ndistinguished_name=dn\nreq_extensions=ext\nprompt=no\n[dn]\n[ext]\n{extensions}\n");
    std::fs::write(folder.join("request.conf"), conf).unwrap();
    let (mut arguments, rest) =
        (vec!["req", "-new", "-nodes", "-newkey"], ["-keyout", "key.pem", "-out", "request.pem"]);
    arguments.extend(key);
    arguments.extend(rest);
    arguments.extend(["-config", "request.conf", "-subj", "/"]);
    openssl(folder, &arguments);
    std::fs::read(folder.join("request.pem")).unwrap()
}

const P256: [&str; 3] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn uri(name: &str) -> String {
    format!("subjectAltName=URI:{name}")
}

/// From the agent on node `one`.
fn spec(request: Vec<u8>) -> CertificateSigningRequestSpec {
    let extra = [("authentication.kubernetes.io/node-name".to_owned(), vec!["one".to_owned()])];
    CertificateSigningRequestSpec {
        request: ByteString(request),
        signer_name: SIGNER.to_owned(),
        usages: Some(USAGES.map(str::to_owned).to_vec()),
        username: Some("system:serviceaccount:egret-system:egret-agent".to_owned()),
        extra: Some(BTreeMap::from(extra)),
        ..CertificateSigningRequestSpec::default()
    }
}

fn read(spec: &CertificateSigningRequestSpec) -> Result<judge::Asked, judge::Denial> {
    judge::read(spec, "egret-system", "cluster.local")
}

fn pod(service_account: Option<&str>, node: &str) -> Pod {
    Pod {
        metadata: ObjectMeta { namespace: Some("shop".to_owned()), ..ObjectMeta::default() },
        spec: Some(PodSpec {
            service_account_name: service_account.map(str::to_owned),
            node_name: Some(node.to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() }),
    }
}

#[test]
fn what_an_agent_asks_for_is_read_whatever_key_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(new_root("a test".to_owned(), UnixTime::now()).unwrap(), UnixTime::now()).unwrap();
    for key in [&P256[..], &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"], &["rsa:2048"]] {
        let asked = read(&spec(pkcs10(folder.path(), key, &uri(SLEEP)))).unwrap();
        assert_eq!((asked.namespace.as_str(), asked.service_account.as_str()), ("shop", "sleep"));
        assert_eq!((asked.identity.as_str(), &asked.place), (SLEEP, &judge::Place::Node("one".to_owned())));
        let now = UnixTime::now();
        let chain = authority.certify(SLEEP, &asked.key, asked.lifetime, now).unwrap();
        verify(&chain, &authority.roots, now).unwrap();
        // It is for the key of the request, by openssl's account.
        std::fs::write(folder.path().join("leaf.pem"), lab::pem(&chain)).unwrap();
        let public = openssl(folder.path(), &["x509", "-in", "leaf.pem", "-noout", "-pubkey"]);
        assert_eq!(public, openssl(folder.path(), &["pkey", "-in", "key.pem", "-pubout"]));
    }
}

#[test]
fn the_agents_own_requests_are_granted() {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = crate::identity::request::pkcs10(SLEEP, &key).unwrap();
    assert_eq!(read(&spec(request.into_bytes())).unwrap().identity, SLEEP);
}

#[test]
fn a_certificate_lasts_a_day_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = spec(pkcs10(folder.path(), &P256, &uri(SLEEP)));
    for (asked, given) in [(None, 86_400), (Some(600), 600), (Some(86_401), 86_400), (Some(-1), 86_400)] {
        spec.expiration_seconds = asked;
        assert_eq!(read(&spec).unwrap().lifetime.as_secs(), given, "{asked:?}");
    }
}

#[test]
fn requests_that_are_denied() {
    let folder = tempfile::tempdir().unwrap();
    let of = |key: &[&str], extensions: &str| spec(pkcs10(folder.path(), key, extensions));
    let named = |name: &str| of(&P256, &uri(name));
    let good = named(SLEEP);
    let asked_by =
        |username: &str| CertificateSigningRequestSpec { username: Some(username.to_owned()), ..good.clone() };
    let from = |extra: &[(&str, &[&str])]| {
        let key = |name: &str| format!("authentication.kubernetes.io/{name}");
        let values = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let extra = extra.iter().map(|(name, all)| (key(name), values(all))).collect();
        CertificateSigningRequestSpec { extra: Some(extra), ..good.clone() }
    };
    let usages = |usages: &[&str]| CertificateSigningRequestSpec {
        usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
        ..good.clone()
    };
    // The name changed after the request was signed.
    let text = String::from_utf8(good.request.0.clone()).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with("--")).collect();
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD;
    let mut der = base64.decode(body).unwrap();
    let at = der.windows(5).position(|window| window == b"sleep").unwrap();
    der[at] = b'S' + 32 - 1;
    let forged =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", base64.encode(der));

    let cases = [
        ("another user", asked_by("system:serviceaccount:shop:sleep"), "NotAnAgent"),
        ("agents of another namespace", asked_by("system:serviceaccount:shop:egret-agent"), "NotAnAgent"),
        ("nobody", CertificateSigningRequestSpec { username: None, ..good.clone() }, "NotAnAgent"),
        ("no node", from(&[]), "NodeUnknown"),
        ("two nodes", from(&[("node-name", &["one", "two"])]), "NodeUnknown"),
        ("an empty node", from(&[("node-name", &[""])]), "NodeUnknown"),
        ("no usages", usages(&[]), "WrongUsages"),
        ("one usage less", usages(&USAGES[..3]), "WrongUsages"),
        ("one usage more", usages(&[&USAGES[..], &["cert sign"]].concat()), "WrongUsages"),
        ("no request", spec(b"-----BEGIN".to_vec()), "MalformedRequest"),
        ("a changed request", spec(forged.into_bytes()), "MalformedRequest"),
        ("a long request", spec([&good.request.0[..], &[b'\n'; 20_000]].concat()), "MalformedRequest"),
        ("an unknown extension", of(&P256, &format!("{}\ntlsfeature=status_request", uri(SLEEP))), "MalformedRequest"),
        ("two names", of(&P256, &format!("{},URI:{SLEEP}2", uri(SLEEP))), "WrongName"),
        ("a DNS name besides", of(&P256, &format!("{},DNS:example.com", uri(SLEEP))), "WrongName"),
        ("an address besides", of(&P256, &format!("{},IP:10.0.0.1", uri(SLEEP))), "WrongName"),
        ("a DNS name", of(&P256, "subjectAltName=DNS:example.com"), "WrongName"),
        ("an email address", of(&P256, "subjectAltName=email:a@example.com"), "WrongName"),
        ("no name", of(&P256, "basicConstraints=CA:false"), "WrongName"),
        ("another trust domain", named("spiffe://other.local/ns/shop/sa/sleep"), "WrongName"),
        ("a longer trust domain", named("spiffe://cluster.localhost/ns/shop/sa/sleep"), "WrongName"),
        ("no service account", named("spiffe://cluster.local/ns/shop"), "WrongName"),
        ("more of a path", named("spiffe://cluster.local/ns/shop/sa/sleep/x"), "WrongName"),
        ("an escaped path", named("spiffe://cluster.local/ns/shop/sa/%73leep"), "WrongName"),
        ("an empty namespace", named("spiffe://cluster.local/ns//sa/sleep"), "WrongName"),
        ("a CA", of(&P256, &format!("{}\nbasicConstraints=CA:true", uri(SLEEP))), "NoCa"),
        ("a signer", of(&P256, &format!("{}\nkeyUsage=keyCertSign", uri(SLEEP))), "NoCa"),
        ("a short RSA key", of(&["rsa:1024"], &uri(SLEEP)), "WeakKey"),
        ("P-521", of(&["ec", "-pkeyopt", "ec_paramgen_curve:P-521"], &uri(SLEEP)), "WeakKey"),
        ("Ed25519", of(&["ed25519"], &uri(SLEEP)), "WeakKey"),
    ];
    assert!(read(&good).is_ok());
    for (what, spec, reason) in cases {
        match read(&spec) {
            Ok(_) => panic!("{what}: granted"),
            Err(denial) => assert_eq!(denial.reason, reason, "{what}: {}", denial.message),
        }
    }
}

#[test]
fn only_pods_that_run_on_the_agents_node_count() {
    let folder = tempfile::tempdir().unwrap();
    let asked = read(&spec(pkcs10(folder.path(), &P256, &uri(SLEEP)))).unwrap();
    let with_phase = |phase: &str| {
        let mut pod = pod(Some("sleep"), "one");
        pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
        pod
    };
    let granted = [pod(Some("sleep"), "one"), with_phase("Running")];
    for pod in granted {
        // Others beside it do not matter.
        let pods = [with_phase("Succeeded"), pod];
        assert_eq!(judge::check_pods(&pods, &asked, "one"), Ok(()));
    }
    let mut on_host = pod(Some("sleep"), "one");
    on_host.spec.as_mut().unwrap().host_network = Some(true);
    let mut elsewhere = pod(Some("sleep"), "one");
    elsewhere.metadata.namespace = Some("bank".to_owned());
    let mut nowhere = pod(Some("sleep"), "one");
    nowhere.spec.as_mut().unwrap().node_name = None;
    let cases = [
        ("no pod", Vec::new()),
        ("on another node", vec![pod(Some("sleep"), "two")]),
        ("on no node yet", vec![nowhere]),
        ("of another account", vec![pod(Some("cart"), "one"), pod(None, "one")]),
        ("of another namespace", vec![elsewhere]),
        ("finished", vec![with_phase("Succeeded"), with_phase("Failed")]),
        ("in the host's network", vec![on_host]),
    ];
    for (what, pods) in cases {
        let denial = judge::check_pods(&pods, &asked, "one").expect_err(what);
        assert_eq!(denial.reason, "NoSuchPod");
        assert!(denial.message.contains("shop/sleep") && denial.message.contains("node one"), "{}", denial.message);
    }
    let default = read(&spec(pkcs10(folder.path(), &P256, &uri("spiffe://cluster.local/ns/shop/sa/default"))));
    assert_eq!(judge::check_pods(&[pod(None, "one")], &default.unwrap(), "one"), Ok(()));
}

#[test]
fn where_a_token_does_not_tell_the_node_the_agents_pod_does() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = spec(pkcs10(folder.path(), &P256, &uri(SLEEP)));
    let key = |name: &str| format!("authentication.kubernetes.io/{name}");
    let told = [(key("pod-name"), vec!["agent-x".to_owned()]), (key("pod-uid"), vec!["7".to_owned()])];
    spec.extra = Some(BTreeMap::from(told));
    let place = read(&spec).unwrap().place;
    assert_eq!(place, judge::Place::AgentPod { name: "agent-x".to_owned(), uid: Some("7".to_owned()) });
    let mut agent = pod(Some("egret-agent"), "one");
    agent.metadata.uid = Some("7".to_owned());
    assert_eq!(judge::node_of(Some(&agent), "agent-x", Some("7")), Ok("one".to_owned()));
    // Another one has its name by now.
    assert_eq!(judge::node_of(Some(&agent), "agent-x", Some("8")).unwrap_err().reason, "NodeUnknown");
    assert_eq!(judge::node_of(None, "agent-x", None).unwrap_err().reason, "NodeUnknown");
}

#[test]
fn both_forms_of_the_ca_s_secret_are_read() {
    let plug_in = PlugIn::new("one", "730");
    let secret = |parts: &[(&str, &str)]| Secret {
        data: Some(parts.iter().map(|(name, file)| ((*name).to_owned(), ByteString(plug_in.read(file)))).collect()),
        ..Secret::default()
    };
    let istio = ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"].map(|name| (name, name));
    let tls = [("tls.crt", "cert-chain.pem"), ("tls.key", "ca-key.pem"), ("ca.crt", "root-cert.pem")];
    for parts in [&istio[..], &tls] {
        let authority =
            authority::pem(&secret(parts), "a test".to_owned()).and_then(|pem| Authority::new(pem, UnixTime::now()));
        assert_eq!(authority.unwrap().roots, [plug_in.root()]);
    }
    for missing in 0..3 {
        let less: Vec<_> = tls.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, part)| *part).collect();
        assert!(authority::pem(&secret(&less), "a test".to_owned()).is_err());
    }
}
