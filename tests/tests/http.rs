//! HTTP through a TLS rule: bodies, trailers, upgrades, 100-continue, connections kept alive, and nothing added.

use std::io::{Read, Write};

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, names,
    objects::{documents, entry, rule},
};

const ODD: &str = "odd.lab.test";

/// A lab whose odd host is reached through TLS: port `90xx` of the client is port `90xx` of the server.
fn scene(ports: &[&str]) -> Result<(Lab, Pod, Agent)> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(ODD, ports), rule(ODD, "mode: SIMPLE")]))?;
    let agent = Agent::start(&lab)?;
    Ok((lab, pod, agent))
}

fn web(more: &[&str]) -> Result<(Lab, Pod, Agent)> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let ports = [&["80 HTTP 443"], more].concat();
    let host = "www.lab.test";
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(host, &ports), rule(host, "mode: SIMPLE")]))?;
    let agent = Agent::start(&lab)?;
    Ok((lab, pod, agent))
}

/// To an external service nothing is added, nothing of the hop is carried over, and Host stays as it was.
#[test]
fn nothing_is_added_and_hop_by_hop_fields_end_here() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9008"])?;
    let request = "GET /a%20b?c=%2F HTTP/1.1\r\nHost: odd.lab.test:80\r\nX-Mine: 1\r\nTE: trailers\r\nConnection: x-hop, close\r\nX-Hop: 1\r\nProxy-Connection: keep-alive\r\n\r\n";
    let answer = pod.exchange(&format!("{}:80", names::ODD), request.as_bytes())?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, seen) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(head.to_lowercase().contains("server: odd"), "the server's own name passes: {head}");
    let seen = seen.to_lowercase();
    assert!(seen.starts_with("get /a%20b?c=%2f http/1.1\r\n"), "{seen}");
    assert!(seen.contains("host: odd.lab.test:80\r\n") && seen.contains("x-mine: 1\r\n"), "{seen}");
    for absent in ["x-hop", "proxy-connection", "x-envoy", "x-forwarded", "x-request-id", "via:", "user-agent"] {
        assert!(!seen.contains(absent), "{absent} in {seen}");
    }
    let line = agent.log_line("/a%20b")?;
    assert!(!line.contains("\"-\" \"odd.lab.test:80\""), "the log has a request id all the same: {line}");
    Ok(())
}

/// Big bodies stream both ways, and one connection serves many requests.
#[test]
fn big_bodies_and_kept_connections() -> Result<()> {
    let (lab, pod, _agent) = web(&[])?;
    let file = lab.dir().join("upload");
    std::fs::write(&file, vec![b'u'; 3 << 20])?;
    let down =
        pod.curl(&["-o", "/dev/null", "-w", "%{size_download}\n@@curl@@ %{http_code} x 0", "http://www.lab.test/big"])?;
    assert!(down.status == 200 && down.body.contains("4194304"), "{down:?}");
    let upload = format!("@{}", file.display());
    let up = pod.curl(&["--data-binary", &upload, "-H", "Expect:", "http://www.lab.test/hello"])?;
    assert_eq!((up.status, up.body.as_str()), (200, "hello from www.lab.test over TLSv1.3 HTTP/1.1\n"));
    let chunked =
        pod.curl(&["--data-binary", &upload, "-H", "Transfer-Encoding: chunked", "http://www.lab.test/hello"])?;
    assert_eq!(chunked.status, 200, "{chunked:?}");
    let urls: Vec<_> = (0..5).map(|turn| format!("http://www.lab.test/hello?keep-{turn}")).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    assert_eq!(pod.curl(&urls)?.status, 200);
    lab.hit("keep-4")?;
    let mut connections: Vec<_> =
        lab.hits().into_iter().filter(|hit| hit.request.contains("keep-")).map(|hit| hit.connection).collect();
    assert_eq!(connections.len(), 5);
    connections.dedup();
    assert_eq!(connections.len(), 1, "one TLS connection serves them all");
    let head = pod.curl(&["--head", "http://www.lab.test/big"])?;
    assert_eq!(head.status, 200, "{head:?}");
    Ok(())
}

