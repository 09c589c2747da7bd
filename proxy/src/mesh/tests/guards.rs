//! Plain text never leaves for a destination that a TLS rule names.

use super::*;

const SIMPLE: &str = "trafficPolicy: {tls: {mode: SIMPLE}}";

#[test]
fn a_rule_whose_service_is_gone_still_guards() {
    let text = pod("a", "p", "{}")
        + &rule("a", "exact", &format!("{{host: gone.com, {SIMPLE}}}"))
        + &rule("a", "wild", &format!("{{host: '*.wild.com', {SIMPLE}}}"))
        + &rule("a", "off", "{host: off.wild.com, trafficPolicy: {tls: {mode: DISABLE}}}")
        + &rule(
            "a",
            "port",
            "{host: port.com, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}}",
        )
        + &rule("a", "subset", "{host: subset.com, subsets: [{name: s, trafficPolicy: {tls: {mode: SIMPLE}}}]}")
        + &rule("a", "istio", "{host: istio.com, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}")
        + &rule("b", "foreign", &format!("{{host: foreign.com, {SIMPLE}}}"))
        + &rule("b", "foreign-wild", &format!("{{host: '*.foreign.com', {SIMPLE}}}"))
        + &rule("b", "foreign-all", &format!("{{host: '*', {SIMPLE}}}"))
        + &rule("b", "hidden", &format!("{{host: hidden.com, exportTo: ['.'], {SIMPLE}}}"));
    let mesh = mesh(&text);
    let outbound = mesh.of("a", "p");
    for (port, host, want) in [
        (80, "gone.com", "refuse"),
        (8080, "GONE.com.:8080", "refuse"),
        (80, "x.wild.com", "refuse"),
        (80, "wild.com", "passthrough"),
        (80, "off.wild.com", "passthrough"),
        (80, "port.com", "refuse"),
        (81, "port.com", "passthrough"),
        (80, "subset.com", "passthrough"),
        (80, "istio.com", "refuse"),
        (80, "foreign.com", "refuse"),
        (80, "x.foreign.com", "refuse"),
        (80, "hidden.com", "passthrough"),
        (80, "unrelated.com", "passthrough"),
    ] {
        assert_eq!(outbound.http(dst(&format!("9.9.9.9:{port}")), host).short(), want, "{host}:{port}");
    }
    // What is encrypted already is nobody's business.
    assert_eq!(outbound.tls(dst("9.9.9.9:443"), Some("gone.com")).short(), "passthrough");
    let Decision::Refuse(reason) = outbound.http(dst("9.9.9.9:80"), "gone.com").decision() else { panic!() };
    assert!(reason.contains("DestinationRule a/exact asks for TLS to gone.com"), "{reason}");
}

#[test]
fn clear_text_to_a_guarded_https_port_is_refused_and_its_tls_is_wrapped() {
    let text = pod("a", "p", "{}")
        + &entry(
            "a",
            "e",
            "{hosts: [x.com], ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: https, protocol: HTTPS}], resolution: DNS}",
        )
        + &rule("a", "r", &format!("{{host: x.com, {SIMPLE}}}"));
    let mesh = mesh(&text);
    let outbound = mesh.of("a", "p");
    assert_eq!(outbound.http(dst("9.9.9.9:443"), "x.com").short(), "refuse");
    assert_eq!(outbound.http(dst("9.9.9.9:80"), "x.com").short(), "outbound|80||x.com SIMPLE");
    assert_eq!(outbound.tls(dst("9.9.9.9:80"), Some("x.com")).short(), "passthrough");
    assert_eq!(outbound.tls(dst("9.9.9.9:443"), Some("x.com")).short(), "outbound|443||x.com SIMPLE");
    let said = mesh.said(Severity::Warning);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("spec.trafficPolicy.tls: port 443 of ServiceEntry a/e is TLS already"), "{said:?}");
    // No ALPN for bytes that are TLS already.
    let UpstreamTls::Originate(tls) = &outbound.cluster("outbound|443||x.com").unwrap().tls else { panic!() };
    assert!(tls.alpn.is_empty());
}

#[test]
fn guarded_addresses() {
    let text = pod("a", "p", "{}")
        + &entry(
            "a",
            "e",
            "{hosts: [x.com], addresses: [10.0.0.1, 10.1.0.0/16], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}",
        )
        + &entry(
            "a",
            "any",
            "{hosts: ['*.any.com'], ports: [{number: 82, name: tcp, protocol: TCP}], resolution: NONE}",
        )
        + &rule("a", "r", &format!("{{host: x.com, {SIMPLE}}}"));
    let mesh = mesh(&text).quiet();
    let outbound = mesh.of("a", "p");
    for (address, want) in [
        ("10.0.0.1:80", "refuse"),
        ("10.1.2.3:81", "refuse"),
        ("10.1.2.3:82", "refuse"),
        ("10.2.0.0:80", "passthrough"),
        ("10.2.0.0:82", "outbound|82||*.any.com"),
    ] {
        assert_eq!(outbound.tcp(dst(address)).short(), want, "{address}");
    }
    assert_eq!(outbound.http(dst("9.9.9.9:80"), "10.0.0.1").short(), "outbound|80||x.com SIMPLE");
    assert_eq!(outbound.http(dst("9.9.9.9:80"), "10.1.2.3").short(), "refuse");
    assert_eq!(outbound.http(dst("10.1.2.3:80"), "").short(), "refuse");
    assert_eq!(outbound.http(dst("10.1.2.3:80"), "unrelated.com").short(), "refuse");
    assert_eq!(outbound.tls(dst("10.0.0.1:443"), None).short(), "passthrough");
}

