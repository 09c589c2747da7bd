//! The listeners of a gateway pod: bound inside it, in step with its Gateways.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use egret_tests::{Agent, Lab, Pod, objects::documents};

/// A Gateway for the pods with the label `app: gw`, with plain HTTP on these ports, and an answer to everything.
fn gateway(ports: &[u16]) -> String {
    let servers: String = ports
        .iter()
        .map(|port| {
            format!("  - {{port: {{number: {port}, name: http-{port}, protocol: HTTP}}, hosts: [\"www.lab.test\"]}}\n")
        })
        .collect();
    let gateway = format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: gw}}\nspec:\n  selector: {{app: gw}}\n  servers:\n{servers}"
    );
    let route = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: all}\nspec:\n  hosts: [www.lab.test]\n  \
                 gateways: [gw]\n  http:\n  - directResponse: {status: 200, body: {string: from-the-gateway}}\n";
    documents(&[gateway, route.to_owned()])
}

fn lay(lab: &Lab, ports: &[u16]) -> Result<Pod> {
    let pod = lab.pod("gw")?;
    lab.write("pod.yaml", &pod.document("app: gw"))?;
    lab.write("gateway.yaml", &gateway(ports))?;
    Ok(pod)
}

/// One request on a connection that stays open; the head of the answer with its body, empty where the connection ended.
fn ask(stream: &mut TcpStream) -> String {
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: www.lab.test\r\n\r\n");
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = egret_tests::read(stream, &mut chunk) {
        text.extend_from_slice(&chunk[..count]);
        // Answers of the gateway itself are small and have a length.
        if text.ends_with(b"from-the-gateway") || text.windows(17).any(|part| part == b"content-length: 0") {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4.into(), port)
}

/// Connections come without pause while listeners beside theirs come and go: none is refused, and none cut.
#[test]
fn listeners_follow_the_gateways() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lay(&lab, &[8080])?;
    let agent = Agent::start(&lab)?;
    let outside = lab.outside();
    let status = || agent.egret(&["status"]).map(|(_, text, _)| text);
    assert!(status()?.contains("     gateway 8080     enrolled"), "{}", status()?);
    let mut kept = outside.connect(at(&pod, 8080))?;
    assert!(ask(&mut kept).starts_with("HTTP/1.1 200 "), "{}", agent.stderr());
    let six = outside.connect(SocketAddr::new(pod.v6.into(), 8080))?;
    drop(six);

    let (stop, served) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut vanishing = std::thread::scope(|scope| -> Result<TcpStream> {
        let clients = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = outside.connect(at(&pod, 8080)).context("while the table changes")?;
                let answer = ask(&mut stream);
                anyhow::ensure!(answer.ends_with("from-the-gateway"), "{answer:?}");
                served.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let outcome = (|| {
            for extra in [9090, 9091, 9092] {
                agent.reload(|| lab.write("gateway.yaml", &gateway(&[8080, extra])))?;
            }
            let mut stream = outside.connect(at(&pod, 9092))?;
            anyhow::ensure!(ask(&mut stream).ends_with("from-the-gateway"), "{}", agent.stderr());
            anyhow::ensure!(status()?.contains("gateway 8080, 9092 "), "{}", status()?);
            agent.reload(|| lab.write("gateway.yaml", &gateway(&[8080])))?;
            Ok(stream)
        })();
        stop.store(true, Ordering::Relaxed);
        clients.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        outcome
    })?;
    assert!(served.load(Ordering::Relaxed) > 20, "{served:?}");
    for gone in [9090, 9092] {
        let refused = outside.connect(at(&pod, gone)).map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused), "{gone}");
    }
    let answer = ask(&mut vanishing);
    assert!(!answer.contains("from-the-gateway"), "a listener that is gone serves no request: {answer}");
    assert!(ask(&mut kept).ends_with("from-the-gateway"), "{}", agent.stderr());
    Ok(())
}

/// Something in the pod has the port of one listener: told, tried again, and the others serve.
#[test]
fn a_taken_listener_port_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lay(&lab, &[8080, 9090])?;
    let taken = pod.netns.listen("0.0.0.0:8080".parse()?)?;
    let mut agent = Agent::spawn(&lab, &[])?;
    let said = egret_tests::until("the reason", Duration::from_secs(10), || {
        let (status, body) = agent.admin("GET", "/healthz/ready").ok()?;
        (status == 503 && body.contains("port 8080 is taken")).then_some(body)
    });
    said.map_err(|error| error.context(agent.stderr()))?;
    assert!(ask(&mut lab.outside().connect(at(&pod, 9090))?).ends_with("from-the-gateway"), "{}", agent.stderr());
    drop(taken);
    agent.wait_ready()?;
    assert!(ask(&mut lab.outside().connect(at(&pod, 8080))?).ends_with("from-the-gateway"), "{}", agent.stderr());
    assert_eq!(agent.stderr().matches("port 8080 is taken").count(), 1, "said once: {}", agent.stderr());
    Ok(())
}

/// A pod becomes a gateway and ceases to be one: its inbound is captured exactly where it is none.
#[test]
fn a_gateways_own_ports_are_not_captured() -> Result<()> {
    let lab = Lab::new()?;
    let pod = lay(&lab, &[8080])?;
    let _odd = lab.odd_in(&pod)?;
    let agent = Agent::start(&lab)?;
    let application = |agent: &Agent| -> Result<(String, usize)> {
        let mut stream = lab.outside().connect(at(&pod, 9010))?;
        let answer = ask_application(&mut stream);
        drop(stream);
        std::thread::sleep(Duration::from_millis(300));
        Ok((answer, agent.stdout().matches(":9010\" InboundPassthroughCluster").count()))
    };
    let (answer, seen) = application(&agent)?;
    assert!(answer.contains("GET /mine") && seen == 0, "straight to the application: {answer} {seen}");
    agent.reload(|| lab.remove("gateway.yaml"))?;
    assert!(agent.egret(&["status"])?.1.contains("     captured     enrolled"));
    let (answer, seen) = application(&agent)?;
    assert!(answer.contains("GET /mine") && seen == 1, "{answer} {seen}");
    agent.reload(|| lab.write("gateway.yaml", &gateway(&[8080])))?;
    let (answer, seen) = application(&agent)?;
    assert!(answer.contains("GET /mine") && seen == 1, "{answer} {seen}");
    assert!(ask(&mut lab.outside().connect(at(&pod, 8080))?).ends_with("from-the-gateway"), "{}", agent.stderr());
    Ok(())
}

fn ask_application(stream: &mut TcpStream) -> String {
    let _ = stream.write_all(b"GET /mine HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}
