//! Parents: which listeners and services take a route, and what is said where none does.

use super::*;

/// Conditions of the parents of the route `r`.
fn parents(made: &Converted) -> Vec<String> {
    let of_route = made.statuses.iter().filter(|status| status.object.kind == "HTTPRoute");
    of_route.flat_map(|status| &status.conditions).map(|condition| condition.reason.to_owned()).collect()
}

#[test]
fn listeners_take_routes_by_name_port_host_kind_and_namespace() {
    let gateway = gateway(
        "gw",
        "[{name: a, port: 80, protocol: HTTP, hostname: '*.a.com', allowedRoutes: {namespaces: {from: All}}}, \
         {name: b, port: 81, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: x}}}}}, \
         {name: c, port: 82, protocol: HTTP, hostname: c.com, allowedRoutes: {kinds: [{kind: GRPCRoute}], namespaces: {from: All}}}]",
    );
    let namespaces = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {team: x}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: y}\n";
    let common = gateway + namespaces;
    for (namespace, spec, hosts, reason) in [
        ("x", "parentRefs: [{name: gw, namespace: default}]", &["a *.a.com", "b *"][..], "Accepted"),
        ("y", "parentRefs: [{name: gw, namespace: default}]", &["a *.a.com"], "Accepted"),
        (
            "y",
            "parentRefs: [{name: gw, namespace: default}], hostnames: [x.a.com, b.com, '*.com']",
            &["a *.a.com", "a x.a.com"],
            "Accepted",
        ),
        ("y", "parentRefs: [{name: gw, namespace: default, sectionName: b}]", &[], "NotAllowedByListeners"),
        ("x", "parentRefs: [{name: gw, namespace: default, sectionName: b}]", &["b *"], "Accepted"),
        ("x", "parentRefs: [{name: gw, namespace: default, port: 81}]", &["b *"], "Accepted"),
        ("x", "parentRefs: [{name: gw, namespace: default, port: 83}]", &[], "NoMatchingParent"),
        ("x", "parentRefs: [{name: gw, namespace: default, sectionName: z}]", &[], "NoMatchingParent"),
        ("x", "parentRefs: [{name: gw}]", &[], "NoMatchingParent"),
        ("y", "parentRefs: [{name: gw, namespace: default}], hostnames: [b.com]", &[], "NotAllowedByListeners"),
        (
            "y",
            "parentRefs: [{name: gw, namespace: default, sectionName: a}], hostnames: [a.com]",
            &[],
            "NoMatchingListenerHostname",
        ),
        ("y", "parentRefs: [{name: gw, namespace: default, sectionName: c}]", &[], "NotAllowedByListeners"),
    ] {
        let made = converted(&(common.clone() + &route(namespace, "r", &format!("{{{spec}}}"))));
        let found: Vec<_> = made.routes().into_keys().collect();
        assert_eq!(found, hosts, "{namespace} {spec}");
        assert_eq!(parents(&made)[0], reason, "{namespace} {spec}");
        let errors = made.said.iter().filter(|said| said.contains("error: HTTPRoute")).count();
        assert_eq!(errors, usize::from(reason != "Accepted"), "{:?}", made.said);
    }
}

#[test]
fn a_refused_parent_is_told_at_its_place() {
    let made =
        converted(&(gateway("gw", LISTENER) + &route("default", "r", "{parentRefs: [{name: gw}, {name: none}]}")));
    assert_eq!(
        made.said,
        [
            "10:33: error: HTTPRoute default/r: spec.parentRefs[1]: there is no Gateway default/none: the route is not attached there"
        ]
    );
    assert_eq!(
        made.conditions()["r parent Gateway default/none"],
        ["!Accepted=NoMatchingParent", "ResolvedRefs=ResolvedRefs"]
    );
    let listener = made.statuses.iter().find(|status| status.about.to_string() == "listener web").expect("a listener");
    assert_eq!(listener.conditions[0].message, "1 route attached");
}

