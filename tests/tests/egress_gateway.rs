//! Istio's task "Egress Gateways with TLS Origination" and two gateways with a certificate each: the shipped examples as
//! they are, with what their reader is told to see.

use anyhow::Result;
use egret_tests::{Agent, CLIENT_DN, Lab, Pod, objects::in_namespace};

const CNN: &str = "edition.cnn.com";
const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";

/// What nginx and the gateway's log line say of the one request.
fn through_the_gateway(lab: &Lab, agent: &Agent, pods: [&Pod; 2], route: &str, service: &str) -> Result<()> {
    let [sleep, gateway] = pods;
    let reply = sleep.curl(&["-L", "-i", "http://edition.cnn.com/politics?one"])?;
    assert_eq!(
        (reply.status, reply.version.as_str(), reply.redirects),
        (200, "1.1", 0),
        "{reply:?}\n{}",
        agent.stdout()
    );
    assert!(reply.body.ends_with("politics page\n"), "{reply:?}");
    let hit = lab.hit("/politics?one")?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str(), hit.host.as_str()), ("TLSv1.3", CNN, CNN));
    assert_eq!(hit.from, gateway.v4.to_string(), "TLS comes from the gateway's address");
    assert_eq!(lab.hits().iter().filter(|hit| hit.request.contains("?one")).count(), 1);
    let line = agent.log_line("outbound|443||edition.cnn.com")?;
    assert!(line.contains("/politics?one") && line.contains(" 200 - via_upstream "), "{line}");
    assert!(line.contains(&format!(" {route}")), "{line}");
    let line = agent.log_line(service)?;
    assert!(line.contains("default/sleep") && line.contains(&format!("{}:", gateway.v4)), "{line}");
    Ok(())
}

/// Plain text to the port of a mesh mTLS server: not one byte of an answer.
fn plain_text_is_reset(lab: &Lab, agent: &Agent, gateway: &Pod, port: u16) -> Result<()> {
    use std::io::{Read, Write};
    let mut stream = lab.outside().connect((gateway.v4, port).into())?;
    stream.write_all(b"GET /politics HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n")?;
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
    assert_eq!(end.map_err(|error| error.kind()).err(), Some(std::io::ErrorKind::ConnectionReset));
    let line = agent.log_line("filter_chain_not_found")?;
    assert!(line.contains(" NR "), "{line}");
    Ok(())
}

#[test]
fn simple_with_istio_apis() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, gateway) = (lab.pod("sleep")?, lab.pod("egressgateway")?);
    lab.ship(&["egress-gateway/pods.yaml", "egress-gateway/simple.yaml"], &[&sleep, &gateway])?;
    let agent = Agent::start(&lab)?;
    through_the_gateway(
        &lab,
        &agent,
        [&sleep, &gateway],
        "- istio-system/istio-egressgateway",
        "outbound|80|cnn|istio-egressgateway.istio-system.svc.cluster.local",
    )?;
    plain_text_is_reset(&lab, &agent, &gateway, 8080)?;
    let (code, table, _) = agent.egret(&["-n", "istio-system", "proxy-config", "secret", "istio-egressgateway"])?;
    assert!(code == 0 && table.contains("default") && table.contains("ROOTCA"), "{table}");
    let (_, listeners, _) = agent.egret(&["-n", "istio-system", "pc", "listener", "istio-egressgateway"])?;
    assert!(
        listeners.lines().any(|row| row.contains("8080")
            && row.contains("SNI: edition.cnn.com")
            && row.contains("Route: https.80.https-port-for-tls-origination.istio-egressgateway.default")),
        "{listeners}"
    );
    let (_, routes, _) = agent.egret(&["-n", "istio-system", "pc", "route", "istio-egressgateway"])?;
    assert!(routes.contains("direct-cnn-through-egress-gateway.default"), "{routes}");
    let (_, clusters, _) = agent.egret(&["pc", "cluster", "sleep"])?;
    assert!(
        clusters.lines().any(|row| row.contains("istio-egressgateway.istio-system.svc.cluster.local")
            && row.contains("cnn")
            && row.contains("egressgateway-for-cnn.default")),
        "{clusters}"
    );
    let (_, endpoints, _) = agent.egret(&["pc", "endpoint", "sleep"])?;
    assert!(endpoints.contains(&format!("{}:8080", gateway.v4)), "{endpoints}");
    let (code, told, _) = agent.egret(&["explain", "sleep", "http://edition.cnn.com/politics"])?;
    assert_eq!(code, 0);
    for part in [
        "outbound|80|cnn|istio-egressgateway",
        "istio-system/istio-egressgateway",
        "outbound|443||edition.cnn.com",
        "SIMPLE",
    ] {
        assert!(told.contains(part), "{part} is missing:\n{told}");
    }
    Ok(())
}

