//! What is shown of a pod's own ports.

use std::path::Path;

use super::*;
use crate::{
    api::Objects,
    mesh::{PodAddresses, compile},
    source::documents::parse_file,
};

/// A service on ports that are taken each in its own way; its pod bears 10.0.0.2. `other` takes whatever comes.
const WORLD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports:
  - {port: 80, targetPort: 8080, name: http}
  - {port: 81, targetPort: 8081, name: tcp}
  - {port: 82, targetPort: 8082, name: anything}
  - {port: 83, targetPort: 9080, name: http-own}
---
apiVersion: v1
kind: Pod
metadata: {name: sleep, namespace: default, labels: {app: web}, annotations: {egret.dev/netns: sleep}}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default, annotations: {egret.dev/netns: client}}
status: {podIP: 10.0.0.3}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: default}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: MODE}, portLevelMtls: {"9080": {mode: DISABLE}}}
"#;

const INGRESS: &str = r#"
---
apiVersion: v1
kind: Secret
metadata: {name: certs, namespace: default}
stringData: {tls.crt: x, tls.key: x}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web, namespace: default}
spec:
  workloadSelector: {labels: {app: web}}
  ingress:
  - {port: {number: 9080, protocol: HTTPS}, defaultEndpoint: "0.0.0.0:80", tls: {mode: SIMPLE, credentialName: certs}}
  - {port: {number: 9081, protocol: HTTP}, defaultEndpoint: "127.0.0.1:81"}
  - {port: {number: 9082, protocol: TCP}, defaultEndpoint: "unix:///run/app.sock"}
  - {port: {number: 9083, protocol: TLS}, defaultEndpoint: "0.0.0.0:83", tls: {mode: SIMPLE, credentialName: nope}}
"#;

fn world(mode: &str, more: &str) -> Mesh {
    let parsed = parse_file(Path::new("web.yaml").into(), &(WORLD.replace("MODE", mode) + more));
    assert!(parsed.refused.is_empty(), "{:?}", parsed.refused);
    let mut objects = Objects::default();
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    compile(&objects, &PodAddresses::new())
}

