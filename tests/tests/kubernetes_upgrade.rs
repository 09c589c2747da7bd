//! The agent of a node is replaced by a next one, as a DaemonSet with `maxSurge: 1` does it: the next one is there before the
//! other is told to stop.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Agent, Daemon, Lab, agent_binary, egret,
    kube::{
        ApiServer, ENROLLED, Node, NodePod,
        controller::{self, Controller, NAMESPACE},
        crds,
    },
    names,
    objects::{documents, entry, rule},
    under_load, until,
};
use rustix::process::Signal;

const HOST: &str = "www.lab.test";
const NODE: &str = "one";
const SECOND: Duration = Duration::from_secs(1);

fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(&documents(&[entry(HOST, &["80 HTTP 443"]), rule(HOST, "mode: SIMPLE")]))?;
    Ok(server)
}

fn client<'n>(node: &'n Node<'_>) -> Result<NodePod<'n>> {
    node.pod("default", "client", ENROLLED)
}

fn served(pod: &NodePod<'_>) -> Result<()> {
    let reply = pod.curl(&[&format!("http://{HOST}/hello")])?;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(())
}

fn until_served(pod: &NodePod<'_>) -> Result<()> {
    until("the pod to be served", Duration::from_secs(10), || served(pod).ok())
}

fn ended(daemon: &mut Daemon) -> Result<()> {
    let status = daemon.wait(Duration::from_secs(15)).with_context(|| daemon.stderr())?;
    ensure!(status.code() == Some(0), "{status}: {}", daemon.stderr());
    Ok(())
}

/// One that cannot serve takes nothing, whatever becomes of it; without --take-over none starts.
#[test]
fn a_next_agent_that_cannot_serve_takes_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let server = cluster()?;
    let node = Node::new(&lab, &server, NODE)?;
    let _controller = Controller::start(&server, lab.dir())?;
    let flags = ["--cgroup-root", node.cgroup_root()];
    let mut agent = Agent::start_in_cluster(&lab, &controller::agent_of(&server, NODE)?, NODE, &flags)?;
    let pod = client(&node)?;
    let get = |_| served(&pod);
    until_served(&pod)?;

    let mut second = agent.launch(&[])?;
    assert_ne!(second.wait(Duration::from_secs(5))?.code(), Some(0));
    assert!(second.stderr().contains("another egret agent runs on"), "{}", second.stderr());

    // The API server is gone: the next one never gets its first table.
    let serving = u64::from(agent.pid());
    under_load(&[&get], || {
        server.stop();
        let mut old = agent.spawn_next()?;
        until("the next agent to be expected", Duration::from_secs(5), || {
            let (status, body) = agent.admin("GET", "/healthz/ready").ok()?;
            (status == 503 && body.contains("about to take over")).then_some(())
        })?;
        std::thread::sleep(SECOND);
        ensure!(agent.serving_pid() == Some(serving), "{}", agent.stderr());
        agent.kill9()?;
        until("the one before to be ready again", Duration::from_secs(5), || {
            (agent.admin("GET", "/healthz/ready").ok()?.0 == 200).then_some(())
        })?;

        // Told to stop, as a cluster does once the next one is there, it serves on until that one does.
        let next = agent.spawn_next()?;
        drop(next);
        until("the next agent to be expected", Duration::from_secs(5), || {
            (agent.admin("GET", "/healthz/ready").ok()?.0 == 503).then_some(())
        })?;
        old.signal(Signal::TERM)?;
        std::thread::sleep(SECOND);
        ensure!(agent.serving_pid() == Some(serving), "{}", old.stderr());
        server.resume()?;
        until("the next agent to serve", Duration::from_secs(25), || {
            (agent.serving_pid()? == u64::from(agent.pid())).then_some(())
        })
        .with_context(|| agent.stderr())?;
        agent.wait_ready()?;
        ended(&mut old)
    })
    .with_context(|| agent.stderr())
}

/// Agents in pods of their own, so that each has a cgroup of its own.
struct Site<'l> {
    lab: &'l Lab,
    node: &'l Node<'l>,
    admin: String,
    environment: Vec<String>,
}

impl<'l> Site<'l> {
    fn new(lab: &'l Lab, server: &ApiServer, node: &'l Node<'l>) -> Result<Self> {
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.to_string();
        let kubeconfig = controller::agent_of(server, NODE)?;
        let environment = vec![
            format!("KUBECONFIG={}", kubeconfig.display()),
            format!("SSL_CERT_FILE={}", lab.pki.crt("system").display()),
            format!("NODE_NAME={NODE}"),
            format!("POD_NAMESPACE={NAMESPACE}"),
        ];
        Ok(Self { lab, node, admin, environment })
    }

