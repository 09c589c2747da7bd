//! Pods of a kubelet: enrolled by label, found by their cgroups, and refused from their creation until then. In every test the
//! agent is real, and so are cgroups, processes and namespaces.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use egret_tests::{
    Agent, Lab,
    kube::{ALONE, ApiServer, ENROLLED, Fault, Node, NodePod, controller, crds},
    names,
    objects::{documents, entry, rule},
    until,
};
use serde_json::json;

const NODE: &str = "one";
const HOST: &str = "www.lab.test";
const MARK: &str = "must-not-be-readable";
const SOON: Duration = Duration::from_secs(5);

/// One connection: the name of its error, or `ok`.
const CONNECT: &str = "
import errno, socket, sys
s = socket.socket()
s.settimeout(3)
error = s.connect_ex((sys.argv[1], int(sys.argv[2])))
print(errno.errorcode.get(error, 'ok'))";

fn web(port: u16) -> SocketAddr {
    SocketAddr::new(names::WEB.parse().expect("an address"), port)
}

/// A cluster with one rule.
fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(&documents(&[entry(HOST, &["80 HTTP 443"]), rule(HOST, "mode: SIMPLE")]))?;
    Ok(server)
}

/// What curl in the pod got: the status, and its exit code (7: refused).
fn curl(pod: &NodePod<'_>, mark: &str) -> Result<(u16, i32)> {
    let reply = pod.curl(&["-o", "/dev/null", &format!("http://{HOST}/hello?{mark}-{MARK}")])?;
    Ok((reply.status, reply.exit))
}

fn await_served(pod: &NodePod<'_>, mark: &str) -> Result<()> {
    until(&format!("{} to be served", pod.name()), SOON, || curl(pod, mark).ok().filter(|(status, _)| *status == 200))
        .map(drop)
}

