//! ServiceEntries and Services: where connections look for them.

use super::*;

#[test]
fn the_name_decides_and_not_the_address() {
    let text = pod("default", "a", "{}")
        + &entry(
            "default",
            "cnn",
            "{hosts: [edition.cnn.com], ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: https, protocol: HTTPS}], resolution: DNS}",
        )
        + &entry("default", "wild", "{hosts: ['*.wild.com'], ports: [{number: 80, name: http, protocol: HTTP}]}");
    let mesh = mesh(&text).quiet();
    let outbound = mesh.of("default", "a");
    for (host, want) in [
        ("edition.cnn.com", "outbound|80||edition.cnn.com"),
        ("Edition.CNN.com.:80", "outbound|80||edition.cnn.com"),
        ("edition.cnn.com:8080", "outbound|80||edition.cnn.com"),
        ("a.b.wild.com", "outbound|80||*.wild.com"),
        ("wild.com", "passthrough"),
        ("cnn.com", "passthrough"),
        ("", "passthrough"),
    ] {
        assert_eq!(outbound.http(dst("9.9.9.9:80"), host).short(), want, "{host}");
    }
    assert_eq!(outbound.tls(dst("9.9.9.9:443"), Some("edition.cnn.com")).short(), "outbound|443||edition.cnn.com");
    assert_eq!(outbound.tls(dst("9.9.9.9:443"), Some("other.com")).short(), "passthrough");
    assert_eq!(outbound.tls(dst("9.9.9.9:443"), None).short(), "passthrough");
    assert_eq!(outbound.tls(dst("9.9.9.9:80"), Some("edition.cnn.com")).short(), "passthrough");
    assert_eq!(outbound.http(dst("9.9.9.9:443"), "edition.cnn.com").short(), "passthrough");
    assert_eq!(outbound.first_bytes(dst("9.9.9.9:80")), FirstBytes::Sniff);
    assert_eq!(outbound.first_bytes(dst("9.9.9.9:7777")), FirstBytes::Sniff);
    let HttpDecision::Host(host) = outbound.http(dst("9.9.9.9:80"), "edition.cnn.com") else { panic!() };
    assert_eq!(&*host.routes[0].name, "default");
    assert!(host.default_cluster().unwrap().mesh_external);
    assert_eq!(host.name, "edition.cnn.com:80");
}

#[test]
fn tcp_goes_by_address_and_the_longest_prefix_wins() {
    let text = pod("default", "a", "{}")
        + &entry(
            "default",
            "wide",
            "{hosts: [wide.com], addresses: [10.0.0.0/8], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: NONE}",
        )
        + &entry(
            "default",
            "narrow",
            "{hosts: [narrow.com], addresses: [10.1.0.0/16, 'fd00::1'], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: NONE}",
        )
        + &entry(
            "default",
            "web",
            "{hosts: [web.com], addresses: [10.1.2.3], ports: [{number: 5432, name: http, protocol: HTTP}], resolution: DNS}",
        )
        + &entry(
            "default",
            "secure",
            "{hosts: [secure.com], addresses: [10.1.2.4], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}",
        );
    let mesh = mesh(&text).quiet();
    let outbound = mesh.of("default", "a");
    assert_eq!(outbound.tcp(dst("10.9.9.9:5432")).short(), "outbound|5432||wide.com");
    assert_eq!(outbound.tcp(dst("10.1.9.9:5432")).short(), "outbound|5432||narrow.com");
    assert_eq!(outbound.tcp(dst("[::ffff:10.1.9.9]:5432")).short(), "outbound|5432||narrow.com");
    assert_eq!(outbound.tcp(dst("[fd00::1]:5432")).short(), "outbound|5432||narrow.com");
    assert_eq!(outbound.tcp(dst("[fd00::2]:5432")).short(), "passthrough");
    assert_eq!(outbound.tcp(dst("10.1.9.9:5433")).short(), "passthrough");
    assert_eq!(outbound.first_bytes(dst("10.1.9.9:5432")), FirstBytes::None);
    assert_eq!(outbound.first_bytes(dst("11.1.9.9:5432")), FirstBytes::Sniff);
    // A TLS connection to a declared TCP service is just bytes.
    assert_eq!(outbound.tls(dst("10.1.9.9:5432"), Some("x.com")).short(), "outbound|5432||narrow.com");
    // A single address is a Host too, and the way to a TLS service for a hello without a known name.
    assert_eq!(outbound.http(dst("9.9.9.9:5432"), "10.1.2.3:5432").short(), "outbound|5432||web.com");
    assert_eq!(outbound.tls(dst("10.1.2.4:443"), None).short(), "outbound|443||secure.com");
    assert_eq!(outbound.tcp(dst("10.1.2.4:443")).short(), "passthrough");
}

