//! VirtualServices of the mesh: which routes a workload's requests and connections meet.

use super::*;

/// A VirtualService.
fn service(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A Kubernetes Service with these ports.
fn kubernetes(namespace: &str, name: &str, ip: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: {ip}, selector: {{app: {name}}}, ports: {ports}}}\n"
    )
}

/// What meets a request: for each route its name and what it does, `default` routes as their cluster.
fn routes(outbound: &Outbound, port: u16, host: &str) -> String {
    let address = SocketAddr::new(ip("9.9.9.9"), port);
    show(&outbound.http(address, host))
}

fn show(decision: &HttpDecision) -> String {
    let host = match decision {
        HttpDecision::Host(host) => host,
        HttpDecision::NotFound => return "not found".to_owned(),
        other => return other.short(),
    };
    let routes = host.routes.iter().map(|route| {
        let action = match &route.action {
            Action::Forward(forward) => {
                let to = forward.destinations.iter().map(|to| match &to.cluster {
                    ClusterRef::Known(cluster) => format!("{}*{}", cluster.name, to.weight),
                    ClusterRef::Unknown { name, .. } => format!("{name} unknown"),
                    ClusterRef::Invalid { .. } => "invalid".to_owned(),
                });
                to.collect::<Vec<_>>().join("+")
            }
            Action::Redirect(redirect) => format!("redirect {}", redirect.code),
            Action::Direct(direct) => format!("direct {}", direct.status),
            Action::Refuse(_) => "refuse".to_owned(),
        };
        format!("[{}] {action}", route.name)
    });
    routes.collect::<Vec<_>>().join(", ")
}

fn to(host: &str) -> String {
    format!("route: [{{destination: {{host: {host}}}}}]")
}

#[test]
fn all_names_and_ports_of_a_service_lead_to_its_routes() {
    let text = pod("shop", "p", "{}")
        + &pod("other", "p", "{}")
        + &kubernetes(
            "shop",
            "web",
            "10.96.0.1",
            "[{port: 80, name: http}, {port: 8080, name: http-alt}, {port: 90, name: tcp-x}]",
        )
        + &kubernetes("shop", "next", "10.96.0.2", "[{port: 81, name: http}]")
        + &service(
            "shop",
            "v",
            "{hosts: [web], http: [{name: a, match: [{port: 8080, uri: {prefix: /x}, name: m}], route: [{destination: {host: next}}]}, {name: rest, route: [{destination: {host: web, port: {number: 80}}, weight: 3}, {destination: {host: next}, weight: 1}]}]}",
        );
    let mesh = mesh(&text);
    let nobody = ["web", "next"]
        .map(|app| format!("spec.selector: no pod of namespace shop bears app={app}: requests get 503 (UH)"));
    assert_eq!(mesh.said(Severity::Warning), nobody);
    let rest = "[rest] outbound|80||web.shop.svc.cluster.local*3+outbound|81||next.shop.svc.cluster.local*1";
    let alt = format!("[a.m] outbound|81||next.shop.svc.cluster.local*1, {rest}");
    let own = mesh.of("shop", "p");
    for host in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "10.96.0.1"] {
        assert_eq!(routes(own, 80, host), rest, "{host}");
        assert_eq!(routes(own, 8080, host), alt, "{host}");
    }
    let other = mesh.of("other", "p");
    assert_eq!(routes(other, 80, "web.shop"), rest);
    assert_eq!(routes(other, 80, "web"), "passthrough");
    assert_eq!(routes(own, 90, "web"), "passthrough");
    let HttpDecision::Host(host) = own.http(dst("9.9.9.9:8080"), "web") else { panic!() };
    assert_eq!(host.name, "web.shop.svc.cluster.local:8080");
    assert_eq!(host.routes[0].source.as_ref().unwrap().to_string(), "VirtualService shop/v");
}

