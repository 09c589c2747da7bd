//! `egret controller` against an API server: who leads, which CA there is, whose certificates are signed.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use egret_tests::{
    Agent, Lab,
    kube::{
        ApiServer, Client,
        controller::{Controller, INSTALL, NAMESPACE, cacerts, operators_ca},
    },
    run, until,
};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, Patch, PatchParams};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(24 * 3600);
const SLEEP: &str = "spiffe://cluster.local/ns/shop/sa/sleep";
const USAGES: [&str; 4] = ["digital signature", "key encipherment", "server auth", "client auth"];

/// What an agent may read besides, Secrets excepted.
const READER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: egret-agent-reader}
rules:
- {apiGroups: [""], resources: [pods, services, namespaces, configmaps], verbs: [list, watch]}
- {apiGroups: [networking.istio.io, security.istio.io, gateway.networking.k8s.io], resources: ["*"], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: egret-agent-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: egret-agent-reader}
subjects: [{kind: ServiceAccount, namespace: egret-system, name: egret-agent}]
"#;

fn server() -> Result<(ApiServer, TempDir)> {
    let server = ApiServer::start()?;
    server.client().apply_yaml(INSTALL)?;
    server.client().apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
    server.client().apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n")?;
    Ok((server, tempfile::tempdir()?))
}

/// A cluster with a controller that works, and a node whose agent asks for the certificate of [`SLEEP`], for which there is a pod.
struct Stage {
    one: Client,
    controller: Controller,
    server: ApiServer,
    dir: TempDir,
}

impl Stage {
    fn new() -> Result<Self> {
        let (server, dir) = server()?;
        let controller = Controller::spawn(&server, dir.path())?;
        controller.wait_ready()?;
        let one = agent(&server, "one")?;
        pod(&server, "shop", "sleep-1", "sleep", "one")?;
        Ok(Self { one, controller, server, dir })
    }
}

/// A pod that is on a node.
fn pod(server: &ApiServer, namespace: &str, name: &str, account: &str, node: &str) -> Result<Value> {
    server.client().create(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "main", "image": "pause"}]},
    }))
}

/// The agent of a node: a client with the token that the kubelet gives its pod.
fn agent(server: &ApiServer, node: &str) -> Result<Client> {
    let pod = pod(server, NAMESPACE, &format!("agent-{node}"), "egret-agent", node)?;
    let token = server.service_account_of_pod(NAMESPACE, "egret-agent", &pod)?;
    Client::new(&server.kubeconfig_of(&token)?)
}

/// Asks for a certificate; the name of the request.
fn ask(client: &Client, identity: &str) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    let request = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    let object = client.create(&json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "egret-workload-"},
        "spec": {
            "request": BASE64_STANDARD.encode(request), "signerName": "egret.dev/workload", "usages": USAGES,
            "expirationSeconds": 3600,
        },
    }))?;
    Ok(object["metadata"]["name"].as_str().context("a name")?.to_owned())
}

fn request(server: &ApiServer, name: &str) -> Result<Value> {
    server.client().get("certificates.k8s.io/v1/CertificateSigningRequest", "", name)?.context("the request is there")
}

/// Waits for the answer: the chain in PEM, or the condition that refuses.
fn answer(server: &ApiServer, name: &str, limit: Duration) -> Result<Result<String, Value>> {
    until(&format!("an answer to {name}"), limit, || {
        let status = request(server, name).ok()?["status"].clone();
        if let Some(chain) = status["certificate"].as_str() {
            return Some(Ok(String::from_utf8(BASE64_STANDARD.decode(chain).ok()?).ok()?));
        }
        let conditions = status["conditions"].as_array()?;
        let refusal = conditions.iter().find(|one| one["type"] == "Denied" || one["type"] == "Failed")?;
        Some(Err(refusal.clone()))
    })
}

fn signed(server: &ApiServer, name: &str, limit: Duration) -> Result<String> {
    answer(server, name, limit)?.map_err(|refusal| anyhow::anyhow!("refused: {refusal}"))
}

