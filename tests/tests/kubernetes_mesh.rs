//! Enrolled pods of one node and of two speak mesh mTLS with the certificates that the controller signs, and policies go by the
//! names in them. Each node has an agent of its own.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use egret_tests::{
    Agent, Backends, Lab, Reply,
    kube::{
        ApiServer, Load, Node, NodePod,
        controller::{self, Controller},
        crds,
    },
    names,
    objects::object,
    until,
};
use rustix::process::Signal;
use serde_json::Value;

const SERVICE: &str = "10.97.0.60";
const MARK: &str = "must-not-be-readable";
const SOON: Duration = Duration::from_secs(30);

fn account(name: &str) -> String {
    format!("metadata: {{labels: {{app: {name}}}}}\nspec: {{serviceAccountName: {name}}}")
}

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

fn security(kind: &str, name: &str, spec: &str) -> String {
    object(kind, name, spec).replace("networking.istio.io", "security.istio.io")
}

/// STRICT everywhere, and a Service that only the account `sleep` may call. What is installed has its rights; no controller
/// runs.
fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(controller::INSTALL)?;
    let documents = [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio-injection: enabled}}\n".to_owned(),
        object(
            "Service",
            "web",
            &format!(
                "{{clusterIP: {SERVICE}, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}"
            ),
        ),
        security("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"),
        security(
            "AuthorizationPolicy",
            "web",
            "{selector: {matchLabels: {app: web}}, action: ALLOW, \
             rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/sleep]}}]}]}",
        ),
    ];
    server.apply_yaml(&documents.join("---\n"))?;
    Ok(server)
}

/// The agent of a node. On one without certificates pods are refused, and it is ready all the same.
fn agent(lab: &Lab, server: &ApiServer, node: &Node<'_>) -> Result<Agent> {
    let flags = ["--cgroup-root", node.cgroup_root()];
    Agent::start_in_cluster(lab, &controller::agent_of(server, node.name())?, node.name(), &flags)
}

fn call(pod: &NodePod<'_>, path: &str) -> Result<Reply> {
    pod.curl(&["--connect-to", &format!("::{SERVICE}:"), &format!("http://web/{path}-{MARK}")])
}

/// Waits for an answer with this status whose body holds this text.
fn await_answer(pod: &NodePod<'_>, path: &str, status: u16, text: &str) -> Result<Reply> {
    let mut last = None;
    until(&format!("{status} for {}", pod.name()), SOON, || {
        let reply = call(pod, path).ok();
        last = reply.clone();
        reply.filter(|reply| reply.status == status && reply.body.contains(text))
    })
    .with_context(|| format!("the last answer: {last:?}"))
}

/// The mesh certificate of a pod, as its agent shows it.
fn certificate(agent: &Agent, pod: &str) -> Option<Value> {
    let (_, out, _) = agent.egret(&["pc", "secret", pod, "-o", "json"]).ok()?;
    let rows: Vec<Value> = serde_json::from_str(&out).ok()?;
    rows.into_iter().find(|row| row["name"] == "default" && row["status"] == "ACTIVE")
}

/// Serves in a pod, on the port behind [`SERVICE`].
fn serve(lab: &Lab, pod: &NodePod<'_>) -> Result<Backends> {
    lab.backends_in(&pod.net()?.netns, &[("web", "0.0.0.0:8080")])
}

