//! Who the workloads of the mesh are to each other.

use super::*;
use crate::api::{AnyObject, Object, ObjectId, ObjectMeta, Origin, gateway::Gateway};

/// A Gateway that nobody wrote as YAML.
pub fn gateway(namespace: &str, name: &str, selector: &[(&str, &str)]) -> AnyObject {
    let spec = Gateway {
        selector: selector.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Gateway::default()
    };
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    AnyObject::Gateway(Arc::new(Object {
        id: ObjectId::new("Gateway", namespace.as_str(), name.as_str()),
        meta: ObjectMeta { name: name.into(), namespace: namespace.into(), ..ObjectMeta::default() },
        spec,
        origin: Origin {
            file: Arc::from(Path::new("test.yaml")),
            start: crate::api::Start::new((1, 1)),
            positions: Arc::default(),
            made_from: Arc::default(),
        },
    }))
}

const WORLD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data: {mesh: "trustDomain: td.example"}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 81, name: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: inside, namespace: shop, labels: {app: web, istio-locality: eu.west.a}, annotations: {egret.dev/netns: inside}}
spec: {serviceAccountName: web}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: edge, namespace: shop, labels: {app: web, role: edge, topology.kubernetes.io/region: eu}, annotations: {egret.dev/netns: edge}}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: outside, namespace: shop, labels: {app: web}}
status: {podIP: 10.1.0.3}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm, namespace: vms}
spec:
  hosts: [vm.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 192.0.2.1, serviceAccount: vm, locality: us/east}, {address: 192.0.2.2}, {address: 10.1.0.1}]
"#;

fn world() -> Mesh {
    let mut objects = objects(WORLD);
    objects.insert(gateway("elsewhere", "edge", &[("role", "edge")]));
    // For every gateway there is, and for nobody else.
    objects.insert(gateway("elsewhere", "all", &[]));
    objects.insert(gateway("elsewhere", "none", &[("role", "nobody")]));
    compile(&objects, &PodAddresses::new())
}

fn endpoints(cluster: &Cluster) -> Vec<String> {
    let Discovery::Static(list) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    let shown = list.iter().map(|endpoint| {
        let EndpointAddress::Ip(address) = &endpoint.address else { panic!() };
        let peer =
            endpoint.peer.as_ref().map_or("-".to_owned(), |p| format!("{} {}", p.identity, p.captured.is_some()));
        format!("{address} [{}] {peer}", endpoint.locality)
    });
    shown.collect()
}

#[test]
fn endpoints_know_who_they_are() {
    let mesh = world();
    let outbound = mesh.of("shop", "inside");
    let web = outbound.http(dst("9.9.9.9:80"), "web").cluster();
    assert_eq!(
        endpoints(&web),
        [
            "10.1.0.2:80 [eu] spiffe://td.example/ns/shop/sa/default false",
            "10.1.0.1:80 [eu/west/a] spiffe://td.example/ns/shop/sa/web true",
            "10.1.0.3:80 [] -",
        ]
    );
    let vm = outbound.http(dst("9.9.9.9:80"), "vm.example").cluster();
    assert_eq!(
        endpoints(&vm),
        [
            "192.0.2.1:80 [us/east] spiffe://td.example/ns/vms/sa/vm false",
            "192.0.2.2:80 [] -",
            "10.1.0.1:80 [] spiffe://td.example/ns/shop/sa/web true",
        ]
    );
    // For headless services, whose endpoints are known when they are dialled.
    assert_eq!(mesh.peers.len(), 2);
    assert_eq!(&*mesh.peers[&ip("10.1.0.1")].identity, "spiffe://td.example/ns/shop/sa/web");
}

#[test]
fn gateways_are_not_captured() {
    let mesh = world();
    let of = |name: &str| &mesh.workloads[&WorkloadId { namespace: "shop".into(), name: name.into() }];
    assert_eq!((of("inside").inbound.is_some(), &*of("inside").locality), (true, "eu/west/a"));
    assert_eq!((of("edge").inbound.is_some(), &*of("edge").locality), (false, "eu"));
    assert_eq!(&*of("inside").identity, "spiffe://td.example/ns/shop/sa/web");
    let said = mesh.said(Severity::Warning);
    assert_eq!(said, ["spec.selector: no enrolled pod bears role=nobody: nobody serves this Gateway"]);
}