fn rows(admin: &Admin, what: &str) -> Vec<serde_json::Value> {
    let (status, body) = ask(admin, "GET", &format!("/proxy-config/{what}?pod=sleep"));
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// `MATCH → DESTINATION` of the inbound listener.
fn listeners(admin: &Admin) -> Vec<String> {
    let rows = rows(admin, "listener");
    let inbound = rows.iter().filter(|row| row["port"] == 15006);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    inbound.map(|row| format!("{} → {}", text(&row["match"]), text(&row["destination"]))).collect()
}

#[test]
fn listeners_tell_what_each_port_takes() {
    let passed = |matches: &str| format!("{matches}; Addr: 0.0.0.0/0 → InboundPassthroughCluster");
    let to = |matches: &str, port: u16| {
        let separator = if matches.is_empty() { "" } else { "; " };
        format!("{matches}{separator}Addr: *:{port} → Cluster: inbound|{port}||")
    };
    let own = "Addr: *:15006 → Non-HTTP/Non-TCP".to_owned();
    let http = "Trans: tls; App: istio-http/1.0,istio-http/1.1,istio-h2";
    let any = "Trans: tls; App: istio,istio-peer-exchange,istio-http/1.0,istio-http/1.1,istio-h2";
    let raw_http = "Trans: raw_buffer; App: http/1.1,h2c";
    assert_eq!(
        listeners(&serve(Fake::of(world("STRICT", "")))),
        [
            own.clone(),
            passed(http),
            passed("Trans: tls"),
            to("Trans: tls", 8080),
            to("Trans: tls", 8081),
            to(http, 8082),
            to("Trans: tls", 8082),
            to("", 9080),
        ]
    );
    assert_eq!(
        listeners(&serve(Fake::of(world("PERMISSIVE", "")))),
        [
            own,
            passed(http),
            passed(raw_http),
            passed("Trans: tls; App: TCP TLS"),
            passed("Trans: raw_buffer"),
            passed("Trans: tls"),
            to(any, 8080),
            to("Trans: raw_buffer", 8080),
            to(any, 8081),
            to("Trans: tls", 8081),
            to("Trans: raw_buffer", 8081),
            to(http, 8082),
            to(raw_http, 8082),
            to("Trans: tls; App: TCP TLS", 8082),
            to("Trans: raw_buffer", 8082),
            to("Trans: tls", 8082),
            to("", 9080),
        ]
    );
}

#[test]
fn what_a_sidecar_declares_is_shown() {
    let admin = serve(Fake::of(world("STRICT", INGRESS)));
    let shown = listeners(&admin);
    for wanted in
        ["Trans: tls; Addr: *:9080 → Cluster: inbound|9080||", "Trans: tls; Addr: *:9081 → Cluster: inbound|9081||"]
    {
        assert!(shown.iter().any(|row| row == wanted), "{wanted}: {shown:?}");
    }
    let clusters = rows(&admin, "cluster");
    let clusters: Vec<_> = clusters
        .iter()
        .filter(|row| row["name"].as_str().unwrap().to_ascii_lowercase().starts_with("inbound"))
        .map(|row| format!("{} {} {} {} {}", row["service"], row["port"], row["subset"], row["direction"], row["type"]))
        .collect();
    assert_eq!(
        clusters.iter().map(|row| row.replace('"', "")).collect::<Vec<_>>(),
        [
            " 9080  inbound STATIC",
            " 9081  inbound STATIC",
            " 9082  inbound STATIC",
            " 9083  inbound STATIC",
            "InboundPassthroughCluster null   ORIGINAL_DST"
        ]
    );
    let endpoints = rows(&admin, "endpoint");
    let endpoints: Vec<_> = endpoints
        .iter()
        .filter(|row| row["cluster"].as_str().unwrap().starts_with("inbound|"))
        .map(|row| {
            format!("{} {} {} {}", row["endpoint"], row["status"], row["outlierCheck"], row["cluster"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        endpoints,
        [
            "10.0.0.2:80 HEALTHY OK inbound|9080||",
            "127.0.0.1:81 HEALTHY OK inbound|9081||",
            "unix:///run/app.sock HEALTHY OK inbound|9082||",
            "10.0.0.2:83 HEALTHY OK inbound|9083||",
        ]
    );
    let routes = rows(&admin, "route");
    let routes: Vec<_> = routes
        .iter()
        .filter(|row| row["virtualHost"].as_str().unwrap().starts_with("inbound|"))
        .map(|row| {
            format!("{} {} {} {}", row["name"], row["virtualHost"], row["domains"], row["match"]).replace('"', "")
        })
        .collect();
    assert_eq!(
        routes,
        [
            "InboundPassthroughCluster inbound|http|0 * /*",
            "inbound|9080|| inbound|http|9080 * /*",
            "inbound|9081|| inbound|http|9081 * /*",
        ]
    );
    // Without a mode of its own a port takes no TLS but the mesh's, and what is refused says why.
    let refused = serve(Fake::of(world("DISABLE", INGRESS)));
    let shown = listeners(&refused);
    let wanted = "Trans: tls; Addr: *:9083 → Refused: Sidecar default/web: spec.ingress[3].tls.credentialName: Secret default/nope does not exist";
    assert!(shown.iter().any(|row| row == wanted), "{shown:?}");
}

#[test]
fn status_tells_the_mode_where_it_is_not_the_default() {
    let modes = |mesh: &Mesh, pod: &str| {
        let id = WorkloadId { namespace: "default".into(), name: pod.into() };
        crate::admin::inbound::modes(mesh.workloads[&id].inbound.as_ref().unwrap())
    };
    assert_eq!(modes(&world("STRICT", ""), "sleep").as_deref(), Some("STRICT, 9080 DISABLE"));
    assert_eq!(modes(&world("PERMISSIVE", ""), "sleep").as_deref(), Some("PERMISSIVE, 9080 DISABLE"));
    assert_eq!(modes(&world("DISABLE", ""), "sleep").as_deref(), Some("DISABLE"));
    assert_eq!(modes(&world("STRICT", ""), "client"), None);
}

#[test]
fn explain_tells_what_the_pod_that_is_called_takes() {
    let rule = |mode: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: r, namespace: default}}\nspec: {{host: web, trafficPolicy: {{tls: {{mode: {mode}}}}}}}\n"
        )
    };
    let explain = |mesh: Mesh, url: &str| {
        let (status, body) = ask(&serve(Fake::of(mesh)), "GET", &format!("/explain?pod=client&url={}", encode(url)));
        assert_eq!(status, 200, "{body}");
        let found: rows::Explanation = serde_json::from_str(&body).unwrap();
        let takes = found.steps.iter().find(|step| step.what == "takes");
        (takes.map(|step| format!("{} ({})", step.value, step.why)).unwrap_or_default(), found.verdict)
    };
    let policy = "PeerAuthentication default/web (web.yaml:24)";
    let (takes, verdict) = explain(world("STRICT", &rule("DISABLE")), "http://web/");
    assert_eq!(takes, format!("STRICT on port 8080 of default/sleep ({policy})"));
    assert_eq!(verdict, "Reset by the pod that is called: its port takes mesh mTLS only (STRICT).");
    // Auto mTLS goes by the port.
    let (takes, verdict) = explain(world("STRICT", ""), "http://web:83/");
    assert_eq!(takes, format!("DISABLE on port 9080 of default/sleep ({policy})"));
    assert!(verdict.starts_with("Sent in plain text to web.default.svc.cluster.local"), "{verdict}");
    let (takes, verdict) = explain(world("PERMISSIVE", &rule("DISABLE")), "http://web/");
    assert!(
        takes.starts_with("PERMISSIVE on port 8080") && verdict.starts_with("Sent in plain text"),
        "{takes} {verdict}"
    );
    // Of what no service claims, the pod that is dialled decides.
    let (takes, verdict) = explain(world("STRICT", ""), "http://10.0.0.2:1234/");
    assert!(takes.starts_with("STRICT on port 1234 of default/sleep"), "{takes}");
    assert_eq!(verdict, "Reset by the pod that is called: its port takes mesh mTLS only (STRICT).");
    let (_, verdict) = explain(world("PERMISSIVE", ""), "http://10.0.0.2:1234/");
    assert_eq!(verdict, "Passed on to the address dialled, as it is.");
    // To a port where a Sidecar ends TLS.
    let (_, verdict) = explain(world("STRICT", INGRESS), "http://web:83/");
    assert_eq!(verdict, "Reset by the pod that is called: its Sidecar ends TLS on the port, and this is plain text.");
    let (_, verdict) = explain(world("STRICT", INGRESS), "https://web:83/");
    assert!(!verdict.starts_with("Reset"), "{verdict}");
}
