//! What is shown of a gateway's TLS servers.

use std::path::Path;

use super::*;
use crate::{
    api::Objects,
    mesh::{PodAddresses, compile},
    source::documents::parse_file,
};

/// The gateway of Istio's tasks: two hosts with certificates of their own, one that is passed on, and the services of the mesh
/// by their own names.
const SEED: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: gw, namespace: istio-system}
spec: {selector: {istio: gw}, ports: [{port: 443, name: https, targetPort: 8443}, {port: 15443, name: tls}]}
---
apiVersion: v1
kind: Pod
metadata: {name: gw, namespace: istio-system, labels: {istio: gw}, annotations: {egret.dev/netns: gw}}
---
apiVersion: v1
kind: Secret
metadata: {name: httpbin, namespace: istio-system}
stringData: {tls.crt: x, tls.key: x, ca.crt: x}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: sni-gateway, namespace: test}
spec:
  selector: {istio: gw}
  servers:
  - {port: {number: 443, name: https-httpbin, protocol: HTTPS}, hosts: [httpbin.example.com], tls: {mode: SIMPLE, credentialName: httpbin}}
  - {port: {number: 443, name: https-mutual, protocol: HTTPS}, hosts: [mutual.example.com], tls: {mode: MUTUAL, credentialName: httpbin, subjectAltNames: [client.example.com]}}
  - {port: {number: 443, name: tls-nginx, protocol: TLS}, hosts: [nginx.example.com], tls: {mode: PASSTHROUGH}}
  - {port: {number: 15443, name: tls, protocol: TLS}, hosts: ['*.test.svc.cluster.local'], tls: {mode: AUTO_PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: httpbin, namespace: test}
spec:
  hosts: [httpbin.example.com, mutual.example.com]
  gateways: [sni-gateway]
  http: [{match: [{uri: {prefix: /status}}], route: [{destination: {host: httpbin, port: {number: 8000}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: nginx, namespace: test}
spec:
  hosts: [nginx.example.com]
  gateways: [sni-gateway]
  tls: [{match: [{sniHosts: [nginx.example.com]}], route: [{destination: {host: httpbin, port: {number: 8000}}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: test}
spec: {selector: {app: httpbin}, clusterIP: 10.96.0.1, ports: [{port: 8000, name: http, targetPort: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: httpbin, namespace: test, labels: {app: httpbin}}
status: {podIP: 10.1.0.1}
"#;

fn seed() -> Admin {
    let parsed = parse_file(Path::new("seed.yaml").into(), SEED);
    assert!(parsed.refused.is_empty(), "{:?}", parsed.refused);
    let mut objects = Objects::default();
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    serve(Fake::of(compile(&objects, &PodAddresses::new())))
}

fn rows(admin: &Admin, what: &str) -> Vec<serde_json::Value> {
    let (status, body) = ask(admin, "GET", &format!("/proxy-config/{what}?pod=gw.istio-system"));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

const PASSED: &str = "outbound_.8000_._.httpbin.test.svc.cluster.local";

#[test]
fn listeners_show_their_server_names_and_where_these_lead() {
    let admin = seed();
    let listeners = rows(&admin, "listener");
    let shown: Vec<_> =
        listeners.iter().map(|row| format!("{} {} → {}", row["port"], row["match"], row["destination"])).collect();
    let shown: Vec<_> = shown.iter().map(|row| row.replace('"', "")).collect();
    assert_eq!(
        shown[..4],
        [
            "8443 SNI: httpbin.example.com → Route: https.443.https-httpbin.sni-gateway.test",
            "8443 SNI: mutual.example.com → Route: https.443.https-mutual.sni-gateway.test",
            "8443 SNI: nginx.example.com → Cluster: outbound|8000||httpbin.test.svc.cluster.local",
            &format!("15443 SNI: {PASSED} → Cluster: {PASSED}"),
        ]
    );
    let routes = rows(&admin, "route");
    let found = routes.iter().find(|row| row["name"] == "https.443.https-httpbin.sni-gateway.test").unwrap();
    assert_eq!((&found["domains"], &found["match"]), (&"httpbin.example.com".into(), &"/status*".into()));
    assert_eq!(found["virtualService"], "httpbin.test");
    let clusters = rows(&admin, "cluster");
    let passed = clusters.iter().find(|row| row["name"] == PASSED).unwrap();
    assert_eq!((&passed["port"], &passed["type"]), (&8000.into(), &"EDS".into()));
    let endpoints = rows(&admin, "endpoint");
    assert!(endpoints.iter().any(|row| row["cluster"] == PASSED && row["endpoint"] == "10.1.0.1:80"), "{endpoints:?}");
}

#[test]
fn explain_says_what_a_client_of_the_gateway_meets() {
    let admin = seed();
    let explain = |url: &str| -> (Vec<String>, String) {
        let (status, body) = ask(&admin, "GET", &format!("/explain?pod=gw.istio-system&url={}", encode(url)));
        assert_eq!(status, 200, "{body}");
        let found: rows::Explanation = serde_json::from_str(&body).unwrap();
        (found.steps.iter().map(|step| format!("{}: {}", step.what, step.value)).collect(), found.verdict)
    };
    let (steps, _) = explain("https://httpbin.example.com:8443/status/418");
    for wanted in [
        "comes to: pod istio-system/gw",
        "listener: 0.0.0.0:8443 SNI: httpbin.example.com",
        "tls: SIMPLE TLS",
        "presents: kubernetes://httpbin of namespace istio-system",
        "clients: any",
    ] {
        assert!(steps.iter().any(|step| step == wanted), "{wanted}: {steps:?}");
    }
    let (steps, _) = explain("https://mutual.example.com:8443/");
    let clients = "clients: must show one under kubernetes://httpbin-cacert of namespace istio-system";
    assert!(steps.iter().any(|step| step == clients), "{steps:?}");
    let (steps, verdict) = explain("https://nginx.example.com:8443/");
    assert!(steps.iter().any(|step| step == "tls: passed through"), "{steps:?}");
    assert_eq!(verdict, "Passed through untouched to httpbin.test.svc.cluster.local.");
    assert!(explain("https://else.example.com:8443/").1.contains("no such SNI"));
    assert!(explain("http://httpbin.example.com:8443/").1.contains("wants TLS"));
}
