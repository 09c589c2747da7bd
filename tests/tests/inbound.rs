//! What comes to a pod from outside and from other pods: the agent accepts it on every port, and the application gets it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use egret_tests::{Agent, Daemon, Lab, Netns, Pod, line, names, objects::documents, run_in};

const MARK: &str = "must-not-be-readable";

/// Pods of the mesh, and the application of the last one.
fn enrolled(lab: &Lab, names: &[&str]) -> Result<(Vec<Pod>, Daemon)> {
    let pods = names.iter().map(|name| lab.pod(name)).collect::<Result<Vec<_>>>()?;
    let texts: Vec<_> = pods.iter().map(|pod| pod.document(&format!("app: {}", pod.name))).collect();
    lab.write("pods.yaml", &documents(&texts))?;
    let odd = lab.odd_in(pods.last().context("no pod")?)?;
    Ok((pods, odd))
}

/// The body (and curl's exit code) of a request from any namespace.
fn curl(from: &Netns, args: &[&str]) -> Result<(String, i32)> {
    let mut command = from.command("curl");
    command.args(["-sS", "-k", "--max-time", "10"]).args(args);
    let output = run_in(command, b"")?;
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap_or(-1)))
}

/// What a client of a port without an application is told: reset by the agent, refused where there is none.
fn told(from: &Netns, to: SocketAddr) -> ErrorKind {
    // The reset may be there before `connect` returns. `read_exact`, as a read with a timeout ends also where this process was
    // stopped for a moment (signal(7)).
    let answer = from.connect(to).and_then(|mut stream| stream.read_exact(&mut [0]));
    answer.err().map_or(ErrorKind::Other, |error| error.kind())
}

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

/// Callers outside the mesh notice nothing: HTTP, the application's own TLS, servers that speak first, halves that close.
#[test]
fn callers_outside_the_mesh_reach_the_application() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["app"])?;
    let (pod, outside) = (&pods[0], lab.outside());
    let _six = lab.serve_in(&pod.netns, "six", "/usr/bin/python3", &["-m", "http.server", "8080", "--bind", "::"])?;
    let agent = Agent::start(&lab)?;
    let (code, status, _) = agent.egret(&["status"])?;
    assert!(code == 0 && status.contains("     captured     enrolled"), "{status}");

    let (head, _) = curl(outside, &[&format!("http://{}:9010/plain-path", pod.v4)])?;
    assert!(head.starts_with("GET /plain-path HTTP/1.1"), "{head:?} {}", agent.stderr());
    // What Istio's inbound side adds, and nothing that tells of the client.
    let added = ["x-request-id: ", "x-forwarded-proto: http"];
    let (lower, count) = (head.to_lowercase(), added.iter().filter(|name| head.contains(**name)).count());
    assert!(count == 2 && lower.matches("x-").count() == 2, "{head}");
    let (head, _) = curl(outside, &[&format!("https://{}:9008/own-tls", pod.v4)])?;
    assert!(head.starts_with("GET /own-tls HTTP/1.1"), "{head}");
    for host in [format!("[{}]", pod.v6), pod.v4.to_string()] {
        let (page, exit) = curl(outside, &[&format!("http://{host}:8080/")])?;
        assert!(exit == 0 && page.contains("Directory listing"), "{host}: {exit} {page}");
    }
    let mut first = outside.connect(at(pod.v4, 9001))?;
    assert!(line(&mut first).starts_with("220 ready"));
    first.write_all(b"shout\n")?;
    assert_eq!(line(&mut first), "SHOUT");
    let mut half = outside.connect(at(pod.v4, 9002))?;
    half.write_all(&[b'x'; 3_000_000])?;
    half.shutdown(Shutdown::Write)?;
    assert_eq!(line(&mut half), "got 3000000");

    let logged = agent.log_line("GET /plain-path")?;
    assert!(logged.contains("default/app"), "{logged}");
    assert!(logged.contains(&format!("{}:9010\" InboundPassthroughCluster", pod.v4)), "{logged}");
    // Its own calls to itself do not come to the agent.
    let own = pod.curl(&[&format!("http://{}:9010/from-itself", pod.v4)])?;
    assert_eq!(own.status, 200);
    let own = pod.curl(&["http://127.0.0.1:8080/"])?;
    assert_eq!(own.status, 200);
    assert!(!agent.stdout().contains("/from-itself"), "{}", agent.stdout());
    Ok(())
}

