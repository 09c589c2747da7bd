//! What goes wrong at the far end of two hops, and what is unusual, reaches the client as what it is.

use std::{
    io::{Read, Write},
    time::Duration,
};

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, names,
    objects::{documents, entry, port_rule, through_the_gateway},
};

const HOST: &str = "odd.lab.test";

struct Stage {
    agent: Agent,
    client: Pod,
    gateway: Pod,
    lab: Lab,
}

impl Stage {
    fn new(port: u16) -> Result<Self> {
        let lab = Lab::new()?;
        let (client, gateway) = (lab.pod("client")?, lab.pod("gateway")?);
        lab.write("mesh.yaml", &config(&client, &gateway, port))?;
        let agent = Agent::start(&lab)?;
        Ok(Self { agent, client, gateway, lab })
    }

    /// From now on the gateway calls another of the odd servers.
    fn turn_to(&self, port: u16) -> Result<()> {
        self.agent.reload(|| self.lab.write("mesh.yaml", &config(&self.client, &self.gateway, port)))
    }

    fn said(&self) -> String {
        format!("{}\n{}", self.agent.stdout(), self.agent.stderr())
    }
}

fn config(client: &Pod, gateway: &Pod, port: u16) -> String {
    documents(&[
        client.document(""),
        gateway.document("istio: egress"),
        through_the_gateway(HOST, port),
        entry(HOST, &["80 HTTP", &format!("{port} HTTPS")]),
        port_rule(HOST, port, "mode: SIMPLE"),
    ])
}

#[test]
fn what_breaks_is_told_as_it_is() -> Result<()> {
    let stage = Stage::new(9006)?;
    let get = |path: &str, more: &[&str]| {
        stage.client.call(names::ODD, &format!("http://{HOST}{path}"), &[&["-i"], more].concat())
    };
    // Promised more than came: the client must not take it for the whole.
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let reply = get("/cut", &[version])?;
        assert!(reply.status == 200 && [18, 56, 92].contains(&reply.exit), "{version}: {reply:?}\n{}", stage.said());
    }
    // No HTTP at all.
    stage.turn_to(9005)?;
    let reply = get("/garbage", &[])?;
    assert!([502, 503].contains(&reply.status) && reply.exit == 0, "{reply:?}\n{}", stage.said());
    // The first answer is good; the second request meets a reset.
    stage.turn_to(9013)?;
    assert_eq!(get("/first", &[])?.status, 200, "{}", stage.said());
    let reply = get("/second", &[])?;
    assert!([200, 503].contains(&reply.status), "{reply:?}\n{}", stage.said());
    let reply = get("/third", &["-d", "x"])?;
    assert!([200, 503].contains(&reply.status), "{reply:?}\n{}", stage.said());
    // Nobody.
    stage.turn_to(9999)?;
    let reply = get("/nobody", &[])?;
    assert_eq!((reply.status, reply.header("content-type")), (503, Some("text/plain")), "{reply:?}\n{}", stage.said());
    let line = stage.agent.log_line("outbound|9999||odd.lab.test")?;
    assert!(line.contains(" 503 U"), "{line}");
    Ok(())
}