#[test]
fn a_narrower_listener_takes_its_hosts_alone() {
    let listeners = "[{name: wide, port: 80, protocol: HTTP}, {name: narrow, port: 80, protocol: HTTP, hostname: '*.a.com'}, {name: other, port: 81, protocol: HTTP, hostname: b.com}]";
    let routes = route("default", "r", "{parentRefs: [{name: gw, sectionName: wide}], hostnames: [x.a.com, b.com]}")
        + &route("default", "s", "{parentRefs: [{name: gw, sectionName: wide}], hostnames: [x.a.com]}");
    let made = converted(&(gateway("gw", listeners) + &routes));
    assert_eq!(made.routes().into_keys().collect::<Vec<_>>(), ["wide b.com"]);
    assert_eq!(
        made.conditions()["s parent Gateway default/gw section wide"][0],
        "!Accepted=NoMatchingListenerHostname"
    );
}

#[test]
fn conflicting_listeners_are_not_served() {
    let listeners = "[{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}, \
        {name: c, port: 80, protocol: HTTP, hostname: c.com}, \
        {name: d, port: 80, protocol: HTTPS, tls: {options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}}, \
        {name: e, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: none}, {name: there, namespace: other}]}}]";
    let made =
        converted(&(gateway("gw", listeners) + &super::super::secret("other", "there", &["tls.crt", "tls.key"])));
    let gateways: Vec<_> =
        made.objects.gateways.keys().map(|(_, name)| name.rsplit('-').next().unwrap_or_default()).collect();
    assert_eq!(gateways, ["a", "c", "e"]);
    let conditions = made.conditions();
    assert_eq!(conditions["gw"], ["Accepted=ListenersNotValid", "!Programmed=Pending"]);
    assert_eq!(
        conditions["gw listener b"],
        [
            "!Accepted=HostnameConflict",
            "!Programmed=Invalid",
            "ResolvedRefs=ResolvedRefs",
            "Conflicted=HostnameConflict"
        ]
    );
    assert_eq!(conditions["gw listener d"][3], "Conflicted=ProtocolConflict");
    assert_eq!(
        conditions["gw listener e"],
        ["Accepted=Accepted", "!Programmed=Invalid", "!ResolvedRefs=InvalidCertificateRef", "!Conflicted=NoConflicts"]
    );
    assert_eq!(made.said.len(), 4, "{:#?}", made.said);
    // A grant lets the certificate be used.
    let granted = grant(
        "other",
        "{group: gateway.networking.k8s.io, kind: Gateway, namespace: default}",
        "{group: '', kind: Secret, name: there}",
    );
    let listeners =
        "[{name: e, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: there, namespace: other}]}}]";
    let secret = super::super::secret("other", "there", &["tls.crt", "tls.key"]);
    let made = converted(&(gateway("gw", listeners) + &secret + &granted)).quiet();
    let tls =
        made.objects.gateways.values().next().and_then(|gateway| gateway.spec.servers[0].tls.clone()).expect("tls");
    assert_eq!(tls.credential_names, ["kubernetes-gateway://other/there"]);
    let made = converted(&(gateway("gw", listeners) + &secret));
    assert_eq!(made.conditions()["gw listener e"][2], "!ResolvedRefs=RefNotPermitted");
}

#[test]
fn other_classes_are_left_alone() {
    let class = |name: &str, controller: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec: {{controllerName: {controller}}}\n"
        )
    };
    let gateway =
        |class: &str| gateway("gw", LISTENER).replace("gatewayClassName: istio", &format!("gatewayClassName: {class}"));
    let route = route("default", "r", "{parentRefs: [{name: gw}]}");
    for (yaml, served, service) in [
        (gateway("istio"), true, "gw-istio"),
        (gateway("egret"), true, "gw-egret"),
        (gateway("nginx"), false, ""),
        (gateway("nginx") + &class("nginx", "egret.dev/gateway-controller"), true, "gw-nginx"),
        (gateway("istio") + &class("istio", "example.com/other"), false, ""),
    ] {
        let made = converted(&(yaml.clone() + &route));
        assert_eq!(made.objects.gateways.len(), usize::from(served), "{yaml}");
        assert_eq!(made.objects.virtual_services.len(), usize::from(served), "{yaml}");
        let names: Vec<_> = made.objects.services.keys().map(|(_, name)| name).collect();
        assert_eq!(names.join(","), service, "{yaml}");
        assert_eq!(made.statuses.is_empty(), !served, "{yaml}");
        assert!(made.said.iter().all(|said| !said.contains("error")), "{:?}", made.said);
        assert_eq!(made.said.iter().any(|said| said.contains("info: Gateway")), !served, "{:?}", made.said);
    }
}

