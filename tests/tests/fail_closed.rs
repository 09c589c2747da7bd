//! What an egress gateway does when it cannot originate TLS as it is told: it refuses, says why, and sends nothing.

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, Wire, names,
    objects::{documents, entry, port_rule, rule_with, through_the_gateway},
};

const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";

struct Stage {
    agent: Agent,
    wire: Wire,
    client: Pod,
    _gateway: Pod,
    lab: Lab,
}

impl Stage {
    /// `host` through a gateway that originates TLS to its port 443 as `tls` says.
    fn new(host: &str, tls: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let (client, gateway) = (lab.pod("client")?, lab.pod("gateway")?);
        let fixed = [client.document(""), gateway.document("istio: egress"), through_the_gateway(host, 443)];
        lab.write("mesh.yaml", &documents(&fixed))?;
        lab.write("entry.yaml", &entry(host, &["80 HTTP", "443 HTTPS"]))?;
        lab.write("rule.yaml", &port_rule(host, 443, tls))?;
        let agent = Agent::start(&lab)?;
        let wire = lab.tap()?;
        Ok(Self { agent, wire, client, _gateway: gateway, lab })
    }

    /// 503 with the reason in the gateway's log line; nobody outside has heard of it, and nobody on the wire.
    fn refused(&mut self, host: &str, mark: &str, why: &[&str]) -> Result<()> {
        let reply = self.client.curl(&[&format!("http://{host}/{mark}")])?;
        assert_eq!(reply.status, 503, "{mark}: {reply:?}\n{}\n{}", self.agent.stdout(), self.agent.stderr());
        let log = egret_tests::until("two lines", std::time::Duration::from_secs(3), || {
            let log = self.agent.stdout();
            let lines: Vec<_> = log.lines().filter(|line| line.contains(mark)).map(str::to_owned).collect();
            (lines.len() == 2).then_some(lines.join("\n"))
        })?;
        for part in why {
            assert!(log.contains(part), "{part}: {log}");
        }
        self.silent(mark)
    }

    fn silent(&mut self, mark: &str) -> Result<()> {
        assert!(self.lab.hits().iter().all(|hit| !hit.request.contains(mark)), "{mark}");
        assert!(!self.wire.saw(&self.client.netns, names::ROUTER.parse()?, mark)?, "{mark} was readable on the wire");
        Ok(())
    }
}

/// The Secret comes and goes, and is right but once.
#[test]
fn a_gateway_without_its_certificate_sends_nothing() -> Result<()> {
    let mut stage = Stage::new(NGINX, "mode: MUTUAL, credentialName: client-credential")?;
    stage.refused(NGINX, "mark-missing", &["client-credential"])?;
    let pki = &stage.lab.pki;
    let secret = |crt: &str, key: &str, ca: bool| {
        let mut entries = vec![("tls.crt", pki.crt(crt)), ("tls.key", pki.key(key))];
        entries.extend(ca.then(|| ("ca.crt", pki.crt("example.com"))));
        pki.secret("client-credential", &entries)
    };
    let cases = [
        ("mark-mismatch", secret("client", "web", true)?, &["client-credential"][..]),
        ("mark-without-ca", secret("client", "client", false)?, &["client-credential"]),
        ("mark-expired", secret("expired", "expired", true)?, &["expired"]),
    ];
    let good = secret("client", "client", true)?;
    for (mark, secret, why) in cases {
        stage.agent.reload(|| stage.lab.write("secret.yaml", &secret))?;
        stage.refused(NGINX, mark, why)?;
    }
    stage.agent.reload(|| stage.lab.write("secret.yaml", &good))?;
    let reply = stage.client.curl(&[&format!("http://{NGINX}/?mark-good")])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}", stage.agent.stderr());
    assert!(!stage.wire.saw(&stage.client.netns, names::ROUTER.parse()?, "mark-good")?);
    stage.agent.reload(|| stage.lab.remove("secret.yaml"))?;
    stage.refused(NGINX, "mark-removed", &["client-credential"])
}

/// The rule is spoilt, loses its service, and goes: while it stands, nothing leaves in the clear. Without it, and without
/// anything that names the host for TLS, the route's own words count, as with Istio: HTTP to the port that it says.
#[test]
fn a_rule_counts_while_it_stands() -> Result<()> {
    let host = "www.lab.test";
    let mut stage = Stage::new(host, "mode: SIMPLE")?;
    let get = |stage: &Stage, mark: &str| stage.client.curl(&[&format!("http://{host}/politics?{mark}")]);
    assert_eq!(get(&stage, "mark-first")?.status, 200, "{}", stage.agent.stderr());
    // Spoilt: the last good one stays in force.
    stage.agent.reload(|| stage.lab.write("rule.yaml", &port_rule(host, 443, "mode: SIMPEL")))?;
    assert_eq!(get(&stage, "mark-spoilt")?.status, 200, "{}", stage.agent.stderr());
    assert_eq!(stage.lab.hit("mark-spoilt")?.tls, "TLSv1.3");
    // Its service goes.
    stage.agent.reload(|| stage.lab.write("rule.yaml", &port_rule(host, 443, "mode: SIMPLE")))?;
    stage.agent.reload(|| stage.lab.remove("entry.yaml"))?;
    let reply = get(&stage, "mark-orphan")?;
    assert_eq!(reply.status, 503, "{reply:?}\n{}\n{}", stage.agent.stdout(), stage.agent.stderr());
    stage.silent("mark-orphan")?;
    stage.agent.reload(|| stage.lab.write("entry.yaml", &entry(host, &["80 HTTP", "443 HTTPS"])))?;
    // Its subset alone has TLS, and the route means another.
    let subset = rule_with(host, "  subsets: [{name: safe, trafficPolicy: {tls: {mode: SIMPLE}}}]\n");
    stage.agent.reload(|| stage.lab.write("rule.yaml", &subset))?;
    assert_eq!(get(&stage, "mark-subset")?.status, 400, "{}", stage.agent.stdout());
    // It goes.
    stage.agent.reload(|| stage.lab.remove("rule.yaml"))?;
    let reply = get(&stage, "mark-gone")?;
    assert!(reply.status == 400 && reply.body.contains("plain HTTP request was sent to HTTPS port"), "{reply:?}");
    // It comes back: from the next request on, nothing is readable.
    stage.agent.reload(|| stage.lab.write("rule.yaml", &port_rule(host, 443, "mode: SIMPLE")))?;
    assert_eq!(get(&stage, "mark-back")?.status, 200, "{}", stage.agent.stderr());
    assert!(!stage.wire.saw(&stage.client.netns, names::ROUTER.parse()?, "mark-back")?);
    Ok(())
}
