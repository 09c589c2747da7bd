//! Ten thousand hosts and 250 pods.

use std::time::{Duration, Instant};

use super::*;

/// `pods` pods in 50 namespaces, 10,000 hosts, and a rule with its own client certificate for each of `rules` pods.
fn big(rules: usize) -> Objects {
    let mut objects = Objects::default();
    let parse = |text: &str| super::objects(text);
    let one = parse(&entry("default", "e", &format!("{{hosts: [x.com], {HTTP}}}")));
    let template = one.service_entries.values().next().unwrap();
    for index in 0..10_000 {
        let mut object = (**template).clone();
        object.meta.name = format!("e{index}").into();
        object.id =
            crate::api::ObjectId::new(object.id.kind, object.meta.namespace.as_str(), object.meta.name.as_str());
        object.spec.hosts = vec![format!("host-{index}.example.com").into()];
        objects.service_entries.insert(Arc::new(object));
    }
    for index in 0..250 {
        let namespace = format!("n{}", index % 50);
        let made = parse(&pod(&namespace, &format!("p{index}"), &format!("{{app: p{index}}}")));
        objects.pods.extend(made.pods.values().cloned());
        if index < rules {
            let spec = format!(
                "{{host: host-{index}.example.com, workloadSelector: {{matchLabels: {{app: p{index}}}}}, trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: c{index}}}}}}}"
            );
            let made = parse(&rule(&namespace, &format!("r{index}"), &spec));
            objects.destination_rules.extend(made.destination_rules.values().cloned());
            let made = parse(&secret(&namespace, &format!("c{index}"), &["tls.crt", "tls.key", "ca.crt"]));
            objects.secrets.extend(made.secrets.values().cloned());
        }
    }
    objects
}

#[test]
fn ten_thousand_hosts_and_250_pods() {
    // Generous: a debug build on a busy machine. A release build needs about a hundredth.
    let bound = Duration::from_secs(60);
    let objects = big(0);
    let started = Instant::now();
    let mesh = compile(&objects, &PodAddresses::new());
    assert!(started.elapsed() < bound, "{:?}", started.elapsed());
    let tables: std::collections::HashSet<_> = mesh.workloads.values().map(|w| Arc::as_ptr(&w.outbound)).collect();
    assert_eq!(tables.len(), 1, "workloads that see the same share a table");
    assert_eq!(mesh.clusters().count(), 10_000);

    let objects = big(250);
    let started = Instant::now();
    let mesh = compile(&objects, &PodAddresses::new());
    assert!(started.elapsed() < bound, "{:?}", started.elapsed());
    assert!(mesh.said(Severity::Error).is_empty());
    for (index, workload) in mesh.workloads.values().enumerate() {
        assert!(workload.outbound.clusters.len() <= 5, "{}: only what differs is its own", workload.id);
        let own = workload.id.name.trim_start_matches('p');
        let decision = workload.outbound.http(dst("9.9.9.9:80"), &format!("host-{own}.example.com"));
        assert!(decision.short().ends_with("MUTUAL"), "{index}");
        let decision = workload.outbound.http(dst("9.9.9.9:80"), "host-9999.example.com");
        assert_eq!(decision.short(), "outbound|80||host-9999.example.com");
    }
    assert_eq!(mesh.tls_settings().len(), 250);
}

/// The purpose of a Sidecar: its workloads' table holds what it imports and nothing else, however much there is.
#[test]
fn a_narrow_sidecar_makes_a_small_table() {
    let bound = Duration::from_secs(60);
    let mut text = sidecar(
        "n1",
        "s",
        "{egress: [{hosts: ['./*', 'default/host-1.example.com', 'default/host-2.example.com', 'default/host-3.example.com', 'default/host-4.example.com', 'default/host-5.example.com']}]}",
    );
    // And 200 workloads each of which has its own.
    for at in 0..200 {
        text += &pod("many", &format!("p{at}"), &format!("{{app: p{at}}}"));
        text += &sidecar(
            "many",
            &format!("s{at}"),
            &format!(
                "{{workloadSelector: {{labels: {{app: p{at}}}}}, egress: [{{hosts: ['default/host-{at}.example.com']}}]}}"
            ),
        );
    }
    let mut objects = big(0);
    let own = super::objects(&text);
    objects.sidecars.extend(own.sidecars.values().cloned());
    objects.pods.extend(own.pods.values().cloned());
    let started = Instant::now();
    let mesh = compile(&objects, &PodAddresses::new());
    assert!(started.elapsed() < bound, "{:?}", started.elapsed());
    assert!(mesh.diagnostics.len() == 1, "{:?}", mesh.diagnostics);
    let size = |namespace, pod| {
        let table = mesh.of(namespace, pod);
        (table.clusters.len(), table.services.len(), table.ports[&80].http.len())
    };
    assert_eq!(size("n1", "p1"), (5, 5, 5));
    assert_eq!(size("many", "p7"), (1, 1, 1));
    assert_eq!(mesh.of("n2", "p2").clusters.len(), 10_000);
    let tables = mesh.workloads.values().map(|workload| &workload.outbound);
    assert_eq!(distinct(tables), 1 + 1 + 200, "everybody's, that of n1, and those of `many`");
    assert_eq!(mesh.clusters().count(), 10_000);
}

/// `count` hosts with a rule and routes each.
fn routed(count: usize, matches: &str) -> String {
    let of = |at: usize| {
        let host = format!("host-{at}.example.com");
        entry("default", &format!("e{at}"), &format!("{{hosts: [{host}], {HTTP}}}"))
            + &rule(
                "default",
                &format!("r{at}"),
                &format!("{{host: {host}, trafficPolicy: {{tls: {{mode: SIMPLE}}}}}}"),
            )
            + &format!(
                "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{at}, namespace: default}}\nspec: {{hosts: [{host}], http: [{{match: [{matches}], timeout: 1s, route: [{{destination: {{host: {host}}}}}]}}, {{route: [{{destination: {{host: {host}}}}}]}}]}}\n"
            )
    };
    (0..count).map(of).collect()
}