#[test]
fn a_tcp_service_without_addresses_takes_its_port() {
    let text = pod("default", "a", "{}")
        + &entry(
            "default",
            "a-first",
            "{hosts: [db.com], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}",
        )
        + &entry(
            "default",
            "b-second",
            "{hosts: [db2.com], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 192.0.2.2}]}",
        )
        + &entry(
            "default",
            "c-third",
            "{hosts: [db3.com], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: DNS}",
        );
    let mesh = mesh(&text);
    let outbound = mesh.of("default", "a");
    assert_eq!(outbound.first_bytes(dst("9.9.9.9:5432")), FirstBytes::None);
    assert_eq!(outbound.tcp(dst("9.9.9.9:5432")).short(), "outbound|5432||db.com");
    // Its endpoint tells the second apart, where the client dials it.
    assert_eq!(outbound.tcp(dst("192.0.2.2:5432")).short(), "outbound|5432||db2.com");
    let said = mesh.said(Severity::Warning);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("ServiceEntry default/a-first takes those on port 5432 already"), "{said:?}");
}

#[test]
fn endpoints() {
    let text = pod("default", "a", "{}")
        + &entry(
            "default",
            "static",
            "{hosts: [static.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 81, name: alt, protocol: HTTP}],
              endpoints: [{address: 192.0.2.1, weight: 3}, {address: 192.0.2.2, ports: {http: 9090}, labels: {v: two}}]}",
        )
        + &entry(
            "default",
            "dns",
            "{hosts: [dns.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}], endpoints: [{address: one.dns.com}, {address: 192.0.2.9, ports: {http: 7}}]}",
        )
        + &entry("default", "plain-dns", "{hosts: [x.dns.com, y.dns.com], resolution: DNS_ROUND_ROBIN, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]}")
        + &entry("default", "none", "{hosts: ['*.none.com'], resolution: NONE, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}, {number: 81, name: h, protocol: HTTP}]}")
        + &entry("default", "dynamic", "{hosts: ['*.dyn.com'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]}")
        + &entry("default", "unix", "{hosts: [unix.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 'unix:///run/x.sock'}]}")
        + &rule("default", "static", "{host: static.com, subsets: [{name: two, labels: {v: two}}, {name: none, labels: {v: three}}]}");
    let mesh = mesh(&text).quiet();
    let outbound = mesh.of("default", "a");
    let found = |name: &str| outbound.cluster(name).unwrap_or_else(|| panic!("no {name}")).discovery.clone();
    let static_ = |list: &[(&str, u32)]| {
        Discovery::Static(list.iter().map(|(a, weight)| Endpoint::new(EndpointAddress::Ip(dst(a)), *weight)).collect())
    };
    let unix = Endpoint::new(EndpointAddress::Unix("/run/x.sock".into()), 1);
    assert_eq!(found("outbound|80||unix.com"), Discovery::Static(vec![unix]));
    assert_eq!(found("outbound|80||static.com"), static_(&[("192.0.2.1:8080", 3), ("192.0.2.2:9090", 1)]));
    assert_eq!(found("outbound|80|two|static.com"), static_(&[("192.0.2.2:9090", 1)]));
    assert_eq!(found("outbound|81|two|static.com"), static_(&[("192.0.2.2:81", 1)]));
    assert_eq!(found("outbound|80|none|static.com"), static_(&[]));
    let target = |name: &str, port| DnsTarget { name: name.to_owned(), port, weight: 1 };
    assert_eq!(
        found("outbound|80||dns.com"),
        Discovery::Dns { targets: vec![target("one.dns.com", 443), target("192.0.2.9", 7)], one_at_a_time: false }
    );
    assert_eq!(
        found("outbound|80||y.dns.com"),
        Discovery::Dns { targets: vec![target("y.dns.com", 443)], one_at_a_time: true }
    );
    assert_eq!(found("outbound|80||*.none.com"), Discovery::OriginalDestination { port: Some(443) });
    assert_eq!(found("outbound|81||*.none.com"), Discovery::OriginalDestination { port: None });
    assert_eq!(found("outbound|80||*.dyn.com"), Discovery::Dynamic { port: 443 });
}

