//! What all these tests begin and end with.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Agent, Held, Reply,
    kube::{ApiServer, Node, NodePod, crds::Crd},
    until,
};
use serde_json::Value;

pub use egret_tests::kube::controller::start_on;

pub const NODE: &str = "one";
pub const CNN: &str = "edition.cnn.com";
pub const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";
pub const SLEEP: &str = "metadata: {labels: {app: sleep}}\nspec: {serviceAccountName: sleep}";
pub const SOON: Duration = Duration::from_secs(5);
/// With certificates of the mesh, which a controller signs first.
pub const ISSUED: Duration = Duration::from_secs(20);

/// The documents of an example, in its order.
pub fn example(file: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples").join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(split(&text))
}

pub fn split(documents: &str) -> Vec<String> {
    documents.split("\n---\n").map(str::to_owned).collect()
}

fn is_pod(document: &str) -> bool {
    document.lines().any(|line| line == "kind: Pod")
}

/// Those of the documents that are applied: what makes Pods of a Deployment is nothing that the examples show.
pub fn objects(documents: &[String]) -> Vec<String> {
    documents.iter().filter(|document| !is_pod(document)).cloned().collect()
}

/// Runs the Pods among the documents, in their order.
pub fn run_pods<'n>(node: &'n Node<'_>, documents: &[String]) -> Result<Vec<NodePod<'n>>> {
    let pods = documents.iter().filter(|document| is_pod(document));
    pods.map(|document| {
        let object: Value = serde_saphyr::from_str(document)?;
        let text = |field: &str| object["metadata"][field].as_str();
        node.pod(text("namespace").unwrap_or("default"), text("name").context("a name")?, document)
    })
    .collect()
}

/// A cluster with these kinds and these namespaces, all of them enrolled.
pub fn cluster(kinds: &[Crd], namespaces: &[&str]) -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(kinds)?;
    for namespace in namespaces {
        server.apply_yaml(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{istio-injection: enabled}}}}\n"
        ))?;
    }
    Ok(server)
}

/// Applies them one by one.
pub fn apply(server: &ApiServer, documents: &[String]) -> Result<()> {
    documents.iter().try_for_each(|document| server.apply_yaml(document))
}

/// Takes them away again, the last one first.
pub fn delete(server: &ApiServer, documents: &[String]) -> Result<()> {
    documents.iter().rev().try_for_each(|document| server.delete_yaml(document))
}

/// Waits until a request of the pod has this status, and hands back what the request was marked with.
pub fn await_status(pod: &NodePod<'_>, host: &str, status: u16, limit: Duration) -> Result<String> {
    let mut count = 0;
    let mut mark = String::new();
    await_reply(
        &format!("{status} for {host}"),
        limit,
        |reply| reply.status == status,
        || {
            count += 1;
            mark = format!("{}-{status}-{count}.", pod.name());
            pod.curl(&[&format!("http://{host}/politics?{mark}")])
        },
    )?;
    Ok(mark)
}

/// Asks until an answer is as it should be.
pub fn await_reply(
    what: &str,
    limit: Duration,
    good: impl Fn(&Reply) -> bool,
    mut ask: impl FnMut() -> Result<Reply>,
) -> Result<Reply> {
    let mut last = None;
    until(what, limit, || {
        let reply = ask();
        let found = reply.as_ref().ok().filter(|reply| good(reply)).cloned();
        last = Some(reply);
        found
    })
    .with_context(|| format!("the last answer: {last:?}"))
}

/// Deletes the pods; nothing of any pod is left then: not in the agent's status, nor in the kernel's maps, nor a namespace held
/// open.
pub fn end(pods: Vec<NodePod<'_>>, agent: &Agent) -> Result<()> {
    pods.into_iter().rev().try_for_each(NodePod::delete)?;
    let left = until("everything to be let go", SOON, || {
        let status = agent.egret(&["status", "-o", "json"]).ok()?.1;
        let status: Value = serde_json::from_str(&status).ok()?;
        let held = Held::by(agent).ok()?;
        let gone = [held.namespaces, held.enrolled, held.own_addresses, held.left_alone, held.inbound] == [0; 5];
        (status["pods"].as_array()?.is_empty() && gone).then_some(())
    });
    left.with_context(|| format!("{:?}", Held::by(agent)))?;
    ensure!(agent.admin("GET", "/healthz/ready")?.0 == 200);
    Ok(())
}
