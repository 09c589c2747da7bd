//! The containers of the manifests, run by an OCI runtime with what they ask for and no more: capabilities, a root file system
//! that nobody writes to, system calls, users, hostPath volumes, service accounts.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use egret_tests::{
    Lab, egret,
    kube::{
        ApiServer, ENROLLED, Node, NodePod,
        controller::INSTALL,
        crds,
        host::{Host, template},
    },
    objects::{documents, entry, object, rule},
    until,
};
use serde_json::Value;

const UNINSTALL: &str = include_str!("../../config/kubernetes/uninstall.yaml");
const NODE: &str = "one";
const HOST: &str = "www.lab.test";
/// curl's exit code.
const REFUSED: i32 = 7;
const SOON: Duration = Duration::from_secs(10);

/// Says who calls, at most so often.
const APPLICATION: &str = "
import http.server
class Who(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.client_address[0].encode())
http.server.HTTPServer(('0.0.0.0', 8080), Who).serve_forever()";

/// An HTTP server at a socket that only its own user may open, and which another user owns than root.
const AT_A_PATH: &str = "
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
os.chown(sys.argv[1], 1000, 1000)
os.chmod(sys.argv[1], 0o700)
while True:
    peer, _ = listener.accept()
    peer.recv(4096)
    peer.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok')
    peer.close()";

/// A cluster with egret's objects, and one rule.
fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(&crds::all())?;
    server.apply_yaml(INSTALL)?;
    let gateway =
        "{selector: {app: gateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}";
    let route =
        format!("{{hosts: [{HOST}], gateways: [gateway], http: [{{route: [{{destination: {{host: {HOST}}}}}]}}]}}");
    server.apply_yaml(&documents(&[
        entry(HOST, &["80 HTTP 443"]),
        rule(HOST, "mode: SIMPLE"),
        object("Gateway", "gateway", gateway),
        object("VirtualService", "gateway", &route),
    ]))?;
    Ok(server)
}

fn client<'n>(node: &'n Node<'_>) -> Result<NodePod<'n>> {
    node.pod("default", "client", ENROLLED)
}

/// Its listener is on port 80.
fn gateway<'n>(node: &'n Node<'_>) -> Result<NodePod<'n>> {
    node.pod("default", "gateway", "metadata: {labels: {egret.dev/enroll: \"true\", app: gateway}}")
}

/// What comes to its port 9081 goes to a socket at a path.
fn application_at_a_path<'n>(lab: &Lab, server: &ApiServer, node: &'n Node<'_>) -> Result<NodePod<'n>> {
    let path = lab.dir().join("application.sock").to_string_lossy().into_owned();
    let port = "{number: 9081, name: http, protocol: HTTP}";
    let ingress = format!("{{port: {port}, defaultEndpoint: 'unix://{path}'}}");
    let spec = format!("{{workloadSelector: {{labels: {{app: at-a-path}}}}, ingress: [{ingress}]}}");
    server.apply_yaml(&object("Sidecar", "at-a-path", &spec))?;
    let command = serde_json::to_string(&["python3", "-c", AT_A_PATH, &path])?;
    let labels = "{egret.dev/enroll: \"true\", app: at-a-path}";
    let spec = format!("{{containers: [{{name: app, image: app, command: {command}}}]}}");
    node.pod("default", "at-a-path", &format!("metadata: {{labels: {labels}}}\nspec: {spec}"))
}

fn at_a_path_url(pod: &NodePod<'_>) -> Result<String> {
    Ok(format!("http://{}:9081/", pod.net()?.v4))
}

/// 200 over TLS, 301 where the client's plain text gets out, 0 where it is refused.
fn asked(pod: &NodePod<'_>) -> Result<(u16, i32)> {
    let reply = pod.curl(&["-o", "/dev/null", &format!("http://{HOST}/hello")])?;
    Ok((reply.status, reply.exit))
}

fn until_asked(pod: &NodePod<'_>, wanted: (u16, i32), agent: &NodePod<'_>) -> Result<()> {
    let mut last = None;
    until(&format!("{wanted:?} for {}", pod.name()), SOON, || {
        last = asked(pod).ok();
        (last == Some(wanted)).then_some(())
    })
    .with_context(|| format!("{last:?}; the agent's log:\n{}", agent.log()))
}

/// The agent's capabilities, and their numbers in `linux/capability.h`.
fn stated(daemon_set: &Value) -> Result<Vec<(String, u32)>> {
    let stated = &daemon_set["spec"]["containers"][0]["securityContext"]["capabilities"]["add"];
    let numbered = stated.as_array().into_iter().flatten().filter_map(Value::as_str).map(|name| {
        let bit = match name {
            "DAC_OVERRIDE" => 1,
            "NET_BIND_SERVICE" => 10,
            "NET_ADMIN" => 12,
            "SYS_PTRACE" => 19,
            "SYS_ADMIN" => 21,
            _ => bail!("what is {name} for?"),
        };
        Ok((name.to_owned(), bit))
    });
    numbered.collect()
}

