//! Objects from the API server: what is there counts, what comes and goes is followed, and nothing that befalls the server
//! takes away what was read.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use egret_tests::{
    Agent, Lab,
    kube::{ApiServer, Fault, crds},
    until,
};
use serde_json::{Value, json};

const NODE: &str = "node-a";
const SOON: Duration = Duration::from_secs(5);

/// A pod as the API server has it, on a node.
fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name, "egret.dev/enroll": "true"}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
    })
}

fn service(host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  hosts: [{host}]\n  location: MESH_EXTERNAL\n  resolution: DNS\n  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]\n---\n",
        name = host.replace('.', "-")
    )
}

fn rule(host: &str, policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  host: {host}\n  trafficPolicy: {{{policy}}}\n---\n",
        name = host.replace('.', "-")
    )
}

/// A cluster with Istio's kinds and a pod of this node.
fn cluster() -> Result<ApiServer> {
    let server = ApiServer::start()?;
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
    server.create(&pod("sleep", NODE))?;
    Ok(server)
}

fn clusters(agent: &Agent) -> Result<String> {
    let (code, out, error) = agent.egret(&["-n", "shop", "pc", "cluster", "sleep", "-o", "json"])?;
    ensure!(code == 0, "{out}{error}");
    Ok(out)
}

/// Waits until the pod's clusters hold `text`, or (false) do not.
fn await_clusters(agent: &Agent, text: &str, there: bool) -> Result<()> {
    let what = format!("{text:?} to be {} the clusters", if there { "among" } else { "gone from" });
    until(&what, SOON, || Some(clusters(agent).is_ok_and(|now| now.contains(text) == there)).filter(|met| *met))
        .map(drop)
}

fn endpoints(agent: &Agent) -> Result<String> {
    let (code, out) = agent.admin("GET", "/proxy-config/endpoint?pod=sleep&namespace=shop")?;
    ensure!(code == 200, "{out}");
    Ok(out)
}

/// Waits until some cluster of the pod has this endpoint, or (false) none has.
fn await_endpoint(agent: &Agent, text: &str, there: bool) -> Result<()> {
    until(&format!("{text} to be an endpoint: {there}"), SOON, || {
        endpoints(agent).is_ok_and(|now| now.contains(text) == there).then_some(())
    })
}

fn ready(agent: &Agent) -> Result<bool> {
    Ok(agent.admin("GET", "/healthz/ready")?.0 == 200)
}

#[test]
fn objects_count_as_they_come_change_and_go() -> Result<()> {
    let server = cluster()?;
    let lab = Lab::new()?;
    server.apply_yaml(&service("a.lab.test"))?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    assert!(clusters(&agent)?.contains("a.lab.test"), "what was there at the start is in the first table");
    server.apply_yaml(&(service("b.lab.test") + &rule("b.lab.test", "tls: {mode: SIMPLE}")))?;
    await_clusters(&agent, "b-lab-test", true)?;
    // A rule that cannot be read leaves the one before in force.
    server.apply_yaml(&rule("b.lab.test", "connectionPool: {tcp: {connectTimeout: soon}}"))?;
    let said = "kubernetes/DestinationRule/shop/b-lab-test: spec.trafficPolicy.connectionPool.tcp.connectTimeout: ";
    until("the finding", SOON, || agent.stderr().contains(said).then_some(()))?;
    assert!(clusters(&agent)?.contains("b-lab-test"));
    assert_eq!(agent.metric("egret_config_objects_rejected", &[])?, 1.0);
    let (_, status, _) = agent.egret(&["status"])?;
    assert!(status.contains("1 document refused") && status.contains("kubernetes/DestinationRule/shop"), "{status}");
    server.remove("networking.istio.io/v1/DestinationRule", "shop", "b-lab-test")?;
    await_clusters(&agent, "b-lab-test.shop", false)?;
    server.remove("networking.istio.io/v1/ServiceEntry", "shop", "a-lab-test")?;
    await_clusters(&agent, "a.lab.test", false)?;
    server.remove("Pod", "shop", "sleep")?;
    until("the pod to be gone", SOON, || clusters(&agent).is_err().then_some(()))?;
    Ok(())
}

