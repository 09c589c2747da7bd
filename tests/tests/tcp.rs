//! Bytes that are no HTTP: TLS around them, servers that speak first, halves that close.

use std::{
    io::{Read, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use anyhow::Result;
use egret_tests::{
    Agent, Lab, line, names,
    objects::{documents, entry, entry_with, rule},
};

/// A declared TCP port with a rule: TLS around raw bytes, the server speaks first, SNI is the service's host.
#[test]
fn tls_around_raw_bytes() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "odd.lab.test";
    let ports = ["5000 TCP 9003", "5001 TCP 9014"];
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(host, &ports), rule(host, "mode: SIMPLE")]))?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    let mut stream = pod.connect(&format!("{}:5000", names::ODD))?;
    assert_eq!(line(&mut stream), "220 ready odd.lab.test", "{}", agent.stderr());
    // The best of some, as a busy machine is slow by itself.
    let waits = (0..5).map(|_| {
        let start = Instant::now();
        let greeted = pod.connect(&format!("{}:5000", names::ODD)).map(|mut stream| line(&mut stream));
        greeted.map(|_| start.elapsed())
    });
    let best = waits.collect::<Result<Vec<_>>>()?.into_iter().min();
    assert!(best < Some(Duration::from_millis(250)), "a declared TCP port has no wait: {best:?}");
    stream.write_all(b"raw-secret-marker\n")?;
    assert_eq!(line(&mut stream), "RAW-SECRET-MARKER");
    drop(stream);
    // Half-close through TLS: close_notify tells the server that nothing more comes, and its answer still arrives.
    let mut half = pod.connect(&format!("{}:5001", names::ODD))?;
    half.write_all(&[b'x'; 70_000])?;
    half.shutdown(Shutdown::Write)?;
    assert_eq!(line(&mut half), "got 70000");
    assert!(!wire.saw(&pod.netns, names::ROUTER.parse()?, "raw-secret-marker")?);
    let logged = agent.log_line("outbound|5000||odd.lab.test")?;
    assert!(logged.contains("\"- - -\" 0 - "), "{logged}");
    assert!(agent.metric("istio_tcp_connections_opened_total", &["odd.lab.test"])? >= 2.0);
    Ok(())
}

/// A TLS server that ends without close_notify: somebody may have cut the stream, so the client gets no clean end.
#[test]
fn a_tls_stream_cut_off_is_no_clean_end() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "odd.lab.test";
    lab.write(
        "mesh.yaml",
        &documents(&[pod.document(""), entry(host, &["5000 TCP 9016"]), rule(host, "mode: SIMPLE")]),
    )?;
    let agent = Agent::start(&lab)?;
    let mut stream = pod.connect(&format!("{}:5000", names::ODD))?;
    assert_eq!(line(&mut stream), "cut");
    stream.write_all(b"x")?;
    let end = egret_tests::read(&mut stream, &mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset));
    let logged = agent.log_line("outbound|5000||odd.lab.test")?;
    assert!(logged.contains("\"- - -\" 0 UC ") && logged.contains("without close_notify"), "{logged}");
    Ok(())
}

/// A port of unknown protocol where the client says nothing: the server's banner comes after a short wait.
#[test]
fn servers_that_speak_first() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("pod.yaml", &pod.document(""))?;
    let _agent = Agent::start(&lab)?;
    let start = Instant::now();
    let mut stream = pod.connect(&format!("{}:9001", names::ODD))?;
    assert_eq!(line(&mut stream), "220 ready");
    let waited = start.elapsed();
    assert!(waited > Duration::from_millis(200) && waited < Duration::from_secs(2), "{waited:?}");
    stream.write_all(b"hello\n")?;
    assert_eq!(line(&mut stream), "HELLO");
    Ok(())
}

/// Each direction ends by itself, and bytes of a slow start are not lost.
#[test]
fn half_close_passes_through() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry("odd.lab.test", &["9002 TCP"])]))?;
    let agent = Agent::start(&lab)?;
    let mut stream = pod.connect(&format!("{}:9002", names::ODD))?;
    for _ in 0..4 {
        stream.write_all(&[b'y'; 250_000])?;
        std::thread::sleep(Duration::from_millis(20));
    }
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(line(&mut stream), "got 1000000");
    let logged = agent.log_line("outbound|9002||odd.lab.test")?;
    assert!(logged.contains(" 1000000 11 "), "bytes received and sent: {logged}");
    Ok(())
}

/// The client's reset and the server's close end both sides, and nothing stays open.
#[test]
fn a_client_that_goes_away_frees_the_server() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    lab.write("pod.yaml", &pod.document(""))?;
    let _agent = Agent::start(&lab)?;
    let listener = lab.outside().listen(format!("{}:7001", names::WEB).parse()?)?;
    let mut client = pod.connect(&format!("{}:7001", names::WEB))?;
    client.write_all(b"\x01\x02\x03 neither TLS nor HTTP\n")?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut first = [0; 3];
    server.read_exact(&mut first)?;
    assert_eq!(first, [1, 2, 3], "every byte that was sniffed is passed on");
    drop(client);
    let mut rest = Vec::new();
    let _ = server.read_to_end(&mut rest);
    assert_eq!(rest, b" neither TLS nor HTTP\n");
    Ok(())
}

/// IPv6 all the way: dialled by the pod, resolved to, and originated over.
#[test]
fn ipv6() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "six.lab.test";
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(host, &["80 HTTP 443"]), rule(host, "mode: SIMPLE")]))?;
    let agent = Agent::start(&lab)?;
    let reply = pod.curl(&["-6", "http://six.lab.test/politics"])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}", agent.stdout());
    let hit = lab.hit("/politics")?;
    assert_eq!((hit.from, hit.tls.as_str()), (pod.v6.to_string(), "TLSv1.3"));
    let line = agent.log_line("/politics")?;
    assert!(line.contains("\"[2001:db8::10]:443\""), "{line}");
    Ok(())
}

/// A TCP service with addresses is found by them; another address on that port is not that service.
#[test]
fn tcp_services_are_told_by_address() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let service = entry_with(
        "db.lab.test",
        &["5432 TCP"],
        &format!(
            "  addresses: [203.0.113.0/24]\n  resolution: STATIC\n  endpoints: [{{address: {}, ports: {{tcp-5432: 9003}}}}]\n",
            names::ODD
        ),
    );
    let tls = rule("db.lab.test", "mode: SIMPLE, sni: db.lab.test");
    lab.write("mesh.yaml", &documents(&[pod.document(""), service, tls]))?;
    let agent = Agent::start(&lab)?;
    let mut stream = pod.connect("203.0.113.77:5432")?;
    assert_eq!(line(&mut stream), "220 ready db.lab.test", "{}", agent.stderr());
    let listener = lab.outside().listen(format!("{}:5432", names::WEB).parse()?)?;
    let mut plain = pod.connect(&format!("{}:5432", names::WEB))?;
    plain.write_all(b"startup\n")?;
    let (mut server, _) = listener.accept()?;
    assert_eq!(line(&mut server), "startup");
    Ok(())
}
