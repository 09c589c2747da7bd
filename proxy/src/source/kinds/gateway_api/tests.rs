//! What Gateway API documents become, and what is said about them.

use std::{path::Path, sync::Arc, time::Duration};

use crate::{
    api::{
        AnyObject,
        gateway_api::{Gateway, HttpRoute, LabelOperator, ListenerProtocol, RoutesFrom},
        virtual_service::{PathChange, RedirectPort, StringMatch},
    },
    source::documents::{Parsed, parse_file},
};

fn parse(kind: &str, spec: &str) -> Parsed {
    let text = format!("apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n{spec}");
    parse_file(Arc::from(Path::new("f.yaml")), &text)
}

/// Every finding as `egret check` prints it, without file and object.
fn said(parsed: &Parsed) -> Vec<String> {
    let errors = parsed.refused.iter().flat_map(|refused| &refused.errors);
    let mut all: Vec<_> = errors.chain(&parsed.diagnostics).collect();
    all.sort_by_key(|d| (d.line, d.column));
    all.iter()
        .map(|d| {
            let object = d.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
            d.to_string().trim_start_matches("f.yaml:").replace(&object, "")
        })
        .collect()
}

fn gateway(spec: &str) -> (Option<Gateway>, Vec<String>) {
    let parsed = parse("Gateway", spec);
    let read = parsed.objects.iter().find_map(|object| match object {
        AnyObject::KubeGateway(object) => Some(object.spec.clone()),
        _ => None,
    });
    (read, said(&parsed))
}

fn route(spec: &str) -> (Option<HttpRoute>, Vec<String>) {
    let parsed = parse("HTTPRoute", spec);
    let read = parsed.objects.iter().find_map(|object| match object {
        AnyObject::HttpRoute(object) => Some(object.spec.clone()),
        _ => None,
    });
    (read, said(&parsed))
}

/// Runs all cases (the first line of a spec is line 5) and names all that differ.
fn each(cases: &[(&str, &[&str])], read: impl Fn(&str) -> Vec<String>) {
    let mut wrong = String::new();
    for (spec, expected) in cases {
        let found = read(spec);
        if found != *expected {
            wrong.push_str(&format!("{spec}\n  expected {expected:#?}\n  found {found:#?}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_gateway_is_read_whole() {
    let (read, said) = gateway(
        "  gatewayClassName: istio
  addresses: [{type: Hostname, value: gw.ns.svc.cluster.local}]
  infrastructure: {annotations: {a: b}}
  listeners:
  - name: https
    hostname: Edition.CNN.com
    port: 80
    protocol: HTTPS
    tls: {mode: Terminate, options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}}
    allowedRoutes: {namespaces: {from: Same}}
  - name: http
    port: 8080
    protocol: HTTP
    allowedRoutes:
      kinds: [{kind: HTTPRoute}]
      namespaces:
        from: Selector
        selector: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: NotIn, values: [d]}]}
  - name: tls
    port: 443
    protocol: TLS
    tls: {certificateRefs: [{name: cert, namespace: other}]}
",
    );
    assert_eq!(said, [""; 0]);
    let read = read.expect("a Gateway");
    assert_eq!((read.class.as_str(), read.addresses[0].kind.as_str()), ("istio", "Hostname"));
    let [https, http, tls] = read.listeners.as_slice() else { panic!("{:?}", read.listeners) };
    assert_eq!((https.hostname.as_deref(), https.port), (Some("edition.cnn.com"), 80));
    assert_eq!(https.protocol, ListenerProtocol::Https);
    assert_eq!(https.allowed_routes.from, RoutesFrom::Same);
    assert!(https.tls.as_ref().is_some_and(|tls| !tls.passthrough && tls.certificates.is_empty()));
    assert_eq!(http.hostname, None);
    assert_eq!(http.allowed_routes.kinds, [("gateway.networking.k8s.io".to_owned(), "HTTPRoute".to_owned())]);
    let RoutesFrom::Selector(selector) = &http.allowed_routes.from else { panic!("{http:?}") };
    assert_eq!((selector.labels["a"].as_str(), selector.expressions[0].operator), ("b", LabelOperator::NotIn));
    let certificate = &tls.tls.as_ref().expect("tls").certificates[0];
    assert_eq!((certificate.kind.as_str(), certificate.namespace.as_deref()), ("Secret", Some("other")));
}