fn tls(cluster: &Cluster) -> String {
    match &cluster.tls {
        UpstreamTls::Plain => "plain".to_owned(),
        UpstreamTls::Mesh(mesh) => {
            let how = if mesh.required { "required" } else { "auto" };
            [&[how, &mesh.sni], mesh.subject_alt_names.iter().map(String::as_str).collect::<Vec<_>>().as_slice()]
                .concat()
                .join(" ")
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn auto_mtls_where_somebody_takes_it() {
    let own = pod("client", "c", "{}");
    let external = entry(
        "client",
        "external",
        "{hosts: [ext.example], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 10.1.0.1}]}",
    );
    let named = entry(
        "client",
        "named",
        "{hosts: [dns.example], location: MESH_INTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}",
    );
    let text = format!("{WORLD}{own}{external}{named}");
    let seen = |text: &str, host: &str, port: u16| {
        let mesh = mesh(text);
        let outbound = mesh.of("client", "c");
        tls(&outbound.http(dst(&format!("9.9.9.9:{port}")), host).cluster())
    };
    for (host, port, want) in [
        ("web.shop", 80, "auto outbound_.80_._.web.shop.svc.cluster.local"),
        ("headless.shop", 81, "auto outbound_.81_._.headless.shop.svc.cluster.local"),
        ("vm.example", 80, "auto outbound_.80_._.vm.example"),
        ("ext.example", 80, "plain"),
        ("dns.example", 80, "plain"),
    ] {
        assert_eq!(seen(&text, host, port), want, "{host}");
    }
    // Said to be off; and nobody there who would take it.
    let off = text.replace("trustDomain: td.example", "enableAutoMtls: false");
    let alone =
        text.replace("annotations: {egret.dev/netns: inside}", "").replace("app: web, role: edge", "role: edge");
    for host in ["web.shop", "vm.example"] {
        assert_eq!(seen(&off, host, 80), "plain", "{host}");
        assert_eq!(seen(&alone, host, 80), "plain", "{host}");
    }
}

#[test]
fn a_rule_says_whether_mesh_mtls_is_spoken() {
    let seen = |host: &str, policy: &str, name: &str| {
        let text = format!(
            "{WORLD}{}{}",
            pod("client", "c", "{}"),
            rule("client", "r", &format!("{{host: {host}, {policy}}}"))
        );
        let mesh = mesh(&text);
        assert!(mesh.said(Severity::Error).is_empty(), "{:?}", mesh.diagnostics);
        tls(mesh.of("client", "c").cluster(name).unwrap_or_else(|| panic!("no {name}")))
    };
    let (host, web) = ("web.shop.svc.cluster.local", "outbound|80||web.shop.svc.cluster.local");
    let subset = "outbound|80|s|web.shop.svc.cluster.local";
    for (policy, name, want) in [
        ("trafficPolicy: {tls: {mode: DISABLE}}", web, "plain"),
        ("trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}", web, "required outbound_.80_._.web.shop.svc.cluster.local"),
        (
            "trafficPolicy: {tls: {mode: ISTIO_MUTUAL, sni: a.b, subjectAltNames: ['spiffe://x/ns/y/sa/z']}}",
            web,
            "required a.b spiffe://x/ns/y/sa/z",
        ),
        ("trafficPolicy: {loadBalancer: {simple: RANDOM}}", web, "auto outbound_.80_._.web.shop.svc.cluster.local"),
        (
            "subsets: [{name: s, labels: {app: web}, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}]",
            subset,
            "required outbound_.80_.s_.web.shop.svc.cluster.local",
        ),
        (
            // A port level without `tls` has none, whatever is above it.
            "trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}",
            web,
            "auto outbound_.80_._.web.shop.svc.cluster.local",
        ),
        ("subsets: [{name: s, labels: {role: nobody}}]", subset, "plain"),
        (
            "subsets: [{name: s, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL, sni: my.example}}]}}]",
            subset,
            "required my.example",
        ),
    ] {
        assert_eq!(seen(host, policy, name), want, "{policy}");
    }
    // Whoever the endpoints are: what a rule wants encrypted is.
    let vm = seen("vm.example", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}", "outbound|80||vm.example");
    assert_eq!(vm, "required outbound_.80_._.vm.example");
}

#[test]
fn clusters_of_mesh_mtls_are_shared() {
    let text = format!("{WORLD}{}{}", pod("client", "a", "{}"), pod("other", "b", "{}"))
        + &rule("istio-system", "r", "{host: '*.shop.svc.cluster.local', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    let mesh = mesh(&text);
    let of =
        |namespace, name| mesh.of(namespace, name).cluster("outbound|80||web.shop.svc.cluster.local").unwrap().clone();
    assert_eq!(tls(&of("client", "a")), "required outbound_.80_._.web.shop.svc.cluster.local");
    assert!(Arc::ptr_eq(&of("client", "a"), &of("other", "b")));
}
