//! Sidecars and PeerAuthentications as their authors write them.

use std::net::SocketAddr;

use super::*;
use crate::api::{
    gateway::ServerTlsMode,
    security::{PeerAuthentication, PeerMode},
    sidecar::{DefaultEndpoint, Sidecar},
};

fn sidecar(spec: &str) -> (Option<Sidecar>, Vec<String>) {
    let text = format!("apiVersion: networking.istio.io/v1beta1\nkind: Sidecar\nmetadata: {{name: s}}\nspec:\n{spec}");
    let parsed = parse(&text);
    let found = parsed.objects.iter().find_map(|object| match object {
        AnyObject::Sidecar(object) => Some(object.spec.clone()),
        _ => None,
    });
    (found, said(&parsed))
}

fn peer_authentication(spec: &str) -> (Option<PeerAuthentication>, Vec<String>) {
    let text = format!("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p}}\n{spec}");
    let parsed = parse(&text);
    let found = parsed.objects.iter().find_map(|object| match object {
        AnyObject::PeerAuthentication(object) => Some(object.spec.clone()),
        _ => None,
    });
    (found, said(&parsed))
}

/// What follows the place and the object of each finding.
fn messages(found: &[String]) -> Vec<&str> {
    found.iter().map(|line| line.splitn(3, ": ").nth(2).unwrap_or(line)).collect()
}

const EVERYTHING: &str = r#"  workload_selector: {labels: {app: web}}
  ingress:
  - port: {number: 9080, protocol: HTTPS, name: external}
    capture_mode: IPTABLES
    default_endpoint: 0.0.0.0:80
    tls: {mode: MUTUAL, privateKey: /etc/k.pem, server_certificate: /etc/c.pem, caCertificates: /etc/ca.pem}
    connection_pool: {tcp: {max_connections: 7}}
  - {port: {number: "9081", protocol: HTTP}, bind: 10.0.0.1, defaultEndpoint: "unix:///run/app.sock"}
  - {port: {number: 9082}, bind: 0.0.0.0, defaultEndpoint: "[::1]:8080"}
  egress:
  - {port: {number: 80, protocol: HTTP, name: http}, hosts: ["./*", "Shop/Web.shop.svc.cluster.local"]}
  - hosts: ["*/*.example.com", "~/*"]
  outboundTrafficPolicy: {mode: ALLOW_ANY}
  inboundConnectionPool: {http: {http1MaxPendingRequests: 3}}
"#;

#[test]
fn a_sidecar_in_full() {
    let (spec, said) = sidecar(EVERYTHING);
    assert_eq!(said, Vec::<String>::new());
    let spec = spec.unwrap();
    assert_eq!(spec.selector["app"], "web");
    let [tls, unix, loopback] = spec.ingress.as_slice() else { panic!("{:?}", spec.ingress) };
    assert_eq!((tls.port.number, tls.port.protocol.as_str(), tls.port.name.as_str()), (9080, "HTTPS", "external"));
    assert_eq!((tls.bind, &tls.default_endpoint), (None, &Some(DefaultEndpoint::Own(80))));
    let settings = tls.tls.as_ref().unwrap();
    assert_eq!(settings.mode, Some(ServerTlsMode::Mutual));
    assert_eq!(settings.server_certificate.as_deref(), Some("/etc/c.pem"));
    assert_eq!(tls.connection_pool.as_ref().unwrap().tcp_max_connections, Some(7));
    assert_eq!((unix.port.number, unix.bind), (9081, Some("10.0.0.1".parse().unwrap())));
    assert_eq!(unix.default_endpoint, Some(DefaultEndpoint::Unix("/run/app.sock".into())));
    assert_eq!((loopback.bind, loopback.port.protocol.as_str()), (None, ""));
    assert_eq!(loopback.default_endpoint, Some(DefaultEndpoint::Loopback("[::1]:8080".parse().unwrap())));
    let [port, others] = spec.egress.as_slice() else { panic!("{:?}", spec.egress) };
    assert_eq!(port.port.as_ref().map(|port| port.number), Some(80));
    assert_eq!(port.hosts, ["./*", "shop/web.shop.svc.cluster.local"]);
    assert_eq!(
        (others.port.is_none(), others.hosts.as_slice()),
        (true, &["*/*.example.com".to_owned(), "~/*".to_owned()][..])
    );
    assert_eq!(spec.registry_only, Some(false));
    assert_eq!(spec.inbound_pool.unwrap().http1_max_pending_requests, Some(3));
}