#[test]
fn mutual_with_istio_apis() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, gateway) = (lab.pod("sleep")?, lab.pod("egressgateway")?);
    lab.write("secret.yaml", &in_namespace(&lab.pki.client_secret("client-credential", "client")?, "istio-system"))?;
    lab.ship(&["egress-gateway/pods.yaml", "egress-gateway/mutual.yaml"], &[&sleep, &gateway])?;
    let agent = Agent::start(&lab)?;
    let reply = sleep.curl(&["-i", &format!("http://{NGINX}/?mutual")])?;
    assert_eq!(
        (reply.status, reply.version.as_str()),
        (200, "1.1"),
        "{reply:?}\n{}\n{}",
        agent.stdout(),
        agent.stderr()
    );
    assert!(reply.body.contains("Welcome to nginx!"), "{reply:?}");
    let hit = lab.hit("/?mutual")?;
    assert_eq!(
        (hit.client_dn.as_str(), hit.sni.as_str(), hit.from.as_str()),
        (CLIENT_DN, NGINX, gateway.v4.to_string().as_str())
    );
    let line = agent.log_line(&format!("outbound|443||{NGINX}"))?;
    assert!(line.contains("istio-system/istio-egressgateway"), "{line}");
    plain_text_is_reset(&lab, &agent, &gateway, 8443)?;
    let (_, table, _) = agent.egret(&["-n", "istio-system", "proxy-config", "secret", "istio-egressgateway"])?;
    assert!(
        table.contains("kubernetes://client-credential ") && table.contains("kubernetes://client-credential-cacert"),
        "{table}"
    );
    // The Secret goes: refused with the reason, and nothing is sent.
    agent.reload(|| lab.remove("secret.yaml"))?;
    let reply = sleep.curl(&[&format!("http://{NGINX}/?gone")])?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(lab.hits().iter().all(|hit| !hit.request.contains("?gone")));
    Ok(())
}

#[test]
fn simple_with_the_gateway_api() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, gateway) = (lab.pod("sleep")?, lab.pod("egress")?);
    let folder = "egress-gateway-gateway-api";
    lab.ship(&[&format!("{folder}/pods.yaml"), &format!("{folder}/simple.yaml")], &[&sleep, &gateway])?;
    let agent = Agent::start(&lab)?;
    let service = "outbound|80||cnn-egress-gateway-istio.default.svc.cluster.local";
    let route = "default.forward-cnn-from-egress-gateway.0 default/cnn-egress-gateway";
    through_the_gateway(&lab, &agent, [&sleep, &gateway], route, service)?;
    plain_text_is_reset(&lab, &agent, &gateway, 80)?;
    let (code, told, _) = agent.egret(&["status"])?;
    assert_eq!(code, 0);
    for object in ["cnn-egress-gateway", "direct-cnn-to-egress-gateway", "forward-cnn-from-egress-gateway"] {
        let mut rows = told.lines().filter(|row| row.contains(object) && row.contains("Accepted"));
        assert!(rows.any(|row| row.contains("True")), "{object}:\n{told}");
    }
    Ok(())
}

