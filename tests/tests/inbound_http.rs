//! HTTP that comes to a pod, as clients and applications really speak it: over mesh mTLS where nothing else is let in, and in
//! plain text from outside the mesh where that is allowed.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Agent, Daemon, Lab, Netns, Pod,
    objects::{documents, object},
    until,
};

/// Mesh mTLS only.
const PORT: u16 = 8080;
/// Plain text too.
const OPEN: u16 = 8081;
/// The same application where only the pod itself reaches it.
const OWN: u16 = 8090;

struct Site {
    app: Daemon,
    pod: Pod,
    client: Pod,
    lab: Lab,
}

impl Site {
    /// STRICT but for one port; `annotations` are those of the application's pod.
    fn new(annotations: &str, more: &[String]) -> Result<Self> {
        let lab = Lab::new()?;
        let (client, pod) = (lab.pod("client")?, lab.pod("app")?);
        let document = pod.document("app: app").replace("annotations:\n", &format!("annotations:\n{annotations}"));
        let service = "{clusterIP: None, selector: {app: app}, ports: [{name: http, port: 8080}, {name: http-open, port: 8081}, \
                       {name: grpc, port: 8082}, {name: http-own, port: 9080}, {name: http-unix, port: 9081}]}";
        let strict =
            "{selector: {matchLabels: {app: app}}, mtls: {mode: STRICT}, portLevelMtls: {8081: {mode: PERMISSIVE}}}";
        let strict = object("PeerAuthentication", "app", strict).replace("networking.istio.io", "security.istio.io");
        lab.write("pods.yaml", &documents(&[client.document(""), document]))?;
        lab.write("mesh.yaml", &documents(&[&[object("Service", "app", service), strict][..], more].concat()))?;
        let (script, socket) = (lab.dir().join("app.py"), socket(&lab));
        std::fs::write(&script, include_str!("../src/app.py"))?;
        let at = |port: u16| format!("{}:{port}", pod.v4);
        let args = [&*script.to_string_lossy(), &at(PORT), &at(OPEN), &format!("127.0.0.1:{OWN}"), &socket];
        let mut app = lab.serve_in(&pod.netns, "app", "/usr/bin/python3", &args)?;
        app.wait_for("ready", Duration::from_secs(10))?;
        Ok(Self { app, pod, client, lab })
    }

    /// Who may call, and where: the mesh where nobody else may, the outside where it may.
    fn ways(&self) -> [(&'static str, &Netns, u16); 2] {
        [("mesh", &self.client.netns, PORT), ("outside", self.lab.outside(), OPEN)]
    }

    fn dial(&self, from: &Netns, port: u16) -> Result<BufReader<TcpStream>> {
        let to = SocketAddr::from((self.pod.v4, port));
        Ok(BufReader::new(from.connect(to).with_context(|| format!("cannot connect to {to}"))?))
    }
}

/// A path of the host, for pods here have no file system of their own.
fn socket(lab: &Lab) -> String {
    lab.dir().join("app.sock").to_string_lossy().into_owned()
}

struct Answer {
    head: String,
    body: Vec<u8>,
    trailers: String,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Lines up to the blank one, in lower case.
fn head(peer: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    loop {
        let from = text.len();
        ensure!(peer.read_line(&mut text)? > 0, "the stream ends after {text:?}");
        if &text[from..] == "\r\n" {
            return Ok(text.to_lowercase());
        }
    }
}

fn answer(peer: &mut impl BufRead) -> Result<Answer> {
    let head = head(peer)?;
    let mut body = Vec::new();
    let mut trailers = String::new();
    if let Some((_, length)) = head.split_once("content-length: ") {
        let length: u64 = length.lines().next().unwrap_or_default().parse()?;
        peer.take(length).read_to_end(&mut body)?;
    } else if head.contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            peer.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).with_context(|| format!("a chunk's size: {size:?}"))?;
            if size == 0 {
                trailers = self::head(peer)?;
                break;
            }
            peer.take(size).read_to_end(&mut body)?;
            peer.read_line(&mut String::new())?;
        }
    } else {
        peer.read_to_end(&mut body)?;
    }
    Ok(Answer { head, body, trailers })
}