    fn state(&self) -> String {
        self.lab.dir().join("state-upgrade").to_string_lossy().into_owned()
    }

    /// What the DaemonSet's controller and the kubelet do for one revision.
    fn agent(&self, name: &str) -> Result<NodePod<'l>> {
        let binary = agent_binary()?.to_string_lossy().into_owned();
        let (state, root) = (self.state(), self.node.cgroup_root());
        let run = [
            &binary,
            "run",
            "--kubernetes",
            "--take-over",
            "--state-dir",
            &state,
            "--admin",
            &self.admin,
            "--cgroup-root",
            root,
        ];
        let words = ["env"].into_iter().chain(self.environment.iter().map(String::as_str)).chain(run);
        let command = serde_json::to_string(&words.collect::<Vec<_>>())?;
        let spec = format!("{{hostNetwork: true, containers: [{{name: agent, image: egret, command: {command}}}]}}");
        self.node.pod(NAMESPACE, name, &format!("spec: {spec}"))
    }

    /// Waits until this agent serves.
    fn await_agent(&self, agent: &NodePod<'_>) -> Result<()> {
        until("the agent to serve", Duration::from_secs(20), || {
            let (_, status, _) = egret(&["status", "-o", "json", "--admin", &self.admin]).ok()?;
            let status: serde_json::Value = serde_json::from_str(&status).ok()?;
            let pid = u32::try_from(status["pid"].as_u64()?).ok()?;
            (status["state"] == "ready" && agent.pids().contains(&pid)).then_some(())
        })
        .with_context(|| agent.log())
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        let _ = egret(&["uninstall", "--state-dir", &self.state()]);
    }
}

/// A request of which half has come: for it, and for all that was under way, the agent before goes on dialling.
const HALF: &str = "
import os, socket, sys, time
peer = socket.create_connection((sys.argv[1], 80))
peer.sendall(b'GET /hello?half HTTP/1.1\\r\\nHost: www.lab')
open(sys.argv[2], 'w').close()
end = time.monotonic() + 30
while not os.path.exists(sys.argv[3]) and time.monotonic() < end:
    time.sleep(0.02)
peer.sendall(b'.test\\r\\nConnection: close\\r\\n\\r\\n')
print(peer.makefile().readline())";

#[test]
fn agents_in_pods_of_their_own_take_turns() -> Result<()> {
    let lab = Lab::new()?;
    let server = cluster()?;
    let node = Node::new(&lab, &server, NODE)?;
    let _controller = Controller::start(&server, lab.dir())?;
    let site = Site::new(&lab, &server, &node)?;
    let mut agent = site.agent("egret-0")?;
    site.await_agent(&agent)?;
    let pod = client(&node)?;
    until_served(&pod)?;
    for turn in 1..=2 {
        let [there, on] = ["there", "on"].map(|mark| lab.dir().join(format!("{mark}-{turn}")));
        let [there_arg, on_arg] = [&there, &on].map(|path| path.to_string_lossy().into_owned());
        std::thread::scope(|scope| {
            let half = scope.spawn(|| pod.run("python3", &["-c", HALF, names::WEB, &there_arg, &on_arg], b""));
            until("half a request", Duration::from_secs(10), || there.exists().then_some(()))?;
            let next = under_load_of(&pod, || {
                let next = site.agent(&format!("egret-{turn}"))?;
                site.await_agent(&next)?;
                Ok(next)
            });
            // Also where that failed, or the client would wait.
            std::fs::write(&on, "")?;
            let half = half.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
            let next = next?;
            let told = String::from_utf8_lossy(&half.stdout);
            ensure!(told.starts_with("HTTP/1.1 200"), "{told}{half:?}\n{}\n{}", agent.log(), next.log());
            std::mem::replace(&mut agent, next).delete()
        })?;
        served(&pod).with_context(|| agent.log())?;
    }
    Ok(())
}

/// Not one call of the pod may fail meanwhile.
fn under_load_of<T>(pod: &NodePod<'_>, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut made = None;
    under_load(&[&|_| served(pod)], || {
        made = Some(change()?);
        Ok(())
    })?;
    made.context("nothing was made")
}
