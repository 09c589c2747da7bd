//! Who a pod is upstream: certificates of Secrets and files, their kinds, their rotation, and that they never mix.

use std::time::{Duration, Instant};

use anyhow::Result;
use egret_tests::{
    Agent, CLIENT_DN, Lab, Pod,
    objects::{documents, entry, rule, rule_with},
};

const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";

fn get(pod: &Pod, query: &str) -> Result<egret_tests::Reply> {
    pod.curl(&[&format!("http://{NGINX}/?{query}")])
}

/// One rule for each of two pods: nginx sees each pod's own certificate, on connections of its own.
#[test]
fn two_pods_with_two_certificates_never_share_a_connection() -> Result<()> {
    let lab = Lab::new()?;
    let (red, blue) = (lab.pod("red")?, lab.pod("blue")?);
    lab.pki.leaf("blue", "example.com", "/CN=blue.example.com", None)?;
    let selected = |name: &str| {
        rule_with(
            NGINX,
            &format!(
                "  workloadSelector: {{matchLabels: {{app: {name}}}}}\n  trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: {name}}}}}\n"
            ),
        )
        .replace("metadata: {name: my-nginx", &format!("metadata: {{name: {name}-my-nginx"))
    };
    lab.write(
        "mesh.yaml",
        &documents(&[
            red.document("app: red"),
            blue.document("app: blue"),
            entry(NGINX, &["80 HTTP 443"]),
            selected("red"),
            selected("blue"),
            lab.pki.client_secret("red", "client")?,
            lab.pki.client_secret("blue", "blue")?,
        ]),
    )?;
    let _agent = Agent::start(&lab)?;
    for turn in 0..3 {
        assert_eq!(get(&red, &format!("red-{turn}"))?.status, 200);
        assert_eq!(get(&blue, &format!("blue-{turn}"))?.status, 200);
    }
    let (red_hit, blue_hit) = (lab.hit("?red-2")?, lab.hit("?blue-2")?);
    assert_eq!((red_hit.client_dn.as_str(), blue_hit.client_dn.as_str()), (CLIENT_DN, "CN=blue.example.com"));
    let hits = lab.hits();
    for red in hits.iter().filter(|hit| hit.request.contains("?red-")) {
        assert_eq!(red.client_dn, CLIENT_DN);
        assert!(hits.iter().filter(|hit| hit.request.contains("?blue-")).all(|blue| blue.connection != red.connection));
    }
    Ok(())
}

/// A rotated Secret counts for the next request; nothing travels on an old connection later than 2 s.
#[test]
fn a_rotated_secret_is_used_within_two_seconds() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.pki.leaf("next", "example.com", "/CN=next.example.com", None)?;
    let mutual = rule(NGINX, "mode: MUTUAL, credentialName: client-credential");
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(NGINX, &["80 HTTP 443"]), mutual]))?;
    lab.write("secret.yaml", &lab.pki.client_secret("client-credential", "client")?)?;
    let agent = Agent::start(&lab)?;
    assert_eq!(get(&pod, "before")?.status, 200);
    lab.write("secret.yaml", &lab.pki.client_secret("client-credential", "next")?)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(get(&pod, "meanwhile")?.status, 200, "no request fails over a rotation");
    }
    assert_eq!(get(&pod, "after")?.status, 200, "{}", agent.stderr());
    assert_eq!(lab.hit("?before")?.client_dn, CLIENT_DN);
    assert_eq!(lab.hit("?after")?.client_dn, "CN=next.example.com");
    Ok(())
}

