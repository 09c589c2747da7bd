//! What a Sidecar lets its workloads reach.

use super::*;

/// Where a request in plain text leads, or what happens instead.
fn http(mesh: &Mesh, (namespace, name): (&str, &str), port: u16, host: &str) -> String {
    match mesh.of(namespace, name).http(SocketAddr::new(ip("9.9.9.9"), port), host) {
        HttpDecision::Host(found) => {
            found.clusters().map(|cluster| cluster.name.as_str()).collect::<Vec<_>>().join(", ")
        }
        other => other.short(),
    }
}

fn reason(decision: &Decision) -> String {
    match decision {
        Decision::Refuse(reason) => reason.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

fn mesh_config(policy: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: 'outboundTrafficPolicy: {{mode: {policy}}}'}}\n"
    )
}

fn service(namespace: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n")
}

fn virtual_service(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn its_outbound_traffic_policy_goes_before_that_of_the_mesh() {
    let mut text = entry("a", "e", &format!("{{hosts: [a.com], {HTTP}}}"));
    for (namespace, name) in [("a", "web"), ("a", "db"), ("b", "web"), ("c", "web")] {
        text += &pod(namespace, name, &format!("{{app: {name}}}"));
    }
    for (mesh_policy, other) in [("ALLOW_ANY", "REGISTRY_ONLY"), ("REGISTRY_ONLY", "ALLOW_ANY")] {
        let own = format!("{{workloadSelector: {{labels: {{app: web}}}}, outboundTrafficPolicy: {{mode: {other}}}}}");
        let text = text.clone()
            + &mesh_config(mesh_policy)
            + &sidecar("a", "web", &own)
            + &sidecar("b", "default", "{egress: [{hosts: ['*/*']}]}");
        let mesh = mesh(&text).quiet();
        let word = |policy: &str| if policy == "ALLOW_ANY" { "passthrough" } else { "block" };
        assert_eq!(http(&mesh, ("a", "web"), 80, "b.com"), word(other));
        for pod in [("a", "db"), ("b", "web"), ("c", "web")] {
            assert_eq!(http(&mesh, pod, 80, "b.com"), word(mesh_policy), "{pod:?}");
        }
        let at = |namespace| mesh.of(namespace, "web").http(dst("1.1.1.1:80"), "a.com").cluster();
        assert_eq!(at("a").name, "outbound|80||a.com");
        assert!(Arc::ptr_eq(&at("a"), &at("c")));
    }
}

#[test]
fn hosts_are_imported_by_namespace_and_name() {
    let mut text = pod("a", "p", "{}");
    for (namespace, host) in [
        ("a", "own.com"),
        ("a", "api.own.com"),
        ("b", "b.com"),
        ("b", "x.b.com"),
        ("b", "'*.wild.com'"),
        ("c", "c.com"),
        ("c", "private.com"),
    ] {
        let name = host.replace(['.', '*', '\''], "");
        let export = if host == "private.com" { ", exportTo: ['.']" } else { "" };
        let http = HTTP.replace("DNS", if host.contains('*') { "NONE" } else { "DNS" });
        text += &entry(namespace, &name, &format!("{{hosts: [{host}], {http}{export}}}"));
    }
    text += &service("b", "web", "{clusterIP: 10.0.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}");
    let all = ["own.com", "api.own.com", "b.com", "x.b.com", "y.wild.com", "c.com", "private.com", "web.b", "10.0.0.1"];
    for (hosts, want) in [
        ("'*/*'", &["own.com", "api.own.com", "b.com", "x.b.com", "y.wild.com", "c.com", "web.b", "10.0.0.1"][..]),
        ("'./*'", &["own.com", "api.own.com"]),
        ("'a/*'", &["own.com", "api.own.com"]),
        ("'./own.com'", &["own.com"]),
        ("'./*.own.com'", &["api.own.com"]),
        ("'b/*'", &["b.com", "x.b.com", "y.wild.com", "web.b", "10.0.0.1"]),
        ("'b/*.b.com'", &["x.b.com"]),
        ("'b/*.wild.com'", &["y.wild.com"]),
        ("'*/*.com'", &["own.com", "api.own.com", "b.com", "x.b.com", "y.wild.com", "c.com"]),
        // One host of a wildcard service is not the service.
        ("'b/y.wild.com'", &[]),
        ("'b/web.b.svc.cluster.local'", &["web.b", "10.0.0.1"]),
        ("'b/c.com'", &[]),
        ("'*/c.com', 'a/OWN.com'", &["own.com", "c.com"]),
        ("'c/private.com'", &[]),
        ("'~/*'", &[]),
    ] {
        let mesh = mesh(&(text.clone() + &sidecar("a", "narrow", &format!("{{egress: [{{hosts: [{hosts}]}}]}}"))));
        let reached: Vec<&str> =
            all.into_iter().filter(|host| http(&mesh, ("a", "p"), 80, host) != "passthrough").collect();
        assert_eq!(reached, want, "{hosts}");
    }
}

#[test]
fn only_its_own_workloads_are_narrowed_and_no_gateway() {
    let mut text = entry("x", "e", &format!("{{hosts: [x.com], {HTTP}}}")) + &mesh_config("REGISTRY_ONLY");
    for (namespace, name) in [("a", "web"), ("a", "db"), ("a", "gw"), ("b", "web")] {
        text += &pod(namespace, name, &format!("{{app: {name}}}"));
    }
    text += "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: a}\nspec: {selector: {app: gw}, servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]}\n";
    text += &sidecar("a", "web", "{workloadSelector: {labels: {app: web}}, egress: [{hosts: ['./*']}]}");
    text += &sidecar("istio-system", "all", "{egress: [{hosts: ['~/*']}]}");
    let narrowed = mesh(&text);
    for (pod, want) in [(("a", "web"), "block"), (("a", "db"), "block"), (("b", "web"), "block")] {
        assert_eq!(http(&narrowed, pod, 80, "x.com"), want, "{pod:?}");
    }
    assert_eq!(http(&narrowed, ("a", "gw"), 80, "x.com"), "outbound|80||x.com");
    let wider = mesh(&(text + &sidecar("a", "default", "{egress: [{hosts: ['x/x.com']}]}")));
    assert_eq!(http(&wider, ("a", "db"), 80, "x.com"), "outbound|80||x.com");
    assert_eq!(http(&wider, ("a", "web"), 80, "x.com"), "block");
}

#[test]
fn a_listener_with_a_port_serves_that_port_only_and_others_fall_to_the_one_without() {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}, {number: 8080, name: other, protocol: HTTP}], resolution: DNS";
    let text = pod("a", "p", "{}")
        + &entry("b", "e", &format!("{{hosts: [b.com], {ports}}}"))
        + &entry("c", "e", &format!("{{hosts: [c.com], {ports}}}"));
    let port = "port: {number: 8080, name: http, protocol: HTTP}";
    let both = sidecar("a", "s", &format!("{{egress: [{{{port}, hosts: ['b/*']}}, {{hosts: ['c/*']}}]}}"));
    let both = mesh(&(text.clone() + &both));
    let alone = mesh(&(text + &sidecar("a", "s", &format!("{{egress: [{{{port}, hosts: ['b/*']}}]}}"))));
    for (mesh, host, port, want) in [
        (&both, "b.com", 80, "passthrough"),
        (&both, "b.com", 8080, "outbound|8080||b.com"),
        (&both, "c.com", 80, "outbound|80||c.com"),
        (&both, "c.com", 8080, "passthrough"),
        (&alone, "b.com", 80, "passthrough"),
        (&alone, "b.com", 8080, "outbound|8080||b.com"),
        (&alone, "c.com", 80, "passthrough"),
    ] {
        assert_eq!(http(mesh, ("a", "p"), port, host), want, "{host} {port}");
    }
    let why = both.of("a", "p").unimported("b.com", 80).unwrap();
    assert_eq!(why, "ServiceEntry b/e is not imported by Sidecar a/s on port 80");
    assert_eq!(alone.of("a", "p").all_clusters().count(), 1);
}

