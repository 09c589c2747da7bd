//! Rules: matches and their order, backends, filters and timeouts.

use std::time::Duration;

use super::*;
use crate::api::{Severity, virtual_service::Retries};

fn with_route(rules: &str) -> Converted {
    let spec = format!("{{parentRefs: [{{name: gw}}], rules: {rules}}}");
    converted(
        &(gateway("gw", LISTENER)
            + &service("default", "web")
            + &service("other", "far")
            + &route("default", "r", &spec)),
    )
}

const WEB: &str = "backendRefs: [{name: web, port: 80}]";

#[test]
fn the_most_specific_match_goes_first_across_routes() {
    let spec = |rules: &str| format!("{{parentRefs: [{{name: gw}}], hostnames: [a.com], rules: {rules}}}");
    let a = spec(&format!(
        "[{{{WEB}, matches: [{{path: {{value: /a}}}}, {{path: {{type: RegularExpression, value: '/very/long/expression'}}}}]}}, {{{WEB}}}, \
         {{{WEB}, matches: [{{path: {{value: /a}}, method: GET}}]}}]"
    ));
    let b = spec(&format!(
        "[{{{WEB}, matches: [{{path: {{type: Exact, value: /b}}}}, {{path: {{value: /a}}}}, {{path: {{value: /a/b}}}}, \
         {{path: {{value: /a}}, headers: [{{name: h, value: '1'}}, {{name: i, value: '2'}}]}}, \
         {{path: {{value: /a}}, queryParams: [{{name: q, value: '3'}}]}}]}}]"
    ));
    let yaml =
        gateway("gw", LISTENER) + &service("default", "web") + &route("default", "b", &b) + &route("default", "a", &a);
    let made = converted(&yaml).quiet();
    let order: Vec<_> =
        made.routes()["web a.com"].iter().map(|line| line.split(" ->").next().unwrap_or_default().to_owned()).collect();
    assert_eq!(
        order,
        [
            "default.b.0: =/b",
            "default.b.0: /a/b/",
            "default.a.2: /a/ =GET",
            "default.b.0: /a/ =1 =2",
            "default.b.0: /a/ =3",
            "default.a.0: /a/",
            "default.b.0: /a/",
            "default.a.1: //",
            "default.a.0: ~/very/long/expression",
        ]
    );
    let service = made.objects.virtual_services.values().next().expect("one");
    let sources: Vec<_> =
        service.spec.http.iter().filter_map(|http| Some(http.source.as_ref()?.name.as_str())).collect();
    assert_eq!(sources, ["b", "b", "a", "b", "b", "a", "b", "a", "a"]);
}

#[test]
fn backends() {
    for (rules, want) in [
        (format!("[{{{WEB}}}]"), "default.r.0: // -> web.default.svc.cluster.local:80*1"),
        (
            "[{name: mine, backendRefs: [{name: web, port: 80, weight: 9}, {name: web, port: 81, weight: 0}]}]"
                .to_owned(),
            "mine: // -> web.default.svc.cluster.local:80*9 web.default.svc.cluster.local:81*0",
        ),
        ("[{backendRefs: [{name: web, port: 80, weight: 0}]}]".to_owned(), "default.r.0: // -> 500"),
        ("[{}]".to_owned(), "default.r.0: // -> 500"),
        (
            "[{filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]}]".to_owned(),
            "default.r.0: // -> redirect 302",
        ),
    ] {
        assert_eq!(with_route(&rules).quiet().routes()["web *"], [want], "{rules}");
    }
    for (backend, reason, why) in [
        ("{name: none, port: 80}", "BackendNotFound", "there is no Service default/none"),
        ("{name: web, port: 82}", "BackendNotFound", "Service default/web has no port 82"),
        (
            "{name: far, namespace: other, port: 80}",
            "RefNotPermitted",
            "no ReferenceGrant of namespace other lets an HTTPRoute of namespace default use Service far",
        ),
        (
            "{group: networking.istio.io, kind: Hostname, name: a.com, port: 80}",
            "BackendNotFound",
            "namespace default sees no ServiceEntry or Service for a.com",
        ),
        (
            "{group: example.com, kind: Bucket, name: b}",
            "InvalidKind",
            "kind Bucket of group example.com is no backend",
        ),
    ] {
        let made = with_route(&format!("[{{backendRefs: [{{name: web, port: 80}}, {backend}]}}]"));
        assert_eq!(
            made.routes()["web *"],
            ["default.r.0: // -> web.default.svc.cluster.local:80*1 invalid*1"],
            "{backend}"
        );
        let want = format!(
            "error: HTTPRoute default/r: spec.rules[0].backendRefs[1]: {why}: its share of the requests gets 500"
        );
        assert!(made.said.len() == 1 && made.said[0].ends_with(&want), "{:?}", made.said);
        assert_eq!(
            made.conditions()["r parent Gateway default/gw"],
            ["Accepted=Accepted".to_owned(), format!("!ResolvedRefs={reason}")]
        );
    }
}

