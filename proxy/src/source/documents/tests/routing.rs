//! VirtualServices, Gateways and traffic policies as their authors write them.

use std::time::Duration;

use super::*;
use crate::api::{
    gateway::{Gateway, ServerProtocol, ServerTlsMode},
    istio::{HashKey, HashRing},
    virtual_service::{Abort, PathChange, RedirectPort, StringMatch, VirtualService},
};

fn virtual_service(spec: &str) -> (Option<VirtualService>, Vec<String>) {
    let text =
        format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v}}\nspec:\n{spec}");
    let parsed = parse(&text);
    let found = parsed.objects.iter().find_map(|object| match object {
        AnyObject::VirtualService(object) => Some(object.spec.clone()),
        _ => None,
    });
    (found, said(&parsed))
}

fn gateway(spec: &str) -> (Option<Gateway>, Vec<String>) {
    let text = format!("apiVersion: networking.istio.io/v1alpha3\nkind: Gateway\nmetadata: {{name: g}}\nspec:\n{spec}");
    let parsed = parse(&text);
    let found = parsed.objects.iter().find_map(|object| match object {
        AnyObject::Gateway(object) => Some(object.spec.clone()),
        _ => None,
    });
    (found, said(&parsed))
}

const EVERYTHING: &str = r#"  hosts: [Reviews, '*.example.com']
  gateways: [mesh, istio-system/egress]
  exportTo: ['.']
  http:
  - name: canary
    match:
    - name: beta
      uri: {prefix: /api}
      ignoreUriCase: true
      method: {exact: GET}
      headers: {X-User: {regex: 'a.*'}, x-any: {}}
      withoutHeaders: {x-off: {exact: "1"}}
      queryParams: {v: {exact: "2"}}
      sourceLabels: {app: sleep}
      source_namespace: default
      port: 80
      gateways: [mesh]
    route:
    - destination: {host: reviews, subset: v2, port: {number: 9080}}
      weight: 90
      headers: {request: {set: {x-to: v2}}}
    - destination: {host: reviews}
      weight: "10"
    timeout: 1.5s
    retries: {attempts: 3, perTryTimeout: 500ms, retryOn: 'connect-failure, 503', backoff: 10ms}
    fault:
      delay: {fixedDelay: 2s, percentage: {value: 0.1}}
      abort: {httpStatus: 418, percentage: {value: 50}}
    mirrors:
    - destination: {host: shadow}
      percentage: {value: 12.5}
    corsPolicy:
      allowOrigins: [{exact: https://a.b}]
      allowMethods: [GET, POST]
      maxAge: 24h
      allowCredentials: true
    rewrite: {uri: /v2, authority: other.example.com}
    headers: {response: {remove: [server], add: {x-by: egret}}}
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, derivePort: FROM_REQUEST_PORT, redirectCode: 308}
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - delegate: {name: rest, namespace: shop}
  tls:
  - match: [{sni_hosts: [a.example.com], port: 443, destinationSubnets: [10.0.0.0/8]}]
    route: [{destination: {host: reviews}}]
  tcp:
  - route: [{destination: {host: db, port: {number: 27017}}}]
"#;

#[test]
fn a_virtual_service_is_read_whole() {
    let (found, said) = virtual_service(EVERYTHING);
    assert!(said.is_empty(), "{said:#?}");
    let found = found.expect("a VirtualService");
    assert_eq!(
        (found.hosts, found.gateways.len(), found.export_to.len()),
        (vec!["reviews".to_owned(), "*.example.com".to_owned()], 2, 1)
    );
    let [first, second, third, fourth] = found.http.as_slice() else { panic!("{:?}", found.http) };
    let wanted = &first.matches[0];
    assert_eq!(wanted.uri, Some(StringMatch::Prefix("/api".to_owned())));
    assert_eq!(wanted.headers["x-user"], StringMatch::Regex("a.*".to_owned()));
    assert_eq!(wanted.headers["x-any"], StringMatch::Present);
    assert_eq!(
        (wanted.port, wanted.source_namespace.as_deref(), wanted.ignore_uri_case),
        (Some(80), Some("default"), true)
    );
    assert_eq!(first.route.iter().map(|to| to.weight).collect::<Vec<_>>(), [90, 10]);
    assert_eq!(
        (first.route[0].destination.subset.as_deref(), first.route[0].destination.port),
        (Some("v2"), Some(9080))
    );
    assert_eq!(first.timeout, Some(Duration::from_millis(1500)));
    let retries = first.retries.as_ref().expect("retries");
    assert_eq!(
        (retries.attempts, retries.retry_on.as_slice()),
        (3, &["connect-failure".to_owned(), "503".to_owned()][..])
    );
    let fault = first.fault.as_ref().expect("a fault");
    assert_eq!(fault.delay, Some((Duration::from_secs(2), 1000)));
    assert_eq!(fault.abort, Some((Abort::Http(418), 500_000)));
    assert_eq!(first.mirrors[0].percentage, 125_000);
    assert_eq!(first.rewrite.as_ref().map(|rewrite| rewrite.path.clone()), Some(PathChange::Prefix("/v2".to_owned())));
    assert_eq!(first.headers.response.remove, ["server"]);
    let redirect = second.redirect.as_ref().expect("a redirect");
    assert_eq!((redirect.code, redirect.port), (308, Some(RedirectPort::Request)));
    assert_eq!(
        third.direct_response.as_ref().map(|answer| (answer.status, answer.body.as_slice())),
        Some((418, &b"short and stout"[..]))
    );
    assert_eq!(fourth.delegate.as_ref().and_then(|to| to.namespace.as_deref()), Some("shop"));
    assert_eq!(found.tls[0].matches[0].sni_hosts, ["a.example.com"]);
    // A single destination takes all without a weight.
    assert_eq!((found.tls[0].route[0].weight, found.tcp[0].route[0].weight), (1, 1));
}

#[test]
fn virtual_services_are_checked_as_istio_checks_them() {
    let cases: &[Case] = &[
        (
            "  hosts: ['*']\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["5:11: hosts[0]: `*` goes with gateways only: in the mesh it would take every host"],
        ),
        (
            "  hosts: [a.b, A.B]\n  http: [{route: [{destination: {host: a}}]}]\n",
            &["5:16: hosts[1]: \"a.b\" is given twice"],
        ),
        ("  hosts: [a.b]\n", &["4:1: one of `http`, `tls` and `tcp` must have a route"]),
        (
            "  hosts: [a.b]\n  http: [{}]\n",
            &["6:10: http[0]: says nothing to do: give `route`, `redirect`, `directResponse` or `delegate`"],
        ),
        (
            "  hosts: [a.b]\n  http:\n  - redirect: {uri: /x}\n    route: [{destination: {host: a}}]\n",
            &["7:5: http[0]: `route` and `redirect` exclude each other"],
        ),
        (
            "  hosts: [a.b]\n  http:\n  - match: [{uri: {regex: '('}}]\n    route: [{destination: {host: '*.b'}}]\n",
            &[
                "7:27: http[0].match[0].uri.regex: is not a regular expression (RE2): error: unclosed group",
                "8:34: http[0].route[0].destination.host: a destination is one service: no wildcard",
            ],
        ),
        (
            "  hosts: [a.b]\n  http:\n  - fault: {abort: {httpStatus: 503}}\n    route: [{destination: {host: a}, weight: 0}, {destination: {host: b}}]\n",
            &[
                "7:5: http[0]: the weights of `route` are all 0: no destination gets anything",
                "7:20: warning: http[0].fault.abort: without `percentage` no request is aborted",
            ],
        ),
        (
            "  hosts: [a.b]\n  tls: [{match: [{sniHosts: [c.d]}], route: [{destination: {host: a}}]}]\n",
            &["6:30: tls[0].match[0].sniHosts[0]: \"c.d\" is not among `hosts` of this VirtualService"],
        ),
        ("  http: [{delegate: {name: a}}]\n", &["5:10: http[0]: a delegate cannot delegate any further"]),
        (
            "  hosts: [a.b]\n  http:\n  - retries: {retryRemoteLocalities: true}\n    corsPolicy: {alowOrigins: []}\n    route: [{destination: {host: a}}]\n",
            &[
                "7:15: warning: http[0].retries.retryRemoteLocalities: not honoured yet",
                "8:18: warning: http[0].corsPolicy.alowOrigins: unknown field (did you mean `allowOrigins`?)",
            ],
        ),
    ];
    each(cases, "VirtualService default/v", |spec| virtual_service(spec).1);
}

#[test]
fn gateways_are_read_and_checked() {
    let (found, said) = gateway(
        "  selector: {istio: egressgateway}\n  servers:\n  - port: {number: 80, name: https-cnn, protocol: HTTPS}\n    hosts: [edition.cnn.com, ./A.b, shop/*]\n    tls: {mode: ISTIO_MUTUAL}\n  - port: {number: 8080, name: http, protocol: http2}\n    bind: 0.0.0.0\n    hosts: ['*']\n    tls: {httpsRedirect: true}\n",
    );
    assert!(said.is_empty(), "{said:#?}");
    let found = found.expect("a Gateway");
    let [first, second] = found.servers.as_slice() else { panic!("{:?}", found.servers) };
    assert_eq!((first.port.number, first.port.protocol), (80, ServerProtocol::Https));
    assert_eq!(first.tls.as_ref().and_then(|tls| tls.mode), Some(ServerTlsMode::IstioMutual));
    assert_eq!(first.hosts, ["edition.cnn.com", "./a.b", "shop/*"]);
    assert_eq!((second.port.protocol, second.bind), (ServerProtocol::Http2, None));
    assert_eq!(second.tls.as_ref().map(|tls| (tls.https_redirect, tls.mode)), Some((true, None)));
    let cases: &[Case] = &[
        (
            "  selector: {a: b}\n  servers:\n  - port: {number: 443, name: x, protocol: HTTPS}\n    hosts: []\n",
            &[
                "7:5: servers[0]: `hosts` must name at least one host",
                "7:5: servers[0]: `tls` is missing: protocols HTTPS and TLS want it",
            ],
        ),
        (
            "  selector: {a: b}\n  servers:\n  - port: {number: 80, name: x, protocol: HTTP}\n    hosts: ['*']\n    defaultEndpoint: 127.0.0.1:80\n    tls: {mode: SIMPLE, credentialName: c}\n",
            &[
                "9:22: warning: servers[0].defaultEndpoint: means nothing at a gateway: ignored, as in Istio",
                "10:10: servers[0].tls: a plain HTTP port takes `httpsRedirect` only: TLS wants protocol HTTPS",
            ],
        ),
        (
            "  selector: {a: b}\n  servers:\n  - port: {number: 80, name: x, protocol: SMTP}\n    hosts: ['*']\n",
            &[
                "7:43: servers[0].port.protocol: \"SMTP\" is not one of HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TLS, TCP, MONGO",
            ],
        ),
        (
            "  selector: {a: b}\n  servers:\n  - port: {number: 443, name: x, protocol: TLS}\n    hosts: [a]\n    tls: {mode: ISTIO_MUTUAL, credentialName: c}\n",
            &["9:47: servers[0].tls.credentialName: ISTIO_MUTUAL uses the mesh's own certificates: leave it out"],
        ),
    ];
    each(cases, "Gateway default/g", |spec| gateway(spec).1);
}

#[test]
fn traffic_policies_are_read_whole() {
    let (found, said) = rule(
        "  host: a.b\n  trafficPolicy:\n    outlierDetection: {consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 100}\n    loadBalancer:\n      consistentHash: {httpCookie: {name: user, ttl: 0s}, maglev: {tableSize: 1009}}\n      localityLbSetting: {failover: [{from: eu, to: us}]}\n    connectionPool: {tcp: {tcpKeepalive: {probes: 3, time: 10s}}, http: {useClientProtocol: true, maxConcurrentStreams: 10}}\n    portLevelSettings:\n    - {port: {number: 80}, outlierDetection: {}}\n",
    );
    assert!(said.is_empty(), "{said:#?}");
    let policy = found.and_then(|rule| rule.traffic_policy).expect("a policy");
    let outlier = policy.outlier_detection.expect("outlier detection");
    assert_eq!(
        (outlier.consecutive_5xx, outlier.consecutive_gateway, outlier.max_ejection_percent),
        (None, Some(3), 100)
    );
    let balancing = policy.load_balancer.expect("balancing");
    let hash = balancing.consistent_hash.expect("a hash");
    assert_eq!(hash.ring, HashRing::Maglev { table: 1009 });
    assert_eq!(hash.key, HashKey::Cookie { name: "user".to_owned(), path: None, ttl: Some(Duration::ZERO) });
    assert_eq!(balancing.locality.expect("locality").failover, [("eu".to_owned(), "us".to_owned())]);
    let pool = policy.connection_pool.expect("a pool");
    assert!(pool.http_use_client_protocol);
    assert_eq!(
        pool.tcp_keepalive.map(|probe| (probe.probes, probe.time)),
        Some((Some(3), Some(Duration::from_secs(10))))
    );
    let level = policy.port_level_settings[0].1.outlier_detection.as_ref().expect("the port's");
    assert_eq!(
        (level.consecutive_5xx, level.interval, level.max_ejection_percent),
        (Some(5), Duration::from_secs(10), 10)
    );
    let cases: &[Case] = &[
        (
            "  host: a.b\n  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x, useSourceIp: true}}}\n",
            &[
                "6:50: trafficPolicy.loadBalancer.consistentHash: wants exactly one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName",
            ],
        ),
        (
            "  host: a.b\n  trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a/*, to: {b/*: 70}}]}}}\n",
            &[
                "6:67: trafficPolicy.loadBalancer.localityLbSetting.distribute[0]: the weights of `to` are 70 together: they must be 100",
            ],
        ),
    ];
    each(cases, "DestinationRule default/d", |spec| rule(spec).1);
}