#[test]
fn virtual_services_count_where_they_are_imported_and_bring_their_destinations() {
    let to = |host: &str| format!("http: [{{route: [{{destination: {{host: {host}, port: {{number: 80}}}}}}]}}]");
    let text = pod("a", "p", "{}")
        + &entry("b", "b", &format!("{{hosts: [b.com], {HTTP}}}"))
        + &entry("b", "behind", &format!("{{hosts: [behind.com], {HTTP}}}"))
        + &entry("d", "behind", &format!("{{hosts: [behind.com], {HTTP}}}"))
        + &entry("b", "other", &format!("{{hosts: [other.com], {HTTP}}}"))
        + &virtual_service("c", "v", &format!("{{hosts: [b.com], {}}}", to("behind.com")));
    let under =
        |hosts: &str| mesh(&(text.clone() + &sidecar("a", "s", &format!("{{egress: [{{hosts: [{hosts}]}}]}}"))));
    let all = under("'*/b.com'");
    // Routes lead to it, but nobody calls it by its name.
    assert_eq!(http(&all, ("a", "p"), 80, "b.com"), "outbound|80||behind.com");
    assert_eq!(http(&all, ("a", "p"), 80, "behind.com"), "passthrough");
    assert_eq!(all.of("a", "p").cluster("outbound|80||behind.com").unwrap().service.namespace, "b");
    assert_eq!(all.of("a", "p").all_clusters().count(), 2);
    // The one that is imported by name is not replaced.
    let named = under("'*/b.com', 'd/behind.com'");
    assert_eq!(named.of("a", "p").cluster("outbound|80||behind.com").unwrap().service.namespace, "d");
    assert_eq!(http(&named, ("a", "p"), 80, "behind.com"), "outbound|80||behind.com");
    // The service alone: its VirtualService is of another namespace.
    let service = under("'b/b.com'");
    assert_eq!(http(&service, ("a", "p"), 80, "b.com"), "outbound|80||b.com");
    assert_eq!(service.of("a", "p").all_clusters().count(), 1);
    // The VirtualService alone has a host without service, on port 80 only.
    let routes = under("'c/*'");
    assert_eq!(http(&routes, ("a", "p"), 80, "b.com"), "outbound|80||behind.com");
    assert_eq!(http(&routes, ("a", "p"), 81, "b.com"), "passthrough");
    assert_eq!(http(&routes, ("a", "p"), 80, "other.com"), "passthrough");
}