/// What a process of the machine may do: a line of its /proc/<pid>/status.
fn status(host: &Host<'_>, pid: u32, field: &str) -> Result<String> {
    let output = host.run("cat", &[&format!("/proc/{pid}/status")])?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("{field} of {pid}: {text}"))?.trim().to_owned())
}

/// The process that answers where agents do.
fn serving(host: &Host<'_>) -> Result<u32> {
    let (_, text, said) = egret(&["status", "-o", "json", "--admin", &host.admin().to_string()])?;
    let status: Value = serde_json::from_str(&text).with_context(|| said)?;
    Ok(u32::try_from(status["pid"].as_u64().context("no pid")?)?)
}

#[test]
fn containers_of_a_node() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    from_first_to_last(&lab, &server, &node, &Host::start(&lab, &server, &node)?)
}

/// As in kind: the agent's arguments are those of the manifest, and the cluster has the machine to itself.
#[test]
fn containers_of_a_node_that_is_one_itself() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    from_first_to_last(&lab, &server, &node, &Host::start_nested(&lab, &server, &node)?)
}

/// What an agent pins must outlive its container: where the machine has no bpf file system, as a node of kind, it says so and runs
/// once there is one.
#[test]
fn a_node_without_a_bpf_file_system() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    let host = Host::start_nested(&lab, &server, &node)?;
    let free = "while [ \"$(stat -f -c %T /sys/fs/bpf)\" = bpf_fs ]; do umount /sys/fs/bpf || exit 1; done";
    let freed = host.run("sh", &["-c", free])?;
    ensure!(freed.status.success(), "{freed:?}");
    let daemon_set = template(INSTALL, "DaemonSet", "egret-agent")?;
    let mut agent = host.agent(&daemon_set, "egret-agent-0")?;
    assert_eq!(agent.wait(SOON)?, Some(1));
    assert!(agent.log().contains("no BPF file system is mounted on the machine at /sys/fs/bpf"), "{}", agent.log());
    let mounted = host.run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"])?;
    ensure!(mounted.status.success(), "{mounted:?}");
    let again = host.agent(&daemon_set, "egret-agent-1")?;
    let pod = client(&node)?;
    host.await_ready(&daemon_set, &again)?;
    until_asked(&pod, (200, 0), &again)?;
    again.delete()?;
    assert_eq!(asked(&pod)?, (0, REFUSED), "what is pinned stays");
    Ok(())
}

/// What each capability is for: without any one of them something does not work.
#[test]
fn no_capability_is_superfluous() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    let host = Host::start_nested(&lab, &server, &node)?;
    let (pod, _gateway) = (client(&node)?, gateway(&node)?);
    let at_a_path = application_at_a_path(&lab, &server, &node)?;
    let (outside, url) = (node.pod("default", "outside", "")?, at_a_path_url(&at_a_path)?);
    let daemon_set = template(INSTALL, "DaemonSet", "egret-agent")?;
    for (capability, _) in stated(&daemon_set)? {
        let mut less = daemon_set.clone();
        let stated = &mut less["spec"]["containers"][0]["securityContext"]["capabilities"]["add"];
        if let Some(stated) = stated.as_array_mut() {
            stated.retain(|other| *other != *capability);
        }
        let agent = host.agent(&less, &format!("without-{}", capability.to_lowercase().replace('_', "-")))?;
        let waits = || {
            let (_, status, _) = egret(&["status", "--admin", &host.admin().to_string()])?;
            Ok::<_, anyhow::Error>(status.contains("waiting for its first process"))
        };
        let shown = || match &*capability {
            "SYS_ADMIN" | "NET_ADMIN" => agent.log().contains(&format!("lacks CAP_{capability}")),
            "SYS_PTRACE" => waits().is_ok_and(|waits| waits) && asked(&pod).is_ok_and(|told| told == (0, REFUSED)),
            "NET_BIND_SERVICE" => agent.log().contains("cannot listen on 0.0.0.0:80"),
            "DAC_OVERRIDE" => outside.curl(&[&url]).is_ok_and(|reply| reply.body.contains("Permission denied")),
            _ => false,
        };
        until(&format!("a fault for want of {capability}"), SOON, || shown().then_some(()))
            .with_context(|| agent.log())?;
        agent.delete()?;
    }
    Ok(())
}

