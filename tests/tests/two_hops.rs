//! HTTP over two hops, client pod to gateway pod to the world: nothing is lost, broken or given away on the way.

use std::{
    io::{Read, Write},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Agent, Daemon, Lab, Pod, names,
    objects::{documents, entry, object, port_rule, through_the_gateway},
};

/// Nothing answers here: who gets an answer was led by the Host.
const ELSEWHERE: &str = "192.0.2.80";

struct Stage {
    agent: Agent,
    client: Pod,
    gateway: Pod,
    lab: Lab,
}

impl Stage {
    /// `host` through the gateway, which calls `port` of it.
    fn new(host: &str, port: u16, more: &[String]) -> Result<Self> {
        let lab = Lab::new()?;
        let (client, gateway) = (lab.pod("client")?, lab.pod("gateway")?);
        let fixed = [client.document(""), gateway.document("istio: egress"), through_the_gateway(host, port)];
        lab.write("mesh.yaml", &documents(&[&fixed, more].concat()))?;
        let agent = Agent::start(&lab)?;
        Ok(Self { agent, client, gateway, lab })
    }

    /// The same, with TLS of the gateway's own to that port, which speaks `protocol`.
    fn tls(host: &str, port: u16, protocol: &str) -> Result<Self> {
        Self::new(
            host,
            port,
            &[entry(host, &["80 HTTP", &format!("{port} {protocol}")]), port_rule(host, port, "mode: SIMPLE")],
        )
    }

    fn said(&self) -> String {
        format!("{}\n{}", self.agent.stdout(), self.agent.stderr())
    }
}

/// A service outside the mesh sees the caller's own headers and no more; one of the mesh sees what Istio's has it see.
#[test]
fn headers_of_the_mesh_stay_in_the_mesh() -> Result<()> {
    let stage = Stage::tls("odd.lab.test", 9008, "HTTPS")?;
    let forged =
        ["-H", "x-envoy-original-path: /forged", "-H", "x-mine: 1", "-H", "x-request-id: 5", "-H", "x-envoy-mine: 1"];
    let plain = stage.client.call(ELSEWHERE, "http://odd.lab.test/a?b", &["-H", "x-mine: 1"])?;
    assert_eq!(plain.status, 200, "{plain:?}\n{}", stage.said());
    let seen = plain.body.to_lowercase();
    assert!(seen.starts_with("get /a?b http/1.1\r\n") && seen.contains("host: odd.lab.test\r\n"), "{seen}");
    assert!(seen.contains("x-mine: 1\r\n"), "{seen}");
    for absent in ["x-envoy", "x-forwarded", "x-request-id", "x-b3", "via:", "forwarded"] {
        assert!(!seen.contains(absent), "{absent} in {seen}");
    }
    // Who is logged has an id all the same, and the hops have one and the same.
    let ids = |stage: &Stage| -> Vec<String> {
        let log = stage.agent.stdout();
        log.lines()
            .filter(|line| line.contains("/a?b"))
            .filter_map(|line| Some(line.split('"').nth(9)?.to_owned()))
            .collect()
    };
    let ids =
        egret_tests::until("two lines", Duration::from_secs(3), || Some(ids(&stage)).filter(|ids| ids.len() == 2))?;
    assert!(ids[0].len() == 36 && ids[0] == ids[1], "{ids:?}\n{}", stage.said());
    let reply = stage.client.call(ELSEWHERE, "http://odd.lab.test/forged", &forged)?;
    assert_eq!(reply.status, 200, "{reply:?}");

    let internal = entry("odd.lab.test", &["80 HTTP", "9010 HTTP"]) + "  location: MESH_INTERNAL\n";
    let stage = Stage::new("odd.lab.test", 9010, &[internal])?;
    let reply = stage.client.call(ELSEWHERE, "http://odd.lab.test/inside", &[])?;
    let seen = reply.body.to_lowercase();
    for present in [
        "x-forwarded-proto: http",
        "x-request-id: ",
        "x-envoy-attempt-count: 1",
        &format!("x-forwarded-for: {}", stage.client.v4),
    ] {
        assert!(seen.contains(present), "{present} not in {seen}\n{}", stage.said());
    }
    Ok(())
}

