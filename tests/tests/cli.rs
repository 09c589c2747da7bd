//! What an operator types: check, explain, status, proxy-config, the admin endpoints.

use anyhow::Result;
use egret_tests::{
    Agent, Lab, egret,
    objects::{documents, entry, rule},
};

const CNN: &str = "edition.cnn.com";

fn check(lab: &Lab, text: &str) -> Result<(i32, String)> {
    lab.write("mesh.yaml", text)?;
    let (code, out, err) = egret(&["check", &lab.config_dir().join("mesh.yaml").to_string_lossy()])?;
    Ok((code, out + &err))
}

/// `file:line:column: error|warning: …`, and the exit code tells errors from warnings.
#[test]
fn check_finds_the_line() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let good = documents(&[pod.document(""), entry(CNN, &["80 HTTP 443"]), rule(CNN, "mode: SIMPLE")]);
    let (code, said) = check(&lab, &good)?;
    assert_eq!(code, 0, "{said}");
    let bad = good.replace("mode: SIMPLE", "mode: SIMPEL");
    let line = bad.lines().position(|line| line.contains("SIMPEL")).unwrap_or(0) + 1;
    let (code, said) = check(&lab, &bad)?;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("mesh.yaml:{line}:")) && said.contains(" error: "), "{said}");
    assert!(said.contains("SIMPEL"), "{said}");
    let (code, said) = check(&lab, &good.replace("mode: SIMPLE", "mode: SIMPLE, nonsense: 1"))?;
    assert!(code == 0 && said.contains(" warning: ") && said.contains("nonsense"), "{code}: {said}");
    let missing = good.replace("mode: SIMPLE", "mode: MUTUAL, credentialName: nobody");
    let (code, said) = check(&lab, &missing)?;
    assert!(code == 1 && said.contains("nobody"), "a rule that cannot be honoured is an error: {code}: {said}");
    let (code, said) = check(&lab, "a: [")?;
    assert!(code == 1 && said.contains("mesh.yaml:"), "{code}: {said}");
    Ok(())
}

/// TLS around the application's own TLS is most likely a mistake.
#[test]
fn check_warns_of_double_tls() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let text = documents(&[pod.document(""), entry(CNN, &["443 HTTPS"]), rule(CNN, "mode: SIMPLE")]);
    let (code, said) = check(&lab, &text)?;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(" warning: ") && said.contains("443"), "{said}");
    Ok(())
}

/// `explain` says what a request would get, `status` what the agent does, the tables what it knows.
#[test]
fn tables_and_explanations() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let mesh = [pod.document("app: sleep"), entry(CNN, &["80 HTTP 443", "443 HTTPS"]), rule(CNN, "mode: SIMPLE")];
    lab.write("mesh.yaml", &documents(&mesh))?;
    let agent = Agent::start(&lab)?;
    assert_eq!(pod.curl(&["http://edition.cnn.com/politics"])?.status, 200);
    let show = |args: &[&str]| -> Result<String> {
        let (code, out, err) = agent.egret(args)?;
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        Ok(out)
    };
    let explained = show(&["explain", "sleep", "http://edition.cnn.com/politics"])?;
    for part in ["outbound|80||edition.cnn.com", "SIMPLE", "198.51.100.10:443", CNN] {
        assert!(explained.contains(part), "{part} in {explained}");
    }
    let status = show(&["status"])?;
    assert!(status.contains("sleep"), "{status}");
    let clusters = show(&["pc", "cluster", "sleep"])?;
    assert!(clusters.contains("SERVICE FQDN") && clusters.contains("DESTINATION RULE"), "{clusters}");
    assert!(
        clusters.lines().any(|line| line.starts_with(CNN) && line.contains("edition-cnn-com.default")),
        "{clusters}"
    );
    let endpoints = show(&["proxy-config", "endpoint", "sleep"])?;
    assert!(
        endpoints.lines().any(|line| line.starts_with("198.51.100.10:443") && line.contains("HEALTHY")),
        "{endpoints}"
    );
    assert!(show(&["pc", "listener", "sleep"])?.starts_with("ADDRESSES"));
    let json: serde_json::Value = serde_json::from_str(&show(&["pc", "cluster", "sleep", "-o", "json"])?)?;
    assert!(json.is_array(), "{json}");
    let (code, _, err) = agent.egret(&["pc", "cluster", "nobody"])?;
    assert!(code != 0 && err.contains("nobody"), "{err}");
    Ok(())
}

/// The admin endpoints, and that no private key comes out of any.
#[test]
fn admin_endpoints() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "my-nginx.mesh-external.svc.cluster.local";
    let mutual = rule(host, "mode: MUTUAL, credentialName: client-credential");
    let secret = lab.pki.client_secret("client-credential", "client")?;
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(host, &["80 HTTP 443"]), mutual, secret]))?;
    let agent = Agent::start(&lab)?;
    assert_eq!(pod.curl(&[&format!("http://{host}/")])?.status, 200);
    let key = std::fs::read_to_string(lab.pki.key("client"))?;
    let middle = key.lines().nth(1).unwrap_or_default().to_owned();
    for path in ["/healthz/ready", "/healthz/live", "/metrics", "/stats/prometheus", "/config_dump", "/certs"] {
        let (status, body) = agent.admin("GET", path)?;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(!body.contains("PRIVATE KEY") && !body.contains(&middle), "{path} gives a key away");
    }
    assert!(agent.metric("istio_requests_total", &["destination_service=\"my-nginx.mesh-external"])? >= 1.0);
    assert_eq!(agent.admin("POST", "/logging?level=debug")?.0, 200);
    assert_eq!(agent.admin("GET", "/nothing")?.0, 404);
    assert!(!agent.stderr().contains(&middle), "nor does the log");
    Ok(())
}

/// Help and completion for a stranger.
#[test]
fn help_and_completion() -> Result<()> {
    let (code, help, _) = egret(&["--help"])?;
    assert_eq!(code, 0);
    for word in ["run", "check", "proxy-config", "status", "explain", "uninstall"] {
        assert!(help.contains(word), "{word} in {help}");
    }
    let (code, script, said) = egret(&["completion", "bash"])?;
    assert!(code == 0 && script.contains("egret"), "{said}");
    Ok(())
}