/// Certificates as files on the host, for every kind and notation of key that `openssl` writes.
#[test]
fn files_with_every_kind_of_key() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let path = |name: &str| lab.dir().join(name).to_string_lossy().into_owned();
    let (ca, ca_key) = (lab.pki.crt("example.com"), lab.pki.key("example.com"));
    let (ca, ca_key) = (ca.to_string_lossy().into_owned(), ca_key.to_string_lossy().into_owned());
    let (key, crt, csr) = (path("client.key"), path("client.crt"), path("client.csr"));
    let files = format!("mode: MUTUAL, clientCertificate: {crt}, privateKey: {key}, caCertificates: {ca}");
    let kinds: &[(&str, &[&str])] = &[
        ("rsa-pkcs8", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("rsa-pkcs1", &["genrsa", "-traditional"]),
        ("ec-sec1", &["ecparam", "-genkey", "-noout", "-name", "prime256v1"]),
        ("ec-p384", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("ed25519", &["genpkey", "-algorithm", "ED25519"]),
    ];
    let make = |kind: &str, args: &[&str]| -> Result<()> {
        egret_tests::run("openssl", &[args, &["-out", &key]].concat())?;
        egret_tests::run("openssl", &["req", "-new", "-key", &key, "-subj", &format!("/CN={kind}"), "-out", &csr])?;
        let sign = ["x509", "-req", "-in", &csr, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-out", &crt];
        egret_tests::run("openssl", &sign).map(drop)
    };
    make(kinds[0].0, kinds[0].1)?;
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(NGINX, &["80 HTTP 443"]), rule(NGINX, &files)]))?;
    let agent = Agent::start(&lab)?;
    for (kind, args) in kinds {
        make(kind, args)?;
        // Key and certificate are two writes: between them they do not match, and such a pair must not stick.
        egret_tests::until(&format!("the certificate of {kind}"), Duration::from_secs(5), || {
            let reply = get(&pod, kind).ok()?;
            let seen = lab.hits().iter().any(|hit| hit.client_dn == format!("CN={kind}"));
            (reply.status == 200 && seen).then_some(())
        })
        .map_err(|error| error.context(agent.stderr()))?;
    }
    let (_, table, _) = agent.egret(&["pc", "secret", "sleep"])?;
    assert!(table.contains(&format!("file-cert:{crt}~{key}")) && table.contains(&format!("file-root:{ca}")), "{table}");
    Ok(())
}

/// `subjectAltNames` decide whom the pod talks to, `sni` is what is sent; both are checked.
#[test]
fn names_that_the_rule_demands() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let ca = lab.pki.crt("system").to_string_lossy().into_owned();
    let with = |more: &str| rule("wrong.lab.test", &format!("mode: SIMPLE, caCertificates: {ca}, {more}"));
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry("wrong.lab.test", &["80 HTTP 443"])]))?;
    lab.write("rule.yaml", &with("subjectAltNames: [other.invalid]"))?;
    let agent = Agent::start(&lab)?;
    let get = || pod.curl(&["http://wrong.lab.test/politics"]).map(|reply| reply.status);
    assert_eq!(get()?, 200, "the certificate bears the name that the rule demands");
    agent.reload(|| lab.write("rule.yaml", &with("subjectAltNames: [somebody.else]")))?;
    assert_eq!(get()?, 503);
    agent.reload(|| lab.write("rule.yaml", &with("sni: other.invalid")))?;
    assert_eq!(get()?, 200, "the SNI of the rule is the name that is checked");
    assert_eq!(lab.hits().last().map(|hit| hit.sni.clone()).as_deref(), Some("other.invalid"));
    agent.reload(|| lab.write("rule.yaml", &with("insecureSkipVerify: true")))?;
    assert_eq!(get()?, 200);
    Ok(())
}

/// TLS 1.2 only, as nginx before 1.23 by default: X.509 v1 on both sides works there too.
#[test]
fn tls_1_2_servers() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "tls12.lab.test";
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(host, &["80 HTTP 443"]), rule(host, "mode: SIMPLE")]))?;
    let agent = Agent::start(&lab)?;
    assert_eq!(pod.curl(&["http://tls12.lab.test/politics"])?.status, 200, "{}", agent.stdout());
    assert_eq!(lab.hit("/politics")?.tls, "TLSv1.2");
    Ok(())
}