/// HTTP/2 from the client, and from the gateway to the world; trailers as gRPC has them.
#[test]
fn http2_and_trailers_survive() -> Result<()> {
    let stage = Stage::tls("www.lab.test", 443, "HTTP2")?;
    // What the port of the gateway's Service is named says what the first hop speaks.
    let mesh = std::fs::read_to_string(stage.lab.config_dir().join("mesh.yaml"))?;
    stage
        .agent
        .reload(|| stage.lab.write("mesh.yaml", &mesh.replace("name: https, port: 443", "name: http2, port: 443")))?;
    let reply = stage.client.call(ELSEWHERE, "http://www.lab.test/hello", &["--http2-prior-knowledge"])?;
    assert_eq!(
        (reply.status, reply.version.as_str(), reply.body.as_str()),
        (200, "2", "hello from www.lab.test over TLSv1.3 HTTP/2.0\n"),
        "{}",
        stage.said()
    );
    let output = stage.client.run("nghttp", &["-v", "-H", "te: trailers", "http://www.lab.test/trailers"], b"")?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("grpc-status: 0") && said.contains("x-end: yes"), "{said}\n{}", stage.said());
    let hit = stage.lab.hit("/trailers")?;
    assert_eq!((hit.tls.as_str(), hit.from), ("TLSv1.3", stage.gateway.v4.to_string()));
    // The same host for a client of HTTP/1.1.
    let reply = stage.client.call(ELSEWHERE, "http://www.lab.test/hello", &["--http1.1"])?;
    assert_eq!((reply.status, reply.version.as_str()), (200, "1.1"), "{reply:?}\n{}", stage.said());
    // Trailers have no place after a body of announced length, and that is nobody's fault.
    let reply = stage.client.call(ELSEWHERE, "http://www.lab.test/trailers?1", &["--http1.1"])?;
    assert_eq!((reply.status, reply.body.as_str()), (200, "politics page\n"), "{reply:?}\n{}", stage.said());
    let line = stage.agent.log_line("\"GET /trailers?1 HTTP/1.1\"")?;
    assert!(line.contains(" 200 - via_upstream "), "{line}");
    Ok(())
}

/// An upgraded connection is a tunnel from end to end; one that is refused is none.
#[test]
fn upgrades_pass_both_hops() -> Result<()> {
    let stage = Stage::tls("odd.lab.test", 9007, "HTTPS")?;
    let mut stream = stage.client.connect(&format!("{}:80", names::ODD))?;
    stream.write_all(
        b"GET /chat HTTP/1.1\r\nHost: odd.lab.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
          Sec-WebSocket-Version: 13\r\n\r\n",
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && egret_tests::read(&mut stream, &mut byte)? == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{head}\n{}", stage.said());
    for frame in [&b"\x81\x05hello"[..], &[7; 100_000]] {
        stream.write_all(frame)?;
        let mut echo = vec![0; frame.len()];
        stream.read_exact(&mut echo)?;
        assert!(echo == frame);
    }
    drop(stream);
    egret_tests::until("both hops to log the tunnel", Duration::from_secs(3), || {
        (stage.agent.stdout().matches("GET /chat HTTP/1.1\" 101 ").count() == 2).then_some(())
    })
    .map_err(|error| error.context(stage.said()))
}

/// Takes bodies and gives some: PUT answers with their SHA-256, GET with bytes whose SHA-256 is in a header.
const STORE: &str = r#"
import hashlib, http.server, ssl, sys
SIZE = 50 << 20
DATA = hashlib.shake_128(b"egret").digest(SIZE)
class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_PUT(self):
        digest, left = hashlib.sha256(), int(self.headers["content-length"])
        while left:
            part = self.rfile.read(min(left, 1 << 20))
            digest.update(part); left -= len(part)
        self.answer(digest.hexdigest().encode())
    def do_GET(self):
        self.answer(DATA)
    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer((sys.argv[1], 9100), Store)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(hashlib.sha256(DATA).hexdigest(), "ready", flush=True)
server.serve_forever()
"#;

fn store(lab: &Lab) -> Result<(Daemon, String)> {
    let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let args =
        ["-c".to_owned(), STORE.to_owned(), names::ODD.to_owned(), path(lab.pki.crt("web")), path(lab.pki.key("web"))];
    let mut daemon = lab.serve("store", "/usr/bin/python3", &args.each_ref().map(String::as_str))?;
    daemon.wait_for("ready", Duration::from_secs(10))?;
    let digest = daemon.stdout().split_whitespace().next().context("no digest")?.to_owned();
    Ok((daemon, digest))
}

/// 50 MB down and 50 MB up, over HTTP/1.1 and HTTP/2: every byte as it was.
#[test]
fn large_bodies_arrive_whole() -> Result<()> {
    let stage = Stage::tls("odd.lab.test", 9100, "HTTPS")?;
    let (_store, digest) = store(&stage.lab)?;
    let file = stage.lab.dir().join("body").to_string_lossy().into_owned();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let got =
            stage.client.call(ELSEWHERE, "http://odd.lab.test/down", &[version, "-o", &file, "--max-time", "25"])?;
        assert_eq!((got.status, got.exit), (200, 0), "{got:?}\n{}", stage.said());
        let sum = egret_tests::run("sha256sum", &[&file])?;
        assert_eq!(sum.split_whitespace().next(), Some(digest.as_str()), "{version}");
        let put =
            stage.client.call(ELSEWHERE, "http://odd.lab.test/up", &[version, "-T", &file, "--max-time", "25"])?;
        assert_eq!((put.status, put.body.as_str()), (200, digest.as_str()), "{version}: {put:?}\n{}", stage.said());
    }
    Ok(())
}