/// HTTP/1.0 in, as old clients speak it; a keep-alive it did not ask for is not given.
#[test]
fn http_1_0() -> Result<()> {
    let (_lab, pod, _agent) = web(&[])?;
    let reply = pod.curl(&["--http1.0", "-i", "http://www.lab.test/hello"])?;
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = pod.exchange(&format!("{}:80", names::WEB), b"GET /hello HTTP/1.0\r\nHost: www.lab.test\r\n\r\n")?;
    assert!(answer.ends_with(b"HTTP/1.1\n"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// HTTP/2 in and out, with the trailers that gRPC lives by.
#[test]
fn http2_and_trailers() -> Result<()> {
    let (lab, pod, agent) = web(&["8000 GRPC 443"])?;
    let output = pod.run("nghttp", &["-v", "http://www.lab.test:8000/trailers"], b"")?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("grpc-status: 0") && said.contains("x-end: yes"), "{said}\n{}", agent.stderr());
    let hit = lab.hit("/trailers")?;
    assert_eq!((hit.request.as_str(), hit.tls.as_str()), ("GET /trailers HTTP/2.0", "TLSv1.3"));
    let reply = pod.curl(&["--http2-prior-knowledge", "http://www.lab.test:8000/hello"])?;
    assert_eq!((reply.version.as_str(), reply.body.as_str()), ("2", "hello from www.lab.test over TLSv1.3 HTTP/2.0\n"));
    let lines = agent.log_line("/trailers")?;
    assert!(lines.contains("\"GET /trailers HTTP/2\" 200 "), "{lines}");
    Ok(())
}

/// Upgrade: the tunnel opens after the upstream's own 101, bytes pass both ways, and a refusal is a refusal.
#[test]
fn websocket_upgrades() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9007", "81 HTTP 9012"])?;
    let ask = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {ODD}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: \
             dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
    };
    let mut stream = pod.connect(&format!("{}:80", names::ODD))?;
    stream.write_all(ask("/chat").as_bytes())?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && egret_tests::read(&mut stream, &mut byte)? == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{head}\n{}", agent.stderr());
    for frame in [&b"\x81\x05hello"[..], &b"\x82\x03\x00\x01\x02"[..]] {
        stream.write_all(frame)?;
        let mut echo = vec![0; frame.len()];
        stream.read_exact(&mut echo)?;
        assert_eq!(echo, frame);
    }
    drop(stream);
    assert!(agent.log_line("GET /chat")?.contains("\" 101 "));
    // The second request is sent at once, as if the tunnel stood: it must not reach anybody as a tunnel's bytes.
    let refused = pod.exchange(&format!("{}:81", names::ODD), ask("/no").as_bytes())?;
    assert!(refused.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&refused));
    Ok(())
}

/// 100-continue is the server's to say: the body waits for it.
#[test]
fn continue_is_end_to_end() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9011"])?;
    let reply = pod.curl(&[
        "-v",
        "--expect100-timeout",
        "8",
        "-H",
        "Expect: 100-continue",
        "-d",
        "twelve bytes",
        "http://odd.lab.test/",
    ])?;
    assert_eq!((reply.status, reply.body.as_str()), (200, "asked=1 got=12\n"), "{reply:?}\n{}", agent.stderr());
    assert!(reply.stderr.contains("HTTP/1.1 100 Continue"), "{}", reply.stderr);
    Ok(())
}

/// Too many fields, too long a head: 431; CONNECT: refused.
#[test]
fn limits_of_the_head() -> Result<()> {
    let (_lab, pod, _agent) = web(&[])?;
    let to = format!("{}:80", names::WEB);
    let fields: String = (0..150).map(|number| format!("x-{number}: y\r\n")).collect();
    let many = pod.exchange(&to, format!("GET / HTTP/1.1\r\nHost: www.lab.test\r\n{fields}\r\n").as_bytes())?;
    assert!(many.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&many));
    let long = "z".repeat(70_000);
    let big = pod.exchange(&to, format!("GET / HTTP/1.1\r\nHost: www.lab.test\r\nx: {long}\r\n\r\n").as_bytes())?;
    assert!(big.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&big));
    Ok(())
}
