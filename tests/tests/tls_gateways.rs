//! Istio's tasks "Secure Gateways" and "Ingress Gateway without TLS Termination": the shipped examples, with the certificates
//! that the tasks' own openssl commands make, and what their reader is told to see.

use std::net::SocketAddr;

use anyhow::Result;
use egret_tests::{Agent, Daemon, Lab, Pod, Reply, objects::in_namespace};

/// The pods of the example, its applications, and the certificates of the task.
struct Site {
    _apps: Vec<Daemon>,
    gateway: Pod,
    httpbin: Pod,
    helloworld: Pod,
    outside: Pod,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let gateway = lab.pod("ingressgateway")?;
        let (httpbin, helloworld, outside) = (lab.pod("httpbin")?, lab.pod("helloworld")?, lab.pod("outside")?);
        for host in ["httpbin.example.com", "helloworld.example.com"] {
            let organization = host.split('.').next().unwrap_or_default();
            lab.pki.task_leaf(host, &format!("/CN={host}/O={organization} organization"))?;
        }
        let apps = vec![
            lab.httpbin_in(&httpbin.netns, SocketAddr::new(httpbin.v4.into(), 80))?,
            lab.helloworld_in(&helloworld)?,
        ];
        Ok(Self { _apps: apps, gateway, httpbin, helloworld, outside, lab })
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.gateway, &self.httpbin, &self.helloworld]
    }

    /// `kubectl create -n istio-system secret tls NAME`, with a CA for clients where the task has one.
    fn secret(&self, name: &str, leaf: &str, ca: bool) -> Result<String> {
        let pki = &self.lab.pki;
        let mut keys = vec![("tls.key", pki.key(leaf)), ("tls.crt", pki.crt(leaf))];
        keys.extend(ca.then(|| ("ca.crt", pki.crt("example.com"))));
        Ok(in_namespace(&pki.secret(name, &keys)?, "istio-system"))
    }

    /// A client outside the mesh that knows the task's CA.
    fn get(&self, url: &str, port: u16, more: &[&str]) -> Result<Reply> {
        let ca = self.lab.pki.crt("example.com");
        let ca = ca.to_string_lossy();
        self.outside.call(&format!("{}:{port}", self.gateway.v4), url, &[&["--cacert", &*ca], more].concat())
    }

    fn start(&self, example: &str) -> Result<Agent> {
        self.lab.ship(&["tls-gateways/pods.yaml", example], &self.pods())?;
        Agent::start(&self.lab)
    }
}

#[test]
fn two_hosts_by_server_name() -> Result<()> {
    let site = Site::new()?;
    let secrets = [("httpbin-credential", "httpbin.example.com"), ("helloworld-credential", "helloworld.example.com")];
    let secrets = secrets.map(|(name, leaf)| site.secret(name, leaf, false)).into_iter().collect::<Result<Vec<_>>>()?;
    site.lab.write("secrets.yaml", &secrets.join("---\n"))?;
    let agent = site.start("tls-gateways/two-hosts.yaml")?;

    let reply = site.get("https://httpbin.example.com/status/418", 8443, &["-v"])?;
    assert_eq!((reply.status, reply.version.as_str()), (418, "2"), "{reply:?}\n{}", agent.stderr());
    assert!(reply.body.contains("teapot"), "{reply:?}");
    assert!(reply.stderr.contains("CN=httpbin.example.com"), "{reply:?}");
    let reply = site.get("https://httpbin.example.com/status/418", 8443, &["--http1.1", "--tls-max", "1.2"])?;
    assert_eq!((reply.status, reply.version.as_str()), (418, "1.1"), "{reply:?}");
    let reply = site.get("http://httpbin.example.com/status/418", 8080, &[])?;
    assert_eq!(reply.status, 418, "{reply:?}");

    let reply = site.get("https://helloworld.example.com/hello", 8443, &["-v"])?;
    assert_eq!((reply.status, reply.body.as_str()), (200, "Hello version: v1\n"), "{reply:?}");
    assert!(reply.stderr.contains("CN=helloworld.example.com"), "{reply:?}");
    let reply = site.get("https://helloworld.example.com/other", 8443, &[])?;
    assert_eq!((reply.status, reply.body.as_str()), (404, ""), "{reply:?}");
    assert!(agent.log_line("route_not_found")?.contains(" NR "));

    // A name that no server has, and none at all: no handshake.
    for url in ["https://unknown.example.com/status/418".to_owned(), format!("https://{}/status/418", site.gateway.v4)]
    {
        let reply = site.get(&url, 8443, &["-k"])?;
        assert!(reply.status == 0 && reply.exit == 35, "{url}: {reply:?}");
    }
    assert!(agent.log_line("filter_chain_not_found")?.contains(" NR "));

    // One connection, two names: the one that the certificate is not good for is sent away, not served.
    let reply = site.get("https://httpbin.example.com/status/418", 8443, &["-H", "Host: helloworld.example.com"])?;
    assert_eq!(reply.status, 421, "{reply:?}");

    let (_, rows, _) = agent.egret(&["-n", "istio-system", "proxy-config", "listener", "istio-ingressgateway"])?;
    for (sni, route) in [
        ("httpbin.example.com", "https.443.https-httpbin.sni-gateway.test"),
        ("helloworld.example.com", "https.443.https-helloworld.sni-gateway.test"),
    ] {
        let mut rows_of = rows.lines().filter(|row| row.contains("8443") && row.contains(&format!("SNI: {sni}")));
        assert!(rows_of.any(|row| row.contains(&format!("Route: {route}"))), "{rows}");
    }
    let (_, routes, _) = agent.egret(&["-n", "istio-system", "pc", "route", "istio-ingressgateway"])?;
    assert!(routes.contains("https.443.https-httpbin.sni-gateway.test") && routes.contains("httpbin.test"), "{routes}");
    let (_, table, _) = agent.egret(&["-n", "istio-system", "pc", "secret", "istio-ingressgateway"])?;
    for name in ["kubernetes://httpbin-credential ", "kubernetes://helloworld-credential ", "default ", "ROOTCA "] {
        assert!(table.contains(name), "{name}:\n{table}");
    }
    Ok(())
}