/// One request on a connection that stays open.
fn ask(stream: &mut std::net::TcpStream, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: odd.lab.test\r\n\r\n")?;
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    // The body is the request as the server saw it.
    while text.windows(4).filter(|part| part == b"\r\n\r\n").count() < 2 {
        let count = egret_tests::read(stream, &mut chunk)?;
        ensure!(count > 0, "ended after {:?}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..count]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The configuration changes again and again, at both hops: no request is lost, on new connections or on old ones.
#[test]
fn a_reload_under_load_loses_no_request() -> Result<()> {
    let stage = Stage::tls("odd.lab.test", 9008, "HTTPS")?;
    let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
    let (client, agent) = (&stage.client, &stage.agent);
    let address = format!("{}:80", names::ODD);
    let run = |keep: bool| -> Result<()> {
        let mut kept = client.connect(&address)?;
        while !stop.load(Ordering::Relaxed) {
            let answer = if keep { ask(&mut kept, "/kept")? } else { ask(&mut client.connect(&address)?, "/new")? };
            ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            served.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| -> Result<()> {
        let load: Vec<_> = [true, true, false].map(|keep| scope.spawn(move || run(keep))).into_iter().collect();
        let changes = (0..8).try_for_each(|turn| {
            let rule = object(
                "DestinationRule",
                "odd",
                &format!("{{host: odd.lab.test, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {}}}}}, tls: {{mode: SIMPLE}}}}}}", 100 + turn),
            );
            let headers = format!("headers: {{request: {{set: {{x-turn: '{turn}'}}}}}}, route: [{{destination: {{host: odd.lab.test, port");
            let routes = through_the_gateway("odd.lab.test", 9008).replace("route: [{destination: {host: odd.lab.test, port", &headers);
            let fixed = [client.document(""), stage.gateway.document("istio: egress"), routes, entry("odd.lab.test", &["80 HTTP", "9008 HTTPS"]), rule];
            agent.reload(|| stage.lab.write("mesh.yaml", &documents(&fixed)))
        });
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        for one in load {
            one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?.with_context(|| stage.said())?;
        }
        changes
    })?;
    assert!(served.load(Ordering::Relaxed) > 50, "{served:?}");
    assert!(stage.client.call(ELSEWHERE, "http://odd.lab.test/", &[])?.body.contains("x-turn: 7"), "{}", stage.said());
    Ok(())
}