#[test]
fn virtual_services_count_on_the_ports_of_the_listeners_that_import_them() {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}, {number: 8080, name: other, protocol: HTTP}], resolution: DNS";
    let text = pod("a", "p", "{}")
        + &entry("b", "b", &format!("{{hosts: [b.com], {ports}}}"))
        + &entry("b", "c", &format!("{{hosts: [c.com], {ports}}}"))
        + &virtual_service("c", "v", "{hosts: [b.com], http: [{route: [{destination: {host: c.com}}]}]}")
        + &sidecar(
            "a",
            "s",
            "{egress: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['b/b.com', 'c/*']}, {hosts: ['b/b.com']}]}",
        );
    let mesh = mesh(&text).quiet();
    assert_eq!(http(&mesh, ("a", "p"), 8080, "b.com"), "outbound|8080||c.com");
    assert_eq!(http(&mesh, ("a", "p"), 80, "b.com"), "outbound|80||b.com");
    assert!(mesh.of("a", "p").cluster("outbound|80||c.com").is_none(), "the listener's own port only");
}

#[test]
fn what_a_rule_names_is_refused_and_not_passed_through_where_it_is_not_imported() {
    let tls = "trafficPolicy: {tls: {mode: SIMPLE}}";
    let text = pod("a", "p", "{}")
        + &entry("b", "web", &format!("{{hosts: [web.com], addresses: [10.0.0.1], {HTTP}}}"))
        + &rule("b", "web", &format!("{{host: web.com, {tls}}}"))
        + &entry("b", "db", "{hosts: [db.com], addresses: [10.0.0.2], ports: [{number: 3306, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 1.2.3.4}]}")
        + &rule("b", "db", &format!("{{host: db.com, {tls}}}"))
        + &entry("b", "listed", "{hosts: [listed.com], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 1.2.3.5}]}")
        + &rule("b", "listed", &format!("{{host: listed.com, {tls}}}"))
        + &entry("b", "any", "{hosts: [any.com], ports: [{number: 6379, name: tcp, protocol: TCP}], resolution: DNS}")
        + &rule("b", "any", &format!("{{host: any.com, {tls}}}"))
        // Wider than what is hidden, and in plain text.
        + &entry("a", "wide", "{hosts: [wide.internal], addresses: [10.0.0.0/8], ports: [{number: 3306, name: tcp, protocol: TCP}], resolution: NONE}")
        + &entry("a", "open", &format!("{{hosts: ['*.com'], {}}}", HTTP.replace("DNS", "NONE")));
    for hosts in ["'./*'", "'~/*'"] {
        let mesh = mesh(&(text.clone() + &sidecar("a", "s", &format!("{{egress: [{{hosts: [{hosts}]}}]}}"))));
        let outbound = mesh.of("a", "p");
        let refused = [
            outbound.http(dst("9.9.9.9:80"), "web.com").decision(),
            outbound.http(dst("9.9.9.9:80"), "10.0.0.1").decision(),
            outbound.tcp(dst("10.0.0.1:80")),
            outbound.tcp(dst("10.0.0.2:3306")),
            outbound.tcp(dst("1.2.3.5:5432")),
            outbound.tcp(dst("9.9.9.9:6379")),
        ];
        for (decision, service) in refused.iter().zip(["web", "web", "web", "db", "listed", "any"]) {
            let reason = reason(decision);
            let why = format!("; ServiceEntry b/{service} is not imported by Sidecar a/s");
            assert!(reason.starts_with(&format!("DestinationRule b/{service} asks for TLS")), "{reason}");
            assert!(reason.ends_with(&why), "{hosts}: {reason}");
        }
        // What is encrypted already is not plain text.
        assert_eq!(outbound.tls(dst("9.9.9.9:6379"), Some("any.com")).short(), "passthrough");
        assert_eq!(outbound.tcp(dst("9.9.9.9:80")).short(), "passthrough");
    }
    let mesh = mesh(&(text + &sidecar("a", "s", "{egress: [{hosts: ['b/*']}]}")));
    let outbound = mesh.of("a", "p");
    assert_eq!(outbound.http(dst("9.9.9.9:80"), "web.com").short(), "outbound|80||web.com SIMPLE");
    assert_eq!(outbound.tcp(dst("10.0.0.2:3306")).short(), "outbound|3306||db.com SIMPLE");
    assert_eq!(outbound.tcp(dst("1.2.3.5:5432")).short(), "outbound|5432||listed.com SIMPLE");
    assert_eq!(outbound.tcp(dst("9.9.9.9:6379")).short(), "outbound|6379||any.com SIMPLE");
    assert_eq!(outbound.http(dst("9.9.9.9:80"), "x.com").short(), "passthrough");
    assert_eq!(outbound.unimported("x.com", 80).unwrap(), "ServiceEntry a/open is not imported by Sidecar a/s");
}

