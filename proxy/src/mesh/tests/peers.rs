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
        id: ObjectId { kind: "Gateway", namespace: namespace.clone(), name: name.clone() },
        meta: ObjectMeta { name, namespace, ..ObjectMeta::default() },
        spec,
        origin: Origin { file: Arc::from(Path::new("test.yaml")), start: (1, 1), positions: Arc::default() },
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
        let peer = endpoint.peer.as_ref().map_or("-".to_owned(), |p| format!("{} {}", p.identity, p.captured));
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
    let of = |name: &str| &mesh.workloads[&WorkloadId { namespace: "shop".to_owned(), name: name.to_owned() }];
    assert_eq!((of("inside").inbound, &*of("inside").locality), (Inbound::Permissive, "eu/west/a"));
    assert_eq!((of("edge").inbound, &*of("edge").locality), (Inbound::Direct, "eu"));
    assert_eq!(&*of("inside").identity, "spiffe://td.example/ns/shop/sa/web");
    let said = mesh.said(Severity::Warning);
    assert_eq!(said, ["spec.selector: no enrolled pod bears these labels: nobody serves this Gateway"]);
}