#[test]
fn where_the_application_is() {
    let endpoint = |text: &str| {
        let (spec, said) = sidecar(&format!("  ingress: [{{port: {{number: 1}}, defaultEndpoint: \"{text}\"}}]"));
        spec.ok_or(said).map(|spec| spec.ingress[0].default_endpoint.clone())
    };
    let loopback = |text: &str| Some(DefaultEndpoint::Loopback(text.parse::<SocketAddr>().unwrap()));
    for (text, want) in [
        ("127.0.0.1:80", loopback("127.0.0.1:80")),
        (":80", loopback("127.0.0.1:80")),
        ("[::1]:80", loopback("[::1]:80")),
        ("0.0.0.0:80", Some(DefaultEndpoint::Own(80))),
        ("[::]:80", Some(DefaultEndpoint::Own(80))),
        ("unix:///a/b", Some(DefaultEndpoint::Unix("/a/b".into()))),
        ("", None),
    ] {
        assert_eq!(endpoint(text), Ok(want), "{text}");
    }
    for text in [
        "10.0.0.1:80",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "localhost:80",
        "unix://a",
        "unix://@a",
        "unix:///",
        "::1:80",
    ] {
        let said = endpoint(text).expect_err(text);
        assert!(said[0].contains("error: Sidecar default/s: spec.ingress[0].defaultEndpoint: "), "{said:?}");
    }
}

