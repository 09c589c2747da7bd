//! A node: pods that are real, made and ended in the kubelet's order.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Client,
    api::random_hex,
    cgroups::{self, Class, Driver, Runtime},
};
use crate::{
    lab::{Lab, fresh_id},
    pod::{Pod, Reply},
    process::{Daemon, run_in, until},
};

/// The rest of a Pod that says of itself that it is to be enrolled, see [`Node::pod`].
pub const ENROLLED: &str = "metadata: {labels: {egret.dev/enroll: \"true\"}}";
/// The same of one that is to be left alone.
pub const ALONE: &str = "metadata: {labels: {egret.dev/enroll: \"false\"}}";

const ENTER_TIME: Duration = Duration::from_secs(5);

/// Puts itself into the cgroup, and becomes the command in the namespace; as with runc, a process is in its container's cgroup
/// before it is in the pod's network.
const ENTER: &str = r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#;

/// A node of a cluster. Its pods must be dropped before it; with it goes what is left of them.
pub struct Node<'a> {
    lab: &'a Lab,
    cluster: &'a Client,
    name: String,
    driver: Driver,
    runtime: Runtime,
    /// The kubelet's `--cgroup-root`: one of its own, so that nodes of several tests do not meet.
    cgroup_root: String,
    tree: PathBuf,
    /// The namespace of its processes, where it has one of its own.
    processes: OnceLock<String>,
}

impl<'a> Node<'a> {
    /// A node with the systemd driver and containerd, as most are.
    pub fn new(lab: &'a Lab, cluster: &'a Client, name: &str) -> Result<Self> {
        Self::with(lab, cluster, name, Driver::Systemd, Runtime::Containerd)
    }

    pub fn with(lab: &'a Lab, cluster: &'a Client, name: &str, driver: Driver, runtime: Runtime) -> Result<Self> {
        let cgroup_root = fresh_id();
        let tree = cgroups::root()?.join(&cgroup_root);
        // The kubelet makes these once, at its start.
        let (top, stem) = match driver {
            Driver::Systemd => ("kubepods.slice", "kubepods-"),
            Driver::Cgroupfs => ("kubepods", ""),
        };
        let slice = if driver == Driver::Systemd { ".slice" } else { "" };
        for class in ["burstable", "besteffort"] {
            std::fs::create_dir_all(tree.join(top).join(format!("{stem}{class}{slice}")))?;
        }
        let node = Self {
            lab,
            cluster,
            name: name.to_owned(),
            driver,
            runtime,
            cgroup_root,
            tree,
            processes: OnceLock::new(),
        };
        cluster.apply(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        }))?;
        let addresses = json!([{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}]);
        cluster.patch_status("Node", "", name, &json!({"addresses": addresses}))?;
        Ok(node)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Below the mount of cgroup2, for the agent's `--cgroup-root`.
    #[must_use]
    pub fn cgroup_root(&self) -> &str {
        &self.cgroup_root
    }

    /// That folder.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// From now on its pods' processes are started in this namespace of processes.
    pub(super) fn set_processes(&self, namespace: String) -> Result<()> {
        self.processes.set(namespace).map_err(|_| anyhow::anyhow!("node {} has its processes already", self.name))
    }

    /// Creates a Pod and runs it. `rest` is the object's labels, spec and so on, as YAML; where it names no container, there
    /// is one that sleeps.
    pub fn pod(&self, namespace: &str, name: &str, rest: &str) -> Result<NodePod<'_>> {
        let mut object: Value = if rest.trim().is_empty() { json!({}) } else { serde_saphyr::from_str(rest)? };
        object["apiVersion"] = "v1".into();
        object["kind"] = "Pod".into();
        object["metadata"]["namespace"] = namespace.into();
        object["metadata"]["name"] = name.into();
        object["spec"]["nodeName"] = self.name.clone().into();
        if object["spec"]["containers"].is_null() {
            object["spec"]["containers"] = json!([{"name": "app", "image": "app"}]);
        }
        self.run(&self.cluster.create(&object)?)
    }

    /// What the kubelet does with a pod that is bound to its node: the pod's cgroup, its sandbox with the network, its
    /// containers; only then the status tells the address.
    pub fn run(&self, object: &Value) -> Result<NodePod<'_>> {
        let mut pod = self.prepare(object)?;
        pod.start()?;
        Ok(pod)
    }

    /// The pod's cgroup and nothing in it yet.
    pub fn prepare(&self, object: &Value) -> Result<NodePod<'_>> {
        let uid = object["metadata"]["uid"].as_str().context("a pod without uid is not in the cluster")?;
        let cgroup = self.tree.join(cgroups::pod(self.driver, class(object), uid));
        std::fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        Ok(NodePod { node: self, object: object.clone(), cgroup, sandbox: None, containers: Vec::new() })
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let _ = cgroups::kill(&self.tree);
        let _ = cgroups::remove(&self.tree);
        // The server may be gone already.
        let _ = self.cluster.remove("Node", "", &self.name);
    }
}

