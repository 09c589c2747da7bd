//! Which DestinationRule applies, and what of it.

use super::*;

const SIMPLE: &str = "trafficPolicy: {tls: {mode: SIMPLE}}";
const PLAIN: &str = "trafficPolicy: {tls: {mode: DISABLE}}";

/// A world of a service in `svc` and a client in `client`, with these rules as (namespace, name, spec).
fn decided(host: &str, rules: &[(&str, &str, &str)]) -> String {
    let text = pod("client", "p", "{app: p}")
        + &entry("svc", "e", &format!("{{hosts: ['{host}'], {HTTP}, endpoints: [{{address: e.com}}]}}"));
    let text = rules.iter().fold(text, |text, (namespace, name, spec)| text + &rule(namespace, name, spec));
    mesh(&text).of("client", "p").http(dst("9.9.9.9:80"), &host.replace('*', "a")).short()
}

#[test]
fn the_first_namespace_with_any_match_wins() {
    let plain = "outbound|80||x.foo.com";
    let simple = "outbound|80||x.foo.com SIMPLE";
    let on = |host: &str| format!("{{host: '{host}', {SIMPLE}}}");
    let off = |host: &str| format!("{{host: '{host}', {PLAIN}}}");
    for (what, want, rules) in [
        ("service's", simple, vec![("svc", "r", on("x.foo.com"))]),
        ("root's", simple, vec![("istio-system", "r", on("*.foo.com"))]),
        ("a third namespace's", plain, vec![("third", "r", on("x.foo.com"))]),
        ("client's wildcard over exact", plain, vec![("client", "r", off("*")), ("svc", "r", on("x.foo.com"))]),
        ("service's over root's", simple, vec![("svc", "r", on("*.com")), ("istio-system", "r", off("x.foo.com"))]),
        ("most specific within", simple, vec![("svc", "a", off("*.com")), ("svc", "b", on("*.foo.com"))]),
        ("exact within", plain, vec![("svc", "a", off("x.foo.com")), ("svc", "b", on("*.foo.com"))]),
        ("not exported", plain, vec![("svc", "r", format!("{{host: x.foo.com, exportTo: ['.'], {SIMPLE}}}"))]),
        ("exported to it", simple, vec![("svc", "r", format!("{{host: x.foo.com, exportTo: [client], {SIMPLE}}}"))]),
        ("own counts anyway", simple, vec![("client", "r", format!("{{host: x.foo.com, exportTo: [svc], {SIMPLE}}}"))]),
        (
            "hidden ones do not hide wider ones",
            simple,
            vec![("svc", "a", format!("{{host: x.foo.com, exportTo: ['.'], {PLAIN}}}")), ("svc", "b", on("*.foo.com"))],
        ),
    ] {
        let rules: Vec<_> = rules.iter().map(|(namespace, name, spec)| (*namespace, *name, spec.as_str())).collect();
        assert_eq!(decided("x.foo.com", &rules), want, "{what}");
    }
    assert_eq!(decided("*.foo.com", &[("svc", "r", &on("*.foo.com"))]), "outbound|80||*.foo.com SIMPLE");
    assert_eq!(decided("*.foo.com", &[("svc", "r", &on("*.com"))]), "outbound|80||*.foo.com SIMPLE");
}

#[test]
fn a_rule_for_one_host_of_a_wildcard_service_forbids_plain_text() {
    let rule = format!("{{host: a.foo.com, {SIMPLE}}}");
    assert_eq!(decided("*.foo.com", &[("client", "r", &rule)]), "refuse");
}

#[test]
fn workload_selectors() {
    let text = pod("a", "chosen", "{app: x, v: one}")
        + &pod("a", "other", "{app: y}")
        + &pod("b", "chosen", "{app: x}")
        + &entry("a", "e", &format!("{{hosts: [x.com], {HTTP}}}"))
        + &entry("a", "f", &format!("{{hosts: [y.com], {HTTP}}}"))
        + &rule("a", "r", &format!("{{host: x.com, workloadSelector: {{matchLabels: {{app: x}}}}, {SIMPLE}}}"))
        + &rule("a", "s", &format!("{{host: y.com, workloadSelector: {{matchLabels: {{app: x}}}}, {SIMPLE}}}"))
        + &rule("a", "t", "{host: y.com, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}}");
    let mesh = mesh(&text).quiet();
    let http = |namespace, name, host| mesh.of(namespace, name).http(dst("9.9.9.9:80"), host).short();
    assert_eq!(http("a", "chosen", "x.com"), "outbound|80||x.com SIMPLE");
    assert_eq!(http("a", "other", "x.com"), "outbound|80||x.com");
    assert_eq!(http("b", "chosen", "x.com"), "outbound|80||x.com");
    assert_eq!(http("a", "chosen", "y.com"), "outbound|80||y.com SIMPLE");
    let plain = mesh.of("a", "other").http(dst("9.9.9.9:80"), "y.com").cluster().clone();
    assert_eq!(plain.pool.connect_timeout, std::time::Duration::from_secs(1));
    assert_eq!(plain.destination_rule.as_ref().unwrap().name, "t");
    // Elsewhere than in x.com's own table nothing is known of the selector; undeclared ports follow it too.
    let on = |namespace, name| mesh.of(namespace, name).http(dst("9.9.9.9:8080"), "x.com").short();
    assert_eq!(on("a", "chosen"), "refuse");
    assert_eq!(on("a", "other"), "passthrough");
    assert_eq!(on("b", "chosen"), "passthrough");
}