#[test]
fn a_kind_that_is_defined_later_is_picked_up() -> Result<()> {
    let server = ApiServer::start()?;
    server.apply_yaml("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
    server.create(&pod("sleep", NODE))?;
    let lab = Lab::new()?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    assert!(!agent.stderr().contains("cannot be read"), "a kind that is not there is no error: {}", agent.stderr());
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(&service("late.lab.test"))?;
    until("the new kind", Duration::from_secs(30), || {
        clusters(&agent).is_ok_and(|now| now.contains("late.lab.test")).then_some(())
    })
}

#[test]
fn endpoints_are_those_of_slices_that_are_ready() -> Result<()> {
    let server = cluster()?;
    let lab = Lab::new()?;
    server.apply_yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.7.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n",
    )?;
    let addressed = |name: &str, address: &str| -> Result<()> {
        let mut object = pod(name, "node-b");
        object["metadata"]["labels"]["app"] = "web".into();
        server.create(&object)?;
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        server.patch_status("Pod", "shop", name, &status).map(drop)
    };
    addressed("web-1", "10.1.7.1")?;
    addressed("web-2", "10.1.7.2")?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    await_endpoint(&agent, "10.1.7.1:8080", true)?;
    let endpoint = |name: &str, address: &str, ready: bool| {
        json!({"addresses": [address], "conditions": {"ready": ready, "serving": ready, "terminating": false},
               "nodeName": "node-b", "targetRef": {"kind": "Pod", "namespace": "shop", "name": name}})
    };
    let slice = |ready: bool| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-abcde", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8081, "protocol": "TCP"}],
            "endpoints": [endpoint("web-1", "10.1.7.1", ready), endpoint("web-2", "10.1.7.2", true)],
        })
    };
    server.create(&slice(false))?;
    await_endpoint(&agent, "10.1.7.2:8081", true)?;
    assert!(!endpoints(&agent)?.contains("10.1.7.1:"), "it is not ready");
    server.patch("discovery.k8s.io/v1/EndpointSlice", "shop", "web-abcde", &slice(true))?;
    await_endpoint(&agent, "10.1.7.1:8081", true)?;
    // A pod that has ended, or is gone, is no endpoint, whatever its slice still says.
    server.patch_status("Pod", "shop", "web-1", &json!({"phase": "Succeeded"}))?;
    await_endpoint(&agent, "10.1.7.1:", false)?;
    server.remove("Pod", "shop", "web-2")?;
    await_endpoint(&agent, "10.1.7.2:", false)
}

#[test]
fn secrets_are_asked_for_by_name_and_when_a_rule_names_them() -> Result<()> {
    let server = cluster()?;
    let lab = Lab::new()?;
    let ca = std::fs::read_to_string(lab.pki.crt("system"))?;
    let secret = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"},
               "type": "Opaque", "stringData": {"ca.crt": ca}})
    };
    for name in ["named", "other"] {
        server.create(&secret(name))?;
    }
    server.apply_yaml(&service("s.lab.test"))?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    let asked = || -> Vec<_> {
        let seen = server.requests().into_iter().filter(|seen| seen.resource == "secrets" && seen.verb != "create");
        let seen = seen.filter(|seen| seen.user_agent.starts_with("egret/"));
        seen.map(|seen| (seen.namespace, seen.field_selector)).collect()
    };
    let by_rule = || asked().into_iter().filter(|(namespace, _)| namespace == "shop").collect::<Vec<_>>();
    assert_eq!(by_rule(), [], "no rule names one");
    server.apply_yaml(&rule("s.lab.test", "tls: {mode: SIMPLE, credentialName: named}"))?;
    let secrets = || agent.egret(&["-n", "shop", "pc", "secret", "sleep"]).map(|(_, out, _)| out);
    until("the Secret", SOON, || secrets().is_ok_and(|out| out.contains("named")).then_some(()))?;
    assert!(!agent.stderr().contains("does not exist"), "the rule waits for its Secret: {}", agent.stderr());
    for (namespace, fields) in asked() {
        assert!(!namespace.is_empty() && fields.starts_with("metadata.name="), "{namespace} {fields}");
        assert!(!fields.ends_with("=other"), "{fields}");
    }
    assert!(by_rule().iter().any(|(_, fields)| fields == "metadata.name=named"), "{:?}", by_rule());
    // Gone means refused, and it comes back.
    server.remove("Secret", "shop", "named")?;
    until("the refusal", SOON, || agent.stderr().contains("Secret shop/named does not exist").then_some(()))?;
    server.create(&secret("named"))?;
    until("the Secret", SOON, || secrets().is_ok_and(|out| out.contains("named")).then_some(()))
}

