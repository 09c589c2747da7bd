//! The same for what changes most in a cluster: pods, EndpointSlices and Services, with rules and ServiceEntries about them.

use rand::{RngExt as _, SeedableRng, rngs::StdRng};

use super::{
    amend::{Trial, change_to},
    random::one,
    *,
};
use crate::source::Changed;

const SPACES: &[&str] = &["n1", "n2"];
const APPS: &[&str] = &["a", "b", "c"];

fn address(random: &mut StdRng) -> String {
    format!("10.1.0.{}", random.random_range(1..9))
}

fn random_pod(random: &mut StdRng, namespace: &str, at: usize) -> String {
    let enroll = if random.random_bool(0.4) { ", egret.dev/enroll: 'true'" } else { "" };
    let node = one(random, &["node-b", "node-b", "node-c", "node-b", "node-b", "node-b", "node-b", "node-a"]);
    let (app, version) = (one(random, APPS), one(random, &["v1", "v2"]));
    // Mostly an address of its own.
    let ip = if random.random_bool(0.9) { format!("10.1.{}.{at}", &namespace[1..]) } else { address(random) };
    let phase = one(random, &["Running", "Running", "Running", "Succeeded"]);
    let status = if random.random_bool(0.9) {
        format!("{{phase: {phase}, podIP: {ip}}}")
    } else {
        "{phase: Pending}".to_owned()
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{at}, namespace: {namespace}, uid: u-{namespace}-{at}, labels: {{app: {app}, v: {version}{enroll}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {app}, containers: [{{name: c, ports: [{{name: named, containerPort: 8080}}]}}]}}\nstatus: {status}\n"
    )
}

fn random_service(random: &mut StdRng, namespace: &str, name: &str) -> String {
    let ip = match random.random_range(0..10) {
        0 => "None".to_owned(),
        1 => "10.96.0.1".to_owned(),
        2 => address(random),
        _ => format!("10.96.{}.{}", &namespace[1..], name.as_bytes()[0]),
    };
    let selector = match random.random_range(0..6) {
        0 => String::new(),
        1 => format!(", selector: {{app: {}, v: v1}}", one(random, APPS)),
        2 => ", selector: {app: nobody}".to_owned(),
        _ => format!(", selector: {{app: {name}}}"),
    };
    let port = one(
        random,
        &[
            "[{name: http, port: 80, targetPort: named}]",
            "[{name: http, port: 80}, {name: tcp-db, port: 5432}]",
            "[{name: https, port: 443, targetPort: 8443}]",
            "[{name: any, port: 81}]",
        ],
    );
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: {ip}{selector}, ports: {port}}}\n"
    )
}

fn random_slice(random: &mut StdRng, namespace: &str, name: &str) -> String {
    let endpoints = (0..random.random_range(0..4)).map(|_| {
        let ready = random.random_bool(0.7);
        let terminating = random.random_bool(0.2);
        if random.random_bool(0.8) {
            let at = random.random_range(0..6);
            let address = format!("10.1.{}.{at}", &namespace[1..]);
            format!("{{addresses: [{address}], conditions: {{ready: {ready}, terminating: {terminating}}}, targetRef: {{kind: Pod, name: p{at}}}}}")
        } else {
            format!("{{addresses: [{}], conditions: {{ready: {ready}}}}}", address(random))
        }
    });
    let endpoints: Vec<_> = endpoints.collect();
    let of = if random.random_bool(0.9) { name } else { one(random, APPS) };
    let port = one(
        random,
        &[
            "[{name: http, port: 8080}]",
            "[{name: http, port: 8080}, {name: tcp-db, port: 5432}]",
            "[{name: https, port: 8443}, {name: any}]",
        ],
    );
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-x{}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {of}}}}}\n\
         addressType: IPv4\nports: {port}\nendpoints: [{}]\n",
        random.random_range(0..2),
        endpoints.join(", "),
    )
}

