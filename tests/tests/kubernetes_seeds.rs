//! The shipped examples in a cluster: objects applied one by one as `kubectl apply` does, a pod's curl that shows each step,
//! and the way back.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use egret_tests::{
    Agent, CLIENT_DN, Lab,
    kube::{ApiServer, Node, NodePod, controller, crds},
    until,
};

const NODE: &str = "one";
const CNN: &str = "edition.cnn.com";
const NGINX: &str = "my-nginx.mesh-external.svc.cluster.local";
const SLEEP: &str = "metadata: {labels: {app: sleep}}\nspec: {serviceAccountName: sleep}";
const SOON: Duration = Duration::from_secs(5);

/// The documents of an example, in its order.
fn example(file: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples").join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let documents = text.split("\n---\n").map(str::to_owned);
    Ok(documents.collect())
}

/// A cluster whose namespace `default` is enrolled.
fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio-injection: enabled}}\n",
    )?;
    Ok(server)
}

/// Waits until a request of the pod has this status, and hands back what the request was marked with.
fn await_status(pod: &NodePod<'_>, host: &str, status: u16, limit: Duration) -> Result<String> {
    let (mut count, mut last) = (0, 0);
    until(&format!("{status} for {host}"), limit, || {
        count += 1;
        let mark = format!("{}-{status}-{count}", pod.name());
        last = pod.curl(&["-o", "/dev/null", &format!("http://{host}/politics?{mark}")]).ok()?.status;
        (last == status).then_some(mark)
    })
    .with_context(|| format!("the last one had {last}"))
}

/// Nothing of any pod is left: not in the agent's status, nor in the kernel's maps, nor a namespace held open.
fn await_nothing_left(agent: &Agent) -> Result<()> {
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", agent.pid()))?;
    // Pins and cgroup bear the same name.
    let instance = cgroup.lines().find_map(|line| line.split_once("/egret/")).context("an agent without a cgroup")?.1;
    let pin = Path::new("/sys/fs/bpf/egret").join(instance).join("maps/ENROLLED");
    let own = fs::read_link("/proc/self/ns/net")?;
    until("everything to be let go", SOON, || {
        let status = agent.egret(&["status", "-o", "json"]).ok()?.1;
        let status: serde_json::Value = serde_json::from_str(&status).ok()?;
        let map = Map::HashMap(MapData::from_pin(&pin).ok()?);
        let enrolled = HashMap::<_, u64, egret_ebpf::Enrolment>::try_from(map).ok()?.keys().count();
        let held = fs::read_dir(format!("/proc/{}/fd", agent.pid())).ok()?;
        let mut held = held.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let held = held.any(|target| target.to_string_lossy().starts_with("net:") && target != own);
        (status["pods"].as_array()?.is_empty() && enrolled == 0 && !held).then_some(())
    })
}

/// Without a rule the server redirects; with the ServiceEntry still; with the DestinationRule plain HTTP becomes verified TLS.
#[test]
fn tls_origination_comes_and_goes_with_its_objects() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = controller::start_on(&lab, &server, &node, &[])?;
    let pod = node.pod("default", "sleep", SLEEP)?;
    await_status(&pod, CNN, 301, SOON)?;
    let documents = example("egress-tls-origination/simple.yaml")?;
    let [entry, rule] = &documents[..] else { anyhow::bail!("the example has {} documents", documents.len()) };
    server.apply_yaml(entry)?;
    // Port 80 is sent to port 443 in plain text without the rule, which the server answers with 400.
    await_status(&pod, CNN, 400, SOON)?;
    server.apply_yaml(rule)?;
    let mark = await_status(&pod, CNN, 200, SOON)?;
    let hit = lab.hit(&mark)?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str(), hit.host.as_str()), ("TLSv1.3", CNN, CNN));
    assert_eq!(hit.from, pod.net()?.v4.to_string(), "the source address stays the pod's own");
    let reply = pod.curl(&["-L", "-i", "http://edition.cnn.com/politics"])?;
    assert_eq!((reply.status, reply.version.as_str(), reply.redirects), (200, "1.1", 0), "{reply:?}");
    assert!(reply.body.ends_with("politics page\n"), "{reply:?}");

    server.delete_yaml(rule)?;
    await_status(&pod, CNN, 400, SOON)?;
    server.delete_yaml(entry)?;
    await_status(&pod, CNN, 301, SOON)?;
    pod.delete()?;
    await_nothing_left(&agent)
}