#[test]
fn mutual_with_the_gateway_api() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, gateway) = (lab.pod("sleep")?, lab.pod("gateway")?);
    lab.write("secret.yaml", &lab.pki.client_secret("client-credential", "client")?)?;
    let documents = include_str!("../../proxy/src/mesh/tests/gateway_api/mutual.yaml");
    let labels = "gateway.networking.k8s.io/gateway-name: nginx-egressgateway";
    let pods = [sleep.document("app: sleep"), gateway.document(labels), documents.to_owned()];
    lab.write("mesh.yaml", &pods.join("---\n"))?;
    let agent = Agent::start(&lab)?;
    let reply = sleep.curl(&["-i", &format!("http://{NGINX}/?mutual")])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}\n{}", agent.stdout(), agent.stderr());
    let hit = lab.hit("/?mutual")?;
    let from = gateway.v4.to_string();
    assert_eq!((hit.client_dn.as_str(), hit.sni.as_str(), hit.from.as_str()), (CLIENT_DN, NGINX, from.as_str()));
    let line = agent.log_line("default.forward-nginx-from-egress-gateway.0")?;
    assert!(line.contains(&format!("outbound|443||{NGINX}")), "{line}");
    let (_, table, _) = agent.egret(&["proxy-config", "secret", "gateway"])?;
    assert!(table.contains("kubernetes://client-credential "), "{table}");
    Ok(())
}

#[test]
fn two_gateways_present_two_certificates() -> Result<()> {
    let lab = Lab::new()?;
    let pods = [lab.pod("sleep-v1")?, lab.pod("sleep-v2")?, lab.pod("egressgateway-v1")?, lab.pod("egressgateway-v2")?];
    let [one, two, gateway_one, gateway_two] = &pods;
    lab.pki.leaf("second", "example.com", "/CN=second.example.com/O=client organization", None)?;
    lab.pki.leaf("external", "example.com", "/CN=nginx.external.svc.cluster.local/O=some organization", None)?;
    let files = |leaf: &str| [("tls.crt", lab.pki.crt(leaf)), ("tls.key", lab.pki.key(leaf))];
    let secrets = [
        lab.pki.secret("istio-egressgateway-certs-v1", &files("client"))?,
        lab.pki.secret("istio-egressgateway-certs-v2", &files("second"))?,
        lab.pki.secret("istio-egressgateway-ca-certs", &[("example.com.crt", lab.pki.crt("example.com"))])?,
    ];
    lab.write("secrets.yaml", &secrets.map(|secret| in_namespace(&secret, "istio-system")).join("---\n"))?;
    let nginx = lab.choosy_nginx("external", "client")?;
    lab.ship(&["two-egress-gateways/pods.yaml", "two-egress-gateways/nginx.yaml"], &pods.each_ref())?;
    let agent = Agent::start(&lab)?;
    let resolve = "nginx.external.svc.cluster.local:80:1.1.1.1";
    let get = |pod: &Pod| pod.curl(&["--resolve", resolve, "http://nginx.external.svc.cluster.local/"]);
    for turn in 0..3 {
        let reply = get(one)?;
        assert_eq!(
            (reply.status, reply.body.as_str()),
            (200, "the page of v1\n"),
            "turn {turn}: {reply:?}\n{}\n{}",
            agent.stdout(),
            agent.stderr()
        );
        assert_eq!(get(two)?.status, 403, "turn {turn}: the certificate of v2 is not the one that nginx wants");
    }
    let log = std::fs::read_to_string(lab.dir().join("external.log"))?;
    let from = |address: std::net::Ipv4Addr| {
        log.lines().filter(|line| line.starts_with(&format!("{address} "))).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(
        !from(gateway_one.v4).is_empty() && from(gateway_one.v4).iter().all(|line| line.contains(CLIENT_DN)),
        "{log}"
    );
    assert!(
        !from(gateway_two.v4).is_empty()
            && from(gateway_two.v4).iter().all(|line| line.contains("CN=second.example.com")),
        "{log}"
    );
    drop(nginx);
    Ok(())
}