#[test]
fn what_a_sidecar_cannot_be() {
    let said = |spec: &str| sidecar(spec).1;
    for (spec, want) in [
        ("  {}", "spec: says nothing: give one of ingress, egress, outboundTrafficPolicy, inboundConnectionPool"),
        (
            "  {egress: []}",
            "spec: says nothing: give one of ingress, egress, outboundTrafficPolicy, inboundConnectionPool",
        ),
        ("  ingress: [{defaultEndpoint: '127.0.0.1:80'}]", "spec.ingress[0]: `port` is missing"),
        ("  ingress: [{port: {protocol: HTTP}}]", "spec.ingress[0].port: `number` is missing"),
        ("  ingress: [{port: {number: 1}}, {port: {number: 1}}]", "spec.ingress[1]: port 1 is given twice"),
        (
            "  ingress: [{port: {number: 1, protocol: SPDY}}]",
            "spec.ingress[0].port.protocol: \"SPDY\" is not one of HTTP, HTTP2, HTTP_PROXY, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, MYSQL, REDIS, UDP, HBONE",
        ),
        (
            "  ingress: [{port: {number: 1, targetPort: 2}}]",
            "spec.ingress[0].port.targetPort: means nothing in a Sidecar: `defaultEndpoint` says where the application is",
        ),
        (
            "  ingress: [{port: {number: 1}, captureMode: SOME}]",
            "spec.ingress[0].captureMode: \"SOME\" is not one of DEFAULT, IPTABLES, NONE",
        ),
        (
            "  ingress: [{port: {number: 1, protocol: HTTP}, tls: {mode: SIMPLE}}]",
            "spec.ingress[0].tls: TLS wants protocol HTTPS or TLS, not HTTP",
        ),
        (
            "  ingress: [{port: {number: 1, protocol: TLS}, tls: {mode: ISTIO_MUTUAL}}]",
            "spec.ingress[0].tls: an ingress ends TLS as SIMPLE, MUTUAL or OPTIONAL_MUTUAL; mesh mTLS is PeerAuthentication's",
        ),
        (
            "  ingress: [{port: {number: 1, protocol: TLS}, tls: {mode: SIMPEL}}]",
            "spec.ingress[0].tls.mode: \"SIMPEL\" is not one of PASSTHROUGH, SIMPLE, MUTUAL, OPTIONAL_MUTUAL, AUTO_PASSTHROUGH, ISTIO_MUTUAL",
        ),
        (
            "  ingress: [{port: {number: 1, protocol: TLS}, tls: {mode: SIMPLE, httpsRedirect: true}}]",
            "spec.ingress[0].tls: `httpsRedirect` is for gateways",
        ),
        ("  egress: [{}]", "spec.egress[0]: `hosts` must name at least one: `./*`, `*/*`, `~/*`, namespace/host"),
        (
            "  egress: [{hosts: [a.com]}]",
            "spec.egress[0].hosts[0]: \"a.com\" must be namespace/host: `./a.com` is one of this namespace",
        ),
        (
            "  egress: [{hosts: [a b/c]}]",
            "spec.egress[0].hosts[0]: \"a b\" is neither `.`, `*`, `~` nor the name of a namespace",
        ),
        (
            "  egress: [{hosts: [a/b*]}]",
            "spec.egress[0].hosts[0]: \"b*\" has `*` elsewhere than as its whole first label",
        ),
        (
            "  egress: [{hosts: ['./*']}, {hosts: ['./*']}]",
            "spec.egress[0]: without `port` it is for all others, so it must be the last one",
        ),
        (
            "  egress: [{port: {number: 80}, hosts: ['./*']}, {port: {number: 80}, hosts: ['./*']}]",
            "spec.egress[1]: port 80 is given twice",
        ),
        (
            "  egress: [{port: {number: 80}, bind: 'unix:///a', hosts: ['./*']}]",
            "spec.egress[0].bind: a Unix socket cannot be listened on",
        ),
        (
            "  outboundTrafficPolicy: {mode: ALLOW}",
            "spec.outboundTrafficPolicy.mode: \"ALLOW\" is not one of REGISTRY_ONLY, ALLOW_ANY",
        ),
        (
            "  outboundTrafficPolicy: {egressProxy: {host: a}}",
            "spec.outboundTrafficPolicy.egressProxy: goes with mode ALLOW_ANY only",
        ),
        (
            "  {workloadSelector: {labels: {app: 'a*'}}, egress: [{hosts: ['./*']}]}",
            "spec.workloadSelector.labels.app: labels are compared as they are: neither an empty key nor `*` selects anything",
        ),
    ] {
        let (object, found) = sidecar(spec);
        assert_eq!(messages(&found), [format!("Sidecar default/s: {want}")], "{spec}");
        assert!(found[0].contains(": error: ") && object.is_none(), "{found:?}");
    }
    // What is not honoured is said.
    for (spec, want) in [
        (
            "  ingress: [{port: {number: 1}, captureMode: NONE}]",
            "spec.ingress[0].captureMode: not honoured: traffic is captured all the same, so that no listener of its own is needed",
        ),
        ("  ingress: [{port: {number: 1}, proxyProtocol: {}}]", "spec.ingress[0].proxyProtocol: unknown field"),
        (
            "  ingress: [{port: {number: 1, protocol: TLS}, tls: {}}]",
            "spec.ingress[0].tls: mode PASSTHROUGH leaves TLS to the application, as no `tls` does",
        ),
        (
            "  egress: [{port: {number: 80}, bind: 127.0.0.1, hosts: ['./*']}]",
            "spec.egress[0].bind: not honoured: what the pod sends to the port is captured, whatever its address",
        ),
        ("  egress: [{hosts: ['./a.com', './A.com']}]", "spec.egress[0].hosts[1]: \"./a.com\" is given twice"),
        (
            "  {workloadSelector: {}, egress: [{hosts: ['./*']}]}",
            "spec.workloadSelector: without labels it is for every workload of the namespace",
        ),
    ] {
        assert_eq!(messages(&said(spec)), [format!("Sidecar default/s: {want}")], "{spec}");
        assert!(sidecar(spec).0.is_some(), "{spec}");
    }
}