/// `*` speaks of the services of its own namespace, whatever their names: they alone can say what it guards.
#[test]
fn a_rule_for_all_services_of_a_namespace_guards_those_that_are_hidden() {
    let text = pod("a", "p", "{}")
        + &entry("b", "e", &format!("{{hosts: [b.com, '*.b.com'], {}}}", HTTP.replace("DNS", "NONE")))
        + &entry("c", "e", &format!("{{hosts: [c.com], {HTTP}}}"))
        + &rule("b", "all", "{host: '*', trafficPolicy: {tls: {mode: SIMPLE}}}")
        + &sidecar("a", "s", "{egress: [{hosts: ['~/*']}]}");
    let mesh = mesh(&text);
    for (host, want) in [("b.com", "refuse"), ("x.b.com", "refuse"), ("c.com", "passthrough"), ("d.com", "passthrough")]
    {
        assert_eq!(http(&mesh, ("a", "p"), 80, host), want, "{host}");
    }
}

#[test]
fn rules_for_single_workloads_guard_what_is_hidden_from_them() {
    let tcp = "ports: [{number: 3306, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 1.2.3.4}]";
    let mut text = entry("b", "db", &format!("{{hosts: [db.com], addresses: [10.0.0.2], {tcp}}}"));
    text += &entry("b", "other", &format!("{{hosts: [other.com], addresses: [10.0.0.3], {tcp}}}"));
    for name in ["web", "old", "new"] {
        text += &pod("a", name, &format!("{{app: {name}}}"));
    }
    let of = |name: &str, host: &str, app: &str, mode: &str| {
        let spec = format!(
            "{{host: {host}, workloadSelector: {{matchLabels: {{app: {app}}}}}, trafficPolicy: {{tls: {{mode: {mode}}}}}}}"
        );
        rule("a", name, &spec)
    };
    text += &of("db-web", "db.com", "web", "SIMPLE");
    text += &of("db-old", "db.com", "old", "DISABLE");
    text += &rule("a", "other", "{host: other.com, trafficPolicy: {tls: {mode: SIMPLE}}}");
    text += &of("other-old", "other.com", "old", "DISABLE");
    text += &sidecar("a", "s", "{egress: [{hosts: ['~/*']}]}");
    let mesh = mesh(&text);
    for (pod, db, other) in
        [("web", "refuse", "refuse"), ("old", "passthrough", "passthrough"), ("new", "passthrough", "refuse")]
    {
        let outbound = mesh.of("a", pod);
        assert_eq!(outbound.tcp(dst("10.0.0.2:3306")).short(), db, "{pod}");
        assert_eq!(outbound.tcp(dst("10.0.0.3:3306")).short(), other, "{pod}");
        assert_eq!(outbound.http(dst("9.9.9.9:3306"), "db.com").short(), db, "{pod}");
        assert_eq!(outbound.http(dst("9.9.9.9:3306"), "other.com").short(), other, "{pod}");
    }
}

