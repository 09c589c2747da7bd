//! Gateways: which pod listens where, and what it does with what arrives.

mod tls;

use super::*;
use crate::mesh::{Behind, DownstreamTls, GatewayTable, ListenerId, Servers};

/// A gateway pod behind a Service that translates ports, a client, a service outside and a Gateway with these `servers`.
fn world(servers: &str, more: &str) -> Mesh {
    mesh(&text(servers, more))
}

fn text(servers: &str, more: &str) -> String {
    EDGE.to_owned() + &gateway("edge", "gw", servers) + &pod("default", "client", "{}") + more
}

/// TLS for what gateways send to port 443.
fn originates() -> String {
    let port = "{port: {number: 443}, tls: {mode: SIMPLE}}";
    rule("default", "tls", &format!("{{host: edition.cnn.com, trafficPolicy: {{portLevelSettings: [{port}]}}}}"))
}

const EDGE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: edge}
spec:
  selector: {istio: edge}
  ports: [{port: 80, name: http2, targetPort: 8080}, {port: 443, name: https, targetPort: tls}, {port: 81, name: other, targetPort: 8080}, {port: 5000, name: tcp, targetPort: missing}]
---
apiVersion: v1
kind: Pod
metadata: {name: edge-1, namespace: edge, labels: {istio: edge}, annotations: {egret.dev/netns: edge-1}}
spec: {containers: [{name: c, ports: [{name: tls, containerPort: 8443}]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cnn, namespace: default}
spec:
  hosts: [edition.cnn.com]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: https, protocol: HTTPS}, {number: 5432, name: tcp, protocol: TCP}]
  resolution: DNS
"#;

fn gateway(namespace: &str, name: &str, servers: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{selector: {{istio: edge}}, servers: [{servers}]}}\n"
    )
}