#[test]
fn unusual_requests_pass() -> Result<()> {
    let stage = Stage::new(9011)?;
    // The far end is asked before the body is sent.
    let mut stream = stage.client.connect(&format!("{}:80", names::ODD))?;
    write!(
        stream,
        "PUT /ask HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )?;
    let mut first = [0; 25];
    stream.read_exact(&mut first)?;
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n", "{}", stage.said());
    stream.write_all(b"12345")?;
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    assert!(rest.starts_with("HTTP/1.1 200 ") && rest.contains("asked=1 got=5"), "{rest}\n{}", stage.said());

    stage.turn_to(9008)?;
    let exchange = |text: &str| -> Result<String> {
        let bytes = stage.client.exchange(&format!("{}:80", names::ODD), text.as_bytes())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let old = exchange(&format!("GET /old HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))?;
    assert!(old.contains(" 200 OK") && old.contains("GET /old HTTP/1.1"), "{old}\n{}", stage.said());
    let head = exchange(&format!("HEAD /head HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"))?;
    assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("HEAD /head"), "{head}\n{}", stage.said());
    let absolute = exchange(&format!("GET http://{HOST}/abs?q HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"))?;
    assert!(absolute.contains("GET /abs?q HTTP/1.1"), "{absolute}\n{}", stage.said());
    let odd =
        exchange(&format!("BREW /%2e%2e/a//b;c=d?e=f%20g#h HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"))?;
    assert!(odd.contains("BREW /%2e%2e/a//b;c=d?e=f%20g"), "{odd}\n{}", stage.said());
    // Two ways to say how long a body is: the first hop answers, and closes.
    let smuggled = exchange(&format!(
        "POST /s HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /inner HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    ))?;
    assert!(smuggled.starts_with("HTTP/1.1 400 ") && !smuggled.contains("/inner"), "{smuggled}");
    let long = "y".repeat(50_000);
    let reply =
        exchange(&format!("GET /long HTTP/1.1\r\nHost: {HOST}\r\nX-Long: {long}\r\nConnection: close\r\n\r\n"))?;
    assert!(reply.contains(" 200 OK") && reply.contains(&long), "{}\n{}", &reply[..reply.len().min(300)], stage.said());
    let many: String = (0..120).map(|n| format!("x-{n}: 1\r\n")).collect();
    let reply = exchange(&format!("GET /many HTTP/1.1\r\nHost: {HOST}\r\n{many}\r\n"))?;
    assert!(reply.starts_with("HTTP/1.1 431 "), "{reply}");
    Ok(())
}

/// A client that leaves is left at both hops, and its upload is not taken for whole.
#[test]
fn a_client_that_leaves_is_noticed_at_both_hops() -> Result<()> {
    let stage = Stage::new(9015)?;
    let reply = stage.client.call(names::ODD, &format!("http://{HOST}/late"), &["--max-time", "0.3"])?;
    assert_eq!(reply.exit, 28, "{reply:?}");
    // Had the answer come first, they would tell its status.
    egret_tests::until("both hops to notice", Duration::from_secs(3), || {
        (stage.agent.stdout().matches("GET /late HTTP/1.1\" 0 DC ").count() == 2).then_some(())
    })
    .map_err(|error| error.context(stage.said()))?;
    let mut stream = stage.client.connect(&format!("{}:80", names::ODD))?;
    write!(stream, "PUT /half HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\nonly this")?;
    std::thread::sleep(Duration::from_millis(200));
    drop(stream);
    egret_tests::until("both hops to notice", Duration::from_secs(3), || {
        let log = stage.agent.stdout();
        (log.lines().filter(|line| line.contains("PUT /half ") && line.contains(" DC ")).count() == 2).then_some(())
    })
    .map_err(|error| error.context(stage.said()))?;
    Ok(())
}

/// SIGTERM while a request waits for the far end: it gets its answer, over both hops, and then the agent ends.
#[test]
fn a_drain_waits_for_both_hops() -> Result<()> {
    let mut stage = Stage::new(9015)?;
    let url = format!("http://{HOST}/late");
    let late = std::thread::scope(|scope| -> Result<_> {
        let waiting = ["--http1.1", "--http2-prior-knowledge"].map(|version| {
            let (client, url) = (&stage.client, &url);
            scope.spawn(move || client.call(names::ODD, url, &[version]))
        });
        egret_tests::until("two connections at each hop", Duration::from_secs(5), || {
            let (_, status) = stage.agent.admin("GET", "/status").ok()?;
            let status: serde_json::Value = serde_json::from_str(&status).ok()?;
            (status["connections"].as_u64()? >= 4).then_some(())
        })?;
        std::thread::sleep(Duration::from_millis(100));
        stage.agent.terminate()?;
        waiting
            .into_iter()
            .map(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    for reply in late {
        assert_eq!((reply.status, reply.body.as_str()), (200, "late\n"), "{reply:?}\n{}", stage.said());
    }
    assert_eq!(stage.agent.wait(Duration::from_secs(3))?.code(), Some(0), "{}", stage.said());
    Ok(())
}

/// One client on a connection that it keeps: how many answers it got, and what came instead of the next.
fn requests(client: &Pod) -> Result<(u32, String)> {
    let mut stream = client.connect(&format!("{}:80", names::ODD))?;
    let mut chunk = [0; 4096];
    for served in 0.. {
        let _ = write!(stream, "GET /kept HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let mut answer = Vec::new();
        // The body is the request's head as the far end saw it.
        while answer.windows(4).filter(|part| part == b"\r\n\r\n").count() < 2 {
            match egret_tests::read(&mut stream, &mut chunk) {
                Ok(count @ 1..) => answer.extend_from_slice(&chunk[..count]),
                _ => return Ok((served, String::from_utf8_lossy(&answer).into_owned())),
            }
        }
    }
    unreachable!("the far end answers as long as it is asked")
}

/// SIGTERM under load: connections close between two requests, and no request that was taken is answered with an error
/// because the other hop closed first.
#[test]
fn a_drain_under_load_breaks_no_request() -> Result<()> {
    let stage = Stage::new(9008)?;
    let outcomes = std::thread::scope(|scope| -> Result<Vec<_>> {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| requests(&stage.client))).collect();
        std::thread::sleep(Duration::from_millis(500));
        stage.agent.terminate()?;
        clients.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("a client panicked"))?).collect()
    })?;
    for (served, last) in outcomes {
        assert!(served > 0 && last.is_empty(), "after {served}: {last}\n{}", stage.agent.stderr());
    }
    Ok(())
}