#[test]
fn a_host_without_service_on_the_port_is_served_on_80_only() {
    let text = pod("a", "p", "{}")
        + &entry("a", "e", "{hosts: [x.com], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}")
        + &entry("a", "to", &format!("{{hosts: [to.com], {HTTP}}}"))
        + &service("a", "v", &format!("{{hosts: [x.com, '*.y.com'], http: [{{{}}}]}}", to("to.com")));
    let mesh = mesh(&text).quiet();
    let outbound = mesh.of("a", "p");
    for (port, host, want) in [
        (80, "x.com", "[] outbound|80||to.com*1"),
        (80, "b.y.com", "[] outbound|80||to.com*1"),
        (81, "x.com", "passthrough"),
        (443, "x.com", "passthrough"),
    ] {
        assert_eq!(routes(outbound, port, host), want, "{host}:{port}");
    }
}

#[test]
fn the_most_specific_host_and_then_the_oldest_decide_without_merging() {
    let text = pod("a", "p", "{}")
        + &pod("b", "p", "{}")
        + &entry("a", "e", &format!("{{hosts: [x.foo.com, y.foo.com], {HTTP}}}"))
        + &entry(
            "a",
            "f",
            "{hosts: ['*.bar.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}",
        )
        + &service("b", "a-wild", "{hosts: ['*.foo.com'], http: [{name: wild, directResponse: {status: 201}}]}")
        + &service(
            "b",
            "b-first",
            "{hosts: [x.foo.com], http: [{name: first, match: [{uri: {exact: /}}], directResponse: {status: 202}}]}",
        )
        + &service("b", "c-second", "{hosts: [x.foo.com], http: [{name: second, directResponse: {status: 203}}]}")
        + &service(
            "b",
            "d-private",
            "{hosts: [x.foo.com], exportTo: ['.'], http: [{name: private, directResponse: {status: 204}}]}",
        )
        + &service(
            "b",
            "e-bar",
            "{hosts: ['*.bar.com'], http: [{name: none, match: [{port: 99}], directResponse: {status: 205}}]}",
        );
    let mesh = mesh(&text);
    let outbound = mesh.of("a", "p");
    for (host, want) in [
        ("x.foo.com", "[first] direct 202"),
        ("y.foo.com", "[wild] direct 201"),
        // It has nothing to say on this port.
        ("z.bar.com", "[default] outbound|80||*.bar.com*1"),
    ] {
        assert_eq!(routes(outbound, 80, host), want, "{host}");
    }
    assert_eq!(routes(mesh.of("b", "p"), 80, "x.foo.com"), "[private] direct 204");
    let said = mesh.said(Severity::Warning).join("\n");
    assert!(said.contains("spec.hosts[0]: VirtualService b/b-first goes first for this host"), "{said}");
}

#[test]
fn static_matches_are_decided_for_each_workload_and_tables_shared() {
    let text = pod("a", "p", "{app: one}")
        + &pod("a", "q", "{app: two}")
        + &pod("a", "r", "{}")
        + &pod("b", "p", "{app: one}")
        + &entry("a", "e", &format!("{{hosts: [x.com, y.com], {HTTP}}}"))
        + &service(
            "a",
            "v",
            "{hosts: [x.com], gateways: [mesh, gw], http: [{name: gw, match: [{gateways: [gw]}], directResponse: {status: 200}}, {name: one, match: [{sourceLabels: {app: one}, sourceNamespace: a}], directResponse: {status: 201}}, {name: ignored, match: [{gateways: [mesh], sourceLabels: {app: nobody}, uri: {prefix: /i}}], directResponse: {status: 202}}, {name: b, match: [{sourceNamespace: b}], directResponse: {status: 203}}]}",
        );
    let mesh = mesh(&text);
    for (namespace, name, want) in [
        ("a", "p", "[one] direct 201, [ignored] direct 202"),
        ("a", "q", "[ignored] direct 202"),
        ("a", "r", "[ignored] direct 202"),
        ("b", "p", "[ignored] direct 202, [b] direct 203"),
    ] {
        let want = if name == "p" && namespace == "a" { "[one] direct 201" } else { want };
        assert_eq!(routes(mesh.of(namespace, name), 80, "x.com"), want, "{namespace}/{name}");
        assert_eq!(routes(mesh.of(namespace, name), 80, "y.com"), "[default] outbound|80||y.com*1");
    }
    let table = |name: &str| std::ptr::from_ref(mesh.of("a", name));
    assert_eq!(table("q"), table("r"), "the same routes, the same table");
    assert!(mesh.of("a", "p").clusters.is_empty(), "a layer has only what differs");
}