#[test]
fn what_a_sidecar_lets_out() {
    let of = |policy: &str| sidecar(&format!("  {{outboundTrafficPolicy: {policy}, egress: [{{hosts: ['*/*']}}]}}"));
    assert_eq!(of("{mode: REGISTRY_ONLY}").0.unwrap().registry_only, Some(true));
    assert_eq!(of("{}").0.unwrap().registry_only, Some(true));
    assert_eq!(of("null").0.unwrap().registry_only, None);
    // What must go through a proxy of their choice goes nowhere else.
    let (spec, said) = of("{mode: ALLOW_ANY, egressProxy: {host: a.com, port: {number: 1}}}");
    assert_eq!(spec.unwrap().registry_only, Some(true));
    assert!(
        said[0].contains("warning: Sidecar default/s: spec.outboundTrafficPolicy.egressProxy: not honoured yet"),
        "{said:?}"
    );
}

#[test]
fn peer_authentications() {
    let read = |spec: &str| {
        let (object, said) = peer_authentication(spec);
        assert_eq!(said, Vec::<String>::new(), "{spec}");
        object.unwrap()
    };
    assert_eq!(read(""), PeerAuthentication::default());
    assert_eq!(read("spec: {}"), PeerAuthentication::default());
    assert_eq!(read("spec: {mtls: {mode: UNSET}, selector: {}}"), PeerAuthentication::default());
    assert_eq!(read("spec: {mtls: {mode: STRICT}}").mode, Some(PeerMode::Strict));
    assert_eq!(read("spec: {mtls: {mode: PERMISSIVE}}").mode, Some(PeerMode::Permissive));
    for spec in [
        "{selector: {matchLabels: {app: a}}, portLevelMtls: {\"9080\": {mode: DISABLE}, 9081: {mode: UNSET}, 9082: {}}}",
        "{selector: {match_labels: {app: a}}, port_level_mtls: {9080: {mode: DISABLE}, \"9081\": {}, 9082: null}}",
    ] {
        let object = read(&format!("spec: {spec}"));
        assert_eq!((object.selector["app"].as_str(), object.mode), ("a", None));
        let ports: Vec<_> = object.ports.into_iter().collect();
        assert_eq!(ports, [(9080, Some(PeerMode::Disable)), (9081, None), (9082, None)], "{spec}");
    }
    for (spec, want) in [
        ("{mtls: {mode: STRIKT}}", "spec.mtls.mode: \"STRIKT\" is not one of UNSET, DISABLE, PERMISSIVE, STRICT"),
        ("{mtls: STRICT}", "spec.mtls: must be a mapping, not `STRICT`"),
        (
            "{portLevelMtls: {80: {mode: STRICT}}}",
            "spec.portLevelMtls: goes with a `selector` only: ports are those of workloads, not of a namespace or the mesh",
        ),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {}}", "spec.portLevelMtls: must name at least one port"),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {}}}",
            "spec.portLevelMtls.0: \"0\" is not a port: 1 to 65535",
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {}}}",
            "spec.portLevelMtls.http: \"http\" is not a port: 1 to 65535",
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: OFF}}}",
            "spec.portLevelMtls.80.mode: \"OFF\" is not one of UNSET, DISABLE, PERMISSIVE, STRICT",
        ),
        (
            "{selector: {matchLabels: {a: '*'}}}",
            "spec.selector.matchLabels.a: labels are compared as they are: neither an empty key nor `*` selects anything",
        ),
    ] {
        let (object, found) = peer_authentication(&format!("spec: {spec}"));
        assert_eq!(messages(&found), [format!("PeerAuthentication default/p: {want}")], "{spec}");
        assert!(object.is_none(), "{spec}");
    }
    let said = peer_authentication("spec: {mtls: {mode: STRICT, mod: x}}").1;
    assert_eq!(messages(&said), ["PeerAuthentication default/p: spec.mtls.mod: unknown field (did you mean `mode`?)"]);
}
