//! The machine of a node, whose containers are real: made from what a manifest says by an OCI runtime. It has processes of its
//! own, so that process 1 is one that its containers may look at, as on any node.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    ApiServer, Node, NodePod, cgroups,
    client::documents,
    container::{self, Surroundings},
};
use crate::{
    agent::{agent_binary, free_port, request},
    image,
    lab::Lab,
    process::{Daemon, run_in, until},
};

/// The machine's first process, in a namespace of processes and a view of files of its own, which end with it: what is pinned in
/// its bpf file system goes too. The cgroups are where most nodes have them, whatever this machine has beside them.
const MACHINE: &str = r#"mount --bind "$1" /var/lib && mount -t bpf -o mode=700 bpf /sys/fs/bpf &&
    mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t proc proc /proc && echo ready && exec sleep infinity"#;
/// Starts it in the node's cgroup, with which it ends.
const START: &str =
    r#"echo $$ > "$1/cgroup.procs" && shift && exec unshare --mount --pid --fork --propagation private "$@""#;
const START_TIME: Duration = Duration::from_secs(10);
/// The agent's own time, and that of the first load of a debug binary.
const READY_TIME: Duration = Duration::from_secs(30);

/// See the module's documentation. Its pods must be dropped before it. All are in the machine's network, where the API server
/// listens.
pub struct Host<'a> {
    lab: &'a Lab,
    server: &'a ApiServer,
    node: &'a Node<'a>,
    nested: bool,
    machine: Daemon,
    rootfs: PathBuf,
    /// Where agents answer, and where the controller does.
    admin: [SocketAddr; 2],
}

/// The pods' template of a workload of a manifest.
pub fn template(manifest: &str, kind: &str, name: &str) -> Result<Value> {
    let wanted = |document: &Value| document["kind"] == kind && document["metadata"]["name"] == name;
    let workload = documents(manifest)?.into_iter().find(wanted).with_context(|| format!("no {kind} {name}"))?;
    let mut template = workload["spec"]["template"].clone();
    template["metadata"]["namespace"] = workload["metadata"]["namespace"].clone();
    Ok(template)
}

impl<'a> Host<'a> {
    pub fn start(lab: &'a Lab, server: &'a ApiServer, node: &'a Node<'a>) -> Result<Self> {
        Self::start_as(lab, server, node, false)
    }

    /// A node that is a container itself, as in kind: of the cgroups there are only those below its own.
    pub fn start_nested(lab: &'a Lab, server: &'a ApiServer, node: &'a Node<'a>) -> Result<Self> {
        Self::start_as(lab, server, node, true)
    }

    fn start_as(lab: &'a Lab, server: &'a ApiServer, node: &'a Node<'a>, nested: bool) -> Result<Self> {
        let (rootfs, files) = (lab.dir().join("image"), lab.dir().join("var-lib"));
        image::lay(&agent_binary()?, &rootfs)?;
        std::fs::create_dir(&files)?;
        let mut command = Command::new("sh");
        command.args(["-c", START, "sh"]).arg(node.tree());
        command.args(nested.then_some("--cgroup")).args(["sh", "-c", MACHINE, "sh"]).arg(files);
        let mut machine = Daemon::start(&format!("machine-{}", node.name()), command, lab.dir())?;
        machine.wait_for("ready", START_TIME)?;
        node.set_processes(format!("/proc/{}/ns/pid_for_children", machine.pid()))?;
        Ok(Self { lab, server, node, nested, machine, rootfs, admin: [free_port()?, free_port()?] })
    }