#[test]
fn a_layer_leads_to_its_own_clusters() {
    let text = pod("a", "p", "{app: one}")
        + &pod("a", "q", "{}")
        + &entry("a", "e", &format!("{{hosts: [x.com, y.com], {HTTP}}}"))
        + &rule(
            "a",
            "own",
            "{host: x.com, workloadSelector: {matchLabels: {app: one}}, subsets: [{name: s}], trafficPolicy: {tls: {mode: SIMPLE}}}",
        )
        + &service("a", "x", "{hosts: [x.com], http: [{route: [{destination: {host: x.com, subset: s}}]}]}")
        + &service("a", "y", &format!("{{hosts: [y.com], http: [{{{}}}]}}", to("x.com")));
    let mesh = mesh(&text);
    let encrypts = |name: &str, host: &str| {
        let HttpDecision::Host(host) = mesh.of("a", name).http(dst("9.9.9.9:80"), host) else { panic!() };
        host.clusters().map(|cluster| cluster.tls.encrypts()).collect::<Vec<_>>()
    };
    assert_eq!(encrypts("p", "x.com"), [true]);
    assert_eq!(encrypts("p", "y.com"), [true], "a route of another host to the cluster that differs");
    assert_eq!(encrypts("q", "y.com"), [false]);
    assert_eq!(routes(mesh.of("a", "q"), 80, "x.com"), "[] outbound|80|s|x.com unknown");
}

#[test]
fn destinations_that_are_not_there_are_told_and_never_another_service() {
    let text = pod("a", "p", "{}")
        + &entry("a", "e", &format!("{{hosts: [x.com], {HTTP}}}"))
        + &service(
            "a",
            "v",
            "{hosts: [x.com], http: [{match: [{uri: {exact: /1}}], route: [{destination: {host: gone}}]}, {match: [{uri: {exact: /2}}], route: [{destination: {host: x.com, port: {number: 81}}}]}, {match: [{uri: {exact: /3}}], route: [{destination: {host: x.com, subset: s}}], mirror: {host: gone.com}}, {redirect: {uri: /}}, {directResponse: {status: 200}}]}",
        );
    let mesh = mesh(&text);
    assert_eq!(
        routes(mesh.of("a", "p"), 80, "x.com"),
        "[] outbound|80||gone.a.svc.cluster.local unknown, [] outbound|81||x.com unknown, [] outbound|80|s|x.com unknown, [] redirect 301"
    );
    assert_eq!(
        mesh.said(Severity::Error),
        [
            "spec.http[0].route[0].destination.host: there is no ServiceEntry or Service gone.a.svc.cluster.local: requests get 503 (NC)",
            "spec.http[1].route[0].destination.port.number: x.com has no port 81 (it has 80): requests get 503 (NC)",
            "spec.http[2].route[0].destination.subset: no DestinationRule gives x.com a subset s: requests get 503 (NC)",
            "spec.http[2].mirror.host: there is no ServiceEntry or Service gone.com: requests get 503 (NC)",
        ]
    );
    assert_eq!(mesh.said(Severity::Warning), ["spec.http[4]: never reached: spec.http[3] takes every request"]);
}