#[test]
fn pods_of_one_node_and_of_two_know_one_another() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    let (one, two) = (Node::new(&lab, &server, "one")?, Node::new(&lab, &server, "two")?);
    let agents = [agent(&lab, &server, &one)?, agent(&lab, &server, &two)?];
    let web = one.pod("default", "web", &account("web"))?;
    let backends = serve(&lab, &web)?;
    let (near, far) = (one.pod("default", "near", &account("sleep"))?, two.pod("default", "far", &account("sleep"))?);
    let strangers =
        [one.pod("default", "stranger", &account("stranger"))?, two.pod("default", "strange", &account("strange"))?];
    let outside = lab.pod("outside")?;
    let mut wire = lab.tap()?;

    // No roots, no certificates: refused with what is to be done.
    for pod in [&near, &far] {
        let reply = await_answer(pod, "before", 503, "mesh mTLS cannot be used")?;
        assert!(
            reply.body.contains("egret-system/egret-ca-root") && reply.body.contains("egret controller"),
            "{reply:?}"
        );
    }

    let mut controller = Controller::spawn(&server, lab.dir())?;
    controller.wait_ready()?;
    for pod in [&near, &far] {
        await_answer(pod, pod.name(), 200, "")?;
        let seen = backends.with_path(&format!("/{}-", pod.name()));
        let told = seen.last().context("nothing came")?["headers"]["x-forwarded-client-cert"].to_string();
        assert!(told.contains(&format!("URI={}", identity("sleep"))), "{told}");
        assert!(told.contains(&format!("By={}", identity("web"))), "{told}");
    }
    for pod in &strangers {
        await_answer(pod, "stranger", 403, "RBAC: access denied")?;
    }
    assert!(backends.with_path("/stranger").is_empty() && backends.with_path("/before").is_empty());
    let plain = outside.call(&format!("{}:8080", web.net()?.v4), "http://web/plain", &[])?;
    assert!(plain.status == 0 && plain.exit == 56, "{plain:?}");
    // The policy goes by the name, wherever the pod is; a change counts for both agents' pods.
    server.patch(
        "security.istio.io/v1/AuthorizationPolicy",
        "default",
        "web",
        &serde_json::json!({
            "spec": {"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/default/sa/strange"]}}]}]}
        }),
    )?;
    await_answer(&strangers[1], "allowed", 200, "")?;
    await_answer(&strangers[0], "stranger", 403, "")?;
    await_answer(&far, "denied", 403, "")?;
    await_answer(&near, "denied", 403, "")?;

    // An identity that nobody has signed for yet.
    controller.daemon.signal(Signal::TERM)?;
    controller.daemon.wait(SOON)?;
    let late = two.pod("default", "late", &account("late"))?;
    let reply = await_answer(&late, "late", 503, "no mesh certificate yet")?;
    assert!(reply.body.contains(&identity("late")) && reply.body.contains("the answer is awaited"), "{reply:?}");
    // Others go on with theirs.
    assert_eq!(call(&strangers[1], "meanwhile")?.status, 200);
    let _next = Controller::spawn(&server, lab.dir())?;
    await_answer(&late, "late", 403, "RBAC: access denied")?;
    assert!(backends.with_path("/late").is_empty());

    assert!(!wire.saw(&outside.netns, names::ROUTER.parse()?, MARK)?, "plain text on the wire");
    drop(agents);
    Ok(())
}

/// The certificate that a port shows to whoever asks, in PEM.
fn shown(from: &egret_tests::Pod, address: Ipv4Addr) -> Result<String> {
    let to = format!("{address}:8080");
    let output = from.run("openssl", &["s_client", "-connect", &to, "-alpn", "istio"], b"")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let pem = text.split_once("-----BEGIN CERTIFICATE-----").and_then(|(_, rest)| rest.split_once("-----END"));
    Ok(pem.with_context(|| format!("no certificate: {text}{}", String::from_utf8_lossy(&output.stderr)))?.0.to_owned())
}

/// At half its life a certificate is replaced, under load, and nobody notices. No certificate outlives the CA's own, and what
/// runs out within a minute is not taken: so this is the shortest life that there is.
#[test]
fn certificates_are_renewed_in_time() -> Result<()> {
    let (lab, server) = (Lab::new()?, cluster()?);
    server.apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n")?;
    server.apply(controller::operators_ca(Duration::from_secs(150))?.0)?;
    let controller = Controller::spawn(&server, lab.dir())?;
    controller.wait_ready()?;
    let (one, two) = (Node::new(&lab, &server, "one")?, Node::new(&lab, &server, "two")?);
    let agents = [agent(&lab, &server, &one)?, agent(&lab, &server, &two)?];
    let web = one.pod("default", "web", &account("web"))?;
    let _backends = serve(&lab, &web)?;
    let outside = lab.pod("outside")?;
    let to = format!("{SERVICE}:80");
    let near = Load::start(&one, "near", &account("sleep"), &to, "web", MARK)?;
    let far = Load::start(&two, "far", &account("sleep"), &to, "web", MARK)?;
    let all = || -> Option<[Value; 3]> {
        let of = |agent: &Agent, pod: &str| certificate(agent, pod).map(|row| row["serial"].clone());
        Some([of(&agents[0], "web")?, of(&agents[0], "near")?, of(&agents[1], "far")?])
    };
    let before = until("all certificates", SOON, all)?;
    ensure!(before.iter().all(|serial| serial.as_str().is_some_and(|text| !text.is_empty())), "{before:?}");
    let face = shown(&outside, web.net()?.v4)?;
    assert_eq!(face, shown(&outside, web.net()?.v4)?, "it stays as long as it is good");

    until("all of them to be renewed", Duration::from_secs(120), || {
        all().filter(|now| now.iter().zip(&before).all(|(now, before)| now != before))
    })?;
    assert_ne!(face, shown(&outside, web.net()?.v4)?, "the next handshake shows the new one");
    // Those of both sides are used by connections that are made from now on.
    for load in [near, far] {
        let (pod, requests, failed) = load.end()?;
        ensure!(failed.is_empty() && requests > 100, "{}: of {requests}: {failed:#?}", pod.name());
        pod.delete()?;
    }
    let fresh = two.pod("default", "fresh", &account("sleep"))?;
    await_answer(&fresh, "fresh", 200, "")?;
    Ok(())
}