/// The next handshake shows the renewed certificate, and one that is gone is shown no more; connections that are open go on.
#[test]
fn a_renewed_certificate_counts_for_the_next_connection() -> Result<()> {
    let site = Site::new()?;
    let (hello, httpbin) = ("helloworld.example.com", "httpbin.example.com");
    let hello = site.secret("helloworld-credential", hello, false)?;
    site.lab
        .write("secrets.yaml", &[site.secret("httpbin-credential", httpbin, false)?, hello.clone()].join("---\n"))?;
    let agent = site.start("tls-gateways/two-hosts.yaml")?;
    let url = "https://httpbin.example.com/status/418";
    assert_eq!(site.get(url, 8443, &[])?.status, 418);
    site.lab.pki.task_leaf("renewed", "/CN=httpbin.example.com/O=renewed")?;
    let renewed = site.secret("httpbin-credential", "renewed", false)?;
    agent.reload(|| site.lab.write("secrets.yaml", &[renewed, hello.clone()].join("---\n")))?;
    let reply = site.get(url, 8443, &["-v"])?;
    assert!(reply.status == 418 && reply.stderr.contains("O=renewed"), "{reply:?}");
    agent.reload(|| site.lab.write("secrets.yaml", &hello))?;
    let reply = site.get(url, 8443, &[])?;
    assert!(reply.status == 0 && reply.exit == 35, "{reply:?}");
    assert!(agent.stderr().contains("httpbin-credential"), "{}", agent.stderr());
    // The other server of the same port is none of that rule's business.
    assert_eq!(site.get("https://helloworld.example.com/hello", 8443, &[])?.status, 200);
    Ok(())
}

#[test]
fn clients_must_show_a_certificate() -> Result<()> {
    let site = Site::new()?;
    let pki = &site.lab.pki;
    pki.task_leaf("client.example.com", "/CN=client.example.com/O=client organization")?;
    pki.authority("stranger-ca", "/O=example Inc./CN=example.com")?;
    pki.leaf("stranger", "stranger-ca", "/CN=client.example.com/O=client organization", None)?;
    site.lab.write("secrets.yaml", &site.secret("httpbin-credential", "httpbin.example.com", true)?)?;
    let agent = site.start("tls-gateways/mutual.yaml")?;
    let url = "https://httpbin.example.com/status/418";
    let with = |leaf: &str, more: &[&str]| {
        let (cert, key) = (pki.crt(leaf), pki.key(leaf));
        let shown = ["--cert", &*cert.to_string_lossy(), "--key", &*key.to_string_lossy()].map(str::to_owned);
        let shown: Vec<&str> = shown.iter().map(String::as_str).chain(more.iter().copied()).collect();
        site.get(url, 8443, &shown)
    };
    for more in [&[][..], &["--tls-max", "1.2"], &["--http1.1"]] {
        let reply = with("client.example.com", more)?;
        assert_eq!(reply.status, 418, "{more:?} {reply:?}\n{}", agent.stderr());
    }
    for more in [&[][..], &["--tls-max", "1.2"]] {
        let reply = site.get(url, 8443, more)?;
        // In TLS 1.3 the client believes the handshake done before the server has judged.
        assert!(reply.status == 0 && [35, 56, 98].contains(&reply.exit), "{reply:?}");
        assert!(
            reply.stderr.contains("certificate required") || reply.stderr.contains("handshake failure"),
            "{reply:?}"
        );
        let reply = with("stranger", more)?;
        assert!(reply.status == 0 && [35, 56, 98].contains(&reply.exit), "{reply:?}");
    }
    let (_, table, _) = agent.egret(&["-n", "istio-system", "pc", "secret", "istio-ingressgateway"])?;
    assert!(table.contains("kubernetes://httpbin-credential-cacert "), "{table}");
    Ok(())
}