fn random_rule(random: &mut StdRng, namespace: &str) -> String {
    let host = match random.random_range(0..12) {
        0 => "x.com".to_owned(),
        1 => format!("{}.{}", one(random, APPS), one(random, SPACES)),
        2 => "'*.n2.svc.cluster.local'".to_owned(),
        3..6 => one(random, APPS).to_owned(),
        _ => format!("{}.{}.svc.cluster.local", one(random, APPS), one(random, SPACES)),
    };
    let policy = one(
        random,
        &[
            "tls: {mode: ISTIO_MUTUAL}",
            "tls: {mode: DISABLE}",
            "tls: {mode: SIMPLE}",
            "connectionPool: {tcp: {maxConnections: 3}}",
            "outlierDetection: {consecutive5xxErrors: 3}",
        ],
    );
    let subsets = if random.random_bool(0.5) { ", subsets: [{name: one, labels: {v: v1}}]" } else { "" };
    let export = if random.random_bool(0.2) { ", exportTo: ['.']" } else { "" };
    let name = format!("r{}", random.random_range(0..3));
    rule(namespace, &name, &format!("{{host: {host}, trafficPolicy: {{{policy}}}{subsets}{export}}}"))
}

fn random_entry(random: &mut StdRng, namespace: &str) -> String {
    let host = match random.random_range(0..8) {
        0 => "a.n1".to_owned(),
        1 => "b.n2.svc.cluster.local".to_owned(),
        2 => "a".to_owned(),
        _ => "x.com".to_owned(),
    };
    let (kind, at) = (one(random, &["HTTP", "HTTP", "HTTP", "TCP"]), address(random));
    let place = one(random, &["MESH_INTERNAL", "MESH_EXTERNAL"]);
    let addresses = if random.random_bool(0.1) { ", addresses: [10.96.1.97]" } else { "" };
    let spec = format!(
        "{{hosts: [{host}], ports: [{{number: 80, name: p, protocol: {kind}}}], resolution: STATIC, location: {place}, endpoints: [{{address: {at}}}]{addresses}}}"
    );
    entry(namespace, &format!("e{}", random.random_range(0..2)), &spec)
}

/// Something else than before about one object.
fn change(random: &mut StdRng, objects: &mut Objects) -> Changed {
    let namespace = one(random, SPACES);
    let name = one(random, APPS);
    let text = match random.random_range(0..20) {
        0..7 => {
            let at = random.random_range(0..6);
            random_pod(random, namespace, at)
        }
        7..14 => random_slice(random, namespace, name),
        14..17 => random_service(random, namespace, name),
        17..19 => random_rule(random, namespace),
        _ => random_entry(random, namespace),
    };
    match change_to(objects, &text, random.random_bool(0.2)) {
        Some(changed) => changed,
        None => change(random, objects),
    }
}

#[test]
fn amending_endpoints_is_compiling_anew() {
    let (mut amended, mut asked) = (0, 0);
    for seed in 0..24 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut text = String::new();
        for namespace in SPACES {
            text += &format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n");
            text += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: here, namespace: {namespace}, uid: u-{namespace}, labels: {{app: here, egret.dev/enroll: 'true'}}}}\nspec: {{nodeName: node-a}}\nstatus: {{phase: Running, podIP: 10.2.0.1}}\n"
            );
        }
        match seed % 4 {
            1 => {
                text += "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: n1}\nspec: {mtls: {mode: STRICT}}\n";
            }
            2 => {
                text += "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: some, namespace: n2}\nspec: {selector: {matchLabels: {app: a}}, mtls: {mode: DISABLE}}\n";
                text += "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: about, namespace: n1}\nspec: {targetRefs: [{kind: Service, name: a}], action: DENY, rules: [{}]}\n";
            }
            _ => {}
        }
        let mut objects = super::objects(&text);
        // Seeds without a node are single hosts, on which nobody is enrolled by label.
        objects.node = Some(Arc::from("node-a"));
        for namespace in SPACES {
            for at in 0..6 {
                change_to(&mut objects, &random_pod(&mut random, namespace, at), false);
            }
            for app in APPS {
                change_to(&mut objects, &random_service(&mut random, namespace, app), false);
                change_to(&mut objects, &random_slice(&mut random, namespace, app), false);
            }
        }
        let id = |namespace: &str| WorkloadId { namespace: namespace.into(), name: "here".into() };
        let addresses = PodAddresses::from([(id("n1"), vec![ip("10.1.0.1")]), (id("n2"), vec![ip("10.2.0.2")])]);
        let mut trial = Trial::new(objects, addresses);
        for step in 0..30 {
            let count = random.random_range(1..4);
            asked += 1;
            amended += usize::from(trial.step(
                count,
                |objects| change(&mut random, objects),
                &format!("seed {seed}, step {step}"),
            ));
        }
    }
    assert!(amended > asked / 4 && amended < asked, "{amended} of {asked}");
}