#[test]
fn a_raw_port_under_a_rule_gets_tls() {
    let text = pod("a", "p", "{}")
        + &entry("a", "e", "{hosts: [db.com], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: DNS}")
        + &rule("a", "r", &format!("{{host: db.com, {SIMPLE}}}"));
    let mesh = mesh(&text).quiet();
    let decision = mesh.of("a", "p").tcp(dst("9.9.9.9:5432"));
    assert_eq!(decision.short(), "outbound|5432||db.com SIMPLE");
    let UpstreamTls::Originate(tls) = &decision.cluster().tls else { panic!() };
    assert!(tls.alpn.is_empty());
}

/// A TCP service without addresses and resolution NONE takes the whole port and sends what comes to the address dialled:
/// a request for a guarded host would pass unseen, were it not read.
#[test]
fn a_port_that_leads_back_is_read_where_a_rule_guards() {
    let all = pod("a", "p", "{}")
        + &entry("a", "e", "{hosts: [any.tcp], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: NONE}");
    let free = mesh(&all);
    assert_eq!(free.of("a", "p").first_bytes(dst("9.9.9.9:9000")), FirstBytes::None);

    let mesh = mesh(&(all + &rule("a", "r", &format!("{{host: x.com, {SIMPLE}}}"))));
    let outbound = mesh.of("a", "p");
    assert_eq!(outbound.first_bytes(dst("9.9.9.9:9000")), FirstBytes::Sniff);
    assert_eq!(outbound.http(dst("9.9.9.9:9000"), "x.com").short(), "refuse");
    assert_ne!(outbound.http(dst("9.9.9.9:9000"), "y.com").short(), "refuse");
}

/// The same where a route leads there.
#[test]
fn a_port_whose_route_leads_back_is_read_where_a_rule_guards() {
    let all = pod("a", "p", "{}")
        + &entry("a", "e", "{hosts: [some.tcp], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: DNS}")
        + &entry(
            "a",
            "f",
            "{hosts: [back.tcp], addresses: [10.9.9.9], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: NONE}",
        )
        + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: a}\nspec: {hosts: [some.tcp], tcp: [{route: [{destination: {host: back.tcp}}]}]}\n";
    let free = mesh(&all);
    assert_eq!(free.of("a", "p").tcp(dst("9.9.9.9:9000")).short(), "outbound|9000||back.tcp 1");
    assert_eq!(free.of("a", "p").first_bytes(dst("9.9.9.9:9000")), FirstBytes::None);

    let mesh = mesh(&(all + &rule("a", "r", &format!("{{host: x.com, {SIMPLE}}}"))));
    let outbound = mesh.of("a", "p");
    assert_eq!(outbound.first_bytes(dst("9.9.9.9:9000")), FirstBytes::Sniff);
    assert_eq!(outbound.http(dst("9.9.9.9:9000"), "x.com").short(), "refuse");
}

/// What a rule for some workloads takes back, the rule for the others must not bring in again by the service's address.
#[test]
fn a_rule_for_a_workload_frees_its_addresses() {
    let text = pod("a", "p", "{app: x}")
        + &pod("a", "q", "{app: y}")
        + &entry(
            "a",
            "e",
            "{hosts: [x.com], addresses: [10.0.0.1], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}",
        )
        + &rule("a", "all", &format!("{{host: x.com, {SIMPLE}}}"))
        + &rule(
            "a",
            "one",
            "{host: x.com, workloadSelector: {matchLabels: {app: x}}, trafficPolicy: {tls: {mode: DISABLE}}}",
        );
    let mesh = mesh(&text);
    assert_eq!(mesh.of("a", "p").tcp(dst("10.0.0.1:81")).short(), "passthrough");
    assert_eq!(mesh.of("a", "q").tcp(dst("10.0.0.1:81")).short(), "refuse");
}

/// Raw connections go to a sniffed service without addresses only where a rule encrypts them.
#[test]
fn a_rule_for_a_workload_frees_its_raw_connections() {
    let text = pod("a", "p", "{app: x}")
        + &pod("a", "q", "{app: y}")
        + REGISTRY_ONLY
        + &entry("a", "e", "{hosts: [x.com], ports: [{number: 80, name: auto}], resolution: NONE}")
        + &rule("a", "all", &format!("{{host: x.com, {SIMPLE}}}"))
        + &rule(
            "a",
            "one",
            "{host: x.com, workloadSelector: {matchLabels: {app: x}}, trafficPolicy: {tls: {mode: DISABLE}}}",
        );
    let mesh = mesh(&text);
    assert_eq!(mesh.of("a", "p").tcp(dst("9.9.9.9:80")).short(), "block");
    assert_eq!(mesh.of("a", "q").tcp(dst("9.9.9.9:80")).short(), "outbound|80||x.com SIMPLE");
}