fn refused(server: &ApiServer, name: &str) -> Result<(String, String, String)> {
    let refusal = answer(server, name, LIMIT)?.err().context("it was signed")?;
    let text = |field: &str| refusal[field].as_str().unwrap_or_default().to_owned();
    Ok((text("type"), text("reason"), text("message")))
}

fn bundle(server: &ApiServer) -> Option<String> {
    let object = server.client().get("ConfigMap", NAMESPACE, "egret-ca-root").ok()??;
    object["data"]["root-cert.pem"].as_str().map(str::to_owned)
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// By openssl's account a peer that trusts `roots` takes the chain.
fn verify(dir: &Path, chain: &str, roots: &str) -> Result<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    std::fs::write(path("chain.pem"), chain)?;
    std::fs::write(path("roots.pem"), roots)?;
    let (chain, roots) = (path("chain.pem"), path("roots.pem"));
    run("openssl", &["verify", "-purpose", "sslclient", "-CAfile", &roots, "-untrusted", &chain, &chain])?;
    run("openssl", &["x509", "-in", &chain, "-noout", "-ext", "subjectAltName", "-dates", "-issuer"])
}

fn holder(server: &ApiServer) -> Option<String> {
    let lease = server.client().get("coordination.k8s.io/v1/Lease", NAMESPACE, "egret-controller").ok()??;
    lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty()).map(str::to_owned)
}

/// An agent gets the identities of pods on its own node, and nobody gets any others.
#[test]
fn what_runs_on_the_node_is_signed_and_nothing_else() -> Result<()> {
    let Stage { one, controller, server, dir } = Stage::new()?;
    let two = agent(&server, "two")?;
    pod(&server, "shop", "cart-1", "cart", "two")?;
    let cart = "spiffe://cluster.local/ns/shop/sa/cart";

    let name = ask(&one, SLEEP)?;
    let text = verify(dir.path(), &signed(&server, &name, LIMIT)?, &bundle(&server).context("a bundle")?)?;
    assert!(text.contains(SLEEP), "{text}");
    let conditions = request(&server, &name)?["status"]["conditions"].clone();
    assert_eq!(conditions.as_array().map(Vec::len), Some(1), "{conditions}");
    assert_eq!((&conditions[0]["type"], &conditions[0]["reason"]), (&json!("Approved"), &json!("PodOnNode")));

    let (kind, reason, message) = refused(&server, &ask(&one, cart)?)?;
    assert_eq!((kind.as_str(), reason.as_str()), ("Denied", "NoSuchPod"));
    assert!(message.contains("shop/cart") && message.contains("node one"), "{message}");
    signed(&server, &ask(&two, cart)?, LIMIT)?;

    // Who administers the cluster has a CA for it, and no need of this one.
    assert_eq!(refused(&server, &ask(server.client(), SLEEP)?)?.1, "NotAnAgent");
    let unbound = server.service_account(NAMESPACE, "egret-agent")?;
    let unbound = Client::new(&server.kubeconfig_of(&unbound)?)?;
    assert_eq!(refused(&server, &ask(&unbound, SLEEP)?)?.1, "NodeUnknown");
    assert_eq!(refused(&server, &ask(&one, "spiffe://elsewhere/ns/shop/sa/sleep")?)?.1, "WrongName");

    // The pod is gone: so is its identity.
    server.client().remove("Pod", "shop", "sleep-1")?;
    assert_eq!(refused(&server, &ask(&one, SLEEP)?)?.1, "NoSuchPod");

    // Agents can neither sign nor remove what others asked for.
    assert!(one.remove("certificates.k8s.io/v1/CertificateSigningRequest", "", &name).is_err());
    let denied: Vec<_> = server.requests().into_iter().filter(|seen| seen.code == 403).collect();
    ensure!(denied.len() == 1, "only the agent's attempt was forbidden: {denied:?}");

    // All of it is counted, each some time after it was written.
    for (result, reason, count) in [
        ("signed", "PodOnNode", 2.0),
        ("refused", "NoSuchPod", 2.0),
        ("refused", "NotAnAgent", 1.0),
        ("refused", "NodeUnknown", 1.0),
        ("refused", "WrongName", 1.0),
    ] {
        let labels = [&*format!("result=\"{result}\""), &*format!("reason=\"{reason}\"")];
        let counted = || controller.metric("egret_controller_certificate_requests_total", &labels).ok();
        until(&format!("{count} requests {result}: {reason}"), LIMIT, || counted().filter(|now| *now == count))?;
    }
    for task in ["authority", "signer", "gateways"] {
        let labels = [&*format!("task=\"{task}\""), "result=\"success\""];
        let counted = || controller.metric("egret_controller_reconciles_total", &labels).ok();
        until(&format!("{task} to be counted"), LIMIT, || counted().filter(|now| *now >= 1.0))?;
    }
    ensure!(controller.metric("process_resident_memory_bytes", &[])? > 0.0);
    Ok(())
}

