//! The kubelet's probes, from where the kubelet is: the machine's own network.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use egret_tests::{Agent, Lab, Pod, egret, line, objects::documents, run, run_in};

const PORT: u16 = 8080;
/// Of which no probe speaks.
const OTHER: u16 = 8081;
/// Shared address space (RFC 6598): 2^22 addresses, of which each test takes a few.
const SHARED: u32 = 0x6440_0000;
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: STRICT}}\n";
const NOBODY: &str =
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody}\nspec: {}\n";
const PROBES: &str = "
  containers:
  - name: app
    image: app
    ports: [{name: web, containerPort: 8080}]
    livenessProbe: {httpGet: {path: /healthz?full=1, port: web, httpHeaders: [{name: x, value: y}]}}
    readinessProbe: {tcpSocket: {port: web}}
    startupProbe: {exec: {command: [\"true\"]}}
  initContainers:
  - {name: sidecar, image: sidecar, restartPolicy: Always, startupProbe: {httpGet: {path: started, port: 8080}}}
  - {name: gone, image: gone, livenessProbe: {httpGet: {path: /gone, port: 8080}}}
";

/// What curl came to: a status, or its exit code where there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Answered(u16),
    Refused,
    Reset,
    Otherwise(i32),
}

/// A pod with an application, another one of the mesh, and a wire from the machine to the first, as a node has to its pods.
struct Node {
    lab: Lab,
    app: Pod,
    client: Pod,
    /// The pod's address on that wire.
    at: Ipv4Addr,
    /// One of the machine's, that nothing but packets of others bears.
    lent: Ipv4Addr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Node {
    fn new(rules: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let lab = Lab::new()?;
        let (client, app) = (lab.pod("client")?, lab.pod("app")?);
        let block = (std::process::id() * 4 + NEXT.fetch_add(1, Ordering::Relaxed)) % (1 << 19);
        let address = |number| Ipv4Addr::from(SHARED + block * 8 + number);
        let (own, at, lent) = (address(1), address(2), address(5));
        let wire = format!("egt{block}");
        // It goes with the pod's end.
        run("ip", &["link", "add", &wire, "type", "veth", "peer", "name", "node0", "netns", app.netns.name()])?;
        for arguments in [format!("address add {own}/30 dev {wire}"), format!("address add {lent}/32 dev {wire}")] {
            run("ip", &arguments.split(' ').collect::<Vec<_>>())?;
        }
        run("ip", &["link", "set", &wire, "up"])?;
        app.netns.batch(&format!("link set node0 up\naddress add {at}/30 dev node0\n"))?;
        lab.outside().batch(&format!("address add {lent}/32 dev lo\n"))?;

        let document = app.document("app: app").replace("spec: {serviceAccountName: app}", &format!("spec:{PROBES}"));
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: app}\nspec: {clusterIP: 10.111.0.9, selector: {app: app}, \
                       ports: [{name: http, port: 80, targetPort: 8080}]}\n";
        lab.write("pods.yaml", &documents(&[client.document(""), document, service.to_owned()]))?;
        lab.write("rules.yaml", rules)?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        for port in [PORT, OTHER] {
            let listener = app.netns.listen(format!("[::]:{port}").parse()?)?;
            let book = heard.clone();
            // Ends with the process: it waits in `accept`.
            std::thread::spawn(move || serve(&listener, &book));
        }
        Ok(Self { lab, app, client, at, lent, heard })
    }

    /// What reached the application since it was asked last.
    fn heard(&self) -> Vec<String> {
        self.heard.lock().map(|mut heard| std::mem::take(&mut *heard)).unwrap_or_default()
    }

    /// By the machine, as by the kubelet.
    fn probe(&self, path: &str, more: &[&str]) -> Result<Ended> {
        ended(Command::new("curl"), &format!("http://{}:{PORT}{path}", self.at), more)
    }

    /// By somebody outside, over the pod's other wire.
    fn outside(&self, path: &str, more: &[&str]) -> Result<Ended> {
        ended(self.lab.outside().command("curl"), &format!("http://{}:{PORT}{path}", self.app.v4), more)
    }

    fn by_the_mesh(&self, path: &str) -> Result<u16> {
        Ok(self.client.curl(&[&format!("http://10.111.0.9{path}")])?.status)
    }
}

fn ended(mut curl: Command, url: &str, more: &[&str]) -> Result<Ended> {
    curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}"]).args(more).arg(url);
    let output = run_in(curl, b"")?;
    let status = String::from_utf8(output.stdout)?.parse::<u16>().context("curl tells a status")?;
    Ok(match (status, output.status.code().unwrap_or(-1)) {
        (0, 7) => Ended::Refused,
        (0, 56) => Ended::Reset,
        (0, code) => Ended::Otherwise(code),
        (status, _) => Ended::Answered(status),
    })
}

/// An application that answers every request with 200.
fn serve(listener: &TcpListener, heard: &Mutex<Vec<String>>) {
    for mut stream in listener.incoming().flatten() {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let request = line(&mut stream);
        if let Ok(mut heard) = heard.lock() {
            heard.push(request);
        }
        while !line(&mut stream).is_empty() {}
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
    }
}

#[test]
fn a_strict_pod_answers_its_probes_and_nothing_else_in_the_clear() -> Result<()> {
    let node = Node::new(STRICT)?;
    let mut agent = Agent::start(&node.lab)?;
    for (path, target) in [("/healthz?full=1", "/healthz?full=1"), ("/started", "/started")] {
        assert_eq!(node.probe(path, &[])?, Ended::Answered(200), "{path}\n{}", agent.stderr());
        assert_eq!(node.heard(), [format!("GET {target} HTTP/1.1")]);
    }
    let told = agent.log_line("GET /healthz?full=1")?;
    assert!(told.contains(" 200 - ") && told.contains(" inbound|8080|| "), "{told}");

    // The node may do no more than that.
    for (path, more) in [
        ("/", &[][..]),
        ("/healthz", &[]),
        ("/gone", &[]),
        ("/healthz?full=1", &["-X", "POST"]),
        ("/healthz?full=1", &["-d", "x", "-X", "GET"]),
        ("/healthz?full=1", &["-H", "Connection: upgrade", "-H", "Upgrade: websocket"]),
        ("/grpc.health.v1.Health/Check", &["--http2-prior-knowledge", "-X", "POST"]),
    ] {
        assert_eq!(node.probe(path, more)?, Ended::Answered(403), "{path} {more:?}");
    }
    let other = ended(Command::new("curl"), &format!("http://{}:{OTHER}/healthz?full=1", node.at), &[])?;
    assert_eq!(other, Ended::Reset, "no probe speaks of that port");
    // Nor may anybody else, for whom the node's address does not help.
    let lent = node.lent.to_string();
    for more in [&[][..], &["--interface", &lent]] {
        assert_eq!(node.outside("/healthz?full=1", more)?, Ended::Reset, "{more:?}\n{}", agent.stdout());
    }
    let stranger = node.lab.pod("stranger")?;
    let plain = ended(stranger.netns.command("curl"), &format!("http://{}:{PORT}/healthz?full=1", node.app.v4), &[])?;
    assert_eq!(plain, Ended::Reset, "a pod that is not enrolled");
    // `tcpSocket` is content with a connection.
    drop(TcpStream::connect(SocketAddr::new(node.at.into(), PORT))?);
    assert_eq!(node.heard(), [""; 0], "the application heard of something");

    assert_eq!(node.by_the_mesh("/anything")?, 200, "{}", agent.stderr());
    assert_eq!(node.heard(), ["GET /anything HTTP/1.1"]);
    agent.kill9()?;
    assert_eq!(node.probe("/healthz?full=1", &[])?, Ended::Refused, "closed while no agent runs");
    Ok(())
}

/// A policy that lets nobody in means callers; what the kubelet asks is the pod's own wish.
#[test]
fn a_policy_does_not_stop_a_probe() -> Result<()> {
    let node = Node::new(NOBODY)?;
    let agent = Agent::start(&node.lab)?;
    assert_eq!(node.probe("/healthz?full=1", &[])?, Ended::Answered(200), "{}", agent.stderr());
    assert_eq!(node.heard(), ["GET /healthz?full=1 HTTP/1.1"]);
    assert_eq!(node.probe("/", &[])?, Ended::Answered(403));
    let lent = node.lent.to_string();
    for more in [&[][..], &["--interface", &lent]] {
        assert_eq!(node.outside("/healthz?full=1", more)?, Ended::Answered(403), "{more:?}");
    }
    assert_eq!(node.by_the_mesh("/healthz?full=1")?, 403);
    assert_eq!(node.heard(), [""; 0]);
    // A probe counts from the moment at which the pod names it, and no longer.
    let pods = std::fs::read_to_string(node.lab.config_dir().join("pods.yaml"))?;
    agent.reload(|| node.lab.write("pods.yaml", &pods.replace("/healthz?full=1", "/ready")))?;
    assert_eq!(node.probe("/healthz?full=1", &[])?, Ended::Answered(403));
    assert_eq!(node.probe("/ready", &[])?, Ended::Answered(200));
    Ok(())
}

#[test]
fn a_probe_that_cannot_be_let_in_is_told() -> Result<()> {
    let node = Node::new(STRICT)?;
    let pods = std::fs::read_to_string(node.lab.config_dir().join("pods.yaml"))?;
    let https = pods.replace("port: web, httpHeaders", "scheme: HTTPS, port: web, httpHeaders");
    node.lab.write("pods.yaml", &https)?;
    let (code, said, found) = egret(&["check", &node.lab.config_dir().to_string_lossy()])?;
    let warning =
        "warning: Pod default/app: spec.containers[0].livenessProbe.httpGet.scheme: port 8080 takes mesh mTLS only";
    assert!(code == 0 && [&said, &found].iter().any(|text| text.contains(warning)), "{code} {said}{found}");
    node.lab.write("pods.yaml", &pods.replace("port: web, httpHeaders", "port: wep, httpHeaders"))?;
    let (code, said, found) = egret(&["check", &node.lab.config_dir().to_string_lossy()])?;
    let warning = "livenessProbe.httpGet.port: no port of this container is named \"wep\"";
    assert!(code == 0 && [&said, &found].iter().any(|text| text.contains(warning)), "{code} {said}{found}");
    Ok(())
}