/// A gateway asks the rules of its pod's namespace too: a route to a wildcard service is no way around them, be the Host the
/// client's or the route's own.
#[test]
fn a_gateways_routes_do_not_pass_a_guard() {
    let api = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ";
    let wild = "{group: networking.istio.io, kind: Hostname, name: '*.x.com', port: 80";
    let text = pod("a", "gw", "{gateway.networking.k8s.io/gateway-name: kube}")
        + &format!(
            "{api}Gateway\nmetadata: {{name: kube, namespace: a}}\nspec: {{gatewayClassName: istio, listeners: [{{name: web, port: 8000, protocol: HTTP}}]}}\n"
        )
        + &format!(
            "{api}HTTPRoute\nmetadata: {{name: one, namespace: a}}\nspec: {{parentRefs: [{{name: kube}}], hostnames: ['*.x.com'], rules: [{{backendRefs: [{wild}}}]}}]}}\n"
        )
        + &format!(
            "{api}HTTPRoute\nmetadata: {{name: two, namespace: a}}\nspec: {{parentRefs: [{{name: kube}}], hostnames: [y.com], rules: [{{backendRefs: [{wild}, filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: Host, value: safe.x.com}}]}}}}]}}, {wild}}}]}}]}}\n"
        )
        + &entry(
            "a",
            "e",
            "{hosts: ['*.x.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DYNAMIC_DNS}",
        )
        + &rule("a", "r", &format!("{{host: safe.x.com, {SIMPLE}}}"));
    let mesh = mesh(&text);
    let id = WorkloadId { namespace: "a".into(), name: "gw".into() };
    let listener = ListenerId { bind: None, port: 8000 };
    let asked = |host: &str| match mesh.workloads[&id].at_gateway(listener, None, host) {
        HttpDecision::Host(host) => match &host.routes[0].action {
            Action::Forward(_) => "forward".to_owned(),
            other => format!("{other:?}"),
        },
        HttpDecision::Unmatched(decision) => decision.short(),
        HttpDecision::NotFound => "not found".to_owned(),
    };
    assert_eq!((asked("safe.x.com:80").as_str(), asked("other.x.com").as_str()), ("refuse", "forward"));
    assert!(asked("y.com").starts_with("Refuse("), "{}", asked("y.com"));
}

/// A rule for `web` is a rule for the Service of that name (as in Istio), which a ServiceEntry for `web` is not: its author
/// wants TLS and gets no plain text.
#[test]
fn a_name_without_a_dot_is_guarded() {
    let text = pod("a", "p", "{}")
        + &entry("a", "e", &format!("{{hosts: [web], {HTTP}}}"))
        + &entry("a", "f", &format!("{{hosts: [other], {HTTP}}}"))
        + &rule("a", "r", &format!("{{host: web, {SIMPLE}}}"));
    let mesh = mesh(&text);
    assert_eq!(mesh.of("a", "p").http(dst("9.9.9.9:80"), "web").short(), "refuse");
    assert_eq!(mesh.of("a", "p").http(dst("9.9.9.9:80"), "other").short(), "outbound|80||other");
}

const REGISTRY_ONLY: &str = r#"---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"}
"#;

/// Where another rule takes the place of the one that all have, the subsets of the latter go with it: its TLS was not this
/// workload's.
#[test]
fn subsets_of_a_rule_that_does_not_apply_are_not_there() {
    let text = pod("a", "p", "{app: x}")
        + &pod("a", "q", "{app: y}")
        + &entry("a", "e", &format!("{{hosts: [x.com], {HTTP}}}"))
        + &rule("a", "all", "{host: x.com, subsets: [{name: v1, labels: {v: '1'}}]}")
        + &rule("a", "one", &format!("{{host: x.com, workloadSelector: {{matchLabels: {{app: x}}}}, {SIMPLE}}}"))
        + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: a}\nspec: {hosts: [x.com], http: [{route: [{destination: {host: x.com, subset: v1}}]}]}\n";
    let mesh = mesh(&text);
    let to = |name: &str| match mesh.of("a", name).http(dst("9.9.9.9:80"), "x.com") {
        HttpDecision::Host(host) => host.clusters().map(|cluster| cluster.name.clone()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!((to("p"), to("q")), (vec![], vec!["outbound|80|v1|x.com".to_owned()]));
    assert!(mesh.of("a", "p").cluster("outbound|80|v1|x.com").is_none());
    assert_eq!(mesh.of("a", "p").all_clusters().count(), 1);
    assert_eq!(mesh.clusters().count(), 3);
}