/// Nobody listens there: the client learns it at once, though by a reset and not by a refusal.
#[test]
fn a_port_without_an_application_is_reset() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["app"])?;
    let agent = Agent::start(&lab)?;
    for ip in [IpAddr::V4(pods[0].v4), IpAddr::V6(pods[0].v6)] {
        let start = Instant::now();
        assert_eq!(told(lab.outside(), at(ip, 4444)), ErrorKind::ConnectionReset, "{}", agent.stderr());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    // The agent's own listener is no port of the application, under any address.
    for (from, to) in [(lab.outside(), at(pods[0].v4, 15006)), (&pods[0].netns, "127.0.0.1:15006".parse()?)] {
        assert_eq!(told(from, to), ErrorKind::ConnectionReset, "{to}");
    }
    Ok(())
}

/// Out of one pod and into the other, both ends the agent's.
#[test]
fn pods_of_the_mesh_reach_each_other() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["client", "app"])?;
    let (client, app) = (&pods[0], &pods[1]);
    let agent = Agent::start(&lab)?;
    let reply = client.curl(&[&format!("http://{}:9010/from-pod", app.v4)])?;
    assert_eq!(reply.status, 200, "{reply:?} {}", agent.stderr());
    assert!(reply.body.starts_with("GET /from-pod HTTP/1.1"), "{reply:?}");
    let outbound = agent.log_line("default/client")?;
    assert!(outbound.contains("GET /from-pod") && outbound.contains(" PassthroughCluster "), "{outbound}");
    let mut first = client.connect(&format!("{}:9001", app.v4))?;
    assert!(line(&mut first).starts_with("220 ready"));
    drop(first);
    let inbound = agent.log_line(&format!("{}:9001\" InboundPassthroughCluster", app.v4))?;
    assert!(inbound.contains("default/app") && inbound.contains(&client.v4.to_string()), "{inbound}");
    Ok(())
}

/// Killed, the agent stands in nobody's way inbound (and stays closed outbound); started again, it is back.
#[test]
fn a_killed_agent_leaves_inbound_open() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["app"])?;
    let (pod, outside) = (&pods[0], lab.outside());
    let mut agent = Agent::start(&lab)?;
    let url = format!("http://{}:9010/x", pod.v4);
    assert!(curl(outside, &[&url])?.0.starts_with("GET /x"));
    agent.log_line(":9010\" InboundPassthroughCluster")?;
    agent.kill9()?;
    assert!(curl(outside, &[&url])?.0.starts_with("GET /x"));
    let nobody = at(pod.v4, 4444);
    assert_eq!(told(outside, nobody), ErrorKind::ConnectionRefused, "by the pod's own kernel");
    assert_eq!(pod.curl(&[&format!("http://{}:8080/", names::WEB)])?.exit, 7, "outbound stays refused");
    agent.restart()?;
    assert_eq!(told(outside, nobody), ErrorKind::ConnectionReset, "captured again");
    assert!(curl(outside, &[&url])?.0.starts_with("GET /x"));
    Ok(())
}

/// SIGTERM: an open connection goes on, new ones go straight to the application, and none is refused in between.
#[test]
fn a_draining_agent_hands_inbound_back() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["app"])?;
    let (pod, outside) = (&pods[0], lab.outside());
    let mut agent = Agent::start_with(&lab, &["--drain-timeout", "8s"])?;
    let mut open = outside.connect(at(pod.v4, 9001))?;
    assert!(line(&mut open).starts_with("220 ready"));
    agent.terminate()?;
    let mut served = 0;
    for _ in 0..50 {
        match outside.connect(at(pod.v4, 9001)) {
            Ok(mut new) => served += u32::from(line(&mut new).starts_with("220 ready")),
            // As in `told`.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error).context("while it drains"),
        }
    }
    // Those few that wait to be accepted when the listener closes are reset.
    assert!(served >= 48, "{served} of 50");
    assert!(agent.alive(), "it waits for the open connection");
    open.write_all(b"still\n")?;
    assert_eq!(line(&mut open), "STILL");
    drop(open);
    assert_eq!(agent.wait(Duration::from_secs(5))?.code(), Some(0), "{}", agent.stderr());
    assert!(curl(outside, &[&format!("http://{}:9010/x", pod.v4)])?.0.starts_with("GET /x"));
    Ok(())
}

/// A connection that one pod keeps to another, both of them the agent's, carries nothing: a drain does not wait for it.
#[test]
fn idle_connections_between_pods_hold_up_no_drain() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["client", "app"])?;
    let mut agent = Agent::start(&lab)?;
    assert_eq!(pods[0].curl(&[&format!("http://{}:9010/x", pods[1].v4)])?.status, 200, "{}", agent.stderr());
    agent.terminate()?;
    assert_eq!(agent.wait(Duration::from_secs(2))?.code(), Some(0), "{}", agent.stderr());
    Ok(())
}

