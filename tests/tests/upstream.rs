//! Upstreams on a bad day: each ends in the status and flag that tells it, and disturbs nothing else.

use std::time::{Duration, Instant};

use anyhow::Result;
use egret_tests::{
    Agent, Lab, Pod, names,
    objects::{documents, entry, rule_with},
};

const ODD: &str = "odd.lab.test";

fn scene(ports: &[&str]) -> Result<(Lab, Pod, Agent)> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let policy = "  trafficPolicy:\n    tls: {mode: SIMPLE}\n    connectionPool: {tcp: {connectTimeout: 1s}}\n";
    let services = [entry(ODD, ports), rule_with(ODD, policy)];
    let silent = [entry("silent.lab.test", &["80 HTTP 443"]), rule_with("silent.lab.test", policy)];
    let nowhere = [entry("nowhere.lab.test", &["80 HTTP 443"]), rule_with("nowhere.lab.test", policy)];
    lab.write("mesh.yaml", &documents(&[&[pod.document("")][..], &services, &silent, &nowhere].concat()))?;
    let agent = Agent::start(&lab)?;
    Ok((lab, pod, agent))
}

/// Nobody listens: 503 and the reason, soon.
#[test]
fn connection_refused() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9099"])?;
    let reply = pod.curl(&["http://odd.lab.test/refused"])?;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.body.starts_with("upstream connect error or disconnect/reset before headers"), "{reply:?}");
    let line = agent.log_line("/refused")?;
    assert!(line.contains("UF"), "{line}");
    Ok(())
}

/// `connectTimeout` bounds the TCP connect, and the handshake of a server that accepts and says nothing.
#[test]
fn connect_timeouts() -> Result<()> {
    let (_lab, pod, _agent) = scene(&["80 HTTP 9009"])?;
    for url in ["http://odd.lab.test/handshake", "http://silent.lab.test/connect"] {
        let start = Instant::now();
        let reply = pod.curl(&[url])?;
        assert_eq!(reply.status, 503, "{url}: {reply:?}");
        // An attempt and two retries, of a second each at most.
        assert!(start.elapsed() < Duration::from_secs(5), "{url}: {:?}", start.elapsed());
    }
    Ok(())
}

/// A name that nobody has: no healthy upstream.
#[test]
fn a_name_that_does_not_resolve() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9008"])?;
    let resolve = format!("nowhere.lab.test:80:{}", names::WEB);
    let reply = pod.curl(&["--resolve", &resolve, "http://nowhere.lab.test/unresolved"])?;
    assert_eq!((reply.status, reply.body.as_str()), (503, "no healthy upstream"), "{reply:?}");
    let line = agent.log_line("/unresolved")?;
    assert!(line.contains(" 503 UH "), "{line}");
    Ok(())
}

/// What is no HTTP from the server is the upstream's fault, and the client hears it.
#[test]
fn garbage_and_broken_bodies() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9005", "81 HTTP 9006"])?;
    let garbage = pod.curl(&["http://odd.lab.test/garbage"])?;
    assert!(matches!(garbage.status, 502 | 503), "{garbage:?}");
    assert!(agent.log_line("/garbage")?.contains("UPE") || agent.log_line("/garbage")?.contains("UC"));
    let cut = pod.curl(&["http://odd.lab.test:81/cut"])?;
    assert_eq!(cut.status, 200, "{cut:?}");
    assert!(matches!(cut.exit, 18 | 56), "a body cut short must not look whole: {cut:?}");
    assert!(agent.log_line("/cut")?.contains(" 200 UC"), "{}", agent.log_line("/cut")?);
    let good = pod.curl(&["http://odd.lab.test:81/again"])?;
    assert_eq!(good.status, 200, "the next request is a new one: {good:?}");
    Ok(())
}

/// A server that never answers: the client may leave, and that is what the log says.
#[test]
fn a_stalled_answer_ends_with_the_client() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9004"])?;
    let reply = pod.curl(&["--max-time", "1", "http://odd.lab.test/stalled"])?;
    assert_eq!((reply.status, reply.exit), (0, 28), "{reply:?}");
    let line = agent.log_line("/stalled")?;
    assert!(line.contains(" DC "), "{line}");
    Ok(())
}

/// A pooled connection that the server resets: a GET is sent again, a POST is not sent twice unless unprocessed.
#[test]
fn a_connection_that_dies_between_requests() -> Result<()> {
    let (_lab, pod, agent) = scene(&["80 HTTP 9013"])?;
    let first = pod.curl(&["http://odd.lab.test/one"])?;
    assert_eq!(first.body, "first\n", "{first:?}");
    let second = pod.curl(&["http://odd.lab.test/two"])?;
    assert_eq!(second.body, "first\n", "{second:?}\n{}", agent.stdout());
    Ok(())
}

/// The server goes down and comes back: 503 meanwhile, then service, without a restart of the agent.
#[test]
fn a_server_that_goes_down() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lab.pod("sleep")?;
    let host = "www.lab.test";
    let policy = "  trafficPolicy: {tls: {mode: SIMPLE}}\n";
    lab.write("mesh.yaml", &documents(&[pod.document(""), entry(host, &["80 HTTP 443"]), rule_with(host, policy)]))?;
    let _agent = Agent::start(&lab)?;
    assert_eq!(pod.curl(&["http://www.lab.test/hello"])?.status, 200);
    lab.stop_nginx();
    assert_eq!(pod.curl(&["http://www.lab.test/hello"])?.status, 503);
    lab.start_nginx()?;
    assert_eq!(pod.curl(&["http://www.lab.test/hello"])?.status, 200);
    Ok(())
}