/// A route that takes all connections of some workloads leaves nothing to the narrower one that the others have.
#[test]
fn a_tcp_route_for_some_is_not_passed_by_those_of_all() {
    let to = |host: &str| format!("route: [{{destination: {{host: {host}}}}}]");
    let text = pod("a", "p", "{app: x}")
        + &pod("a", "q", "{app: y}")
        + &entry(
            "a",
            "e",
            "{hosts: [x.com], addresses: [10.0.0.0/8], ports: [{number: 80, name: tcp, protocol: TCP}], resolution: NONE}",
        )
        + &entry(
            "a",
            "f",
            "{hosts: [y.com], addresses: [11.0.0.1], ports: [{number: 80, name: tcp, protocol: TCP}], resolution: DNS}",
        )
        + &entry(
            "a",
            "g",
            "{hosts: [z.com], addresses: [11.0.0.2], ports: [{number: 80, name: tcp, protocol: TCP}], resolution: DNS}",
        )
        + &service(
            "a",
            "v",
            &format!(
                "{{hosts: [x.com], tcp: [{{match: [{{sourceLabels: {{app: x}}}}], {}}}, {{match: [{{destinationSubnets: [10.1.0.0/16]}}], {}}}]}}",
                to("y.com"),
                to("z.com")
            ),
        );
    let mesh = mesh(&text);
    let went = |name: &str, address: &str| mesh.of("a", name).tcp(dst(address)).short();
    assert_eq!(went("p", "10.1.0.1:80"), "outbound|80||y.com 1");
    assert_eq!(went("p", "10.2.0.1:80"), "outbound|80||y.com 1");
    assert_eq!(went("q", "10.1.0.1:80"), "outbound|80||z.com 1");
    assert_eq!(went("q", "10.2.0.1:80"), "outbound|80||x.com");
}

/// What no Host can be is refused: else the client's own Host would go where the certificate of another name was checked.
#[test]
fn authorities_that_are_none_are_refused() {
    for (action, field) in [
        ("rewrite: {authority: 'https://y.com'}, TO", "rewrite.authority"),
        ("rewrite: {authority: \"y.com\\r\\nX: y\"}, TO", "rewrite.authority"),
        ("headers: {request: {set: {host: 'y.com/z'}}}, TO", "headers.request"),
        (
            "route: [{destination: {host: x.com}, headers: {request: {set: {':authority': 'a b'}}}}]",
            "route[0].headers.request",
        ),
        ("redirect: {authority: 'user@y.com'}", "redirect.authority"),
    ] {
        let action = action.replace("TO", "route: [{destination: {host: x.com}}]");
        let text = pod("a", "p", "{}")
            + &entry("a", "e", &format!("{{hosts: [x.com], {HTTP}}}"))
            + &service("a", "v", &format!("{{hosts: [x.com], http: [{{{action}}}]}}"));
        let mesh = mesh(&text);
        let HttpDecision::Host(host) = mesh.of("a", "p").http(dst("9.9.9.9:80"), "x.com") else { panic!("{action}") };
        assert!(matches!(&host.routes[0].action, Action::Refuse(_)), "{action}: {:?}", host.routes[0].action);
        let said = mesh.said(Severity::Error);
        assert!(said.len() == 1 && said[0].starts_with(&format!("spec.http[0].{field}: ")), "{action}: {said:?}");
    }
    for fine in ["y.com", "y.com:81", "[::1]:80", "10.0.0.1", "y_z"] {
        assert!(super::super::host::is_authority(fine), "{fine}");
    }
}

#[test]
fn delegates() {
    let text = pod("a", "p", "{}")
        + &entry("a", "e", &format!("{{hosts: [x.com], {HTTP}}}"))
        + &service(
            "a",
            "root",
            "{hosts: [x.com], http: [{name: r, match: [{uri: {prefix: /d}}], timeout: 3s, delegate: {name: d, namespace: b}}, {match: [{uri: {prefix: /gone}}], delegate: {name: gone}}, {name: rest, directResponse: {status: 200}}]}",
        )
        + &service(
            "b",
            "d",
            "{http: [{name: one, match: [{uri: {exact: /d/1}, method: {exact: GET}}], route: [{destination: {host: x.com}}]}, {name: out, match: [{uri: {exact: /e}}], route: [{destination: {host: x.com}}]}, {route: [{destination: {host: x.com}}], timeout: 1s}]}",
        )
        + &service("b", "unused", &format!("{{http: [{{{}}}]}}", to("x.com")));
    let mesh = mesh(&text);
    let outbound = mesh.of("a", "p");
    let to = "outbound|80||x.com*1";
    assert_eq!(routes(outbound, 80, "x.com"), format!("[r-one] {to}, [r] {to}, [] refuse, [rest] direct 200"));
    let HttpDecision::Host(host) = outbound.http(dst("9.9.9.9:80"), "x.com") else { panic!() };
    let timeouts = host.routes.iter().map(|route| match &route.action {
        Action::Forward(forward) => forward.timeout.map(|timeout| timeout.as_secs()),
        _ => None,
    });
    assert_eq!(timeouts.collect::<Vec<_>>(), [Some(3), Some(1), None, None]);
    assert!(matches!(&host.routes[1].matches.path, Some(TextMatch::Prefix(path)) if path == "/d"));
    assert_eq!(
        mesh.said(Severity::Error),
        ["spec.http[1].delegate: there is no VirtualService a/gone: requests that this route takes are refused"]
    );
    let said = mesh.said(Severity::Warning);
    assert!(said.iter().any(|line| line.starts_with("spec.http[1].match: not within")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("no VirtualService delegates to it")), "{said:?}");
}