/// A pod that leaves the mesh is reached directly from then on, one that opts in again is captured again.
#[test]
fn a_pod_that_leaves_the_mesh_is_let_go() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["app"])?;
    let (pod, outside) = (&pods[0], lab.outside());
    let agent = Agent::start(&lab)?;
    let nobody = at(pod.v4, 4444);
    assert_eq!(told(outside, nobody), ErrorKind::ConnectionReset);
    let mut open = outside.connect(at(pod.v4, 9001))?;
    assert!(line(&mut open).starts_with("220 ready"));
    agent.reload(|| lab.write("pods.yaml", "\n"))?;
    assert_eq!(told(outside, nobody), ErrorKind::ConnectionRefused);
    assert!(!matches!(egret_tests::read(&mut open, &mut [0]), Ok(1..)), "what the agent carried ends with the pod");
    agent.reload(|| lab.write("pods.yaml", &pod.document("")))?;
    assert_eq!(told(outside, nobody), ErrorKind::ConnectionReset);
    assert!(curl(outside, &[&format!("http://{}:9010/x", pod.v4)])?.0.starts_with("GET /x"));
    Ok(())
}

/// Somebody in the pod has the inbound listener's port: everything else serves, and the reason is told until it is free.
#[test]
fn a_taken_inbound_port_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["app"])?;
    let pod = &pods[0];
    let taken = pod.netns.listen("127.0.0.1:15006".parse()?)?;
    let mut agent = Agent::spawn(&lab, &[])?;
    let said = egret_tests::until("the reason", Duration::from_secs(10), || {
        let (_, body) = agent.admin("GET", "/healthz/ready").ok()?;
        body.contains("port 15006 is taken").then_some(body)
    });
    said.map_err(|error| error.context(agent.stderr()))?;
    assert_eq!(pod.curl(&["http://www.lab.test/"])?.status, 301, "outbound is served");
    assert!(
        curl(lab.outside(), &[&format!("http://{}:9010/x", pod.v4)])?.0.starts_with("GET /x"),
        "and inbound direct"
    );
    drop(taken);
    agent.wait_ready()?;
    assert_eq!(told(lab.outside(), at(pod.v4, 4444)), ErrorKind::ConnectionReset);
    Ok(())
}

/// Through a Service both ends are known to be the mesh's: mesh mTLS by itself, and the application sees plain text.
#[test]
fn calls_between_pods_are_encrypted_by_themselves() -> Result<()> {
    let lab = Lab::new()?;
    let (pods, _odd) = enrolled(&lab, &["client", "app"])?;
    let (client, app) = (&pods[0], &pods[1]);
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: app}\nspec:\n  clusterIP: 10.111.0.9\n  selector: {app: app}\n  ports:\n  \
                   - {name: http, port: 80, targetPort: 9010}\n  - {name: tcp, port: 2525, targetPort: 9001}\n";
    lab.write("service.yaml", service)?;
    let agent = Agent::start(&lab)?;
    let mut wire = lab.tap()?;
    let plain = client.curl(&[&format!("http://{}:9010/{MARK}-direct", app.v4)])?;
    assert_eq!(plain.status, 200, "{plain:?}");
    let outside = names::ROUTER.parse()?;
    assert!(wire.saw(&client.netns, outside, &format!("{MARK}-direct"))?, "the wire between pods is seen");
    let reply = client.curl(&["-H", "host: app", &format!("http://10.111.0.9/{MARK}-service")])?;
    assert_eq!(reply.status, 200, "{reply:?} {}", agent.stderr());
    assert!(reply.body.contains(&format!("GET /{MARK}-service")), "{reply:?}");
    let mut raw = client.connect("10.111.0.9:2525")?;
    assert!(line(&mut raw).starts_with("220 ready"));
    raw.write_all(format!("{MARK}-raw\n").as_bytes())?;
    assert!(line(&mut raw).ends_with("-RAW"));
    drop(raw);
    let logged = agent.log_line("inbound|9001||")?;
    assert!(logged.contains("default/app"), "{logged}");
    // A pod that calls itself through the Service is on no wire, and gets what the others get.
    let own = app.curl(&["-H", "host: app", &format!("http://10.111.0.9/{MARK}-own")])?;
    assert_eq!(own.status, 200, "{own:?} {}", agent.stderr());
    assert!(own.body.contains(&format!("GET /{MARK}-own")), "{own:?}");
    for what in ["service", "raw", "own"] {
        assert!(
            !wire.saw(&client.netns, outside, &format!("{MARK}-{what}"))?,
            "{what} went over the wire in the clear"
        );
    }
    Ok(())
}
