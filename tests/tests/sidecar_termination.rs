//! Istio's task "Ingress Sidecar TLS Termination": the shipped example, with the certificates that the task's own openssl
//! commands make.

use std::net::SocketAddr;

use anyhow::Result;
use egret_tests::{Agent, Daemon, Lab, Pod, Reply, names, objects::in_namespace};

const HOST: &str = "httpbin.test.svc.cluster.local";

struct Site {
    _app: Daemon,
    httpbin: Pod,
    sleep: Pod,
    outside: Pod,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let (httpbin, sleep, outside) = (lab.pod("httpbin")?, lab.pod("sleep")?, lab.pod("outside")?);
        lab.pki.task_leaf(HOST, &format!("/CN={HOST}/O=httpbin organization"))?;
        lab.pki.task_leaf("client", "/CN=client.test.svc.cluster.local/O=client organization")?;
        let app = lab.httpbin_in(&httpbin.netns, SocketAddr::new(httpbin.v4.into(), 80))?;
        let pki = &lab.pki;
        let secrets = [
            pki.secret("httpbin-mtls-termination-cacert", &[("ca.crt", pki.crt("example.com"))])?,
            pki.secret("httpbin-mtls-termination", &[("tls.crt", pki.crt(HOST)), ("tls.key", pki.key(HOST))])?,
        ];
        lab.write("secrets.yaml", &secrets.map(|secret| in_namespace(&secret, "test")).join("---\n"))?;
        lab.ship(&["sidecar-tls-termination/termination.yaml"], &[&httpbin, &sleep])?;
        Ok(Self { _app: app, httpbin, sleep, outside, lab })
    }

    /// From outside the mesh to the pod's port, as the Service leads there.
    fn outside(&self, url: &str, port: u16, more: &[&str]) -> Result<Reply> {
        let ca = self.lab.pki.crt("example.com");
        let ca = ca.to_string_lossy();
        self.outside.call(&format!("{}:{port}", self.httpbin.v4), url, &[&["--cacert", &*ca], more].concat())
    }
}

#[test]
fn the_task_as_written() -> Result<()> {
    let site = Site::new()?;
    let agent = Agent::start(&site.lab)?;
    let pki = &site.lab.pki;

    // Inside: plain HTTP for the application, mesh mTLS on the wire.
    let mut wire = site.lab.tap()?;
    let inside = site.sleep.call(&site.httpbin.v4.to_string(), "http://httpbin:8080/status/200?inside-mark", &[])?;
    assert_eq!(inside.status, 200, "{inside:?}\n{}\n{}", agent.stdout(), agent.stderr());
    assert!(!wire.saw(&site.sleep.netns, names::ROUTER.parse()?, "inside-mark")?, "plain text on the wire");
    wire.stop();
    let line = agent.log_line("inbound|9081||")?;
    assert!(line.contains("test/httpbin") && line.contains("/status/200?inside-mark"), "{line}");
    agent.await_metric(
        "istio_requests_total",
        &["reporter=\"destination\"", "source_principal=\"spiffe://cluster.local/ns/test/sa/sleep\""],
        1.0,
    )?;
    // What the application is told of its caller.
    let headers = site.sleep.call(&site.httpbin.v4.to_string(), "http://httpbin:8080/headers", &[])?;
    assert!(
        headers.body.contains("URI=spiffe://cluster.local/ns/test/sa/sleep")
            && headers.body.contains("By=spiffe://cluster.local/ns/test/sa/httpbin"),
        "{headers:?}"
    );

    // Outside, with a client certificate.
    let (cert, key) = (pki.crt("client"), pki.key("client"));
    let shown = ["--cert", &*cert.to_string_lossy(), "--key", &*key.to_string_lossy()];
    let url = format!("https://{HOST}:8443/status/200");
    let reply = site.outside(&url, 9080, &shown)?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}", agent.stderr());
    let told = site.outside(&format!("https://{HOST}:8443/headers"), 9080, &shown)?;
    assert!(told.body.contains("CN=client.test.svc.cluster.local"), "{told:?}");
    // Without one: no handshake.
    let reply = site.outside(&url, 9080, &["--tls-max", "1.2"])?;
    assert!(reply.status == 0 && reply.exit != 0, "{reply:?}");
    let reply = site.outside(&url, 9080, &[])?;
    assert!(reply.status == 0 && [35, 56, 98].contains(&reply.exit), "{reply:?}");
    // Plain text there, to the mesh's port, and straight to the application's own: reset.
    for port in [9080, 9081, 80] {
        let reply = site.outside("http://httpbin.test.svc:8080/status/200", port, &[])?;
        assert!(reply.status == 0 && reply.exit == 56, "{port}: {reply:?}");
    }
    // Nor does TLS that is not the mesh's open the others.
    let reply = site.outside(&url, 80, &shown)?;
    assert!(reply.status == 0 && reply.exit != 0, "{reply:?}");

    let (_, table, _) = agent.egret(&["-n", "test", "proxy-config", "secret", "httpbin"])?;
    for name in [
        "file-cert:/etc/istio/tls-certs/tls.crt~/etc/istio/tls-certs/tls.key ",
        "file-root:/etc/istio/tls-ca-certs/ca.crt ",
        "default ",
        "ROOTCA ",
    ] {
        assert!(table.contains(name), "{name}:\n{table}");
    }
    Ok(())
}