/// Two controllers: one works, one CA is made, and the other takes over, whether the first was killed or stopped.
#[test]
fn one_leads_and_another_takes_its_place() -> Result<()> {
    let (server, dir) = server()?;
    let mut both = [Controller::spawn(&server, dir.path())?, Controller::spawn(&server, dir.path())?];
    both[0].wait_ready()?;
    both[1].wait_ready()?;
    let one = agent(&server, "one")?;
    pod(&server, "shop", "sleep-1", "sleep", "one")?;
    signed(&server, &ask(&one, SLEEP)?, LIMIT)?;
    let first = holder(&server).context("a holder")?;
    if !first.starts_with(&both[0].name()) {
        both.swap(0, 1);
    }
    let [mut leader, mut other] = both;
    assert!(first.starts_with(&leader.name()), "{first}");
    let leads = |one: &Controller| one.metric("egret_controller_leads", &[]).ok();
    until("who leads to be told", LIMIT, || ((leads(&leader), leads(&other)) == (Some(1.0), Some(0.0))).then_some(()))?;
    let ca = server.client().get("Secret", NAMESPACE, "egret-ca")?.context("a CA")?;
    let roots = bundle(&server).context("a bundle")?;
    assert_eq!(certificates(&roots), 1);

    leader.daemon.signal(Signal::KILL)?;
    leader.daemon.wait(LIMIT)?;
    let (killed, name) = (Instant::now(), ask(&one, SLEEP)?);
    // 15 s until the lease counts no more, 2 s until the other looks.
    let chain = signed(&server, &name, Duration::from_secs(30))?;
    ensure!(killed.elapsed() > Duration::from_secs(5), "somebody signed who did not lead");
    assert!(holder(&server).is_some_and(|holder| holder.starts_with(&other.name())));
    assert_eq!(leads(&other), Some(1.0));
    verify(dir.path(), &chain, &roots)?;
    assert_eq!(server.client().get("Secret", NAMESPACE, "egret-ca")?.context("a CA")?, ca, "it was made once");
    assert_eq!(bundle(&server).as_ref(), Some(&roots));

    // One that is stopped in order leaves at once.
    let third = Controller::spawn(&server, dir.path())?;
    third.wait_ready()?;
    let stopped = Instant::now();
    other.daemon.signal(Signal::TERM)?;
    assert_eq!(other.daemon.wait(LIMIT)?.code(), Some(0));
    until("the third to lead", LIMIT, || holder(&server).filter(|holder| holder.starts_with(&third.name())).map(drop))?;
    ensure!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
    signed(&server, &ask(&one, SLEEP)?, LIMIT)?;
    Ok(())
}

