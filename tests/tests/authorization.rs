//! AuthorizationPolicy by workload identity: beyond an egress gateway, and at a pod's own ports; a change of it counts at
//! once.

use anyhow::Result;
use egret_tests::{
    Agent, Lab,
    objects::{documents, entry, object, port_rule, through_the_gateway},
};

const DENIED: &str = "RBAC: access denied";
const NONE: &str = "rbac_access_denied_matched_policy[none]";

/// Only this service account may, about what `at` says.
fn only(account: &str, at: &str) -> String {
    let rule = format!("{{from: [{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}]}}");
    object("AuthorizationPolicy", "only", &format!("{{{at}, rules: [{rule}]}}"))
        .replace("networking.istio.io/v1", "security.istio.io/v1")
}

/// The gateway calls for its clients: the policy about the service outside asks who they are, which mesh mTLS has proved.
#[test]
fn a_service_beyond_an_egress_gateway_is_for_some_of_its_clients() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, other, gateway) = (lab.pod("sleep")?, lab.pod("other")?, lab.pod("gateway")?);
    let host = "edition.cnn.com";
    lab.write(
        "mesh.yaml",
        &documents(&[
            sleep.document("app: sleep"),
            other.document("app: other"),
            gateway.document("istio: egress"),
            through_the_gateway(host, 443),
            entry(host, &["80 HTTP", "443 HTTPS"]),
            port_rule(host, 443, "mode: SIMPLE"),
        ]),
    )?;
    let policy = |account| {
        only(account, "targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: edition-cnn-com}]")
    };
    lab.write("policy.yaml", &policy("sleep"))?;
    let agent = Agent::start(&lab)?;
    let said = || format!("{}\n{}", agent.stdout(), agent.stderr());
    let url = |path: &str| format!("http://{host}/{path}");
    let reply = sleep.curl(&[&url("politics?sleep")])?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}", said());
    let reply = other.curl(&[&url("politics?other")])?;
    assert_eq!((reply.status, reply.body.as_str()), (403, DENIED), "{reply:?}\n{}", said());
    let line = agent.log_line(NONE)?;
    assert!(line.contains("/politics?other") && line.contains("default/gateway"), "{line}");
    assert!(lab.hits().iter().all(|hit| !hit.request.contains("?other")), "{:?}", lab.hits());
    let (_, explained, _) = agent.egret(&["explain", "other", &url("politics")])?;
    assert!(explained.contains(NONE) && explained.contains("sa/other"), "{explained}");
    let (_, explained, _) = agent.egret(&["explain", "sleep", &url("politics")])?;
    assert!(!explained.contains("rbac"), "{explained}");
    agent.reload(|| lab.write("policy.yaml", &policy("other")))?;
    assert_eq!(sleep.curl(&[&url("politics?late")])?.status, 403, "{}", said());
    assert_eq!(other.curl(&[&url("politics?late")])?.status, 200, "{}", said());
    Ok(())
}

/// At the pod itself: who it is, mesh mTLS has proved; who comes in plain text is nobody.
#[test]
fn a_pods_own_ports_are_for_some() -> Result<()> {
    let lab = Lab::new()?;
    let (sleep, other, web) = (lab.pod("sleep")?, lab.pod("other")?, lab.pod("web")?);
    let backends = lab.backends_in(&web.netns, &[("web", "0.0.0.0:8080")])?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.97.0.20\n  selector: {app: web}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n";
    lab.write(
        "mesh.yaml",
        &documents(&[
            sleep.document("app: sleep"),
            other.document("app: other"),
            web.document("app: web"),
            service.to_owned(),
            only("sleep", "selector: {matchLabels: {app: web}}"),
        ]),
    )?;
    let agent = Agent::start(&lab)?;
    let said = || format!("{}\n{}", agent.stdout(), agent.stderr());
    let get = |pod: &egret_tests::Pod, path: &str| {
        pod.curl(&["--resolve", "web:80:10.97.0.20", &format!("http://web{path}")])
    };
    let reply = get(&sleep, "/allowed")?;
    assert_eq!(reply.status, 200, "{reply:?}\n{}", said());
    let reply = get(&other, "/denied")?;
    assert_eq!((reply.status, reply.body.as_str()), (403, DENIED), "{reply:?}\n{}", said());
    let line = agent.log_line(NONE)?;
    assert!(line.contains(" inbound|8080|| ") && line.contains("default/web"), "{line}");
    agent.await_metric("istio_requests_total", &["response_code=\"403\"", "reporter=\"destination\""], 1.0)?;
    // From outside the mesh, to the pod's own address.
    let mut command = lab.outside().command("curl");
    command.args(["-sS", "--max-time", "10", &format!("http://{}:8080/plain", web.v4)]);
    let output = egret_tests::run_in(command, b"")?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), DENIED, "{}", said());
    assert_eq!((backends.with_path("/allowed").len(), backends.with_path("/denied").len()), (1, 0));
    assert!(backends.with_path("/plain").is_empty());
    Ok(())
}