fn ask(peer: &mut BufReader<TcpStream>, request: &str) -> Result<Answer> {
    peer.get_mut().write_all(request.as_bytes())?;
    answer(peer)
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: \
                       dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// After the 101 the connection is the application's: what the client sends comes back.
fn assert_echoes(peer: &mut BufReader<TcpStream>, way: &str) -> Result<()> {
    peer.get_mut().write_all(UPGRADE.as_bytes())?;
    let head = head(peer).with_context(|| way.to_owned())?;
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{way}: {head}");
    for frame in [b"\x81\x05hello".to_vec(), vec![0x82; 100_000]] {
        peer.get_mut().write_all(&frame)?;
        let mut echo = vec![0; frame.len()];
        peer.read_exact(&mut echo)?;
        assert!(echo == frame, "{way}");
    }
    Ok(())
}

/// Upgrades, 100-continue, HTTP/1.0, and connections that serve many requests.
#[test]
fn old_and_odd_http_reaches_the_application() -> Result<()> {
    let site = Site::new("", &[])?;
    let agent = Agent::start(&site.lab)?;
    let mut wire = site.lab.tap()?;
    for (way, from, port) in site.ways() {
        assert_echoes(&mut site.dial(from, port)?, way)?;

        let mut peer = site.dial(from, port)?;
        let request = "POST /continue HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n";
        peer.get_mut().write_all(request.as_bytes())?;
        let interim = head(&mut peer).with_context(|| agent.stderr())?;
        assert!(interim.starts_with("http/1.1 100 "), "{way}: the application's own word: {interim}");
        let told = ask(&mut peer, "twelve bytes")?;
        assert_eq!(told.text(), "expect=100-continue got=12\n", "{way}: {}", told.head);
        let next = ask(&mut peer, &format!("GET /kept-by-{way} HTTP/1.1\r\nHost: app\r\n\r\n"))?;
        assert!(next.text().starts_with(&format!("/kept-by-{way} HTTP/1.1 from ")), "{way}: {}", next.text());
        assert_eq!(next.text().contains("sa/client"), way == "mesh", "{way}: {}", next.text());

        let mut peer = site.dial(from, port)?;
        let old = ask(&mut peer, "GET /old-mark HTTP/1.0\r\nHost: app\r\n\r\n")?;
        assert!(old.head.contains(" 200 ") && old.text().starts_with("/old-mark HTTP/1."), "{way}: {}", old.text());
        assert_eq!(egret_tests::read(&mut peer, &mut [0])?, 0, "{way}: a connection that HTTP/1.0 did not ask to keep");
        let mut peer = site.dial(from, port)?;
        for _ in 0..2 {
            let kept = ask(&mut peer, "GET /old-kept HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\n\r\n")?;
            assert!(
                kept.head.contains(" 200 ") && kept.head.contains("connection: keep-alive"),
                "{way}: {}",
                kept.head
            );
        }
    }
    for (mark, readable) in [("GET /kept-by-outside", true), ("GET /kept-by-mesh", false)] {
        assert_eq!(wire.saw(site.lab.outside(), site.pod.v4.into(), mark)?, readable, "{mark}");
    }
    let line = agent.log_line("GET /chat")?;
    assert!(line.contains(" 101 "), "{line}");
    // The same from outside where only the mesh may: not a byte of HTTP.
    let mut refused = site.dial(site.lab.outside(), PORT)?;
    let _ = refused.get_mut().write_all(UPGRADE.as_bytes());
    assert!(!matches!(egret_tests::read(&mut refused, &mut [0]), Ok(1..)));
    Ok(())
}

/// Chunked bodies both ways at once, byte for byte, with the trailers of both.
#[test]
fn chunked_bodies_stream_both_ways() -> Result<()> {
    const SIZE: usize = 5 << 20;
    let site = Site::new("", &[])?;
    let agent = Agent::start(&site.lab)?;
    let body: Vec<u8> = (0..SIZE as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let file = site.lab.dir().join("body");
    std::fs::write(&file, &body)?;
    let sum = egret_tests::run("sha256sum", &[&file.to_string_lossy()])?;
    let sum = sum.split_whitespace().next().context("no sum")?;
    for (way, from, port) in site.ways() {
        let mut peer = site.dial(from, port)?;
        let mut sender = peer.get_ref().try_clone()?;
        let told = std::thread::scope(|scope| -> Result<Answer> {
            let sent = scope.spawn(|| -> std::io::Result<()> {
                sender.write_all(
                    b"POST /echo HTTP/1.1\r\nHost: app\r\nTE: trailers\r\nTrailer: x-mine\r\nTransfer-Encoding: chunked\r\n\r\n",
                )?;
                let mut rest = &body[..];
                for size in [1, 7, 4096, 16_384, 65_537, 1 << 20].into_iter().cycle() {
                    let (chunk, after) = rest.split_at(size.min(rest.len()));
                    if chunk.is_empty() {
                        break;
                    }
                    sender.write_all(&[format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())?;
                    rest = after;
                }
                sender.write_all(b"0\r\nx-mine: yes\r\n\r\n")
            });
            let told = answer(&mut peer).with_context(|| agent.stderr());
            sent.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            told
        })?;
        assert!(told.body == body, "{way}: {} bytes of {SIZE}, or not the same", told.body.len());
        assert!(told.trailers.contains(&format!("x-sum: {sum}")), "{way}: {:?}", told.trailers);
        assert!(told.trailers.contains("x-asked: x-mine: yes"), "{way}: {:?}", told.trailers);
        // The connection is in order afterwards.
        assert!(ask(&mut peer, "GET /after HTTP/1.1\r\nHost: app\r\n\r\n")?.text().starts_with("/after "), "{way}");
    }
    // The first way leaves two lines (out of one pod, into the other), the second one; each is written after its answer.
    let echoes = until("three lines of echoes", Duration::from_secs(3), || {
        let echoes: Vec<_> =
            agent.stdout().lines().filter(|line| line.contains("POST /echo")).map(str::to_owned).collect();
        (echoes.len() == 3).then_some(echoes)
    })
    .with_context(|| agent.stdout())?;
    assert!(echoes.iter().all(|line| line.contains(" 200 - via_upstream ")), "trailers end an answer: {echoes:#?}");
    Ok(())
}

/// What gRPC lives by: h2 without TLS from the client to the application, and trailers after the body.
#[test]
fn h2_with_trailers_reaches_the_application() -> Result<()> {
    let site = Site::new("", &[])?;
    let dir = site.lab.dir().join("grpc");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("call"), "answer\n")?;
    let (at, path) = (format!("{}:8082", site.pod.v4), dir.display());
    let config = format!(
        "daemon off;\nuser root;\npid {path}/pid;\nevents {{}}\nhttp {{\n  access_log {path}/log;\n  root {path};\n  \
         client_body_temp_path {path}/b;\n  proxy_temp_path {path}/p;\n  fastcgi_temp_path {path}/f;\n  uwsgi_temp_path {path}/u;\n  \
         scgi_temp_path {path}/s;\n  server {{\n    listen {at} http2;\n    error_page 405 =200 $uri;\n    \
         location / {{ add_trailer grpc-status 0; add_trailer x-end yes; }}\n  }}\n}}\n"
    );
    std::fs::write(dir.join("nginx.conf"), config)?;
    let (prefix, conf) = (path.to_string(), format!("{path}/nginx.conf"));
    let args = ["-p", &prefix, "-c", &conf, "-e", &format!("{path}/error.log")];
    let _server = site.lab.serve_in(&site.pod.netns, "grpc", "nginx", &args)?;
    let to = SocketAddr::from((site.pod.v4, 8082));
    until("nginx to listen", Duration::from_secs(5), || site.pod.netns.connect(to).ok())?;
    let agent = Agent::start(&site.lab)?;
    let url = format!("http://{at}/call");
    for args in [&["-v"][..], &["-v", "-d", &conf, "--trailer", "x-mine: 1"]] {
        let output = site.client.run("nghttp", &[args, &["-H", "te: trailers", &url]].concat(), b"")?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(":status: 200") && said.contains("answer"), "{said}\n{}", agent.stderr());
        assert!(said.contains("grpc-status: 0") && said.contains("x-end: yes"), "{said}");
    }
    assert!(std::fs::read_to_string(dir.join("log"))?.contains("GET /call HTTP/2.0"), "h2 up to the application");
    // h2 in, an application of HTTP/1.1: the trailers of both sides pass all the same.
    let url = format!("http://{}:{PORT}/echo", site.pod.v4);
    let trailer = ["-H", "te: trailers", "-H", "trailer: x-mine", "--no-content-length", "--trailer", "x-mine: 1"];
    let output = site.client.run("nghttp", &[&["-v", "-d", &conf][..], &trailer, &[&url]].concat(), b"")?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("x-asked: x-mine: 1"), "{said}\n{}", agent.stderr());
    Ok(())
}