#[test]
fn grants() {
    let rules = "[{backendRefs: [{name: far, namespace: other, port: 80}]}]";
    let base = |parent: &str| {
        let spec = format!("{{parentRefs: [{parent}], rules: {rules}}}");
        gateway("gw", LISTENER) + &service("default", "web") + &service("other", "far") + &route("default", "r", &spec)
    };
    let from = |kind: &str, namespace: &str| {
        format!("{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {namespace}}}")
    };
    for (grant, allowed) in [
        (grant("other", &from("HTTPRoute", "default"), "{group: '', kind: Service}"), true),
        (grant("other", &from("HTTPRoute", "default"), "{group: '', kind: Service, name: far}"), true),
        (grant("other", &from("HTTPRoute", "default"), "{group: '', kind: Service, name: near}"), false),
        (grant("other", &from("HTTPRoute", "default"), "{group: '', kind: Secret}"), false),
        (grant("other", &from("HTTPRoute", "third"), "{group: '', kind: Service}"), false),
        (grant("other", &from("TLSRoute", "default"), "{group: '', kind: Service}"), false),
        (grant("default", &from("HTTPRoute", "default"), "{group: '', kind: Service}"), false),
    ] {
        let made = converted(&(base("{name: gw}") + &grant));
        assert_eq!(made.said.is_empty(), allowed, "{grant}\n{:?}", made.said);
    }
    // In the mesh Istio asks for none.
    converted(&base("{kind: Service, group: '', name: web}")).quiet();
}

#[test]
fn prefixes_timeouts_retries_and_mirrors() {
    let rewrite = |path: &str, new: &str| {
        let matches = format!("matches: [{{path: {{value: {path}}}}}]");
        let made = with_route(&format!(
            "[{{{WEB}, {matches}, filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{new}'}}}}}}]}}]"
        ));
        made.quiet().routes()["web *"][0].rsplit(' ').next().unwrap_or_default().to_owned()
    };
    // What follows `/a` has its own slash; what follows `/` has none.
    assert_eq!(rewrite("/a", "/z/"), "/z");
    assert_eq!(rewrite("/a", "/"), "");
    assert_eq!(rewrite("/", "/z"), "/z/");
    assert_eq!(rewrite("/", "/"), "/");

    let made = with_route(&format!(
        "[{{{WEB}, timeouts: {{request: 10s, backendRequest: 2s}}, filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: web, port: 81}}, percent: 5}}}}, {{type: RequestMirror, requestMirror: {{backendRef: {{name: none, port: 81}}}}}}]}}, {{{WEB}, retry: {{codes: [500], attempts: 4}}}}, {{{WEB}, timeouts: {{request: 0s}}}}]"
    ));
    assert_eq!(made.said.len(), 1);
    assert!(made.said[0].contains("spec.rules[0].filters[1].requestMirror.backendRef: there is no Service default/none: nothing is mirrored to it"), "{:?}", made.said);
    let http = &made.objects.virtual_services.values().next().expect("one").spec.http;
    assert_eq!(http[0].timeout, Some(Duration::from_secs(10)));
    let tries =
        |route: &HttpRoute| route.retries.clone().map(|r: Retries| (r.attempts, r.per_try_timeout, r.retry_on.len()));
    assert_eq!(tries(&http[0]), Some((2, Some(Duration::from_secs(2)), 0)));
    assert_eq!(
        http[0].mirrors.iter().map(|m| (m.destination.port, m.percentage)).collect::<Vec<_>>(),
        [(Some(81), 50_000)]
    );
    assert_eq!(tries(&http[1]), Some((4, None, 5)));
    assert_eq!((http[2].timeout, tries(&http[2])), (None, None));
}

#[test]
fn what_is_found_later_is_told_where_it_was_written() {
    let made = with_route(&format!(
        "[{{{WEB}}}, {{{WEB}, matches: [{{path: {{type: RegularExpression, value: '('}}}}, {{path: {{type: Exact, value: /x}}}}]}}]"
    ));
    let service = made.objects.virtual_services.values().next().expect("one");
    let names: Vec<_> = service.spec.http.iter().map(short).collect();
    // The first of them is the second rule's second match.
    assert!(names[0].starts_with("default.r.1: =/x"), "{names:?}");
    for (field, want) in [
        ("spec.http[0].match[0].uri", "spec.rules[1].matches[1].path"),
        ("spec.http[2].match[0].uri", "spec.rules[1].matches[0].path"),
        ("spec.http[2].route[0].destination.host", "spec.rules[1].backendRefs[0].name"),
        ("spec.http[2].route[0].destination.port", "spec.rules[1].backendRefs[0].port"),
        ("spec.http[1]", "spec.rules[0]"),
        ("spec.gateways[0]", "spec.parentRefs[0]"),
        ("spec.hosts[0]", "spec.hostnames[0]"),
    ] {
        assert_eq!(service.diagnostic(Severity::Error, field, "").field, want);
    }
}