#[test]
fn views_are_shared_and_small() {
    let mut text = String::new();
    for at in 0..50 {
        text += &entry("x", &format!("e{at}"), &format!("{{hosts: [h{at}.com], {HTTP}}}"));
    }
    for namespace in ["a", "b", "c", "d"] {
        text += &pod(namespace, "p", "{}");
        text += &pod(namespace, "q", "{}");
    }
    // The root namespace's for `a` and `b`, nothing less than everything for `c`, one of its own for `d`.
    text += &sidecar("istio-system", "root", "{egress: [{hosts: ['x/h1.com', 'x/h2.com']}]}");
    text += &sidecar("c", "all", "{egress: [{hosts: ['*/*']}]}");
    text += &sidecar("d", "own", "{egress: [{hosts: ['x/h1.com']}]}");
    let mesh = mesh(&text).quiet();
    let table = |namespace: &str, pod: &str| {
        let id = WorkloadId { namespace: namespace.into(), name: pod.into() };
        mesh.workloads[&id].outbound.clone()
    };
    for namespace in ["a", "b", "c", "d"] {
        assert!(Arc::ptr_eq(&table(namespace, "p"), &table(namespace, "q")), "{namespace}");
    }
    assert!(Arc::ptr_eq(&table("a", "p"), &table("b", "p")));
    for (namespace, clusters) in [("a", 2), ("c", 50), ("d", 1)] {
        let table = table(namespace, "p");
        assert_eq!((table.clusters.len(), table.services.len()), (clusters, clusters), "{namespace}");
        assert_eq!(table.ports[&80].http.len(), clusters, "{namespace}");
    }
    let one = |namespace| table(namespace, "p").clusters.get("outbound|80||h1.com").unwrap().clone();
    assert!(Arc::ptr_eq(&one("a"), &one("c")) && Arc::ptr_eq(&one("a"), &one("d")));
}

#[test]
fn imports_of_nothing_are_told() {
    let text = pod("a", "p", "{}")
        + &entry("b", "e", &format!("{{hosts: [b.com], {HTTP}}}"))
        + &entry("b", "private", &format!("{{hosts: [private.com], {HTTP}, exportTo: ['.']}}"))
        + &virtual_service("b", "v", "{hosts: [routed.com], http: [{route: [{destination: {host: b.com}}]}]}")
        + &sidecar(
            "a",
            "s",
            "{egress: [{hosts: ['~/*', '*/*', './*', 'b/b.com', '*/routed.com', './b.com', 'b/private.com', '*/gone.com', 'gone/*']}]}",
        )
        + &sidecar("istio-system", "root", "{egress: [{hosts: ['./*', 'b/private.com', 'b/gone.com']}]}");
    let mesh = mesh(&text);
    assert_eq!(
        mesh.said(Severity::Warning),
        [
            "spec.hosts[0]: no ServiceEntry or Service has this host: in the mesh it is served on port 80 only",
            "spec.egress[0].hosts[5]: nothing is imported by this: ServiceEntry b/e is of namespace b",
            "spec.egress[0].hosts[6]: nothing is imported by this: ServiceEntry b/private is not exported to namespace a",
            "spec.egress[0].hosts[7]: nothing is imported by this: no ServiceEntry, Service or VirtualService has such a host",
            "spec.egress[0].hosts[2]: nothing is imported by this: no ServiceEntry, Service or VirtualService of namespace b has such a host",
        ]
    );
    assert_eq!(
        mesh.said(Severity::Info),
        [
            "spec.egress[0].hosts[2]: nothing is imported by this: no ServiceEntry, Service or VirtualService of namespace a has such a host",
            "spec.egress[0].hosts[8]: nothing is imported by this: no ServiceEntry, Service or VirtualService of namespace gone has such a host",
        ]
    );
}