/// Refused until the Secret is there, and again once it is gone; its rotation counts for the next connection within a second.
/// Pods that the rule does not select never present the certificate.
#[test]
fn mutual_tls_follows_its_secret() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = controller::start_on(&lab, &server, &node, &[])?;
    let pod = node.pod("default", "sleep", SLEEP)?;
    let other = node.pod("default", "other", "metadata: {labels: {app: other}}")?;
    for document in example("egress-mutual-tls/mutual.yaml")? {
        server.apply_yaml(&document)?;
    }
    await_status(&pod, NGINX, 503, SOON)?;
    server.apply_yaml(&lab.pki.client_secret("client-credential", "client")?)?;
    let url = format!("http://{NGINX}/?");
    let served = |mark: &str| -> Result<_> {
        let reply = pod.curl(&["-i", &format!("{url}{mark}")])?;
        ensure!(reply.status == 200 && reply.body.contains("Welcome to nginx!"), "{reply:?}");
        lab.hit(&format!("?{mark}"))
    };
    until("the Secret to count", SOON, || served("first").ok())?;
    let hit = served("mine")?;
    assert_eq!((hit.client_dn.as_str(), hit.sni.as_str()), (CLIENT_DN, NGINX));
    let refused = other.curl(&[&format!("{url}theirs")])?;
    assert_ne!(refused.status, 200, "{refused:?}");
    let own = pod.net()?.v4.to_string();
    assert!(lab.hits().iter().all(|hit| hit.client_dn.is_empty() || hit.from == own));

    lab.pki.task_leaf("rotated", "/CN=rotated.example.com/O=client organization")?;
    server.apply_yaml(&lab.pki.client_secret("client-credential", "rotated")?)?;
    let mut count = 0;
    until("the new certificate", Duration::from_secs(1), || {
        count += 1;
        served(&format!("rotated-{count}")).ok().filter(|hit| hit.client_dn.contains("rotated.example.com"))
    })?;
    server.remove("Secret", "default", "client-credential")?;
    let gone = || pod.curl(&[&format!("{url}gone")]).ok().filter(|reply| reply.status == 503);
    until("the refusal", Duration::from_secs(1), gone)?;
    other.delete()?;
    pod.delete()?;
    await_nothing_left(&agent)
}

/// Plain HTTP to the gateway's pod over mesh mTLS, and from there verified TLS, at the gateway's address. The pod is what the
/// Gateway selects; its listeners live in the agent.
#[test]
fn an_egress_gateway_comes_and_goes_with_its_objects() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    server.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system, labels: {istio-injection: enabled}}\n",
    )?;
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = controller::start_on(&lab, &server, &node, &[])?;
    let pod = node.pod("default", "sleep", SLEEP)?;
    let labels = "metadata: {labels: {app: istio-egressgateway, istio: egressgateway}}";
    let gateway = format!("{labels}\nspec: {{serviceAccountName: istio-egressgateway}}");
    let gateway = node.pod("istio-system", "istio-egressgateway", &gateway)?;
    await_status(&pod, CNN, 301, SOON)?;
    // Of the pods' file only the Service counts here.
    let mut documents = example("egress-gateway/pods.yaml")?;
    documents.drain(..2);
    documents.extend(example("egress-gateway/simple.yaml")?);
    for document in &documents {
        server.apply_yaml(document)?;
    }
    let mark = await_status(&pod, CNN, 200, SOON)?;
    let hit = lab.hit(&mark)?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str(), hit.host.as_str()), ("TLSv1.3", CNN, CNN));
    assert_eq!(hit.from, gateway.net()?.v4.to_string(), "the gateway's own address");

    for document in documents.iter().rev() {
        server.delete_yaml(document)?;
    }
    await_status(&pod, CNN, 301, SOON)?;
    gateway.delete()?;
    pod.delete()?;
    await_nothing_left(&agent)
}