/// A Sidecar's ingress leads to where only the pod itself gets: its loopback, and a unix socket.
#[test]
fn ingress_leads_to_loopback_and_unix_sockets() -> Result<()> {
    let site = Site::new("", &[])?;
    let ingress = format!(
        "{{workloadSelector: {{labels: {{app: app}}}}, ingress: [\
         {{port: {{number: 9080, name: http, protocol: HTTP}}, defaultEndpoint: '127.0.0.1:{OWN}'}}, \
         {{port: {{number: 9081, name: http-unix, protocol: HTTP}}, defaultEndpoint: 'unix://{}'}}]}}",
        socket(&site.lab)
    );
    site.lab.write("sidecar.yaml", &object("Sidecar", "app", &ingress))?;
    let agent = Agent::start(&site.lab)?;
    for (port, seen) in [(9080, "from 127.0.0.1 for app"), (9081, "from unix for app")] {
        let mut peer = site.dial(&site.client.netns, port)?;
        for turn in 0..3 {
            let told = ask(&mut peer, &format!("GET /{turn} HTTP/1.1\r\nHost: app\r\n\r\n"));
            let told = told.with_context(|| format!("{port}\n{}\n{}", agent.stdout(), agent.stderr()))?;
            assert!(told.text().starts_with(&format!("/{turn} ")), "{port}: {}{}", told.head, told.text());
            assert!(told.text().contains(seen) && told.text().contains("sa/client"), "{port}: {}", told.text());
        }
        assert_echoes(&mut site.dial(&site.client.netns, port)?, seen)?;
        let mut outside = site.dial(site.lab.outside(), port)?;
        let _ = outside.get_mut().write_all(b"GET /outside HTTP/1.1\r\nHost: app\r\n\r\n");
        assert!(!matches!(egret_tests::read(&mut outside, &mut [0]), Ok(1..)), "{port}: STRICT holds for it");
    }
    assert!(!site.app.stdout().contains("/outside"));
    // The socket goes: 503, and a reason in the log, until it is back.
    std::fs::rename(socket(&site.lab), site.lab.dir().join("away"))?;
    let told = ask(&mut site.dial(&site.client.netns, 9081)?, "GET /gone HTTP/1.1\r\nHost: app\r\n\r\n")?;
    assert!(told.head.starts_with("http/1.1 503 "), "{}{}", told.head, told.text());
    std::fs::rename(site.lab.dir().join("away"), socket(&site.lab))?;
    let told = ask(&mut site.dial(&site.client.netns, 9081)?, "GET /back HTTP/1.1\r\nHost: app\r\n\r\n")?;
    assert!(told.head.starts_with("http/1.1 200 "), "{}{}\n{}", told.head, told.text(), agent.stdout());
    Ok(())
}