#[test]
fn passed_through_beside_plain_http() -> Result<()> {
    let site = Site::new()?;
    site.lab.pki.task_leaf("nginx.example.com", "/CN=nginx.example.com/O=some organization")?;
    let nginx_pod = site.lab.pod("my-nginx")?;
    let _nginx = site.lab.nginx_in(&nginx_pod, "nginx.example.com")?;
    let [one, two, three] = site.pods();
    let files = ["tls-gateways/pods.yaml", "tls-gateways/passthrough.yaml"];
    site.lab.ship(&files, &[one, two, three, &nginx_pod])?;
    let agent = Agent::start(&site.lab)?;
    let reply = site.get("https://nginx.example.com/", 8443, &["-v"])?;
    assert_eq!((reply.status, reply.body.as_str()), (200, "Welcome to nginx!\n"), "{reply:?}\n{}", agent.stderr());
    assert!(reply.stderr.contains("CN=nginx.example.com"), "nginx's own certificate: {reply:?}");
    let reply = site.get("http://httpbin.example.com/status/418", 8080, &[])?;
    assert_eq!(reply.status, 418, "{reply:?}");
    let reply = site.get("https://httpbin.example.com/", 8443, &["-k"])?;
    assert!(reply.status == 0 && reply.exit == 35, "{reply:?}");
    let line = agent.log_line("outbound|443||my-nginx.test.svc.cluster.local")?;
    assert!(line.contains(" nginx.example.com ") && line.contains("istio-system/istio-ingressgateway"), "{line}");
    let (_, rows, _) = agent.egret(&["-n", "istio-system", "pc", "listener", "istio-ingressgateway"])?;
    let mut found = rows.lines().filter(|row| row.contains("8443") && row.contains("SNI: nginx.example.com"));
    assert!(found.any(|row| row.contains("Cluster: outbound|443||my-nginx.test.svc.cluster.local")), "{rows}");
    Ok(())
}

/// The same with the Gateway API: HTTPS that ends at the gateway, and a TLSRoute.
#[test]
fn with_the_gateway_api() -> Result<()> {
    let lab = Lab::new()?;
    let pods = [lab.pod("gateway")?, lab.pod("httpbin")?, lab.pod("my-nginx")?];
    let [gateway, httpbin, nginx_pod] = &pods;
    let outside = lab.pod("outside")?;
    for host in ["httpbin.example.com", "nginx.example.com"] {
        lab.pki.task_leaf(host, &format!("/CN={host}/O=some organization"))?;
    }
    let _httpbin = lab.httpbin_in(&httpbin.netns, SocketAddr::new(httpbin.v4.into(), 80))?;
    let _nginx = lab.nginx_in(nginx_pod, "nginx.example.com")?;
    let (crt, key) = (lab.pki.crt("httpbin.example.com"), lab.pki.key("httpbin.example.com"));
    let secret = lab.pki.secret("httpbin-credential", &[("tls.crt", crt), ("tls.key", key)])?;
    lab.write("secret.yaml", &in_namespace(&secret, "test"))?;
    lab.ship(&["tls-gateways-gateway-api/gateway.yaml"], &pods.each_ref())?;
    let agent = Agent::start(&lab)?;
    let ca = lab.pki.crt("example.com");
    let get = |url: &str, port: u16| {
        outside.call(&format!("{}:{port}", gateway.v4), url, &["-v", "--cacert", &ca.to_string_lossy()])
    };
    let reply = get("https://httpbin.example.com/status/418", 8443)?;
    assert_eq!(reply.status, 418, "{reply:?}\n{}", agent.stderr());
    assert_eq!(get("https://httpbin.example.com/other", 8443)?.status, 404);
    let reply = get("https://nginx.example.com/", 9443)?;
    assert_eq!((reply.status, reply.body.as_str()), (200, "Welcome to nginx!\n"), "{reply:?}\n{}", agent.stderr());
    assert!(reply.stderr.contains("CN=nginx.example.com"), "nginx's own certificate: {reply:?}");
    let (_, told, _) = agent.egret(&["status"])?;
    for object in ["HTTPRoute", "TLSRoute"] {
        let mut rows = told.lines().filter(|row| row.contains(object) && row.contains("ResolvedRefs"));
        assert!(rows.any(|row| row.contains("True")), "{object}:\n{told}");
    }
    Ok(())
}
