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
    // What forbids nothing counts only where it ends the search for something wider that does.
    let others = table.guards.others.iter().map(|of| {
        let forbids = |guard: &Guard| guard.ports.as_ref().is_none_or(|ports| !ports.is_empty());
        let ends_search = |host: &str, length: usize| {
            of.hosts.matches(host).any(|(measure, guard)| measure < length && forbids(guard))
        };
        let mut exact: std::collections::BTreeMap<_, _> = of.hosts.exact.iter().collect();
        exact.retain(|host, guard| forbids(guard) || ends_search(host, usize::MAX));
        let mut suffix: std::collections::BTreeMap<_, _> = of.hosts.suffix.iter().collect();
        suffix.retain(|suffix, guard| forbids(guard) || ends_search(&format!("x{suffix}"), suffix.len()));
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

/// Where two tables differ, with what each has there.
fn differences(a: &Value, b: &Value) -> Vec<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            let nothing = Value::Null;
            let of = |key: &String| differences(a.get(key).unwrap_or(&nothing), b.get(key).unwrap_or(&nothing));
            keys.into_iter().flat_map(|key| of(key).into_iter().map(move |found| format!("{key}.{found}"))).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs
                .flat_map(|(at, (a, b))| differences(a, b).into_iter().map(move |found| format!("{at}.{found}")))
                .collect()
        }
        _ if a == b => Vec::new(),
        _ => vec![format!(" {a} instead of {b}")],
    }
}

/// The objects of one trial, and the table that is amended again and again.
pub struct Trial {
    objects: Objects,
    index: Index,
    addresses: PodAddresses,
    mesh: Mesh,
}

impl Trial {
    pub fn new(objects: Objects, addresses: PodAddresses) -> Self {
        let mut index = Index::default();
        let all: Vec<_> = objects.all().map(|object| Changed { before: None, after: Some(object) }).collect();
        index.update(&all);
        let mesh = compile(&objects, &addresses);
        Self { objects, index, addresses, mesh }
    }

    /// Makes so many changes at once; true where the table was amended, which then is as it is when compiled anew.
    pub fn step(&mut self, count: usize, mut change: impl FnMut(&mut Objects) -> Changed, place: &str) -> bool {
        let mut changed: Vec<Changed> = Vec::new();
        for _ in 0..count {
            let new = change(&mut self.objects);
            let id = |changed: &Changed| {
                changed.before.as_ref().or(changed.after.as_ref()).map(|object| object.id().clone())
            };
            match changed.iter_mut().find(|known| id(known) == id(&new)) {
                Some(known) => known.after = new.after,
                None => changed.push(new),
            }
        }
        self.index.update(&changed);
        let whole = compile(&self.objects, &self.addresses);
        let made = amend(&self.mesh, (&self.objects, &self.index, &self.addresses), &changed, false);
        let amended = made.is_some();
        if let Some(made) = &made {
            let (made, whole) = (all(made), all(&whole));
            let ids: Vec<_> =
                changed.iter().map(|c| c.before.as_ref().or(c.after.as_ref()).map(|o| o.id().to_string())).collect();
            assert_eq!(differences(&made, &whole), [""; 0], "{place}: {ids:?}");
        }
        // Amended again and again, or not.
        self.mesh = made.unwrap_or(whole);
        amended
    }
}

/// Puts in the object that `text` is, or takes it away again; None where it is refused.
pub fn change_to(objects: &mut Objects, text: &str, remove: bool) -> Option<Changed> {
    let after = parse_file(Arc::from(Path::new("test.yaml")), text).objects.pop()?;
    let before = objects.find(after.id());
    if before.is_some() && remove {
        objects.remove(&after);
        return Some(Changed { before, after: None });
    }
    objects.insert(after.clone());
    Some(Changed { before, after: Some(after) })
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
    match change_to(objects, &text, random.random_bool(0.3)) {
        Some(changed) => changed,
        None => change(random, objects, wide),
    }
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
        let mut trial = Trial::new(super::objects(&text), addresses);
        for step in 0..25 {
            let count = random.random_range(1..3);
            asked += 1;
            let made =
                trial.step(count, |objects| change(&mut random, objects, wide), &format!("seed {seed}, step {step}"));
            amended += usize::from(made);
        }
    }
    assert!(amended > asked / 2 && amended < asked, "{amended} of {asked}");
}