#[test]
fn rules_for_one_host_merge() {
    let text = pod("a", "p", "{}")
        + &entry(
            "a",
            "e",
            "{hosts: [x.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1, labels: {v: one}}]}",
        )
        + &rule("a", "a-first", "{host: x.com, subsets: [{name: one, labels: {v: one}}]}")
        + &rule(
            "a",
            "b-second",
            &format!(
                "{{host: x.com, {SIMPLE}, subsets: [{{name: one, labels: {{}}}}, {{name: two, labels: {{v: two}}}}]}}"
            ),
        )
        + &rule("a", "c-third", &format!("{{host: x.com, {PLAIN}}}"));
    let mesh = mesh(&text);
    let outbound = mesh.of("a", "p");
    assert_eq!(outbound.http(dst("9.9.9.9:80"), "x.com").short(), "outbound|80||x.com SIMPLE");
    let one = outbound.cluster("outbound|80|one|x.com").unwrap();
    assert!(matches!(&one.discovery, Discovery::Static(list) if list.len() == 1));
    assert!(matches!(one.tls, UpstreamTls::Originate(_)));
    assert!(
        matches!(&outbound.cluster("outbound|80|two|x.com").unwrap().discovery, Discovery::Static(list) if list.is_empty())
    );
    let said = mesh.said(Severity::Warning);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().any(|s| s.starts_with("spec.subsets[0].name: DestinationRule a/a-first")), "{said:?}");
    assert!(said.iter().any(|s| s.starts_with("spec.trafficPolicy: DestinationRule a/b-second")), "{said:?}");
}

#[test]
fn port_levels_replace_everything() {
    let text = pod("a", "p", "{}")
        + &entry("a", "e", "{hosts: [x.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: h, protocol: HTTP}, {number: 82, name: i, protocol: HTTP}]}")
        + &rule(
            "a",
            "r",
            "{host: x.com,
              trafficPolicy: {tls: {mode: SIMPLE}, loadBalancer: {simple: RANDOM},
                portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: ROUND_ROBIN}}]},
              subsets: [{name: s, labels: {}, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 1s}}}},
                        {name: t, labels: {}, trafficPolicy: {portLevelSettings: [{port: {number: 82}, connectionPool: {tcp: {connectTimeout: 2s}}}]}}]}",
        );
    let mesh = mesh(&text);
    let seen = |name: &str| {
        let cluster = mesh.of("a", "p").cluster(name).unwrap();
        (cluster.tls != UpstreamTls::Plain, cluster.load_balancer, cluster.pool.connect_timeout.as_secs())
    };
    use LoadBalancer::*;
    assert_eq!(seen("outbound|80||x.com"), (true, Random, 10));
    assert_eq!(seen("outbound|81||x.com"), (false, RoundRobin, 10));
    assert_eq!(seen("outbound|80|s|x.com"), (true, Random, 1));
    assert_eq!(seen("outbound|81|s|x.com"), (false, RoundRobin, 10));
    // The subset's port levels are the only ones that count, so 81 falls back to the policy above.
    assert_eq!(seen("outbound|81|t|x.com"), (true, Random, 10));
    assert_eq!(seen("outbound|82|t|x.com"), (false, LeastRequest, 2));
    // What port 81 takes out, no guard puts back: HTTP there is plain by the rule's own words.
    let outbound = mesh.of("a", "p");
    assert_eq!(outbound.http(dst("9.9.9.9:81"), "x.com").short(), "outbound|81||x.com");
    assert_eq!(outbound.http(dst("9.9.9.9:83"), "x.com").short(), "refuse");
}

#[test]
fn short_names_are_services_of_the_rules_namespace() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: a}\nspec: {clusterIP: 10.0.0.1, selector: {app: w}, ports: [{port: 80, name: http}]}\n";
    let text = service.to_owned()
        + &pod("a", "p", "{app: w}")
        + &pod("b", "p", "{}")
        + &rule("a", "r", &format!("{{host: web, {SIMPLE}}}"));
    let mesh = mesh(&text).quiet();
    assert_eq!(
        mesh.of("b", "p").http(dst("9.9.9.9:80"), "web.a").short(),
        "outbound|80||web.a.svc.cluster.local SIMPLE"
    );
    assert_eq!(mesh.of("a", "p").http(dst("9.9.9.9:81"), "web").short(), "refuse");
    assert_eq!(mesh.of("b", "p").http(dst("9.9.9.9:81"), "web.a").short(), "refuse");
    assert_eq!(mesh.of("b", "p").http(dst("9.9.9.9:81"), "web").short(), "passthrough");
}

#[test]
fn rules_without_a_service_are_said() {
    let text = rule("a", "plain", "{host: gone.com}")
        + &rule("a", "tls", &format!("{{host: lost.com, {SIMPLE}}}"))
        + &rule("a", "wild", &format!("{{host: '*.lost.com', {SIMPLE}}}"));
    let mesh = mesh(&text);
    assert_eq!(mesh.said(Severity::Error).len(), 1, "{:?}", mesh.diagnostics);
    assert!(mesh.said(Severity::Error)[0].contains("lost.com is visible from namespace a"));
    assert_eq!(mesh.said(Severity::Warning).len(), 2, "{:?}", mesh.diagnostics);
}
