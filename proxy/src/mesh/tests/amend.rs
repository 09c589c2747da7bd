//! Whatever changes: a table that was amended is the table that compiling everything gives.

use rand::{RngExt as _, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::{
    random::{NAMESPACES, one},
    *,
};
use crate::source::Changed;

const HOSTS: &[&str] = &["a.com", "b.com", "c.com", "d.org", "x.d.org", "e.org", "f.org"];

/// All that lookups can see of a table.
fn shown(table: &Outbound) -> Value {
    let mut value = serde_json::to_value(table).unwrap();
    let services: std::collections::BTreeMap<_, _> = table.services.iter().collect();
    let hidden: std::collections::BTreeSet<_> = table.hidden.iter().collect();
    value["services"] = json!(services);
    value["hidden"] = json!(hidden);
    value["base"] = table.base.as_deref().map_or(Value::Null, shown);
    // What forbids nothing counts only where it ends the search for something wider.
    let others = table.guards.others.iter().map(|of| {
        let mut exact: std::collections::BTreeMap<_, _> = of.hosts.exact.iter().collect();
        let wide = |host: &str| of.hosts.matches(host).any(|(measure, _)| measure != usize::MAX);
        exact.retain(|host, guard| guard.ports.as_ref().is_none_or(|ports| !ports.is_empty()) || wide(host));
        let suffix: std::collections::BTreeMap<_, _> = of.hosts.suffix.iter().collect();
        json!([&*of.namespace, exact, suffix, of.hosts.any])
    });
    value["guards"]["others"] = others.collect();
    value
}

fn all(mesh: &Mesh) -> Value {
    let workloads = mesh
        .workloads
        .values()
        .map(|workload| json!([workload.id.to_string(), workload.labels, workload.inbound, shown(&workload.outbound)]));
    let origins = mesh.origins.iter().map(|(id, at)| (id.to_string(), at.to_string()));
    // Files here hold one object each, in the same place: of findings at one place the order is any.
    let mut said: Vec<_> = mesh.diagnostics.iter().map(ToString::to_string).collect();
    said.sort();
    let contexts = mesh.tls_settings().iter().map(|settings| format!("{:?}", settings.context));
    let contexts: std::collections::BTreeSet<_> = contexts.collect();
    json!({
        "workloads": workloads.collect::<Vec<_>>(),
        "said": said,
        "contexts": contexts,
        "origins": origins.collect::<std::collections::BTreeMap<_, _>>(),
        "peers": format!("{:?}", mesh.peers.iter().collect::<std::collections::BTreeMap<_, _>>()),
        "settings": mesh.settings,
    })
}

fn random_entry(random: &mut StdRng, wide: bool) -> String {
    let host = |random: &mut StdRng| {
        if wide && random.random_bool(0.1) { "'*.d.org'".to_owned() } else { one(random, HOSTS).to_owned() }
    };
    let mut hosts = host(random);
    if random.random_bool(0.3) {
        hosts = format!("{hosts}, {}", host(random));
    }
    let kinds = if wide { &["HTTP", "HTTPS", "TLS", "GRPC", "TCP"][..] } else { &["HTTP", "HTTPS", "TLS", "GRPC"][..] };
    let port = |random: &mut StdRng, number: u16| {
        format!("{{number: {number}, name: p{number}, protocol: {}}}", one(random, kinds))
    };
    let mut ports = port(random, 80);
    if random.random_bool(0.4) {
        ports = format!("{ports}, {}", port(random, 443));
    }
    let selecting = match wide {
        true => "resolution: STATIC, location: MESH_INTERNAL, workloadSelector: {labels: {app: y}}",
        false => "resolution: STATIC, location: MESH_INTERNAL, endpoints: [{address: 10.0.1.1}]",
    };
    let rest = one(
        random,
        &[
            "resolution: DNS",
            "resolution: NONE",
            "resolution: STATIC, endpoints: [{address: 9.9.9.9}]",
            "resolution: DNS, exportTo: ['.']",
            "resolution: DNS, location: MESH_INTERNAL",
            selecting,
        ],
    );
    let addresses = if wide && random.random_bool(0.1) { ", addresses: [10.1.0.1]" } else { "" };
    format!("{{hosts: [{hosts}], ports: [{ports}], {rest}{addresses}}}")
}

fn random_rule(random: &mut StdRng, wide: bool) -> String {
    let host = if wide && random.random_bool(0.15) {
        one(random, &["'*.org'", "'*.d.org'", "'*'"])
    } else {
        one(random, HOSTS)
    };
    let tls = one(
        random,
        &[
            "tls: {mode: SIMPLE}",
            "tls: {mode: SIMPLE, sni: s.com}",
            "tls: {mode: DISABLE}",
            "tls: {mode: ISTIO_MUTUAL}",
            "connectionPool: {tcp: {maxConnections: 3}}",
            "portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]",
            "tls: {mode: MUTUAL, credentialName: c}",
        ],
    );
    let tls = if wide { tls } else { tls.replace("MUTUAL, credentialName: c", "SIMPLE").leak() };
    let more = match random.random_range(0..8) {
        0 => ", exportTo: ['.']",
        1 => ", subsets: [{name: v1, labels: {v: '1'}}]",
        2 if wide => ", workloadSelector: {matchLabels: {app: x}}",
        _ => "",
    };
    format!("{{host: {host}, trafficPolicy: {{{tls}}}{more}}}")
}

/// One object more, less or other than it was.
fn change(random: &mut StdRng, objects: &mut Objects, wide: bool) -> Changed {
    let namespace = one(random, NAMESPACES);
    let name = format!("o{}", random.random_range(0..7));
    let text = if random.random_bool(0.5) {
        entry(namespace, &name, &random_entry(random, wide))
    } else {
        rule(namespace, &name, &random_rule(random, wide))
    };
    // Now and then on another line of the file. What is refused by itself is no change.
    let text = "#\n".repeat(random.random_range(0..2)) + &text;
    let Some(after) = parse_file(Arc::from(Path::new("test.yaml")), &text).objects.pop() else {
        return change(random, objects, wide);
    };
    let before = objects.find(after.id());
    if before.is_some() && random.random_bool(0.3) {
        objects.remove(&after);
        return Changed { before, after: None };
    }
    objects.insert(after.clone());
    Changed { before, after: Some(after) }
}

#[test]
fn amending_is_compiling_anew() {
    let (mut amended, mut asked) = (0, 0);
    for seed in 0..16 {
        let mut random = StdRng::seed_from_u64(seed);
        // What is out of the ordinary keeps everything from being amended; both must be met often.
        let wide = seed % 4 == 0;
        let mut text: String = NAMESPACES.iter().map(|namespace| pod(namespace, "p", "{app: x}")).collect();
        text += &pod("n1", "q", "{app: y}");
        text += "---\napiVersion: v1\nkind: Pod\nmetadata: {name: other, namespace: n2, labels: {app: y}}\nstatus: {podIP: 10.9.9.9}\n";
        text += "---\napiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: n1}\nspec: {clusterIP: 10.0.0.1, selector: {app: y}, ports: [{name: http, port: 80}]}\n";
        if seed % 3 == 0 {
            // One workload has a layer of its own over the shared table.
            text += &entry(
                "n1",
                "layered",
                "{hosts: [layered.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
            );
            text += &rule(
                "n1",
                "layered",
                "{host: layered.com, workloadSelector: {matchLabels: {app: y}}, trafficPolicy: {tls: {mode: SIMPLE}}}",
            );
            text +=
                &rule("n2", "mutual", "{host: mutual.com, trafficPolicy: {tls: {mode: MUTUAL, credentialName: gone}}}");
        }
        if seed % 5 == 0 {
            text += "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: o1, namespace: n1}\nspec: {targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: o1}], action: DENY, rules: [{}]}\n";
        }
        let addresses =
            PodAddresses::from([(WorkloadId { namespace: "n1".into(), name: "q".into() }, vec![ip("10.0.1.1")])]);
        let mut objects = super::objects(&text);
        let mut mesh = compile(&objects, &addresses);
        for step in 0..25 {
            let mut changed: Vec<Changed> = Vec::new();
            for _ in 0..random.random_range(1..3) {
                let new = change(&mut random, &mut objects, wide);
                let id = |changed: &Changed| {
                    changed.before.as_ref().or(changed.after.as_ref()).map(|object| object.id().clone())
                };
                match changed.iter_mut().find(|known| id(known) == id(&new)) {
                    Some(known) => known.after = new.after,
                    None => changed.push(new),
                }
            }
            let whole = compile(&objects, &addresses);
            asked += 1;
            if let Some(made) = amend(&mesh, (&objects, &addresses), &changed, false) {
                amended += 1;
                let (made, whole) = (all(&made), all(&whole));
                assert_eq!(made, whole, "seed {seed}, step {step}: {changed:#?}");
            }
            // Amended again and again, or not.
            mesh = match amend(&mesh, (&objects, &addresses), &changed, false) {
                Some(made) => made,
                None => whole,
            };
        }
    }
    assert!(amended > asked / 2 && amended < asked, "{amended} of {asked}");
}