#[test]
fn gateways_are_checked() {
    let listener = |rest: &str| format!("  gatewayClassName: istio\n  listeners:\n  - {{name: l, port: 80, {rest}}}\n");
    let cases = [
        ("protocol: HTTP".to_owned(), vec![]),
        (
            "protocol: http".to_owned(),
            vec!["7:35: error: spec.listeners[0].protocol: \"http\" is not one of HTTP, HTTPS, TLS, TCP"],
        ),
        (
            "protocol: HTTPS".to_owned(),
            vec!["7:5: error: spec.listeners[0]: `tls` is missing: protocols HTTPS and TLS want it"],
        ),
        (
            "protocol: HTTPS, tls: {}".to_owned(),
            vec![
                "7:47: error: spec.listeners[0].tls: `certificateRefs` is missing: mode Terminate wants it, or option gateway.istio.io/tls-terminate-mode",
            ],
        ),
        (
            "protocol: HTTPS, tls: {options: {gateway.istio.io/tls-terminate-mode: MESH}}".to_owned(),
            vec![
                "7:47: error: spec.listeners[0].tls: `certificateRefs` is missing: mode Terminate wants it, or option gateway.istio.io/tls-terminate-mode",
                "7:95: error: spec.listeners[0].tls.options[gateway.istio.io/tls-terminate-mode]: \"MESH\" is not one of SIMPLE, MUTUAL, OPTIONAL_MUTUAL, ISTIO_SIMPLE, ISTIO_MUTUAL",
            ],
        ),
        (
            "protocol: HTTP, hostname: '*'".to_owned(),
            vec![
                "7:51: error: spec.listeners[0].hostname: \"*\" is no name of a host here: leave it out to mean every host",
            ],
        ),
        (
            "protocol: HTTP, hostnam: a.b".to_owned(),
            vec!["7:41: warning: spec.listeners[0].hostnam: unknown field (did you mean `hostname`?)"],
        ),
        (
            "protocol: HTTP, allowedRoutes: {namespaces: {from: Selector}}".to_owned(),
            vec![
                "7:69: error: spec.listeners[0].allowedRoutes.namespaces: `selector` is missing: `from: Selector` wants it",
            ],
        ),
    ];
    for (rest, expected) in cases {
        let spec = listener(&rest);
        assert_eq!(gateway(&spec).1, expected, "{rest}");
    }
    let twice = "  gatewayClassName: istio\n  listeners:\n  - {name: l, port: 80, protocol: HTTP}\n  - {name: l, port: 81, protocol: HTTP}\n";
    assert_eq!(gateway(twice).1, ["8:5: error: spec.listeners[1]: listener \"l\" is given twice"]);
}

#[test]
fn a_route_is_read_whole() {
    let (read, said) = route(
        "  parentRefs:
  - {name: gw, sectionName: http, port: 80}
  - {group: networking.istio.io, kind: ServiceEntry, name: cnn}
  - {group: '', kind: Service, name: web, namespace: shop}
  hostnames: [A.com, '*.b.com']
  rules:
  - name: first
    matches:
    - {path: {value: /a/}, method: GET, headers: [{name: X-Who, value: me}], queryParams: [{name: q, type: RegularExpression, value: '1+'}]}
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: '1'}], add: [{name: x-b, value: '2'}], remove: [X-C]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [server]}}
    - {type: URLRewrite, urlRewrite: {hostname: c.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /z/}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}, fraction: {numerator: 1, denominator: 8}}}
    timeouts: {request: 10s, backendRequest: 2s}
    retry: {codes: [503], attempts: 3, backoff: 50ms}
    backendRefs:
    - {name: web, port: 80, weight: 9, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: v, value: a}]}}]}
    - {group: networking.istio.io, kind: Hostname, name: edition.cnn.com, port: 443}
  - filters: [{type: RequestRedirect, requestRedirect: {scheme: https, path: {type: ReplaceFullPath, replaceFullPath: /x}, statusCode: 301}}]
",
    );
    assert_eq!(said, [""; 0]);
    let read = read.expect("an HTTPRoute");
    let parents: Vec<_> =
        read.parents.iter().map(|p| (p.object.kind.as_str(), p.object.name.as_str(), p.port)).collect();
    assert_eq!(parents, [("Gateway", "gw", Some(80)), ("ServiceEntry", "cnn", None), ("Service", "web", None)]);
    assert_eq!(read.hostnames, ["a.com", "*.b.com"]);
    let [first, second] = read.rules.as_slice() else { panic!("{:?}", read.rules) };
    let one = &first.matches[0];
    assert_eq!(one.uri, Some(StringMatch::PathPrefix("/a".into())));
    assert_eq!(one.method, Some(StringMatch::Exact("GET".into())));
    assert_eq!(one.headers["x-who"], StringMatch::Exact("me".into()));
    assert_eq!(one.query_params["q"], StringMatch::Regex("1+".into()));
    assert_eq!(first.headers.request.set, [("x-a".to_owned(), "1".to_owned())]);
    assert_eq!(first.headers.response.remove, ["server"]);
    let rewrite = first.rewrite.as_ref().expect("a rewrite");
    assert_eq!((&rewrite.path, rewrite.authority.as_deref()), (&PathChange::Prefix("/z".into()), Some("c.com")));
    assert_eq!((first.mirrors[0].share, first.mirrors[0].backend.port), (125_000, Some(80)));
    let second_long = Duration::from_secs(1);
    assert_eq!((first.request_timeout, first.backend_timeout), (Some(10 * second_long), Some(2 * second_long)));
    assert_eq!(first.retry.as_ref().map(|retry| (retry.codes.clone(), retry.attempts)), Some((vec![503], Some(3))));
    let backends: Vec<_> = first.backends.iter().map(|b| (b.backend.object.kind.as_str(), b.weight)).collect();
    assert_eq!(backends, [("Service", 9), ("Hostname", 1)]);
    let redirect = second.redirect.as_ref().expect("a redirect");
    assert_eq!(
        (redirect.code, redirect.port, &redirect.path),
        (301, Some(RedirectPort::ProtocolDefault), &PathChange::Full("/x".into()))
    );
}