    /// Where agents answer on this machine.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin[0]
    }

    /// A program of the machine, which sees its files and processes.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = Command::new("nsenter");
        let processes = format!("--pid=/proc/{}/ns/pid_for_children", self.machine.pid());
        command.args([processes, self.files()]).arg(program).args(args);
        run_in(command, b"")
    }

    fn files(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.machine.pid())
    }

    /// An agent of the DaemonSet: as [`Host::pod`], apart from those of other tests.
    pub fn agent(&self, template: &Value, name: &str) -> Result<NodePod<'a>> {
        let admin = self.admin().to_string();
        let mut flags = vec![("--admin", &*admin)];
        if !self.nested {
            flags.push(("--cgroup-root", self.node.cgroup_root()));
        }
        self.pod(template, name, &flags)
    }

    /// A pod of the controller's Deployment.
    pub fn controller(&self, template: &Value, name: &str) -> Result<NodePod<'a>> {
        self.pod(template, name, &[("--admin", &self.admin[1].to_string())])
    }

    /// Creates a pod of a template and runs its containers, each with these flags instead of its own or beside them. Where it has
    /// init containers, those are run and the others only wait.
    pub fn pod(&self, template: &Value, name: &str, flags: &[(&str, &str)]) -> Result<NodePod<'a>> {
        let mut object = template.clone();
        (object["apiVersion"], object["kind"]) = ("v1".into(), "Pod".into());
        object["metadata"]["name"] = name.into();
        object["spec"]["nodeName"] = self.node.name().into();
        let mut made = self.server.create(&object)?;
        let account = self.account(&made)?;
        let bundles = self.lab.dir().join(format!("bundles-{name}"));
        let field = if made["spec"]["initContainers"].is_array() { "initContainers" } else { "containers" };
        let mut containers = made["spec"][field].as_array().cloned().unwrap_or_default();
        for container in &mut containers {
            for (flag, value) in flags {
                set(container, flag, value);
            }
            self.make_folders(&made, container)?;
            let id = format!("{name}-{}", container["name"].as_str().unwrap_or_default());
            let bundle = bundles.join(&id);
            std::fs::create_dir_all(&bundle)?;
            let system_ca = self.lab.pki.crt("system");
            let around = Surroundings {
                rootfs: &self.rootfs,
                account: &account,
                server: (self.server.address().ip().to_string(), self.server.address().port()),
                over: &[(&system_ca, image::CA_BUNDLE)],
            };
            let config = container::config(&made, container, &around)?;
            std::fs::write(bundle.join("config.json"), config.to_string())?;
            *container = json!({"name": container["name"], "resources": container["resources"], "command": self.words(&bundle, &id)});
        }
        made["spec"]["containers"] = containers.into();
        made["spec"]["hostNetwork"] = true.into();
        self.node.run(&made)
    }

    /// The runtime leaves the cgroup to whoever starts it, which is the node.
    fn words(&self, bundle: &Path, id: &str) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut words = vec!["nsenter".to_owned(), self.files()];
        words.extend(["crun", "--cgroup-manager", "disabled", "--root"].map(str::to_owned));
        words.extend([text(&self.lab.dir().join("crun")), "run".into(), "--bundle".into(), text(bundle), id.into()]);
        words
    }

    fn account(&self, pod: &Value) -> Result<PathBuf> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
        let token = self.server.service_account_of_pod(&namespace, account, pod)?;
        let folder = self.lab.dir().join(format!("account-{name}"));
        self.server.write_service_account(&folder, &namespace, &token)?;
        Ok(folder)
    }

    /// What the kubelet does before it starts a container.
    fn make_folders(&self, pod: &Value, container: &Value) -> Result<()> {
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let volume = container::host_path(pod, mount)?;
            let path = volume["path"].as_str().unwrap_or_default();
            let output = match volume["type"].as_str() {
                Some("DirectoryOrCreate") => self.run("mkdir", &["-p", path])?,
                _ => self.run("test", &["-d", path])?,
            };
            ensure!(output.status.success(), "hostPath {path}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Waits until an agent or the controller is ready, as its probe asks.
    pub fn await_ready(&self, template: &Value, pod: &NodePod<'_>) -> Result<()> {
        let probe = &template["spec"]["containers"][0]["readinessProbe"]["httpGet"];
        let path = probe["path"].as_str().context("no readinessProbe")?;
        // The controller's is asked at its own address.
        let admin = self.admin[usize::from(probe["host"].is_null())];
        let mut last = None;
        let ready = until("the container to be ready", READY_TIME, || {
            last = request(admin, "GET", path).ok();
            last.as_ref().is_some_and(|(status, _)| *status == 200).then_some(())
        });
        ready.with_context(|| format!("it says {last:?}; its log:\n{}", pod.log()))
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        if let Err(error) = cgroups::kill(self.node.tree()) {
            eprintln!("machine of {}: {error:#}", self.node.name());
        }
    }
}

/// Replaces a flag among a container's arguments, or adds it.
fn set(container: &mut Value, flag: &str, value: &str) {
    let mut args = container["args"].as_array().cloned().unwrap_or_default();
    args.retain(|arg| !arg.as_str().is_some_and(|arg| arg.starts_with(&format!("{flag}="))));
    args.push(format!("{flag}={value}").into());
    container["args"] = args.into();
}