#[test]
fn services_and_service_entries_are_parents_in_the_mesh() {
    let entry = super::super::entry("shop", "e", &format!("{{hosts: [a.com, b.com], {}}}", super::super::HTTP));
    let common = entry + &service("shop", "web");
    for (namespace, spec, want) in [
        ("shop", "parentRefs: [{kind: Service, group: '', name: web}]", &["mesh web.shop.svc.cluster.local"][..]),
        (
            "other",
            "parentRefs: [{kind: Service, group: '', name: web, namespace: shop}]",
            &["mesh web.shop.svc.cluster.local ."],
        ),
        (
            "shop",
            "parentRefs: [{kind: ServiceEntry, group: networking.istio.io, name: e}]",
            &["mesh a.com", "mesh b.com"],
        ),
        ("shop", "parentRefs: [{kind: Service, group: '', name: none}]", &[]),
        ("shop", "parentRefs: [{kind: Service, group: '', name: web, port: 82}]", &[]),
    ] {
        let made = converted(&(common.clone() + &route(namespace, "r", &format!("{{{spec}}}"))));
        assert_eq!(made.routes().into_keys().collect::<Vec<_>>(), want, "{spec}");
        assert_eq!(parents(&made)[0] == "Accepted", !want.is_empty(), "{spec}");
    }
    // By port and by the name of a port; both routes are in one VirtualService.
    let spec = |port: &str| {
        format!(
            "{{parentRefs: [{{kind: Service, group: '', name: web, {port}}}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}"
        )
    };
    let made = converted(
        &(common.clone() + &route("shop", "r", &spec("port: 80")) + &route("shop", "s", &spec("sectionName: http-b"))),
    )
    .quiet();
    assert_eq!(
        made.routes()["mesh web.shop.svc.cluster.local"],
        ["shop.r.0: // :80 -> web.shop.svc.cluster.local:80*1", "shop.s.0: // :81 -> web.shop.svc.cluster.local:80*1"]
    );
    let made =
        converted(&(common + &route("shop", "r", "{parentRefs: [{kind: Mesh, name: istio}], hostnames: [a.com]}")));
    assert_eq!(made.said.len(), 2, "{:?}", made.said);
    assert!(made.said[0].contains("is another controller's: left alone"), "{:?}", made.said);
}

#[test]
fn the_implied_service_goes_where_another_one_sends_its_port() {
    let pod = super::super::pod("default", "gw", "{gateway.networking.k8s.io/gateway-name: gw, app: gw}");
    let other = "---\napiVersion: v1\nkind: Service\nmetadata: {name: mine}\nspec: {selector: {app: gw}, ports: [{port: 80, targetPort: 8080}]}\n";
    let made = converted(&(gateway("gw", LISTENER) + &pod + other)).quiet();
    let implied = made.objects.services.get("default", "gw-istio").unwrap();
    assert_eq!(implied.spec.ports[0].target_port, Some(crate::api::core::TargetPort::Number(8080)));
    assert_eq!(implied.id.to_string(), "Service default/gw-istio");
    // The user's own of that name counts as it is.
    let own = other.replace("name: mine", "name: gw-istio").replace("8080", "8081");
    let made = converted(&(gateway("gw", LISTENER) + &pod + &own)).quiet();
    let service = made.objects.services.get("default", "gw-istio").unwrap();
    assert_eq!(service.spec.ports[0].target_port, Some(crate::api::core::TargetPort::Number(8081)));
}

#[test]
fn an_address_of_type_hostname_names_the_service() {
    let with = |addresses: &str| gateway("gw", &format!("{LISTENER}, addresses: {addresses}"));
    let made =
        converted(&(with("[{type: Hostname, value: web.default.svc.cluster.local}]") + &service("default", "web")))
            .quiet();
    let gateway = made.objects.gateways.values().next().expect("a Gateway");
    assert_eq!(gateway.spec.selector, BTreeMap::from([("app".to_owned(), "web".to_owned())]));
    assert_eq!(made.objects.services.len(), 1, "no Service is implied");
    let made = converted(&with("[{type: Hostname, value: web}]"));
    assert_eq!(made.conditions()["gw"][1], "!Programmed=AddressNotUsable");
    let made = converted(&with("[{value: 10.0.0.1}]"));
    assert_eq!(
        made.said,
        [
            "5:97: warning: Gateway default/gw: spec.addresses[0]: not honoured: the Gateway is served on the addresses of its pods"
        ]
    );
}