#[test]
fn raw_connections_follow_tls_and_tcp_routes() {
    let text = pod("a", "p", "{}")
        + &pod("a", "q", "{app: one}")
        + &entry(
            "a",
            "tls",
            "{hosts: ['*.x.com'], ports: [{number: 443, name: tls, protocol: TLS}], resolution: NONE}",
        )
        + &entry(
            "a",
            "db",
            "{hosts: [db.com], addresses: [10.0.0.0/8], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: NONE}",
        )
        + &entry(
            "a",
            "one",
            "{hosts: [one.com], addresses: [10.1.1.1], ports: [{number: 5432, name: tcp, protocol: TCP}], resolution: NONE}",
        )
        + &entry(
            "a",
            "to",
            "{hosts: [to.com], ports: [{number: 9000, name: tcp, protocol: TCP}, {number: 443, name: tls, protocol: TLS}], resolution: DNS}",
        )
        + &service(
            "a",
            "v",
            "{hosts: ['*.x.com'], tls: [{match: [{port: 443, sniHosts: [a.x.com]}], route: [{destination: {host: to.com}, weight: 3}, {destination: {host: to.com, port: {number: 9000}}, weight: 1}]}, {match: [{sniHosts: ['*.x.com'], sourceLabels: {app: one}}], route: [{destination: {host: to.com}}]}]}",
        )
        + &service(
            "a",
            "w",
            "{hosts: [db.com], tcp: [{match: [{destinationSubnets: [10.2.0.0/16]}], route: [{destination: {host: to.com, port: {number: 443}}}]}, {match: [{port: 5432}], route: [{destination: {host: to.com, port: {number: 9000}}}]}]}",
        );
    let mesh = mesh(&text).quiet();
    let outbound = mesh.of("a", "p");
    let tls = |outbound: &Outbound, sni: &str| outbound.tls(dst("9.9.9.9:443"), Some(sni)).short();
    assert_eq!(tls(outbound, "a.x.com"), "outbound|443||to.com 3, outbound|9000||to.com 1");
    assert_eq!(tls(outbound, "b.x.com"), "outbound|443||*.x.com");
    assert_eq!(tls(mesh.of("a", "q"), "b.x.com"), "outbound|443||to.com 1");
    assert_eq!(tls(mesh.of("a", "q"), "a.x.com"), "outbound|443||to.com 3, outbound|9000||to.com 1");
    for (address, want) in [
        ("10.2.3.4:5432", "outbound|443||to.com 1"),
        ("10.3.3.4:5432", "outbound|9000||to.com 1"),
        ("10.1.1.1:5432", "outbound|5432||one.com"),
        ("11.1.1.1:5432", "passthrough"),
    ] {
        assert_eq!(outbound.tcp(dst(address)).short(), want, "{address}");
    }
}

#[test]
fn a_route_of_its_own_does_not_open_what_a_rule_guards() {
    let guard = "trafficPolicy: {tls: {mode: SIMPLE}}";
    let text = pod("a", "p", "{}")
        + &entry(
            "a",
            "wild",
            "{hosts: ['*.wild.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DYNAMIC_DNS}",
        )
        + &entry("a", "egress", &format!("{{hosts: [egress.com], {HTTP}}}"))
        + &rule("a", "r", &format!("{{host: secret.wild.com, {guard}}}"))
        + &rule("a", "s", &format!("{{host: x.com, {guard}}}"))
        + &service(
            "a",
            "v",
            "{hosts: ['*.wild.com'], http: [{match: [{uri: {prefix: /}}], timeout: 1s, route: [{destination: {host: egress.com}}]}]}",
        )
        + &service("a", "w", &format!("{{hosts: [x.com], http: [{{{}}}]}}", to("egress.com")));
    let mesh = mesh(&text);
    let outbound = mesh.of("a", "p");
    // To another service explicitly: that service's policy counts.
    assert_eq!(routes(outbound, 80, "x.com"), "[] outbound|80||egress.com*1");
    assert_eq!(routes(outbound, 80, "secret.wild.com"), "[] outbound|80||egress.com*1");
    assert_eq!(routes(outbound, 81, "x.com"), "refuse");
}