/// A leader that cannot reach the API server gives up its work before another may begin; what was half done is finished.
#[test]
fn what_a_leader_left_half_done_the_next_one_finishes() -> Result<()> {
    let (server, dir) = server()?;
    let one = agent(&server, "one")?;
    pod(&server, "shop", "sleep-1", "sleep", "one")?;
    // As a leader leaves it that ends between approval and signature; and one that somebody approved by hand.
    let good = ask(&one, SLEEP)?;
    let bad = ask(&one, "spiffe://cluster.local/ns/shop/sa/cart")?;
    for name in [&good, &bad] {
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "ByHand", "message": ""}]}});
        let client = server.client();
        client.block_on(async {
            let api: Api<CertificateSigningRequest> = Api::all(client.kube());
            api.patch_approval(name, &PatchParams::default(), &Patch::Merge(approved)).await
        })?;
    }
    let mut controller = Controller::spawn(&server, dir.path())?;
    controller.wait_ready()?;
    signed(&server, &good, LIMIT)?;
    let (kind, reason, _) = refused(&server, &bad)?;
    assert_eq!((kind.as_str(), reason.as_str()), ("Failed", "NoSuchPod"));

    server.stop();
    controller.daemon.wait_for("leads no more", LIMIT)?;
    until("the controller to say what it waits for", LIMIT, || {
        matches!(controller.ready(), Ok((503, body)) if body.contains("API server")).then_some(())
    })?;
    server.resume()?;
    signed(&server, &ask(&one, SLEEP)?, Duration::from_secs(40))?;
    controller.wait_ready()
}

/// The operator's CA takes the place of the one that was made: its root is trusted first, and the former one still is.
#[test]
fn the_operators_ca_counts_and_the_former_root_stays_trusted() -> Result<()> {
    let Stage { one, controller, server, dir } = Stage::new()?;
    let before = signed(&server, &ask(&one, SLEEP)?, LIMIT)?;
    let former = bundle(&server).context("a bundle")?;

    // Not fit to issue: that is told, and the one that is goes on.
    server.client().apply(cacerts(&[("ca-cert.pem", former.clone())]))?;
    until("the fault to be told", LIMIT, || {
        matches!(controller.ready(), Ok((503, body)) if body.contains("istio-system/cacerts lacks ca-key.pem"))
            .then_some(())
    })?;
    verify(dir.path(), &signed(&server, &ask(&one, SLEEP)?, LIMIT)?, &former)?;

    let (object, root) = operators_ca(DAY)?;
    server.client().apply(object)?;
    let both = until("both roots in the bundle", LIMIT, || bundle(&server).filter(|pem| certificates(pem) == 2))?;
    let first = both.split_inclusive("-----END CERTIFICATE-----\n").next().context("a first")?;
    let der = |pem: &str| pem.lines().filter(|line| !line.starts_with("--")).map(str::trim).collect::<String>();
    assert_eq!(der(first), der(&root), "what is in force comes first");
    assert!(der(&both).ends_with(&der(&former)));

    // Signed once the agents have had time to hear of the root; a leaf of before is trusted still.
    let name = ask(&one, SLEEP)?;
    let after = signed(&server, &name, Duration::from_secs(30))?;
    let text = verify(dir.path(), &after, &root)?;
    assert!(text.contains("The operator's CA"), "{text}");
    verify(dir.path(), &before, &both)?;

    // Somebody removes the bundle: it is back, with the root in force.
    server.client().remove("ConfigMap", NAMESPACE, "egret-ca-root")?;
    let again = until("the bundle to be back", LIMIT, || bundle(&server))?;
    assert!(der(&again).starts_with(&der(&root)));
    Ok(())
}

