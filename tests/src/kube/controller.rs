//! The real `egret controller`, as its Deployment runs it: a service account that may do what its role says and no more.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::{ApiServer, Node};
use crate::{
    Agent, Lab,
    agent::{agent_binary, free_port, metric, request},
    process::{Daemon, until},
};

pub use crate::agent::NAMESPACE;

/// What an installation is made of, the rights of the controller and the agents among it.
pub const INSTALL: &str = include_str!("../../../config/kubernetes/egret.yaml");

/// A kubeconfig file for the agent of a node: it bears the token of a pod there, by which the controller knows it. After
/// [`Controller::start`].
pub fn agent_of(server: &ApiServer, node: &str) -> Result<PathBuf> {
    let pod = server.create(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": NAMESPACE, "name": format!("egret-{node}")},
        "spec": {
            "nodeName": node, "hostNetwork": true, "serviceAccountName": "egret-agent",
            "containers": [{"name": "agent", "image": "egret"}],
        },
    }))?;
    server.kubeconfig_of(&server.service_account_of_pod(NAMESPACE, "egret-agent", &pod)?)
}

/// The controller, which signs what the agent asks for, and the agent of a node.
pub fn start_on(
    lab: &Lab,
    server: &ApiServer,
    node: &Node<'_>,
    controller_flags: &[&str],
) -> Result<(Controller, Agent)> {
    let controller = Controller::start_with(server, lab.dir(), controller_flags)?;
    let flags = ["--cgroup-root", node.cgroup_root()];
    Ok((controller, Agent::start_in_cluster(lab, &agent_of(server, node.name())?, node.name(), &flags)?))
}

/// The Secret of a plug-in CA, which controller and Istio read.
#[must_use]
pub fn cacerts(parts: &[(&str, String)]) -> Value {
    let encoded = parts.iter().map(|(name, text)| ((*name).to_owned(), BASE64_STANDARD.encode(text).into()));
    let data: serde_json::Map<_, _> = encoded.collect();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "istio-system", "name": "cacerts"}, "data": data})
}

/// A new one, good for so long from now on, with its root in PEM.
pub fn operators_ca(lifetime: Duration) -> Result<(Value, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "The operator's CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::UNIX_EPOCH.elapsed()? + lifetime;
    let root = params.self_signed(&key)?.pem();
    let parts = [("ca-cert.pem", root.clone()), ("ca-key.pem", key.serialize_pem()), ("root-cert.pem", root.clone())];
    Ok((cacerts(&parts), root))
}

/// A running controller; dropped: SIGTERM.
pub struct Controller {
    pub daemon: Daemon,
    admin: SocketAddr,
}

impl Controller {
    /// Starts one in a cluster that has nothing of egret yet, and waits until it works.
    pub fn start(server: &ApiServer, dir: &Path) -> Result<Self> {
        Self::start_with(server, dir, &[])
    }

    /// The same with more flags for `egret controller`.
    pub fn start_with(server: &ApiServer, dir: &Path, more: &[&str]) -> Result<Self> {
        server.apply_yaml(INSTALL)?;
        let controller = Self::spawn_with(server, dir, more)?;
        controller.wait_ready()?;
        Ok(controller)
    }

    /// Starts one and waits for nothing. [`INSTALL`] must be applied before. `dir` is for its log.
    pub fn spawn(server: &ApiServer, dir: &Path) -> Result<Self> {
        Self::spawn_with(server, dir, &[])
    }

    fn spawn_with(server: &ApiServer, dir: &Path, more: &[&str]) -> Result<Self> {
        let kubeconfig = server.kubeconfig_of(&server.service_account(NAMESPACE, "egret-controller")?)?;
        let admin = free_port()?;
        let mut command = Command::new(agent_binary()?);
        command.args(["controller", "--log-level", "debug", "--admin", &admin.to_string()]).args(more);
        command.env("KUBECONFIG", kubeconfig).env("POD_NAMESPACE", NAMESPACE).env("RUST_BACKTRACE", "1");
        command.env("POD_NAME", format!("controller-{}", admin.port()));
        let daemon = Daemon::start(&format!("controller-{}", admin.port()), command, dir)?;
        Ok(Self { daemon, admin })
    }

    /// The beginning of what it calls itself in the Lease.
    #[must_use]
    pub fn name(&self) -> String {
        format!("controller-{}_", self.admin.port())
    }

    /// What `/healthz/ready` answers.
    pub fn ready(&self) -> Result<(u16, String)> {
        request(self.admin, "GET", "/healthz/ready")
    }

    /// The value of a metric with these labels (`name="value"`), as `/metrics` has it.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        metric(&request(self.admin, "GET", "/metrics")?.1, name, labels)
    }

    pub fn wait_ready(&self) -> Result<()> {
        let ready = until("the controller to be ready", Duration::from_secs(20), || {
            matches!(self.ready(), Ok((200, _))).then_some(())
        });
        ready.with_context(|| format!("it says {:?}; its log:\n{}", self.ready(), self.daemon.stderr()))
    }
}
