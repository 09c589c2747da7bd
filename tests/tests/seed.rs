//! Istio's task "Egress TLS Origination", step by step, with what its reader is told to see.

use anyhow::Result;
use egret_tests::{
    Agent, CLIENT_DN, Lab,
    objects::{documents, entry, port_rule, rule_with},
};

const CNN: &str = "edition.cnn.com";
const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";

fn ca(lab: &Lab) -> String {
    lab.pki.crt("system").to_string_lossy().into_owned()
}

/// A ServiceEntry alone changes nothing for the application: a redirect, then its own HTTPS.
#[test]
fn a_service_entry_alone_redirects_and_then_passes_https_through() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("mesh.yaml", &documents(&[pod.document("app: sleep"), entry(CNN, &["80 HTTP", "443 HTTPS"])]))?;
    let agent = Agent::start(&lab)?;
    let reply = pod.curl(&["-L", "-i", "--cacert", &ca(&lab), "http://edition.cnn.com/politics"])?;
    assert_eq!((reply.status, reply.version.as_str(), reply.redirects), (200, "2", 1), "{reply:?}");
    assert!(reply.body.contains("HTTP/1.1 301 Moved Permanently"), "{reply:?}");
    assert!(reply.body.contains("location: https://edition.cnn.com/politics"), "{reply:?}");
    let plain = agent.log_line("GET /politics HTTP/1.1")?;
    assert!(plain.contains(" 301 - via_upstream ") && plain.contains("outbound|80||edition.cnn.com"), "{plain}");
    let tls = agent.log_line("outbound|443||edition.cnn.com")?;
    assert!(tls.contains("\"- - -\" 0 - ") && tls.contains(" edition.cnn.com "), "{tls}");
    assert!(tls.contains("default/sleep"), "{tls}");
    Ok(())
}

/// `targetPort: 443` and mode SIMPLE: one `HTTP/1.1 200`, no redirect, and the application's HTTPS as before.
#[test]
fn simple_makes_plain_http_verified_tls() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let rule = port_rule(CNN, 80, "mode: SIMPLE");
    lab.write("mesh.yaml", &documents(&[pod.document("app: sleep"), entry(CNN, &["80 HTTP 443", "443 HTTPS"]), rule]))?;
    let agent = Agent::start(&lab)?;
    let reply = pod.curl(&["-L", "-i", "http://edition.cnn.com/politics?secret-marker"])?;
    assert_eq!((reply.status, reply.version.as_str(), reply.redirects), (200, "1.1", 0), "{reply:?}");
    assert!(reply.body.ends_with("politics page\n"), "{reply:?}");
    let hit = lab.hit("secret-marker")?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str(), hit.host.as_str()), ("TLSv1.3", CNN, CNN));
    assert_eq!(hit.from, pod.v4.to_string(), "the source address stays the pod's own");
    let line = agent.log_line("secret-marker")?;
    assert!(line.contains("\"198.51.100.10:443\" outbound|80||edition.cnn.com"), "{line}");
    let https = pod.curl(&["--cacert", &ca(&lab), "https://edition.cnn.com/politics"])?;
    assert_eq!((https.status, https.version.as_str()), (200, "2"), "{https:?}");
    assert!(agent.metric("istio_requests_total", &["response_code=\"200\""])? >= 1.0);
    Ok(())
}

/// The applied form of the documentation's last part: Secret, ServiceEntry, DestinationRule with a workloadSelector.
#[test]
fn mutual_presents_the_certificate_of_the_secret() -> Result<()> {
    let lab = Lab::new()?;
    let (pod, other) = (lab.pod("sleep")?, lab.pod("other")?);
    let rule = rule_with(
        NGINX,
        &format!(
            "  workloadSelector: {{matchLabels: {{app: sleep}}}}\n  trafficPolicy:\n    loadBalancer: {{simple: ROUND_ROBIN}}\n    \
             portLevelSettings:\n    - port: {{number: 80}}\n      tls: {{mode: MUTUAL, credentialName: client-credential, sni: {NGINX}}}\n"
        ),
    );
    let entry = entry(NGINX, &["80 HTTP 443", "443 HTTPS"]);
    lab.write("mesh.yaml", &documents(&[pod.document("app: sleep"), other.document("app: other"), entry, rule]))?;
    lab.write("secret.yaml", &lab.pki.client_secret("client-credential", "client")?)?;
    let agent = Agent::start(&lab)?;

    let reply = pod.curl(&["-i", &format!("http://{NGINX}/?mine")])?;
    assert_eq!((reply.status, reply.version.as_str()), (200, "1.1"), "{reply:?}");
    assert!(reply.body.contains("Welcome to nginx!"), "{reply:?}");
    let hit = lab.hit("?mine")?;
    assert_eq!((hit.client_dn.as_str(), hit.sni.as_str()), (CLIENT_DN, NGINX));

    let refused = other.curl(&[&format!("http://{NGINX}/?theirs")])?;
    assert_ne!(refused.status, 200, "{refused:?}");
    assert!(lab.hits().iter().all(|hit| hit.client_dn.is_empty() || hit.from == pod.v4.to_string()));

    let (code, table, _) = agent.egret(&["proxy-config", "secret", "sleep"])?;
    assert_eq!(code, 0);
    let mut lines = table.lines();
    let head = "RESOURCE NAME     TYPE     STATUS     VALID CERT     SERIAL NUMBER     NOT AFTER     NOT BEFORE";
    let squeeze = |line: &str| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect::<Vec<_>>().join("|");
    assert_eq!(lines.next().map(squeeze), Some(squeeze(head)), "{table}");
    let rows: Vec<_> = lines.map(squeeze).collect();
    assert!(
        rows.iter().any(|row| row.starts_with("kubernetes://client-credential|Cert Chain|ACTIVE|true|")),
        "{table}"
    );
    // The documentation's authority is made by `openssl req -x509`, whose basicConstraints say CA.
    assert!(rows.iter().any(|row| row.starts_with("kubernetes://client-credential-cacert|CA|ACTIVE|true|")), "{table}");
    let (_, foreign, _) = agent.egret(&["pc", "secret", "other"])?;
    assert!(!foreign.contains("client-credential"), "{foreign}");
    Ok(())
}

/// What the repository ships as an example works as it is.
#[test]
fn the_shipped_examples_work() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples");
    for (folder, file) in [
        ("egress-tls-origination", "pod.yaml"),
        ("egress-tls-origination", "simple.yaml"),
        ("egress-mutual-tls", "mutual.yaml"),
    ] {
        let text = std::fs::read_to_string(examples.join(folder).join(file))?;
        lab.write(file, &text.replace("netns: sleep", &format!("netns: {}", pod.netns.name())))?;
    }
    lab.write("secret.yaml", &lab.pki.client_secret("client-credential", "client")?)?;
    let (code, _, found) = egret_tests::egret(&["check", &lab.config_dir().to_string_lossy()])?;
    assert_eq!(code, 0, "{found}");
    let _agent = Agent::start(&lab)?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200);
    assert_eq!(pod.curl(&[&format!("http://{NGINX}/")])?.status, 200);
    Ok(())
}
