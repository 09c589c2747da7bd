//! Agents of a cluster, asked from anywhere: through the API server's proxy to their pods.

use anyhow::{Context as _, bail};
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::ListParams};
use tokio::{runtime::Runtime, time::timeout};

use super::client::Ask;
use crate::{admin, limits::CLI_TIME, mesh::WorkloadId, source::kubernetes::client};

/// What the DaemonSet's pods bear.
const AGENTS: &str = "app=egret-agent";
/// The port of theirs that everybody may ask, by its name in their pods.
const PORT_NAME: &str = "status";
/// Its number, where a pod does not tell.
const PORT: u16 = admin::read_only_port(admin::ADDRESS);

/// The cluster that `KUBECONFIG` names.
pub struct Cluster {
    runtime: Runtime,
    client: Client,
}

/// The agent of one node.
pub struct NodeAgent<'a> {
    cluster: &'a Cluster,
    pub node: String,
    /// `namespace/name`
    pub pod: String,
    /// Of the proxy to its port, under the API server.
    path: String,
}

impl Cluster {
    pub fn connect() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client::connect())?;
        Ok(Self { runtime, client })
    }

    fn ask<T>(&self, what: &str, answer: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
        let answer = self.runtime.block_on(async { timeout(CLI_TIME, answer).await });
        answer
            .with_context(|| format!("{what}: the API server does not answer within {} s", CLI_TIME.as_secs()))?
            .with_context(|| what.to_owned())
    }

    /// Every agent, by its node; or that of one node.
    pub fn agents(&self, of: Option<&str>) -> anyhow::Result<Vec<NodeAgent<'_>>> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let list = self.ask("looking for agents", pods.list(&ListParams::default().labels(AGENTS)))?;
        let mut agents: Vec<_> = list.items.iter().filter_map(|pod| self.agent(pod)).collect();
        agents.retain(|agent| of.is_none_or(|node| node == agent.node));
        agents.sort_by(|a, b| a.node.cmp(&b.node));
        if agents.is_empty() {
            match of {
                Some(node) => bail!("no agent runs on node {node} (a pod with the label {AGENTS})"),
                None => bail!("no agent runs in this cluster (pods with the label {AGENTS})"),
            }
        }
        Ok(agents)
    }

    fn agent(&self, pod: &Pod) -> Option<NodeAgent<'_>> {
        let (spec, meta) = (pod.spec.as_ref()?, &pod.metadata);
        let (namespace, name) = (meta.namespace.as_deref()?, meta.name.as_deref()?);
        let mut ports = spec.containers.iter().filter_map(|container| container.ports.as_ref()).flatten();
        let port = ports
            .find(|port| port.name.as_deref() == Some(PORT_NAME))
            .map_or(i32::from(PORT), |port| port.container_port);
        Some(NodeAgent {
            cluster: self,
            node: spec.node_name.clone()?,
            pod: format!("{namespace}/{name}"),
            path: format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy"),
        })
    }

    /// The agent of the node that a pod runs on.
    pub fn agent_of(&self, pod: &str, namespace: Option<&str>) -> anyhow::Result<NodeAgent<'_>> {
        let candidates = admin::candidates(pod, namespace);
        for WorkloadId { namespace, name } in &candidates {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let Some(found) = self.ask("looking for the pod", pods.get_opt(name))? else { continue };
            let node = found.spec.and_then(|spec| spec.node_name);
            let node = node.with_context(|| format!("pod {namespace}/{name} runs on no node yet"))?;
            return self.agents(Some(&node))?.pop().context("no agent");
        }
        let names: Vec<_> = candidates.iter().map(ToString::to_string).collect();
        bail!("the cluster has no pod {}", names.join(" or "));
    }
}

impl Ask for NodeAgent<'_> {
    fn get(&self, path: &str) -> anyhow::Result<String> {
        let request = Request::get(format!("{}{path}", self.path)).body(Vec::new())?;
        let what = format!("asking the agent of node {}", self.node);
        self.cluster.ask(&what, self.cluster.client.request_text(request))
    }
}