/// What a Python program in the pod says about a destination; `netns`: in another network than the pod's.
fn said(pod: &NodePod<'_>, netns: Option<&str>, program: &str, to: SocketAddr) -> Result<String> {
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let python = ["python3", "-c", program, &address, &port];
    let output = match netns {
        None => pod.run(python[0], &python[1..], b"")?,
        Some(path) => pod.run("nsenter", &[&[&*format!("--net={path}")], &python[..]].concat(), b"")?,
    };
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The error of a `connect` from a process of the pod.
fn connect(pod: &NodePod<'_>) -> Result<String> {
    said(pod, None, CONNECT, web(8080))
}

fn await_connect(pod: &NodePod<'_>, wanted: &str) -> Result<()> {
    until(&format!("{wanted} for {}", pod.name()), SOON, || (connect(pod).ok()? == wanted).then_some(()))
}

/// The state of a pod, as `egret status` has it.
fn state(agent: &Agent, pod: &str) -> Result<String> {
    let (_, text, _) = agent.egret(&["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&text)?;
    let pods = status["pods"].as_array().cloned().unwrap_or_default();
    let own = pods.iter().find(|row| row["pod"] == pod);
    Ok(own.and_then(|row| row["state"].as_str()).unwrap_or("unknown").to_owned())
}

/// Nothing goes out before the agent has decided; then a labelled pod is captured, and others go their own way. While no agent
/// runs, all stay what they were.
#[test]
fn from_creation_to_enrolment_and_without_an_agent() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, mut agent) = controller::start_on(&lab, &server, &node, &[])?;
    let mut wire = lab.tap()?;
    // The agent hears of no pod for a while.
    let deaf = server.fault(Fault::status(500).on("pods").verbs(&["list", "watch"]));
    server.drop_watches();
    let (app, other) = (node.pod("default", "app", ENROLLED)?, node.pod("default", "other", ALONE)?);
    for pod in [&app, &other] {
        assert_eq!(curl(pod, "early")?, (0, 7), "{}", pod.name());
        assert_eq!(connect(pod)?, "ECONNREFUSED", "{}", pod.name());
    }
    // What never leaves the pod is not refused by us.
    let own = "import socket, sys\nl = socket.create_server(('127.0.0.1', 9000))\nprint(socket.socket().connect_ex(('127.0.0.1', 9000)))";
    assert_eq!(said(&app, None, own, web(80))?, "0");
    // The host's own network, which pods of it share, is nobody's business: no answer is awaited.
    let host = CONNECT.replace("s.settimeout(3)", "s.setblocking(False)");
    let hosts = format!("/proc/{}/ns/net", std::process::id());
    let dialled = said(&app, Some(&hosts), &host, "127.0.0.2:9".parse()?)?;
    let unroutable = said(&app, Some(&hosts), &host, "192.0.2.1:80".parse()?)?;
    assert!(dialled == "EINPROGRESS" || dialled == "ECONNREFUSED", "{dialled}");
    assert_ne!(unroutable, "ECONNREFUSED");

    let mut later = json!({"apiVersion": "v1", "kind": "Pod"});
    later["metadata"] = json!({"namespace": "default", "name": "later", "labels": {"egret.dev/enroll": "true"}});
    later["spec"] = json!({"nodeName": NODE, "containers": [{"name": "app", "image": "app"}]});
    let later = server.create(&later)?;
    server.lift(deaf);
    until("the pods to be heard of", Duration::from_secs(30), || {
        (state(&agent, "default/app").ok()? == "enrolled").then_some(())
    })?;
    await_served(&app, "app")?;
    await_connect(&other, "ok")?;
    assert_eq!(lab.hit("app-")?.tls, "TLSv1.3");
    // A pod that the kubelet has yet to make is told, and the agent is ready all the same.
    assert_eq!(state(&agent, "default/later")?, "waiting for the kubelet to create it");
    assert_eq!(agent.admin("GET", "/healthz/ready")?.0, 200);
    let later = node.run(&later)?;
    await_served(&later, "later")?;

    agent.kill9()?;
    let stranger = node.pod("default", "stranger", ALONE)?;
    assert_eq!(connect(&stranger)?, "ECONNREFUSED");
    assert_eq!(curl(&app, "dead")?, (0, 7));
    assert_eq!(connect(&other)?, "ok");
    // Deleted while nobody looked; the next agent lets it go.
    later.delete()?;
    agent.restart()?;
    await_served(&app, "again")?;
    await_connect(&stranger, "ok")?;
    assert_eq!(connect(&other)?, "ok");
    assert!(!wire.saw(&other.net()?.netns, names::ROUTER.parse()?, MARK)?, "plain text left a pod");
    Ok(())
}

/// A namespace of a pod's own making is no way out.
#[test]
fn another_namespace_is_no_way_out() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    let (app, other) = (node.pod("default", "app", ENROLLED)?, node.pod("default", "other", ALONE)?);
    let _agents = controller::start_on(&lab, &server, &node, &[])?;
    await_served(&app, "app")?;
    await_connect(&other, "ok")?;
    // One that nobody has decided about, wired to the outside.
    let apart = lab.pod("apart")?;
    let path = format!("/run/netns/{}", apart.netns.name());
    let from = |pod: &NodePod<'_>, program: &str| said(pod, Some(&path), program, web(8080));
    assert_eq!(from(&app, CONNECT)?, "ECONNREFUSED");
    // A pod that is left alone may run containers of its own.
    assert_eq!(from(&other, CONNECT)?, "ok");
    // TCP Fast Open, by which the first bytes would go with the SYN, and a SYN written by hand.
    let fast = "
import errno, socket, sys
s = socket.socket()
try: print(s.sendto(b'x', 0x20000000, (sys.argv[1], int(sys.argv[2]))))
except OSError as e: print(errno.errorcode[e.errno])";
    assert_eq!(from(&app, fast)?, "ECONNREFUSED");
    let raw = "
import errno, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
syn = struct.pack('!HHIIBBHHH', 40999, int(sys.argv[2]), 1, 0, 5 << 4, 2, 1024, 0, 0)
try: s.sendto(syn, (sys.argv[1], 0)); print('sent')
except OSError as e: print(errno.errorcode[e.errno])";
    assert_eq!(from(&app, raw)?, "EPERM");
    assert_eq!(from(&other, raw)?, "sent");
    Ok(())
}

/// The same UID in another namespace; another UID under the same name; and labels that change while a pod runs.
#[test]
fn sandboxes_and_pods_that_are_made_again() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    let mut app = node.pod("default", "app", ENROLLED)?;
    let (_controller, agent) = controller::start_on(&lab, &server, &node, &[])?;
    await_served(&app, "first")?;
    let before = agent.metric("egret_capture_enrolled_pods", &[])?;

    app.recreate_sandbox()?;
    await_served(&app, "second")?;
    assert_eq!(state(&agent, "default/app")?, "enrolled");

    // Its document goes before its processes do: no longer wanted, and still no way out.
    server.remove("Pod", "default", "app")?;
    until("the pod to be let go", SOON, || (state(&agent, "default/app").ok()? == "unknown").then_some(()))?;
    assert_eq!(connect(&app)?, "ECONNREFUSED");
    let address = app.net()?.v4;
    drop(app);
    let app = node.pod("default", "app", ENROLLED)?;
    assert_eq!(app.net()?.v4, address);
    await_served(&app, "third")?;

    let label = |value: &str| {
        let labels = json!({"metadata": {"labels": {"egret.dev/enroll": value}}});
        server.patch("Pod", "default", "app", &labels).map(drop)
    };
    label("false")?;
    await_connect(&app, "ok")?;
    assert_eq!(state(&agent, "default/app")?, "unknown");
    label("true")?;
    until("it to be captured", SOON, || (state(&agent, "default/app").ok()? == "enrolled").then_some(()))?;
    await_served(&app, "fourth")?;
    assert_eq!(agent.metric("egret_capture_enrolled_pods", &[])?, before);
    Ok(())
}