#[test]
fn routes_are_checked() {
    each(
        &[
            ("  parentRefs: [{name: gw}]\n", &[]),
            ("  rules: []\n", &["4:1: warning: spec: without `parentRefs` the route is attached to nothing"]),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - filters: [{type: ExtensionRef, extensionRef: {name: x}}]\n",
                &[
                    "7:22: error: spec.rules[0].filters[0].type: \"ExtensionRef\" is not honoured: there are RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, URLRewrite, RequestMirror",
                ],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - backendRefs: [{name: web}]\n",
                &["7:19: error: spec.rules[0].backendRefs[0]: `port` is missing"],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - backendRefs: [{name: web.shop, port: 80}]\n",
                &[
                    "7:26: error: spec.rules[0].backendRefs[0].name: must be the name of a Service, not a host; for a host there is kind Hostname",
                ],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - backendRefs: [{group: networking.istio.io, kind: Hostname, name: a.b, namespace: c, port: 80}]\n",
                &[
                    "7:86: error: spec.rules[0].backendRefs[0].namespace: kind Hostname is of no namespace: leave it out",
                ],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - filters: [{type: RequestRedirect, requestRedirect: {}}]\n    backendRefs: [{name: web, port: 80}]\n",
                &[
                    "8:18: error: spec.rules[0].backendRefs: filter RequestRedirect answers by itself: it takes no backends",
                ],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - matches: [{path: {type: Exact, value: /a}}]\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]\n",
                &[
                    "8:14: error: spec.rules[0].filters: replacePrefixMatch wants exactly one match, with a path of type PathPrefix",
                ],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - matches: [{path: {value: a//b}}, {headers: [{name: a b, value: c}]}, {method: get}]\n",
                &[
                    "7:30: error: spec.rules[0].matches[0].path.value: must begin with `/`",
                    "7:56: error: spec.rules[0].matches[1].headers[0].name: \"a b\" is not a header name",
                    "7:83: error: spec.rules[0].matches[2].method: \"get\" is not one of GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH",
                ],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - timeouts: {request: 1s, backendRequest: 2s}\n    sessionPersistence: {}\n",
                &[
                    "7:45: error: spec.rules[0].timeouts.backendRequest: must not be longer than `request`",
                    "8:5: warning: spec.rules[0].sessionPersistence: not honoured yet",
                ],
            ),
            (
                "  parentRefs: [{name: gw}]\n  rules:\n  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], remove: [a]}}]\n",
                &[
                    "7:106: error: spec.rules[0].filters[0].requestHeaderModifier.remove[0]: header a is given twice in this filter",
                ],
            ),
        ],
        |spec| route(spec).1,
    );
}

#[test]
fn grants_and_classes() {
    let parsed = parse(
        "ReferenceGrant",
        "  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}]\n  to: [{group: '', kind: Service}, {group: '', kind: Secret, name: s}]\n",
    );
    assert_eq!(said(&parsed), [""; 0]);
    let AnyObject::ReferenceGrant(grant) = &parsed.objects[0] else { panic!("{:?}", parsed.objects) };
    assert_eq!(grant.spec.from[0].namespace, "a");
    assert_eq!(grant.spec.to.iter().map(|to| to.name.as_deref()).collect::<Vec<_>>(), [None, Some("s")]);
    let parsed = parse("GatewayClass", "  controllerName: istio.io/gateway-controller\n");
    assert_eq!(parsed.objects[0].id().to_string(), "GatewayClass x");
    let parsed = parse("Gateway", "  gatewayClassName: a\n  listeners: [{name: l, port: 80, protocol: HTTP}]\n");
    assert_eq!(parsed.objects[0].id().to_string(), "Gateway default/x");
}
