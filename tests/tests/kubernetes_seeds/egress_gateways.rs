//! Egress gateways: a pod that a Gateway selects, whose listeners live in the agent. Plain HTTP goes to it over mesh mTLS, and
//! from there to the world in the TLS that its own rules and certificates make, at its own address.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egret_tests::{
    CLIENT_DN, Lab,
    kube::{
        Node,
        crds::{self, Crd},
    },
    objects::in_namespace,
};
use serde_json::json;

use super::stage::*;

/// Istio's task with one API or the other: the example's pods, its objects, and back.
fn simple(kinds: &[Crd], folder: &str) -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(kinds, &["default", "istio-system"])?);
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let mut documents = example(&format!("{folder}/pods.yaml"))?;
    let pods = run_pods(&node, &documents)?;
    let [sleep, gateway] = &pods[..] else { anyhow::bail!("{} pods", pods.len()) };
    await_status(sleep, CNN, 301, SOON)?;
    documents.extend(example(&format!("{folder}/simple.yaml"))?);
    let documents = objects(&documents);
    apply(&server, &documents)?;
    let mark = await_status(sleep, CNN, 200, ISSUED)?;
    let hit = lab.hit(&mark)?;
    assert_eq!((hit.tls.as_str(), hit.sni.as_str(), hit.host.as_str()), ("TLSv1.3", CNN, CNN));
    assert_eq!(hit.from, gateway.net()?.v4.to_string(), "the gateway's own address");

    delete(&server, &documents)?;
    await_status(sleep, CNN, 301, SOON)?;
    end(pods, &agent)
}

#[test]
fn simple_with_istio_apis() -> Result<()> {
    simple(crds::ISTIO, "egress-gateway")
}

#[test]
fn simple_with_the_gateway_api() -> Result<()> {
    simple(&crds::all(), "egress-gateway-gateway-api")
}

/// With the client certificate of a Secret: `documents` hold the pods, `namespace` is the gateway's.
fn mutual(kinds: &[Crd], documents: &[String], namespace: &str) -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(kinds, &["default", "istio-system"])?);
    server.apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: mesh-external}\n")?;
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let pods = run_pods(&node, documents)?;
    let [sleep, gateway] = &pods[..] else { anyhow::bail!("{} pods", pods.len()) };
    await_status(sleep, NGINX, 301, SOON)?;
    // A pod of another machine, which has no agent.
    let elsewhere = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "my-nginx", "namespace": "mesh-external", "labels": {"run": "my-nginx"}},
        "spec": {"nodeName": "elsewhere", "containers": [{"name": "my-nginx", "image": "nginx"}]},
    });
    server.create(&elsewhere)?;
    let status = json!({"phase": "Running", "podIP": "198.51.100.20", "podIPs": [{"ip": "198.51.100.20"}]});
    server.patch_status("Pod", "mesh-external", "my-nginx", &status)?;
    let documents = objects(documents);
    apply(&server, &documents)?;
    // Without its Secret: refused, by the gateway.
    await_status(sleep, NGINX, 503, ISSUED)?;
    let secret = in_namespace(&lab.pki.client_secret("client-credential", "client")?, namespace);
    server.apply_yaml(&secret)?;
    let url = |mark: &str| format!("http://{NGINX}/?{mark}");
    let served =
        |mark: &str| await_reply("nginx", ISSUED, |reply| reply.status == 200, || sleep.curl(&["-i", &url(mark)]));
    let reply = served("mutual")?;
    ensure!(reply.version == "1.1" && reply.body.contains("Welcome to nginx!"), "{reply:?}");
    let (hit, from) = (lab.hit("/?mutual")?, gateway.net()?.v4.to_string());
    assert_eq!((hit.client_dn.as_str(), hit.sni.as_str(), hit.from.as_str()), (CLIENT_DN, NGINX, from.as_str()));
    server.remove("Secret", namespace, "client-credential")?;
    await_reply("the refusal", Duration::from_secs(2), |reply| reply.status == 503, || sleep.curl(&[&url("gone")]))?;
    server.apply_yaml(&secret)?;
    served("again")?;

    delete(&server, &documents)?;
    await_status(sleep, NGINX, 301, SOON)?;
    end(pods, &agent)
}