/// `interceptionMode: TPROXY` under STRICT: requests of two clients, turn by turn on kept connections, each with its own address.
#[test]
fn the_application_tells_its_callers_apart() -> Result<()> {
    let site = Site::new("    sidecar.istio.io/interceptionMode: TPROXY\n", &[])?;
    let other = site.lab.pod("other")?;
    site.lab.write("other.yaml", &other.document(""))?;
    let agent = Agent::start(&site.lab)?;
    let mut peers: Vec<(Ipv4Addr, _)> = Vec::new();
    for pod in [&site.client, &other] {
        peers.push((pod.v4, site.dial(&pod.netns, PORT)?));
    }
    for turn in 0..10 {
        for (address, peer) in &mut peers {
            let told = ask(peer, "GET /who HTTP/1.1\r\nHost: app\r\n\r\n")?.text();
            assert!(told.contains(&format!(" from {address} for ")), "{turn}: {told}\n{}", agent.stderr());
        }
    }
    Ok(())
}

/// SIGTERM with requests under way, over mesh mTLS and in plain text: they are answered, and the agent ends.
#[test]
fn requests_in_flight_outlive_sigterm() -> Result<()> {
    let site = Site::new("", &[])?;
    let mut agent = Agent::start(&site.lab)?;
    let mut peers = Vec::new();
    for (way, from, port) in site.ways() {
        let mut peer = site.dial(from, port)?;
        peer.get_mut().write_all(format!("GET /delay/1200/{way} HTTP/1.1\r\nHost: app\r\n\r\n").as_bytes())?;
        until("the application to have it", Duration::from_secs(3), || {
            site.app.stdout().contains(&format!("waits /delay/1200/{way}")).then_some(())
        })?;
        peers.push((way, peer));
    }
    agent.terminate()?;
    for (way, mut peer) in peers {
        let told = answer(&mut peer).with_context(|| format!("{way}\n{}", agent.stderr()))?;
        assert!(told.head.starts_with("http/1.1 200 "), "{way}: {}", told.head);
        assert!(told.text().starts_with(&format!("/delay/1200/{way} ")), "{way}: {}", told.text());
    }
    assert_eq!(agent.wait(Duration::from_secs(3))?.code(), Some(0), "{}", agent.stderr());
    Ok(())
}

