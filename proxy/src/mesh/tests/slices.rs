//! EndpointSlices: whose endpoints they are, which of them are used, and who they are.

use super::*;

const WEB: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, name: http, targetPort: named}, {port: 81, name: alt, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 5432, name: tcp-db}]}
---
apiVersion: v1
kind: Service
metadata: {name: early, namespace: shop}
spec: {clusterIP: 10.96.0.3, publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, v: one}}
spec: {serviceAccountName: web, containers: [{name: c, ports: [{name: named, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: named, containerPort: 9090}]}]}
status: {podIP: 10.1.0.2}
"#;

/// A slice in namespace `shop` with these endpoints (flow style); `ports` likewise.
fn slice(service: &str, name: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-{name}, namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: {ports}\nendpoints: {endpoints}\n"
    )
}

/// An endpoint that is this pod's, under these conditions.
fn of(pod: &str, address: &str, conditions: &str) -> String {
    format!("{{addresses: [{address}], conditions: {{{conditions}}}, targetRef: {{kind: Pod, name: {pod}}}}}")
}

fn with(more: &str) -> Mesh {
    mesh(&(pod("shop", "client", "{}") + "---" + WEB + more))
}

fn endpoints(mesh: &Mesh, cluster: &str) -> Vec<String> {
    let name = format!("outbound|{cluster}.shop.svc.cluster.local");
    let found = mesh.of("shop", "client").cluster(&name).unwrap_or_else(|| panic!("no {name}"));
    match &found.discovery {
        Discovery::Static(list) => {
            let addresses = list.iter().map(|endpoint| match &endpoint.address {
                EndpointAddress::Ip(address) => address.to_string(),
                EndpointAddress::Unix(path) => path.display().to_string(),
            });
            addresses.collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn slices_decide_where_there_are_any() {
    let none = with("").quiet();
    assert_eq!(endpoints(&none, "80||web"), ["10.1.0.1:8080", "10.1.0.2:9090"], "by selector");
    assert_eq!(
        none.of("shop", "client").cluster("outbound|80||outside.shop.svc.cluster.local").unwrap().discovery,
        Discovery::OriginalDestination { port: None }
    );
    // Ports are as each slice says, whatever pods call them; one that is not there is no endpoint of that port.
    let ports =
        "[{name: http, port: 1111}, {name: alt, port: 2222, protocol: TCP}, {name: alt, port: 3333, protocol: UDP}]";
    let all = slice("web", "a", ports, &format!("[{}]", of("web-1", "10.1.0.1", "ready: true")))
        + &slice("web", "b", "[{name: http, port: 4444}]", &format!("[{}]", of("web-2", "10.1.0.2", "")))
        + &slice("outside", "a", "[{port: 8080}]", "[{addresses: [192.0.2.1]}, {addresses: [192.0.2.2]}]");
    let mesh = with(&all).quiet();
    assert_eq!(endpoints(&mesh, "80||web"), ["10.1.0.1:1111", "10.1.0.2:4444"]);
    assert_eq!(endpoints(&mesh, "81||web"), ["10.1.0.1:2222"]);
    assert_eq!(endpoints(&mesh, "80||outside"), ["192.0.2.1:8080", "192.0.2.2:8080"]);
    // One that holds none says that there is none.
    assert!(endpoints(&with(&slice("web", "a", "[{name: http}]", "[]")).quiet(), "80||web").is_empty());
    // An endpoint that moves from slice to slice is in both for a moment.
    let twice = slice("web", "a", "[{name: http}]", &format!("[{}]", of("web-1", "10.1.0.1", "ready: false")))
        + &slice("web", "b", "[{name: http}]", &format!("[{}]", of("web-1", "10.1.0.1", "ready: true")));
    assert_eq!(
        endpoints(&with(&twice).quiet(), "80||web"),
        ["10.1.0.1:80"],
        "and without a number it is the Service's"
    );
}

#[test]
fn conditions() {
    let web = |service: &str, one: &str, two: &str| {
        let text = slice(
            service,
            "a",
            "[{name: http, port: 80}]",
            &format!("[{}, {}]", of("web-1", "10.1.0.1", one), of("web-2", "10.1.0.2", two)),
        );
        let found = endpoints(&with(&text).quiet(), &format!("80||{service}"));
        found.iter().map(|address| address[7..8].to_owned()).collect::<String>()
    };
    let ending = "ready: false, serving: true, terminating: true";
    let ended = "ready: false, serving: false, terminating: true";
    for (one, two, used, published) in [
        ("ready: true", "ready: false", "1", "12"),
        ("", "ready: null", "12", "12"),
        ("ready: false", "ready: false", "", "12"),
        ("ready: true", ending, "1", "1"),
        (ending, ending, "12", "12"),
        (ending, ended, "1", "1"),
        (ended, ended, "", ""),
        // Nobody who is not about to end can serve.
        ("ready: false", ending, "2", "1"),
        ("ready: true, terminating: true", "ready: true", "2", "2"),
    ] {
        assert_eq!(web("web", one, two), used, "{one} | {two}");
        assert_eq!(web("early", one, two), published, "published: {one} | {two}");
    }
}

#[test]
fn pods_behind_slices_are_who_they_are() {
    let enrolled =
        WEB.replace("labels: {app: web, v: one}", "labels: {app: web, v: one}, annotations: {egret.dev/netns: w}");
    let text = pod("shop", "client", "{}")
        + "---"
        + &enrolled
        + &slice(
            "web",
            "a",
            "[{name: http, port: 8080}]",
            // The first and the last are the same pod: one says so.
            &format!("[{}, {}, {{addresses: [192.0.2.1]}}]", of("web-1", "10.1.0.1", ""), of("web-2", "10.1.0.2", "")),
        )
        + &slice("outside", "a", "[{port: 8080}]", "[{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]")
        + &rule("shop", "web", "{host: web, subsets: [{name: one, labels: {v: one}}]}");
    let mesh = mesh(&text).quiet();
    let peers = |cluster: &str| {
        let name = format!("outbound|{cluster}.shop.svc.cluster.local");
        let Discovery::Static(list) = mesh.of("shop", "client").cluster(&name).unwrap().discovery.clone() else {
            panic!()
        };
        list.iter()
            .map(|one| one.peer.as_ref().map_or("-".to_owned(), |peer| peer.identity.to_string()))
            .collect::<Vec<_>>()
    };
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(peers("80||web"), [web, "-", "-"]);
    assert_eq!(peers("80||outside"), [web, "-"], "an enrolled pod is one by its address too");
    assert_eq!(endpoints(&mesh, "80|one|web"), ["10.1.0.1:8080"]);
}

#[test]
fn a_pod_that_is_not_known_is_no_endpoint() {
    let text = slice("web", "a", "[{name: http, port: 80}]", &format!("[{}]", of("later", "10.1.0.7", "ready: true")));
    let mesh = with(&text);
    assert!(endpoints(&mesh, "80||web").is_empty(), "whether it wants mesh mTLS is not known");
    assert_eq!(
        mesh.said(Severity::Warning),
        ["endpoints[0].targetRef.name: there is no such Pod: this endpoint is ignored"]
    );
    // In a cluster it may only be late.
    let mut objects = objects(&(WEB.to_owned() + &text));
    objects.node = Some("one".into());
    assert!(compile(&objects, &PodAddresses::new()).diagnostics.is_empty());
}

#[test]
fn rules_hold_for_whoever_dials_an_endpoint_of_a_headless_service() {
    let text = slice(
        "each",
        "a",
        "[{name: tcp-db, port: 5432}]",
        &format!("[{}, {}]", of("web-1", "10.1.0.1", "ready: false"), of("web-2", "10.1.0.2", "")),
    ) + &rule("shop", "each", "{host: each, trafficPolicy: {tls: {mode: SIMPLE}}}");
    let mesh = with(&text);
    for address in ["10.1.0.1:5432", "10.1.0.2:5432"] {
        let found = mesh.of("shop", "client").tcp(dst(address));
        assert!(found.cluster().tls.encrypts(), "{address}: {}", found.short());
    }
}

#[test]
fn families_are_those_of_the_service() {
    let ipv6 = slice("web", "six", "[{name: http, port: 80}]", "[{addresses: ['fd00::1']}]").replace("IPv4", "IPv6");
    let ipv4 = slice("web", "four", "[{name: http, port: 80}]", "[{addresses: [10.1.0.1]}]");
    assert_eq!(endpoints(&with(&(ipv6 + &ipv4)).quiet(), "80||web"), ["10.1.0.1:80"]);
    let names = slice("web", "names", "[{name: http, port: 80}]", "[{addresses: [a.com]}]").replace("IPv4", "FQDN");
    let parsed = parse_file(Arc::from(Path::new("test.yaml")), &names);
    assert_eq!(parsed.diagnostics.len(), 1, "{:?}", parsed.diagnostics);
    assert!(parsed.diagnostics[0].message.contains("FQDN is not honoured"));
}
