//! Whom policies are for, and what is said of them.

use super::*;

#[test]
fn who_has_which_policies() {
    let text = pod("foo", "web", "{app: web}")
        + &pod("foo", "db", "{app: db}")
        + &pod("bar", "web", "{app: web}")
        + &pod("bar", "other", "{}")
        + &pod("istio-system", "own", "{app: web}")
        + &policy("foo", "selected", "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{}]}")
        + &policy("bar", "whole", "{action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}]}")
        + &policy(
            "istio-system",
            "root",
            "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {ports: ['2']}}]}]}",
        );
    let mesh = mesh(&text).quiet();
    let at =
        |namespace, name, port: &'static str| Asked { destination: port, ..tcp() }.of(&inbound(&mesh, namespace, name));
    assert_eq!(at("foo", "web", "10.0.0.1:80"), "ns[foo]-policy[selected]-rule[0]");
    assert_eq!(at("foo", "web", "10.0.0.1:2"), "ns[istio-system]-policy[root]-rule[0]", "the root namespace first");
    assert!(inbound(&mesh, "foo", "db").is_empty());
    assert_eq!(at("bar", "web", "10.0.0.1:1"), "ns[bar]-policy[whole]-rule[0]");
    assert_eq!(at("bar", "web", "10.0.0.1:2"), "ns[istio-system]-policy[root]-rule[0]");
    assert_eq!(at("bar", "other", "10.0.0.1:2"), "yes");
    assert_eq!(at("istio-system", "own", "10.0.0.1:2"), "ns[istio-system]-policy[root]-rule[0]");
    assert!(mesh.of("foo", "web").all_clusters().all(|cluster| cluster.policies.is_none()), "never on the way out");
}

#[test]
fn pods_with_the_same_policies_share_them() {
    let text = pod("foo", "a", "{}") + &pod("foo", "b", "{}") + &pod("bar", "c", "{}") + &policy("foo", "p", "{}");
    let mesh = mesh(&text);
    assert!(Arc::ptr_eq(&inbound(&mesh, "foo", "a"), &inbound(&mesh, "foo", "b")));
    assert!(inbound(&mesh, "bar", "c").is_empty());
}

#[test]
fn policies_about_services() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: foo}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    let text = pod("foo", "web", "{app: web}")
        + &pod("bar", "client", "{}")
        + service
        + &entry("bar", "ext", &format!("{{hosts: [a.com, b.com], {HTTP}}}"))
        + &policy(
            "foo",
            "svc",
            "{targetRefs: [{kind: Service, group: '', name: web}], rules: [{to: [{operation: {ports: ['80']}}]}]}",
        )
        + &policy(
            "bar",
            "ext",
            "{targetRefs: [{kind: ServiceEntry, group: networking.istio.io, name: ext}], rules: [{from: [{source: {serviceAccounts: [sleep]}}]}]}",
        );
    let mesh = mesh(&text);
    assert!(mesh.said(Severity::Error).is_empty(), "{:?}", mesh.diagnostics);
    // Towards the service, and at its pods by the port that it has there.
    let outbound = mesh.of("bar", "client");
    let web = outbound.http(dst("10.96.0.1:80"), "web.foo.svc.cluster.local").cluster();
    let towards = web.policies.clone().expect("policies of the service");
    assert_eq!(Asked { destination: "0.0.0.0:80", ..tcp() }.of(&towards), "yes");
    let own = inbound(&mesh, "foo", "web");
    assert_eq!(Asked { destination: "10.0.0.1:8080", ..tcp() }.of(&own), "yes", "8080 is the service's 80");
    assert_eq!(Asked { destination: "10.0.0.1:9090", ..tcp() }.of(&own), "yes", "not the service's");
    assert!(inbound(&mesh, "bar", "client").is_empty());
    for host in ["a.com", "b.com"] {
        let policies = outbound.http(dst("1.1.1.1:80"), host).cluster().policies.clone().expect("its policies");
        assert_eq!(Asked { destination: "0.0.0.0:80", ..get("/") }.of(&policies), "none", "{host}");
        let sleep = Some("spiffe://cluster.local/ns/bar/sa/sleep");
        assert_eq!(Asked { principal: sleep, ..get("/") }.of(&policies), "yes", "{host}");
    }
    let elsewhere = mesh.of("foo", "web").http(dst("1.1.1.1:80"), "a.com").cluster();
    assert!(elsewhere.policies.is_some(), "whoever calls it");
}