/// By requests and limits, as `pkg/apis/core/v1/helper/qos` has it.
fn class(object: &Value) -> Class {
    let containers = object["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let resources = |container: &Value, field: &str| container["resources"][field].clone();
    let guaranteed = |container: &Value| {
        let limits = resources(container, "limits");
        let requests = resources(container, "requests");
        limits["cpu"].is_string() && limits["memory"].is_string() && (requests.is_null() || requests == limits)
    };
    if containers.iter().all(guaranteed) {
        Class::Guaranteed
    } else if containers
        .iter()
        .all(|container| container["resources"].as_object().is_none_or(serde_json::Map::is_empty))
    {
        Class::BestEffort
    } else {
        Class::Burstable
    }
}

/// A pod on a node. Dropped: its processes are killed, its network and cgroup go, and the object too.
pub struct NodePod<'n> {
    node: &'n Node<'n>,
    object: Value,
    cgroup: PathBuf,
    sandbox: Option<Sandbox>,
    containers: Vec<Container>,
}

/// The pod's network unless that is the host's.
struct Sandbox {
    number: u32,
    net: Option<Pod>,
}

struct Container {
    cgroup: PathBuf,
    process: Daemon,
}

impl NodePod<'_> {
    #[must_use]
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        self.object["metadata"]["namespace"].as_str().unwrap_or_default()
    }

    #[must_use]
    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// The Pod as it was created.
    #[must_use]
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// The pod's folder in the cgroup2 tree.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The pod's network, with its addresses.
    pub fn net(&self) -> Result<&Pod> {
        self.sandbox.as_ref().and_then(|sandbox| sandbox.net.as_ref()).context("the pod has no network of its own")
    }

    /// Process ids: that of the pause container first, where there is one.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.containers.iter().map(|container| container.process.pid()).collect()
    }

    /// Makes the sandbox, starts the containers' commands, and tells the status.
    pub fn start(&mut self) -> Result<()> {
        let node = self.node;
        let number = self.free().pop().context("the node has no address left")?;
        let host = self.object["spec"]["hostNetwork"] == true;
        let netns = format!("{}-{}", self.namespace(), self.name());
        let net = if host { None } else { Some(node.lab.pod_numbered(&netns, number)?) };
        self.sandbox = Some(Sandbox { number, net });
        // CRI-O keeps no process for the sandbox where containers share no process ids (`drop_infra_ctr`, its default).
        if node.runtime == Runtime::Containerd {
            self.launch("pause", &["sleep", "infinity"])?;
        }
        let containers = self.object["spec"]["containers"].as_array().cloned().unwrap_or_default();
        for container in &containers {
            let words: Vec<&str> = ["command", "args"]
                .iter()
                .flat_map(|field| container[field].as_array().into_iter().flatten())
                .filter_map(Value::as_str)
                .collect();
            let words = if words.is_empty() { vec!["sleep", "infinity"] } else { words };
            self.launch(container["name"].as_str().unwrap_or_default(), &words)?;
        }
        self.tell("Running")
    }

    /// A container whose first process is this command.
    fn launch(&mut self, name: &str, words: &[&str]) -> Result<()> {
        let id = random_hex(32);
        let cgroup = self.cgroup.join(cgroups::container(self.node.driver, self.node.runtime, &id));
        std::fs::create_dir(&cgroup)?;
        let command = self.inside(&cgroup, words)?;
        let daemon = format!("{}-{}-{name}-{}", self.namespace(), self.name(), &id[..8]);
        let mut process = Daemon::start(&daemon, command, self.node.lab.dir())?;
        // A runtime is done with a container's start once its process is where it belongs.
        let of_process = format!("/proc/{}/cgroup", process.pid());
        until("a process to be in its cgroup", ENTER_TIME, || {
            // Or further down, where it has gone by itself.
            let inside = std::fs::read_to_string(&of_process).unwrap_or_default();
            (inside.contains(&id) || !process.alive()).then_some(())
        })?;
        self.containers.push(Container { cgroup, process });
        Ok(())
    }

    /// A command in a cgroup, and in the pod's network and mount namespace.
    fn inside(&self, cgroup: &Path, words: &[&str]) -> Result<Command> {
        let mut command = Command::new("sh");
        command.args(["-c", ENTER, "sh"]).arg(cgroup);
        if let Some(namespace) = self.node.processes.get() {
            command.args(["nsenter", &format!("--pid={namespace}"), "--"]);
        }
        if let Some(net) = &self.sandbox.as_ref().context("the pod does not run")?.net {
            command.args(["ip", "netns", "exec", net.netns.name()]);
        }
        command.args(words);
        Ok(command)
    }

    /// The status, as the kubelet writes it.
    fn tell(&self, phase: &str) -> Result<()> {
        let addresses = match &self.sandbox {
            Some(Sandbox { net: Some(net), .. }) => vec![net.v4.to_string(), net.v6.to_string()],
            _ => vec!["127.0.0.1".to_owned()],
        };
        let ready = if phase == "Running" { "True" } else { "False" };
        let status = json!({
            "phase": phase, "hostIP": "127.0.0.1", "hostIPs": [{"ip": "127.0.0.1"}], "podIP": addresses[0],
            "podIPs": addresses.iter().map(|address| json!({"ip": address})).collect::<Vec<_>>(),
            "conditions": [{"type": "Ready", "status": ready}], "startTime": super::api::now(),
        });
        self.node.cluster.patch_status("Pod", self.namespace(), self.name(), &status).map(drop)
    }

    /// Any program inside the pod, as `kubectl exec` runs it: in the last container's cgroup.
    pub fn run(&self, program: &str, args: &[&str], input: &[u8]) -> Result<Output> {
        let container = self.containers.last().context("the pod has no container")?;
        run_in(self.inside(&container.cgroup, &[&[program], args].concat())?, input)
    }

    /// `curl -sS --max-time 10 ARGS` inside the pod.
    pub fn curl(&self, args: &[&str]) -> Result<Reply> {
        Reply::of(&self.run("curl", &[&Reply::ASKED[..], args].concat(), b"")?)
    }

    /// What the last container has written to standard output and error.
    #[must_use]
    pub fn log(&self) -> String {
        self.containers.last().map(|last| last.process.stdout() + &last.process.stderr()).unwrap_or_default()
    }

    /// Waits for the end of the last container's command, and hands back its exit code.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        let last = self.containers.last_mut().context("the pod has no container")?;
        Ok(last.process.wait(limit)?.code())
    }

    /// As after a crash of the sandbox: the same pod, the same cgroup, new containers in a new network.
    pub fn recreate_sandbox(&mut self) -> Result<()> {
        self.end_processes()?;
        self.start()
    }

    /// `kubectl delete pod` and what the kubelet does then: the deletion is marked, the processes are killed, the network and
    /// the cgroup go, and at last the object.
    pub fn delete(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.node.cluster.mark_deleted("Pod", self.namespace(), self.name())?;
        self.end_here()?;
        self.node.cluster.remove("Pod", self.namespace(), self.name())
    }

    fn end_here(&mut self) -> Result<()> {
        self.end_processes()?;
        cgroups::remove(&self.cgroup).with_context(|| format!("cannot remove {}", self.cgroup.display()))
    }

    fn end_processes(&mut self) -> Result<()> {
        cgroups::kill(&self.cgroup)?;
        for container in self.containers.drain(..) {
            drop(container.process);
            let _ = cgroups::remove(&container.cgroup);
        }
        if let Some(sandbox) = self.sandbox.take() {
            if sandbox.net.is_some() {
                // The kernel takes its time with a namespace; its wire is to be gone now.
                self.node.lab.unwire(sandbox.number)?;
            }
            drop(sandbox.net);
            self.free().push(sandbox.number);
        }
        Ok(())
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.node.lab.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NodePod<'_> {
    fn drop(&mut self) {
        if !self.cgroup.exists() {
            return;
        }
        // Here first: the server may be gone, or answer nothing.
        if let Err(error) = self.end_here() {
            eprintln!("pod {}: {error:#}", self.name());
        }
        let _ = self.node.cluster.remove("Pod", self.namespace(), self.name());
    }
}