/// A node's agent has certificates for its pods, and no CA. Without a controller those it has go on, and a pod that comes is
/// told why it has none.
#[test]
fn an_agent_gets_its_pods_certificates_from_the_controller() -> Result<()> {
    let (server, dir) = server()?;
    server.client().apply_yaml(READER)?;
    let mut controller = Controller::spawn(&server, dir.path())?;
    controller.wait_ready()?;
    let enrolled = |name: &str| {
        server.client().create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "labels": {"egret.dev/enroll": "true"}},
            "spec": {"nodeName": "one", "serviceAccountName": name, "containers": [{"name": "main", "image": "none"}]},
        }))
    };
    enrolled("sleep")?;
    enrolled("cart")?;
    let lab = Lab::new()?;
    let itself = pod(&server, NAMESPACE, "agent-one", "egret-agent", "one")?;
    let token = server.service_account_of_pod(NAMESPACE, "egret-agent", &itself)?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig_of(&token)?, "one", &[])?;
    let row = |name: &str, kind: &str| -> Option<Value> {
        let (_, out, _) = agent.egret(&["-n", "shop", "pc", "secret", name, "-o", "json"]).ok()?;
        let rows: Vec<Value> = serde_json::from_str(&out).ok()?;
        rows.into_iter().find(|row| row["name"] == kind)
    };
    let chain = |name: &str| row(name, "default").filter(|row| row["status"] == "ACTIVE");
    // Ready means that they are there already.
    let sleep = chain("sleep").with_context(|| format!("no certificate:\n{}", agent.stderr()))?;
    assert_eq!(sleep["subjectAltNames"], json!([SLEEP]), "{sleep}");
    assert!(chain("cart").is_some());
    ensure!(!agent.state().join("ca").exists(), "a CA was made on the node");
    let secrets =
        server.requests().into_iter().filter(|seen| seen.user.ends_with(":egret-agent") && seen.resource == "secrets");
    assert_eq!(secrets.count(), 0, "an agent has no business with Secrets here");

    controller.daemon.signal(Signal::TERM)?;
    controller.daemon.wait(LIMIT)?;
    enrolled("late")?;
    until("the reason why there is no certificate", LIMIT, || {
        row("late", "default").filter(|row| row.to_string().contains("the answer is awaited"))
    })?;
    assert_eq!(chain("sleep").as_ref(), Some(&sleep));
    assert_eq!(agent.admin("GET", "/healthz/ready")?.0, 200, "one pod is refused, the node is not");

    // Its answer comes with the next controller, without another request.
    let next = Controller::spawn(&server, dir.path())?;
    next.wait_ready()?;
    until("the certificate of the pod that came last", Duration::from_secs(30), || chain("late"))?;
    assert_eq!(chain("sleep").as_ref(), Some(&sleep), "nothing was due");

    // Another root of the operator's: the agent trusts it within seconds, beside the former one.
    server.client().apply(operators_ca(DAY)?.0)?;
    until("the new root", LIMIT, || {
        row("sleep", "ROOTCA").filter(|row| row["subject"].as_str().is_some_and(|subject| subject.contains("operator")))
    })?;
    assert_eq!(chain("sleep").as_ref(), Some(&sleep), "what the former root issued counts still");
    Ok(())
}

/// Many requests at once, with an API server that refuses now and then: each is answered once.
#[test]
fn a_burst_of_requests_is_answered_whatever_the_server_does() -> Result<()> {
    let Stage { one, controller, server, dir } = Stage::new()?;
    signed(&server, &ask(&one, SLEEP)?, LIMIT)?;
    server.fault(egret_tests::kube::Fault::status(500).on("certificatesigningrequests").verbs(&["update"]).times(5));
    server.drop_watches();
    let names: Vec<_> = (0..40).map(|_| ask(&one, SLEEP)).collect::<Result<_>>()?;
    let mut serials = BTreeSet::new();
    for name in &names {
        let chain = signed(&server, name, Duration::from_secs(30))?;
        verify(dir.path(), &chain, &bundle(&server).context("a bundle")?)?;
        serials.insert(chain);
    }
    assert_eq!(serials.len(), names.len());
    let labels = ["task=\"signer\"", "result=\"error\""];
    assert_eq!(controller.metric("egret_controller_reconciles_total", &labels)?, 5.0, "one for each that was refused");
    Ok(())
}
