//! Gateways that end TLS by server name, demand certificates of clients, or pass TLS through; the client is outside the mesh.

use std::net::SocketAddr;

use anyhow::Result;
use egret_tests::{
    Lab, Pod, Reply,
    kube::{Node, crds},
    objects::in_namespace,
};

use super::stage::*;

/// Ends of handshakes that a server refuses: curl's exit codes, by version and moment.
const NO_HANDSHAKE: [i32; 3] = [35, 56, 98];

fn refused(reply: &Reply) -> bool {
    reply.status == 0 && NO_HANDSHAKE.contains(&reply.exit)
}

/// A gateway that listens no more, or not yet.
fn closed(reply: &Reply) -> bool {
    reply.status == 0
}

/// A client that knows the CA of Istio's tasks.
struct Client<'l> {
    lab: &'l Lab,
    pod: Pod,
}

impl<'l> Client<'l> {
    fn new(lab: &'l Lab) -> Result<Self> {
        Ok(Self { lab, pod: lab.pod("outside")? })
    }

    /// A request to a port of the gateway, as soon as its answer is as it should be.
    fn get(&self, gateway: &Pod, port: u16, url: &str, more: &[&str], good: impl Fn(&Reply) -> bool) -> Result<Reply> {
        let ca = self.lab.pki.crt("example.com");
        let ca = ca.to_string_lossy();
        let args = [&["-v", "--cacert", &*ca], more].concat();
        let to = format!("{}:{port}", gateway.v4);
        await_reply(url, ISSUED, good, || self.pod.call(&to, url, &args))
    }
}

/// `kubectl create -n NAMESPACE secret tls NAME`, with a CA for clients where the task has one.
fn secret(lab: &Lab, namespace: &str, name: &str, leaf: &str, ca: bool) -> Result<String> {
    let pki = &lab.pki;
    let mut keys = vec![("tls.key", pki.key(leaf)), ("tls.crt", pki.crt(leaf))];
    keys.extend(ca.then(|| ("ca.crt", pki.crt("example.com"))));
    Ok(in_namespace(&pki.secret(name, &keys)?, namespace))
}

/// One gateway: first two hosts by their names, then one for clients with certificates, then one that is passed through.
#[test]
fn tls_gateways_with_istio_apis() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(crds::ISTIO, &["istio-system", "test"])?);
    for host in ["httpbin.example.com", "helloworld.example.com", "nginx.example.com", "client.example.com"] {
        let organization = host.split('.').next().unwrap_or_default();
        lab.pki.task_leaf(host, &format!("/CN={host}/O={organization} organization"))?;
    }
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let mut documents = example("tls-gateways/pods.yaml")?;
    let passthrough = example("tls-gateways/passthrough.yaml")?;
    documents.push(passthrough[0].clone());
    let pods = run_pods(&node, &documents)?;
    let nets = pods.iter().map(|pod| pod.net()).collect::<Result<Vec<_>>>()?;
    let [gateway, httpbin, helloworld, nginx] = nets[..] else { anyhow::bail!("{} pods", pods.len()) };
    let _apps = (
        lab.httpbin_in(&httpbin.netns, SocketAddr::new(httpbin.v4.into(), 80))?,
        lab.helloworld_in(helloworld)?,
        lab.nginx_in(nginx, "nginx.example.com")?,
    );
    let client = Client::new(&lab)?;
    let get =
        |url: &str, port: u16, more: &[&str], good: &dyn Fn(&Reply) -> bool| client.get(gateway, port, url, more, good);
    let teapot = "https://httpbin.example.com/status/418";
    get(teapot, 8443, &[], &closed)?;
    apply(&server, &objects(&documents))?;

    let hosts = example("tls-gateways/two-hosts.yaml")?;
    apply(&server, &hosts)?;
    // It listens, and shows no certificate before there is one.
    get("http://httpbin.example.com/status/418", 8080, &[], &|reply| reply.status == 418)?;
    get(teapot, 8443, &[], &refused)?;
    for (name, leaf) in
        [("httpbin-credential", "httpbin.example.com"), ("helloworld-credential", "helloworld.example.com")]
    {
        server.apply_yaml(&secret(&lab, "istio-system", name, leaf, false)?)?;
    }
    let reply = get(teapot, 8443, &[], &|reply| reply.status == 418)?;
    assert!(reply.version == "2" && reply.stderr.contains("CN=httpbin.example.com"), "{reply:?}");
    let reply = get("https://helloworld.example.com/hello", 8443, &[], &|reply| reply.status == 200)?;
    assert!(reply.body == "Hello version: v1\n" && reply.stderr.contains("CN=helloworld.example.com"), "{reply:?}");
    get("https://helloworld.example.com/other", 8443, &[], &|reply| reply.status == 404)?;
    get("https://unknown.example.com/", 8443, &["-k"], &refused)?;
    delete(&server, &hosts)?;
    get(teapot, 8443, &[], &closed)?;

    let mutual = example("tls-gateways/mutual.yaml")?;
    server.apply_yaml(&secret(&lab, "istio-system", "httpbin-credential", "httpbin.example.com", true)?)?;
    apply(&server, &mutual)?;
    let (crt, key) = (lab.pki.crt("client.example.com"), lab.pki.key("client.example.com"));
    let own = ["--cert", &*crt.to_string_lossy(), "--key", &*key.to_string_lossy()];
    get(teapot, 8443, &own, &|reply| reply.status == 418)?;
    get(teapot, 8443, &[], &refused)?;
    delete(&server, &mutual)?;
    get(teapot, 8443, &own, &closed)?;

    let passthrough = objects(&passthrough);
    apply(&server, &passthrough)?;
    let reply = get("https://nginx.example.com/", 8443, &[], &|reply| reply.status == 200)?;
    assert!(reply.body == "Welcome to nginx!\n" && reply.stderr.contains("CN=nginx.example.com"), "{reply:?}");
    get("http://httpbin.example.com/status/418", 8080, &[], &|reply| reply.status == 418)?;
    delete(&server, &passthrough)?;
    get("https://nginx.example.com/", 8443, &[], &closed)?;
    // Nobody listens there either, which is told to whoever speaks HTTP.
    get("http://httpbin.example.com/status/418", 8080, &[], &|reply| reply.status == 503)?;
    end(pods, &agent)
}

