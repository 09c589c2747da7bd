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
        object.meta.name = format!("e{index}");
        object.id.name.clone_from(&object.meta.name);
        object.spec.hosts = vec![format!("host-{index}.example.com")];
        objects.service_entries.insert(("default".to_owned(), object.meta.name.clone()), Arc::new(object));
    }
    for index in 0..250 {
        let namespace = format!("n{}", index % 50);
        let made = parse(&pod(&namespace, &format!("p{index}"), &format!("{{app: p{index}}}")));
        objects.pods.extend(made.pods);
        if index < rules {
            let spec = format!(
                "{{host: host-{index}.example.com, workloadSelector: {{matchLabels: {{app: p{index}}}}}, trafficPolicy: {{tls: {{mode: MUTUAL, credentialName: c{index}}}}}}}"
            );
            objects.destination_rules.extend(parse(&rule(&namespace, &format!("r{index}"), &spec)).destination_rules);
            objects
                .secrets
                .extend(parse(&secret(&namespace, &format!("c{index}"), &["tls.crt", "tls.key", "ca.crt"])).secrets);
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