#[test]
fn policies_about_gateways() {
    let gateway = |class: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: foo}}\nspec: {{gatewayClassName: {class}, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        )
    };
    let label = "{gateway.networking.k8s.io/gateway-name: gw}";
    let of = |text: String| {
        let mesh = mesh(&text);
        let id = WorkloadId { namespace: "foo".into(), name: "gw-pod".into() };
        (mesh.workloads[&id].gateway.as_ref().expect("a gateway").policies.clone(), mesh)
    };
    let base = || pod("foo", "gw-pod", label) + &pod("foo", "web", "{}") + &gateway("istio");
    let target = |kind: &str, name: &str| {
        format!(
            "{{targetRefs: [{{group: gateway.networking.k8s.io, kind: {kind}, name: {name}}}], action: DENY, rules: [{{}}]}}"
        )
    };
    let (policies, mesh) = of(base() + &policy("foo", "p", &target("Gateway", "gw")));
    assert_eq!(get("/").of(&policies), DENIED);
    assert!(inbound(&mesh, "foo", "web").is_empty());
    let (policies, mesh) = of(base() + &policy("foo", "p", &target("Gateway", "other")));
    assert!(policies.is_empty());
    assert_eq!(
        mesh.said(Severity::Error),
        ["spec.targetRefs[0]: there is no Gateway other in namespace foo: the policy does nothing for it"]
    );
    let (policies, _) = of(base() + &policy("istio-system", "p", &target("GatewayClass", "istio")));
    assert_eq!(get("/").of(&policies), "ns[istio-system]-policy[p]-rule[0]");
    let (policies, mesh) = of(base() + &policy("foo", "p", &target("GatewayClass", "istio")));
    assert!(policies.is_empty());
    assert_eq!(mesh.said(Severity::Error).len(), 1, "{:?}", mesh.diagnostics);
    let (policies, _) = of(base() + &policy("foo", "whole", "{}"));
    assert_eq!(get("/").of(&policies), "none");
}

#[test]
fn what_is_said_of_policies() {
    let deny = "{action: DENY, rules: [{when: [{key: 'experimental.envoy.filters.a[b]', values: [c]}]}]}";
    let custom = "{action: CUSTOM, provider: {name: opa}, rules: [{}]}";
    let tokens = "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}";
    let text = pod("foo", "web", "{}")
        + &policy("foo", "a", deny)
        + &policy("foo", "b", custom)
        + &policy("foo", "c", tokens)
        + &policy("foo", "d", "{targetRef: {kind: ServiceEntry, group: networking.istio.io, name: gone}}");
    let said = mesh(&text).said(Severity::Error);
    let begins =
        ["spec.rules[0].when[0].key: ", "spec.action: opa", "spec.rules[0].from[0].source.requestP", "spec.target"];
    assert_eq!(said.len(), begins.len(), "{said:?}");
    for (said, begin) in said.iter().zip(begins) {
        assert!(said.starts_with(begin), "{said}");
    }
}

#[test]
fn a_dry_run_forbids_nothing() {
    let dry = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: foo, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}\n";
    let mesh = mesh(&(pod("foo", "web", "{}") + dry));
    let policies = inbound(&mesh, "foo", "web");
    assert!(policies.is_empty() && !policies.deals_with_paths());
    assert_eq!(get("/a").of(&policies), "yes");
    let said = mesh.said(Severity::Warning);
    assert!(said.len() == 1 && said[0].starts_with("metadata.annotations[istio.io/dry-run]: "), "{said:?}");
    assert!(!mesh.workloads.values().any(|w| w.inbound.as_ref().is_some_and(|inbound| inbound.fail_closed())));
}