fn from_first_to_last(lab: &Lab, server: &ApiServer, node: &Node<'_>, host: &Host<'_>) -> Result<()> {
    let deployment = template(INSTALL, "Deployment", "egret-controller")?;
    let controller = host.controller(&deployment, "egret-controller-0")?;
    let daemon_set = template(INSTALL, "DaemonSet", "egret-agent")?;
    let agent = host.agent(&daemon_set, "egret-agent-0")?;
    let pod = client(node)?;
    host.await_ready(&daemon_set, &agent)?;
    host.await_ready(&deployment, &controller)?;
    until_asked(&pod, (200, 0), &agent)?;

    // No more than what is written.
    let pid = serving(host)?;
    let bits = stated(&daemon_set)?.iter().fold(0_u64, |all, (_, bit)| all | 1 << bit);
    for field in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(status(host, pid, field)?, format!("{bits:016x}"), "{field}");
    }
    for field in ["CapInh", "CapAmb"] {
        assert_eq!(status(host, pid, field)?, format!("{:016x}", 0), "{field}");
    }
    assert_eq!(status(host, pid, "Seccomp")?, "2");

    // Below its container's cgroup, whose limits are its own.
    let cgroup = host.run("cat", &[&format!("/proc/{pid}/cgroup")])?;
    let cgroup = String::from_utf8(cgroup.stdout)?;
    let own = cgroup.lines().find(|line| line.starts_with("0::")).unwrap_or_default();
    assert!(own.contains("/kubepods-burstable-pod") && own.ends_with(".scope/egret/default"), "{cgroup}");

    // Of another user, without any capability: its namespace and its resolv.conf are read all the same.
    let other = node.pod(
        "default",
        "other",
        "metadata: {labels: {egret.dev/enroll: \"true\"}}\n\
         spec: {containers: [{name: app, image: app, command: [setpriv, --reuid=1000, --regid=1000, --clear-groups, --bounding-set=-all, sleep, infinity]}]}",
    )?;
    until_asked(&other, (200, 0), &agent)?;

    // Listens on a port below 1024 in the pod.
    let gateway = gateway(node)?;
    let outside = node.pod("default", "outside", "")?;
    let url = format!("http://{}/hello", gateway.net()?.v4);
    let through = || outside.curl(&["-o", "/dev/null", "-H", &format!("host: {HOST}"), &url]);
    until("the gateway to serve", SOON, || through().ok().filter(|reply| reply.status == 200))
        .with_context(|| agent.log())?;

    // The application sees its client, which takes routes and a sysctl of the pod.
    let command = serde_json::to_string(&["python3", "-c", APPLICATION])?;
    let application = node.pod(
        "default",
        "application",
        &format!(
            "metadata: {{labels: {{egret.dev/enroll: \"true\"}}, annotations: {{sidecar.istio.io/interceptionMode: TPROXY}}}}\n\
             spec: {{containers: [{{name: app, image: app, command: {command}}}]}}"
        ),
    )?;
    let url = format!("http://{}:8080/", application.net()?.v4);
    let own = outside.net()?.v4.to_string();
    let mut last = None;
    until("the application to see its client", SOON, || {
        last = outside.curl(&[&url]).ok();
        last.as_ref().is_some_and(|reply| reply.body == own).then_some(())
    })
    .with_context(|| format!("{last:?}; the agent's log:\n{}", agent.log()))?;

    // A socket at a path of the pod's own files.
    let at_a_path = application_at_a_path(lab, server, node)?;
    let url = at_a_path_url(&at_a_path)?;
    let mut last = None;
    until("the socket to be reached", SOON, || {
        last = outside.curl(&[&url]).ok();
        last.as_ref().is_some_and(|reply| reply.body == "ok").then_some(())
    })
    .with_context(|| format!("{last:?}; the agent's log:\n{}", agent.log()))?;

    // The next revision takes its place, as maxSurge has it.
    let next = host.agent(&daemon_set, "egret-agent-1")?;
    until("the next agent to serve", SOON, || serving(host).ok().filter(|other| *other != pid))
        .with_context(|| next.log())?;
    agent.delete()?;
    assert_eq!(asked(&pod)?, (200, 0), "{}", next.log());

    // `kubectl delete -f egret.yaml`: refused, until uninstall.yaml is applied.
    let uninstall = template(UNINSTALL, "DaemonSet", "egret-uninstall")?;
    let mut early = host.pod(&uninstall, "egret-uninstall-0", &[])?;
    assert_ne!(early.wait(SOON)?, Some(0), "under an agent's feet");
    assert!(early.log().contains("an agent is still running"), "{}", early.log());
    next.delete()?;
    assert_eq!(asked(&pod)?, (0, REFUSED));
    let late = node.pod("default", "late", ENROLLED)?;
    assert_eq!(asked(&late)?, (0, REFUSED), "held since its creation");
    assert_ne!(remains(node, host)?, "");
    let mut last = host.pod(&uninstall, "egret-uninstall-1", &[])?;
    assert_eq!(last.wait(SOON)?, Some(0), "{}", last.log());
    for free in [&pod, &late, &other] {
        assert_eq!(asked(free)?, (301, 0), "{}: {}", free.name(), last.log());
    }
    assert_eq!(remains(node, host)?, "", "{}", last.log());
    let rules = application.run("ip", &["rule"], b"")?;
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("15006"), "{rules:?}");
    Ok(())
}

/// What agents have pinned, and the cgroups that they made on the machine of the node; not on those of other tests.
fn remains(node: &Node<'_>, host: &Host<'_>) -> Result<String> {
    let own = format!("/sys/fs/cgroup/{}/*", node.cgroup_root());
    let places = ["/sys/fs/bpf", "/sys/fs/cgroup", "-path", "*/egret/default"];
    let apart = ["(", "-not", "-path", "/sys/fs/cgroup/egt-*", "-o", "-path", &own, ")"];
    let found = host.run("find", &[&places[..], &apart].concat())?;
    Ok(String::from_utf8(found.stdout)?)
}