fn virtual_service(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// To edition.cnn.com:443, for those who come through edge/gw.
fn forward() -> String {
    virtual_service(
        "default",
        "forward",
        "{hosts: [edition.cnn.com], gateways: [edge/gw], http: [{route: [{destination: {host: edition.cnn.com, port: {number: 443}}}]}]}",
    )
}

fn server(port: u16, protocol: &str, more: &str) -> String {
    format!("{{port: {{number: {port}, name: p{port}, protocol: {protocol}}}, hosts: [edition.cnn.com]{more}}}")
}

fn table(mesh: &Mesh) -> &GatewayTable {
    let id = WorkloadId { namespace: "edge".into(), name: "edge-1".into() };
    mesh.workloads[&id].gateway.as_deref().expect("a gateway")
}

fn at(port: u16) -> ListenerId {
    ListenerId { bind: None, port }
}

/// Each listener with what it serves.
fn shown(mesh: &Mesh) -> Vec<String> {
    let behind = |behind: &Behind| match behind {
        Behind::Http(table) => table.name.clone(),
        Behind::Tunnel(Some(route)) => {
            route.destinations.iter().map(|(to, weight)| format!("{} {weight}", to.name())).collect()
        }
        Behind::Tunnel(None) => "-".to_owned(),
    };
    let listeners = table(mesh).listeners.iter().map(|(id, listener)| {
        assert_eq!(*id, listener.id);
        let place = id.bind.map_or(id.port.to_string(), |bind| format!("{bind}:{}", id.port));
        let serves = match &listener.serves {
            Servers::Http(table) => table.name.clone(),
            Servers::Tcp(None) => "tcp -".to_owned(),
            Servers::Tcp(Some(route)) => format!("tcp {}", behind(&Behind::Tunnel(Some(route.clone())))),
            Servers::Tls(servers) => {
                let mut all: Vec<String> = servers
                    .iter()
                    .map(|(sni, server)| {
                        let tls = match &server.tls {
                            DownstreamTls::IstioMutual => "",
                            DownstreamTls::Terminate(_) => " terminate",
                            DownstreamTls::Passthrough => " passthrough",
                            DownstreamTls::Refuse(_) => " refused",
                        };
                        format!("{sni}{tls} {}", behind(&server.serves))
                    })
                    .collect();
                all.sort();
                all.join(", ")
            }
        };
        format!("{place} {serves}")
    });
    listeners.collect()
}

fn cluster_of(decision: &HttpDecision) -> String {
    match decision {
        HttpDecision::Host(host) => host.clusters().map(|cluster| cluster.name.clone()).collect::<Vec<_>>().join(", "),
        other => format!("{other:?}"),
    }
}

const MUTUAL: &str = ", tls: {mode: ISTIO_MUTUAL}";

#[test]
fn listeners_are_where_the_service_sends_to() {
    for (servers, want) in [
        (server(80, "HTTP", ""), "8080 http.8080"),
        (server(80, "HTTP2", ""), "8080 http.8080"),
        (server(80, "GRPC", ""), "8080 http.8080"),
        // A named port of the pod; a name that it lacks; a port that no Service has.
        (server(443, "HTTPS", MUTUAL), "8443 edition.cnn.com https.443.p443.gw.edge"),
        (server(5000, "TCP", ""), "5000 tcp -"),
        (server(9000, "HTTP", ""), "9000 http.9000"),
        // The seed's: HTTPS on port 80.
        (server(80, "HTTPS", MUTUAL), "8080 edition.cnn.com https.80.p80.gw.edge"),
        (server(80, "TLS", MUTUAL), "8080 edition.cnn.com -"),
        (server(80, "TCP", MUTUAL), "8080 edition.cnn.com -"),
        (server(80, "HTTP", ", bind: 10.0.0.9"), "10.0.0.9:8080 http.8080.10.0.0.9"),
    ] {
        let mesh = world(&servers, "").quiet();
        assert_eq!(shown(&mesh), [want], "{servers}");
    }
    let direct = text(&server(80, "HTTP", ""), "").replace(
        "name: edge, namespace: edge",
        "name: edge, namespace: edge, labels: {experimental.istio.io/disable-gateway-port-translation: 'true'}",
    );
    assert_eq!(shown(&mesh(&direct)), ["80 http.80"]);
    let headless = text(&server(80, "HTTP", ""), "").replace("selector: {istio: edge}\n", "selector: {istio: else}\n");
    assert_eq!(shown(&mesh(&headless)), ["80 http.80"]);
}

#[test]
fn requests_follow_the_routes_of_their_gateway() {
    let servers = server(80, "HTTP", "") + ", " + &server(443, "HTTPS", MUTUAL);
    let other = virtual_service(
        "default",
        "mesh-only",
        "{hosts: [edition.cnn.com], http: [{route: [{destination: {host: edition.cnn.com, port: {number: 80}}}]}]}",
    );
    let said = world(&servers, &(forward() + &other)).said(Severity::Warning);
    let plain = "spec.http[0].route[0].destination: port 443 of ServiceEntry default/cnn is TLS, and no DestinationRule originates it for edition.cnn.com: it gets plain HTTP";
    assert_eq!(said, [plain]);
    let mesh = world(&servers, &(forward() + &other + &originates())).quiet();
    let table = table(&mesh);
    let to = "outbound|443||edition.cnn.com";
    assert_eq!(cluster_of(&table.http(at(8080), None, "Edition.CNN.com:80")), to);
    assert_eq!(cluster_of(&table.http(at(8443), Some("https.443.p443.gw.edge"), "edition.cnn.com")), to);
    for (listener, server, host) in [
        (8080, None, "other.com"),
        (8080, Some("https.443.p443.gw.edge"), "edition.cnn.com"),
        (8443, None, "edition.cnn.com"),
        (80, None, "edition.cnn.com"),
    ] {
        assert!(matches!(table.http(at(listener), server, host), HttpDecision::NotFound), "{listener} {host}");
    }
    let HttpDecision::Host(host) = table.http(at(8080), None, "edition.cnn.com") else { panic!() };
    assert_eq!((host.name.as_str(), host.require_tls), ("edition.cnn.com:80", false));
    // The gateway itself calls with what its own table has.
    let own = mesh.of("edge", "edge-1").cluster(to).unwrap();
    assert!(host.clusters().all(|cluster| Arc::ptr_eq(cluster, own)));
}

#[test]
fn a_server_lets_in_what_its_hosts_say() {
    let route = "http: [{route: [{destination: {host: edition.cnn.com, port: {number: 80}}}]}]";
    let bound = |namespace: &str, hosts: &str| {
        let text = virtual_service(namespace, "v", &format!("{{hosts: [{hosts}], gateways: [edge/gw], {route}}}"));
        move |servers: &str| world(servers, &text)
    };
    for (hosts, namespace, names, want) in [
        ("'*'", "default", "a.com", true),
        ("'*/a.com'", "default", "a.com", true),
        ("'default/a.com'", "default", "a.com", true),
        ("'default/a.com'", "shop", "a.com", false),
        ("'./a.com'", "edge", "a.com", true),
        ("'./a.com'", "default", "a.com", false),
        ("'*.com'", "default", "a.com", true),
        ("b.com", "default", "a.com", false),
    ] {
        let servers = format!("{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [{hosts}]}}");
        let mesh = bound(namespace, names)(&servers);
        let found = matches!(table(&mesh).http(at(8080), None, "a.com"), HttpDecision::Host(_));
        assert_eq!(found, want, "{hosts} {namespace}");
    }
}

#[test]
fn redirects_to_https_need_no_route() {
    let servers = server(80, "HTTP", ", tls: {httpsRedirect: true}");
    for more in [String::new(), forward() + &originates()] {
        let mesh = world(&servers, &more).quiet();
        let HttpDecision::Host(host) = table(&mesh).http(at(8080), None, "edition.cnn.com") else { panic!() };
        assert!(host.require_tls);
        assert!(matches!(table(&mesh).http(at(8080), None, "other.com"), HttpDecision::NotFound));
    }
}

#[test]
fn gateways_share_a_port_where_they_can() {
    let one = "{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.com]}";
    for (second, want, said) in [
        // Another host, through another port of the Service that leads to the same one of the pod.
        ("{port: {number: 81, name: h, protocol: HTTP2}, hosts: [b.com]}", vec!["8080 http.8080"], None),
        (
            "{port: {number: 80, name: h, protocol: HTTP}, hosts: [b.com, a.com]}",
            vec!["8080 http.8080"],
            Some("Gateway edge/a serves a.com there already on port 8080"),
        ),
        ("{port: {number: 80, name: h, protocol: HTTP}, hosts: [shop/a.com]}", vec!["8080 http.8080"], None),
        (
            "{port: {number: 80, name: h, protocol: HTTP}, hosts: [a.com], bind: 10.0.0.1}",
            vec!["8080 http.8080", "10.0.0.1:8080 http.8080.10.0.0.1"],
            None,
        ),
        (
            "{port: {number: 80, name: h, protocol: HTTPS}, hosts: [b.com], tls: {mode: ISTIO_MUTUAL}}",
            vec!["8080 http.8080"],
            Some("Gateway edge/a serves plain HTTP there, TLS cannot be served beside it on port 8080"),
        ),
        (
            "{port: {number: 80, name: h, protocol: TCP}, hosts: [b.com]}",
            vec!["8080 http.8080"],
            Some("Gateway edge/a serves plain HTTP there, plain TCP cannot"),
        ),
    ] {
        let text = EDGE.to_owned() + &gateway("edge", "a", one) + &gateway("edge", "b", second);
        let mesh = mesh(&text);
        assert_eq!(shown(&mesh), want, "{second}");
        let warnings = mesh.said(Severity::Warning);
        match said {
            None => assert!(warnings.is_empty(), "{second}: {warnings:?}"),
            Some(part) => assert!(
                warnings.len() == 1 && warnings[0].starts_with("spec.servers[0]: ") && warnings[0].contains(part),
                "{second}: {warnings:?}"
            ),
        }
    }
    // TLS servers are told apart by name.
    let tls = |host: &str| {
        format!("{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [{host}], tls: {{mode: ISTIO_MUTUAL}}}}")
    };
    let text = EDGE.to_owned()
        + &gateway("edge", "a", &tls("a.com"))
        + &gateway("edge", "b", &tls("b.com"))
        + &gateway("edge", "c", &tls("shop/a.com"));
    let mesh = mesh(&text);
    assert_eq!(shown(&mesh), ["8443 a.com https.443.https.a.edge, b.com https.443.https.b.edge"]);
    assert_eq!(mesh.said(Severity::Warning).len(), 1, "{:?}", mesh.diagnostics);
}

#[test]
fn what_cannot_be_opened_is_said() {
    let mesh = world(&server(15001, "HTTP", ""), "");
    assert!(shown(&mesh).is_empty());
    assert!(
        mesh.said(Severity::Error)[0].starts_with("spec.servers[0].port.number: egret itself"),
        "{:?}",
        mesh.diagnostics
    );
}

#[test]
fn tunnels_go_where_tcp_routes_say() {
    let tcp = |name: &str, spec: &str| {
        virtual_service("default", name, &format!("{{hosts: [edition.cnn.com], gateways: [edge/gw], tcp: [{spec}]}}"))
    };
    let to = "route: [{destination: {host: edition.cnn.com, port: {number: 5432}}}]";
    let servers = server(9000, "TCP", "") + ", " + &server(9001, "TLS", MUTUAL);
    let cluster = "outbound|5432||edition.cnn.com 1";
    let plain = world(&servers, &tcp("v", &format!("{{{to}}}"))).quiet();
    assert_eq!(shown(&plain), [format!("9000 tcp {cluster}"), format!("9001 edition.cnn.com {cluster}")]);
    let by_port = world(&servers, &tcp("v", &format!("{{match: [{{port: 9001}}], {to}}}"))).quiet();
    assert_eq!(shown(&by_port), ["9000 tcp -".to_owned(), format!("9001 edition.cnn.com {cluster}")]);
    let other_gateway = world(&servers, &tcp("v", &format!("{{match: [{{gateways: [edge/else]}}], {to}}}")));
    assert_eq!(shown(&other_gateway), ["9000 tcp -", "9001 edition.cnn.com -"]);
    let labels = world(&servers, &tcp("v", &format!("{{match: [{{sourceLabels: {{a: b}}}}], {to}}}")));
    assert_eq!(shown(&labels)[0], format!("9000 tcp {cluster}"));
    assert!(labels.said(Severity::Warning)[0].contains("does not count at a gateway"), "{:?}", labels.diagnostics);
}

#[test]
fn a_gateway_calls_with_its_own_credentials() {
    let rule = rule(
        "edge",
        "r",
        "{host: edition.cnn.com, trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: MUTUAL, credentialName: c}}]}}",
    );
    let more = forward() + &rule + &secret("edge", "c", &["tls.crt", "tls.key", "ca.crt"]);
    let mesh = world(&server(80, "HTTP", ""), &more);
    let HttpDecision::Host(host) = table(&mesh).http(at(8080), None, "edition.cnn.com") else { panic!() };
    let cluster = host.clusters().next().unwrap();
    let UpstreamTls::Originate(tls) = &cluster.tls else { panic!("{:?}", cluster.tls) };
    assert_eq!(tls.identity, Some(IdentitySource::Secret { namespace: "edge".to_owned(), name: "c".to_owned() }));
}

#[test]
fn a_gateway_goes_by_endpoints_and_never_by_the_address_dialled() {
    let more = r#"
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: default}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, name: http, targetPort: named}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: named, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
"#
    .to_owned()
        + &entry("default", "none", "{hosts: [none.com], resolution: NONE, ports: [{number: 80, name: http, protocol: HTTP}]}")
        + &rule("default", "cnn", "{host: edition.cnn.com, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}")
        + &["headless.default.svc.cluster.local", "none.com", "edition.cnn.com"]
            .map(|host| {
                let name = host.split('.').next().unwrap();
                virtual_service("default", name, &format!("{{hosts: [{name}.test], gateways: [edge/gw], http: [{{route: [{{destination: {{host: {host}, port: {{number: 80}}}}}}]}}]}}"))
            })
            .concat();
    let mesh = world("{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}", &more).quiet();
    let reached = |host: &str| {
        let HttpDecision::Host(host) = table(&mesh).http(at(8080), None, host) else { panic!("{host}") };
        host.clusters().next().unwrap().clone()
    };
    let wanted = Endpoint::new(EndpointAddress::Ip(dst("10.1.0.1:8080")), 1);
    assert_eq!(reached("headless.test").discovery, Discovery::Static(vec![wanted]));
    assert_eq!(reached("none.test").discovery, Discovery::Static(Vec::new()));
    assert_eq!(reached("edition.test").load_balancer, LoadBalancer::LeastRequest);
    // Whoever calls them otherwise means the address.
    let own = mesh.of("edge", "edge-1").cluster("outbound|80||headless.default.svc.cluster.local").unwrap();
    assert_eq!(own.discovery, Discovery::OriginalDestination { port: None });
}