#[test]
fn what_has_no_endpoint_is_said() {
    let text = entry(
        "default",
        "s",
        "{hosts: [s.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}]}",
    ) + &entry(
        "default",
        "w",
        "{hosts: ['*.w.com'], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}",
    );
    // The reader may refuse such entries already; hand-made objects get here.
    let parsed = parse_file(Arc::from(Path::new("test.yaml")), &text);
    let mut objects = Objects::default();
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    let count = objects.service_entries.len();
    let mesh = compile(&objects, &PodAddresses::new());
    assert_eq!(mesh.said(Severity::Error).len(), count, "{:?}", mesh.diagnostics);
}

#[test]
fn export_to_hides_services() {
    let text = pod("a", "p", "{}")
        + &pod("b", "p", "{}")
        + &entry("a", "own", &format!("{{hosts: [own.com], exportTo: ['.'], {HTTP}}}"))
        + &entry("a", "all", &format!("{{hosts: [all.com], {HTTP}}}"))
        + &entry("a", "b-only", &format!("{{hosts: [b.com], exportTo: [b], {HTTP}}}"));
    let mesh = mesh(&text).quiet();
    let http = |namespace, host| mesh.of(namespace, "p").http(dst("9.9.9.9:80"), host).short();
    assert_eq!(http("a", "own.com"), "outbound|80||own.com");
    assert_eq!(http("b", "own.com"), "passthrough");
    assert_eq!(http("b", "all.com"), "outbound|80||all.com");
    assert_eq!(http("b", "b.com"), "outbound|80||b.com");
    assert_eq!(http("a", "b.com"), "passthrough");
}

const SERVICES: &str = r#"
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{port: 80, name: http, targetPort: named}, {port: 443, name: https, targetPort: 8443}, {port: 5432, name: tcp-db}, {port: 9, protocol: UDP, name: u}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 5432, name: tcp-db}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: shop, annotations: {networking.istio.io/exportTo: "."}}
spec: {clusterIP: 10.96.0.9, selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, v: one}, annotations: {egret.dev/netns: web-1}}
spec: {containers: [{name: c, ports: [{name: named, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: other, containerPort: 8080}]}]}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: web-3, namespace: elsewhere, labels: {app: web}}
status: {podIP: 10.1.0.3}
"#;