#[test]
fn mutual_with_istio_apis() -> Result<()> {
    let mut documents = example("egress-gateway/pods.yaml")?;
    let more = example("egress-gateway/mutual.yaml")?;
    documents.extend(objects(&more));
    mutual(crds::ISTIO, &documents, "istio-system")
}

#[test]
fn mutual_with_the_gateway_api() -> Result<()> {
    let gateway =
        "metadata:\n  name: gateway\n  labels: {gateway.networking.k8s.io/gateway-name: nginx-egressgateway}\n";
    let pods = [
        "apiVersion: v1\nkind: Pod\nmetadata: {name: sleep}\nspec: {serviceAccountName: sleep}\n".to_owned(),
        format!("apiVersion: v1\nkind: Pod\n{gateway}spec: {{serviceAccountName: nginx-egressgateway-istio}}\n"),
    ];
    let documents = split(include_str!("../../../proxy/src/mesh/tests/gateway_api/mutual.yaml"));
    mutual(&crds::all(), &[&pods[..], &documents].concat(), "default")
}

/// Two gateways present two certificates, which their pods mount at one and the same path; the caller's labels decide.
#[test]
fn two_gateways_present_two_certificates() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster(crds::ISTIO, &["default", "istio-system"])?);
    let pki = &lab.pki;
    pki.leaf("second", "example.com", "/CN=second.example.com/O=client organization", None)?;
    pki.leaf("external", "example.com", "/CN=nginx.external.svc.cluster.local/O=some organization", None)?;
    let _nginx = lab.choosy_nginx("external", "client")?;
    let node = Node::new(&lab, &server, NODE)?;
    let (_controller, agent) = start_on(&lab, &server, &node, &[])?;
    let mut documents = example("two-egress-gateways/pods.yaml")?;
    let pods = run_pods(&node, &documents)?;
    let [one, two, gateway_one, gateway_two] = &pods[..] else { anyhow::bail!("{} pods", pods.len()) };
    let get = |from| {
        let pod: &egret_tests::kube::NodePod<'_> = from;
        let resolve = "nginx.external.svc.cluster.local:80:1.1.1.1";
        pod.curl(&["--resolve", resolve, "http://nginx.external.svc.cluster.local/"])
    };
    let closed = |reply: &egret_tests::Reply| ![200, 403].contains(&reply.status);
    await_reply("nobody to be there", SOON, closed, || get(one))?;

    documents.extend(example("two-egress-gateways/nginx.yaml")?);
    let documents = objects(&documents);
    apply(&server, &documents)?;
    await_reply("the Secrets to be missed", ISSUED, |reply| reply.status == 503, || get(one))?;
    let files = |leaf: &str| [("tls.crt", pki.crt(leaf)), ("tls.key", pki.key(leaf))];
    let secrets = [
        pki.secret("istio-egressgateway-certs-v1", &files("client"))?,
        pki.secret("istio-egressgateway-certs-v2", &files("second"))?,
        pki.secret("istio-egressgateway-ca-certs", &[("example.com.crt", pki.crt("example.com"))])?,
    ]
    .map(|secret| in_namespace(&secret, "istio-system"));
    apply(&server, &secrets)?;
    let first = await_reply("the first gateway's certificate", ISSUED, |reply| reply.status == 200, || get(one))?;
    assert_eq!(first.body, "the page of v1\n");
    await_reply("the second gateway's certificate", ISSUED, |reply| reply.status == 403, || get(two))?;
    let log = std::fs::read_to_string(lab.dir().join("external.log"))?;
    for (gateway, name) in [(gateway_one, CLIENT_DN), (gateway_two, "CN=second.example.com")] {
        let from = format!("{} ", gateway.net()?.v4);
        let mut lines = log.lines().filter(|line| line.starts_with(&from)).peekable();
        lines.peek().with_context(|| log.clone())?;
        ensure!(lines.all(|line| line.contains(name)), "{log}");
    }

    delete(&server, &documents)?;
    await_reply("the way to be closed again", SOON, closed, || get(one))?;
    end(pods, &agent)
}