#[test]
fn tls_gateways_with_the_gateway_api() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(&crds::all(), &["test"])?);
    for host in ["httpbin.example.com", "nginx.example.com"] {
        lab.pki.task_leaf(host, &format!("/CN={host}/O=some organization"))?;
    }
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let documents = example("tls-gateways-gateway-api/gateway.yaml")?;
    let pods = run_pods(&node, &documents)?;
    let nets = pods.iter().map(|pod| pod.net()).collect::<Result<Vec<_>>>()?;
    let [gateway, httpbin, nginx] = nets[..] else { anyhow::bail!("{} pods", pods.len()) };
    let _apps = (
        lab.httpbin_in(&httpbin.netns, SocketAddr::new(httpbin.v4.into(), 80))?,
        lab.nginx_in(nginx, "nginx.example.com")?,
    );
    let client = Client::new(&lab)?;
    let teapot = "https://httpbin.example.com/status/418";
    client.get(gateway, 8443, teapot, &[], closed)?;

    let documents = objects(&documents);
    apply(&server, &documents)?;
    let reply = client.get(gateway, 9443, "https://nginx.example.com/", &[], |reply| reply.status == 200)?;
    assert!(reply.body == "Welcome to nginx!\n" && reply.stderr.contains("CN=nginx.example.com"), "{reply:?}");
    client.get(gateway, 8443, teapot, &[], refused)?;
    server.apply_yaml(&secret(&lab, "test", "httpbin-credential", "httpbin.example.com", false)?)?;
    client.get(gateway, 8443, teapot, &[], |reply| reply.status == 418)?;
    client.get(gateway, 8443, "https://httpbin.example.com/other", &[], |reply| reply.status == 404)?;

    delete(&server, &documents)?;
    client.get(gateway, 8443, teapot, &[], closed)?;
    client.get(gateway, 9443, "https://nginx.example.com/", &[], closed)?;
    end(pods, &agent)
}

/// STRICT inside the mesh, and a pod that ends the TLS of clients from outside by itself, with Secrets that it mounts.
#[test]
fn a_sidecar_ends_tls() -> Result<()> {
    const HOST: &str = "httpbin.test.svc.cluster.local";
    let (lab, server) = (Lab::new()?, cluster(crds::ISTIO, &["test"])?);
    let pki = &lab.pki;
    pki.task_leaf(HOST, &format!("/CN={HOST}/O=httpbin organization"))?;
    pki.task_leaf("client", "/CN=client.test.svc.cluster.local/O=client organization")?;
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let documents = example("sidecar-tls-termination/termination.yaml")?;
    let pods = run_pods(&node, &documents)?;
    let [httpbin, sleep] = &pods[..] else { anyhow::bail!("{} pods", pods.len()) };
    let net = httpbin.net()?;
    let _app = lab.httpbin_in(&net.netns, SocketAddr::new(net.v4.into(), 80))?;
    let client = Client::new(&lab)?;
    let url = format!("https://{HOST}:8443/status/200");
    let plain = "http://httpbin.test.svc/status/200";
    let served = |reply: &Reply| reply.status == 200;
    // Nothing is forbidden yet, and nobody ends TLS.
    client.get(net, 80, plain, &[], served)?;
    client.get(net, 9080, &url, &[], closed)?;

    let documents = objects(&documents);
    apply(&server, &documents)?;
    let secrets = [
        pki.secret("httpbin-mtls-termination-cacert", &[("ca.crt", pki.crt("example.com"))])?,
        pki.secret("httpbin-mtls-termination", &[("tls.crt", pki.crt(HOST)), ("tls.key", pki.key(HOST))])?,
    ];
    apply(&server, &secrets.map(|secret| in_namespace(&secret, "test")))?;
    let inside = |path: &str| {
        let to = format!("::{}:", net.v4);
        sleep.curl(&["--connect-to", &to, &format!("http://httpbin:8080{path}")])
    };
    await_reply("a call inside the mesh", ISSUED, served, || inside("/status/200"))?;
    let told = inside("/headers")?;
    assert!(told.body.contains("URI=spiffe://cluster.local/ns/test/sa/sleep"), "{told:?}");
    let (crt, key) = (pki.crt("client"), pki.key("client"));
    let own = ["--cert", &*crt.to_string_lossy(), "--key", &*key.to_string_lossy()];
    client.get(net, 9080, &url, &own, served)?;
    client.get(net, 9080, &url, &[], refused)?;
    for port in [9080, 9081, 80] {
        client.get(net, port, "http://httpbin.test.svc:8080/status/200", &[], |reply| reply.exit == 56)?;
    }

    delete(&server, &documents)?;
    client.get(net, 80, plain, &[], served)?;
    client.get(net, 9080, &url, &own, closed)?;
    end(pods, &agent)
}