#[test]
fn kubernetes_services() {
    let text = SERVICES.to_owned() + &pod("other", "p", "{}");
    let shop = WorkloadId { namespace: "shop".into(), name: "web-1".into() };
    let addresses = PodAddresses::from([(shop, vec![ip("10.1.0.1"), ip("fd00::1")])]);
    let mesh = compile(&objects(&text), &addresses).quiet();
    let (own, other) = (mesh.of("shop", "web-1"), mesh.of("other", "p"));
    let full = "web.shop.svc.cluster.local";
    for host in ["web", "web.shop", "web.shop.svc", full, "10.96.0.1"] {
        assert_eq!(own.http(dst("9.9.9.9:80"), host).short(), format!("outbound|80||{full}"), "{host}");
        let want = if host == "web" { "passthrough".to_owned() } else { format!("outbound|80||{full}") };
        assert_eq!(other.http(dst("9.9.9.9:80"), host).short(), want, "{host}");
    }
    assert_eq!(own.http(dst("9.9.9.9:80"), "hidden").short(), "outbound|80||hidden.shop.svc.cluster.local");
    assert_eq!(other.http(dst("9.9.9.9:80"), "hidden.shop").short(), "passthrough");
    let endpoints = |name: &str| match &own.cluster(name).unwrap().discovery {
        Discovery::Static(list) => list
            .iter()
            .map(|endpoint| match &endpoint.address {
                EndpointAddress::Ip(address) => address.to_string(),
                EndpointAddress::Unix(path) => path.display().to_string(),
            })
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    // web-2 has no port of that name.
    assert_eq!(endpoints(&format!("outbound|80||{full}")), ["10.1.0.1:8080"]);
    assert_eq!(endpoints(&format!("outbound|443||{full}")), ["10.1.0.1:8443", "10.1.0.2:8443"]);
    assert_eq!(own.tls(dst("10.96.0.1:443"), None).short(), format!("outbound|443||{full}"));
    assert_eq!(own.tcp(dst("10.96.0.1:5432")).short(), format!("outbound|5432||{full}"));
    // A headless service: the pod that the client dialled.
    let headless = own.tcp(dst("10.1.0.2:5432"));
    assert_eq!(headless.short(), "outbound|5432||headless.shop.svc.cluster.local");
    assert_eq!(headless.cluster().discovery, Discovery::OriginalDestination { port: None });
    assert_eq!(own.tcp(dst("9.9.9.9:5432")).short(), "passthrough");
    let outside = own.http(dst("9.9.9.9:80"), "outside").cluster().clone();
    assert_eq!(
        outside.discovery,
        Discovery::Dns {
            targets: vec![DnsTarget { name: "www.example.com".to_owned(), port: 80, weight: 1 }],
            one_at_a_time: false
        }
    );
}

#[test]
fn the_same_host_twice() {
    let entries =
        |namespace: &str| entry(namespace, "e", &format!("{{hosts: [web.shop.svc.cluster.local, twice.com], {HTTP}}}"));
    let text = SERVICES.to_owned() + &entries("a") + &entries("b") + &pod("b", "p", "{}") + &pod("c", "p", "{}");
    let mesh = mesh(&text).quiet();
    let by = |namespace, host| {
        let decision = mesh.of(namespace, "p").http(dst("9.9.9.9:80"), host);
        let cluster = decision.cluster();
        format!("{} {}", cluster.service.kind, cluster.service.namespace)
    };
    assert_eq!(by("b", "web.shop.svc.cluster.local"), "ServiceEntry b");
    assert_eq!(by("c", "web.shop.svc.cluster.local"), "Service shop");
    assert_eq!(by("b", "twice.com"), "ServiceEntry b");
    assert_eq!(by("c", "twice.com"), "ServiceEntry a");
    // The hidden Service of seed 1: elsewhere the ServiceEntry of that name counts.
    let hidden = SERVICES.to_owned()
        + &pod("c", "p", "{}")
        + &entry("c", "e", &format!("{{hosts: [hidden.shop.svc.cluster.local], {HTTP}}}"));
    let mesh = super::mesh(&hidden).quiet();
    assert_eq!(
        mesh.of("c", "p").http(dst("9.9.9.9:80"), "hidden.shop.svc.cluster.local").cluster().service.kind,
        "ServiceEntry"
    );
}

#[test]
fn two_entries_of_one_namespace_for_a_host_share_it_by_port() {
    let text = pod("default", "p", "{}")
        + &entry("default", "b", &format!("{{hosts: [x.com], {HTTP}}}"))
        + &entry(
            "default",
            "a",
            "{hosts: [x.com], ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}], resolution: NONE}",
        );
    let mesh = mesh(&text);
    let outbound = mesh.of("default", "p");
    assert_eq!(outbound.http(dst("9.9.9.9:80"), "x.com").cluster().service.name, "a");
    assert_eq!(outbound.tls(dst("9.9.9.9:443"), Some("x.com")).cluster().service.name, "a");
    assert_eq!(mesh.said(Severity::Warning).len(), 1, "{:?}", mesh.diagnostics);
}

#[test]
fn a_service_entry_can_select_pods() {
    let text = SERVICES.to_owned()
        + &entry(
            "shop",
            "e",
            "{hosts: [legacy.com], resolution: STATIC, workloadSelector: {labels: {app: web}}, ports: [{number: 80, name: named, protocol: HTTP, targetPort: 81}]}",
        );
    let mesh = mesh(&text).quiet();
    let cluster = mesh.of("shop", "web-1").http(dst("9.9.9.9:80"), "legacy.com").cluster().clone();
    // web-1 bears no known address here.
    let wanted = Endpoint::new(EndpointAddress::Ip(dst("10.1.0.2:81")), 1);
    assert_eq!(cluster.discovery, Discovery::Static(vec![wanted]));
}

#[test]
fn an_open_port_is_all_things() {
    let text = pod("default", "p", "{}")
        + &entry(
            "default",
            "e",
            "{hosts: [x.com], addresses: [10.0.0.1], ports: [{number: 8000, name: odd, protocol: ''}], resolution: DNS}",
        );
    let parsed = parse_file(Arc::from(Path::new("t")), &text);
    let mut objects = Objects::default();
    parsed.objects.into_iter().for_each(|object| objects.insert(object));
    let mesh = compile(&objects, &PodAddresses::new());
    let outbound = mesh.of("default", "p");
    if outbound.ports.is_empty() {
        return; // The reader demands a protocol.
    }
    assert_eq!(outbound.first_bytes(dst("10.0.0.1:8000")), FirstBytes::Sniff);
    for decision in [
        outbound.http(dst("9.9.9.9:8000"), "x.com").decision(),
        outbound.tls(dst("9.9.9.9:8000"), Some("x.com")),
        outbound.tcp(dst("10.0.0.1:8000")),
    ] {
        assert_eq!(decision.short(), "outbound|8000||x.com");
    }
}