#[test]
fn virtual_services_that_wait_in_vain_are_said() {
    let route = "http: [{route: [{destination: {host: edition.cnn.com, port: {number: 80}}}]}]";
    let said = |gateways: &str, hosts: &str, rest: &str| {
        let spec = format!("{{hosts: [{hosts}], gateways: [{gateways}], {rest}}}");
        let mesh = world(&server(80, "HTTP", ""), &virtual_service("default", "v", &spec));
        let both = [mesh.said(Severity::Error), mesh.said(Severity::Warning)];
        both.map(|list| list.join("\n"))
    };
    let none = [String::new(), String::new()];
    assert_eq!(said("edge/gw, mesh", "edition.cnn.com", route), none);
    let [error, warning] = said("mesh, gw", "edition.cnn.com", route);
    assert_eq!(
        (error.as_str(), warning.as_str()),
        (
            "spec.gateways[1]: there is no Gateway default/gw: nothing comes to these routes through it; one of that name is in edge: write edge/gw",
            ""
        )
    );
    let [error, warning] = said("edge/gw", "a.com", route);
    assert_eq!(error, "");
    assert!(warning.starts_with("spec.gateways[0]: no server of Gateway edge/gw lets in"), "{warning}");
    let matched =
        "http: [{match: [{gateways: [mesh]}], route: [{destination: {host: edition.cnn.com, port: {number: 80}}}]}]";
    let [error, warning] = said("edge/gw", "edition.cnn.com", matched);
    assert_eq!(error, "");
    assert!(warning.contains("spec.http[0].match[0].gateways[0]: mesh is not among the gateways"), "{warning}");
}