/// Twenty reloads that each change what holds for the pod, while requests come: each is answered, and served once.
#[test]
fn reloads_lose_no_request() -> Result<()> {
    let site = Site::new("", &[])?;
    let agent = Agent::start(&site.lab)?;
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = |way: &str, from: &Netns, port: u16| -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let mut peer = site.dial(from, port)?;
            for _ in 0..25 {
                let number = asked.fetch_add(1, Ordering::Relaxed);
                let told = ask(&mut peer, &format!("GET /load/{number} HTTP/1.1\r\nHost: app\r\n\r\n"));
                let told = told.with_context(|| format!("{way} {number}"))?;
                ensure!(
                    told.text().starts_with(&format!("/load/{number} ")),
                    "{way} {number}: {}{}",
                    told.head,
                    told.text()
                );
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let ways = [site.ways(), site.ways()].concat();
        let loads: Vec<_> =
            ways.into_iter().map(|(way, from, port)| scope.spawn(move || load(way, from, port))).collect();
        let changed = (0..20).try_for_each(|turn| {
            let policy = format!(
                "{{selector: {{matchLabels: {{app: app}}}}, rules: [{{to: [{{operation: {{paths: [/load/*, /turn-{turn}]}}}}]}}]}}"
            );
            let policy = object("AuthorizationPolicy", "app", &policy).replace("networking.istio.io", "security.istio.io");
            let pool = format!("{{host: app, trafficPolicy: {{connectionPool: {{http: {{maxRequestsPerConnection: {}}}}}}}}}", turn % 4);
            agent.reload(|| site.lab.write("turn.yaml", &documents(&[policy, object("DestinationRule", "app", &pool)])))
        });
        stop.store(true, Ordering::Relaxed);
        for load in loads {
            load.join().map_err(|_| anyhow::anyhow!("a client panicked"))?.with_context(|| agent.stderr())?;
        }
        changed
    })?;
    let served = site.app.stdout().matches("served /load/").count();
    let asked = asked.into_inner();
    assert!(asked > 200, "{asked}");
    assert_eq!(served, asked);
    Ok(())
}
