//! What a pod's own ports are, and where they lead.

use super::*;
use crate::api::core::ProbeRequest;

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {port: 80, targetPort: 8080, name: http}
  - {port: 81, targetPort: metrics, name: http-metrics}
  - {port: 82, targetPort: nothing, name: tcp-nothing}
  - {port: 53, targetPort: 5353, name: dns, protocol: UDP}
  - {port: 9000, name: anything}
  - {port: 9001, name: x, appProtocol: grpc}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: other}
spec: {clusterIP: 10.96.0.2, selector: {app: web}, ports: [{port: 7000, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: a.com, selector: {app: web}, ports: [{port: 7001, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand, namespace: shop}
spec: {clusterIP: 10.96.0.3, ports: [{port: 7002, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm, namespace: shop}
spec:
  hosts: [vm.example]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {tier: front}}
  ports: [{number: 3306, name: db, protocol: MYSQL, targetPort: 13306}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front}, annotations: {egret.dev/netns: web}}
spec: {containers: [{name: c, image: i, ports: [{name: metrics, containerPort: 15}, {containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
"#;

fn table<'m>(mesh: &'m Mesh, namespace: &str, name: &str) -> &'m Arc<InboundTable> {
    let id = WorkloadId { namespace: namespace.into(), name: name.into() };
    mesh.workloads[&id].inbound.as_ref().expect("captured")
}

/// `port Protocol application host` of each.
fn ports(table: &InboundTable) -> Vec<String> {
    let shown = table.ports.iter().map(|(port, to)| {
        assert_eq!((to.cluster.name.as_str(), to.cluster.port), (format!("inbound|{port}||").as_str(), *port));
        assert_eq!(to.host.name, format!("inbound|http|{port}"));
        assert!(Arc::ptr_eq(to.host.default_cluster().unwrap(), &to.cluster));
        let Discovery::Application(application) = &to.cluster.discovery else { panic!("{:?}", to.cluster.discovery) };
        format!("{port} {:?} {application:?} {}", to.protocol, to.cluster.host)
    });
    shown.collect()
}

#[test]
fn services_declare_the_ports_that_they_lead_to() {
    let mesh = mesh(SERVICES).quiet();
    let table = table(&mesh, "shop", "web");
    assert_eq!(
        ports(table),
        [
            "15 Http Dialled web.shop.svc.cluster.local",
            "8080 Http Dialled web.shop.svc.cluster.local",
            "9000 Auto Dialled web.shop.svc.cluster.local",
            "9001 Grpc Dialled web.shop.svc.cluster.local",
            "13306 Tcp Dialled vm.example",
        ]
    );
    let pool = |port: u16| &table.port(port).cluster.pool;
    assert!(!pool(8080).use_client_protocol, "declared HTTP is HTTP/1.1 to the application");
    assert!(pool(9000).use_client_protocol && pool(1).use_client_protocol);
    assert!(!table.fail_closed());
    assert_eq!(
        (table.any.cluster.name.as_str(), table.any.host.name.as_str()),
        ("InboundPassthroughCluster", "inbound|http|0")
    );
}

#[test]
fn of_two_services_the_first_says_what_is_spoken() {
    let second = |name: &str, port: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: 10.96.0.9, selector: {{tier: front}}, ports: [{port}]}}\n"
        )
    };
    let spoken = |text: &str| {
        let mesh = mesh(&(SERVICES.to_owned() + text));
        (table(&mesh, "shop", "web").port(8080).protocol, mesh.said(Severity::Warning))
    };
    // By name; the same, or nothing said, is no conflict.
    assert_eq!(spoken(&second("zz", "{port: 8080, name: http}")), (Protocol::Http, vec![]));
    assert_eq!(spoken(&second("zz", "{port: 8080, name: whatever}")), (Protocol::Http, vec![]));
    assert_eq!(
        spoken(&second("zz", "{port: 8080, name: tcp}")),
        (
            Protocol::Http,
            vec![
                "spec.ports[0]: Service shop/web leads to port 8080 of the same pods, as Http: that counts there"
                    .to_owned()
            ]
        )
    );
    assert_eq!(
        spoken(&second("a", "{port: 1234, targetPort: 8080, name: tcp}")),
        (
            Protocol::Tcp,
            vec![
                "spec.ports[0]: Service shop/a leads to port 8080 of the same pods, as Tcp: that counts there"
                    .to_owned()
            ]
        )
    );
}

#[test]
fn pods_that_are_alike_share_everything() {
    let strict = |app: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {app}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: {app}}}}}, mtls: {{mode: STRICT}}}}\n"
        )
    };
    let text = SERVICES.to_owned()
        + &pod("shop", "b", "{app: web}")
        + &pod("shop", "c", "{app: web}")
        + &pod("shop", "d", "{app: d}")
        + &strict("d");
    let mesh = mesh(&text);
    let of = |name| table(&mesh, "shop", name);
    assert!(Arc::ptr_eq(of("b"), of("c")));
    // Another service leads there too, and a named port is only there.
    assert!(!Arc::ptr_eq(of("web"), of("b")));
    assert!(Arc::ptr_eq(of("web").port(8080), of("b").port(8080)));
    assert!(Arc::ptr_eq(&of("web").any, &of("d").any));
    assert_eq!((of("d").modes.any, of("d").ports.len()), (MtlsMode::Strict, 0));
}