fn distinct<'a, T: 'a>(all: impl Iterator<Item = &'a Arc<T>>) -> usize {
    all.map(Arc::as_ptr).collect::<std::collections::HashSet<_>>().len()
}

/// A rule without credentials made each namespace a table of its own once: 50 namespaces with 10,000 hosts took 2 GiB.
#[test]
fn namespaces_that_see_the_same_share_tables_and_layers() {
    let mut text = routed(20, "{sourceLabels: {half: 'yes'}, uri: {prefix: /a}}");
    for at in 0..20 {
        text += &pod(&format!("n{}", at % 10), &format!("p{at}"), if at < 10 { "{half: 'yes'}" } else { "{}" });
    }
    let mesh = mesh(&text);
    assert_eq!(distinct(mesh.workloads.values().map(|workload| &workload.outbound)), 2, "one, and one layer over it");
    assert_eq!(mesh.clusters().count(), 20);
    for (namespace, name, routes) in [("n1", "p1", 2), ("n1", "p11", 1), ("n2", "p2", 2)] {
        let host = mesh.of(namespace, name).virtual_host(80, "host-0.example.com").unwrap();
        assert_eq!(host.routes.len(), routes, "{name}");
        assert!(host.clusters().all(|cluster| cluster.tls.encrypts()), "{name}");
    }
}

#[test]
fn namespaces_with_services_of_their_own_share_clusters_and_routes() {
    let mut text = routed(20, "{uri: {prefix: /a}}");
    for at in 0..10 {
        text += &pod(&format!("n{at}"), "p", "{app: own}");
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: n{at}}}\nspec: {{clusterIP: 10.0.0.{}, selector: {{app: own}}, ports: [{{name: http, port: 80}}]}}\n",
            at + 1
        );
    }
    let mesh = mesh(&text);
    let tables: Vec<_> = mesh.workloads.values().map(|workload| &workload.outbound).collect();
    assert_eq!(distinct(tables.iter().copied()), 10, "each knows its own service by its short name");
    assert_eq!(distinct(tables.iter().map(|table| &table.guards.others)), 1);
    assert_eq!(mesh.clusters().count(), 30);
    let hosts = |host: &'static str| tables.iter().filter_map(move |table| table.virtual_host(80, host));
    assert_eq!(distinct(hosts("host-7.example.com")), 1);
    assert_eq!(distinct(hosts("own")), 10);
    assert_eq!(distinct(hosts("host-7.example.com").flat_map(|host| &host.routes)), 2);
}

#[test]
fn routes_that_lead_elsewhere_in_a_namespace_are_not_shared() {
    let mut text = routed(1, "{uri: {prefix: /a}}");
    for namespace in ["a", "b"] {
        text += &pod(namespace, "p", "{}");
    }
    // The rules of the client's own namespace go before those of the service's.
    text += &rule("b", "mine", "{host: host-0.example.com, trafficPolicy: {tls: {mode: DISABLE}}}");
    let mesh = mesh(&text);
    for (namespace, plain) in [("a", false), ("b", true)] {
        let host = mesh.of(namespace, "p").virtual_host(80, "host-0.example.com").unwrap();
        assert_eq!(host.routes.len(), 2);
        assert!(host.clusters().all(|cluster| matches!(cluster.tls, UpstreamTls::Plain) == plain), "{namespace}");
    }
}

/// Each workload under a rule of its own kept a copy of every guard of its namespace once.
#[test]
fn a_rule_for_one_workload_costs_it_one_guard() {
    let mut text = rule("a", "wide", "{host: '*.com', trafficPolicy: {tls: {mode: SIMPLE}}}");
    for at in 0..20 {
        let tls = "trafficPolicy: {tls: {mode: SIMPLE}}";
        text += &pod("a", &format!("p{at}"), &format!("{{app: p{at}}}"));
        text += &rule(
            "a",
            &format!("r{at}"),
            &format!("{{host: gone-{at}.com, workloadSelector: {{matchLabels: {{app: p{at}}}}}, {tls}}}"),
        );
        text += &rule("a", &format!("all{at}"), &format!("{{host: other-{at}.com, {tls}}}"));
    }
    text += &rule(
        "a",
        "short",
        "{host: db, workloadSelector: {matchLabels: {app: p3}}, trafficPolicy: {tls: {mode: SIMPLE}}}",
    );
    let mesh = mesh(&text);
    assert_eq!(distinct(mesh.workloads.values().map(|workload| &workload.outbound.guards.own)), 1);
    for workload in mesh.workloads.values() {
        let few = if workload.id.name == "p3" { 5 } else { 1 };
        assert_eq!(workload.outbound.guards.selected.iter().count(), few, "{}", workload.id);
    }
    let asked = |pod: &str, host: &str| mesh.of("a", pod).http(dst("9.9.9.9:80"), host).short();
    // For all others the rule for one workload ends the search for wider ones, as before.
    for (pod, host, want) in [
        ("p3", "gone-3.com", "refuse"),
        ("p4", "gone-3.com", "passthrough"),
        ("p4", "gone-4.com", "refuse"),
        ("p4", "other-3.com", "refuse"),
        ("p4", "unknown.com", "refuse"),
        ("p3", "db", "refuse"),
        ("p3", "db.a", "refuse"),
        ("p3", "db.a.svc.cluster.local", "refuse"),
        ("p4", "db.a", "passthrough"),
    ] {
        assert_eq!(asked(pod, host), want, "{pod} {host}");
    }
}