#[test]
fn a_gateway_serves_what_it_and_its_virtual_services_have_in_common() {
    let gateway = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: g}\nspec: {selector: {istio: gw}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['a/*.foo.com', bar.com]}]}\n";
    let bound = |namespace: &str, name: &str, host: &str, http: &str| {
        service(namespace, name, &format!("{{hosts: [{host}], gateways: [g/gw], http: [{http}]}}"))
    };
    let text = pod("g", "gw", "{istio: gw}")
        + gateway
        + &bound("a", "one", "x.foo.com", "{name: all, directResponse: {status: 200}}")
        + &bound(
            "a",
            "two",
            "'*.foo.com', x.foo.com",
            "{name: p, match: [{uri: {prefix: /p}}], directResponse: {status: 201}}",
        )
        + &bound("b", "three", "y.foo.com", "{name: foreign, directResponse: {status: 202}}")
        + &bound(
            "c",
            "four",
            "'*'",
            "{name: star, match: [{port: 80, sourceLabels: {istio: gw}}], directResponse: {status: 203}}",
        )
        + &bound("c", "five", "bar.com", "{name: elsewhere, match: [{port: 8080}], directResponse: {status: 204}}");
    let mesh = mesh(&text);
    let id = WorkloadId { namespace: "g".into(), name: "gw".into() };
    let table = mesh.workloads[&id].gateway.clone().expect("a gateway");
    let listener = ListenerId { bind: None, port: 80 };
    for (host, want) in [
        ("x.foo.com", "[p] direct 201, [all] direct 200"),
        ("y.foo.com", "[p] direct 201"),
        ("bar.com:80", "[star] direct 203"),
        ("other.com", "not found"),
    ] {
        assert_eq!(show(&table.http(listener, None, host)), want, "{host}");
    }
}

#[test]
fn ten_thousand_routed_hosts_are_made_once() {
    let mut objects = objects(
        &(entry("a", "e", &format!("{{hosts: [x.com], {HTTP}}}"))
            + &service(
                "a",
                "v",
                "{hosts: ['*.example.com'], http: [{match: [{sourceLabels: {app: p1}}], directResponse: {status: 201}}, {directResponse: {status: 200}}]}",
            )),
    );
    let template = objects.service_entries.values().next().unwrap().clone();
    for index in 0..10_000 {
        let mut object = (*template).clone();
        object.meta.name = format!("e{index}").into();
        object.id =
            crate::api::ObjectId::new(object.id.kind, object.meta.namespace.as_str(), object.meta.name.as_str());
        object.spec.hosts = vec![format!("host-{index}.example.com").into()];
        objects.service_entries.insert(Arc::new(object));
    }
    for index in 0..100 {
        let made =
            super::objects(&pod(&format!("n{}", index % 10), &format!("p{index}"), &format!("{{app: p{index}}}")));
        objects.pods.extend(made.pods.values().cloned());
    }
    let started = std::time::Instant::now();
    let mesh = compile(&objects, &PodAddresses::new());
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{:?}", started.elapsed());
    let tables: std::collections::HashSet<_> = mesh.workloads.values().map(|w| Arc::as_ptr(&w.outbound)).collect();
    assert_eq!(tables.len(), 2, "one shared table, and one for the pod with labels of its own");
    assert_eq!(routes(mesh.of("n1", "p1"), 80, "host-7.example.com"), "[] direct 201");
    assert_eq!(routes(mesh.of("n2", "p2"), 80, "host-7.example.com"), "[] direct 200");
}
