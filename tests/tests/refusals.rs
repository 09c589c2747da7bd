//! A destination with a TLS rule that cannot be honoured gets nothing: 503 with the reason for the client, and not one
//! readable byte on the wire.

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, Reply, Wire, names,
    objects::{documents, entry, port_rule, rule},
};

const MARK: &str = "must-not-be-readable";
const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";
const MUTUAL: &str = "mode: MUTUAL, credentialName: client-credential";

/// A lab with one pod, these documents, an agent and a tap; `case` sends and is judged.
fn judge(host: &str, tls: &str, secret: impl Fn(&Lab) -> Result<Option<String>>) -> Result<(Reply, String)> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let ports = ["80 HTTP 443", "443 HTTPS"];
    lab.write("mesh.yaml", &documents(&[pod.document("app: sleep"), entry(host, &ports), port_rule(host, 80, tls)]))?;
    if let Some(text) = secret(&lab)? {
        lab.write("secret.yaml", &text)?;
    }
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    let reply = send(&pod, host)?;
    let line = agent.log_line(MARK)?;
    unread(&mut wire, &pod)?;
    assert!(lab.hits().iter().all(|hit| !hit.request.contains(MARK)), "nginx got the request: {:?}", lab.hits());
    Ok((reply, line))
}

fn send(pod: &Pod, host: &str) -> Result<Reply> {
    pod.curl(&["-H", &format!("x-secret: {MARK}"), &format!("http://{host}/{MARK}")])
}

fn unread(wire: &mut Wire, pod: &Pod) -> Result<()> {
    assert!(!wire.saw(&pod.netns, names::ROUTER.parse()?, MARK)?, "plain text left the pod");
    Ok(())
}

#[test]
fn a_missing_secret() -> Result<()> {
    let (reply, _) = judge(NGINX, MUTUAL, |_| Ok(None))?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.contains("client-credential"), "the reason names the secret: {reply:?}");
    Ok(())
}

#[test]
fn a_mutual_secret_without_authority() -> Result<()> {
    let (reply, _) = judge(NGINX, MUTUAL, |lab| {
        let entries = [("tls.key", lab.pki.key("client")), ("tls.crt", lab.pki.crt("client"))];
        lab.pki.secret("client-credential", &entries).map(Some)
    })?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.contains("client-credential"), "{reply:?}");
    Ok(())
}

#[test]
fn a_key_that_does_not_match_its_certificate() -> Result<()> {
    let (reply, _) = judge(NGINX, MUTUAL, |lab| {
        let pki = &lab.pki;
        let entries =
            [("tls.key", pki.key("my-nginx")), ("tls.crt", pki.crt("client")), ("ca.crt", pki.crt("example.com"))];
        pki.secret("client-credential", &entries).map(Some)
    })?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.contains("client-credential"), "{reply:?}");
    Ok(())
}

#[test]
fn a_missing_authority_file() -> Result<()> {
    let (reply, _) = judge(NGINX, "mode: SIMPLE, caCertificates: /nonexistent/ca.crt", |_| Ok(None))?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.contains("/nonexistent/ca.crt"), "{reply:?}");
    Ok(())
}

/// Verification failures read as in Envoy, and their line bears the flag.
#[test]
fn a_server_with_another_name() -> Result<()> {
    let (reply, line) = judge("wrong.lab.test", "mode: SIMPLE", |_| Ok(None))?;
    tls_error(&reply, &line);
    Ok(())
}

#[test]
fn an_expired_server_certificate() -> Result<()> {
    let (reply, line) = judge("expired.lab.test", "mode: SIMPLE", |_| Ok(None))?;
    tls_error(&reply, &line);
    Ok(())
}

#[test]
fn a_server_of_an_unknown_authority() -> Result<()> {
    let (reply, line) = judge("untrusted.lab.test", "mode: SIMPLE", |_| Ok(None))?;
    tls_error(&reply, &line);
    Ok(())
}

/// A server that speaks no TLS at all.
#[test]
fn a_server_without_tls() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "www.lab.test";
    lab.write(
        "mesh.yaml",
        &documents(&[pod.document(""), entry(host, &["80 HTTP 8080"]), rule(host, "mode: SIMPLE")]),
    )?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    let reply = send(&pod, host)?;
    tls_error(&reply, &agent.log_line(MARK)?);
    unread(&mut wire, &pod)
}

fn tls_error(reply: &Reply, line: &str) {
    let start = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, \
                 transport failure reason: TLS_error:";
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.starts_with(start), "{reply:?}");
    assert!(line.contains(" 503 UF") || line.contains(" 503 URX"), "{line}");
    assert!(line.contains("TLS_error"), "{line}");
}

/// The ServiceEntry goes, the DestinationRule stays: its host is refused, on every port of it, others pass.
#[test]
fn a_rule_without_its_service() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "edition.cnn.com";
    lab.write("pod.yaml", &pod.document("app: sleep"))?;
    lab.write("entry.yaml", &entry(host, &["80 HTTP 443"]))?;
    lab.write("rule.yaml", &rule(host, "mode: SIMPLE"))?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200);
    agent.reload(|| lab.remove("entry.yaml"))?;
    let reply = send(&pod, host)?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.contains("edition.cnn.com"), "{reply:?}");
    let upper = pod.curl(&["-H", "Host: EDITION.CNN.COM.:80", &format!("http://{}/{MARK}", names::WEB)])?;
    assert_eq!(upper.status, 503, "{upper:?}");
    unread(&mut wire, &pod)?;
    assert_eq!(pod.curl(&["http://www.lab.test/"])?.status, 301, "what no rule names passes");
    Ok(())
}

/// Nothing of the agent runs: the kernel's half refuses by itself.
#[test]
fn a_dead_agent() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "edition.cnn.com";
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(host, &["80 HTTP 443"]), rule(host, "mode: SIMPLE")]))?;
    let mut agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    agent.kill9()?;
    let reply = send(&pod, host)?;
    assert_eq!(reply.exit, 7, "connection refused: {reply:?}");
    let six = pod.curl(&[&format!("http://[{}]/{MARK}", names::WEB6)])?;
    assert_eq!(six.exit, 7, "{six:?}");
    unread(&mut wire, &pod)?;
    agent.restart()?;
    assert_eq!(send(&pod, host)?.status, 404, "service is back: nginx has no such page");
    Ok(())
}