#[test]
fn bad_days_of_the_server_take_nothing_away() -> Result<()> {
    let server = cluster()?;
    let lab = Lab::new()?;
    server.apply_yaml(&service("a.lab.test"))?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    let holds = |while_: &str, time: Duration| -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            ensure!(ready(&agent)?, "readiness flapped: {while_}");
            ensure!(clusters(&agent)?.contains("a.lab.test"), "the table is not whole: {while_}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    let mut count = 0;
    let mut follows = |after: &str| -> Result<()> {
        count += 1;
        let host = format!("n{count}.lab.test");
        server.apply_yaml(&service(&host))?;
        until(&format!("a change {after}"), Duration::from_secs(60), || {
            clusters(&agent).is_ok_and(|now| now.contains(&host)).then_some(())
        })
    };
    // Every watch has to begin anew from a list, and lists take 14 s.
    let slow = server.fault(Fault::slow(Duration::from_secs(14)).on("serviceentries"));
    server.compact();
    server.drop_watches();
    holds("a relist of 14 s", Duration::from_secs(16))?;
    server.lift(slow);
    follows("after a slow relist")?;
    for (name, fault) in [
        ("410 as an answer", Fault::gone().times(3)),
        ("410 as an event", Fault::gone_event().times(3)),
        ("500", Fault::status(500).times(3)),
        ("429", Fault::too_many_requests(1).times(3)),
        ("an answer cut short", Fault::cut().times(3)),
    ] {
        server.fault(fault.on("serviceentries").verbs(&["list", "watch"]));
        server.drop_watches();
        holds(name, Duration::from_secs(1))?;
        follows(name)?;
        server.lift_all();
    }
    server.stop();
    until("the complaint", SOON, || agent.stderr().contains("the API server cannot be reached").then_some(()))?;
    holds("no API server", Duration::from_secs(3))?;
    let (_, status, _) = agent.egret(&["status"])?;
    assert!(status.contains("may be behind the cluster: the API server cannot be reached since"), "{status}");
    assert_eq!(agent.stderr().matches("the API server cannot be reached").count(), 1, "said once: {}", agent.stderr());
    server.resume()?;
    follows("after the server's return")?;
    until("the good news", Duration::from_secs(60), || {
        agent.stderr().contains("the API server answers again").then_some(())
    })?;
    assert!(!agent.egret(&["status"])?.1.contains("may be behind"));
    Ok(())
}

#[test]
fn without_a_right_it_is_not_ready_and_names_it() -> Result<()> {
    let server = cluster()?;
    let lab = Lab::new()?;
    let denied = server.fault(Fault::status(403).on("destinationrules"));
    let mut agent = Agent::spawn_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    let said = "list and watch destinationrules.networking.istio.io";
    until("the complaint", Duration::from_secs(20), || agent.stderr().contains(said).then_some(()))?;
    let (code, body) = agent.admin("GET", "/healthz/ready")?;
    assert!(code == 503 && body.contains(said), "{code} {body}");
    assert_eq!(agent.stderr().matches(said).count(), 1, "said once");
    server.lift(denied);
    agent.wait_ready()
}

/// A server that has too much to do says how long it wants to be left alone, and is.
#[test]
fn retry_after_is_honoured() -> Result<()> {
    let server = cluster()?;
    let lab = Lab::new()?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig("admin")?, NODE, &[])?;
    for (code, fault) in [(429, Fault::too_many_requests(2)), (503, Fault::unavailable(2))] {
        server.fault(fault.on("serviceentries").verbs(&["list", "watch"]).times(1));
        server.drop_watches();
        let host = format!("after-{code}.lab.test");
        server.apply_yaml(&service(&host))?;
        await_clusters(&agent, &host, true)?;
        let seen: Vec<_> = server.requests().into_iter().filter(|seen| seen.resource == "serviceentries").collect();
        let refused = seen.iter().position(|seen| seen.code == code).context("nothing was refused")?;
        let next = seen[refused + 1..].iter().find(|seen| seen.user_agent.starts_with("egret/")).context("no retry")?;
        let waited = next.at.duration_since(seen[refused].at);
        assert!(waited >= Duration::from_secs(2), "{code}: asked again after {waited:?}");
    }
    Ok(())
}

/// Roles that allow to list a kind and not to watch it: what was listed counts, and it is told that changes will not.
#[test]
fn a_forbidden_watch_is_named() -> Result<()> {
    let server = cluster()?;
    let lab = Lab::new()?;
    server.apply_yaml(&(service("a.lab.test") + &rule("a.lab.test", "tls: {mode: SIMPLE}")))?;
    server.apply_yaml(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: short}\nrules:\n\
         - {apiGroups: ['', discovery.k8s.io, security.istio.io], resources: ['*'], verbs: [list, watch]}\n\
         - {apiGroups: [networking.istio.io], resources: [gateways, serviceentries, sidecars, virtualservices], verbs: [list, watch]}\n\
         - {apiGroups: [networking.istio.io], resources: [destinationrules], verbs: [list]}\n\
         - {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests], verbs: [create, get, watch]}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: short}\n\
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: short}\n\
         subjects: [{kind: ServiceAccount, namespace: shop, name: agent}]\n",
    )?;
    let token = server.service_account("shop", "agent")?;
    let agent = Agent::start_in_cluster(&lab, &server.kubeconfig_of(&token)?, NODE, &[])?;
    await_clusters(&agent, "a-lab-test.shop", true)?;
    let said = "RBAC does not allow to watch destinationrules.networking.istio.io: ";
    let status = || agent.egret(&["status"]).map(|(_, status, _)| status);
    until("the status", SOON, || status().ok().filter(|status| status.contains(said)))?;
    assert!(!status()?.contains("allow to list"), "{}", status()?);
    assert_eq!(agent.stderr().matches(said).count(), 1, "said once: {}", agent.stderr());
    server.patch(
        "rbac.authorization.k8s.io/v1/ClusterRole",
        "",
        "short",
        &json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
    )?;
    until("the right", Duration::from_secs(60), || status().is_ok_and(|status| !status.contains(said)).then_some(()))?;
    server.apply_yaml(&(service("b.lab.test") + &rule("b.lab.test", "tls: {mode: SIMPLE}")))?;
    await_clusters(&agent, "b-lab-test.shop", true)
}