fn annotated(annotations: &str) -> Mesh {
    mesh(&pod("shop", "web", "{}").replace("annotations: {", &format!("annotations: {{{annotations}, ")))
}

#[test]
fn how_a_pod_wants_to_be_captured() {
    let of = |annotations: &str| {
        let mesh = annotated(annotations);
        (table(&mesh, "shop", "web").original_source, mesh.said(Severity::Warning))
    };
    assert_eq!(of("x: y"), (false, vec![]));
    assert_eq!(of("sidecar.istio.io/interceptionMode: REDIRECT"), (false, vec![]));
    assert_eq!(of("sidecar.istio.io/interceptionMode: TPROXY"), (true, vec![]));
    let field = "metadata.annotations.sidecar.istio.io/interceptionMode";
    assert_eq!(
        of("sidecar.istio.io/interceptionMode: NONE"),
        (false, vec![format!("{field}: \"NONE\" is not honoured: there are REDIRECT and TPROXY")])
    );
    let left = "traffic.sidecar.istio.io";
    assert_eq!(of(&format!("{left}/includeInboundPorts: '*', {left}/excludeInboundPorts: ''")), (false, vec![]));
    for annotation in ["includeInboundPorts: '80'", "includeInboundPorts: ''", "excludeInboundPorts: '80,81'"] {
        let said = of(&format!("{left}/{annotation}")).1;
        assert!(said.len() == 1 && said[0].contains("not honoured: every port is captured"), "{said:?}");
    }
}

const PROBED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, annotations: {egret.dev/netns: web}}
spec:
  containers:
  - name: a
    ports: [{name: web, containerPort: 8080}]
    livenessProbe: {httpGet: {port: web, path: live}}
    readinessProbe: {httpGet: {port: 8080, path: /ready, scheme: HTTP}, periodSeconds: 3}
    startupProbe: {grpc: {port: 9000, service: x}}
  - name: b
    livenessProbe: {tcpSocket: {port: 8080}}
    readinessProbe: {exec: {command: ["true"]}}
    startupProbe: {httpGet: {port: "8443", path: /, scheme: HTTPS}}
    lifecycle: {postStart: {httpGet: {port: 1, path: /}}}
  - name: c
    livenessProbe: {httpGet: {port: 2, path: /, host: 192.0.2.1}}
  initContainers:
  - {name: d, restartPolicy: Always, startupProbe: {httpGet: {port: 8080}}}
  - {name: e, startupProbe: {httpGet: {port: 3}}}
"#;

#[test]
fn probes_are_known_by_their_ports() {
    let get = |https, target: &str| ProbeRequest::HttpGet { https, target: target.to_owned() };
    let mesh = mesh(PROBED).quiet();
    let probes: Vec<_> = table(&mesh, "default", "web").probes.clone().into_iter().collect();
    let expected = [
        (8080, [get(false, "/"), get(false, "/live"), get(false, "/ready")].into()),
        (8443, [get(true, "/")].into()),
        (9000, [ProbeRequest::Grpc].into()),
    ];
    assert_eq!(probes, expected);
}

/// What cannot be let in is said at the pod; where the port is open, it needs no leave.
#[test]
fn a_probe_by_tls_of_a_port_for_mesh_mtls_is_told() {
    let authentication = |ports: &str| {
        format!(
            "{PROBED}---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: web}}\nspec: {{selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: STRICT}}{ports}}}\n"
        )
        .replace("metadata: {name: web, annotations", "metadata: {name: web, labels: {app: web}, annotations")
    };
    let told = mesh(&authentication(""));
    let [warning] = told.diagnostics.as_slice() else { panic!("{:?}", told.diagnostics) };
    assert_eq!(warning.field, "spec.containers[1].startupProbe.httpGet.scheme");
    assert!(warning.message.starts_with("port 8443 takes mesh mTLS only"), "{warning:?}");
    mesh(&authentication(", portLevelMtls: {8443: {mode: PERMISSIVE}}")).quiet();
}
